"""Tars without a manifest: somebody else's WebDataset, indexed when the loader is built."""

import io
import json
import os
import shutil
import tarfile
from pathlib import Path

import fsspec
import numpy as np
import pytest
import torch
from cached_sets import OPTIONS, epoch
from fsspec.implementations.memory import MemoryFileSystem
from service_processes import assert_same_batches

from softshard.loaders import Augment, Loader, Subset, other_tars
from softshard.loaders.data_set import open_data_set
from softshard.loaders.tar_index import expand_braces, split_braces
from softshard.shards import DataError, Manifest, UsageError, read_shard

pytestmark = pytest.mark.filterwarnings("ignore:.*tars? without a manifest")


def write_tar(path, samples):
    """Write (key, {suffix: bytes}) as tarfile does, PAX headers and all."""
    with tarfile.open(path, "w") as tar:
        for key, parts in samples:
            for suffix, data in parts.items():
                info = tarfile.TarInfo(f"{key}.{suffix}")
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))


@pytest.fixture
def tars(packed, tmp_path):
    """The packed samples in three tars of another's making: long names, a folder in the tar, other members."""
    folder = tmp_path / "tars"
    folder.mkdir()
    samples = [s for shard in Manifest.load(packed).shards for s in read_shard(packed / shard.name)]
    for number in range(3):
        part = samples[number::3]
        write_tar(
            folder / f"wds-{number:06}.tar",
            [
                (
                    f"some/folder/{'x' * 100}_{s.key}",
                    {"txt": b"a caption", "jpg": s.parts["jpg"], "cls": s.parts["cls"], "json": b"{}"},
                )
                for s in part
            ],
        )
    return folder


def test_every_sample_is_served_with_its_pixels_and_class(tars, packed, cache, plain_samples):
    # A squish of the whole image, so that a sample's pixels do not depend on its place in the data set.
    options = {"augment": Augment.evaluation(size=16), "shuffle": False, "last_batch": "pad"}
    expected = {}
    for batch in epoch(packed, **options):
        for i, key in enumerate(batch.keys):
            expected[key] = batch.images[i], int(batch.classes[i])
    with pytest.warns(UserWarning, match="3 tars without a manifest, 105 samples with 9 classes"):
        found = epoch(tars, cache=cache, **options)
    num = 0
    for batch in found:
        for i, key in enumerate(filter(None, batch.keys)):
            pixels, label = expected[key.rpartition("/x")[2].lstrip("x").removeprefix("_")]
            assert torch.equal(batch.images[i], pixels)
            assert int(batch.classes[i]) == label
            num += 1
    assert num == len(plain_samples)


def test_a_folder_a_pattern_and_a_url_are_the_same_data_set(tars, cache):
    filesystem = fsspec.filesystem("memory")
    filesystem.put(str(tars), "/other", recursive=True)
    try:
        expected = epoch(tars, cache=cache)
        assert_same_batches(epoch(f"{tars}/wds-{{000000..000002}}.tar", cache=cache), expected)
        assert_same_batches(epoch("memory://other", cache=cache), expected)
        with Loader("memory://other/wds-{000000..000002}.tar", cache=cache, **OPTIONS) as loader:
            assert_same_batches(loader, expected)
            # Fetched to be indexed, and not again.
            assert loader.fetch_stats().shards_fetched == 0
    finally:
        filesystem.rm("/other", recursive=True)


def test_a_bucket_of_tars_is_served(tars, bucket, cache):
    assert_same_batches(
        epoch(f"{bucket(tars)}/wds-{{000000..000002}}.tar", cache=cache), epoch(tars, cache=cache)
    )


def test_the_index_is_kept(tars, cache, monkeypatch):
    expected = epoch(tars, cache=cache)
    indexed = []
    real = other_tars.index_tar
    monkeypatch.setattr(
        other_tars, "index_tar", lambda file, where: indexed.append(where) or real(file, where)
    )
    assert_same_batches(epoch(tars, cache=cache), expected)
    assert indexed == []
    os.utime(tars / "wds-000001.tar", (1, 1))  # changed, for all that is known
    assert_same_batches(epoch(tars, cache=cache), expected)
    assert indexed == [str(tars / "wds-000001.tar")]
    for path in (cache.path / "indexes").iterdir():
        path.write_bytes(b"not an index")
    assert_same_batches(epoch(tars, cache=cache), expected)
    assert len(indexed) == 4


