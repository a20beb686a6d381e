"""Images inside tars: the same set as the folder gives, and nothing from tars that mean harm."""

import gzip
import io
import json
import os
import tarfile
import threading
from dataclasses import replace

import fsspec
import msgpack
import pytest
from waiting import LONG_S

from softshard.shards import DataError, PackOptions, UsageError, pack, read_shard, verify
from softshard.shards.shard_task import read_image
from softshard.shards.source_tars import list_tar_of_tars
from softshard.shards.sources import open_source
from softshard.shards.storage import LocalStorage, RemoteStorage

FORMATS = {"ustar": tarfile.USTAR_FORMAT, "gnu": tarfile.GNU_FORMAT, "pax": tarfile.PAX_FORMAT}


def add(tar, name, data=b"x", **fields):
    info = tarfile.TarInfo(name)
    info.size = len(data)
    for field, value in fields.items():
        setattr(info, field, value)
    tar.addfile(info, io.BytesIO(data))


def make_tar(path, members, **kwargs):
    with tarfile.open(path, "w", **kwargs) as tar:
        for name, data in members.items():
            add(tar, name, data)
    return path


def class_tars(source, folder, **kwargs):
    folder.mkdir()
    for name in sorted(os.listdir(source)):
        images = sorted((source / name).iterdir(), reverse=True)  # a tar has an order of its own
        make_tar(folder / f"{name}.tar", {image.name: image.read_bytes() for image in images}, **kwargs)
    return folder


def tar_of(folder, path):
    return make_tar(path, {f"whole/{tar.name}": tar.read_bytes() for tar in sorted(folder.iterdir())})


