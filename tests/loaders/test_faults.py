"""Bad samples: isolated, replaced by the rule, written down, counted."""

import json
import logging
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from json_page import read_json
from spoiling import broken_huffman_table
from waiting import LONG_S

from softshard.loaders import Augment, Faults, Loader
from softshard.loaders.crops import draw_crops
from softshard.loaders.decode import create_decoder
from softshard.loaders.faults import BadSample, Quarantine, next_good
from softshard.loaders.make_batch import BatchMaker
from softshard.loaders.one_thread import one_thread_each
from softshard.loaders.order import EpochOrder, rank_slots
from softshard.shards import DataError, UsageError
from softshard.shards.errors import StorageError

SIZE = 16


def make(dataset, **options):
    defaults = {"batch_size": 8, "augment": Augment(size=SIZE), "dtype": "uint8", "targets": "relabel"}
    return Loader(dataset, **{**defaults, "last_batch": "pad", "num_threads": 2, "window": 30, **options})


def epoch_of(dataset, **options):
    with make(dataset, **options) as loader:
        return list(loader)


def slots_of(batches, name):
    return torch.cat([getattr(batch, name) for batch in batches])


def keys_of(batches):
    return [key for batch in batches for key in batch.keys]


def other_pixels(jpeg):
    at = len(jpeg) * 3 // 4
    return jpeg[:at] + bytes(range(1, 65)) + jpeg[at + 64 :]


DAMAGES = {
    "no JPEG": ("jpg", lambda data: bytes(len(data))),
    "bad Huffman table": ("jpg", broken_huffman_table),
    "class out of range": ("cls", lambda data: b"9"),
    "class no number": ("cls", lambda data: b"x"),
    "other levels": ("hier.npy", lambda data: data.replace(b"<i2", b"<f4")),
    "map checksum": ("lmap", lambda data: data[:-1] + bytes([data[-1] ^ 255])),
}


@pytest.mark.parametrize("kind", DAMAGES)
def test_a_bad_sample_changes_its_own_slot_only(packed, damage, tmp_path, kind):
    folder, shard, key = damage(31, *DAMAGES[kind])
    found = epoch_of(folder, faults=Faults(quarantine=tmp_path / "bad.jsonl"))
    expected = epoch_of(packed)
    (slot,) = [i for i, k in enumerate(keys_of(expected)) if k == key]
    others = torch.arange(len(keys_of(expected))) != slot
    for name in ("images", "classes", "levels", "targets", "crops", "flips", "valid"):
        assert torch.equal(slots_of(found, name)[others], slots_of(expected, name)[others]), name
    assert not slots_of(found, "valid")[slot]
    assert key not in keys_of(found)
    (text,) = (tmp_path / "bad.jsonl").read_text().splitlines()
    line = read_json("bad_samples.jsonl", text)
    assert (line["shard"], line["key"], line["sample"], line["epoch"], line["rank"]) == (shard, key, 31, 0, 0)
    assert line["step"] == slot // 8
    assert line["reason"].startswith(f"{shard}: sample '{key}', component '{DAMAGES[kind][0]}'")


def test_decoders_that_are_built_anew_have_the_threads_of_the_first(damage, monkeypatch):
    """Each start of threads changes, for a moment, the number that torch has for the whole process."""
    folder, _, _ = damage(31, *DAMAGES["bad Huffman table"])
    begun, built = [], []

    def begin(*args):
        begun.append(args)
        return one_thread_each(*args)

    def build(*args, **options):
        built.append(args)
        return create_decoder(*args, **options)

    monkeypatch.setattr("softshard.loaders.one_thread.one_thread_each", begin)
    monkeypatch.setattr("softshard.loaders.make_batch.create_decoder", build)
    with make(folder) as loader:
        assert len(list(loader)) == len(list(loader)) == len(loader)
        assert loader.num_bad == 1
    assert len(built) > len(begun) == 1


@pytest.mark.parametrize("which", ["softshard-augment", "softshard-resample"])
def test_threads_that_cannot_be_started_are_no_fault_of_the_samples(packed, tmp_path, monkeypatch, which):
    to_fail = [which] * 3  # two samples of a batch would fail on their own, and the others not

    def begin(num_threads, name):
        if name in to_fail:
            to_fail.pop()
            raise RuntimeError("can't start new thread")
        return one_thread_each(num_threads, name)

    monkeypatch.setattr("softshard.loaders.one_thread.one_thread_each", begin)
    options = {"augment": Augment(size=SIZE, color_jitter=0.4), "targets": "none"}
    with make(packed, faults=Faults(quarantine=tmp_path / "bad.jsonl"), **options) as loader:
        with pytest.raises(RuntimeError, match="can't start new thread"):
            list(loader)
        assert loader.num_bad == 0
    assert (tmp_path / "bad.jsonl").read_text() == ""


