"""Bad data and wrong calls: what is said, and that nothing hangs."""

import json
import os
import re

import pytest
import torch

from softshard.loaders import Augment, Faults, Loader
from softshard.shards import DataError, Manifest, UsageError, verify


def make(dataset, **options):
    """A loader that puts up with no bad sample."""
    defaults = {
        "faults": Faults(max_bad=0),
        "batch_size": 8,
        "augment": Augment(size=16),
        "dtype": "uint8",
        "shuffle": False,
    }
    return Loader(dataset, **{**defaults, "last_batch": "pad", "num_threads": 2, **options})


def keys_until_error(loader):
    """The keys that come before the error, and the error."""
    keys = []
    try:
        for batch in loader:
            keys.extend(key for key in batch.keys if key)
    except DataError as error:
        return keys, str(error)
    raise AssertionError("expected an error, found a whole epoch")


def after_marker(marker, num, value):
    """Overwrite what follows a JPEG marker."""

    def change(jpeg):
        at = jpeg.index(bytes([0xFF, marker])) + 4
        return jpeg[:at] + bytes([value]) * num + jpeg[at + num :]

    return change


def without(part):
    """Zeros from a share of the JPEG on."""
    return lambda jpeg: jpeg[: int(len(jpeg) * part)] + bytes(len(jpeg) - int(len(jpeg) * part))


# Sample 31 is in the fourth batch of 8.
@pytest.mark.parametrize(
    ("suffix", "change", "options", "message"),
    [
        (
            "jpg",
            lambda data: bytes(len(data)),
            {},
            r"component 'jpg': expected a JPEG, found bytes b'\\x00\\x00\\x00\\x00'. Run: softshard verify ",
        ),
        (
            "jpg",
            lambda data: data[:2] + b"\xff\xd9" + data[4:],
            {},
            r"component 'jpg': expected a JPEG frame header, found none in \d+ bytes. Run: softshard verify ",
        ),
        (
            "jpg",
            after_marker(0xC4, 16, 0xFF),
            {},
            "component 'jpg': expected a whole JPEG, found: .*; the shard is damaged. "
            "Run: softshard verify --decode ",
        ),
        (
            "jpg",
            lambda data: data.replace(b"\xff\xdb", b"\xff\xe5"),
            {},
            "component 'jpg': expected a whole JPEG, found: .*; the shard is damaged. ",
        ),
        ("cls", lambda data: b"x", {}, "component 'cls': expected a decimal class index, found b'x'"),
        ("cls", lambda data: b"9", {}, "component 'cls': expected a class below 9, found 9. Run: softshard"),
        (
            "hier.npy",
            lambda data: data.replace(b"(3,), }  ", b"(1, 3), }"),
            {},
            r"component 'hier.npy': expected int16 \[3\], found int16 \[1, 3\]. Run: softshard verify ",
        ),
        (
            "hier.npy",
            lambda data: data.replace(b"<i2", b"<f4"),
            {},
            "component 'hier.npy': expected .*int16.* found .*float32",
        ),
        (
            "lmap",
            lambda data: data[:-1] + bytes([data[-1] ^ 255]),
            {"targets": "relabel"},
            "component 'lmap': expected checksum [0-9a-f]{8}, found another; it is damaged",
        ),
        (
            "lmap",
            lambda data: b"PK" + data[2:],
            {"targets": "relabel"},
            "component 'lmap': expected a label map that starts with b'SSLM', found b'PKLM'",
        ),
    ],
    ids=[
        "no JPEG",
        "no frame header",
        "bad Huffman table",
        "no quantization table",
        "class no number",
        "class out of range",
        "several paths",
        "levels of another type",
        "map checksum",
        "no map",
    ],
)
@pytest.mark.parametrize("prefetch", [1, 3])
def test_a_bad_sample_is_named_after_the_batches_before_it(
    damage, plain_samples, within, suffix, change, options, message, prefetch
):
    folder, shard, key = damage(31, suffix, change)
    assert key == plain_samples[31].key
    with make(folder, augment=Augment.evaluation(size=16), prefetch=prefetch, **options) as loader:
        keys, said = within(lambda: keys_until_error(loader))
        assert keys == [sample.key for sample in plain_samples[:24]]
        assert said.startswith(f"{shard}: sample '{key}', component ")
        assert said.count("component") == 1
        with pytest.raises(DataError, match=message):
            raise DataError(said)
        # The state says that 24 samples have been served: a loader that continues meets the same sample.
        assert loader.state_dict()["taken"] == 24
        # And the loader is not broken: once the shard is mended it goes on.
        assert within(lambda: keys_until_error(loader)) == (keys, said)


