"""Builds of tags that are killed go on and end in the same bytes; what they write appears whole, in buckets too."""

import errno
import json
import os
import resource
import signal
import subprocess
import sys
from contextlib import contextmanager
from dataclasses import replace

import fsspec
import pytest
from packed_files import files
from tag_lists import ALL, ROWS, definitions, write_rows

from softshard.shards import pack
from softshard.shards import tags_build as build_module
from softshard.shards import tags_source as source_module
from softshard.shards import tags_work as work_module
from softshard.shards.cli import main
from softshard.shards.destination import LocalDestination
from softshard.shards.errors import DataError, UsageError
from softshard.shards.files import hold_folder
from softshard.shards.tags_build import TagOptions, build_tags
from softshard.shards.tags_source import open_text_source
from softshard.shards.tags_tasks import BlockStats, TagSettings

# A build of small blocks that kills itself after so many notes of what is done.
KILLED = """
import os, signal, sys
from softshard.shards import tags_build, tags_source, tags_work

tags_source.BLOCK_RECORDS = tags_build.BLOCK_RECORDS = 50
tags_work.BLOCKS_KEPT = tags_build.BLOCKS_KEPT = 2
kept = tags_work.write_atomically

def keep_and_die(path, data, left=[int(sys.argv[4])]):
    kept(path, data)
    left[0] -= 1
    if not left[0]:
        os.kill(os.getpid(), signal.SIGKILL)

tags_work.write_atomically = keep_and_die
if __name__ == "__main__":
    tags_build.build_tags(sys.argv[1], sys.argv[2], workers=int(sys.argv[3]))
"""


@pytest.fixture
def small_blocks(monkeypatch):
    for module in (source_module, build_module):
        monkeypatch.setattr(module, "BLOCK_RECORDS", 50)
    for module in (work_module, build_module):
        monkeypatch.setattr(module, "BLOCKS_KEPT", 2)


@contextmanager
def writing(folder):
    with work_module.TagsWork(folder, "of a build").writing("k") as written:
        yield written


def test_a_full_disk_is_named_and_both_files_are_closed(tmp_path):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    opened = []

    def write_too_much():
        with writing(tmp_path) as written:
            opened.extend([written.lines, written.bad])
            written.lines.write(b"a" * 2000)
            resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))  # stands for the disk's

    try:
        with pytest.raises(OSError, match=r"File too large: .*/lines\.part"):
            write_too_much()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert [file.closed for file in opened] == [True, True]


def test_a_file_that_cannot_be_flushed_is_named(tmp_path, monkeypatch):
    with writing(tmp_path) as written:

        def full(_):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        monkeypatch.setattr("os.fsync", full)
        with pytest.raises(OSError, match=r"No space left on device: .*/bad\.part"):
            written.publish(LocalDestination(tmp_path), "lines", "lines.bad")


def killed(folder, source, output, workers, notes):
    script = folder / "killed.py"
    script.write_text(KILLED)
    command = [sys.executable, str(script), str(source), str(output), str(workers), str(notes)]
    done = subprocess.run(command, timeout=120, stdin=subprocess.DEVNULL, check=False)
    assert done.returncode == -signal.SIGKILL


def test_a_killed_build_goes_on_and_ends_in_the_same_bytes(tmp_path, small_blocks, monkeypatch):
    rows = [*definitions(1000), definitions(8)[7], {"path": "x", "label": ""}]
    source = write_rows(tmp_path / "in.jsonl", rows)
    (tmp_path / "whole").mkdir()
    (tmp_path / "killed").mkdir()
    build_tags(source, tmp_path / "whole" / "out.jsonl", workers=1)
    out = tmp_path / "killed" / "out.jsonl"
    work = out.with_name("out.tags-work")
    killed(tmp_path, source, out, 2, 5)  # the key, and four times two blocks
    assert [path.name for path in out.parent.iterdir()] == [work.name]
    assert len(list(work.glob("count-*.npz"))) == 4
    killed(tmp_path, source, out, 1, 6 + 3)  # the other six, and six blocks of lines
    assert [path.name for path in out.parent.iterdir()] == [work.name]
    assert json.loads((work / "written.json").read_text())["num_blocks"] == 6

    called = []
    for name in ("count_block", "write_block"):
        function = getattr(build_module, name)
        monkeypatch.setattr(
            build_module, name, lambda *args, f=function, name=name: called.append(name) or f(*args)
        )
    build_tags(source, out, workers=1)
    # Of 21 blocks the last is no part of two, and the one with the repeated row is looked at again.
    assert (called.count("count_block"), called.count("write_block")) == (2, 15)
    assert files(out.parent).keys() == files(tmp_path / "whole").keys()
    assert files(out.parent) == {
        name: data.replace(b"/whole/", b"/killed/") for name, data in files(tmp_path / "whole").items()
    }