@pytest.mark.filterwarnings("ignore:.*tars? without a manifest")
@pytest.mark.parametrize("foreign", [False, True], ids=["with a manifest", "somebody's tars"])
def test_damage_inside_an_image_is_found_where_that_is_asked_for(damage, foreign):
    folder, _, key = damage(31, "jpg", other_pixels)
    options = {"targets": "none"}
    if foreign:
        (folder / "manifest.json").unlink()
        last = len(list(folder.glob("*.tar"))) - 1
        folder = f"{folder}/train-{{000000..{last:06}}}.tar"
    assert key in keys_of(epoch_of(folder, **options))
    with make(folder, faults=Faults(check_images=True), **options) as loader:
        for epoch in range(2):
            loader.set_epoch(epoch)
            batches = list(loader)
            assert key not in keys_of(batches)
            assert int(slots_of(batches, "valid").sum()) == loader.num_samples - 1
            assert loader.num_bad == 1
    with (
        make(folder, faults=Faults(max_bad=0, check_images=True), **options) as loader,
        pytest.raises(
            DataError, match=f"'{key}', component 'jpg': expected a whole JPEG, found: .*verify --decode"
        ),
    ):
        list(loader)


def test_a_batch_begun_again_is_not_lost_with_the_one_behind_it(packed, damage, monkeypatch):
    folder, _, key = damage(31, *DAMAGES["bad Huffman table"])
    expected, step = epoch_of(folder), keys_of(epoch_of(packed)).index(key) // 8
    assert step + 1 < len(expected)
    begin, begun = BatchMaker.begin, set()

    def begin_once(self, draws, *rest):  # the step with the bad sample is another one when it is begun again
        samples = tuple(draws.samples.tolist())
        if samples in begun:
            raise StorageError("the storage went away")
        begun.add(samples)
        return begin(self, draws, *rest)

    monkeypatch.setattr(BatchMaker, "begin", begin_once)
    found = []
    with make(folder) as loader, pytest.raises(StorageError, match="the storage went away"):
        found.extend(loader)
    assert keys_of(found) == keys_of(expected[: step + 1])
    assert torch.equal(slots_of(found, "images"), slots_of(expected[: step + 1], "images"))


def test_the_slot_gets_the_next_good_sample_with_a_crop_of_its_own(packed, damage):
    folder, _, key = damage(31, *DAMAGES["no JPEG"])
    loader = make(folder)
    with loader:
        batches = list(loader)
    expected = epoch_of(packed)
    (slot,) = [i for i, k in enumerate(keys_of(expected)) if k == key]
    step, place = divmod(slot, 8)
    neighbour = (place + 1) % 8
    batch = batches[step]
    assert batch.keys[place] == batch.keys[neighbour] == expected[step].keys[neighbour]
    assert batch.classes[place] == batch.classes[neighbour]
    counts = np.array([record.samples for record in loader.manifest.shards])
    order = EpochOrder(counts, 0, 0, 1, 30)
    sample = rank_slots(order, 8, step * 8, 0, 1).samples[neighbour]
    options = {"seed": 0, "epoch": 0, "occurrence": 1}
    _, flips = draw_crops(Augment(size=SIZE), np.array([[1000, 1000]]), np.array([sample]), **options)
    assert bool(flips[0]) == bool(batch.flips[place])
    assert not torch.equal(batch.crops[place], batch.crops[neighbour])


