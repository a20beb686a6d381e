import base64
import hashlib
import os
import resource
import tarfile
from pathlib import Path

import pytest

from softshard.shards import DataError, ShardWriter, read_shard
from softshard.shards.files import write_atomically

# A whole baseline JPEG of 8 x 8 pixels: golden bytes are of the container, whatever an encoder's version does.
JPEG = base64.b64decode(
    "/9j/4AAQSkZJRgABAQAAAQABAAD/2wBDABALDA4MChAODQ4SERATGCgaGBYWGDEjJR0oOjM9PDkzODdASFxOQERXRTc4UG1RV19i"
    "Z2hnPk1xeXBkeFxlZ2P/2wBDARESEhgVGC8aGi9jQjhCY2NjY2NjY2NjY2NjY2NjY2NjY2NjY2NjY2NjY2NjY2NjY2NjY2NjY2Nj"
    "Y2NjY2NjY2P/wAARCAAIAAgDASIAAhEBAxEB/8QAFQABAQAAAAAAAAAAAAAAAAAAAAX/xAAXEAEBAQEAAAAAAAAAAAAAAAABABEx"
    "/8QAFQEBAQAAAAAAAAAAAAAAAAAAAwb/xAAVEQEBAAAAAAAAAAAAAAAAAAAAMf/aAAwDAQACEQMRAD8AlKqq6vVkkCnj/9k="
)
SUFFIXES = ["msgpack", "lmap", "cls", "hier.npy", "jpg"]  # the writer puts them in the order of the schema
SAMPLES = {
    "n01440764_42": {
        "jpg": JPEG,
        "cls": b"0",
        "hier.npy": b"\x93NUMPY" + b"h" * 130,
        "lmap": b"SSLM" + b"m" * 508,
        "msgpack": b"\x80",
    },
    "caf--3f6a9c01": {"jpg": JPEG[::-1], "cls": b"1", "hier.npy": b"", "lmap": b"", "msgpack": b"\x80"},
}


def write(folder, samples=SAMPLES):
    with ShardWriter(folder / "train-000000.tar", SUFFIXES) as writer:
        for key, parts in samples.items():
            writer.write(key, parts)
    return writer


def test_the_bytes_of_a_shard_never_change(tmp_path):
    record = write(tmp_path).record
    tar, idx = ((tmp_path / f"train-000000.{suffix}").read_bytes() for suffix in ("tar", "idx"))
    assert (
        hashlib.sha256(tar).hexdigest() == "6783edb2e00d9fa45ff0f9f8479d08bf0ad07ed348809054fdb574300d581681"
    )
    assert (
        hashlib.sha256(idx).hexdigest() == "7124540273d37ca8d2c3d75ad523c3c44ac3927f73b2c7c2e4de3d342bcadc62"
    )
    assert record.to_json() == {
        "name": "train-000000.tar",
        "samples": 2,
        "bytes": len(tar),
        "sha256": hashlib.sha256(tar).hexdigest(),
        "index_sha256": hashlib.sha256(idx).hexdigest(),
    }


def test_the_same_samples_twice_give_the_same_bytes(tmp_path, monkeypatch):
    (tmp_path / "one").mkdir()
    (tmp_path / "two").mkdir()
    write(tmp_path / "one")
    monkeypatch.setenv("TZ", "Pacific/Auckland")
    os.umask(os.umask(0o077))
    write(tmp_path / "two", {key: dict(reversed(parts.items())) for key, parts in SAMPLES.items()})
    for name in ("train-000000.tar", "train-000000.idx"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


def test_what_was_written_is_read_in_the_order_of_the_schema(tmp_path):
    samples = list(read_shard(write(tmp_path).path))
    assert {sample.key: sample.parts for sample in samples} == SAMPLES
    assert [list(sample.parts) for sample in samples] == [["jpg", "cls", "hier.npy", "lmap", "msgpack"]] * 2


def test_every_member_is_a_plain_ustar_file_of_nobody(tmp_path):
    path = write(tmp_path).path
    with tarfile.open(path) as tar:
        for member in tar:
            found = (
                member.type,
                member.mode,
                member.uid,
                member.gid,
                member.uname,
                member.gname,
                member.mtime,
            )
            assert found == (tarfile.REGTYPE, 0o644, 0, 0, "", "", 0)
    data = path.read_bytes()
    assert data[257:265] == b"ustar\x0000"
    assert len(data) % 512 == 0
    assert data[-1024:] == bytes(1024)


def test_an_unknown_component_comes_last(tmp_path):
    with ShardWriter(tmp_path / "x.tar", ["aux", "msgpack", "jpg"]) as writer:
        writer.write("a", {"jpg": b"j", "msgpack": b"m", "aux": b"x"})
    assert list(next(iter(read_shard(writer.path))).parts) == ["jpg", "msgpack", "aux"]


def test_nothing_stays_behind_after_an_exception(tmp_path):
    def fail():
        with ShardWriter(tmp_path / "x.tar", ["jpg"]) as writer:
            writer.write("a", {"jpg": b"j"})
            raise RuntimeError("power")

    with pytest.raises(RuntimeError, match="power"):
        fail()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("failing", ["fsync", "replace"])
def test_nothing_stays_behind_when_the_disk_fails_at_the_end(tmp_path, monkeypatch, failing):
    def fail(*_):
        raise OSError(28, "No space left on device")

    writer = ShardWriter(tmp_path / "x.tar", ["jpg"])
    writer.write("a", {"jpg": b"j"})
    monkeypatch.setattr(os, failing, fail)
    with pytest.raises(OSError, match="No space"):
        writer.close()
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_leaves_nothing_and_the_file_is_named(tmp_path):
    """A limit of the system's stands for the disk's. What is still in memory then has no room either."""

    def write_too_much():
        with ShardWriter(tmp_path / "x.tar", ["jpg"]) as writer:
            for i in range(1000):
                writer.write(f"a{i}", {"jpg": bytes(5000)})

    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, limits[1]))
    try:
        with pytest.raises(OSError, match=r"File too large: .*x\.tar\."):
            write_too_much()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert list(tmp_path.iterdir()) == []


