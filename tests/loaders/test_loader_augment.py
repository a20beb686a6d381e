"""Augmentation in the loader: the same batches after any restore, with any threads, for every world size."""

from functools import partial

import numpy as np
import pytest
import restoring
import torch

from softshard.loaders import (
    RANDAUGMENT_21K,
    Augment,
    CutMix,
    Erasing,
    LabelPooling,
    Mixup,
    RandAugment,
    pool_label_maps,
)
from softshard.shards import UsageError

SIZE = 24
EVERYTHING = Augment(
    size=SIZE,
    color_jitter=0.4,
    lighting=0.1,
    cutout=0.3,
    randaugment=RandAugment(2, 12, interpolation="bilinear"),
    erasing=Erasing(prob=0.5),
    mixup=Mixup(0.4),
    cutmix=CutMix(1.0, visible=True),
)
MIXES = {"mixup": Mixup(0.4), "cutmix": CutMix(1.0, visible=True)}


make = partial(restoring.make, batch_size=24, augment=EVERYTHING, dtype="float32")


def epoch_of(dataset, epoch=1, **options):
    with make(dataset, **options) as loader:
        loader.set_epoch(epoch)
        return list(loader)


def assert_same(found, expected):
    assert len(found) == len(expected) > 0
    for one, other in zip(found, expected, strict=True):
        assert one.keys == other.keys
        for name in ("images", "targets", "crops", "flips", "classes", "valid"):
            assert torch.equal(getattr(one, name), getattr(other, name)), name
        for name in ("shares", "boxes"):
            assert torch.equal(getattr(one.mix, name), getattr(other.mix, name)), name


def joined(parts):
    """The batches of several ranks as global batches, of which only what is the same for all world sizes."""
    steps = []
    for batches in zip(*parts, strict=True):
        tensors = {
            name: torch.cat([getattr(batch, name) for batch in batches])
            for name in ("images", "targets", "crops", "flips", "valid")
        }
        offsets = np.cumsum([0, *(len(batch) for batch in batches)])[:-1].tolist()
        tensors["partners"] = torch.cat(
            [batch.mix.partners + offset for batch, offset in zip(batches, offsets, strict=True)]
        )
        tensors |= {
            name: torch.cat([getattr(batch.mix, name) for batch in batches]) for name in ("shares", "boxes")
        }
        steps.append(([key for batch in batches for key in batch.keys], tensors))
    return steps


@pytest.mark.parametrize("dtype", ["uint8", "float16", "float32"])
def test_restore_at_any_step_yields_the_remaining_augmented_batches(packed, dtype):
    with make(packed, dtype=dtype) as loader:
        loader.set_epoch(1)
        states, batches = [loader.state_dict()], []
        for batch in loader:
            batches.append(batch)
            states.append(loader.state_dict())
    assert len(batches) == 5
    assert batches[0].images.dtype == getattr(torch, dtype)
    assert batches[0].images.is_contiguous(memory_format=torch.channels_last)
    for number, state in enumerate(states[:-1]):
        with make(packed, dtype=dtype, num_threads=1 + number % 3, prefetch=1) as other:
            other.load_state_dict(state)
            assert_same(list(other), batches[number:])


@pytest.mark.parametrize("augment", [EVERYTHING, Augment(size=SIZE, **MIXES)], ids=["everything", "mixing"])
@pytest.mark.parametrize(("lanes", "last_batch"), [(1, "drop"), (2, "pad"), (4, "pad")])
def test_every_world_size_gives_the_same_global_batches_bit_by_bit(packed, augment, lanes, last_batch):
    options = {"augment": augment, "lanes": lanes, "last_batch": last_batch}
    expected = joined([epoch_of(packed, **options)])
    for world_size in (2, 4, 3):
        ranks = [
            epoch_of(
                packed,
                **options,
                batch_size=24 // world_size,
                rank=rank,
                world_size=world_size,
                num_threads=1 + rank % 2,
            )
            for rank in range(world_size)
        ]
        found = joined(ranks)
        assert len(found) == len(expected) > 0
        for (keys, tensors), (other_keys, others) in zip(found, expected, strict=True):
            assert keys == other_keys
            for name, tensor in tensors.items():
                assert torch.equal(tensor, others[name]), (world_size, name)


def test_another_batch_size_mixes_the_same_pairs(packed):
    def per_key(batches):
        return {
            batch.keys[slot]: (
                batch.images[slot],
                batch.targets[slot],
                batch.keys[int(batch.mix.partners[slot])],
            )
            for batch in batches
            for slot in range(len(batch))
            if batch.valid[slot]
        }

    one, other = per_key(epoch_of(packed)), per_key(epoch_of(packed, batch_size=8))
    assert one.keys() == other.keys()
    assert sum(key != partner for key, (_, _, partner) in one.items()) >= 96
    for key, (images, targets, partner) in one.items():
        assert partner == other[key][2]
        assert torch.equal(images, other[key][0])
        assert torch.equal(targets, other[key][1])


