"""`softshard subset`, and the commands of its guide."""

import json
import re
import shlex
from collections import Counter
from pathlib import Path

import fsspec
import numpy as np
import pytest
from packed_files import samples
from subset_command import run_subset

from softshard.shards import LabelTree, Manifest, SubsetFile
from softshard.shards.cli import main
from softshard.shards.score_file import score_header, score_line

GUIDE = (Path(__file__).parents[2] / "shards" / "SUBSETS.md").read_text("utf-8")
COMMANDS = [
    shlex.split(line, comments=True)[1:] for line in re.findall(r"^    (softshard .*)$", GUIDE, re.MULTILINE)
]


def classes(out):
    return {group.name: group.members for group in SubsetFile.load(out).groups}


def test_classes_come_from_a_data_set_a_folder_of_both_splits_a_source_and_a_list(tmp_path, packed, source):
    (tmp_path / "list.txt").write_text("dog\noak\nbird\n")
    for place in (packed, packed / "train", source, tmp_path / "list.txt"):
        run_subset("classes", place, "--method", "groups", "-n", 1, "-o", tmp_path / "s.json")
        assert {frozenset(found) for found in classes(tmp_path / "s.json").values()} == {
            frozenset(("bird", "dog", "oak"))
        }
    # Inner nodes of the tree have no images, and are not chosen from.
    run_subset("classes", packed, "--method", "random", "-n", 3, "-o", tmp_path / "s.json")
    assert classes(tmp_path / "s.json") == {name: (name,) for name in ("bird", "dog", "oak")}
    found = SubsetFile.load(tmp_path / "s.json")
    assert found.class_source["fingerprint"] == Manifest.load(packed / "train").fingerprint
    assert found.class_source["classes_sha256"] == Manifest.load(packed / "train").classes_sha256
    run_subset("classes", packed, "--method", "random", "-n", 4, "-o", tmp_path / "s.json", code=2)


def test_siblings_are_those_of_the_data_sets_own_tree(tmp_path, packed, capsys):
    run_subset("classes", packed, "--method", "siblings", "-n", 2, "-o", tmp_path / "s.json")
    assert classes(tmp_path / "s.json") == {"animal": ("bird", "dog"), "oak": ("oak",)}
    capsys.readouterr()
    run_subset("classes", packed, "--method", "siblings", "-n", 1, "-o", tmp_path / "s.json")
    assert "note: 2 classes are left and not 1: the tree has as many roots" in capsys.readouterr().err


def test_the_file_says_method_seed_and_what_was_read(tmp_path, packed, groups, chosen):
    subset = SubsetFile.load(chosen)
    assert subset.class_method["name"] == "file"
    assert subset.class_method["file"]["name"] == "groups.yaml"
    assert len(subset.class_method["file"]["sha256"]) == 64
    run_subset("classes", packed, "--method", "random", "-n", 2, "--seed", 7, "-o", tmp_path / "s.json")
    assert dict(SubsetFile.load(tmp_path / "s.json").class_method) == {"name": "random", "num": 2, "seed": 7}


def test_the_same_call_writes_the_same_bytes_and_another_seed_others(tmp_path, packed):
    texts = []
    for seed in (1, 1, *range(2, 8)):
        run_subset("images", packed, "-m", 2, "--seed", seed, "-o", tmp_path / "s.json")
        texts.append((tmp_path / "s.json").read_bytes())
    assert texts[0] == texts[1]
    assert len(set(texts)) > 3


def test_few_images_and_a_small_validation_set_are_told(tmp_path, packed, capsys):
    run_subset(
        "classes", packed, "--method", "groups", "-n", 1, "-m", 500, "--json", "-o", tmp_path / "s.json"
    )
    out, err = capsys.readouterr()
    assert "1 of 1 class has fewer than 500 images (the smallest 13, the largest 13)" in err
    assert "the validation set has 3 images of 1 class, fewer than 10,000" in err
    told = json.loads(out)
    assert (told["classes"]["num"], told["groups"]) == (
        1,
        [{"name": "group-0", "num": 3, "value": None}],
    )
    assert told["notes"] == list(SubsetFile.load(tmp_path / "s.json").notes)


