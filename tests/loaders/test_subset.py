"""Subsets: which samples are served, and that nothing else changes."""

import shutil

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small_batches import make

from softshard.loaders import Subset
from softshard.loaders.subset import kept_samples
from softshard.shards import DataError, UsageError


def crops_of(dataset, **options):
    """Key to class and crop of every sample that is served; no key comes twice."""
    found = {}
    with make(dataset, **options) as loader:
        for batch in loader:
            for slot in np.flatnonzero(batch.valid.numpy()).tolist():
                assert batch.keys[slot] not in found
                found[batch.keys[slot]] = int(batch.classes[slot]), batch.crops[slot].tolist()
        assert loader.num_samples == len(found)
    return found


@given(st.lists(st.integers(0, 5), min_size=1, max_size=80), st.lists(st.booleans(), min_size=6, max_size=6))
@settings(max_examples=100)
def test_the_samples_of_some_classes_in_ascending_order(classes, mask):
    kept = kept_samples(np.array(mask), lambda: np.int32(classes), len(classes))
    expected = [i for i, number in enumerate(classes) if mask[number]]
    if all(mask):
        assert kept is None
    else:
        assert kept.dtype == np.int64
        assert kept.tolist() == expected


@given(st.integers(1, 500), st.floats(0.001, 0.999), st.floats(0.001, 0.999), st.integers(0, 2**64 - 1))
@settings(max_examples=100)
def test_a_fraction_has_its_size_and_is_part_of_every_larger_one(num, one, other, seed):
    every_class = np.ones(3, bool)
    low, high = (
        kept_samples(every_class, lambda: pytest.fail("read"), num, fraction=fraction, seed=seed).tolist()
        for fraction in sorted((one, other))
    )
    assert len(low) == max(1, round(min(one, other) * num))
    assert low == sorted(set(low))
    assert set(low) <= set(high) <= set(range(num))


def test_another_seed_chooses_others_and_every_sample_is_as_likely():
    chosen = [
        kept_samples(np.ones(1, bool), lambda: None, 20, fraction=0.5, seed=seed) for seed in range(400)
    ]
    counts = np.bincount(np.concatenate(chosen), minlength=20)  # 200 +- 10 each
    assert counts.sum() == 4000
    assert counts.min() > 150
    assert counts.max() < 250


def test_a_subset_of_classes_keeps_numbers_and_crops(packed):
    whole = crops_of(packed)
    names = ("cat", "bird")
    found = crops_of(packed, subset=Subset(classes=names))
    with make(packed) as loader:
        numbers = {loader.class_names.index(name) for name in names}
    assert found == {key: sample for key, sample in whole.items() if sample[0] in numbers}
    assert len(found) == 30


def test_a_fraction_of_some_classes_is_the_same_for_every_seed_and_world_of_the_loader(packed):
    subset = Subset(classes=["cat", "bird"], fraction=0.4, seed=3)
    found = crops_of(packed, subset=subset)
    assert len(found) == 12
    assert crops_of(packed, subset=subset, seed=8).keys() == found.keys()
    parts = [crops_of_rank(packed, subset, rank) for rank in range(2)]
    assert parts[0] | parts[1] == found.keys()
    assert not parts[0] & parts[1]


def crops_of_rank(dataset, subset, rank):
    with make(dataset, subset=subset, rank=rank, world_size=2, batch_size=3) as loader:
        return {key for batch in loader for key in batch.keys if key}


def test_a_subset_names_classes_of_the_labels_that_the_set_is_read_with(packed):
    with make(packed, labels=["gull", "cat"], subset=Subset(classes=["cat"])) as loader:
        batches = list(loader)
    assert loader.num_samples == 15
    assert {number for batch in batches for number in batch.classes.tolist()} == {1, -1}


def test_an_order_of_names_makes_no_other_state(packed):
    states = []
    for names in (["cat", "bird"], ("bird", "cat"), ["bird"]):
        with make(packed, subset=Subset(classes=names)) as loader:
            states.append(loader.state_dict())
    assert states[0] == states[1] != states[2]