def test_mixed_batches_are_the_unmixed_ones_mixed(packed):
    """Against the loader without mixing, whose batches are put together here slot by slot."""
    plain = epoch_of(packed, augment=Augment(size=SIZE))
    mixed = epoch_of(packed, augment=Augment(size=SIZE, mixup=Mixup(0.4), cutmix=CutMix(1.0)))
    pasted = blended = 0
    for one, other in zip(mixed, plain, strict=True):
        assert other.mix is None
        for name in ("classes", "levels", "crops", "flips", "valid"):
            assert torch.equal(getattr(one, name), getattr(other, name))
        assert one.keys == other.keys
        for slot in range(len(one)):
            partner, share = int(one.mix.partners[slot]), one.mix.shares[slot]
            if partner == slot:
                assert torch.equal(one.images[slot], other.images[slot])
                assert torch.equal(one.targets[slot], other.targets[slot])
                continue
            assert one.valid[slot]
            assert one.valid[partner]
            expected = share * other.targets[slot] + (1 - share) * other.targets[partner]
            torch.testing.assert_close(one.targets[slot], expected)
            top, left, height, width = one.mix.boxes[slot].tolist()
            if height:
                image = other.images[slot].clone()
                window = (slice(None), slice(top, top + height), slice(left, left + width))
                image[window] = other.images[partner][window]
                assert torch.equal(one.images[slot], image)
                assert float(share) == np.float32(1 - height * width / SIZE**2)
                pasted += 1
            else:
                image = share * other.images[slot] + (1 - share) * other.images[partner]
                torch.testing.assert_close(one.images[slot], image)
                blended += 1
    assert min(pasted, blended) > 30


def test_visible_targets_are_pooled_from_what_is_seen(packed):
    """Against the pooling of the two parts, found by looking at the windows' pixels in the stored image."""
    batches = epoch_of(packed, augment=Augment(size=SIZE, cutmix=CutMix(visible=True)))
    blends = epoch_of(packed, augment=Augment(size=SIZE, cutmix=CutMix()))
    maps = stored_maps(packed)
    moved = 0
    for batch, blend in zip(batches, blends, strict=True):
        assert torch.equal(batch.images, blend.images)
        assert torch.equal(batch.mix.boxes, blend.mix.boxes)
        torch.testing.assert_close(batch.targets.sum(dim=1), batch.valid.float())
        for slot in range(len(batch)):
            partner = int(batch.mix.partners[slot])
            if partner == slot:
                assert torch.equal(batch.targets[slot], blend.targets[slot])
                continue
            top, left, height, width = (value / SIZE for value in batch.mix.boxes[slot].tolist())

            def part(slot, box, batch=batch):
                x0, y0, x1, y1 = batch.crops[slot].double().tolist()
                a, b, c, d = box  # of the crop, before it was flipped
                if batch.flips[slot]:
                    a, c = 1 - c, 1 - a
                return [x0 + (x1 - x0) * a, y0 + (y1 - y0) * b, x0 + (x1 - x0) * c, y0 + (y1 - y0) * d]

            bottom, right = top + height, left + width
            rest = [(0, 0, 1, top), (0, bottom, 1, 1), (0, top, left, bottom), (right, top, 1, bottom)]
            rest = [box for box in rest if box[2] - box[0] > 1e-9 and box[3] - box[1] > 1e-9]
            own = pooled(maps[batch.keys[slot]], [part(slot, box) for box in rest], batch.targets.shape[1])
            given = pooled(
                maps[batch.keys[partner]], [part(partner, (left, top, right, bottom))], batch.targets.shape[1]
            )
            share = batch.mix.shares[slot]
            torch.testing.assert_close(
                batch.targets[slot], share * own + (1 - share) * given, rtol=1e-3, atol=1e-4
            )
            moved += bool((batch.targets[slot] - blend.targets[slot]).abs().max() > 1e-3)
    assert moved > 60


def stored_maps(packed):
    """Every sample's encoded label map by its key."""
    from softshard.shards import Manifest, read_shard

    return {
        sample.key: sample.parts["lmap"]
        for shard in Manifest.load(packed).shards
        for sample in read_shard(packed / shard.name)
    }


def pooled(label_map, boxes, num_classes):
    regions = np.clip(np.array([boxes], np.float32), 0, 1)
    return pool_label_maps([label_map], regions, num_classes=num_classes)[0]


def test_one_hot_targets_are_mixed_by_area(packed_plain):
    batches = epoch_of(
        packed_plain, targets="original", lanes=1, batch_size=10, augment=Augment(size=SIZE, cutmix=CutMix())
    )
    for batch in batches:
        for slot in range(len(batch)):
            partner = int(batch.mix.partners[slot])
            expected = torch.zeros(2)
            expected[batch.classes[slot]] += batch.mix.shares[slot]
            expected[batch.classes[partner]] += 1 - batch.mix.shares[slot]
            torch.testing.assert_close(batch.targets[slot], expected)


