import json

import pytest
from json_page import read_json

from softshard.shards.cli import main
from softshard.shards.manifest import Manifest

SMALL = ["--size", "16", "--workers", "1", "--shard-samples", "4"]


def test_a_dry_run_prints_the_plan_and_writes_nothing(run, source, tmp_path):
    (source / "dog" / "notes.txt").touch()
    before = sorted(tmp_path.rglob("*"))
    code, out, _ = run(
        "pack", source, tmp_path / "set", *SMALL, "--dry-run", "--min-images", 5, "--val-per-class", 1
    )
    assert code == 0
    assert sorted(tmp_path.rglob("*")) == before
    lines = out.splitlines()
    assert lines[0].startswith(f"{source}: 16 images; plan ")
    assert lines[1:6] == [
        "  kept: 2 classes with 12 images",
        "  dropped: 1 folder with 4 images",
        "    oak: 4 images: fewer than 5 images",
        "  other files, ignored: 1: dog/notes.txt",
        "  train: 10 samples in 3 shards, about 0.0 MB",
    ]
    assert lines[-1].endswith("at most 4 samples a shard; nothing was written")


def test_a_dry_run_says_what_packing_does(run, source, tmp_path):
    (tmp_path / "classes.txt").write_text("dog\nelm\nbird\n")
    command = ["pack", source, tmp_path / "set", *SMALL, "--classes", tmp_path / "classes.txt", "--json"]
    report = read_json("pack --dry-run", run(*command, "--dry-run")[1])
    summary = json.loads(run(*command)[1])
    assert report["dropped"] == [{"folder": "oak", "images": 4, "reason": "not in the class list"}]
    assert {item["folder"]: item["images"] for item in report["dropped"]} == summary["dropped"]
    assert report["without_images"] == summary["without_images"] == ["elm"]
    assert report["kept"] == {"bird": 5, "dog": 7}
    train = summary["datasets"]["train"]
    assert report["splits"]["train"]["samples"] == train["samples"]
    assert report["splits"]["train"]["shards"] == train["shards"]
    assert report["splits"]["train"]["bytes"] + 1024 * train["shards"] == pytest.approx(
        train["bytes"], rel=0.01
    )
    assert report["plan"] == json.loads((tmp_path / "set" / "plan.json").read_bytes())["sha256"]


def test_the_preset_is_the_published_recipe_and_options_beside_it_win(run, source, tmp_path):
    dry = ["pack", source, tmp_path / "set", "--preset", "imagenet-21k-p", "--dry-run", "--json"]
    with pytest.raises(SystemExit):
        main(["pack", str(source), str(tmp_path / "set"), "--preset", "imagenet"])
    assert run(*dry)[0] == 1  # no class has 500 images
    code, out, _ = run(*dry, "--min-images", 1, "--val-per-class", 2)
    assert (code, json.loads(out)["splits"]["val"]["samples"]) == (0, 6)
    command = ["pack", source, tmp_path / "set", *SMALL, "--preset", "imagenet-21k-p"]
    assert run(*command, "--min-images", 1, "--val-per-class", 0)[0] == 0
    recipe = Manifest.load(tmp_path / "set" / "train").recipe
    assert (recipe["size"], recipe["resize"], recipe["min_images"], recipe["val_per_class"]) == (
        16,
        "squish",
        1,
        0,
    )
