"""The ledger of bad images: what is in it, when it stops a run, and what is no bad image."""

import errno
import sys
from dataclasses import replace
from functools import partial

import pytest
from json_page import read_json
from packed_files import files

from softshard.shards import DataError, ImageRecipe, PackOptions, StorageError, pack, verify


def test_bad_images_are_in_the_ledger_with_kind_and_reason(source, tmp_path, options):
    (source / "dog" / "dog_0.jpg").write_bytes(b"<html>404</html>")
    (source / "dog" / "dog_1.jpg").write_bytes(b"")
    cut = source / "oak" / "oak_0.jpg"
    cut.write_bytes(cut.read_bytes()[:-100])
    (source / "oak" / "oak_1.jpg").unlink()
    (source / "oak" / "oak_1.jpg").symlink_to("nowhere")
    summary = pack(source, tmp_path / "set", options, workers=2)
    assert summary.read == 16 == summary.packed + summary.bad
    assert summary.bad == 4
    ledger = {
        entry["path"]: entry
        for entry in map(
            partial(read_json, "bad.jsonl"), (tmp_path / "set" / "bad.jsonl").read_text().splitlines()
        )
    }
    assert {path: entry["kind"] for path, entry in ledger.items()} == {
        "dog/dog_0.jpg": "unreadable",
        "dog/dog_1.jpg": "empty",
        "oak/oak_0.jpg": "truncated",
        "oak/oak_1.jpg": "unreadable",
    }
    assert ledger["dog/dog_0.jpg"]["reason"] == "dog/dog_0.jpg: expected an image, found bytes b'<html>40'"
    assert ledger["oak/oak_0.jpg"]["reason"].startswith("oak/oak_0.jpg: expected a whole JPEG image, found: ")
    assert "No such file" in ledger["oak/oak_1.jpg"]["reason"]
    assert verify(tmp_path / "set").ok


def test_too_many_bad_images_stop_the_run_and_are_named(source, tmp_path, options):
    for path in sorted(source.rglob("*.jpg"))[:11]:
        path.write_bytes(b"")
    with pytest.raises(DataError) as caught:
        pack(source, tmp_path / "set", options, workers=1)
    text = str(caught.value)
    assert text.startswith(f"{tmp_path / 'set'}: expected at most 10 bad inputs, found 11: ")
    assert "bird_" in text
    assert "[empty]" in text
    assert (
        f"all are in {tmp_path / 'set' / 'bad.jsonl'}. Mend them in place and run again with --retry-bad"
        in text
    )
    assert len((tmp_path / "set" / "bad.jsonl").read_text().splitlines()) == 11
    assert not list((tmp_path / "set").glob("*/manifest.json"))
    # A larger budget goes on from there.
    assert pack(source, tmp_path / "set", replace(options, max_bad=0.7), workers=1).bad == 11


def test_a_class_may_lose_all_its_images_but_a_split_may_not(source, tmp_path, options):
    for path in source.rglob("*.jpg"):
        path.write_bytes(b"")
    with pytest.raises(
        DataError, match=r"set/train: expected samples, found none that could be read; see the reasons"
    ):
        pack(source, tmp_path / "set", replace(options, max_bad=1.0), workers=1)


def test_images_that_a_size_estimate_cannot_read_are_in_the_ledger_once(source, tmp_path):
    (source / "dog" / "dog_0.jpg").write_bytes(b"")
    summary = pack(source, tmp_path / "set", PackOptions(image=ImageRecipe(16)), workers=1)
    assert (summary.packed, summary.bad) == (15, 1)
    assert len((tmp_path / "set" / "bad.jsonl").read_text().splitlines()) == 1


def test_bad_inputs_that_were_mended_are_packed_when_asked_for(source, tmp_path, finished_once, options):
    bad = sorted(source.rglob("*.jpg"))[0]
    whole = bad.read_bytes()
    bad.write_bytes(whole[:40])
    first = pack(source, tmp_path / "set", options, workers=1)
    assert first.bad == 1
    bad.write_bytes(whole)
    again = pack(source, tmp_path / "set", options, workers=1)
    assert (again.bad, again.shards_kept) == (1, 5)
    mended = pack(source, tmp_path / "set", options, workers=1, retry_bad=True)
    assert (mended.bad, mended.shards_kept) == (0, 4)
    assert files(tmp_path / "set") == files(finished_once)


def test_with_a_budget_of_nothing_one_bad_input_stops_the_run(source, tmp_path, options):
    sorted(source.rglob("*.jpg"))[0].write_bytes(b"")
    with pytest.raises(DataError, match="expected at most 0 bad inputs, found 1"):
        pack(source, tmp_path / "set", replace(options, max_bad=0), workers=1)


def test_a_disk_that_fails_is_not_a_bad_image_and_the_run_continues(
    source, tmp_path, finished_once, options, monkeypatch
):
    task = sys.modules["softshard.shards.shard_task"]
    real, reads = task.read_image, []

    def failing(storage, location, path):
        reads.append(path)
        if len(reads) > 9:
            raise OSError(errno.EIO, "Input/output error", path)
        return real(storage, location, path)

    with monkeypatch.context() as patch:
        patch.setattr(task, "read_image", failing)
        with pytest.raises(StorageError, match="the disk or this machine is in trouble, not the image"):
            pack(source, tmp_path / "set", options, workers=1)
    assert pack(source, tmp_path / "set", options, workers=1).bad == 0
    assert files(tmp_path / "set") == files(finished_once)


def test_a_source_that_goes_away_is_not_many_bad_images(source, tmp_path, options, monkeypatch):
    task = sys.modules["softshard.shards.shard_task"]
    real, reads = task.read_image, []

    def unplugged(storage, location, path):
        reads.append(path)
        if len(reads) == 9:
            source.rename(tmp_path / "unplugged")
        return real(storage, location, path)

    monkeypatch.setattr(task, "read_image", unplugged)
    with pytest.raises(StorageError, match="the disk or this machine is in trouble"):
        pack(source, tmp_path / "set", options, workers=1)
    (tmp_path / "unplugged").rename(source)
    assert pack(source, tmp_path / "set", options, workers=1).bad == 0