def test_what_a_class_list_cannot_tell_is_said(tmp_path, capsys):
    pytest.importorskip("timm")
    run_subset(
        "classes", "imagenet-1k", "--method", "random", "--config", "20x5000", "-o", tmp_path / "s.json"
    )
    assert "20 of 20 classes have fewer than 5,000, maybe 0 more: group classes" in capsys.readouterr().err
    (tmp_path / "list.txt").write_text("dog\noak\n")
    run_subset(
        "classes", tmp_path / "list.txt", "--method", "random", "-n", 1, "-m", 5, "-o", tmp_path / "s.json"
    )
    assert "images were not counted" in capsys.readouterr().err


def test_a_confusion_matrix_may_be_of_the_whole_class_list_or_of_the_classes_with_images(tmp_path, packed):
    whole = np.zeros((5, 5))  # bird, dog, oak, and the inner nodes animal and plant
    whole[0, 2] = whole[3, 4] = 7
    np.save(tmp_path / "whole.npy", whole)
    np.save(tmp_path / "part.npy", whole[:3, :3])
    confusion = ["classes", packed, "--method", "confusion", "-n", 2, "-o", tmp_path / "s.json", "--from"]
    for name in ("whole.npy", "part.npy"):
        run_subset(*confusion, tmp_path / name)
        groups = SubsetFile.load(tmp_path / "s.json").groups
        assert {group.members: group.value for group in groups} == {("bird", "oak"): 7, ("dog",): 0}
    np.save(tmp_path / "other.npy", np.zeros((4, 4)))
    run_subset(*confusion, tmp_path / "other.npy", code=1)


def test_labels_of_classes_that_no_tree_has_are_merged_by_size_and_that_is_said(tmp_path, capsys):
    (tmp_path / "list.txt").write_text("qwx1\nqwx2\nqwx3\nqwx4\n")
    (tmp_path / "table.csv").write_text("class,label\nqwx1,a\nqwx2,b\nqwx3,c\nqwx4,c\n")
    coarse = ["--method", "coarse", "--from", tmp_path / "table.csv", "-n", 2, "-o", tmp_path / "s.json"]
    run_subset("classes", tmp_path / "list.txt", *coarse)
    assert classes(tmp_path / "s.json") == {"a + b": ("qwx1", "qwx2"), "c": ("qwx3", "qwx4")}
    told = capsys.readouterr().err
    assert (
        "sizes alone decide: class 'qwx1': expected a wnid or a noun of WordNet 3.0, found neither. Give"
        in told
    )
    pairs = "child,parent\nqwx1,x\nqwx2,y\nqwx3,x\nqwx4,x\n"
    (tmp_path / "own.csv").write_text(pairs)
    LabelTree.from_file(tmp_path / "own.csv").save(tmp_path / "tree.json")
    run_subset("classes", tmp_path / "list.txt", *coarse, "--tree", tmp_path / "tree.json")
    assert classes(tmp_path / "s.json") == {"a + c": ("qwx1", "qwx3", "qwx4"), "b": ("qwx2",)}


def test_images_are_as_many_of_each_class_or_a_problem(tmp_path, packed, chosen, capsys):
    run_subset("images", packed, "--classes", chosen, "-m", 3, "-o", tmp_path / "s.json")
    keys = SubsetFile.load(tmp_path / "s.json").keys
    stored = samples(packed / "train")
    assert set(keys) < set(stored)
    counts = Counter("dog" if key.startswith("dog") else "creature" for key in keys)
    assert counts == {"dog": 3, "creature": 3}
    assert capsys.readouterr().err.count("drown in noise") == 1  # although the file of classes says so, too
    run_subset("images", packed, "-m", 4, "-o", tmp_path / "no.json", code=1)
    told = capsys.readouterr().err
    assert "found fewer of 1 (oak 3). Take groups of classes" in told
    assert "(--allow-fewer)" in told
    assert not (tmp_path / "no.json").exists()
    run_subset("images", packed, "-m", 4, "--allow-fewer", "-o", tmp_path / "s.json")
    assert len(SubsetFile.load(tmp_path / "s.json").keys) == 4 + 4 + 3


def test_stratified_images_are_as_many_of_each_fine_class(tmp_path, packed, chosen):
    for seed in range(5):
        arguments = ["-m", 6, "--method", "stratified", "--seed", seed, "-o", tmp_path / "s.json"]
        run_subset("images", packed, "--classes", chosen, *arguments)
        keys = SubsetFile.load(tmp_path / "s.json").keys
        assert Counter(key.partition("_")[0] for key in keys) == {"dog": 6, "bird": 3, "oak": 3}


