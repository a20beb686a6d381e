"""Real photographs, end to end: what pictures made in a test do not show."""

import json

import pytest

from softshard.shards import Manifest, verify
from softshard.shards.cli import main

pytestmark = pytest.mark.shared


def test_300_photographs_through_tree_pack_verify_and_stats(shared_data, tmp_path, capsys):
    photos = shared_data / "photos"
    wnids = sorted(path.name for path in photos.iterdir() if path.is_dir())
    assert len(wnids) == 300
    (tmp_path / "classes.txt").write_text("".join(f"{wnid}\n" for wnid in wnids))
    tree, data = str(tmp_path / "tree.json"), str(tmp_path / "set")
    classes = str(tmp_path / "classes.txt")
    assert main(["tree", "build", "--classes", classes, "--inner", "branching", "-o", tree]) == 0
    arguments = ["--tree", tree, "--size", "224", "--shard-bytes", "2MB", "--workers", "2", "--json"]
    capsys.readouterr()
    assert main(["pack", str(photos), data, *arguments]) == 0
    summary = json.loads(capsys.readouterr().out)
    assert (summary["read"], summary["packed"], summary["bad"]) == (300, 300, 0)

    report = verify(data, decode=True)
    assert (report.samples, report.problems) == (300, [])
    manifest = Manifest.load(tmp_path / "set" / "train")
    assert len(manifest.shards) > 3
    assert all(1_000_000 < shard.bytes < 3_000_000 for shard in manifest.shards)
    assert manifest.class_names[:300] == tuple(wnids)

    assert main(["stats", data, "--json"]) == 0
    (stats,) = json.loads(capsys.readouterr().out)
    assert stats["classes"]["with_samples"] == 300
    assert stats["levels"][0]["samples_with_target"] == 300
    assert len(stats["levels"]) >= 5
