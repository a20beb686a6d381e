"""Somebody's WebDataset, and our own, as a source."""

import io
import tarfile
from dataclasses import replace

import pytest
import webdataset
from packed_files import samples

from softshard.shards import DataError, Manifest, pack, verify
from softshard.shards.sources import open_source


def write_shards(folder, jpeg, label, num=12, per_shard=5):
    """With the stock writer; `label(i)` gives a sample's label parts."""
    folder.mkdir()
    with webdataset.ShardWriter(str(folder / "x-%03d.tar"), maxcount=per_shard, verbose=0) as writer:
        for i in range(num):
            writer.write({"__key__": f"s{i:03d}", "jpg": jpeg(20, 20, i), **label(i)})
    return folder


@pytest.mark.parametrize("label", [lambda i: {"cls": i % 11}, lambda i: {"json": {"label": i % 11, "z": 1}}])
def test_indices_keep_their_numbers(tmp_path, jpeg, options, label):
    source = write_shards(tmp_path / "source", jpeg, label)
    pack(source, tmp_path / "set", replace(options, val_per_class=0), workers=1)
    manifest = Manifest.load(tmp_path / "set" / "train")
    assert manifest.class_names == tuple(map(str, range(11)))
    for key, parts in samples(tmp_path / "set" / "train").items():
        assert int(parts["cls"]) == int(key.rpartition("s")[2]) % 11


def test_indices_point_into_a_class_list_and_names_are_names(tmp_path, jpeg):
    source = write_shards(tmp_path / "source", jpeg, lambda i: {"cls": i % 2})
    listing = open_source(source, ("cat", "dog"))
    assert [(folder.name, len(folder.files)) for folder in listing.folders] == [("cat", 6), ("dog", 6)]
    named = write_shards(tmp_path / "named", jpeg, lambda i: {"json": {"label": "ab"[i % 2]}})
    assert [folder.name for folder in open_source(named).folders] == ["a", "b"]


def test_a_packed_data_set_can_be_packed_again(packed, tmp_path, options):
    again = replace(options, val_per_class=0)
    summary = pack(packed, tmp_path / "again", again, workers=1)
    assert (summary.packed, summary.bad) == (16, 0)
    for split in ("train", "val"):
        old, new = Manifest.load(packed / split), Manifest.load(tmp_path / "again" / split)
        assert (old.num_samples, old.class_names[:3]) == (new.num_samples, new.class_names[:3])
    assert verify(tmp_path / "again", decode=True).ok


def test_a_damaged_manifest_is_told_and_somebody_else_s_is_none(packed, tmp_path, jpeg):
    file = packed / "train" / "manifest.json"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(DataError, match=r"train/manifest\.json: expected JSON, found"):
        open_source(packed / "train")
    file.write_text('{"version":[1,0],"classes":{},"format":"softshard"}')  # as another program writes it
    with pytest.raises(DataError, match=r"train/manifest\.json: .*expected a list of class names"):
        open_source(packed / "train")
    source = write_shards(tmp_path / "source", jpeg, lambda i: {"cls": i % 2})
    (source / "manifest.json").write_text('{"shards": 3}')
    assert open_source(source).class_names == ("0", "1")


def test_one_tar_is_enough(tmp_path, jpeg):
    source = write_shards(tmp_path / "source", jpeg, lambda i: {"cls": 0})
    assert open_source(source / "x-000.tar").num_files == 5


def test_samples_without_a_class_and_other_files_are_reported(tmp_path, jpeg):
    source = write_shards(tmp_path / "source", jpeg, lambda i: {"cls": 0} if i != 3 else {})
    (source / "notes.txt").touch()
    listing = open_source(source)
    assert (listing.num_files, listing.ignored) == (11, ("notes.txt", "x-000.tar/s003"))


def test_keys_that_come_again_in_another_shard_are_other_samples(tmp_path):
    (tmp_path / "source").mkdir()
    for name in "ab":
        with tarfile.open(tmp_path / "source" / f"{name}.tar", "w") as tar:
            for member in ("1.jpg", "1.cls"):
                info = tarfile.TarInfo(member)
                info.size = 1
                tar.addfile(info, io.BytesIO(b"0"))
    assert open_source(tmp_path / "source").folders[0].files == ("1.jpg", "b.tar/1.jpg")


def test_every_label_that_is_none_is_named(tmp_path, jpeg):
    labels = [{"cls": 0}, {"json": {"label": [1]}}, {"json": [1]}]
    source = write_shards(tmp_path / "source", jpeg, lambda i: labels[i], num=3)
    with pytest.raises(DataError) as caught:
        open_source(source)
    assert [line.rpartition("x-000.tar: ")[2] for line in str(caught.value).splitlines()] == [
        "'s001.json': expected a class index or name, found '[1]'",
        "'s002.json': expected a JSON object, found list",
    ]


def test_a_negative_class_is_refused(tmp_path, jpeg):
    source = write_shards(tmp_path / "source", jpeg, lambda i: {"cls": i - 1})
    with pytest.raises(DataError, match="expected class indices from 0, or names, found -1"):
        open_source(source)
