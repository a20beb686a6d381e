"""`softshard inspect`: what it shows of samples is what the loader's batches hold; what it cannot show it names."""

import re
import shlex
import shutil

import fsspec
import numpy as np
import pytest
from html_elements import Elements
from inspected_sets import options, whole_epoch

from softshard.loaders import Augment
from softshard.loaders.inspect_page import command_line, inspect_page
from softshard.loaders.inspection import InspectOptions, inspect_data_set
from softshard.loaders.target_modes import SOFT_KINDS, TARGETS
from softshard.shards import Manifest, UsageError
from softshard.shards.cli import main


@pytest.mark.parametrize(
    ("targets", "epoch"), [*((name, 0) for name in TARGETS if name not in SOFT_KINDS), ("relabel", 4)]
)
def test_crops_and_targets_are_those_of_a_loaders_batches(packed, targets, epoch):
    found = inspect_data_set(packed, options(epoch=epoch, targets=targets))
    for later in range(2):
        batch = whole_epoch(packed, epoch + later, targets=targets)
        if not later:
            assert [sample.key for sample in found.samples] == batch.keys[:5]
        # Later epochs come in another order: the samples are looked for by their keys.
        for sample in found.samples:
            slot, crop = batch.keys.index(sample.key), sample.crops[later]
            assert crop.epoch == epoch + later
            assert crop.crop_xyxy == tuple(batch.crops[slot].tolist())
            assert crop.flip == bool(batch.flips[slot])
            assert np.array_equal(crop.image, batch.images[slot].permute(1, 2, 0).numpy())
            assert sample.class_index == int(batch.classes[slot])
            assert sample.levels.tolist() == batch.levels[slot].tolist()
            if targets == "none":
                assert crop.target is None
            else:
                np.testing.assert_allclose(crop.target, batch.targets[slot].numpy(), rtol=0, atol=1e-6)


def test_the_summary_names_the_data_set_and_the_command_makes_the_page_again(packed, tmp_path):
    found = inspect_data_set(packed, options(targets="relabel-single"))
    html = inspect_page(found, top=2).render()
    text = Elements(html).text
    manifest = Manifest.load(packed)
    for expected in (
        manifest.fingerprint[:12],
        "105 in 9 shards",
        "3 best of 9 classes",
        "4 rows x 5 columns",
    ):
        assert expected in text
    command = re.search(r"<code>(softshard inspect .*?)</code>", html)[1]
    assert main([*shlex.split(command)[1:], "-o", str(tmp_path / "again.html")]) == 0
    assert (tmp_path / "again.html").read_text(encoding="utf-8") == html


def test_the_command_line_quotes_and_names_what_is_not_the_default():
    assert command_line("a b", InspectOptions()) == "softshard inspect 'a b'"
    asked = InspectOptions(
        keys=("k",),
        seed=1,
        epoch=2,
        num_crops=4,
        targets="original",
        augment=Augment(size=32, scale=(0.5, 1.0)),
    )
    assert command_line("d", asked, 7) == (
        "softshard inspect d --keys k --seed 1 --epoch 2 --crops 4 --targets original --top 7 --size 32 --scale 0.5 1.0"
    )


def test_keys_that_look_like_options_are_asked_for_by_the_command_line(packed, tmp_path, capsys):
    words = shlex.split(command_line(str(packed), InspectOptions(keys=("-a", "--seed"))))
    assert words[3:] == ["--keys=-a", "--keys=--seed"]
    assert main([*words[1:], "-o", str(tmp_path / "page.html")]) == 2
    assert "does not have: '-a', '--seed'" in capsys.readouterr().err


def test_samples_are_found_by_key_in_the_order_given(packed, plain_samples):
    keys = (plain_samples[60].key, plain_samples[2].key, plain_samples[60].key)
    found = inspect_data_set(packed, options(keys=keys))
    assert [(sample.number, sample.key) for sample in found.samples] == [(60, keys[0]), (2, keys[1])]


def test_unknown_keys_are_all_named(packed, plain_samples, tmp_path, capsys):
    keys = ["nothing", plain_samples[0].key, "neither"]
    assert main(["inspect", str(packed), "--keys", *keys, "-o", str(tmp_path / "p.html")]) == 2
    said = capsys.readouterr().err
    assert "found 2 that it does not have: 'nothing', 'neither'" in said
    assert f"such as {plain_samples[0].key!r}" in said
    assert not (tmp_path / "p.html").exists()


def flipped(data):
    """The same bytes, some of them changed in the middle."""
    middle = len(data) // 2
    return data[:middle] + bytes(byte ^ 0xFF for byte in data[middle : middle + 8]) + data[middle + 8 :]


