"""Choosing classes: at random, in random groups, from a file, by a confusion matrix."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from softshard.shards import DataError, UsageError
from softshard.shards.choose_classes import (
    confused_classes,
    groups_of_file,
    random_classes,
    random_groups,
)
from softshard.shards.confusion_groups import group_sizes

NAMES = ("ant", "bee", "cat", "dog", "elk")


def names_of(num):
    return tuple(f"class{i}" for i in range(num))


def members(groups):
    return [member for group in groups for member in group.members]


def test_1000_classes_in_67_groups_are_62_of_15_and_5_of_14():
    groups = random_groups(names_of(1000), 67, seed=0)
    assert [len(group.members) for group in groups] == [15] * 62 + [14] * 5
    assert sorted(members(groups)) == sorted(names_of(1000))


@given(st.integers(1, 300), st.data(), st.integers(0, 2**64 - 1))
def test_random_groups_partition_the_classes_and_a_seed_gives_the_same_again(num, data, seed):
    parts = data.draw(st.integers(1, num))
    groups = random_groups(names_of(num), parts, seed)
    assert len(groups) == len({group.name for group in groups}) == parts
    assert sorted(members(groups)) == sorted(names_of(num))
    sizes = [len(group.members) for group in groups]
    assert tuple(sizes) == group_sizes(num, parts)
    assert max(sizes) - min(sizes) <= 1
    assert groups == random_groups(names_of(num), parts, seed)


@given(st.integers(2, 300), st.data(), st.integers(0, 2**64 - 1))
def test_random_classes_are_exactly_as_many_and_part_of_a_larger_choice(num, data, seed):
    few = data.draw(st.integers(1, num - 1))
    chosen, more = (random_classes(names_of(num), n, seed) for n in (few, few + 1))
    assert len(set(members(chosen))) == few
    assert set(members(chosen)) < set(members(more))
    assert [group.members for group in chosen] == [(group.name,) for group in chosen]
    places = [int(name.removeprefix("class")) for name in members(chosen)]
    assert places == sorted(places)


def test_another_seed_chooses_other_classes_and_each_is_as_likely():
    chosen = [members(random_classes(names_of(20), 10, seed)) for seed in range(400)]
    counts = np.array([sum(name in names for names in chosen) for name in names_of(20)])  # 200 +- 10 each
    assert counts.sum() == 4000
    assert 150 < counts.min() <= counts.max() < 250


@pytest.mark.parametrize("num", [0, 6, -1])
def test_more_classes_than_there_are_is_a_wrong_call(num):
    for choose in (random_classes, random_groups):
        with pytest.raises(UsageError, match=r"expected 1 to 5 classes, as many as have images, found"):
            choose(NAMES, num, 0)


GROUPS = {"pet": ("cat", "dog"), "bee": ("bee",), "wild": ("elk",)}


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("groups.yaml", "pet: [cat, dog]\nbee:\nwild: elk\n"),
        ("groups.yml", "\ufeffpet:\r\n  - cat\r\n  - dog\r\nbee:\r\nwild:\r\n  elk:\r\n"),
        ("groups.csv", "\ufeffchild,parent\r\ncat,pet\r\ndog,pet\r\nbee,\r\nelk,wild\r\n"),
    ],
)
def test_a_hand_written_file_with_mark_and_any_line_ends_gives_its_groups(tmp_path, name, text):
    file = tmp_path / name
    file.write_bytes(text.encode())
    assert {group.name: group.members for group in groups_of_file(str(file), NAMES)} == GROUPS


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("pet: [cat, cow, pig]\n", r"expected names of the 5 classes, found 2 others: 'cow', 'pig'"),
        ("pet: [cat]\nwild: [cat]\n", r"'cat' stands in 'pet' and in 'wild'"),
        ("animal:\n  pet: [cat]\n", r"'pet' is a group inside the group 'animal'"),
        ("pet: [cat, cat]\n", r"line 1: 'cat' stands below 'pet' on line 1 already"),
        ("", r"expected classes, found none"),
        ("a: &x [cat]\nb: *x\n", r"aliases are not followed"),
        ("pet: [cat\n", r"expected YAML of nested names"),
    ],
)
def test_a_file_that_says_no_groups_is_refused_with_what_is_wrong(tmp_path, text, message):
    file = tmp_path / "groups.yaml"
    file.write_text(text)
    with pytest.raises(DataError, match=message):
        groups_of_file(str(file), NAMES)


def test_groups_of_confused_classes_have_their_values():
    confusion = np.zeros((4, 4))
    confusion[0, 2] = confusion[2, 0] = 3
    confusion[1, 3] = 1
    groups = confused_classes(names_of(4), confusion, 2, seed=0)
    assert {group.members: group.value for group in groups} == {
        ("class0", "class2"): 6,
        ("class1", "class3"): 1,
    }
