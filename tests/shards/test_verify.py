import json
import re
import shutil

import numpy as np
import pytest
import simplejpeg
from packed_files import scan_tar

from softshard.shards import (
    DataError,
    LabelTree,
    Manifest,
    ShardWriter,
    UsageError,
    encode_label_map,
    read_shard,
    verify,
)
from softshard.shards.components import encode_levels
from softshard.shards.gather import key_hashes
from softshard.shards.index import build_index
from softshard.shards.names import Names
from softshard.shards.verify import _keys_used_again, data_set_folders
from softshard.shards.verify_shard import Expected, ShardFindings, check_sample

SHARD = "train-000001.tar"


def rewrite(folder, change, *, manifest_too=True):
    """Write a shard again with changed parts, and by default its hashes into the manifest."""
    samples = [(sample.key, dict(sample.parts)) for sample in read_shard(folder / SHARD)]
    change(samples)
    with ShardWriter(folder / SHARD, list(samples[0][1])) as writer:
        for key, parts in samples:
            writer.write(key, parts)
    if manifest_too:
        content = json.loads((folder / "manifest.json").read_bytes())
        content["shards"][1] = writer.record.to_json()
        content["num_samples"] = sum(shard["samples"] for shard in content["shards"])
        (folder / "manifest.json").write_text(json.dumps(content))
    return samples


def put(suffix, value, sample=0):
    def change(samples):
        samples[sample][1][suffix] = value

    return change


def problems(folder, **options):
    """The problems, their files named without the data set's folder."""
    return [problem.replace(f"{folder}/", "") for problem in verify(folder, **options).problems]


def test_a_good_data_set_has_no_problems(packed_once):
    report = verify(packed_once, decode=True)
    assert report.ok
    assert (report.shards, report.samples, report.problems) == (5, 16, [])


def test_one_shard_can_be_checked_alone(packed):
    (packed / "train" / "train-000000.tar").unlink()
    report = verify(packed / "train" / SHARD)
    assert (report.shards, report.samples, report.problems) == (1, 3, [])
    assert problems(packed / "train" / "train-000000.tar") != []


def test_a_shard_that_is_not_in_the_manifest_is_reported(packed):
    shutil.copy(packed / "train" / SHARD, packed / "train" / "other.tar")
    assert problems(packed / "train" / "other.tar") == [
        f"{packed / 'train'}/other.tar: expected a shard of the manifest, found no such name there"
    ]
    assert problems(packed / "train") == [
        "other.tar: expected only the manifest's shards, found this one too"
    ]


# ---- Damaged files


def test_a_shard_cut_within_a_member_is_reported_with_sample_component_and_sizes(packed):
    path = packed / "train" / SHARD
    index = build_index(scan_tar(path), SHARD)
    size, last = path.stat().st_size, index.column("lmap")
    start, length = int(index.offsets[-1, last]), int(index.sizes[-1, last])
    path.write_bytes(path.read_bytes()[: start + length - 2])
    assert problems(packed / "train") == [
        f"{SHARD}: expected {size} bytes, found {start + length - 2}; the shard is cut short. Copy it again, or pack again",
        f"{SHARD}: sample '{index.keys[-1]}', component 'lmap': expected {length} bytes, found {length - 2}; "
        f"the shard is cut short. Copy it again, then run: softshard verify {SHARD}",
    ]


def test_a_shard_cut_at_a_sample_boundary_is_reported(packed):
    path = packed / "train" / SHARD
    data = path.read_bytes()
    second = scan_tar(path)[5].offset - 512
    path.write_bytes(data[:second] + bytes(1024))  # even with the end-of-archive blocks
    found = problems(packed / "train")
    assert f"{SHARD}: expected {len(data)} bytes, found {second + 1024}; the shard is cut short" in found[0]
    assert f"{SHARD}: expected 3 samples, found 1" in found
    assert any("train-000001.idx: expected members within" in problem for problem in found)


