import gc
import importlib.util
import io
import subprocess
import sys
import tarfile

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from packed_files import scan_tar
from waiting import LONG_S

from softshard.shards import DataError, ShardWriter, read_shard
from softshard.shards.index import (
    build_index,
    format_index,
    padded,
    parse_index,
    tar_members,
)

SAMPLES = {
    "a_1": {"jpg": b"j" * 700, "cls": b"0", "hier.npy": b"h" * 512},
    "a_2": {"jpg": b"k" * 100, "cls": b"12", "hier.npy": b""},
    "b_1": {"jpg": b"l" * 513, "cls": b"3", "hier.npy": b"i" * 511},
}


@pytest.fixture
def shard(tmp_path):
    with ShardWriter(tmp_path / "t-000000.tar", ["jpg", "cls", "hier.npy"]) as writer:
        for key, parts in SAMPLES.items():
            writer.write(key, parts)
    return writer.path


def same(one, other):
    return (
        one.suffixes == other.suffixes
        and one.keys == other.keys
        and np.array_equal(one.offsets, other.offsets)
        and np.array_equal(one.sizes, other.sizes)
    )


def test_the_scan_finds_what_tarfile_finds(shard):
    with tarfile.open(shard) as tar:
        expected = [(member.name, member.offset_data, member.size) for member in tar.getmembers()]
    assert [(f"{m.key}.{m.suffix}", m.offset, m.size) for m in scan_tar(shard)] == expected


def test_offsets_and_sizes_cut_out_the_components(shard):
    index = build_index(scan_tar(shard), shard.name)
    data = shard.read_bytes()
    for i, key in enumerate(index.keys):
        for suffix, content in SAMPLES[key].items():
            column = index.column(suffix)
            start, size = index.offsets[i, column], index.sizes[i, column]
            assert data[start : start + size] == content


def test_an_index_reads_back(shard):
    index = build_index(scan_tar(shard), shard.name)
    text = shard.with_suffix(".idx").read_text("ascii")
    assert format_index(index) == text
    assert same(parse_index(text, "t-000000.idx", shard.stat().st_size), index)


def test_the_index_is_byte_for_byte_what_dali_s_own_tool_writes(shard, tmp_path):
    if importlib.util.find_spec("wds2idx") is None:
        pytest.skip("needs DALI, whose wheel brings wds2idx")
    command = [sys.executable, "-m", "wds2idx", shard, tmp_path / "dali.idx"]
    subprocess.run(command, check=True, capture_output=True, timeout=LONG_S)
    assert (tmp_path / "dali.idx").read_bytes() == shard.with_suffix(".idx").read_bytes()


def test_every_cut_of_a_shard_is_noticed_by_scan_and_reader(shard, tmp_path):
    data = shard.read_bytes()
    boundaries = {m.offset + padded(m.size) for m in scan_tar(shard)}
    assert len(boundaries) == 9
    cut = tmp_path / "cut.tar"
    for size in sorted({*range(0, len(data), 97), *boundaries, len(data) - 512, len(data) - 1}):
        cut.write_bytes(data[:size])
        for look in (scan_tar, lambda path: list(read_shard(path))):
            with pytest.raises(DataError, match=r"^cut\.tar: .*expected"):
                look(cut)


def test_a_cut_within_a_member_names_sample_component_and_sizes(shard, tmp_path):
    member = scan_tar(shard)[3]
    cut = tmp_path / "cut.tar"
    cut.write_bytes(shard.read_bytes()[: member.offset + 98])
    expected = (
        "cut.tar: sample 'a_2', component 'jpg': expected 100 bytes, found 98; the shard is cut short. "
        "Copy it again, then run: softshard verify cut.tar"
    )
    for look in (scan_tar, lambda path: list(read_shard(path))):
        with pytest.raises(DataError) as caught:
            look(cut)
        assert str(caught.value) == expected


def test_a_cut_at_a_member_boundary_says_so(shard, tmp_path):
    cut = tmp_path / "cut.tar"
    end = scan_tar(shard)[2].offset + 512
    cut.write_bytes(shard.read_bytes()[:end])
    with pytest.raises(
        DataError, match=f"expected at least {end + 1024} bytes with the end-of-archive blocks, found {end}"
    ):
        scan_tar(cut)