def write_scores(file, manifest, rows):
    header = score_header(dataset="train", fingerprint=manifest.fingerprint, seed=7, samples=len(rows))
    lines = [score_line(key, 0, value, 0) for key, value in rows]
    file.write_text(json.dumps(header) + "\n" + "".join(lines))


def test_difficulties_are_capped_as_in_the_example(tmp_path, packed, capsys):
    (tmp_path / "one.yaml").write_text("all: [bird, dog, oak]\n")
    run_subset(
        "classes", packed, "--method", "file", "--from", tmp_path / "one.yaml", "-o", tmp_path / "one.json"
    )
    keys = sorted(samples(packed / "train"))  # 13: 8 easy, 4 in the middle, 1 hard
    percent = dict(zip(keys, [99] * 8 + [50] * 4 + [3], strict=True))
    scores = tmp_path / "scores.jsonl"
    write_scores(
        scores, Manifest.load(packed / "train"), [(key, value / 100) for key, value in percent.items()]
    )
    options = ["--classes", tmp_path / "one.json", "--method", "difficulty", "--scores", scores]
    for cap in ("class", "set"):
        for wanted, expected in (
            (7, {99: 3, 50: 3, 3: 1}),
            (9, {99: 4, 50: 4, 3: 1}),
            (13, {99: 8, 50: 4, 3: 1}),
        ):
            run_subset("images", packed, *options, "-m", wanted, "--cap", cap, "-o", tmp_path / "s.json")
            found = SubsetFile.load(tmp_path / "s.json")
            assert Counter(percent[key] for key in found.keys) == expected
    assert found.image_method["scores"]["name"] == "scores.jsonl"
    assert found.image_method["scores"]["seed"] == 7
    assert "the scores are of the data set's own 5 classes, not of the 1 of --classes" in found.notes
    assert found.image_method["cap"] == "set"
    table = scores.with_suffix(".csv")  # that says nothing of its classes
    cells = "".join(f"{key},{value / 100},0,1\n" for key, value in percent.items())
    table.write_text(f"key,score,half,trained_on\n{cells}")
    run_subset("images", packed, *options[:-1], table, "-m", 7, "-o", tmp_path / "s.json")
    assert not any("the scores" in note for note in SubsetFile.load(tmp_path / "s.json").notes)
    run_subset("images", packed, *options, "-m", 8, "-o", tmp_path / "s.json")
    found = Counter(percent[key] for key in SubsetFile.load(tmp_path / "s.json").keys)
    assert found in ({99: 4, 50: 3, 3: 1}, {99: 3, 50: 4, 3: 1})

    write_scores(scores, Manifest.load(packed / "train"), [(keys[0], 0.5), (keys[1], 0.5)])
    capsys.readouterr()
    run_subset("images", packed, *options, "-m", 2, "-o", tmp_path / "s.json")
    assert set(SubsetFile.load(tmp_path / "s.json").keys) == set(keys[:2])
    assert "not chosen from: 11 images without a score" in capsys.readouterr().err
    write_scores(scores, Manifest.load(packed / "train"), [(keys[0], 0.5), ("cow_1", 0.5)])
    run_subset("images", packed, *options, "-m", 1, "-o", tmp_path / "s.json", code=1)
    assert "found 1 of 2 whose keys it does not have" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["classes", "SET", "--method", "random"], "expected a number of classes, found none"),
        (["classes", "SET", "--method", "random", "-n", 2, "--from", "x.csv"], "'random': expected no file"),
        (["classes", "SET", "--method", "coarse", "-n", 2], "method 'coarse': expected a file, found None"),
        (["classes", "SET", "--method", "random", "-n", 2, "--exact"], "expected method 'siblings', found"),
        (["classes", "SET", "--method", "random", "--config", "9x9"], "expected one of 200x500"),
        (["classes", "SET", "--method", "random", "--config", "10x5000", "-n", 2], "found both"),
        (["classes", "nowhere", "--method", "random", "-n", 2], "expected a file of class names"),
        (["classes", "SET", "--method", "coarse", "--from", "x.csv", "--meaning", "a"], "expected NAME=CLASS"),
        (["classes", "SET", "--method", "random", "-n", 2, "--seed", -1], "expected seed as an int from 0"),
        (["images", "SET"], "expected --per-class or --config, found neither"),
        (["images", "SET", "-m", 1, "--method", "difficulty"], "expected scores, found None"),
        (["images", "SET", "-m", 1, "--scores", "x.jsonl"], "method 'random': expected no scores"),
        (["images", "SET", "-m", 1, "--cap", "set"], "expected the method 'difficulty', found 'random'"),
    ],
)  # fmt: skip
def test_a_wrong_call_says_why(tmp_path, packed, capsys, arguments, message):
    arguments = [packed if word == "SET" else word for word in arguments]
    run_subset(*arguments, "-o", tmp_path / "s.json", code=2)
    assert message in capsys.readouterr().err
    assert not (tmp_path / "s.json").exists()