def test_a_flipped_byte_of_any_file_is_reported(packed):
    for name in (SHARD, "train-000001.idx", "classes.npy", "manifest.json", "tree.json"):
        path = packed / "train" / name
        data = path.read_bytes()
        step = max(1, len(data) // 40)
        for at in range(0, len(data), step):
            damaged = bytearray(data)
            damaged[at] ^= 1
            path.write_bytes(damaged)
            if name in ("manifest.json", "tree.json"):
                # Not every byte of these two is under a hash (the recipe is not): a change may be readable.
                problems(packed / "train")
            else:
                assert problems(packed / "train"), f"{name}: byte {at}"
        path.write_bytes(data)
    assert problems(packed / "train") == []


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (SHARD, f"{SHARD}: expected a shard of [0-9]+ bytes, found none. Copy it again, or pack again"),
        ("train-000001.idx", "train-000001.idx: expected the shard's index, found none"),
        ("classes.npy", "classes.npy: expected every sample's class as int32, found: "),
        ("tree.json", "train: .*tree.json: cannot be read"),
    ],
)
def test_a_missing_file_is_reported(packed, name, message):
    (packed / "train" / name).unlink()
    (problem,) = problems(packed / "train")
    assert re.search(message, problem)


def test_a_shard_that_cannot_be_read_is_a_problem_and_the_others_are_checked(packed):
    (packed / "train" / SHARD).unlink()
    (packed / "train" / SHARD).mkdir()
    report = verify(packed / "train")
    (problem,) = report.problems
    assert problem.endswith(
        f"{SHARD}: expected a shard that can be read, found: Is a directory. Copy it again, or pack again"
    )
    assert report.samples > 0
    (packed / "train" / "manifest.json").unlink()
    (packed / "train" / "manifest.json").mkdir()
    (problem,) = verify(packed / "train").problems
    found = "expected a file that can be read, found: Is a directory. Copy it again, or pack again"
    assert problem.endswith(f"manifest.json: {found}")


def test_an_index_of_another_shard_is_reported(packed):
    shutil.copy(packed / "train" / "train-000002.idx", packed / "train" / "train-000001.idx")
    found = problems(packed / "train")
    assert found[0].startswith("train-000001.idx: expected SHA-256 ")
    assert len(found) == 2


def test_another_tree_is_reported(packed):
    other = LabelTree.from_table(["bird", "dog", "oak"], [("bird", "x"), ("dog", "x"), ("oak", "x")])
    other.save(packed / "train" / "tree.json")
    (problem,) = problems(packed / "train")
    assert "expected the label tree" in problem


def test_a_tree_of_other_classes_is_reported_once_and_not_taken_for_the_labels(packed):
    other = LabelTree.from_table(["bird"], [("bird", "animal")])
    other.save(packed / "train" / "tree.json")
    content = json.loads((packed / "train" / "manifest.json").read_bytes())
    content["tree"]["sha256"] = other.fingerprint
    (packed / "train" / "manifest.json").write_text(json.dumps(content))
    assert problems(packed / "train") == [
        f"{packed / 'train'}: expected the tree's classes to be the manifest's class list, found others"
    ]


# ---- Damaged samples, with hashes that fit


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (put("jpg", b""), "component 'jpg': expected a JPEG, found 0 bytes"),
        (put("jpg", b"\x89PNG" + bytes(30)), r"component 'jpg': expected a JPEG, found bytes b'\x89PNG'"),
        (put("cls", b"5"), "component 'cls': expected a class below 5, found 5"),
        (put("cls", b"-1"), "component 'cls': expected a decimal class index, found b'-1'"),
        (put("cls", b""), "component 'cls': expected a decimal class index, found b''"),
        (put("cls", b"4"), "component 'cls': expected class "),
        (put("hier.npy", b""), "component 'hier.npy': expected `.npy` 1.0, int16 [L] or [A, L], found another header"),
        (put("hier.npy", b"PK\3\4" + bytes(100)), "component 'hier.npy': expected `.npy` 1.0, int16 [L] or [A, L]"),
        (put("lmap", b"SSLM"), "component 'lmap': expected 28 to 4194304 bytes, found 4"),
        (put("msgpack", b"\xc1"), "component 'msgpack': expected a MessagePack map, found: "),
        (put("msgpack", b"\x90"), "component 'msgpack': expected a map, found list"),
        (put("msgpack", b"\x80"), "component 'msgpack': expected `path` and `size`, found {}"),
    ],
)  # fmt: skip
def test_a_damaged_component_is_reported(packed, change, message):
    samples = rewrite(packed / "train", change)
    (problem,) = problems(packed / "train")
    where, _, rest = problem.partition(", ")
    assert where == f"{SHARD}: sample '{samples[0][0]}'"
    assert rest.startswith(message)