def test_mixup_blends_grids_of_targets(packed):
    options = {"targets": LabelPooling(grid=(2, 3))}
    plain = epoch_of(packed, augment=Augment(size=SIZE), **options)
    mixed = epoch_of(packed, augment=Augment(size=SIZE, mixup=Mixup(1.0)), **options)
    for one, other in zip(mixed, plain, strict=True):
        shares = one.mix.shares[:, None, None, None]
        expected = shares * other.targets + (1 - shares) * other.targets[one.mix.partners]
        torch.testing.assert_close(one.targets, expected)


def test_mixing_ends_at_its_epoch_and_the_rest_goes_on(packed):
    augment = Augment(size=SIZE, color_jitter=0.4, cutmix=CutMix(), mix_until_epoch=2)
    assert epoch_of(packed, epoch=1, augment=augment)[0].mix is not None
    last = epoch_of(packed, epoch=2, augment=augment)
    plain = epoch_of(packed, epoch=2, augment=Augment(size=SIZE, color_jitter=0.4))
    for one, other in zip(last, plain, strict=True):
        assert one.mix is None
        assert torch.equal(one.images, other.images)
        assert torch.equal(one.targets, other.targets)


def test_uint8_and_float_images_are_the_same_ones(packed):
    augment = Augment(size=SIZE, color_jitter=0.4, randaugment=RANDAUGMENT_21K, cutout=0.5)
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    whole, real = (epoch_of(packed, augment=augment, dtype=dtype) for dtype in ("uint8", "float32"))
    for one, other in zip(whole, real, strict=True):
        valid = other.valid
        values = (other.images * std[:, None, None] + mean[:, None, None]) * 255
        assert (values[valid] - one.images[valid].float()).abs().max() <= 0.5 + 1e-3
        assert not one.images[~valid].any()
        assert not other.images[~valid].any()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"targets": "none"}, "expected soft targets for mixup and cutmix, found targets='none'"),
        ({"batch_size": 9, "lanes": 1}, "an even batch_size.* found 9 and 9"),
        ({"batch_size": 6, "lanes": 2, "last_batch": "pad"}, "for mixup and cutmix, found 6 and 3"),
        ({"targets": "original"}, r"pool each crop's label map for CutMix\(visible=True\), found 'original'"),
        ({"targets": "relabel-global"}, r"CutMix\(visible=True\), found 'relabel-global'"),
        ({"targets": LabelPooling(grid=(2, 2))}, r"without a grid for cutmix, found a grid of \(2, 2\)"),
    ],
)
def test_mixing_that_cannot_be_kept_is_refused(packed, options, message):
    with pytest.raises(UsageError, match=message):
        make(packed, **options)


@pytest.mark.parametrize("centre", [0.875, 0.3, 1.0])
def test_the_centre_crop_is_a_square_in_the_middle_and_maps_are_pooled_over_it(packed, centre):
    augment = Augment.evaluation(SIZE, centre=centre)
    maps = stored_maps(packed)
    for batch in epoch_of(packed, augment=augment, shuffle=False):
        assert not batch.flips.any()
        for slot in np.flatnonzero(batch.valid.numpy()):
            label_map, crop = maps[batch.keys[slot]], batch.crops[slot : slot + 1]
            expected = pool_label_maps([label_map], crop, num_classes=batch.targets.shape[1])
            torch.testing.assert_close(batch.targets[slot], expected[0])


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
@pytest.mark.parametrize("augment", [EVERYTHING, Augment(size=SIZE, **MIXES)], ids=["everything", "mixing"])
def test_a_gpu_does_the_same_to_the_same_pixels(packed, augment):
    host, there = (epoch_of(packed, augment=augment, device=device) for device in ("cpu", "cuda"))
    for one, other in zip(host, there, strict=True):
        assert other.images.device.type == "cuda"
        assert torch.equal(one.mix.partners, other.mix.partners.cpu())
        assert torch.equal(one.mix.boxes, other.mix.boxes.cpu())
        torch.testing.assert_close(one.targets, other.targets.cpu(), rtol=1e-5, atol=1e-5)
        # Decoding and resampling differ a little already; histograms may then be stretched otherwise.
        errors = (one.images - other.images.cpu()).abs().mean(dim=(1, 2, 3))
        assert errors.median() < 0.05


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
def test_the_stage_gives_the_same_on_both_devices_from_the_same_images():
    from softshard.loaders.augment_batch import AugmentStage

    pixels = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (64, 3, SIZE, SIZE), dtype=np.uint8))
    pixels = pixels.contiguous(memory_format=torch.channels_last)
    found = []
    for name in ("cpu", "cuda:0"):
        stage = AugmentStage(EVERYTHING, 1, "uint8", (0.5,) * 3, (0.2,) * 3, 2, torch.device(name))
        found.append(stage.augment(pixels.to(name), np.arange(64), np.arange(64), epoch=0).cpu().float())
        stage.close()
    differences = (found[0] - found[1]).abs()
    assert (differences > 1).float().mean() < 0.002