@pytest.mark.parametrize(
    ("suffix", "change", "problem"),
    [
        ("lmap", flipped, "component 'lmap': expected checksum"),
        ("jpg", lambda data: b"\0" * len(data), "component 'jpg': expected a JPEG"),
        (
            "jpg",
            lambda data: data[:-200] + b"\xff\xd9" + b"\0" * 198,
            "component 'jpg': expected a whole JPEG",
        ),
        ("cls", lambda data: b"x" * len(data), "component 'cls': expected a decimal class index"),
        ("msgpack", lambda data: b"\xc1" * len(data), "component 'msgpack': expected a MessagePack map"),
    ],
)
def test_a_damaged_sample_is_a_card_that_says_what_is_wrong(
    packed, damage, tmp_path, capsys, suffix, change, problem
):
    whole = inspect_data_set(packed, options())
    folder, shard, key = damage(whole.samples[2].number, suffix, change)
    out = tmp_path / "page.html"
    asked = ["--samples", "5", "--crops", "2", "--seed", "3", "--size", "24", "-o", str(out)]
    assert main(["inspect", str(folder), *asked]) == 1
    said = capsys.readouterr().out
    assert f"{shard}: sample {key!r}, {problem}" in said
    page = Elements(out.read_text(encoding="utf-8"))
    assert f"{shard}: sample {key!r}, {problem}" in page.text
    assert "Damaged: 1 of these 5 samples" in page.text
    found = inspect_data_set(folder, options())
    assert [bool(sample.problems) for sample in found.samples] == [False, False, True, False, False]
    # The others are what they were: a decoder that met damage is not used again.
    for before, after in zip(whole.samples, found.samples, strict=True):
        assert before.key == after.key
        if not after.problems:
            assert all(
                np.array_equal(one.image, other.image) and one.crop_xyxy == other.crop_xyxy
                for one, other in zip(before.crops, after.crops, strict=True)
            )


def test_a_shard_that_is_cut_short_costs_only_its_own_samples(packed, tmp_path):
    folder = shutil.copytree(packed, tmp_path / "cut")
    whole = inspect_data_set(packed, options(num_samples=105, num_crops=1))
    shard = folder / whole.samples[0].shard
    shard.write_bytes(shard.read_bytes()[:-1000])
    found = inspect_data_set(folder, options(num_samples=105, num_crops=1))
    assert {sample.shard for sample in found.samples if sample.problems} == {shard.name}
    lost = sum(sample.shard == shard.name for sample in whole.samples)
    assert sum(bool(sample.problems) for sample in found.samples) == lost < 105
    html = inspect_page(found).render()
    assert f"{shard.name}: expected" in html
    assert "which cannot be read" in html


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (["--samples", "0"], "expected 1 to 200 samples on a page, found 0"),
        (["--samples", "201"], "expected 1 to 200 samples on a page, found 201"),
        (["--crops", "0"], "expected crops of 1 epoch or more, found 0"),
        (["--size", "2048"], "expected at most 33,554,432 pixels of crops on a page, found 150,994,944"),
        (["--epoch", "-1"], "expected epoch as an int from 0"),
        (["--scale", "0.5", "0.2"], "expected a scale (low, high) within (0, 1]"),
        (["--top", "0"], "expected 1 or more classes of a target, found 0"),
    ],
)
def test_wrong_calls_are_refused_by_name(packed, tmp_path, capsys, wrong, message):
    out = tmp_path / "page.html"
    assert main(["inspect", str(packed), *wrong, "-o", str(out)]) == 2
    assert message in capsys.readouterr().err
    assert not out.exists()


def test_targets_that_pool_maps_need_maps(packed_plain, tmp_path, capsys):
    asked = ["--targets", "relabel", "-o", str(tmp_path / "page.html")]
    assert main(["inspect", str(packed_plain), *asked]) == 2
    assert "expected label maps for targets that pool them" in capsys.readouterr().err


def test_a_data_set_behind_a_url_gives_the_same_samples(packed, tmp_path, monkeypatch):
    monkeypatch.setenv("SOFTSHARD_CACHE", str(tmp_path / "cache"))
    fsspec.filesystem("memory").put(str(packed), "/inspected/train", recursive=True)
    keys = [sample.key for sample in inspect_data_set(packed, options(num_samples=2)).samples][::-1]
    for asked in (options(num_samples=4), options(keys=keys)):
        here, there = inspect_data_set(packed, asked), inspect_data_set("memory://inspected/train", asked)
        assert there.dataset == "memory://inspected/train"
        assert len(there.samples) == len(here.samples)
        for one, other in zip(there.samples, here.samples, strict=True):
            assert (one.key, one.jpeg, one.problems) == (other.key, other.jpeg, ())
            for crop, expected in zip(one.crops, other.crops, strict=True):
                np.testing.assert_array_equal(crop.image, expected.image)
                np.testing.assert_array_equal(crop.target, expected.target)


def test_unknown_modes_are_refused():
    with pytest.raises(UsageError, match="expected targets of none, original, relabel"):
        options(targets="other")