def test_a_tar_that_changes_while_it_is_in_use_is_not_served(tars, cache):
    with Loader(tars, cache=cache, **OPTIONS) as loader:
        os.utime(tars / "wds-000001.tar", (1, 1))
        with pytest.raises(
            DataError, match=r"wds-000001.tar: expected the tar that was indexed, .* has changed"
        ):
            list(loader)


def test_a_state_belongs_to_the_tars_contents_and_not_to_their_place(tars, cache, tmp_path):
    moved = Path(shutil.copytree(tars, tmp_path / "moved"))
    with Loader(tars, cache=cache, **OPTIONS) as loader:
        next(iter(loader))
        state = loader.state_dict()
    with Loader(moved, cache=cache, **OPTIONS) as loader:
        loader.load_state_dict(state)
    shutil.copy(moved / "wds-000000.tar", moved / "wds-000002.tar")
    with (
        Loader(moved, cache=cache, **OPTIONS) as loader,
        pytest.raises(UsageError, match="expected fingerprint"),
    ):
        loader.load_state_dict(state)


def jpegs(plain_samples, num):
    return [sample.parts["jpg"] for sample in plain_samples[:num]]


def make(tmp_path, samples):
    (tmp_path / "made").mkdir(exist_ok=True)
    write_tar(tmp_path / "made" / "a.tar", samples)
    return tmp_path / "made"


def test_names_as_classes_are_numbered_in_their_order(tmp_path, plain_samples, cache):
    names = ["dog", "cat", "owl", "cat"]
    images = jpegs(plain_samples, 4)
    folder = make(
        tmp_path,
        [
            (f"{i}", {"jpeg": jpeg, "json": json.dumps({"label": name}).encode()})
            for i, (jpeg, name) in enumerate(zip(images, names, strict=True))
        ],
    )
    with Loader(folder, cache=cache, **{**OPTIONS, "batch_size": 4, "shuffle": False}) as loader:
        assert loader.class_names == ("cat", "dog", "owl")
        (batch,) = loader
        assert batch.classes.tolist() == [1, 0, 2, 0]
        assert loader.count_classes().tolist() == [2, 1, 1]
    with Loader(
        folder, cache=cache, subset=Subset(classes=["cat"]), **{**OPTIONS, "batch_size": 2, "shuffle": False}
    ) as loader:
        (batch,) = loader
        assert batch.keys == ["1", "3"]


def test_numbers_as_classes_stay_what_they_are(tmp_path, plain_samples, cache):
    images = jpegs(plain_samples, 2)
    folder = make(
        tmp_path, [("a", {"jpg": images[0], "cls": b"7"}), ("b", {"jpg": images[1], "cls": b"02\n"})]
    )
    with Loader(folder, cache=cache, **{**OPTIONS, "batch_size": 2, "shuffle": False}) as loader:
        assert loader.class_names == tuple(map(str, range(8)))
        (batch,) = loader
        assert batch.classes.tolist() == [7, 2]


def test_tars_without_classes_are_served_without(tmp_path, plain_samples, cache):
    samples = [(f"{i}", {"jpg": jpeg, "txt": b"words"}) for i, jpeg in enumerate(jpegs(plain_samples, 4))]
    folder = make(tmp_path, [*samples, ("words-only", {"txt": b"words"})])
    options = {**OPTIONS, "batch_size": 4, "shuffle": False, "cache": cache}
    with (
        pytest.warns(
            UserWarning,
            match=r"4 samples without classes \(batch.classes is -1\). Left out: 1 sample without a JPEG",
        ),
        Loader(folder, **options) as loader,
    ):
        (batch,) = loader
    assert batch.classes.tolist() == [-1] * 4
    assert batch.levels is None
    with pytest.raises(UsageError, match="expected classes for targets='original', found tars without"):
        Loader(folder, targets="original", **options)