def test_a_wrong_label_vector_is_reported_with_both(packed, table_tree):
    samples = [sample.parts for sample in read_shard(packed / "train" / SHARD)]
    index = int(samples[0]["cls"])
    header = samples[0]["hier.npy"][:128]
    rewrite(packed / "train", put("hier.npy", header + np.array([9, 9], "<i2").tobytes()))
    (problem,) = problems(packed / "train")
    expected = table_tree.vectors()[index].tolist()
    assert problem.endswith(f"component 'hier.npy': expected {expected} for class {index}, found [9, 9]")


@pytest.mark.parametrize("shape", [(3,), (2, 3), (1, 3)])
def test_label_vectors_are_compared_whole_whatever_their_shape(packed_once, shape):
    manifest = Manifest.load(packed_once / "train")
    vectors = np.arange(5 * np.prod(shape)).reshape(5, *shape).astype(np.int16)
    sample = next(iter(read_shard(packed_once / "train" / SHARD))).parts
    index = int(sample["cls"])
    expected = Expected(
        packed_once,
        manifest.components,
        5,
        manifest.label_maps,
        vectors=vectors,
        level_sizes=None,
        decode=False,
    )

    def found(vector):
        problems = []
        check_sample("s", {**sample, "hier.npy": encode_levels(vector)}, expected, index, problems)
        return problems

    assert found(vectors[index]) == []
    changed = vectors[index].copy()
    changed[(-1,) * len(shape)] = -1
    for other in (changed, vectors[index].ravel() if len(shape) == 2 else vectors[index][None]):
        (problem,) = found(other)
        assert f"expected {vectors[index].tolist()} for class {index}, found {other.tolist()}" in problem


def test_a_map_of_another_shape_is_reported(packed):
    one = np.zeros((1, 4, 5), int)
    rewrite(packed / "train", put("lmap", encode_label_map(one, one, num_classes=5)))
    (problem,) = problems(packed / "train")
    assert problem.endswith("expected [K, P, Q] [3, 4, 5] over 5 classes, found [1, 4, 5] over 5")


def test_a_jpeg_that_is_not_baseline_rgb_is_reported(packed, picture):
    grey = simplejpeg.encode_jpeg(
        picture(16, 16)[:, :, :1].copy(), colorspace="GRAY", colorsubsampling="Gray"
    )
    rewrite(packed / "train", put("jpg", grey))
    (problem,) = problems(packed / "train")
    assert problem.endswith("component 'jpg': expected a baseline RGB JPEG, found another kind")


def test_only_decode_looks_at_every_pixel(packed):
    jpeg = next(iter(read_shard(packed / "train" / SHARD))).parts["jpg"]
    rewrite(packed / "train", put("jpg", jpeg[:-40]))
    assert problems(packed / "train") == []
    (problem,) = problems(packed / "train", decode=True)
    assert "component 'jpg': expected a whole JPEG, found: " in problem


def test_a_key_in_two_shards_is_reported(packed):
    other = next(iter(read_shard(packed / "train" / "train-000000.tar"))).key

    def rename(samples):
        samples[0] = (other, samples[0][1])

    rewrite(packed / "train", rename)
    assert problems(packed / "train") == [
        f"{SHARD}: sample '{other}': expected each key once, also in train-000000.tar"
    ]


