"""Labels at read time: another tree, class subset or order, without rewriting a shard."""

import shutil
from collections import Counter
from functools import partial

import numpy as np
import pytest
import restoring
import torch
from label_map_oracles import roi_align_dense

from softshard.loaders import Faults, LabelPooling
from softshard.shards import (
    DataError,
    LabelTree,
    Manifest,
    Relabelling,
    UsageError,
    decode_label_map,
    read_shard,
    relabel,
)
from softshard.shards.components import decode_class, decode_levels
from softshard.shards.manifest import load_sidecar, save_sidecar

# The data set's classes: cat dog crow gull oak mammal bird animal plant. Images are of cat, dog, crow, gull, oak,
# bird and plant, 15 each.
SUBSET = ["oak", "bird", "cat"]


make = partial(restoring.make, seed=5, lanes=1)


def slots(batches):
    """Key to what the batch says of the sample, by name; no key comes twice."""
    found = {}
    for batch in batches:
        for slot in np.flatnonzero(batch.valid.numpy()).tolist():
            assert batch.keys[slot] not in found
            found[batch.keys[slot]] = {
                name: value[slot] for name, value in batch.to_dict().items() if value is not None
            }
    return found


@pytest.fixture(scope="module")
def own_tree(packed):
    return LabelTree.load(packed / "tree.json")


@pytest.fixture(scope="module")
def whole(packed):
    """What the loader says of every sample with the data set's own labels."""
    with make(packed) as loader:
        return slots(loader)


@pytest.fixture(scope="module")
def class_of(plain_samples, own_tree):
    """Key to the name of the sample's class."""
    return {
        sample.key: own_tree.classes[decode_class(sample.parts["cls"], "test")] for sample in plain_samples
    }


@pytest.fixture(scope="module")
def lmaps(plain_samples):
    return {sample.key: sample.parts["lmap"] for sample in plain_samples}


def plain_target(lmap, crop, class_map, num_classes):
    """The map's entries under their new classes, those of one class as log(sum(exp)); RoIAlign; softmax."""
    scores, ids = decode_label_map(lmap)
    dense = np.zeros((num_classes, *scores.shape[1:]), np.float32)
    for row, column in np.ndindex(*scores.shape[1:]):
        entries = {}
        for score, old in zip(scores[:, row, column].tolist(), ids[:, row, column].tolist(), strict=True):
            if class_map[old] >= 0:
                entries.setdefault(int(class_map[old]), []).append(score)
        for new, values in entries.items():
            dense[new, row, column] = np.logaddexp.reduce(np.float64(values))
    pooled = roi_align_dense(torch.from_numpy(dense)[None], crop.numpy()[None])
    return torch.softmax(pooled.flatten(), dim=0)


def label_spaces():
    """Name to a function from the data set's tree to what it is read with."""
    return {
        "names": lambda tree: SUBSET,
        "another order": lambda tree: tree.classes[::-1],
        "merged": lambda tree: relabel(
            tree.classes, ["bird", "plant", "cat", "dog"], old_tree=tree, to_ancestor=True
        ),
        "inner nodes": lambda tree: relabel(
            tree.classes, ["cat", "dog", "gull", "crow"], old_tree=tree, inner="branching"
        ),
        "no tree": lambda tree: relabel(tree.classes, SUBSET),
        "another tree of the classes": lambda tree: LabelTree.from_table(
            tree.classes, [(tree.classes[i], "cat" if i > 3 else "") for i in range(9)]
        ),
        "a tree of all paths": lambda tree: LabelTree.from_table(
            ["gull", "crow", "oak"],
            [("gull", "flier"), ("gull", "swimmer"), ("crow", "flier"), ("oak", "")],
            parents="all-paths",
        ),
    }