def test_subsets_of_a_data_set_behind_a_url_are_written_behind_one(tmp_path, packed):
    place = f"memory://{tmp_path.name}"
    copy = fsspec.filesystem("memory")
    copy.put(str(packed / "train"), f"/{tmp_path.name}/train", recursive=True)
    try:
        for folder in (place, tmp_path / "out"):
            classes = ["--method", "groups", "-n", 2, "--seed", 3, "-o", f"{folder}/classes.json"]
            source = f"{place}/train" if folder == place else packed / "train"
            run_subset("classes", source, *classes)
            run_subset(
                "images", source, "--classes", f"{folder}/classes.json", "-m", 2, "-o", f"{folder}/s.json"
            )
        one, other = (SubsetFile.load(f"{folder}/s.json") for folder in (place, tmp_path / "out"))
        assert one.fingerprint == other.fingerprint
        assert len(one.keys) == 4
    finally:
        copy.rm(f"/{tmp_path.name}", recursive=True)


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_every_option_of_the_guide_exists(words, capsys):
    name = words[: 2 if words[0] == "subset" else 1]
    with pytest.raises(SystemExit, match="0"):
        main([*name, "--help"])
    known = capsys.readouterr().out
    for option in (word for word in words if word.startswith("-")):
        assert re.search(rf"(^|[\s,\[]){option}\b", known), option


@pytest.mark.shared
def test_the_commands_of_the_guide_about_imagenets_class_list_run(shared_data, tmp_path, monkeypatch):
    pytest.importorskip("timm")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "groups.yaml").write_text(
        "dog: [n02085620, n02085782]\ncat: [n02123045, n02123159]\nn02504458:\n"
    )
    assert "dog: [n02085620, n02085782]\n    cat: [n02123045, n02123159]\n    n02504458:\n" in GUIDE
    for table in shared_data.glob("imagenet_categories*.csv"):
        (tmp_path / table.name).symlink_to(table)
    expected = {"groups": 67, "siblings": 200, "coarse": 67, "coarse20": 20, "mine": 3}
    commands = [words for words in COMMANDS if words[:3] == ["subset", "classes", "imagenet-1k"]]
    assert len(commands) == 6
    for words in commands:
        assert main(words) == 0
        name = words[words.index("-o") + 1]
        assert len(SubsetFile.load(name).groups) == expected[name.removesuffix(".json")]


@pytest.mark.shared
@pytest.mark.parametrize(
    "arguments",
    [
        ["random", "-n", "20"],
        ["groups", "-n", "20"],
        ["siblings", "-n", "20"],
        ["coarse", "-n", "20", "--from", "DATA/imagenet_categories_synset.csv"],
        ["file", "--from", "groups.yaml"],
        ["confusion", "-n", "20", "--from", "confusion.npy"],
    ],
    ids=lambda arguments: arguments[0],
)
def test_real_photographs_are_grouped_by_every_method(shared_data, tmp_path, monkeypatch, arguments):
    monkeypatch.chdir(tmp_path)
    photos = shared_data / "photos"
    wnids = sorted(path.name for path in photos.iterdir() if path.is_dir())
    parts = [wnids[i::20] for i in range(20)]
    lines = [f"part {i}: [{', '.join(part)}]\n" for i, part in enumerate(parts)]
    (tmp_path / "groups.yaml").write_text("".join(lines))
    np.save(tmp_path / "confusion.npy", np.random.default_rng(0).random((300, 300)))
    words = [word.replace("DATA", str(shared_data)) for word in arguments]
    run_subset("classes", photos, "--method", *words, "-o", "s.json")
    subset = SubsetFile.load("s.json")
    assert len(subset.groups) == 20
    num = 20 if arguments[0] == "random" else 300
    assert len(subset.class_of) == num
