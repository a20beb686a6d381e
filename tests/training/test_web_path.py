"""From photographs and English text about them to models, by the commands of the README alone."""

import importlib.util
import json
from pathlib import Path

import pytest

from softshard.shards import Manifest
from softshard.shards.cli import main

pytestmark = pytest.mark.shared

NUM_CLASSES = 24
SMALL = ["--model", "test_resnet", "--global-batch", "8", "--device", "cpu", "--epochs", "1"]


def of_timm(name):
    """wnid -> text, from a table inside timm's wheel."""
    folder = Path(importlib.util.find_spec("timm").submodule_search_locations[0]) / "data" / "_info"
    lines = (folder / name).read_text("utf-8").splitlines()
    return {wnid: text for wnid, _, text in (line.partition("\t") for line in lines)}


@pytest.fixture
def folder(shared_data, tmp_path):
    """`web.jsonl`: every tenth of 240 photographs, with the lemmas and the definition of its class as title and text."""
    (tmp_path / "photos").symlink_to(shared_data / "photos")
    titles, texts = of_timm("imagenet_synset_to_lemma.txt"), of_timm("imagenet_synset_to_definition.txt")
    photos = sorted((shared_data / "photos").glob("*/*.JPEG"))[: 10 * NUM_CLASSES : 10]
    rows = [
        {
            "path": f"photos/{photo.parent.name}/{photo.name}",
            "label": photo.parent.name,
            "title": titles.get(photo.parent.name, ""),
            "description": texts.get(photo.parent.name, ""),
        }
        for photo in photos
    ]
    (tmp_path / "web.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "classes.txt").write_text("".join(f"{row['label']}\n" for row in rows))
    return tmp_path


def run(folder, monkeypatch, *command):
    monkeypatch.chdir(folder)
    assert main([*command]) == 0


def test_photographs_with_english_text_become_tags_weights_shards_and_models(folder, monkeypatch, capsys):
    run(folder, monkeypatch, "tags", "build", "web.jsonl", "-o", "tags.jsonl", "--min-images", "1")
    weigh = ["tags", "weigh", "tags.jsonl", "-o", "both.jsonl", "--classes", "classes.txt"]
    run(folder, monkeypatch, *weigh, "--by", "wup=0.7,text=0.3", "--top", "5")
    said = capsys.readouterr().out
    assert "Run: softshard pack both.jsonl DST --classes classes.txt --weights --vocabulary FILE" in said
    show = ["tags", "show", "n01440764", "--classes", "classes.txt", "-o", "tench.html"]
    run(folder, monkeypatch, *show)
    assert "tench" in (folder / "tench.html").read_text()
    pack = ["pack", "both.jsonl", "web", "--classes", "classes.txt", "--size", "40", "--workers", "1"]
    run(folder, monkeypatch, *pack, "--weights", "--vocabulary", "tags.vocabulary.tsv")
    run(folder, monkeypatch, "verify", "web", "--decode")
    info = Manifest.load(folder / "web" / "train").soft_labels
    assert info.num_tags == len((folder / "tags.vocabulary.tsv").read_text().splitlines()) - 1 > 5
    assert info.tags["min_images"] == 1
    assert info.weights["by"] == {"text": pytest.approx(0.3), "wup": pytest.approx(0.7)}

    for recipe in ("weakly-tagged", "label-weighted", "joint"):
        run(folder, monkeypatch, "train", recipe, "web/train", *SMALL, "--image-size", "32", "--out", recipe)
    start = ["--image-size", "32", "--init-from", "weakly-tagged/checkpoint.pt", "--accumulate", "2"]
    run(folder, monkeypatch, "train", "fine-tune", "web/train", *SMALL, *start, "--out", "tuned")
    start = ["--image-size", "40", "--init-from", "tuned/checkpoint.pt", "--accumulate", "2"]
    run(folder, monkeypatch, "train", "larger-images", "web/train", *SMALL, *start, "--out", "large")
    models = ["large/checkpoint.pt", "joint/checkpoint.pt"]
    pseudo = ["pseudo", "make", "web/train", "pseudo", "--device", "cpu", "--threshold", "0.01"]
    run(folder, monkeypatch, *pseudo, "--model", *models)
    run(folder, monkeypatch, "verify", "pseudo")
    start = ["--image-size", "32", "--init-from", "weakly-tagged/checkpoint.pt", "--accumulate", "2"]
    run(folder, monkeypatch, "train", "pseudo", "pseudo", *SMALL, *start, "--out", "learned")
    capsys.readouterr()
    ensemble = ["--ensemble", "learned/checkpoint.pt", "--device", "cpu", "--json"]
    run(folder, monkeypatch, "evaluate", "large/checkpoint.pt", "web/train", *ensemble)
    assert json.loads(capsys.readouterr().out)["samples"] == NUM_CLASSES
