"""The loader against the plain reader, batch by batch."""

import cv2
import numpy as np
import pytest
import simplejpeg
import torch
from torchvision.ops import roi_align

from softshard.loaders import Augment, Loader, fetch
from softshard.loaders.crops import crop_fractions, draw_crops
from softshard.loaders.decode import MEAN, STD
from softshard.loaders.order import EpochOrder, num_steps, rank_slots
from softshard.loaders.resize import resize
from softshard.shards import Manifest, UsageError, decode_label_map
from softshard.shards.components import decode_class, decode_levels

SIZE = 32


def make(packed, **options):
    """A loader of small uint8 images with label maps and a padded last batch."""
    defaults = {
        "batch_size": 8,
        "augment": Augment(size=SIZE),
        "targets": "relabel",
        "dtype": "uint8",
        "last_batch": "pad",
        "seed": 11,
        "window": 40,
        "num_threads": 2,
    }
    return Loader(packed, **{**defaults, **options})


def epoch_of(packed, **options):
    with make(packed, **options) as loader:
        return list(loader)


def tensors(batch):
    return {name: value for name, value in batch.to_dict().items() if name != "keys" and value is not None}


def assert_same(found, expected):
    """The same batches, bit for bit."""
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        assert one.keys == other.keys
        assert tensors(one).keys() == tensors(other).keys()
        for name, value in tensors(other).items():
            assert torch.equal(tensors(one)[name], value), name


def plain_image(jpeg, tlhw, flip):
    """Decode all of it, cut, resize, flip: uint8 [S, S, 3]."""
    top, left, height, width = tlhw
    window = simplejpeg.decode_jpeg(jpeg, "RGB")[top : top + height, left : left + width]
    image = resize(np.ascontiguousarray(window), np.empty((SIZE, SIZE, 3), np.uint8))
    return image[:, ::-1] if flip else image


def plain_target(lmap, crop, num_classes):
    """RoIAlign of the dense map, softmax."""
    scores, ids = decode_label_map(lmap)
    dense = np.zeros((num_classes, *scores.shape[1:]), np.float32)
    np.put_along_axis(dense, ids.astype(np.int64), scores, axis=0)
    rows, columns = dense.shape[1:]
    box = torch.from_numpy(crop) * torch.tensor([columns, rows, columns, rows]) - 0.5
    pooled = roi_align(torch.from_numpy(dense)[None], [box[None]], (1, 1), sampling_ratio=-1, aligned=False)
    return torch.softmax(pooled.flatten(), dim=0)