def test_after_an_error_the_loader_serves_another_epoch(packed, damage, within):
    # The sample comes at another step in every epoch: batches before it are whole in each.
    folder, _, bad = damage(0, "jpg", after_marker(0xC4, 16, 0xFF))
    with make(folder, shuffle=True, window=40) as loader, make(packed, shuffle=True, window=40) as good:
        served = set()
        for epoch in range(3):
            loader.set_epoch(epoch)
            good.set_epoch(epoch)
            keys, said = within(lambda: keys_until_error(loader))
            whole = [key for batch in good for key in batch.keys if key]
            assert keys == whole[: whole.index(bad) // 8 * 8]
            assert bad in said
            served.add(len(keys))
        assert len(served) > 1


def test_damage_inside_the_pixels_changes_that_image_only_and_is_left_to_verify(packed, damage):
    # libjpeg warns of such damage on standard error and carries on; DALI raises nothing.
    def scramble(jpeg):
        middle = len(jpeg) * 2 // 3
        return jpeg[:middle] + bytes(byte ^ 0x55 for byte in jpeg[middle : middle + 6]) + jpeg[middle + 6 :]

    folder, shard, key = damage(31, "jpg", scramble)
    whole = Augment.evaluation(size=64)
    with make(packed, augment=whole) as good, make(folder, augment=whole) as bad:
        for expected, found in zip(good, bad, strict=True):
            assert found.keys == expected.keys
            for slot, name in enumerate(found.keys):
                same = torch.equal(found.images[slot], expected.images[slot])
                assert same == (name != key)
    problems = verify(folder).problems
    assert any(shard in problem and "SHA-256" in problem for problem in problems)


def edit_manifest(folder, **changes):
    path = folder / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_a_folder_without_a_manifest_is_no_data_set(copied):
    (copied / "manifest.json").unlink()
    with pytest.raises(
        DataError, match=r"expected a data set, found no manifest.json; .* Run `softshard pack`"
    ):
        make(copied)


def test_the_folder_above_a_data_set_is_answered_with_the_data_sets_in_it(copied):
    with pytest.raises(DataError, match=f"give one of the data sets in it: {copied}"):
        make(copied.parent)


def test_a_manifest_of_a_newer_version_is_refused(copied):
    edit_manifest(copied, version=[2, 0])
    with pytest.raises(DataError, match=r"expected version 1.x, found 2.0; .* pip install -U softshard"):
        make(copied)


def test_a_label_tree_of_another_data_set_is_refused(copied):
    content = json.loads((copied / "manifest.json").read_text())
    edit_manifest(copied, tree=content["tree"] | {"sha256": "0" * 64})
    with pytest.raises(DataError, match=r"tree.json: expected the label tree 000000000000 .* another tree"):
        make(copied)


def shorten(path):
    with open(path, "r+b") as file:
        file.truncate(path.stat().st_size - 1024)


def lengthen(path):
    with open(path, "ab") as file:
        file.write(bytes(512))


def forget_a_sample(path):
    """Consistent with the manifest's hash of the index, but not with its number of samples."""
    content = json.loads((path.parent / "manifest.json").read_text())
    content["shards"][3]["samples"] -= 1
    content["num_samples"] -= 1
    edit_manifest(path.parent, **content)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            shorten,
            r"train-000003.tar: expected \d+ bytes, found \d+; the shard is cut short. Copy it again, or",
        ),
        (
            lengthen,
            r"train-000003.tar: expected \d+ bytes, found \d+; it is another shard. Copy it again, or",
        ),
        (lambda path: path.unlink(), r"train-000003.tar: expected the shard and its .idx in .*, found: "),
        (lambda path: path.with_suffix(".idx").unlink(), r"expected the shard and its .idx in .*, found: "),
        (
            lambda path: path.with_suffix(".idx").write_text("v1.2 0\n"),
            "train-000003.idx: expected the manifest's SHA-256, found another. Copy it again, or run: softshard",
        ),
        (forget_a_sample, r"train-000003.tar: expected \d+ samples of \['jpg', .*\], found \d+ of \['jpg'"),
    ],
    ids=["cut short", "too long", "no shard", "no index", "another index", "another count"],
)
def test_a_shard_that_is_not_the_manifests_is_named_when_it_is_needed(
    copied, plain_samples, within, change, message
):
    start = sum(shard.samples for shard in Manifest.load(copied).shards[:3])
    change(copied / "train-000003.tar")
    with make(copied) as loader:
        keys, said = within(lambda: keys_until_error(loader))
        assert keys == [sample.key for sample in plain_samples[: start // 8 * 8]]
        with pytest.raises(DataError, match=message):
            raise DataError(said)


def test_a_shard_that_is_cut_while_it_is_read_is_an_error_that_names_it(copied, plain_samples, within):
    def cut_and_serve(loader):
        keys = []
        try:
            for batch in loader:
                keys.extend(key for key in batch.keys if key)
                for path in copied.glob("*.tar"):
                    os.truncate(path, 4096)
        except DataError as error:
            return keys, str(error)
        raise AssertionError("expected an error, found a whole epoch")

    with make(copied, prefetch=1) as loader:
        keys, said = within(lambda: cut_and_serve(loader))
        assert loader.num_bad == 0  # the shard's fault, not its samples'
    assert keys == [sample.key for sample in plain_samples[: len(keys)]]
    assert len(keys) >= 8
    assert re.search(
        r"train-00000\d.tar: expected \d+ bytes.*, found \d+; the shard (was|is) cut short", said
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"targets": "labels"},
            "expected targets of none, original, relabel, relabel-global, .*, found 'labels'",
        ),
        ({"dtype": "bfloat16"}, "expected dtype of uint8, float16, float32, found 'bfloat16'"),
        ({"last_batch": "keep"}, "expected last_batch of drop, pad, found 'keep'"),
        ({"device": "gpu"}, "expected device 'cpu' or 'cuda', found 'gpu'"),
        ({"device": "meta"}, "expected device 'cpu' or 'cuda', found 'meta'"),
        ({"batch_size": 0}, "expected batch_size, prefetch, window and num_threads from 1, found 0, 2"),
        ({"prefetch": 0}, "expected batch_size, prefetch, window and num_threads from 1, found 8, 0"),
        ({"window": 0}, "from 1, found 8, 2, 0 and 2"),
        ({"num_threads": 0}, "from 1, found 8, 2, 32768 and 0"),
        ({"lanes": 3}, "expected lanes that divide the global batch 8"),
        ({"rank": 2, "world_size": 2}, "expected a rank from 0 to 1, found 2 of world size 2"),
        ({"seed": -1}, r"expected seed as an int from 0 to 2\*\*64 - 1, found -1"),
        ({"mean": (0.5,)}, r"expected a mean and a std above 0 of three channels, found \(0.5,\)"),
        ({"std": (1, 1, 0)}, "expected a mean and a std above 0 of three channels"),
    ],
)
def test_wrong_options_are_refused_when_the_loader_is_built(packed, options, message):
    with pytest.raises(UsageError, match=message):
        make(packed, **options)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there_is_refused(packed):
    with pytest.raises(UsageError, match="expected an NVIDIA GPU for device 'cuda:0', found none"):
        make(packed, device="cuda:0")