@pytest.mark.parametrize(
    ("samples", "message"),
    [
        ([("a", {"png": b"x"})], r"a.tar: sample 'a': expected a JPEG \(jpg, jpeg\), found 'png'. The loader decodes"),
        ([("a", {"jpg": b"x", "json": b'{"label": "\\ud800"}'})], r"a.tar: 'a.json': .* UTF-8 can write, found '.ud800'"),
        ([("a", {"txt": b"x"})], r"expected samples with a JPEG \(jpg, jpeg\), found none"),
        ([("a", {"jpg": b"x", "cls": b"\xff\xfe"})], r"a.tar: 'a.cls': expected a class, found: "),
        (
            [("a", {"jpg": b"x", "cls": b"1"}), ("b", {"jpg": b"x"}), ("c", {"jpg": b"x"})],
            "expected a class .cls or json. in every sample or in none, found 2 of 3 samples without one, .* in a.tar",
        ),
        ([("a", {"jpg": b"x"}), ("b", {"jpg": b"x"}), ("a", {"jpg": b"x"})], "sample 'a': expected each key once"),
    ],
    ids=["png", "half a character", "no image", "no class", "some classes", "a key twice"],
)  # fmt: skip
def test_tars_that_cannot_be_served_are_refused(tmp_path, cache, samples, message):
    with pytest.raises(DataError, match=message):
        Loader(make(tmp_path, samples), cache=cache, **OPTIONS)


def test_the_few_samples_without_a_class_are_left_out(tmp_path, plain_samples, cache):
    samples = [
        (f"{i}", {"jpg": jpeg} | ({} if i in (1, 4) else {"cls": b"%d" % (i % 3)}))
        for i, jpeg in enumerate(jpegs(plain_samples, 6))
    ]
    folder = make(tmp_path, samples)
    for _ in range(2):  # from the tar, and from the index that was kept
        with (
            pytest.warns(UserWarning, match="4 samples with 3 classes. Left out: 2 samples without a class"),
            Loader(folder, **{**OPTIONS, "batch_size": 4, "shuffle": False, "cache": cache}) as loader,
        ):
            (batch,) = loader
        assert batch.keys == ["0", "2", "3", "5"]
        assert batch.classes.tolist() == [0, 2, 0, 2]


def test_a_tar_that_is_cut_short_is_refused(tars, cache):
    os.truncate(tars / "wds-000001.tar", 20_000)
    with pytest.raises(DataError, match=r"wds-000001.tar: .*damaged or cut short. Copy it again"):
        Loader(tars, cache=cache, **OPTIONS)


def test_a_tar_of_a_pattern_that_is_not_there_is_named(tars, cache):
    with pytest.raises(DataError, match=r"wds-000003.tar: expected a tar, found: No such file"):
        Loader(f"{tars}/wds-{{000000..000003}}.tar", cache=cache, **OPTIONS)


def test_shards_of_ours_without_their_manifest_are_not_somebody_elses(packed, tmp_path, cache):
    folder = Path(shutil.copytree(packed, tmp_path / "ours"))
    (folder / "manifest.json").unlink()
    with pytest.raises(DataError, match=r"found no manifest.json; .* Run `softshard pack` again"):
        Loader(folder, cache=cache, **OPTIONS)


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("a.tar", ["a.tar"]),
        ("a-{08..11}.tar", ["a-08.tar", "a-09.tar", "a-10.tar", "a-11.tar"]),
        ("a{9..11}.tar", ["a9.tar", "a10.tar", "a11.tar"]),
        ("{x,y}/{0..1}.tar", ["x/0.tar", "x/1.tar", "y/0.tar", "y/1.tar"]),
    ],
)
def test_braces_are_what_webdataset_makes_of_them(pattern, names):
    assert expand_braces(pattern, pattern) == names
    braceexpand = pytest.importorskip("braceexpand").braceexpand
    assert list(braceexpand(pattern)) == names


