"""The listing that a run keeps while it lasts: the same as listing again, and only while the source is the same."""

import os
import shutil
import sys
import tarfile

import numpy as np
import pytest

from softshard.shards import DataError, UsageError, pack
from softshard.shards.destination import open_destination
from softshard.shards.listing_file import KeptListing
from softshard.shards.sources import open_source


def write_tars(folder, classes):
    folder.mkdir(parents=True, exist_ok=True)
    for name, files in classes.items():
        with tarfile.open(folder / f"{name}.tar", "w") as tar:
            for path in files:
                tar.add(path, arcname=path.name)
    return folder


@pytest.fixture
def tars(source, tmp_path):
    return write_tars(
        tmp_path / "tars", {folder.name: sorted(folder.iterdir()) for folder in source.iterdir()}
    )


def as_lists(listing):
    def folder(entry):
        spans = [] if entry.spans is None else [entry.location(i) for i in range(len(entry.files))]
        return (entry.name, entry.path, list(entry.files), spans, list(entry.metadata or ()))

    parts = [[folder(entry) for entry in part] for part in (listing.folders, listing.validation)]
    return (str(listing.root), parts, listing.ignored, listing.class_names, listing.files)


def test_a_kept_listing_is_the_listing(tars, tmp_path):
    (tars / "caf\udce9.txt").touch()
    kept = KeptListing(open_destination(tmp_path), tars, None)
    assert kept.load() is None
    listing = open_source(tars)
    kept.save(listing)
    found = KeptListing(open_destination(tmp_path), tars, None).load()
    assert as_lists(found) == as_lists(listing)
    assert listing.ignored == ("caf\udce9.txt",)


def test_a_list_s_metadata_and_classes_are_kept_too(tmp_path):
    path = tmp_path / "list.csv"
    path.write_text("path,label,author\nb.jpg,1,Ann\na.jpg,0,\n")
    kept = KeptListing(open_destination(tmp_path), path, ("cat", "dog"))
    kept.save(open_source(path, ("cat", "dog")))
    found = kept.load()
    assert as_lists(found) == as_lists(open_source(path, ("cat", "dog")))
    assert found.class_names == ("cat", "dog")
    assert KeptListing(open_destination(tmp_path), path, ("dog", "cat")).load() is None


def test_it_counts_for_nothing_when_a_tar_has_changed_or_another_is_there(tars, tmp_path):
    destination = open_destination(tmp_path)
    KeptListing(destination, tars, None).save(open_source(tars))
    first = min(tars.iterdir())
    times = os.stat(first)
    os.utime(first, ns=(times.st_atime_ns, times.st_mtime_ns + 1))
    assert KeptListing(destination, tars, None).load() is None
    os.utime(first, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert KeptListing(destination, tars, None).load() is not None
    write_tars(tars, {"new": []})
    assert KeptListing(destination, tars, None).load() is None


def test_class_folders_are_always_listed_again(source, tmp_path):
    kept = KeptListing(open_destination(tmp_path), source, None)
    kept.save(open_source(source))
    assert not (tmp_path / ".listing").exists()


def test_a_damaged_one_counts_for_nothing(tars, tmp_path):
    kept = KeptListing(open_destination(tmp_path), tars, None)
    kept.save(open_source(tars))
    good = (tmp_path / ".listing").read_bytes()
    rng = np.random.default_rng(0)
    for at in [*rng.integers(0, len(good), 20), *range(16)]:
        damaged = bytearray(good)
        damaged[at] ^= 1 << int(rng.integers(8))
        (tmp_path / ".listing").write_bytes(damaged)
        assert kept.load() is None
    for size in (0, 5, 16, len(good) - 1):
        (tmp_path / ".listing").write_bytes(good[:size])
        assert kept.load() is None


def test_a_run_that_continues_reads_no_header_again_and_ends_without_the_file(
    tars, tmp_path, options, monkeypatch
):
    target = tmp_path / "set"
    pack(tars, tmp_path / "expected", options, workers=1)

    def killed(*args):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(sys.modules["softshard.shards.pack"], "settle_plan", killed)
        with pytest.raises(KeyboardInterrupt):
            pack(tars, target, options, workers=1)
    assert (target / ".listing").exists()
    with monkeypatch.context() as patch:
        patch.setattr("softshard.shards.pack_plan.open_source", killed)
        pack(tars, target, options, workers=1)
    names = {path.relative_to(tmp_path / "expected") for path in (tmp_path / "expected").rglob("*.*")}
    assert names == {path.relative_to(target) for path in target.rglob("*.*")}
    for name in names:
        if (target / name).is_file():
            assert (target / name).read_bytes() == (tmp_path / "expected" / name).read_bytes()
    assert not (target / ".listing").exists()


def test_a_source_that_cannot_be_listed_leaves_no_folder(tmp_path):
    (tmp_path / "tars").mkdir()
    (tmp_path / "tars" / "a.tar").write_bytes(b"no tar")
    with pytest.raises(DataError):
        pack(tmp_path / "tars", tmp_path / "set")
    assert not (tmp_path / "set").exists()


def test_a_list_with_signed_urls_is_not_kept(tmp_path):
    path = tmp_path / "list.csv"
    path.write_text("path,label\nhttp://bob:s3cret@127.0.0.1:9/a.jpg?X-Amz-Signature=abc,cat\n")
    KeptListing(open_destination(tmp_path), path, None).save(open_source(path))
    assert not (tmp_path / ".listing").exists()


def test_a_tar_beside_class_folders_does_not_stand_for_them(source, tmp_path):
    for part in ("train", "val"):
        shutil.copytree(source, tmp_path / "both" / part)
    (tmp_path / "both" / "notes.tar").write_bytes(bytes(10240))
    KeptListing(open_destination(tmp_path), tmp_path / "both", None).save(open_source(tmp_path / "both"))
    assert not (tmp_path / ".listing").exists()


def test_a_refused_call_leaves_the_kept_listing_alone(tars, tmp_path, options, monkeypatch):
    target = tmp_path / "set"

    def killed(*args):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(sys.modules["softshard.shards.pack"], "_make_shards", killed)
        with pytest.raises(KeyboardInterrupt):
            pack(tars, target, options, workers=1)
    before = (target / ".listing").read_bytes()
    with pytest.raises(UsageError, match="of an earlier run"):
        pack(tars, target, options, class_names=["dog", "bird", "oak"], workers=1)
    assert (target / ".listing").read_bytes() == before