def test_keys_in_many_shards_are_reported_in_the_order_of_shards_and_samples():
    shards = [["a", "b", "c"], [], ["x", "c", "a"], ["y"], ["a"]]
    findings = [ShardFindings(keys=Names(keys), key_hashes=key_hashes(keys)) for keys in shards]
    assert _keys_used_again(["0", "1", "2", "3", "4"], findings) == [
        "2: sample 'c': expected each key once, also in 0",
        "2: sample 'a': expected each key once, also in 0",
        "4: sample 'a': expected each key once, also in 2",
    ]
    assert _keys_used_again(["1", "3"], [findings[1], findings[3]]) == []
    assert _keys_used_again(["1"], [findings[1]]) == []


def test_keys_of_one_hash_that_differ_are_not_reported():
    hashes = np.array([7], np.uint64)
    findings = [ShardFindings(keys=Names([key]), key_hashes=hashes) for key in "ab"]
    assert _keys_used_again(["0", "1"], findings) == []


def test_other_components_than_the_manifest_s_are_reported(packed):
    def drop(samples):
        for _, parts in samples:
            del parts["lmap"]

    rewrite(packed / "train", drop)
    assert problems(packed / "train") == [
        f"{SHARD}: expected components ['jpg', 'cls', 'hier.npy', 'lmap', 'msgpack'], "
        "found ['jpg', 'cls', 'hier.npy', 'msgpack']"
    ]


def test_every_problem_is_reported_and_not_the_first(packed):
    folder = packed / "train"

    def damage(samples):
        samples[0][1]["cls"] = b"x"
        samples[0][1]["lmap"] = b"y"
        samples[1][1]["jpg"] = b"z"

    rewrite(folder, damage)
    (folder / "train-000000.tar").unlink()
    (folder / "train-000002.idx").write_bytes(b"")
    (packed / "val" / "classes.npy").unlink()
    found = "\n".join(problems(packed))
    for part in (
        "'cls'",
        "'lmap'",
        "'jpg'",
        "train-000000.tar: expected a shard",
        "train-000002.idx",
        "val/classes.npy",
    ):
        assert part in found


def test_a_manifest_that_cannot_be_read_does_not_hide_the_other_data_set(packed):
    (packed / "train" / "manifest.json").write_text('{"format": "softshard", "version": [2, 0]}')
    (packed / "val" / "val-000000.idx").unlink()
    found = problems(packed)
    assert "expected version 1.x, found 2.0" in found[0]
    assert (
        found[1] == "val/val-000000.idx: expected the shard's index, found none. Copy it again, or pack again"
    )


# ---- What is no data set


def test_a_folder_without_data_sets_is_an_error(tmp_path):
    with pytest.raises(DataError) as caught:
        verify(tmp_path)
    assert str(caught.value) == (
        f"{tmp_path}: expected a data set (a folder with manifest.json), found none; the path is another one, or packing "
        "has not finished (the manifest is written last). Run `softshard pack` again: it continues"
    )


def test_an_unknown_protocol_is_a_wrong_call():
    with pytest.raises(
        UsageError, match="nowhere://bucket/train: expected a path or a URL that fsspec knows"
    ):
        verify("nowhere://ann:secret@bucket/train")


def test_the_folder_above_finds_both_data_sets(packed_once):
    assert data_set_folders(packed_once) == [packed_once / "train", packed_once / "val"]
    assert data_set_folders(packed_once / "val") == [packed_once / "val"]
    assert Manifest.load(packed_once / "val").num_samples == 3


def test_shards_without_their_manifest_are_a_problem(packed):
    (packed / "train" / "manifest.json").unlink()
    problems = verify(packed).problems
    assert problems == [
        f"{packed / 'train'}: expected manifest.json beside its shards, found none. Copy it again, or pack again"
    ]
