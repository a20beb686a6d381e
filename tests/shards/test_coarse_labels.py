"""Coarse labels from tables: the real ones, what they may not say, and adjusting their number."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from softshard.shards import DataError, UsageError
from softshard.shards.classes import load_class_list
from softshard.shards.coarse_labels import SHARED_NAMES, adjust_number, read_coarse_labels
from softshard.shards.subset_file import ClassGroup
from softshard.shards.wordnet import wordnet

NAMES = ("ant", "bee", "cat", "dog")
WNIDS = ("n02012849", "n03126707", "n01443537")  # crane (bird), crane (machine), goldfish
MEANINGS = {
    "crane": ["n03126707"],
    "crane (bird)": ["n02012849"],
    "maillot": ["n03710637", "n03710721"],
}


def read(tmp_path, text, names=NAMES, name="table.csv", **options):
    file = tmp_path / name
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    return read_coarse_labels(str(file), names, **options)


def as_map(labels):
    return {group.name: group.members for group in labels.groups}


@pytest.mark.parametrize(
    "text",
    [
        "class,label\nant,bug\nbee,bug\ncat,pet\ndog,pet\n",
        "\ufeffclass,label\r\nant,bug\r\nbee,bug\r\n\r\ncat,pet\r\ndog,pet\r\n",
        "index,synset,words,categories\n0,ant,x,bug\n1,bee,,bug\n2,cat,y,pet\n3,dog,z,pet\n",
        "category,labels,,\nbug,bee,ant,\npet,cat,dog\n",
        "\ufeffCategory,Labels,,\r\nbug,bee,ant,\r\npet,cat,dog,\r\n",
    ],
)
def test_both_forms_are_read_with_any_line_ends_and_a_byte_order_mark(tmp_path, text):
    labels = read(tmp_path, text)
    assert as_map(labels) == {"bug": ("ant", "bee"), "pet": ("cat", "dog")}
    assert labels.uncovered == ()
    assert labels.num_ignored == 0


def test_classes_without_a_label_and_labels_of_other_classes_are_told(tmp_path):
    labels = read(tmp_path, "class,label\nant,bug\nn01443537,fish\n")
    assert as_map(labels) == {"bug": ("ant",)}
    assert labels.uncovered == ("bee", "cat", "dog")
    assert labels.num_ignored == 1


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("class,label\nant,bug,more\nbee\n", r"line 2: expected 2 cells, found 3\n.*line 3: expected 2 cells, found 1"),
        ("class,label\nant,bug\nant,bug\n", r"line 3: 'ant' \(ant\) has the label 'bug'; it stands on line 2 already"),
        ("class,label\nant,bug\nant,pet\n", r"line 3: .* has the label 'pet'; it stands on line 2 already, with 'bug'"),
        ("class,label\nant,\n", r"line 2: expected a class and a label, found an empty cell"),
        ("class,label\nqwxyz,bug\n", r"line 2: 'qwxyz': expected the name or wnid of a class"),
        ("class,label\nn99999999,bug\n", r"line 2: 'n99999999': expected the name or wnid of a class"),
        ("what,ever\nant,bug\n", r"line 1: expected a header with one of"),
        ("category,labels\nbug\n", r"line 2: expected a label and its classes, found 'bug' alone"),
        ("category,labels\nbug,ant\nbug,bee\n", r"line 3: 'bug' stands on line 2 already"),
        ("", r"found an empty file"),
        ("class,label\nn01443537,fish\n", r"expected labels of the 4 classes \(the first is 'ant'\), found none"),
        (b"class,label\n\xff\xfe,x\n", r"expected UTF-8 text, found byte 0xff"),
    ],
)  # fmt: skip
def test_a_bad_table_is_refused_with_its_lines(tmp_path, text, message):
    with pytest.raises(DataError, match=f"(?s){message}"):
        read(tmp_path, text)


def test_a_table_of_another_ending_and_a_meaning_of_nothing_are_wrong_calls(tmp_path):
    with pytest.raises(UsageError, match=r"expected a table \(\.csv or \.tsv\)"):
        read(tmp_path, "class,label\nant,bug\n", name="table.txt")
    with pytest.raises(UsageError, match=r"found meanings of \['cow'\], which it does not have"):
        read(tmp_path, "class,label\nant,bug\n", meanings={"cow": ["ant"]})


def test_a_name_of_two_classes_is_never_guessed(tmp_path):
    text = "category,labels,\nvehicle,crane,\nfish,goldfish\n"
    with pytest.raises(DataError, match=r"'crane' may be any of n02012849 .* or --meaning 'crane=n03126707'"):
        read(tmp_path, text, WNIDS)
    # Where a part of ImageNet has one of them alone, the table may mean the other.
    with pytest.raises(DataError, match=r"'crane' may be any of"):
        read(tmp_path, text, WNIDS[0:1] + WNIDS[2:])
    labels = read(tmp_path, text, WNIDS, meanings={"crane": ["n03126707"]})
    assert as_map(labels) == {"vehicle": ("n03126707",), "fish": ("n01443537",)}
    assert labels.uncovered == ("n02012849",)
    with pytest.raises(DataError, match=r"expected it to mean a class, found 'n00000000'"):
        read(tmp_path, text, WNIDS, meanings={"crane": ["n00000000"]})


def test_the_names_that_two_classes_of_imagenet_share_are_known():
    pytest.importorskip("timm")
    first: dict[str, list[str]] = {}
    for wnid in load_class_list("imagenet-1k"):
        first.setdefault(wordnet().lemmas(wnid)[0], []).append(wnid)
    assert {name: tuple(wnids) for name, wnids in first.items() if len(wnids) > 1} == SHARED_NAMES


@pytest.mark.shared
def test_the_real_tables_agree_once_three_names_are_told(shared_data):
    names = load_class_list("imagenet-1k")
    by_synset = read_coarse_labels(str(shared_data / "imagenet_categories_synset.csv"), names)
    assert len(by_synset.groups) == 67
    assert sum(len(group.members) for group in by_synset.groups) == 1000
    assert not by_synset.uncovered
    by_name = str(shared_data / "imagenet_categories.csv")
    with pytest.raises(DataError) as error:
        read_coarse_labels(by_name, names)
    told = Counter(line.split("'")[1] for line in str(error.value).splitlines())
    assert told == {"crane": 1, "crane (bird)": 1, "maillot": 2}
    assert as_sets(read_coarse_labels(by_name, names, MEANINGS)) == as_sets(by_synset)


def as_sets(labels):
    return {group.name: set(group.members) for group in labels.groups}


PATHS = {
    "tench": ("entity", "animal", "fish", "tench"),
    "shark": ("entity", "animal", "fish", "shark"),
    "cat": ("entity", "animal", "mammal", "cat"),
    "dog": ("entity", "animal", "mammal", "dog"),
    "wolf": ("entity", "animal", "mammal", "wolf"),
    "cup": ("entity", "thing", "cup"),
    "pan": ("entity", "thing", "pan"),
}
COARSE = (
    ClassGroup("swims", ("tench",)),
    ClassGroup("bites", ("shark",)),
    ClassGroup("walks", ("cat", "dog", "wolf")),
    ClassGroup("cooks", ("cup", "pan")),
)


def test_too_many_labels_are_merged_with_the_nearest_in_the_tree():
    groups, notes = adjust_number(COARSE, 2, PATHS)
    assert {group.name: group.members for group in groups} == {
        "swims + bites + walks": ("tench", "shark", "cat", "dog", "wolf"),
        "cooks": ("cup", "pan"),
    }
    assert notes == ("4 labels became 2: the smallest was merged with the nearest, again and again",)


def test_too_few_labels_are_split_along_the_tree():
    groups, notes = adjust_number(COARSE[2:], 4, PATHS)
    assert [(group.name, group.members) for group in groups] == [
        ("walks 1", ("cat", "dog")),
        ("walks 2", ("wolf",)),
        ("cooks 1", ("cup",)),
        ("cooks 2", ("pan",)),
    ]
    assert notes == ("'walks' was split into 2", "'cooks' was split into 2")


@given(st.data())
def test_adjusting_gives_exactly_as_many_and_keeps_every_class_once(data):
    names = data.draw(st.lists(st.sampled_from(sorted(PATHS)), min_size=1, unique=True))
    label_of = {name: data.draw(st.sampled_from("uvw")) for name in names}
    groups = tuple(
        ClassGroup(label, tuple(name for name in names if label_of[name] == label))
        for label in sorted(set(label_of.values()))
    )
    num = data.draw(st.integers(1, len(names)))
    adjusted, _ = adjust_number(groups, num, PATHS)
    assert len(adjusted) == len({group.name for group in adjusted}) == num
    assert sorted(member for group in adjusted for member in group.members) == sorted(names)


def test_more_labels_than_classes_cannot_be():
    with pytest.raises(UsageError, match="expected 1 to 7 classes"):
        adjust_number(COARSE, 8, PATHS)
