import itertools
import json
import os
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import numpy as np
import pytest
from packed_files import files, samples
from waiting import LONG_S

from softshard.shards import (
    DataError,
    ImageRecipe,
    LabelTree,
    Manifest,
    PackOptions,
    ReshardOptions,
    UsageError,
    pack,
    progress,
    reshard,
    verify,
)
from softshard.shards.cli import main
from softshard.shards.destination import LocalDestination
from softshard.shards.gather import index_samples
from softshard.shards.manifest import load_sidecar
from softshard.shards.schema import DEFAULT_SHARD_BYTES


@pytest.fixture
def train(packed_once):
    """13 samples in 4 shards, every component; not to be changed."""
    return packed_once / "train"


@pytest.fixture
def val(packed_once):
    return packed_once / "val"


def test_other_shard_sizes_keep_every_sample_its_bytes_and_its_place(train, tmp_path):
    manifest = reshard([train], tmp_path / "set", ReshardOptions(shard_samples=5))
    assert [shard.samples for shard in manifest.shards] == [4, 4, 5]
    assert list(samples(tmp_path / "set").items()) == list(samples(train).items())
    assert verify(tmp_path / "set", decode=True).problems == []
    before = load_sidecar(train, Manifest.load(train))
    assert load_sidecar(tmp_path / "set", manifest).tolist() == before.tolist()


def test_shards_are_sized_by_their_bytes(train, tmp_path):
    manifest = reshard([train], tmp_path / "set", ReshardOptions(shard_bytes=20_000))
    assert len(manifest.shards) == -(
        -sum(shard.bytes - 1024 for shard in Manifest.load(train).shards) // 18_976
    )
    assert max(shard.bytes for shard in manifest.shards) < 26_000
    assert samples(tmp_path / "set") == samples(train)
    tiny = reshard([train], tmp_path / "tiny", ReshardOptions(shard_bytes=1))
    assert max(shard.samples for shard in tiny.shards) <= 2


def test_the_same_data_set_in_its_own_sizes_is_the_same_data_set(train, tmp_path):
    before = Manifest.load(train)
    manifest = reshard([train], tmp_path / "set", ReshardOptions(shard_samples=4))
    assert manifest.fingerprint == before.fingerprint
    for name in [*(shard.name for shard in before.shards), "tree.json", "classes.npy", "_info.json"]:
        assert (tmp_path / "set" / name).read_bytes() == (train / name).read_bytes()


def test_the_manifest_says_what_was_done_and_to_what(train, val, tmp_path):
    manifest = reshard([train, val], tmp_path / "all", ReshardOptions(shuffle=3, drop=("lmap",)))
    before = Manifest.load(train)
    done = manifest.recipe["reshard"]
    assert (done["shuffle"], done["drop"], done["classes"]) == (3, ["lmap"], None)
    assert [source["fingerprint"] for source in done["sources"]] == [
        before.fingerprint,
        Manifest.load(val).fingerprint,
    ]
    assert done["sources"][0]["recipe"] == dict(before.recipe)
    assert manifest.recipe["size"] == 16
    assert manifest.pixel_stack == before.pixel_stack
    assert manifest.name == "all"
    assert Manifest.load(tmp_path / "all") == manifest


# ---- Shuffle


def test_a_shuffle_changes_the_order_and_nothing_else(train, tmp_path):
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        reshard([train], tmp_path / name, ReshardOptions(shard_samples=4, shuffle=seed))
    a, c, before = samples(tmp_path / "a"), samples(tmp_path / "c"), samples(train)
    assert a == c == before
    assert len({tuple(a), tuple(c), tuple(before)}) == 3
    assert files(tmp_path / "a") == files(tmp_path / "b")
    assert verify(tmp_path / "a", decode=True).ok


# ---- Merge


def test_data_sets_are_merged_one_after_the_other(train, val, tmp_path):
    reshard([train, val], tmp_path / "all", ReshardOptions(shard_samples=6))
    assert list(samples(tmp_path / "all").items()) == [*samples(train).items(), *samples(val).items()]
    assert verify(tmp_path / "all", decode=True).problems == []