@pytest.mark.parametrize("name", label_spaces())
def test_kept_samples_get_new_labels_and_are_otherwise_what_they_were(
    packed, own_tree, whole, class_of, lmaps, name
):
    labels = label_spaces()[name](own_tree)
    plain = (
        labels if isinstance(labels, Relabelling) else relabel(own_tree.classes, labels, old_tree=own_tree)
    )
    with make(packed, labels=labels) as loader:
        found = slots(loader)
        assert loader.class_names == plain.class_names
        assert loader.num_classes == len(plain.class_names)
        assert (loader.tree and loader.tree.fingerprint) == (plain.tree and plain.tree.fingerprint)
        assert loader.fingerprint == loader.manifest.fingerprint
    new_class = {name: int(plain.class_map[i]) for i, name in enumerate(own_tree.classes)}
    assert found.keys() == {key for key, name in class_of.items() if new_class[name] >= 0}
    assert loader.num_samples == len(found) > 0
    for key, sample in found.items():
        for same in ("images", "crops", "flips"):
            assert torch.equal(sample[same], whole[key][same])
        assert sample["classes"] == new_class[class_of[key]]
        if plain.tree is None:
            assert "levels" not in sample
        else:
            assert sample["levels"].tolist() == plain.tree.vectors()[sample["classes"]].tolist()
        target = plain_target(lmaps[key], sample["crops"], plain.class_map, loader.num_classes)
        torch.testing.assert_close(sample["targets"], target, rtol=1e-5, atol=1e-5)


def test_labels_equal_to_the_data_sets_own_change_no_bit(packed, own_tree):
    with make(packed) as loader:
        expected, state = list(loader), loader.state_dict()
    for labels in (own_tree, own_tree.classes, relabel(own_tree.classes, own_tree)):
        with make(packed, labels=labels) as loader:
            found = list(loader)
            assert loader.state_dict() == state
        for one, other in zip(found, expected, strict=True):
            assert one.keys == other.keys
            tensors = [name for name, value in other.to_dict().items() if isinstance(value, torch.Tensor)]
            assert len(tensors) == 7
            for name in tensors:
                assert torch.equal(getattr(one, name), getattr(other, name)), name