@pytest.mark.parametrize(
    ("world_size", "lanes", "last_batch", "augment"),
    [
        (1, 1, "pad", Augment(size=SIZE)),
        (2, 4, "pad", Augment(size=SIZE, scale=(0.01, 0.3), ratio=(0.3, 3.0))),
        (2, 1, "drop", Augment(size=SIZE, scale=None)),
        (1, 2, "drop", Augment.evaluation(size=SIZE)),
    ],
)
def test_every_batch_is_what_the_plain_reader_says(
    packed, plain_samples, world_size, lanes, last_batch, augment
):
    manifest = Manifest.load(packed)
    counts = np.array([shard.samples for shard in manifest.shards])
    order = EpochOrder(counts, 11, 3, lanes, 40)
    global_batch = 8 * world_size
    steps = num_steps(manifest.num_samples, lanes, global_batch, 0, last_batch)
    for rank in range(world_size):
        options = {"rank": rank, "world_size": world_size, "lanes": lanes, "last_batch": last_batch}
        with make(packed, augment=augment, **options) as loader:
            loader.set_epoch(3)
            batches = list(loader)
            assert len(batches) == len(loader) == steps
        for step, batch in enumerate(batches):
            at = step * global_batch // lanes
            slots = rank_slots(order, global_batch, at, rank, world_size).samples
            assert batch.valid.tolist() == (slots >= 0).tolist()
            for slot, number in enumerate(slots.tolist()):
                if number < 0:
                    continue
                sample = plain_samples[number]
                assert batch.keys[slot] == sample.key
                assert batch.classes[slot] == decode_class(sample.parts["cls"], sample.key)
                levels = decode_levels(sample.parts["hier.npy"], sample.key)
                assert batch.levels[slot].tolist() == levels.tolist()
                header = simplejpeg.decode_jpeg_header(sample.parts["jpg"])
                hw = np.array([header[:2]])
                tlhw, flips = draw_crops(augment, hw, np.array([number]), seed=11, epoch=3)
                crop = crop_fractions(tlhw, hw)[0]
                assert batch.flips[slot] == bool(flips[0])
                np.testing.assert_array_equal(batch.crops[slot].numpy(), crop)
                # Decoding the window alone gives the very pixels that decoding everything gives there.
                image = batch.images[slot].permute(1, 2, 0).numpy()
                np.testing.assert_array_equal(image, plain_image(sample.parts["jpg"], tlhw[0], flips[0]))
                target = plain_target(sample.parts["lmap"], crop, loader.num_classes)
                torch.testing.assert_close(batch.targets[slot], target, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", ["4:4:4", "4:2:2", "grey", "progressive"])
def test_windows_of_any_kind_of_jpeg_equal_those_of_the_whole_picture(kind, within):
    from softshard.loaders.decode import CpuDecoder

    rng = np.random.default_rng(0)
    pixels = cv2.resize(rng.integers(0, 256, (9, 7, 3), dtype=np.uint8), (97, 133))
    if kind == "grey":
        jpeg = simplejpeg.encode_jpeg(np.ascontiguousarray(pixels[..., :1]), colorspace="GRAY")
    elif kind == "progressive":
        jpeg = cv2.imencode(".jpg", pixels, [cv2.IMWRITE_JPEG_PROGRESSIVE, 1])[1].tobytes()
    else:
        jpeg = simplejpeg.encode_jpeg(pixels, colorsubsampling=kind.replace(":", ""))
    windows = np.int32([[0, 0, 133, 97], [5, 3, 32, 32], [101, 64, 32, 33], [132, 96, 1, 1]])
    flips = np.array([False, True, False, True])
    decoder = CpuDecoder(4, SIZE, "uint8", MEAN, STD, num_threads=2)
    decoder.submit([np.frombuffer(jpeg, np.uint8)] * 4, windows, flips)
    images = within(lambda: decoder.take(np.arange(4), 4)).permute(0, 2, 3, 1).numpy()
    decoder.close()
    for i in range(4):
        np.testing.assert_array_equal(images[i], plain_image(jpeg, windows[i], flips[i]))


def test_images_are_channels_last_tensors_of_the_documented_types(packed):
    batch = epoch_of(packed)[0]
    assert batch.images.shape == (8, 3, SIZE, SIZE)
    assert batch.images.is_contiguous(memory_format=torch.channels_last)
    assert len(batch) == 8
    assert {name: (value.dtype, list(value.shape)) for name, value in tensors(batch).items()} == {
        "images": (torch.uint8, [8, 3, SIZE, SIZE]),
        "classes": (torch.int64, [8]),
        "levels": (torch.int64, [8, 3]),
        "targets": (torch.float32, [8, 9]),
        "crops": (torch.float32, [8, 4]),
        "flips": (torch.bool, [8]),
        "valid": (torch.bool, [8]),
    }


def test_float_images_are_the_uint8_ones_normalised(packed):
    mean, std = (0.4, 0.5, 0.6), (0.1, 0.2, 0.3)
    for mean_std in ({}, {"mean": mean, "std": std}):
        shown = mean_std or {"mean": MEAN, "std": STD}
        shift, scale = (torch.tensor(shown[name]).view(3, 1, 1) for name in ("mean", "std"))
        plain, single, half = (
            epoch_of(packed, dtype=dtype, targets="none", **mean_std)
            for dtype in ("uint8", "float32", "float16")
        )
        for pixels, floats, halves in zip(plain, single, half, strict=True):
            assert (floats.images.dtype, halves.images.dtype) == (torch.float32, torch.float16)
            expected = (pixels.images.float() / 255 - shift) / scale
            expected[~pixels.valid] = 0
            torch.testing.assert_close(floats.images, expected, rtol=1e-5, atol=1e-5)
            assert torch.equal(halves.images, floats.images.half())
            assert floats.keys == pixels.keys


def test_padding_is_as_documented_and_only_in_the_last_steps(packed):
    batches = epoch_of(packed, dtype="float32")
    assert [int(batch.valid.sum()) for batch in batches] == [8] * 13 + [1]
    last = batches[-1]
    empty = ~last.valid
    assert last.valid.tolist() == [True] + [False] * 7
    assert last.keys[1:] == [""] * 7
    assert (last.images[empty] == 0).all()
    assert (last.targets[empty] == 0).all()
    assert (last.classes[empty] == -1).all()
    assert (last.levels[empty] == -1).all()
    assert last.crops[empty].tolist() == [[0, 0, 1, 1]] * 7
    assert not last.flips[empty].any()
    assert (last.images[0] != 0).any()
    torch.testing.assert_close(last.targets[0].sum(), torch.tensor(1.0))


def test_a_rank_whose_lane_is_empty_gets_a_batch_of_padding(packed_plain):
    # 20 samples over 3 lanes: 6, 7 and 7. A step takes six of each; the second finds none, one and one.
    options = {"targets": "none", "batch_size": 6, "world_size": 3, "lanes": 3}
    batches = [epoch_of(packed_plain, rank=rank, **options) for rank in range(3)]
    assert [[int(batch.valid.sum()) for batch in rank] for rank in batches] == [[6, 0], [6, 1], [6, 1]]
    keys = [key for rank in batches for batch in rank for key in batch.keys if key]
    assert len(keys) == len(set(keys)) == 20
    assert (batches[0][1].images == 0).all()


def test_drop_says_what_it_leaves_out(packed):
    with make(packed, last_batch="drop", batch_size=16) as loader:
        assert len(loader) == 6
        assert loader.num_left_out == 105 - 96
        assert sum(int(batch.valid.sum()) for batch in loader) == 96
    with make(packed, batch_size=16) as loader:
        assert (len(loader), loader.num_left_out) == (7, 0)


def test_more_samples_in_a_batch_than_in_the_data_set(packed_plain):
    (batch,) = epoch_of(packed_plain, batch_size=32, targets="none")
    assert int(batch.valid.sum()) == 20
    with pytest.raises(
        UsageError, match="expected a global batch of samples, which is 32 on 1 lanes, found 20"
    ):
        make(packed_plain, batch_size=32, targets="none", last_batch="drop")


def test_a_data_set_without_tree_and_maps_has_neither_levels_nor_targets(packed_plain):
    batch = epoch_of(packed_plain, targets="none")[0]
    assert batch.levels is None
    assert batch.targets is None
    assert (batch.classes >= 0).all()


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"num_threads": 1},
        {"num_threads": 4},
        {"prefetch": 1},
        {"prefetch": 3},
    ],
)
def test_the_same_seed_gives_the_same_bits_for_any_threads_and_prefetch(packed, options):
    assert_same(epoch_of(packed, dtype="float16", **options), epoch_of(packed, dtype="float16"))