def test_samples_that_share_a_key_are_refused_and_listed_together(train, val, tmp_path):
    with pytest.raises(DataError) as caught:
        reshard([train, val, train], tmp_path / "all")
    text = str(caught.value)
    assert text.startswith("expected each key once, found 13 again: ")
    for key in samples(train):
        assert f"{key!r} in {train}" in text
    assert not (tmp_path / "all").exists()


def test_data_sets_of_other_classes_trees_or_components_are_refused_with_their_fingerprints(
    train, source, tmp_path, table_tree
):
    options = PackOptions(image=ImageRecipe(16))
    flat = LabelTree.from_table(["bird", "dog", "oak"], [("bird", ""), ("dog", "bird"), ("oak", "")])
    pack(source, tmp_path / "flat", options, tree=flat, workers=1)
    pack(source, tmp_path / "no-maps", options, tree=table_tree, workers=1)
    first, other = Manifest.load(train), Manifest.load(tmp_path / "flat/train")
    with pytest.raises(DataError) as caught:
        reshard([train, tmp_path / "flat/train", tmp_path / "no-maps/train"], tmp_path / "all")
    problems = str(caught.value).splitlines()
    where = str(tmp_path / "flat/train")
    assert problems[0] == (
        f"{where}: expected the class list {first.classes_sha256[:12]} of {train}, "
        f"found {other.classes_sha256[:12]}"
    )
    assert f"{where}: expected the label tree {first.tree_sha256[:12]} of {train}, found" in problems[2]
    assert problems[-1].startswith(f"{tmp_path / 'no-maps/train'}: expected label maps")
    assert any(
        "no-maps/train: expected components ['cls', 'hier.npy', 'jpg', 'lmap'" in line for line in problems
    )


def test_without_what_differs_they_fit(val, source, tmp_path, table_tree):
    rest = [path for path in source.rglob("*.jpg") if path.stem in samples(val)]
    for path in rest:
        path.unlink()
    pack(source, tmp_path / "other", PackOptions(image=ImageRecipe(20)), tree=table_tree, workers=1)
    with pytest.raises(DataError, match="expected a component 'lmap' to drop, found jpg, cls"):
        reshard([val, tmp_path / "other/train"], tmp_path / "all", ReshardOptions(drop=("lmap",)))
    reshard([val], tmp_path / "val", ReshardOptions(drop=("lmap",)))
    manifest = reshard([tmp_path / "val", tmp_path / "other/train"], tmp_path / "all")
    assert manifest.num_samples == 16
    assert "size" not in manifest.recipe  # 16 and 20
    assert verify(tmp_path / "all", decode=True).problems == []


# ---- Filter and drop


def test_a_filter_keeps_classes_and_their_indices(train, tmp_path):
    manifest = reshard([train], tmp_path / "set", ReshardOptions(classes=("oak", "bird")))
    before = samples(train)
    assert samples(tmp_path / "set") == {
        key: parts for key, parts in before.items() if key.startswith(("oak", "bird"))
    }
    first = Manifest.load(train)
    assert (manifest.class_names, manifest.tree_sha256) == (first.class_names, first.tree_sha256)
    assert sorted(np.unique(load_sidecar(tmp_path / "set", manifest))) == [0, 2]
    assert verify(tmp_path / "set", decode=True).ok


def test_a_filter_by_names_that_no_class_has_is_refused(train, tmp_path):
    with pytest.raises(
        DataError, match=r"expected names of the class list \w{12}, found 2 others: 'cat', 'elm'"
    ):
        reshard([train], tmp_path / "set", ReshardOptions(classes=("dog", "cat", "elm")))
    with pytest.raises(DataError, match="expected samples of the classes to keep, found none"):
        reshard([train], tmp_path / "set", ReshardOptions(classes=("animal",)))