def test_relabel_needs_label_maps(packed_plain):
    message = (
        r"expected label maps for targets that pool them, found components \['jpg', 'cls', 'msgpack'\]. Run"
    )
    with pytest.raises(UsageError, match=message):
        make(packed_plain, targets="relabel")


def test_relabel_needs_label_maps_over_the_same_classes(copied):
    content = json.loads((copied / "manifest.json").read_text())
    edit_manifest(copied, label_maps=content["label_maps"] | {"num_classes": 1000})
    message = "expected label maps over the 9 classes of the class list, found 1000; the teacher has another"
    with pytest.raises(DataError, match=message):
        make(copied, targets="relabel")


def test_an_epoch_that_the_generator_cannot_count_is_refused(packed):
    with make(packed) as loader:
        for epoch in (-1, 2**32, 0.5):
            with pytest.raises(UsageError, match="expected epoch as an int from 0"):
                loader.set_epoch(epoch)


def test_a_closed_loader_is_not_iterated(packed):
    loader = make(packed)
    loader.close()
    with pytest.raises(UsageError, match="expected an open loader, found one that was closed"):
        next(iter(loader))


def test_an_unknown_option_is_a_type_error(packed):
    with pytest.raises(TypeError, match="batchsize"):
        Loader(packed, batchsize=3)