def shards(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*.tar")}


@pytest.mark.parametrize("form", FORMATS)
def test_folder_class_tars_and_tars_in_a_tar_give_the_same_bytes(source, tmp_path, options, form):
    tars = class_tars(source, tmp_path / "tars", format=FORMATS[form])
    whole = tar_of(tars, tmp_path / "whole.tar")
    for name, src in (("a", source), ("b", tars), ("c", whole)):
        assert pack(src, tmp_path / name, options, workers=1).packed == 16
    assert shards(tmp_path / "a") == shards(tmp_path / "b") == shards(tmp_path / "c")
    plans = [json.loads((tmp_path / name / "plan.json").read_bytes())["sha256"] for name in "abc"]
    assert len(set(plans)) == 1
    sample = next(read_shard(next((tmp_path / "c" / "val").glob("*.tar"))))
    assert (source / msgpack.unpackb(sample.parts["msgpack"])["path"]).is_file()


def test_two_workers_read_tars_by_range(source, tmp_path, options):
    whole = tar_of(class_tars(source, tmp_path / "tars"), tmp_path / "whole.tar")
    for name, workers in (("a", 1), ("b", 2)):
        pack(whole, tmp_path / name, options, workers=workers)
    assert shards(tmp_path / "a") == shards(tmp_path / "b")
    assert verify(tmp_path / "b", decode=True).ok


def test_train_and_val_folders_of_class_tars_are_split_already(source, tmp_path, options):
    (tmp_path / "both").mkdir()
    class_tars(source, tmp_path / "both" / "train")
    class_tars(source, tmp_path / "both" / "val")
    listing = open_source(tmp_path / "both")
    assert [folder.path for folder in listing.validation] == ["val/bird", "val/dog", "val/oak"]
    pack(tmp_path / "both", tmp_path / "set", replace(options, val_per_class=0), workers=1)
    assert verify(tmp_path / "set").samples == 32


@pytest.mark.parametrize("form", ["gnu", "pax"])
def test_long_names_are_whole(tmp_path, form):
    name = "x" * 150 + "/" + "é" * 60 + ".jpg"
    (tmp_path / "tars").mkdir()
    make_tar(tmp_path / "tars" / "a.tar", {name: b"1", "b.jpg": b"22"}, format=FORMATS[form])
    (folder,) = open_source(tmp_path / "tars").folders
    assert folder.files == ("b.jpg", name)
    offset, size = folder.location(0)[1:]
    assert (tmp_path / "tars" / "a.tar").read_bytes()[offset : offset + size] == b"22"


def test_the_folder_s_own_name_within_its_tar_does_not_count(tmp_path):
    (tmp_path / "tars").mkdir()
    make_tar(tmp_path / "tars" / "dog.tar", {"dog/1.jpg": b"1", "./2.jpg": b"2", "./dog/sub/3.jpg": b"3"})
    assert open_source(tmp_path / "tars").folders[0].files == ("1.jpg", "2.jpg", "sub/3.jpg")


def test_a_member_that_comes_again_replaces_the_earlier(tmp_path):
    (tmp_path / "tars").mkdir()
    with tarfile.open(tmp_path / "tars" / "a.tar", "w") as tar:
        add(tar, "1.jpg", b"old")
        add(tar, "1.jpg", b"newer")
    listing = open_source(tmp_path / "tars")
    assert (listing.folders[0].location(0).size, listing.ignored) == (5, ("a/1.jpg",))


def test_members_that_would_leave_the_tar_or_are_no_files_are_ignored_and_reported(tmp_path):
    (tmp_path / "tars").mkdir()
    with tarfile.open(tmp_path / "tars" / "a.tar", "w") as tar:
        add(tar, "/etc/1.jpg")
        add(tar, "../2.jpg")
        add(tar, "x/../../3.jpg")
        add(tar, "4.jpg", b"", type=tarfile.SYMTYPE, linkname="/etc/passwd")
        add(tar, "5.jpg", b"", type=tarfile.LNKTYPE, linkname="ok.jpg")
        add(tar, "6.jpg", b"", type=tarfile.CHRTYPE)
        add(tar, "7.jpg", b"", type=tarfile.FIFOTYPE)
        add(tar, "folder.jpg", b"", type=tarfile.DIRTYPE)
        add(tar, ".hidden.jpg")
        add(tar, "._8.jpg")
        add(tar, "notes.txt")
        add(tar, "ok.jpg")
    listing = open_source(tmp_path / "tars")
    assert listing.folders[0].files == ("ok.jpg",)
    assert listing.ignored == tuple(
        sorted(
            f"a/{name}"
            for name in (
                "/etc/1.jpg", "../2.jpg", "x/../../3.jpg", "4.jpg", "5.jpg", "6.jpg", "7.jpg", ".hidden.jpg",
                "._8.jpg", "notes.txt",
            )
        )
    )  # fmt: skip


def test_a_sparse_member_is_ignored(tmp_path):
    (tmp_path / "tars").mkdir()
    with tarfile.open(tmp_path / "tars" / "a.tar", "w", format=tarfile.PAX_FORMAT) as tar:
        pax = {"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.name": "s.jpg"}
        pax["GNU.sparse.realsize"] = "100000"
        add(tar, "s.jpg", b"1\n0\n1\n".ljust(512, b"\0") + b"x", pax_headers=pax)
        add(tar, "t.jpg")
    listing = open_source(tmp_path / "tars")
    assert (listing.folders[0].files, listing.ignored) == (("t.jpg",), ("a/s.jpg",))


# ---- Damage


@pytest.mark.parametrize("keep", [700, 1024, 2000, 3 * 512 + 10])
def test_a_tar_that_is_cut_short_is_named_with_every_other_one(tmp_path, keep):
    (tmp_path / "tars").mkdir()
    for name in "abc":
        make_tar(tmp_path / "tars" / f"{name}.tar", {"1.jpg": bytes(600), "2.jpg": bytes(600)})
    for name in "ac":
        os.truncate(tmp_path / "tars" / f"{name}.tar", keep)
    with pytest.raises(DataError) as caught:
        open_source(tmp_path / "tars")
    lines = str(caught.value).splitlines()
    assert [line.partition(":")[0] for line in lines] == [str(tmp_path / "tars" / f"{n}.tar") for n in "ac"]
    assert all("cut short. Copy it again" in line for line in lines)


def test_a_tar_in_a_tar_that_is_cut_short_does_not_run_into_the_next(tmp_path):
    inner = make_tar(tmp_path / "a.tar", {"1.jpg": bytes(600), "2.jpg": bytes(600)}).read_bytes()
    make_tar(tmp_path / "whole.tar", {"a.tar": inner[:2048], "b.tar": inner})
    with pytest.raises(DataError, match=r"whole\.tar: a\.tar: expected .*cut short"):
        open_source(tmp_path / "whole.tar")


@pytest.mark.parametrize("remote", [False, True])
def test_the_problems_of_tars_in_a_tar_come_in_its_order(tmp_path, remote):
    inner = make_tar(tmp_path / "a.tar", {"1.jpg": bytes(600), "2.jpg": bytes(600)}).read_bytes()
    cut = inner[:2048]
    members = {"d.tar": cut, "b.tar": inner, "x/b.tar": cut, "c.tar": inner, "a.tar": cut, "y/c.tar": inner}
    make_tar(tmp_path / "whole.tar", members)
    where = str(tmp_path / "whole.tar")
    if remote:
        where = f"memory://{tmp_path}/whole.tar"
        fsspec.filesystem("memory").put(str(tmp_path / "whole.tar"), where)
    with pytest.raises(DataError) as caught:
        open_source(where)
    lines = str(caught.value).splitlines()
    assert [line.split(": ")[1] for line in lines] == ["d.tar", "x/b.tar", "a.tar", "y/c.tar"]
    assert ["second one" in line for line in lines] == [False, True, False, True]
    assert ["cut short" in line for line in lines] == [True, False, True, False]


def test_tars_in_a_tar_behind_a_url_are_listed_side_by_side(tmp_path):
    inner = make_tar(tmp_path / "inner.tar", {f"{i}.jpg": bytes(i) for i in range(3)}).read_bytes()
    whole = make_tar(tmp_path / "whole.tar", {"a.tar": inner, "b.tar": inner})
    both = threading.Barrier(2, timeout=LONG_S)  # breaks unless two inner tars are open at once

    class Watched(RemoteStorage):
        opened = 0

        def open(self, path=""):
            self.opened += 1
            if self.opened > 1:  # the first is the outer tar
                both.wait()
            return super().open(path)

    where = f"memory://{tmp_path}/whole.tar"
    fsspec.filesystem("memory").put(str(whole), where)
    listing = list_tar_of_tars(Watched(where))
    expected = list_tar_of_tars(LocalStorage(str(whole)))
    assert [folder.name for folder in listing.folders] == ["a", "b"]
    for found, local in zip(listing.folders, expected.folders, strict=True):
        assert (found.files, found.location(2)) == (local.files, local.location(2))


def test_a_tar_that_shrank_after_it_was_listed_is_noticed(source, tmp_path):
    tars = class_tars(source, tmp_path / "tars")
    listing = open_source(tars)
    folder = listing.folders[0]
    os.truncate(tars / "bird.tar", folder.location(4).offset + 10)
    with pytest.raises(DataError, match="cut short since it was listed"):
        read_image(listing.files, folder.location(4), "bird/4")


@pytest.mark.parametrize(("name", "kind"), [("a.tar", "gzip"), ("a.tar.gz", "gzip")])
def test_a_compressed_tar_is_refused(tmp_path, name, kind):
    plain = make_tar(tmp_path / "plain", {"1.jpg": b"x"}).read_bytes()
    (tmp_path / name).write_bytes(gzip.compress(plain))
    with pytest.raises(DataError, match=rf"expected an uncompressed tar, found {kind}.*Decompress it first"):
        open_source(tmp_path / name)


def test_noise_under_a_tar_s_name_is_an_error(tmp_path):
    (tmp_path / "tars").mkdir()
    (tmp_path / "tars" / "a.tar").write_bytes(b"<html>404</html>" * 100)
    with pytest.raises(DataError, match=r"a\.tar: expected a whole tar, found"):
        open_source(tmp_path / "tars")


# ---- Telling


def test_class_folders_beside_class_tars_cannot_be_told(tmp_path):
    (tmp_path / "src" / "dog").mkdir(parents=True)
    make_tar(tmp_path / "src" / "a.tar", {"1.jpg": b"x"})
    with pytest.raises(UsageError, match=r"found both: 'dog' and 'a\.tar'"):
        open_source(tmp_path / "src")


def test_a_tar_of_bare_images_and_another_file_cannot_be_told(tmp_path):
    make_tar(tmp_path / "a.tar", {"1.jpg": b"x"})
    (tmp_path / "a.txt").touch()
    with pytest.raises(UsageError, match="it is not known which class they have"):
        open_source(tmp_path / "a.tar")
    with pytest.raises(UsageError, match="found a file of another kind"):
        open_source(tmp_path / "a.txt")
    with pytest.raises(UsageError, match="found nothing"):
        open_source(tmp_path / "b.tar")


def test_class_tars_without_images_are_an_error(tmp_path):
    (tmp_path / "tars").mkdir()
    make_tar(tmp_path / "tars" / "a.tar", {"1.txt": b"x"})
    with pytest.raises(DataError, match=r"expected class tars of images, found none in 1 tar\."):
        pack(tmp_path / "tars", tmp_path / "set", PackOptions())


@pytest.mark.parametrize("top", ["", "photos/"])
def test_a_tar_of_class_folders_gives_what_the_folders_give(source, tmp_path, options, top):
    with tarfile.open(tmp_path / "all.tar", "w") as tar:
        for path in sorted(source.rglob("*.jpg"), reverse=True):
            tar.add(path, arcname=f"{top}{path.relative_to(source)}")
    listing = open_source(tmp_path / "all.tar")
    expected = open_source(source)
    assert [(f.name, f.path, f.files) for f in listing.folders] == [
        (f.name, f.path, f.files) for f in expected.folders
    ]
    pack(source, tmp_path / "folders", options, workers=1)
    pack(tmp_path / "all.tar", tmp_path / "tar", options, workers=1)
    for shard in sorted((tmp_path / "folders").rglob("*.tar")):
        assert shard.read_bytes() == (tmp_path / "tar" / shard.relative_to(tmp_path / "folders")).read_bytes()


def test_an_image_outside_of_the_class_folders_of_a_tar_is_named(source, tmp_path):
    image = next(source.rglob("*.jpg"))
    with tarfile.open(tmp_path / "all.tar", "w") as tar:
        tar.add(image, arcname="cat/1.jpg")
        tar.add(image, arcname="cat/2.jpg")
        for i in range(40):
            tar.add(image, arcname=f"dog/{i}.jpg")
        tar.add(image, arcname="stray.jpg")
    with pytest.raises(
        DataError, match=r"stray\.jpg: expected <class>/<image>, found an image outside of every"
    ):
        open_source(tmp_path / "all.tar")


def test_samples_with_a_text_beside_each_image_are_not_taken_for_class_tars(source, tmp_path):
    image = next(source.rglob("*.jpg"))
    (tmp_path / "a.txt").write_text("cat")
    for shard in ("x-0", "x-1"):
        with tarfile.open(tmp_path / f"{shard}.tar", "w") as tar:
            tar.add(image, arcname="a.jpg")
            tar.add(tmp_path / "a.txt", arcname="a.txt")
    with pytest.raises(UsageError, match=r"expected the class of every sample in a member \.cls or \.json"):
        open_source(tmp_path)


def test_compressed_class_tars_are_told_what_they_are(tmp_path):
    (tmp_path / "n01440764.tar.gz").write_bytes(b"\x1f\x8b")
    with pytest.raises(DataError, match=r"found compressed tars such as 'n01440764\.tar\.gz'; .* Decompress"):
        open_source(tmp_path)
