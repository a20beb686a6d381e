"""Samples that are wrong in themselves, in shards whose hashes are right: isolated by the loader, whatever they are."""

import json
import threading

import numpy as np
import pytest
import spoiling
import torch
from PIL import Image

from softshard.loaders import Augment, CutMix, Faults, Loader, Mixture
from softshard.loaders.samples import read_size
from softshard.shards import DataError, Manifest, read_shard
from softshard.shards.errors import ImageError, StorageError


def make(dataset, **options):
    defaults = {"batch_size": 8, "augment": Augment(size=16), "dtype": "uint8", "targets": "relabel"}
    return Loader(dataset, **{**defaults, "last_batch": "pad", "num_threads": 2, "window": 30, **options})


def own_keys(batches):
    return [
        key for batch in batches for key, valid in zip(batch.keys, batch.valid.tolist(), strict=True) if valid
    ]


HOSTILE = {
    "map with NaN": ("lmap", spoiling.map_with_nan, "expected finite scores, found NaN or infinity"),
    "map of another shape": (
        "lmap",
        spoiling.map_of_another_shape,
        r"expected \[K, P, Q\] \[3, 4, 5\] over 9 classes as in the manifest, found \[3, 3, 5\] over 9",
    ),
    "map of other classes": (
        "lmap",
        spoiling.map_of_other_classes,
        r"over 9 classes as in the manifest, found \[3, 4, 5\] over 10000",
    ),
    "map of a hostile size": ("lmap", spoiling.map_of_hostile_size, "expected a payload of"),
    "levels out of range": ("hier.npy", spoiling.levels_out_of_range, "expected -1 or classes below"),
    "JPEG cut short": (
        "jpg",
        spoiling.cut_in_the_middle,
        "expected a whole JPEG, found one that is cut short",
    ),
    "no quantisation table": ("jpg", spoiling.without_segment(0xDB), "expected a whole JPEG"),
    "lossless": ("jpg", spoiling.with_frame(marker=0xC3), "expected a JPEG with a DCT, found a lossless one"),
    "12 bits": ("jpg", spoiling.with_frame(precision=12), "expected a whole JPEG"),
    "65,535 pixels a side": (
        "jpg",
        spoiling.with_frame(hw=(65535, 65535)),
        "expected at most 178956970 pixels",
    ),
    "text": ("jpg", lambda data: b"<html>not found</html>", "expected a JPEG, found bytes b'<htm'"),
    "no class": ("cls", lambda data: b"", "expected a decimal class index, found b''"),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_all_other_samples_are_served_and_the_quarantine_says_why(copied, tmp_path, kind):
    suffix, change, reason = HOSTILE[kind]
    ((shard, key),) = spoiling.rewrite(copied, {31: {suffix: change}})
    with make(copied, faults=Faults(quarantine=tmp_path / "bad.jsonl")) as loader:
        served = own_keys(loader)
    assert len(served) == len(set(served)) == 104
    assert key not in served
    (line,) = map(json.loads, (tmp_path / "bad.jsonl").read_text().splitlines())
    assert line["reason"].startswith(f"{shard}: sample '{key}', component '{suffix}': ")
    with pytest.raises(DataError, match=reason):
        raise DataError(line["reason"])


@pytest.mark.parametrize("change", [spoiling.cmyk, spoiling.progressive], ids=["CMYK", "progressive"])
def test_unusual_jpegs_are_decoded(copied, change):
    spoiling.rewrite(copied, {31: {"jpg": change}})
    with make(copied) as loader:
        assert len(own_keys(loader)) == 105


def test_a_bad_substitute_is_replaced_too_and_every_world_size_agrees(copied):
    # All but one sample of the first shards: most substitutes are bad themselves, and some of another rank's.
    bad = {i: {"jpg": lambda data: b"x"} for i in range(20)} | {
        i: {"lmap": spoiling.map_with_nan} for i in range(20, 39)
    }
    spoiling.rewrite(copied, bad)
    faults = Faults(max_bad=1)
    with make(copied, faults=faults, shuffle=False) as loader:
        whole = list(loader)
        assert loader.num_bad == 39
    ranks, num_bad = [], 0
    for rank in range(2):
        with make(copied, faults=faults, shuffle=False, batch_size=4, world_size=2, rank=rank) as loader:
            ranks.append(list(loader))
            num_bad += loader.num_bad
    assert num_bad == 39
    for batch, *parts in zip(whole, *ranks, strict=True):
        assert [key for part in parts for key in part.keys] == batch.keys
        assert torch.equal(torch.cat([part.images for part in parts]), batch.images)
        assert torch.equal(torch.cat([part.valid for part in parts]), batch.valid)


def test_balance_and_cutmix_leave_every_slot_of_a_bad_sample_out(copied):
    ((_, key),) = spoiling.rewrite(copied, {31: {"jpg": spoiling.cut_in_the_middle}})
    augment = Augment(size=16, cutmix=CutMix())
    with make(copied, balance=1.0, augment=augment) as loader:
        batches = list(loader)
    for batch in batches:
        assert key not in batch.keys
        replaced = ~batch.valid
        partners = batch.mix.partners
        alone = torch.arange(len(partners))
        assert torch.equal(partners[replaced], alone[replaced])
        assert not torch.isin(partners[~replaced], alone[replaced]).any()


def test_a_mixture_names_the_data_set_of_a_bad_sample(packed, copied, tmp_path):
    ((shard, key),) = spoiling.rewrite(copied, {31: {"lmap": spoiling.map_of_another_shape}})
    quarantine = tmp_path / "bad.jsonl"
    with make(Mixture({packed: 1, copied: 1}), faults=Faults(quarantine=quarantine)) as loader:
        num_served = len(own_keys(loader))
    (line,) = map(json.loads, quarantine.read_text().splitlines())
    assert (line["shard"], line["key"], line["sample"]) == (shard, key, 105 + 31)
    assert num_served == 209


def test_when_every_image_fails_at_once_no_sample_is_blamed(packed, monkeypatch, within):
    def out_of_order(self, slots, num_slots):
        raise RuntimeError("the device is gone")

    monkeypatch.setattr("softshard.loaders.decode.CpuDecoder.take", out_of_order)
    with make(packed) as loader:
        with pytest.raises(RuntimeError, match="the device is gone"):
            within(lambda: list(loader))
        assert loader.num_bad == 0


def test_storage_that_goes_away_is_no_bad_sample(copied, tmp_path, monkeypatch, within):
    spoiling.rewrite(copied, {31: {"jpg": spoiling.without_segment(0xDB)}})  # whose step is begun again
    loader = make(copied, shuffle=False, faults=Faults(quarantine=tmp_path / "bad.jsonl"))
    shards, failing = loader._maker.reader.shards, threading.Event()
    open_shard = type(shards).__getitem__

    def away(self, number):
        if failing.is_set():
            raise StorageError("the storage is away")
        return open_shard(self, number)

    def find_undecodable(begun, original=loader._maker.find_undecodable):
        failing.set()
        return original(begun)

    monkeypatch.setattr(type(shards), "__getitem__", away)
    monkeypatch.setattr(loader._maker, "find_undecodable", find_undecodable)
    with loader:
        with pytest.raises(StorageError, match="the storage is away"):
            within(lambda: list(loader))
        assert loader.num_bad == 1


def photographs(shared_data):
    return sorted((shared_data / "photos").rglob("*.[jJ]*[gG]"))


@pytest.mark.shared
def test_no_real_photograph_is_taken_for_one_that_is_cut(shared_data):
    files = photographs(shared_data)
    assert files
    for file in files:
        with Image.open(file) as image:
            assert read_size(file.read_bytes()) == (image.height, image.width)


def test_bytes_behind_a_jpeg_and_a_missing_end_are_no_damage(packed):
    jpeg = next(read_shard(packed / Manifest.load(packed).shards[0].name)).parts["jpg"]
    for whole in (jpeg, jpeg + bytes(1000), jpeg[:-2], jpeg + jpeg[: len(jpeg) // 2]):
        assert read_size(whole) == read_size(jpeg)
    for at in np.linspace(len(jpeg) * 0.7, len(jpeg) - 8, 20).astype(int):
        with pytest.raises(ImageError, match=f"found one that is cut short after {at} bytes"):
            read_size(jpeg[:at])