def test_another_seed_gives_other_batches(packed):
    one, other = epoch_of(packed), epoch_of(packed, seed=12)
    assert [batch.keys for batch in one] != [batch.keys for batch in other]


def test_shards_that_are_closed_while_their_images_are_decoded_stay_readable(packed, monkeypatch):
    expected = epoch_of(packed)
    monkeypatch.setattr(fetch, "_MAX_OPEN", 1)
    assert_same(epoch_of(packed), expected)


def test_batches_stay_valid_after_the_loader_is_closed(packed):
    with make(packed) as loader:
        held, copies = [], []
        for batch in loader:
            held.append(batch)
            copies.append({name: value.clone() for name, value in tensors(batch).items()})
    del loader
    epoch_of(packed, seed=99)  # something else in the memory that was let go
    for batch, copy in zip(held, copies, strict=True):
        for name, value in copy.items():
            assert torch.equal(tensors(batch)[name], value)


def test_without_shuffle_samples_come_in_the_manifests_order(packed, plain_samples):
    batches = epoch_of(packed, shuffle=False, targets="none", augment=Augment.evaluation(size=SIZE))
    keys = [key for batch in batches for key in batch.keys if key]
    assert keys == [sample.key for sample in plain_samples]


def test_an_epoch_is_followed_by_the_next_one(packed):
    with make(packed) as loader:
        first, second = list(loader), list(loader)
        assert loader.epoch == 2
        assert [batch.keys for batch in first] != [batch.keys for batch in second]
        assert {key for batch in first for key in batch.keys} == {key for b in second for key in b.keys}
        loader.set_epoch(0)
        assert_same(list(loader), first)
        assert_same(list(loader), second)


def test_a_loop_that_never_asks_for_the_end_goes_on_with_the_next_epoch(packed):
    with make(packed) as loader:
        for epoch in range(2):
            expected = epoch_of(packed, seed=11) if epoch == 0 else None
            found = [batch for _, batch in zip(range(len(loader)), loader, strict=False)]
            assert loader.epoch == epoch + 1
            if expected is not None:
                assert_same(found, expected)
        assert loader.state_dict()["taken"] == 0


def test_breaking_off_and_iterating_again_starts_the_epoch_anew(packed):
    with make(packed) as loader:
        loader.set_epoch(4)
        expected = list(loader)
        loader.set_epoch(4)
        for number, _ in enumerate(loader):
            if number == 3:
                break
        assert (loader.epoch, loader.step) == (4, 4)
        assert_same(list(loader), expected)


def test_an_exception_in_the_loop_leaves_the_loader_usable(packed):
    with make(packed) as loader:
        expected = list(loader)
        loader.set_epoch(0)
        with pytest.raises(ZeroDivisionError):
            [1 / 0 for _ in loader]
        assert_same(list(loader), expected)


def continued(loader, change):
    """Take a batch, do something to the loader, go on."""
    for number, _ in enumerate(loader):
        if number == 1:
            change(loader)


@pytest.mark.parametrize(
    "change",
    [
        lambda loader: next(iter(loader)),
        lambda loader: loader.set_epoch(7),
        lambda loader: loader.load_state_dict(loader.state_dict()),
        lambda loader: loader.close(),
    ],
    ids=["iterating again", "set_epoch", "load_state_dict", "close"],
)
def test_an_iteration_that_was_ended_from_outside_does_not_go_on(packed, within, change):
    with make(packed) as loader, pytest.raises(UsageError, match="expected one iteration at a time"):
        within(lambda: continued(loader, change))


def test_set_epoch_to_the_current_epoch_changes_nothing_in_a_running_iteration(packed):
    expected = epoch_of(packed)
    found = []
    with make(packed) as loader:
        for batch in loader:
            loader.set_epoch(0)
            found.append(batch)
    assert_same(found, expected)


def test_two_loaders_of_one_data_set_do_not_disturb_each_other(packed):
    with make(packed) as one, make(packed, seed=2) as other:
        pairs = list(zip(one, other, strict=True))
    assert_same([pair[0] for pair in pairs], epoch_of(packed))
    assert_same([pair[1] for pair in pairs], epoch_of(packed, seed=2))