def test_a_damaged_header_is_not_taken_for_the_end(shard):
    data = bytearray(shard.read_bytes())
    at = scan_tar(shard)[4].offset - 512
    data[at + 3] ^= 1
    shard.write_bytes(data)
    for look in (scan_tar, lambda path: list(read_shard(path))):
        with pytest.raises(
            DataError, match=f"expected a member or the end-of-archive blocks at byte {at}, found neither"
        ):
            look(shard)


@pytest.mark.parametrize("content", [b"", b"x", b"\0" * 512, b"x" * 4096, b"\x1f\x8b" + b"x" * 2000])
def test_something_else_than_a_tar_is_refused(tmp_path, content):
    (tmp_path / "x.tar").write_bytes(content)
    for look in (scan_tar, lambda path: list(read_shard(path))):
        with pytest.raises(DataError, match=r"^x\.tar: expected"):
            look(tmp_path / "x.tar")


@pytest.mark.parametrize(
    "kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.DIRTYPE, tarfile.CHRTYPE, tarfile.GNUTYPE_SPARSE]
)
def test_links_devices_and_sparse_files_are_refused(tmp_path, kind):
    with tarfile.open(tmp_path / "x.tar", "w", format=tarfile.GNU_FORMAT) as tar:
        member = tarfile.TarInfo("a.jpg")
        member.type, member.linkname = kind, "/etc/passwd"
        tar.addfile(member)
    with pytest.raises(DataError, match=r"x\.tar: expected (plain files only|a tar)"):
        scan_tar(tmp_path / "x.tar")


def test_headers_that_were_listed_are_not_kept(shard):
    with open(shard, "rb") as file:
        members = tar_members(file, "t")
        for _ in range(9):
            next(members)
        gc.collect()
        kept = [found for found in gc.get_objects() if type(found) is tarfile.TarInfo]
        assert [header.name for header in kept] == ["b_1.hier.npy"]


def test_a_tar_of_too_many_members_is_refused(shard, monkeypatch):
    monkeypatch.setattr("softshard.shards.index.MAX_TAR_MEMBERS", 9)
    assert len(scan_tar(shard)) == 9
    monkeypatch.setattr("softshard.shards.index.MAX_TAR_MEMBERS", 8)
    with pytest.raises(DataError, match=r"^t-000000\.tar: expected at most 8 members, found more"):
        scan_tar(shard)


def test_the_tars_of_other_tools_are_read(tmp_path):
    for kind in (tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        path = tmp_path / f"{kind}.tar"
        with tarfile.open(path, "w", format=kind) as tar:
            for name in ("x/" * 60 + "a.jpg", "é.cls"):
                member = tarfile.TarInfo(name)
                member.size, member.mtime = 3, 1.5
                tar.addfile(member, io.BytesIO(b"abc"))
        assert [(m.key, m.suffix, m.size) for m in scan_tar(path)] == [
            ("x/" * 60 + "a", "jpg", 3),
            ("é", "cls", 3),
        ]


@settings(max_examples=200)
@given(st.data())
def test_a_flipped_byte_in_a_header_is_noticed_or_changes_nothing(tmp_path_factory, data):
    folder = tmp_path_factory.getbasetemp() / "flip"
    folder.mkdir(exist_ok=True)
    samples = {"a": {"jpg": b"x" * 20}, "b": {"jpg": b"y" * 20}}
    with ShardWriter(folder / "f.tar", ["jpg"]) as writer:
        for key, parts in samples.items():
            writer.write(key, parts)
    content = bytearray(writer.path.read_bytes())
    at = data.draw(st.integers(0, 511)) + data.draw(st.sampled_from([0, 1024]))
    content[at] = data.draw(st.integers(0, 255).filter(lambda value: value != content[at]))
    writer.path.write_bytes(content)
    try:
        found = {sample.key: sample.parts for sample in read_shard(writer.path)}
    except DataError:
        with pytest.raises(DataError):
            scan_tar(writer.path)
    else:  # only the padding of the checksum itself is not under the checksum
        assert found == samples
        assert 148 <= at % 1024 < 156


# ---- Grouping into samples


def write_tar(path, *names):
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
        for name in names:
            tar.addfile(tarfile.TarInfo(name))
    return path


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (
            ("a.jpg", "a.cls", "b.jpg"),
            r"sample 'b': expected components \['jpg', 'cls'\] as in the first sample, found \['jpg'\]",
        ),
        (("a.jpg", "a.cls", "b.cls", "b.jpg"), r"sample 'b': expected components"),
        (("a.jpg", "b.jpg", "a.jpg"), "sample 'a': expected each key once, found it again"),
        ((), "expected samples, found an empty tar"),
    ],
)
def test_members_that_make_no_samples_are_refused(tmp_path, names, message):
    path = write_tar(tmp_path / "x.tar", *names)
    with pytest.raises(DataError, match=r"^x\.tar: " + message):
        build_index(scan_tar(path), path.name)


