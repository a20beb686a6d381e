import json

import numpy as np
import pytest
from packed_files import samples

from softshard.shards import DataError, Manifest
from softshard.shards.cli import main
from softshard.shards.stats import data_set_stats, format_stats
from softshard.shards.stats_page import _sorted_curve, stats_page


def test_the_counts_are_those_of_the_samples(packed_once, table_tree):
    folder = packed_once / "train"
    stats = data_set_stats(folder)
    stored = samples(folder).values()
    assert (stats["samples"], stats["shards"]) == (13, 4)
    assert (
        stats["bytes"]
        == Manifest.load(folder).num_bytes
        == sum(p.stat().st_size for p in folder.glob("*.tar"))
    )
    assert stats["samples_per_class"] == {"bird": 4, "dog": 6, "oak": 3}
    assert stats["classes"] == {
        "listed": 5, "with_samples": 3, "smallest": 3, "median": 4.0, "largest": 6, "largest_name": "dog",
    }  # fmt: skip
    assert stats["component_bytes_per_sample"] == {
        suffix: round(sum(len(parts[suffix]) for parts in stored) / 13, 1)
        for suffix in ("jpg", "cls", "hier.npy", "lmap", "msgpack")
    }
    levels = [(x["classes"], x["samples_with_target"], x["samples_labelled_here"]) for x in stats["levels"]]
    assert levels == [(2, 13, 0), (3, 13, 13)]
    assert table_tree.level_sizes == (2, 3)
    assert stats["label_maps"]["top"] == 3
    json.dumps(stats)


def test_a_class_with_several_paths_has_one_target_a_level(packed_once, table_tree, monkeypatch):
    expected = data_set_stats(packed_once / "train")["levels"]
    one = table_tree.vectors()
    other = np.where(np.arange(5)[:, None] == 0, -1, one)  # a second path, which class 0 has not
    monkeypatch.setattr(type(table_tree), "vectors", lambda tree: np.stack([one, other], axis=1))
    assert data_set_stats(packed_once / "train")["levels"] == expected


def test_no_shard_is_read(packed):
    expected = data_set_stats(packed / "train")
    for path in (packed / "train").glob("*.tar"):
        path.unlink()
    assert data_set_stats(packed / "train") == expected


def test_the_text_says_what_the_counts_say(packed_once):
    text = format_stats(data_set_stats(packed_once / "train"))
    assert text.startswith("train: 13 samples in 4 shards, ")
    assert "3 of 5 have samples; smallest 3, median 4, largest 6 (dog)" in text
    assert "level 1         3 classes, 13 samples with a target, 13 labelled here" in text
    assert "label maps      top 3 on 4 x 5 cells" in text


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (
            lambda path: path.unlink(),
            r"^train-000001\.idx: expected the index of train-000001\.tar, found none",
        ),
        (lambda path: path.write_bytes(b"\xff"), r"^train-000001\.idx: expected a first line"),
    ],
)
def test_a_missing_or_damaged_index_is_an_error(packed, damage, message):
    damage(packed / "train" / "train-000001.idx")
    with pytest.raises(DataError, match=message):
        data_set_stats(packed / "train")


def test_the_page_shows_classes_levels_and_components_and_stands_alone(packed_once, tmp_path):
    folder = packed_once / "train"
    stats = data_set_stats(folder)
    assert main(["stats", str(packed_once), "--html", str(tmp_path / "stats.html")]) == 0
    text = (tmp_path / "stats.html").read_text()
    assert "http" not in text.replace("http://www.w3.org", "")
    assert "<script" not in text
    for part in (
        "Data set train",
        "Data set val",
        "13",
        "dog",
        "1: 3 classes",
        "hier.npy",
        "lmap",
        "3 of 5",
    ):
        assert part in text, part
    tar_bytes = stats["bytes"] - sum(stats["component_bytes"].values())
    assert f"tar: {tar_bytes / 13:.6g}" in text
    alone = stats_page([stats]).render()
    assert "<h1>Data set train</h1>" in alone
    assert stats["fingerprint"] in alone


def test_the_page_of_many_classes_keeps_both_ends_of_the_curve(packed_once):
    stats = data_set_stats(packed_once / "train")
    stats["samples_per_class"] = {f"class{i:05d}": 12_000 - i for i in range(11_221)}
    text = stats_page([stats]).render()
    assert "The 10 largest classes" in text
    assert "class00000" in text
    assert "class11220" in text
    assert "class05000" not in text
    assert len(text) < 60_000
    curve = _sorted_curve(list(stats["samples_per_class"].values()))
    assert (curve[0], curve[-1]) == ((1, 12_000), (11_221, 780))
