"""Photographs with words about them, from a list to a trained model: pack, verify, pretrain, fine-tune, evaluate."""

import json
from collections import Counter

import pytest

from softshard.shards.cli import main
from softshard.shards.stored_vocabulary import Vocabulary
from softshard.shards.wordnet import wordnet

pytestmark = pytest.mark.shared

GROUPS = {"n01503061": "bird", "n02084071": "dog", "n01661091": "reptile", "n03183080": "device"}


def ancestors(wnid):
    found, left = [], list(wordnet().hypernyms(wnid))
    while left:
        found.append(left.pop())
        left += wordnet().hypernyms(found[-1])
    return found


@pytest.fixture(scope="module")
def photo_list(shared_data, tmp_path_factory):
    """Real photographs of four groups, ten each; their keywords are what WordNet calls them and their ancestors."""
    folder = tmp_path_factory.mktemp("photos")
    (folder / "photos").symlink_to(shared_data / "photos")
    rows, counts = [], Counter()
    for photo in sorted((shared_data / "photos").glob("*/*.JPEG")):
        above = ancestors(photo.parent.name)
        group = next((label for wnid, label in GROUPS.items() if wnid in above), None)
        if group is None or counts[group] == 10:
            continue
        counts[group] += 1
        tags = {name for wnid in (photo.parent.name, *above) for name in wordnet().lemmas(wnid)[:1]}
        path = f"photos/{photo.parent.name}/{photo.name}"
        rows.append(
            {"path": path, "label": group, "tags": sorted(tags), "weights": {group: 1.0, "bird": 0.4}}
        )
    assert len(rows) == 40
    (folder / "web.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = Counter(tag for row in rows for tag in row["tags"])
    kept = {word: num for word, num in sorted(words.items()) if 2 <= num <= 30}
    (folder / "words.tsv").write_bytes(Vocabulary(tuple(kept), tuple(kept.values())).to_bytes())
    return folder


def test_photographs_with_keywords_are_packed_pretrained_on_tuned_and_evaluated(photo_list, tmp_path, capsys):
    folder = photo_list
    shards, words = folder / "shards", folder / "words.tsv"
    command = ["pack", str(folder / "web.jsonl"), str(shards), "--size", "48", "--val-per-class", "2"]
    assert main([*command, "--vocabulary", str(words), "--weights", "--workers", "1"]) == 0
    assert main(["verify", str(shards / "train")]) == 0
    small = ["--model", "test_resnet", "--global-batch", "8", "--image-size", "32", "--device", "cpu"]
    sets = [str(shards / "train"), "--val", str(shards / "val")]
    tags, joint, tuned = (str(tmp_path / name) for name in ("tags", "joint", "tuned"))
    assert main(["train", "weakly-tagged", *sets, "--out", tags, *small, "--epochs", "3"]) == 0
    history = json.loads((tmp_path / "tags" / "summary.json").read_text())["history"]
    assert history[-1]["loss"] < history[0]["loss"]
    assert history[-1]["tag_top1"] > history[-1]["tag_chance"]
    assert main(["train", "joint", *sets, "--out", joint, *small, "--epochs", "1"]) == 0
    start = ["--init-from", f"{tags}/checkpoint.pt", "--accumulate", "2"]
    assert main(["train", "fine-tune", *sets, "--out", tuned, *small, "--epochs", "2", *start]) == 0
    command = ["pseudo", "make", str(shards / "train"), str(tmp_path / "pseudo"), "--device", "cpu"]
    command += [
        "--model",
        f"{tuned}/checkpoint.pt",
        f"{joint}/checkpoint.pt",
        "--threshold",
        "0.3",
        "--top",
        "2",
    ]
    assert main(command) == 0
    start = ["--init-from", f"{tuned}/checkpoint.pt", "--accumulate", "2", "--epochs", "1"]
    learned = str(tmp_path / "learned")
    assert main(["train", "pseudo", str(tmp_path / "pseudo"), "--out", learned, *small, *start]) == 0
    capsys.readouterr()
    command = ["evaluate", f"{tuned}/checkpoint.pt", str(shards / "val"), "--json"]
    command += ["--ensemble", f"{learned}/checkpoint.pt", "--ensemble", f"{joint}/checkpoint.pt"]
    assert main(command) == 0
    numbers = json.loads(capsys.readouterr().out)
    assert numbers["samples"] == 8
    assert numbers["classes_seen"] == 4