@pytest.mark.parametrize("lanes", [1, 2, 4])
def test_every_world_size_replaces_alike(damage, lanes):
    folder, _, _ = damage(31, *DAMAGES["bad Huffman table"])
    whole = epoch_of(folder, batch_size=8, lanes=lanes)
    for world_size in (2, 4):
        options = {"batch_size": 8 // world_size, "world_size": world_size, "lanes": lanes}
        ranks = [epoch_of(folder, rank=rank, **options) for rank in range(world_size)]
        for step, batch in enumerate(whole):
            parts = [batches[step] for batches in ranks]
            assert [key for part in parts for key in part.keys] == batch.keys
            for name in ("images", "classes", "targets", "crops", "flips", "valid"):
                joined = torch.cat([getattr(part, name) for part in parts])
                assert torch.equal(joined, getattr(batch, name)), name


def test_a_resumed_epoch_replaces_as_the_one_that_went_through(damage):
    folder, _, _ = damage(31, *DAMAGES["map checksum"])
    whole = epoch_of(folder)
    for done in range(len(whole)):
        with make(folder) as loader:
            state = {**loader.state_dict(), "taken": done * 8}
            loader.load_state_dict(state)
            rest = list(loader)
        assert keys_of(rest) == keys_of(whole[done:])
        assert torch.equal(slots_of(rest, "images"), slots_of(whole[done:], "images"))


def test_a_sample_is_written_down_once_however_often_it_is_met(damage, tmp_path):
    folder, _, key = damage(31, *DAMAGES["bad Huffman table"])
    with make(folder, faults=Faults(quarantine=tmp_path / "bad.jsonl")) as loader:
        for epoch in range(3):
            loader.set_epoch(epoch)
            assert key not in keys_of(list(loader))
        assert loader.num_bad == 1
    assert len((tmp_path / "bad.jsonl").read_text().splitlines()) == 1


def damage_classes(folder, keys):
    """Give samples a class that there is not."""
    from softshard.shards.index import parse_index

    for path in folder.glob("*.tar"):
        index = parse_index(path.with_suffix(".idx").read_text(), path.name, path.stat().st_size)
        content = bytearray(path.read_bytes())
        for place, key in enumerate(index.keys):
            if key in keys:
                content[int(index.offsets[place, index.column("cls")])] = ord("9")
        path.write_bytes(content)


def test_more_bad_samples_than_allowed_are_an_error_that_names_some(damage, tmp_path, within):
    folder, _, key = damage(31, *DAMAGES["class out of range"])
    keys = {key, *keys_of(epoch_of(folder, shuffle=False))[:20]} - {""}
    damage_classes(folder, keys)
    faults = Faults(quarantine=tmp_path / "bad.jsonl")
    with make(folder, shuffle=False, faults=faults) as loader:
        message = (
            "loader: expected at most 10 bad samples of this rank's 105, found 11, the first of them: train-000000.tar: "
            f"sample .*; .* All are in {re.escape(str(tmp_path / 'bad.jsonl'))}. Mend the data set"
        )
        with pytest.raises(DataError, match=message):
            within(lambda: list(loader))
    assert len((tmp_path / "bad.jsonl").read_text().splitlines()) == 11


def test_the_budget_is_a_runs_however_often_it_is_continued(damage, within):
    folder, _, _ = damage(31, *DAMAGES["class out of range"])
    with make(folder) as loader:
        list(loader)
        state = loader.state_dict() | {"epoch": 0}
    assert state["bad"] == [31]
    with make(folder) as loader:
        loader.load_state_dict(state | {"bad": list(range(9))})
        assert loader.num_bad == 9
        list(loader)
        assert loader.num_bad == 10
        loader.load_state_dict(state | {"bad": list(range(10))})
        with pytest.raises(DataError, match="expected at most 10 bad samples of this rank's 105, found 11"):
            within(lambda: list(loader))


def test_what_an_earlier_process_counted_is_not_counted_and_logged_again(damage, tmp_path):
    folder, _, _ = damage(31, *DAMAGES["class out of range"])
    faults = Faults(quarantine=tmp_path / "bad.jsonl")
    with make(folder, faults=faults) as loader:
        whole = list(loader)
        state = loader.state_dict()
    assert state["bad"] == [31]
    with make(folder, faults=faults) as loader:
        loader.load_state_dict({**state, "epoch": 0, "taken": 0})
        again = list(loader)
        assert loader.num_bad == 1
    assert len((tmp_path / "bad.jsonl").read_text().splitlines()) == 1
    assert torch.equal(slots_of(whole, "images"), slots_of(again, "images"))


def test_a_state_from_before_there_were_bad_samples_in_it_still_loads(packed):
    with make(packed) as loader:
        state = loader.state_dict()
        del state["bad"]
        loader.load_state_dict(state)
        assert loader.num_bad == 0
        with pytest.raises(UsageError, match="expected indices of bad samples, found 'x'"):
            loader.load_state_dict({**state, "bad": "x"})


def test_a_batch_without_any_good_sample_is_padding(damage):
    folder, _, _ = damage(31, *DAMAGES["class out of range"])
    expected = epoch_of(folder, shuffle=False)
    damage_classes(folder, set(expected[1].keys))
    found = epoch_of(folder, shuffle=False, faults=Faults(max_bad=1))
    assert found[1].keys == [""] * 8
    assert not found[1].valid.any()
    assert not found[1].images.any()
    assert found[2].keys == expected[2].keys


def test_none_allowed_stops_at_the_first_one(damage, within):
    folder, shard, key = damage(31, *DAMAGES["bad Huffman table"])
    with (
        make(folder, faults=Faults(max_bad=0)) as loader,
        pytest.raises(DataError, match=f"{shard}: sample '{key}', component 'jpg': expected a whole JPEG"),
    ):
        within(lambda: list(loader))


def test_bad_samples_are_logged(damage, caplog):
    folder, shard, key = damage(31, *DAMAGES["class no number"])
    with caplog.at_level(logging.WARNING, "softshard.loaders"):
        epoch_of(folder)
    assert f"left out {shard}: sample '{key}', component 'cls'" in caplog.text


def test_thousands_of_bad_samples_flood_no_log(caplog):
    quarantine = Quarantine(Faults(max_bad=1.0), 2000, rank=0)
    with caplog.at_level(logging.WARNING, "softshard.loaders"):
        for i in range(2000):
            quarantine.add(BadSample(i, "a.tar", f"k{i}", f"k{i} is cut"), own=True, epoch=0, step=i)
    lines = [record.getMessage() for record in caplog.records]
    assert lines[19] == "epoch 0, step 19: left out k19 is cut"
    assert lines[20:] == [
        f"epoch 0, step {n - 1}: left out {n} samples so far, now k{n - 1} is cut"
        for n in (32, 64, 128, 256, 512, 1024)
    ]
    assert quarantine.num_bad == 2000


def test_next_good_goes_round_and_skips_padding_and_bad_ones():
    part = np.array([5, 6, 7, -1])
    assert next_good(part, 0, {5}.__contains__) == 1
    assert next_good(part, 2, {7}.__contains__) == 2
    assert next_good(part, 1, {6, 7, 5}.__contains__) is None
    assert next_good(np.array([5]), 0, {5}.__contains__) is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_bad": 1.5}, "faults: expected a share max_bad from 0 to 1, found 1.5"),
        ({"stall_s": 0}, "faults: expected seconds above 0, found stall_s 0"),
    ],
)
def test_options_that_make_no_sense_are_refused(options, message):
    with pytest.raises(UsageError, match=message):
        Faults(**options)