def test_what_was_kept_of_another_build_is_not_used(tmp_path, small_blocks):
    source = write_rows(tmp_path / "in.jsonl", definitions(300))
    work = tmp_path / "work"
    with pytest.raises(DataError, match="expected tags, found none"):
        build_tags(source, tmp_path / "out.jsonl", TagOptions(min_images=400), workers=1, work=work)
    assert len(list(work.glob("count-*.npz"))) == 3  # for another try, with other cuts
    report = build_tags(source, tmp_path / "out.jsonl", workers=1, work=work)
    assert report.images == 300
    assert not work.exists()

    with pytest.raises(DataError, match="expected tags, found none"):
        build_tags(source, tmp_path / "out.jsonl", TagOptions(min_images=400), workers=1, work=work)
    write_rows(source, definitions(200))
    assert build_tags(source, tmp_path / "out.jsonl", workers=1, work=work).images == 200


@pytest.mark.parametrize("damaged", [b"PK\3\4damaged", b"", b"PK\5\6"])
def test_a_damaged_part_is_counted_again(tmp_path, small_blocks, damaged):
    source = write_rows(tmp_path / "in.jsonl", definitions(300))
    build_tags(source, tmp_path / "out.jsonl", workers=1)
    whole = files(tmp_path)
    work = tmp_path / "work"
    with pytest.raises(DataError, match="expected tags, found none"):
        build_tags(source, tmp_path / "out.jsonl", TagOptions(min_images=400), workers=1, work=work)
    (work / "count-000001.npz").write_bytes(damaged)
    build_tags(source, tmp_path / "out.jsonl", workers=1, work=work)
    assert files(tmp_path) == whole


def test_a_damaged_note_of_lines_is_none(tmp_path):
    with writing(tmp_path) as written:
        written.lines.write(b"a line\n")
    note = work_module._note("k", 2, [7, 0], vars(BlockStats(images=1)))

    def begun(data):
        (tmp_path / "written.json").write_bytes(data)
        with writing(tmp_path) as written:
            return written.num_blocks, os.fstat(written.lines.fileno()).st_size, written.stats.images

    assert begun(note) == (2, 7, 1)
    for damaged in (
        note.replace(b'"num_blocks": 2', b'"num_blocks": 3'),
        note.replace(b'"images": 1', b'"images": 0'),
        note[:-1],
        b"[]",
        b"",
    ):
        assert begun(damaged) == (0, 0, 0)
        (tmp_path / "lines.part").write_bytes(b"a line\n")


def test_the_old_list_goes_before_what_is_beside_it_changes(tmp_path, monkeypatch):
    source = write_rows(tmp_path / "in.jsonl", ROWS)
    out = tmp_path / "out.jsonl"
    build_tags(source, out, ALL, workers=1)
    monkeypatch.setattr(build_module, "save_how", lambda *_: 1 / 0)  # dies there
    with pytest.raises(ZeroDivisionError):
        build_tags(source, out, ALL, workers=1)
    assert not out.exists()
    assert out.with_name("out.vocabulary.tsv").exists()


def test_weights_of_an_earlier_list_go_and_those_of_the_source_stay(tmp_path):
    source = write_rows(tmp_path / "web.ndjson", ROWS)
    for name in ("web", "out"):
        (tmp_path / f"{name}.weights.json").write_text('{"by": "lin"}')
    build_tags(source, tmp_path / "out.jsonl", ALL, workers=1)
    build_tags(source, tmp_path / "web.jsonl", ALL, workers=1)
    assert [path.name for path in tmp_path.glob("*.weights.json")] == ["web.weights.json"]
    (tmp_path / "web.weights.json").write_text("{")
    options = replace(ALL, settings=replace(ALL.settings, keep=("weights",)))
    with pytest.raises(DataError, match=r"web\.weights\.json: expected JSON"):
        build_tags(source, tmp_path / "new.jsonl", options, workers=1)
    assert not list(tmp_path.glob("new.*"))