@pytest.mark.parametrize("lanes", [1, 2])
@pytest.mark.parametrize("last_batch", ["pad", "drop"])
def test_every_world_serves_each_kept_sample_once_in_equal_steps(packed, class_of, lanes, last_batch):
    kept = sorted(key for key, name in class_of.items() if name in SUBSET)

    def epochs(world_size):
        options = {"batch_size": 12 // world_size, "world_size": world_size, "lanes": lanes}
        ranks = []
        for rank in range(world_size):
            with make(
                packed, labels=SUBSET, targets="none", rank=rank, last_batch=last_batch, **options
            ) as loader:
                assert loader.num_samples == 45
                assert loader.num_left_out == (45 - 36 if last_batch == "drop" else 0)
                ranks.append([list(loader) for _ in range(2)])
                assert {len(epoch) for epoch in ranks[-1]} == {len(loader)}
        return [
            [[key for batch in step for key in batch.keys] for step in zip(*parts, strict=True)]
            for parts in zip(*ranks, strict=True)
        ]

    alone = epochs(1)
    assert alone[0] != alone[1]
    for epoch in alone:
        counts = Counter(key for step in epoch for key in step if key)
        assert set(counts.values()) == {1}
        assert len(counts) == (36 if last_batch == "drop" else 45)
        assert set(counts) <= set(kept)
    for world_size in (2, 3, 4, 6):
        assert epochs(world_size) == alone


def test_a_class_map_of_the_pooling_comes_before_the_labels(packed, lmaps):
    # The teacher called cats dogs and dogs cats, and its crows count for nothing.
    with make(packed, labels=SUBSET, targets=LabelPooling(class_map=[1, 0, -1, *range(3, 9)])) as loader:
        found = slots(loader)
    composed = np.array([-1, 2, -1, -1, 0, -1, 1, -1, -1])  # its dogs are cat, 2 of the three classes
    for key, sample in found.items():
        target = plain_target(lmaps[key], sample["crops"], composed, 3)
        torch.testing.assert_close(sample["targets"], target, rtol=1e-5, atol=1e-5)
    with pytest.raises(UsageError, match="expected a class map to the data set's classes, below 9, which"):
        make(packed, labels=SUBSET, targets=LabelPooling(class_map=[9] * 9))


def test_original_targets_are_the_new_classes(packed):
    with make(packed, labels=SUBSET, targets="original") as loader:
        for sample in slots(loader).values():
            assert sample["targets"].tolist() == np.eye(3)[sample["classes"]].tolist()


@pytest.mark.parametrize(
    ("labels", "error", "message"),
    [
        ("cat", UsageError, "expected labels as a LabelTree, class names or a Relabelling, found 'cat'"),
        (3, UsageError, "expected labels as a LabelTree, class names or a Relabelling, found 3"),
        ([0, 1], UsageError, r"expected labels as a LabelTree, .* found \[0, 1\]"),
        ([], UsageError, "relabel: expected new classes, found none"),
        (["cat", "cat"], DataError, "relabel: expected distinct new classes, found twice: 'cat'"),
        (["cat", "lynx"], DataError, "found 1 of 2 that it has nothing for: 'lynx'"),
        (
            ["mammal"],
            UsageError,
            "expected samples of the chosen classes and keys, found none. Give labels or a subset",
        ),
        (
            relabel(["cat", "dog"], ["cat"]),
            UsageError,
            r"expected a relabelling of the data set's 9 classes, found one of 2. Make it with relabel\(",
        ),
        (
            relabel([*"abcdefgh", "cat"], ["cat"]),
            UsageError,
            "found one that leaves out what is 'cat' here; it is of another class list",
        ),
        (
            relabel(
                ["oak", "dog", "crow", "gull", "cat", "mammal", "bird", "animal", "plant"], ["oak", "dog"]
            ),
            UsageError,
            "found one that makes 'oak' what is 'cat' here; it is of another class list",
        ),
    ],
)
def test_labels_that_do_not_fit_are_refused(packed, labels, error, message):
    with pytest.raises(error, match=message):
        make(packed, labels=labels)


def test_a_sample_whose_class_is_not_the_sidecars_is_named(damage, plain_samples, class_of):
    number = next(i for i, sample in enumerate(plain_samples) if class_of[sample.key] == "cat")
    folder, shard, key = damage(number, "cls", lambda data: b"1")
    message = (
        rf"{shard}: sample '{key}', component 'cls': expected a class that the labels keep, .* found 1, "
    )
    with (
        make(folder, labels=SUBSET, faults=Faults(max_bad=0)) as loader,
        pytest.raises(DataError, match=message),
    ):
        list(loader)


def test_a_sidecar_that_has_changed_is_refused(packed, tmp_path):
    folder = shutil.copytree(packed, tmp_path / "copy")
    classes = np.array(load_sidecar(folder, Manifest.load(folder)))
    save_sidecar(folder, classes[::-1])
    with pytest.raises(DataError, match=r"classes\.npy: expected SHA-256 .* it has changed"):
        make(folder, labels=SUBSET)


def test_label_vectors_of_all_paths_arrive_as_they_were_packed(packed_all_paths):
    tree = LabelTree.load(packed_all_paths / "tree.json")
    manifest = Manifest.load(packed_all_paths)
    stored = {
        sample.key: decode_levels(sample.parts["hier.npy"], sample.key)
        for shard in manifest.shards
        for sample in read_shard(packed_all_paths / shard.name)
    }
    with make(packed_all_paths, targets="none", batch_size=7) as loader:
        batches = list(loader)
        assert loader.tree.num_paths == 2
    assert {batch.levels.shape for batch in batches} == {(7, 2, tree.num_levels)}
    assert {batch.levels.dtype for batch in batches} == {torch.int64}
    assert (batches[-1].levels[~batches[-1].valid] == -1).all()
    assert not batches[-1].valid.all()
    found = slots(batches)
    assert found.keys() == stored.keys()
    for key, sample in found.items():
        assert sample["levels"].tolist() == stored[key].tolist()
        assert sample["levels"].tolist() == tree.vectors()[sample["classes"]].tolist()
    assert any((vectors[1] >= 0).any() for vectors in stored.values())


def test_a_data_set_of_all_paths_is_read_with_one_path_and_back(packed_all_paths):
    table = [("gull", "bird"), ("cat", "pet"), ("dog", "pet")]
    with make(packed_all_paths, targets="none", labels=LabelTree.from_table(None, table)) as loader:
        assert {batch.levels.ndim for batch in loader} == {2}