def test_keys_choose_samples_and_nothing_else_changes(packed, tmp_path):
    whole = crops_of(packed)
    keys = sorted(whole)[::7]
    assert crops_of(packed, subset=Subset(keys=keys)) == {key: whole[key] for key in keys}
    listed = tmp_path / "keys.txt"
    listed.write_text("\n".join(reversed(keys)) + "\n\n")
    for file in (listed, str(listed)):
        assert crops_of(packed, subset=Subset(keys=file)).keys() == set(keys)
    cats = [key for key in keys if key.startswith("cat")]
    assert crops_of(packed, subset=Subset(keys=keys, classes=["cat"])).keys() == set(cats)
    half = crops_of(packed, subset=Subset(keys=keys, fraction=0.5))
    assert len(half) == round(len(keys) / 2)
    assert half.keys() < set(keys)


def test_the_same_keys_make_the_same_state_wherever_they_come_from(packed, tmp_path):
    whole = sorted(crops_of(packed))
    (tmp_path / "keys.txt").write_text("\n".join(whole[:20]))
    states = []
    for keys in (whole[:20], list(reversed(whole[:20])), tmp_path / "keys.txt", whole[:19]):
        with make(packed, subset=Subset(keys=keys)) as loader:
            states.append(loader.state_dict())
    assert states[0] == states[1] == states[2] != states[3]
    with make(packed, subset=Subset(keys=whole[:19])) as loader:
        digest = states[0]["subset"]["keys"]
        with pytest.raises(
            UsageError, match=f"expected subset .*'keys': '[0-9a-f]+'.* found .*'keys': '{digest}'"
        ):
            loader.load_state_dict(states[0])


def test_keys_of_no_sample_are_refused_and_the_first_ten_named(packed):
    keys = [*sorted(crops_of(packed))[:2], *(f"no-{i:02}" for i in range(12))]
    named = ", ".join(f"'no-{i:02}'" for i in range(10))
    with pytest.raises(
        UsageError, match=f"keys of its 105 samples, found 12 of 14 that it does not have: {named} and more"
    ):
        make(packed, subset=Subset(keys=keys))
    with pytest.raises(
        UsageError, match="found 1 of 1 that it does not have"
    ):  # half of a pair, as JSON may hold
        make(packed, subset=Subset(keys=["\ud800"]))


def test_keys_of_an_index_that_is_not_the_manifests_are_refused(packed, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(packed, copy)
    index = sorted(copy.glob("*.idx"))[3]
    index.write_text(index.read_text().replace("cat_", "cax_").replace("dog_", "dox_"))
    with pytest.raises(DataError, match=f"{index.name}: expected the manifest's SHA-256, found another"):
        make(copy, subset=Subset(keys=["cat_00"]))
    index.unlink()
    with pytest.raises(DataError, match=f"{index.name}: expected the shard's index, found"):
        make(copy, subset=Subset(keys=["cat_00"]))


def test_a_file_of_keys_that_is_missing_or_empty_is_refused(packed, tmp_path):
    with pytest.raises(UsageError, match=r"none\.txt: cannot be read; No such file"):
        make(packed, subset=Subset(keys=tmp_path / "none.txt"))
    (tmp_path / "empty.txt").write_text(" \n")
    with pytest.raises(DataError, match=r"empty\.txt: expected one key per line, found none"):
        make(packed, subset=Subset(keys=tmp_path / "empty.txt"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"keys": []}, r"expected keys, or a file of keys, found \[\]"),
        ({"keys": [1]}, r"expected keys, or a file of keys, found \[1\]"),
        ({"fraction": 0}, "expected a fraction above 0 to 1, found 0"),
        ({"fraction": 1.5}, "expected a fraction above 0 to 1, found 1.5"),
        ({"fraction": float("nan")}, "expected a fraction above 0 to 1, found nan"),
        ({"classes": "cat"}, "expected class names, found 'cat'"),
        ({"classes": []}, r"expected class names, found \[\]"),
        ({"seed": -1}, "expected seed as an int from 0"),
    ],
)
def test_a_subset_that_cannot_be_is_refused(options, message):
    with pytest.raises(UsageError, match=message):
        Subset(**options)


def test_names_that_are_no_classes_are_all_listed(packed):
    with pytest.raises(UsageError, match="of the loader's 9 classes, found 'lynx', 'cat', 'elm'"):
        make(packed, subset=Subset(classes=["lynx", "cat", "cat", "elm"]))
    with pytest.raises(UsageError, match="expected samples of the chosen classes and keys, found none"):
        make(packed, subset=Subset(classes=["mammal"]))