@pytest.mark.parametrize("drop", [("lmap",), ("hier.npy",), ("lmap", "hier.npy")])
def test_dropped_components_are_gone_and_the_others_have_their_bytes(train, tmp_path, drop):
    manifest = reshard([train], tmp_path / "set", ReshardOptions(drop=drop))
    assert samples(tmp_path / "set") == {
        key: {suffix: data for suffix, data in parts.items() if suffix not in drop}
        for key, parts in samples(train).items()
    }
    assert (manifest.label_maps is None) == ("lmap" in drop)
    assert (manifest.tree_sha256 is None) == ("hier.npy" in drop)
    assert (tmp_path / "set" / "tree.json").exists() == ("hier.npy" not in drop)
    assert verify(tmp_path / "set", decode=True).problems == []


# ---- Faults


def test_a_flipped_bit_in_a_source_is_not_given_a_new_hash(packed, tmp_path):
    for name, at in (("train-000000.tar", 700), ("train-000002.tar", 900), ("train-000003.idx", 3)):
        path = packed / "train" / name
        data = bytearray(path.read_bytes())
        data[at] ^= 1
        path.write_bytes(data)
    with pytest.raises(DataError) as caught:
        reshard([packed / "train"], tmp_path / "new")
    problems = str(caught.value).splitlines()
    assert len(problems) == 4  # and what to run
    for line, name in zip(
        problems, ("train-000000.tar", "train-000002.tar", "train-000003.idx"), strict=False
    ):
        assert line.startswith(f"{packed / 'train' / name}: expected ")
    assert not (tmp_path / "new").exists()


def test_a_shard_that_changes_while_it_is_read_is_noticed(packed):
    folder = packed / "train"
    manifest = Manifest.load(folder)
    table = index_samples([(folder, manifest)], (), lambda _: None)
    (folder / manifest.shards[0].name).write_bytes(bytes(512))
    with pytest.raises(DataError, match=r"^train-000000\.tar: expected a sample of \d+ bytes, found"):
        table.read(np.arange(4), ())


def test_a_run_that_was_cut_off_continues_and_ends_in_the_same_bytes(train, tmp_path):
    options = ReshardOptions(shard_samples=3, shuffle=1)
    reshard([train], tmp_path / "whole", options)
    expected = files(tmp_path / "whole")
    reshard([train], tmp_path / "set", options)
    for lost in ("manifest.json", "train-000001.tar", "train-000003.idx", "receipts/train-000002.tar.json"):
        (tmp_path / "set" / lost).unlink()
    (tmp_path / "set" / "train-000004.tar.part").write_bytes(b"half")
    with pytest.raises(DataError, match=r"found no manifest\.json"):
        Manifest.load(tmp_path / "set")
    reshard([train], tmp_path / "set", options)
    assert files(tmp_path / "set") == expected


def test_a_run_that_continues_tells_the_rate_of_its_own_work(train, tmp_path, capsys, monkeypatch):
    options = ReshardOptions(shard_samples=5)
    reshard([train], tmp_path / "set", options)
    (tmp_path / "set" / "receipts" / "train-000002.tar.json").unlink()
    minutes = itertools.count(step=60)
    monkeypatch.setattr(progress, "time", SimpleNamespace(monotonic=lambda: next(minutes)))
    reshard([train], tmp_path / "set", options)
    lines = [line for line in capsys.readouterr().err.splitlines() if ": reshard: " in line]
    assert lines == ["softshard: reshard: 13 of 13 img, 01:00, 0.1 img/s, 00:00 left"]  # 5 of them


def test_killed_at_any_moment_it_never_looks_whole_and_continues(train, tmp_path):
    reshard([train], tmp_path / "whole", ReshardOptions(shard_samples=1, shuffle=1))
    script = (
        "import sys; from softshard.shards import reshard, ReshardOptions; print('go', flush=True); "
        "reshard([sys.argv[1]], sys.argv[2], ReshardOptions(shard_samples=1, shuffle=1))"
    )
    target = tmp_path / "set"
    for delay in (0.0, 0.005, 0.01, 0.02, 0.04):
        process = subprocess.Popen(
            [sys.executable, "-c", script, str(train), str(target)], stdout=subprocess.PIPE
        )
        assert process.stdout is not None
        process.stdout.readline()
        time.sleep(delay)
        os.kill(process.pid, signal.SIGKILL)
        process.wait(LONG_S)
        process.stdout.close()
        if (target / "manifest.json").exists():
            assert verify(target, decode=True).ok
    reshard([train], target, ReshardOptions(shard_samples=1, shuffle=1))
    assert files(target) == files(tmp_path / "whole")


