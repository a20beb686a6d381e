"""Side shards read beside their data set give the batches of the joined data set; others are refused by name."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch

from softshard.loaders import Augment, Cache, Loader
from softshard.loaders.inspection import InspectOptions, inspect_data_set
from softshard.shards import DataError, Manifest, ShardWriter, UsageError, read_shard
from softshard.shards.cli import main
from softshard.shards.labelmap_side import SIDE_NAME, SideMaps

OPTIONS = {
    "batch_size": 8,
    "augment": Augment(size=32),
    "dtype": "uint8",
    "last_batch": "pad",
    "num_threads": 1,
}


def make_side(folder, packed, order=lambda samples: samples):
    """The label maps of a data set, in side shards of their own."""
    folder.mkdir()
    manifest, records = Manifest.load(packed), []
    for shard in manifest.shards:
        with ShardWriter(folder / shard.name, ("lmap",)) as writer:
            for sample in order(list(read_shard(packed / shard.name))):
                writer.write(sample.key, {"lmap": sample.parts["lmap"]})
        records.append(writer.record)
    SideMaps(manifest.name, manifest.fingerprint, manifest.label_maps, tuple(records)).save(folder)
    return folder


@pytest.fixture(scope="module")
def bare(packed, tmp_path_factory):
    """The packed data set as it was before it had label maps: the same shards without them."""
    folder = tmp_path_factory.mktemp("bare") / "train"
    shutil.copytree(packed, folder)
    manifest, records = Manifest.load(packed), []
    components = tuple(name for name in manifest.components if name != "lmap")
    for shard in manifest.shards:
        (folder / shard.name).unlink()
        with ShardWriter(folder / shard.name, components) as writer:
            for sample in read_shard(packed / shard.name):
                writer.write(sample.key, {name: sample.parts[name] for name in components})
        records.append(writer.record)
    replace(manifest, components=components, label_maps=None, shards=tuple(records)).save(folder)
    return folder


@pytest.fixture(scope="module")
def side(packed, bare, tmp_path_factory):
    folder = make_side(tmp_path_factory.mktemp("side") / "maps", packed)
    maps = replace(SideMaps.load(folder), dataset_fingerprint=Manifest.load(bare).fingerprint)
    maps.save(folder)
    return folder


def test_joined_while_reading_or_before_gives_the_same_batches(packed, bare, side):
    with (
        Loader(packed, targets="relabel", **OPTIONS) as joined,
        Loader(bare, side=side, targets="relabel", **OPTIONS) as loader,
    ):
        for one, other in zip(joined, loader, strict=True):
            assert one.keys == other.keys
            for name in ("images", "classes", "levels", "targets", "crops", "flips", "valid"):
                assert torch.equal(getattr(one, name), getattr(other, name)), name
    assert one.targets[one.valid].sum() > 0


@pytest.fixture
def url(serve_spoiled):
    """A function: starts a web server over a folder; its URL, with a password in it."""
    return lambda folder: serve_spoiled(folder)[0]


@pytest.mark.parametrize("where", ["both", "side", "data set"])
def test_side_shards_behind_a_url_give_the_same_batches(packed, bare, side, url, tmp_path, where):
    cache = Cache(folder=tmp_path / "cache")
    dataset = url(bare) if where != "side" else bare
    beside = url(side) if where != "data set" else side
    with (
        Loader(packed, targets="relabel", **OPTIONS) as joined,
        Loader(dataset, side=beside, targets="relabel", cache=cache, **OPTIONS) as loader,
    ):
        for _ in range(2):
            for one, other in zip(joined, loader, strict=True):
                assert one.keys == other.keys
                assert torch.equal(one.targets, other.targets)
                assert torch.equal(one.images, other.images)
        num_shards = len(joined.manifest.shards) * (2 if where == "both" else 1)
        assert loader.fetch_stats().shards_fetched == num_shards


def test_a_side_shard_that_is_not_behind_its_url_is_named_without_passwords(
    packed, bare, side, url, tmp_path
):
    shutil.copytree(side, tmp_path / "side")
    name = Manifest.load(packed).shards[0].name
    (tmp_path / "side" / name).unlink()
    cache, where = Cache(folder=tmp_path / "cache"), url(tmp_path / "side")
    assert "secret" in where
    with (
        Loader(bare, side=where, targets="relabel", cache=cache, shuffle=False, **OPTIONS) as loader,
        pytest.raises(DataError, match=rf"{name}: expected the shard") as caught,
    ):
        list(loader)
    assert "secret" not in str(caught.value)


def test_side_shards_take_the_place_of_stored_label_maps(packed, tmp_path):
    # The same data set with the maps of a second teacher: each sample has the map of the one before it in its shard.
    folder = tmp_path / "other"
    folder.mkdir()
    manifest, records = Manifest.load(packed), []
    for shard in manifest.shards:
        samples = list(read_shard(packed / shard.name))
        with ShardWriter(folder / shard.name, ("lmap",)) as writer:
            for sample, before in zip(samples, np.roll(np.arange(len(samples)), 1), strict=True):
                writer.write(sample.key, {"lmap": samples[before].parts["lmap"]})
        records.append(writer.record)
    SideMaps(manifest.name, manifest.fingerprint, manifest.label_maps, tuple(records)).save(folder)
    with (
        Loader(packed, targets="relabel", **OPTIONS) as own,
        Loader(packed, side=folder, targets="relabel", **OPTIONS) as loader,
    ):
        one, other = next(iter(own)), next(iter(loader))
        assert torch.equal(one.images, other.images)
        assert not torch.allclose(one.targets, other.targets)
        # A state says which maps the epoch was begun with.
        assert own.fingerprint != loader.fingerprint
        with pytest.raises(UsageError, match="expected fingerprint"):
            loader.load_state_dict(own.state_dict())
        loader.load_state_dict(loader.state_dict())


def test_side_shards_of_another_data_set_are_refused(packed, packed_plain, bare, side, tmp_path):
    own, other = Manifest.load(packed).fingerprint[:12], Manifest.load(bare).fingerprint[:12]
    message = f"maps: expected label maps of the data set {own} in .*, found those of {other}"
    with pytest.raises(DataError, match=message):
        Loader(packed, side=side, targets="relabel", **OPTIONS)
    with pytest.raises(DataError, match=r"expected side shards of label maps, found no label_maps\.json"):
        Loader(packed, side=packed_plain, targets="relabel", **OPTIONS)
    # A description that claims to belong to it, over other shards.
    shutil.copytree(side, tmp_path / "forged")
    content = json.loads((side / SIDE_NAME).read_text())
    (tmp_path / "forged" / SIDE_NAME).write_text(json.dumps({**content, "shards": content["shards"][:-1]}))
    with pytest.raises(DataError, match=r"expected side shards named like the 9 shards of .*, found 8;"):
        Loader(bare, side=tmp_path / "forged", targets="relabel", **OPTIONS)
    content["shards"][1]["samples"] += 1
    (tmp_path / "forged" / SIDE_NAME).write_text(json.dumps(content))
    with pytest.raises(
        DataError, match=r"samples, found '.*-000001\.tar' of \d+ samples for '.*1\.tar' of \d+;"
    ):
        Loader(bare, side=tmp_path / "forged", targets="relabel", **OPTIONS)


def test_maps_under_other_keys_are_refused_by_name(packed, tmp_path):
    folder = make_side(tmp_path / "turned", packed, order=lambda samples: samples[::-1])
    keys = [sample.key for sample in read_shard(packed / Manifest.load(packed).shards[0].name)]
    message = f"turned: .*000000.tar: expected the label map of sample '{keys[0]}' in place 0, found that of '{keys[-1]}'"
    options = {**OPTIONS, "shuffle": False}
    with (
        Loader(packed, side=folder, targets="relabel", **options) as loader,
        pytest.raises(DataError, match=message),
    ):
        next(iter(loader))


def test_a_damaged_side_shard_is_named(packed, tmp_path):
    folder = make_side(tmp_path / "cut", packed)
    shard = folder / Manifest.load(packed).shards[0].name
    shard.write_bytes(shard.read_bytes()[:-512])
    with (
        Loader(packed, side=folder, targets="relabel", shuffle=False, **OPTIONS) as loader,
        pytest.raises(
            DataError, match=rf"{shard.name}: expected \d+ bytes, found \d+; the shard is cut short"
        ),
    ):
        next(iter(loader))


def test_side_shards_that_no_target_needs_are_refused(bare, side):
    for targets in ("none", "original"):
        with pytest.raises(
            UsageError, match=f"expected targets that pool the label maps of side=.*, found '{targets}'"
        ):
            Loader(bare, side=side, targets=targets, **OPTIONS)


def test_bench_reads_side_shards(bare, side, tmp_path):
    call = [
        "bench",
        str(bare),
        "--side",
        str(side),
        "--targets",
        "relabel",
        "--batch-size",
        "8",
        "--size",
        "32",
    ]
    few = ["--steps", "1", "--repeats", "1", "--threads", "1", "--json", str(tmp_path / "bench.json")]
    assert main([*call, *few]) == 0
    assert json.loads((tmp_path / "bench.json").read_text())["options"]["side"] == str(side)


def test_inspect_shows_side_shards_as_the_joined_data_set(packed, bare, side, url, tmp_path, monkeypatch):
    monkeypatch.setenv("SOFTSHARD_CACHE", str(tmp_path / "cache"))
    options = InspectOptions(num_samples=4, num_crops=2, augment=Augment(size=16))
    joined = inspect_data_set(packed, options)
    found = inspect_data_set(bare, replace(options, side=side))
    assert found.targets == joined.targets == "relabel"
    assert found.manifest.label_maps == joined.manifest.label_maps
    for here, there in zip(found.samples, joined.samples, strict=True):
        assert (here.key, here.problems) == (there.key, ())
        assert here.label_map is not None
        assert there.label_map is not None
        np.testing.assert_array_equal(here.label_map.scores, there.label_map.scores)
        for crop, other in zip(here.crops, there.crops, strict=True):
            assert crop.target is not None
            np.testing.assert_array_equal(crop.target, other.target)
    remote = inspect_data_set(bare, replace(options, side=url(side)))
    for here, there in zip(remote.samples, found.samples, strict=True):
        np.testing.assert_array_equal(here.crops[0].target, there.crops[0].target)
    page = tmp_path / "page.html"
    assert main(["inspect", str(bare), "--side", str(side), "--samples", "2", "-o", str(page)]) == 0
    assert f"--side {side}" in page.read_text()


def test_inspect_says_which_side_shard_is_damaged(packed, tmp_path):
    folder = make_side(tmp_path / "cut", packed)
    for shard in folder.glob("*.tar"):
        shard.write_bytes(shard.read_bytes()[:-512])
    options = InspectOptions(num_samples=2, augment=Augment(size=16), side=folder)
    problems = inspect_data_set(packed, options).problems
    assert len(problems) == 2
    assert all("the shard is cut short" in problem for problem in problems)


def test_side_shards_given_for_a_data_set_are_named(side):
    with pytest.raises(DataError, match=r"these are side shards.*--side.*softshard maps join"):
        Manifest.load(side)
