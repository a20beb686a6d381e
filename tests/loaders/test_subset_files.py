"""The files of `softshard subset` through the loader: merged classes, chosen images, nothing copied."""

import numpy as np
import pytest
from small_batches import make

from softshard.loaders import Mixture, Subset
from softshard.loaders.labels import load_labels
from softshard.shards import DataError, LabelTree, Manifest, ReshardOptions, SubsetFile, UsageError, reshard


def served(loader):
    """Key to class and levels of every sample; no key comes twice."""
    found = {}
    for batch in loader:
        for slot in np.flatnonzero(batch.valid.numpy()).tolist():
            assert batch.keys[slot] not in found
            found[batch.keys[slot]] = int(batch.classes[slot]), batch.levels[slot].tolist()
    return found


@pytest.mark.parametrize("name", ["classes.json", "images.json"])
def test_a_subset_reads_as_if_it_had_been_written_out(packed, subset_files, tmp_path, name):
    subset = SubsetFile.load(subset_files / name)
    reshard([packed], tmp_path / "new", ReshardOptions(subset=subset, drop=("lmap",)))
    with make(packed, subset=subset_files / name) as loader, make(tmp_path / "new") as other:
        assert loader.class_names == other.class_names == ("pet", "gull", "rest")
        assert loader.tree.fingerprint == other.tree.fingerprint
        found = served(loader)
        assert found == served(other)
        assert loader.num_samples == len(found) == {"classes.json": 75, "images.json": 21}[name]
        if subset.keys is not None:
            assert set(found) == set(subset.keys)
            assert np.bincount([number for number, _ in found.values()]).tolist() == [7, 7, 7]


def test_a_subset_that_was_read_serves_as_its_file_does(packed, subset_files):
    subset = SubsetFile.load(subset_files / "images.json")
    with make(packed, subset=str(subset_files / "images.json")) as one, make(packed, subset=subset) as other:
        assert served(one) == served(other)


def test_label_maps_are_pooled_over_the_merged_classes(packed, subset_files):
    subset = SubsetFile.load(subset_files / "classes.json")
    relabelling = subset.relabelling(Manifest.load(packed).class_names, LabelTree.load(packed / "tree.json"))
    options = {"targets": "relabel", "seed": 4}
    with make(packed, subset=subset, **options) as one, make(packed, labels=relabelling, **options) as other:
        for batch, expected in zip(one, other, strict=True):
            assert batch.targets.shape == (6, 3)
            np.testing.assert_array_equal(batch.targets.numpy(), expected.targets.numpy())
            assert batch.keys == expected.keys


def test_a_state_continues_with_the_same_subset_only(packed, subset_files):
    def resumed(state, **options):
        with make(packed, **options) as loader:
            loader.load_state_dict(state)
            return [batch.keys for batch in loader]

    with make(packed, subset=subset_files / "images.json") as loader:
        steps = []
        for batch in loader:
            steps.append(batch.keys)
            if len(steps) == 2:
                state = loader.state_dict()
        assert resumed(state, subset=subset_files / "images.json") == steps[2:]
    for other in (subset_files / "classes.json", Subset(fraction=0.2), None):
        with pytest.raises(UsageError, match=r"labels|subset"):
            resumed(state, subset=other)


def test_labels_beside_the_file_of_a_subset_are_refused(packed, subset_files):
    with pytest.raises(UsageError, match="expected labels or the file of a subset"):
        make(packed, subset=subset_files / "classes.json", labels=["cat", "dog"])


def test_a_subset_of_another_data_set_is_refused(packed_plain, subset_files):
    with pytest.raises(DataError, match=r"found 5 that it does not have: 'dog', 'cat'"):
        make(packed_plain, subset=subset_files / "classes.json")


def test_a_mixture_takes_classes_and_no_keys(packed, subset_files):
    mixture = Mixture({packed: 1.0}, epoch_samples=30)
    with make(mixture, subset=subset_files / "classes.json") as loader:
        assert loader.class_names == ("pet", "gull", "rest")
        assert set(np.concatenate([batch.classes for batch in loader])) <= {0, 1, 2}
    with pytest.raises(UsageError, match="found keys"):
        make(mixture, subset=subset_files / "images.json")


def test_the_file_of_a_subset_is_told_from_a_tree_where_labels_are_read(packed, subset_files):
    assert isinstance(load_labels(subset_files / "classes.json"), SubsetFile)
    assert isinstance(load_labels(packed / "tree.json"), LabelTree)
    with make(packed, labels=load_labels(subset_files / "images.json")) as loader:
        assert loader.num_samples == 75  # the classes; labels choose no images
