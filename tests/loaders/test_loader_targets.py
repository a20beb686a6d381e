"""The targets of a loader's batches are those of its mode, pooled over the crops that it says."""

import pytest
import torch

from softshard.loaders import Augment, LabelPooling, Loader, pool_label_maps
from softshard.loaders.target_modes import TARGET_MODES, TARGETS
from softshard.shards import UsageError
from softshard.shards.components import decode_class

pytestmark = pytest.mark.usefixtures("each_path")


def batches(packed, targets, **more):
    options = {"batch_size": 8, "augment": Augment(size=32), "dtype": "uint8", "last_batch": "pad", "seed": 3}
    with Loader(packed, targets=targets, num_threads=2, **{**options, **more}) as loader:
        return list(loader), loader.num_classes


@pytest.fixture(scope="module")
def lmaps(plain_samples):
    """Encoded label map of every key."""
    return {sample.key: sample.parts["lmap"] for sample in plain_samples}


@pytest.mark.parametrize(
    "targets",
    [
        *(mode for mode in TARGET_MODES if mode != "relabel"),
        LabelPooling(fill="floor", swap_xy=True, original=0.2),
        LabelPooling(grid=(2, 3)),
        LabelPooling(class_map=[1, 0, -1, 3, 3, 5, 6, 7, 8]),
    ],
    ids=str,
)
def test_the_loader_pools_as_the_mode_says(packed, lmaps, targets):
    found, num_classes = batches(packed, targets)
    options = TARGET_MODES[targets] if isinstance(targets, str) else targets
    for batch in found:
        real = batch.valid.numpy()
        expected = pool_label_maps(
            [lmaps[key] for key in batch.keys if key],
            batch.crops[real],
            num_classes=num_classes,
            pooling=options,
            flips=batch.flips[real],
            classes=batch.classes[real],
        )
        assert torch.equal(batch.targets[real], expected)
        assert not batch.targets[~real].any()
    assert any(batch.flips.any() for batch in found)
    assert not found[-1].valid.all()


def test_original_targets_are_the_classes_and_need_no_maps(packed, packed_plain, plain_samples):
    own = {sample.key: decode_class(sample.parts["cls"], sample.key) for sample in plain_samples}
    found, num_classes = batches(packed, "original")
    for batch in found:
        for slot, key in enumerate(batch.keys):
            expected = torch.zeros(num_classes)
            if key:
                expected[own[key]] = 1
            assert torch.equal(batch.targets[slot], expected)
    plain, _ = batches(packed_plain, "original")
    assert plain[0].targets.shape == (8, 2)


def test_a_class_map_is_needed_for_maps_over_other_classes(packed):
    with pytest.raises(
        UsageError, match="expected a class map of the 9 classes of the label maps, found one of 3"
    ):
        batches(packed, LabelPooling(class_map=[0, 1, 2]))


def test_every_named_mode_is_one_of_the_papers():
    assert TARGETS == (
        "none",
        "original",
        "relabel",
        "relabel-global",
        "relabel-single",
        "relabel-global-single",
        "tags",
        "weights",
        "pseudo",
    )
    factors = {(mode.local, mode.multi) for mode in TARGET_MODES.values()}
    assert factors == {(True, True), (False, True), (True, False), (False, False)}
