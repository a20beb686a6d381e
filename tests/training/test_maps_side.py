"""Label maps in shards of their own, joined with their data set."""

import json
from dataclasses import replace

import fsspec
import pytest
from json_page import read_json
from packed_files import samples
from tiny_maps import OPTIONS

from softshard.shards import DataError, Manifest, verify
from softshard.shards.cli import main
from softshard.shards.labelmap_side import join_label_maps
from softshard.training.maps import make_label_maps


def test_side_shards_joined_give_the_same_data_set(noisy, map_teacher, noisy_maps, tmp_path, capsys):
    side, joined = tmp_path / "side", tmp_path / "joined"
    make_label_maps(noisy, side, map_teacher, replace(OPTIONS, side=True), num_threads=1)
    assert not (side / "manifest.json").exists()
    assert all(set(parts) == {"lmap"} for parts in samples(side).values())
    assert main(["maps", "join", str(noisy), str(side), str(joined)]) == 0
    assert Manifest.load(joined) == noisy_maps[1]
    assert samples(joined) == samples(noisy_maps[0])
    assert verify(joined, decode=True).problems == []
    assert join_label_maps(noisy, side, joined) == noisy_maps[1]  # again: all is there
    capsys.readouterr()
    assert main(["maps", "join", str(noisy), str(side), str(joined), "--json"]) == 0
    told = read_json("maps join", capsys.readouterr().out)
    assert (told["destination"], told["fingerprint"]) == (str(joined), noisy_maps[1].fingerprint)
    assert (told["samples"], told["shards"]) == (noisy_maps[1].num_samples, len(noisy_maps[1].shards))


def test_a_data_set_and_side_shards_behind_urls_are_joined(noisy, map_teacher, noisy_maps, memory, tmp_path):
    side = tmp_path / "side"
    make_label_maps(noisy, side, map_teacher, replace(OPTIONS, side=True), num_threads=1)
    there, side_there = memory(noisy), memory(side)
    assert join_label_maps(there, side_there, tmp_path / "joined") == noisy_maps[1]
    assert samples(tmp_path / "joined") == samples(noisy_maps[0])
    fsspec.filesystem("memory").rm(f"/copies/side/{noisy_maps[1].shards[0].name}")
    with pytest.raises(DataError, match=r"side/.*: expected a shard of the data set, found none"):
        join_label_maps(there, side_there, tmp_path / "other")


@pytest.mark.parametrize("damaged", ["shards", "dataset"])
def test_a_damaged_description_of_side_shards_is_refused(noisy, map_teacher, tmp_path, damaged):
    make_label_maps(noisy, tmp_path / "side", map_teacher, replace(OPTIONS, side=True), num_threads=1)
    file = tmp_path / "side" / "label_maps.json"
    content = json.loads(file.read_text())
    content[damaged] = content[damaged][:-1] if damaged == "shards" else 7
    file.write_text(json.dumps(content))
    with pytest.raises(
        DataError, match=r"side.*: expected (side shards named like|a description of side shards)"
    ):
        join_label_maps(noisy, tmp_path / "side", tmp_path / "out")


def test_training_joins_side_shards_as_it_reads(noisy, map_teacher, noisy_maps, tmp_path):
    side = tmp_path / "side"
    make_label_maps(noisy, side, map_teacher, replace(OPTIONS, side=True), num_threads=1)
    small = ["--model", "test_resnet", "--epochs", "1", "--global-batch", "3", "--image-size", "32"]
    assert main(["train", "relabel", str(noisy_maps[0]), "--out", str(tmp_path / "whole"), *small]) == 0
    call = ["train", "relabel", str(noisy), "--side", str(side), "--out", str(tmp_path / "joined"), *small]
    assert main(call) == 0
    weights = [(tmp_path / run / "model.safetensors").read_bytes() for run in ("whole", "joined")]
    assert weights[0] == weights[1]
    assert main([*call[:3], *call[5:], "--resume"]) == 2  # no label maps in the data set itself


def test_side_shards_of_another_data_set_are_not_joined(noisy, map_teacher, noisy_maps, tmp_path, capsys):
    make_label_maps(noisy, tmp_path / "side", map_teacher, replace(OPTIONS, side=True), num_threads=1)
    assert main(["maps", "join", str(noisy_maps[0]), str(tmp_path / "side"), str(tmp_path / "out")]) == 1
    assert "expected label maps of the data set" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "found no label_maps.json, which is written last"),
        ("[]", "expected a description of side shards"),
        ('{"format": "softshard-label-maps", "version": 2}', "expected version 1, found 2"),
        ('{"format": "tar", "version": 1}', "found: ValueError"),
    ],
)
def test_side_shards_without_their_description_are_refused(noisy, tmp_path, content, message):
    if content is not None:
        (tmp_path / "label_maps.json").write_text(content)
    with pytest.raises(DataError, match=message):
        join_label_maps(noisy, tmp_path, tmp_path / "out")