def test_a_pipe_and_a_name_of_an_open_file_are_written_to_and_not_replaced(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    pipe = os.open(tmp_path / "pipe", os.O_RDWR)
    reader, writer = os.pipe()
    try:
        write_atomically(tmp_path / "pipe", b"a tree")
        assert os.read(pipe, 100) == b"a tree"
        write_atomically(Path(f"/dev/fd/{writer}"), b"a page")
        assert os.read(reader, 100) == b"a page"
    finally:
        for descriptor in (pipe, reader, writer):
            os.close(descriptor)
    assert [path.name for path in tmp_path.iterdir()] == ["pipe"]


def test_a_shard_has_no_name_before_it_is_whole(tmp_path):
    with ShardWriter(tmp_path / "x.tar", ["jpg"]) as writer:
        writer.write("a", {"jpg": b"j"})
        assert [path.suffix for path in tmp_path.iterdir()] == [".part"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["x.idx", "x.tar"]


def test_a_shard_that_is_there_stays_when_its_rewrite_fails(tmp_path):
    before = write(tmp_path).path.read_bytes()
    with pytest.raises(DataError):
        write(tmp_path, {"a b": SAMPLES["n01440764_42"]})
    assert (tmp_path / "train-000000.tar").read_bytes() == before


GOOD = {"jpg": b"j", "cls": b"0"}


@pytest.mark.parametrize(
    ("samples", "message"),
    [
        ([], "x.tar: expected at least one sample, found none"),
        ([("a", GOOD), ("a", GOOD)], "x.tar: sample 'a': expected each key once in a shard, found it again"),
        ([("a.b", GOOD)], "x.tar: sample 'a.b': expected a key of 1 to 89 letters, digits, '_' or '-'"),
        ([("", GOOD)], "x.tar: sample '': expected a key"),
        ([("../a", GOOD)], "x.tar: sample '../a': expected a key"),
        ([("a\n", GOOD)], "x.tar: sample 'a\\n': expected a key"),
        ([("é", GOOD)], "x.tar: sample 'é': expected a key"),
        ([("k" * 90, GOOD)], f"x.tar: sample '{'k' * 90}': expected a key"),
        ([("a", {"jpg": b""})], "x.tar: sample 'a': expected components ['jpg', 'cls'], found ['jpg']"),
        (
            [("a", {**GOOD, "lmap": b""})],
            "x.tar: sample 'a': expected components ['jpg', 'cls'], found ['cls', ",
        ),
        (
            [("a", {**GOOD, "cls": b"1" * 17})],
            "x.tar: sample 'a', component 'cls': expected at most 16 bytes, found 17",
        ),
    ],
)
def test_a_wrong_sample_is_refused_and_leaves_nothing(tmp_path, samples, message):
    def write_all():
        with ShardWriter(tmp_path / "x.tar", ["jpg", "cls"]) as writer:
            for key, parts in samples:
                writer.write(key, parts)

    with pytest.raises(DataError) as caught:
        write_all()
    assert str(caught.value).startswith(message)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("suffixes", [["JPG"], ["jpg", "jpg"], ["a b"], ["s" * 11], [""]])
def test_a_suffix_that_no_reader_would_find_is_refused(tmp_path, suffixes):
    with pytest.raises(DataError, match=r"^x\.tar: expected distinct component suffixes"):
        ShardWriter(tmp_path / "x.tar", suffixes)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["a" * 255, "é" * 127])
def test_a_file_may_have_the_longest_name_that_there_is(tmp_path, name):
    write_atomically(tmp_path / name, b"whole")
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_a_small_file_is_replaced_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "plan.json"
    write_atomically(path, b"old")

    def fail(*_):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="Input/output"):
        write_atomically(path, b"new")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]