def test_another_run_s_folder_or_a_full_one_is_refused(train, val, tmp_path):
    reshard([train], tmp_path / "set", ReshardOptions(shuffle=1))
    with pytest.raises(
        UsageError, match=r"of another run \(reshard\.shuffle differ\)\. Write into a new folder"
    ):
        reshard([train], tmp_path / "set", ReshardOptions(shuffle=2))
    with pytest.raises(UsageError, match="expected an empty or new folder, found"):
        reshard([train], val)
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(UsageError, match="expected a folder, found a file"):
        reshard([train], tmp_path / "file")


def test_a_destination_that_cannot_be_is_refused_before_the_sources_are_read(packed, tmp_path):
    (packed / "train" / "train-000000.tar").unlink()  # which reading them would tell
    with pytest.raises(UsageError, match="expected an empty or new folder, found"):
        reshard([packed / "train"], packed / "val")
    assert not (packed / "val" / ".lock").exists()
    (tmp_path / "new").mkdir()
    with (
        LocalDestination(tmp_path / "new").hold(),
        pytest.raises(UsageError, match=r"new: another softshard is writing there\. Wait for it, or stop it"),
    ):
        reshard([packed / "train"], tmp_path / "new")
    with pytest.raises(DataError, match=r"train-000000\.tar: expected"):
        reshard([packed / "train"], tmp_path / "new")


def test_a_folder_of_data_sets_is_not_one(packed_once, tmp_path):
    with pytest.raises(DataError, match=r"give one of the data sets in it: .*train, .*val"):
        reshard([packed_once], tmp_path / "set")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"drop": ("jpg",)}, "expected an optional component, found 'jpg'"),
        ({"shard_samples": 0}, "at least one byte or sample"),
        ({"shuffle": -1}, "expected a seed from 0"),
    ],
)
def test_a_wrong_option_is_a_wrong_call(options, message):
    with pytest.raises(UsageError, match=message):
        ReshardOptions(**options)


# ---- Command


def test_python_and_the_command_make_shards_of_the_same_size_by_default(train, tmp_path):
    assert ReshardOptions().shard_bytes == PackOptions().shard_bytes == DEFAULT_SHARD_BYTES
    assert main(["reshard", str(train), str(tmp_path / "a")]) == 0
    reshard([train], tmp_path / "b")
    assert files(tmp_path / "a") == files(tmp_path / "b")


def test_the_command_reports_in_words_and_in_json(train, tmp_path, capsys):
    (tmp_path / "keep.txt").write_text("dog\n")
    arguments = [str(train), str(tmp_path / "set"), "--classes", str(tmp_path / "keep.txt"), "--drop", "lmap"]
    assert main(["reshard", *arguments, "--shuffle", "1", "--json"]) == 0
    summary = json.loads(capsys.readouterr().out)
    assert (summary["read"], summary["samples"], summary["left_out"]) == (13, 6, 7)
    assert summary["components"] == ["jpg", "cls", "hier.npy", "msgpack"]
    assert main(["reshard", *arguments, "--shuffle", "1"]) == 0
    assert f"{tmp_path / 'set'}: 6 of 13 samples in 1 shard, " in capsys.readouterr().out
    assert main(["reshard", *arguments, "--shuffle", "2"]) == 2
    assert main(["reshard", str(train), str(train), str(tmp_path / "twice")]) == 1
    assert main(["reshard", str(train), str(tmp_path / "odd"), "--drop", "kd"]) == 1