@pytest.mark.parametrize("pattern", ["a{0..1.tar", "a{{0,1}}.tar", "a{5..1}.tar", "a{0..9999999}.tar"])
def test_braces_that_mean_nothing_are_refused(pattern):
    with pytest.raises(UsageError, match="expected "):
        expand_braces(pattern, pattern)


@pytest.mark.parametrize(
    ("dataset", "folder", "names"),
    [
        ("s3://b/set/a{0..1}.tar", "s3://b/set", ["a0.tar", "a1.tar"]),
        ("s3://b/{x,y}/a.tar", "s3://b", ["x/a.tar", "y/a.tar"]),
        ("/data/a.tar", Path("/data"), ["a.tar"]),
        ("a.tar", Path("."), ["a.tar"]),
        ("{a,b}.tar", Path("."), ["a.tar", "b.tar"]),
        ("/a.tar", Path("/"), ["a.tar"]),
    ],
)
def test_a_pattern_is_split_before_its_first_brace(dataset, folder, names):
    assert split_braces(dataset) == (folder, names)


def test_a_data_set_is_no_tar():
    assert split_braces("s3://bucket/train") is None
    assert np.array_equal(expand_braces("plain", "plain"), ["plain"])


def test_keys_in_no_known_encoding_can_be_written_down(tmp_path, plain_samples, cache):
    with tarfile.open(tmp_path / "a.tar", "w", format=tarfile.USTAR_FORMAT) as tar:
        for suffix, data in (("jpg", jpegs(plain_samples, 1)[0]), ("cls", b"1")):
            info = tarfile.TarInfo(b"caf\xe9.".decode("utf-8", "surrogateescape") + suffix)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    for _ in range(2):  # from the tar, and from the index that was kept
        (batch,) = epoch(tmp_path / "a.tar", batch_size=1, cache=cache)
        assert (batch.keys, batch.classes.tolist()) == (["caf\\udce9"], [1])


def test_a_tar_that_is_replaced_while_it_is_indexed_is_not_served(tars, cache, monkeypatch):
    real = other_tars.index_tar

    def index_slowly(file, where):
        os.utime(where, (1, 1))
        return real(file, where)

    monkeypatch.setattr(other_tars, "index_tar", index_slowly)
    with pytest.raises(DataError, match=r"wds-000000.tar: expected the tar that was indexed, .* has changed"):
        Loader(tars, cache=cache, **OPTIONS)
    assert not (cache.path / "indexes").exists()


class Changing(MemoryFileSystem):
    """Storage where a file is overwritten, with as many bytes, once its first bytes were read."""

    protocol = "changing"
    changed = False

    @classmethod
    def _strip_protocol(cls, path):
        return super()._strip_protocol(path.replace("changing://", "memory://"))

    def cat_file(self, path, **options):
        data = super().cat_file(path, **options)
        if not Changing.changed:
            Changing.changed = True
            self.pipe_file(path, super().cat_file(path))
        return data


def test_a_tar_that_is_replaced_while_it_is_fetched_to_be_indexed_is_not_served(tars, cache, memory):
    fsspec.register_implementation("changing", Changing, clobber=True)
    url = memory(tars).replace("memory://", "changing://")
    with pytest.raises(
        DataError, match=r"wds-00000\d.tar: expected the tar that was indexed, .* has changed"
    ):
        Loader(url, cache=cache, **OPTIONS)
    with Loader(url, cache=cache, **OPTIONS) as loader:
        assert len(list(loader)) == len(loader)


def test_a_tar_that_was_in_use_is_not_the_next_to_go(tars, cache, memory):
    shards = open_data_set(memory(tars), cache).shards
    cached = list((cache.path / "shards").glob("*.tar"))
    for path in cached:
        os.utime(path, (1, 1))
    for number in range(3):
        shards.used(number)
    assert all(path.stat().st_mtime > 1 for path in cached)


def test_a_tar_that_may_not_be_read_is_named(tars, cache):
    with Loader(tars, cache=cache, **OPTIONS) as loader:
        (tars / "wds-000001.tar").unlink()
        with pytest.raises(
            DataError, match=r"wds-000001.tar: expected a tar that can be read, found: No such"
        ):
            list(loader)