def test_a_member_longer_than_its_component_may_be_is_refused(tmp_path):
    with tarfile.open(tmp_path / "x.tar", "w") as tar:
        member = tarfile.TarInfo("a.cls")
        member.size = 17
        tar.addfile(member, io.BytesIO(b"1" * 17))
    message = r"^x\.tar: sample 'a', component 'cls': expected at most 16 bytes, found 17"
    with pytest.raises(DataError, match=message):
        build_index(scan_tar(tmp_path / "x.tar"), "x.tar")
    with pytest.raises(DataError, match=message):
        list(read_shard(tmp_path / "x.tar"))


# ---- Index texts


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "expected a first line 'v1.2 <samples>', found ''"),
        ("v1.1 1\njpg 512 1 a.jpg\n", "expected a first line 'v1.2 <samples>', found 'v1.1 1'"),
        ("v1.2\njpg 512 1 a.jpg\n", "expected a first line"),
        ("v1.2 -1\njpg 512 1 a.jpg\n", "expected a first line"),
        ("v1.2 ²\njpg 512 1 a.jpg\n", "expected a first line"),
        ("v1.2 " + "9" * 5000 + "\n", "expected a first line"),
        ("v1.2 0\n", "expected 0 samples of four fields a component, found 0 fields"),
        ("v1.2 2\njpg 512 1 a.jpg\n", "expected 2 samples of four fields a component, found 4 fields"),
        ("v1.2 1\njpg 512 1\n", "expected 1 sample of four fields a component, found 3 fields"),
        ("v1.2 2\njpg 512 1 a.jpg\ncls 1536 1 b.cls\n", "expected component 'jpg' in every sample, found another"),
        ("v1.2 1\njpg x 1 a.jpg\n", "expected whole numbers"),
        ("v1.2 1\njpg 512 1.5 a.jpg\n", "expected whole numbers"),
        ("v1.2 1\njpg " + "9" * 30 + " 1 a.jpg\n", "expected whole numbers"),
        ("v1.2 1\njpg 0 1 a.jpg\n", "expected members within the shard's 4096 bytes"),
        ("v1.2 1\njpg -512 1 a.jpg\n", "expected members within the shard's 4096 bytes"),
        ("v1.2 1\njpg 512 -1 a.jpg\n", "expected members within the shard's 4096 bytes"),
        ("v1.2 1\njpg 512 3585 a.jpg\n", "expected members within the shard's 4096 bytes"),
        (f"v1.2 1\njpg {2**63 - 1} 1 a.jpg\n", "expected members within the shard's 4096 bytes"),
        (f"v1.2 1\njpg 512 {2**63 - 1} a.jpg\n", "expected members within the shard's 4096 bytes"),
        ("v1.2 1\njpg 512 1 a.png\n", "expected member a.jpg, found 'a.png'"),
        ("v1.2 1\njpg 512 1 a.jpg cls 1536 1 b.cls\n", "expected member a.cls, found 'b.cls'"),
    ],
)  # fmt: skip
def test_a_bad_index_is_refused(text, message):
    with pytest.raises(DataError) as caught:
        parse_index(text, "t.idx", 4096)
    assert str(caught.value).startswith(f"t.idx: {message}")
    assert "Run: softshard verify t.idx" in str(caught.value)


@given(st.integers(0, 200), st.integers(0, 255))
def test_a_damaged_index_is_read_or_refused_and_never_points_outside(at, value):
    good = b"v1.2 2\njpg 512 700 a_1.jpg cls 2048 1 a_1.cls\njpg 3072 5 a_2.jpg cls 4096 2 a_2.cls\n"
    text = bytearray(good)
    text[at % len(good)] = value
    try:
        index = parse_index(text.decode("ascii", "replace"), "t.idx", 5120)
    except DataError:
        return
    assert index.offsets.min() >= 512
    assert (index.offsets + index.sizes).max() <= 5120