def test_a_quarantine_that_cannot_be_written_is_refused_at_once(packed, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="expected a file for bad samples that can be written"):
        make(packed, faults=Faults(quarantine=tmp_path / "file" / "bad.jsonl"))


def test_a_loader_that_is_refused_makes_no_folder_for_bad_samples(packed, tmp_path):
    with pytest.raises(UsageError, match="expected targets that pool the label maps of side="):
        make(packed, targets="none", side=tmp_path, faults=Faults(quarantine=tmp_path / "new" / "bad.jsonl"))
    assert list(tmp_path.iterdir()) == []


def test_a_quarantine_that_cannot_be_written_any_more_ends_no_epoch(damage, tmp_path, caplog):
    folder, _, _ = damage(31, "cls", lambda data: b"x")
    quarantine = tmp_path / "new" / "bad.jsonl"
    with make(folder, faults=Faults(quarantine=quarantine)) as loader:
        shutil.rmtree(quarantine.parent)
        assert len(list(loader)) == len(loader)
        assert loader.num_bad == 1
    assert f"{quarantine}: not all bad samples are written down: No such file" in caplog.text


FULL_IN_A_LINE = """
import resource, sys
from softshard.loaders.faults import BadSample, Faults, Quarantine
quarantine = Quarantine(Faults(max_bad=1.0, quarantine=sys.argv[1]), 1000, rank=0)
_, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
for number, most in enumerate([hard, 150, 150, hard, hard]):
    resource.setrlimit(resource.RLIMIT_FSIZE, (most, hard))
    quarantine.add(BadSample(number, "a.tar", f"k{number}", "is cut"), own=True, epoch=0, step=0)
"""


def test_a_line_that_a_full_disk_has_torn_spoils_none_that_comes_later(tmp_path):
    quarantine = tmp_path / "bad.jsonl"
    command = [sys.executable, "-c", FULL_IN_A_LINE, str(quarantine)]
    run = subprocess.run(command, capture_output=True, text=True, timeout=LONG_S)
    assert run.returncode == 0, run.stderr
    first, torn, *later = quarantine.read_text().splitlines()
    assert json.loads(first)["key"] == "k0"
    assert len(first) + len("\n" + torn) == 150
    assert [json.loads(line)["key"] for line in later] == ["k3", "k4"]
    assert (
        run.stderr.count("not all bad samples are written down: No space left on device. The run goes on")
        == 1
    )
