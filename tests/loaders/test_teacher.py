"""The stored distillation teacher (`kd`): checked, read, and refused where it is about another tree."""

import dataclasses
import re

import numpy as np
import pytest
import torch
from taught_sets import with_teacher

from softshard.loaders import Augment, Faults, Loader
from softshard.shards import (
    DataError,
    LabelTree,
    Manifest,
    ReshardOptions,
    UsageError,
    relabel,
    reshard,
    verify,
)
from softshard.shards.teacher_levels import encode_teacher_levels, num_kept


def make(dataset, **options):
    defaults = {"batch_size": 16, "augment": Augment(size=16), "dtype": "uint8", "last_batch": "pad"}
    return Loader(dataset, **{**defaults, "num_threads": 2, "teacher": True, **options})


@pytest.fixture(scope="module")
def tree(packed):
    return LabelTree.load(packed / "tree.json")


@pytest.fixture(scope="module")
def taught(packed, tree, tmp_path_factory):
    """Folder of a data set with a teacher, and what it says by key."""
    folder = tmp_path_factory.mktemp("taught") / "train"
    said = with_teacher(packed, folder, tree.level_sizes)
    return folder, said


def test_the_teacher_stands_last_in_a_sample_and_verifies(taught):
    folder, _ = taught
    assert Manifest.load(folder).components[-1] == "kd"
    assert verify(folder).problems == []


def test_the_batch_says_what_the_teacher_said(taught, tree):
    folder, said = taught
    with make(folder) as loader:
        batches = list(loader)
    assert len(said) == sum(int(batch.valid.sum()) for batch in batches) == 105
    width = sum(num_kept(tree.level_sizes))
    for batch in batches:
        ids, probabilities = batch.teacher
        assert (ids.dtype, probabilities.dtype) == (torch.int64, torch.float16)
        assert ids.shape == probabilities.shape == (16, width)
        assert batch.to_dict()["teacher"] is batch.teacher
        for slot, key in enumerate(batch.keys):
            expected = said[key] if key else (np.zeros(width), np.zeros(width))
            assert ids[slot].tolist() == expected[0].tolist()
            assert probabilities[slot].tolist() == expected[1].tolist()
    assert not batches[-1].valid.all()


def test_a_batch_of_padding_alone_has_a_teacher_of_zeros(taught):
    # 105 samples in steps of 3 x 8: the last rank's part of the fifth step is padding.
    with make(taught[0], batch_size=8, rank=2, world_size=3, targets="relabel") as loader:
        batches = list(loader)
    assert not batches[-1].valid.any()
    assert not batches[-1].teacher.ids.any()
    assert not batches[-1].teacher.probabilities.any()


def test_without_asking_there_is_no_teacher(taught):
    with make(taught[0], teacher=False) as loader:
        assert next(iter(loader)).teacher is None


def test_a_teacher_is_refused_where_there_is_none_or_the_labels_have_another_tree(packed, taught, tree):
    with pytest.raises(
        UsageError,
        match="expected a stored teacher to distil from, a label tree and the component 'kd', found",
    ):
        make(packed)
    other = relabel(tree.classes, ["cat", "dog"], old_tree=tree)
    message = f"over the tree {tree.fingerprint[:12]}, whose levels .*, found {other.tree.fingerprint[:12]}"
    with pytest.raises(UsageError, match=message):
        make(taught[0], labels=other)
    with pytest.raises(UsageError, match="whose levels the stored teacher is about, found none"):
        make(taught[0], labels=relabel(tree.classes, ["cat", "dog"]))
    # Merging into ancestors among all classes keeps the tree.
    merged = dataclasses.replace(
        relabel(tree.classes, tree, old_tree=tree),
        class_map=np.int32([5, 5, *range(2, 9)]),
        merged=(("cat", "mammal"), ("dog", "mammal")),
    )
    with make(taught[0], labels=merged) as loader:
        assert next(iter(loader)).teacher is not None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda value: value[:-1] + bytes([value[-1] ^ 1]), "expected checksum [0-9a-f]{8}, found another"),
        (
            lambda value: encode_teacher_levels([0, 0], [0.5, 0.5], [2, 4]),
            "expected 3 kept classes on 3 levels, found 2 on 2; the teacher had another tree",
        ),
        (
            lambda value: encode_teacher_levels([0, 0, 0], [0.5, 0.5, 0.5], [2, 4, 3]),
            r"expected levels of \[2, 3, 4\] classes, found \[2, 4, 3\]",
        ),
    ],
    ids=["checksum", "levels", "sizes"],
)
def test_a_bad_teacher_is_named_by_loader_and_verify(packed, tree, tmp_path, change, message):
    sizes = tree.level_sizes
    folder = tmp_path / "bad"
    with_teacher(packed, folder, sizes, lambda number, value: change(value) if number == 20 else value)
    (problem,) = verify(folder).problems
    with make(folder, shuffle=False, faults=Faults(max_bad=0)) as loader, pytest.raises(DataError) as raised:
        list(loader)
    assert problem == f"{folder}/{raised.value}"
    assert "component 'kd'" in problem
    assert re.search(message, problem)


def test_reshard_keeps_a_teacher_with_its_tree_and_refuses_it_with_another(taught, tree, tmp_path):
    folder, _ = taught
    reshard([folder], tmp_path / "same", ReshardOptions(shard_samples=50, tree=tree))
    assert verify(tmp_path / "same").problems == []
    other = LabelTree.from_table(
        tree.classes, [(name, "cat" if i else "") for i, name in enumerate(tree.classes)]
    )
    for options in (ReshardOptions(drop=["hier.npy"]), ReshardOptions(tree=other)):
        with pytest.raises(
            DataError, match=r"whose levels its component 'kd' is about, found .* Add: --drop kd"
        ):
            reshard([folder], tmp_path / "other", options)
    reshard([folder], tmp_path / "bare", ReshardOptions(drop=["hier.npy", "kd"]))
    assert verify(tmp_path / "bare").problems == []


def test_verify_wants_a_tree_for_a_teacher(packed, tree, tmp_path):
    reshard([packed], tmp_path / "flat", ReshardOptions(drop=["hier.npy", "lmap"]))
    with_teacher(tmp_path / "flat", tmp_path / "taught", tree.level_sizes)
    (problem,) = verify(tmp_path / "taught").problems
    assert "expected the label tree whose levels the component 'kd' is about, found none. Run: " in problem