def test_what_is_kept_is_of_one_version_of_nltk(tmp_path, monkeypatch):
    source = open_text_source(write_rows(tmp_path / "in.jsonl", ROWS))
    installed = build_module.version
    keys = []
    for nltk in ("3.8", "3.9"):
        monkeypatch.setattr(
            build_module, "version", lambda name, n=nltk: n if name == "nltk" else installed(name)
        )
        settings = (TagSettings(), TagSettings(tagger="nltk"), TagSettings(tokenizer="nltk"))
        keys.append([build_module._key(source, each, True) for each in settings])
    assert [old == new for old, new in zip(*keys, strict=True)] == [True, False, False]


def test_two_builds_of_one_list_keep_out_of_each_others_way(tmp_path):
    source = write_rows(tmp_path / "in.jsonl", ROWS)
    work = tmp_path / "out.tags-work"
    work.mkdir()
    with (
        hold_folder(work),
        pytest.raises(UsageError, match=r"out\.tags-work: another softshard is writing there"),
    ):
        build_tags(source, tmp_path / "out.jsonl", ALL, workers=1)
    build_tags(source, tmp_path / "out.jsonl", ALL, workers=1)
    assert not work.exists()


def test_a_folder_that_the_user_names_keeps_what_is_not_of_the_build(tmp_path):
    (tmp_path / "note.txt").write_text("mine")
    source = write_rows(tmp_path / "in.jsonl", ROWS)
    build_tags(source, tmp_path / "out.jsonl", ALL, workers=1, work=tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {
        "note.txt",
        "in.jsonl",
        "out.jsonl",
        "out.vocabulary.tsv",
        "out.report.json",
        "out.tags.json",
    }


def test_the_result_goes_to_a_bucket_from_which_pack_reads_it(tmp_path, source, options, capsys):
    bucket = fsspec.filesystem("memory")
    images = sorted(source.rglob("*.jpg"))
    names = [str(path.relative_to(source)) for path in images]
    for name in names:
        bucket.pipe_file(f"/tagged/{name}", (source / name).read_bytes())
    rows = [{"path": name, "label": name.split("/")[0], "title": "a big cat by the sea"} for name in names]
    write_rows(source / "in.jsonl", rows)
    arguments = ["tags", "build", str(source / "in.jsonl"), "--max-share", "1", "--workers", "1"]
    assert main([*arguments, "-o", "memory://tagged/out.jsonl"]) == 0
    assert main([*arguments, "-o", str(source / "out.jsonl")]) == 0
    capsys.readouterr()
    found = {name.rpartition("/")[2] for name in bucket.ls("/tagged", detail=False)}
    assert {name for name in found if name.startswith("out")} == {
        "out.jsonl",
        "out.vocabulary.tsv",
        "out.report.json",
        "out.tags.json",
    }
    for name in ("out.jsonl", "out.vocabulary.tsv"):
        assert bucket.cat_file(f"/tagged/{name}") == (source / name).read_bytes()
    assert pack("memory://tagged/out.jsonl", tmp_path / "set", options, workers=1).packed == len(images)

    # Of a list that is there, too, paths stay, and of one elsewhere they become URLs.
    bucket.pipe_file("/tagged/in.jsonl", (source / "in.jsonl").read_bytes())
    for out, prefix in (
        ("memory://tagged/again.jsonl", ""),
        ("memory://other/out.jsonl", "memory://tagged/"),
    ):
        build_tags("memory://tagged/in.jsonl", out, TagOptions(max_share=1.0), workers=1, work=tmp_path / "w")
        lines = bucket.cat_file(out.removeprefix("memory:/")).decode().splitlines()
        assert [json.loads(line)["path"] for line in lines] == [prefix + name for name in names]
    assert not (tmp_path / "w").exists()


@pytest.mark.parametrize(
    ("output", "message"),
    [
        ("memory://tagged/out.csv", r"memory://tagged/out\.csv: expected a name that ends with \.jsonl"),
        ("https://example.org/out.jsonl", "expected a folder or a bucket to write to"),
        ("memory://wrong/in.jsonl", "expected another file than the source"),
    ],
)
def test_a_wrong_url_is_told_before_any_work(output, message):
    fsspec.filesystem("memory").pipe_file("/wrong/in.jsonl", b"")
    with pytest.raises(UsageError, match=message):
        build_tags("memory://wrong/in.jsonl", output)
