"""Sources behind URLs: a real web server with ranges, memory:// and file://, and what is told of them."""

import errno
import io
import os
import re
from pathlib import Path

import fsspec
import pytest
from fsspec import AbstractFileSystem
from packed_files import files

from softshard.shards import DataError, StorageError, UsageError, pack, verify
from softshard.shards.classes import load_class_list
from softshard.shards.destination import write_file
from softshard.shards.files import read_text
from softshard.shards.shard_files import read_small
from softshard.shards.sources import open_source
from softshard.shards.storage import LocalStorage, RemoteStorage, open_storage, public_name, read_at_most


@pytest.mark.parametrize("form", ["folder", "tars", "whole.tar", "list.csv"])
def test_a_web_server_gives_what_the_local_path_gives(
    serve, source, tmp_path, options, form, collection_forms
):
    (source / "dog").rename(source / "wild dog #1")  # names that a URL must quote
    local = collection_forms(source)[form]
    url = f"{serve(local.parent)}/{local.name}"
    pack(local, tmp_path / "a", options, workers=1)
    summary = pack(url, tmp_path / "b", options, workers=2)
    assert (summary.packed, summary.bad) == (16, 0)
    assert files(tmp_path / "a") == files(tmp_path / "b")
    assert not any(b"secret" in data for data in files(tmp_path / "b").values())


def test_a_small_file_of_any_name_is_read_behind_a_url_and_beside_it(serve, tmp_path):
    (tmp_path / "set").mkdir()
    for name in ("a#1.idx", "a?b::c 100%.idx"):
        (tmp_path / "set" / name).write_bytes(name.encode())
        for dataset in (tmp_path / "set", f"{serve(tmp_path)}/set"):
            assert read_small(dataset, name, 100) == name.encode()
            with pytest.raises(DataError, match=r"expected at most 4 bytes, found more"):
                read_small(dataset, name, 4)


def test_a_file_that_is_gone_is_in_the_ledger_and_the_password_is_not(serve, source, tmp_path, options):
    (source / "list.csv").write_text(
        "path,label\nnowhere.jpg,dog\n" + "".join(f"dog/dog_{i}.jpg,dog\n" for i in range(7))
    )
    url = f"{serve(source)}/list.csv"
    assert pack(url, tmp_path / "set", options, workers=1).bad == 1
    assert "FileNotFoundError" in (tmp_path / "set" / "bad.jsonl").read_text()
    assert not any(b"secret" in data for data in files(tmp_path / "set").values())


def test_a_wrong_password_is_an_error_that_does_not_tell_it(serve, source):
    with pytest.raises(DataError) as caught:
        open_source(serve(source).replace("secret", "geheim"))
    assert re.fullmatch(
        r"http://127\.0\.0\.1:\d+: cannot be read: ClientResponseError 401; expected to be let in; .*",
        str(caught.value),
    )


def test_a_server_that_goes_away_stops_the_run_and_blames_no_image(serve, source, tmp_path, monkeypatch):
    monkeypatch.setattr("softshard.shards.retries.PATIENCE_S", 0.0)
    storage = open_storage("http://127.0.0.1:9/images")  # nothing listens at the discard port
    with pytest.raises(
        DataError, match=r"cannot be read: .*the server is away\. What is finished is kept"
    ) as caught:
        storage.read("a.jpg", 0, None, 100)
    assert not isinstance(caught.value, OSError)


def test_a_large_limit_takes_no_memory(tmp_path):
    (tmp_path / "a.jpg").write_bytes(b"four")
    storage = LocalStorage(str(tmp_path))
    assert storage.read("a.jpg", 0, None, 2**60) == b"four"
    assert storage.read("a.jpg", 0, None, 2) == b"fou"


def test_a_file_is_asked_for_once_as_long_as_it_is(tmp_path):
    """CPython makes room for as much as it is asked for: twice the file's length where it is asked for that twice."""

    sizes = []

    class Asked(io.FileIO):
        def read(self, size=-1):
            sizes.append(size)
            return super().read(size)

    (tmp_path / "a.bin").write_bytes(bytes(3 << 20))
    with Asked(tmp_path / "a.bin") as file:
        assert len(read_at_most(file, 2**40)) == 3 << 20
    assert sizes == [(3 << 20) + 1, 1 << 20]


def test_an_empty_file_has_no_range(serve, tmp_path):
    (tmp_path / "a.jpg").touch()
    assert open_storage(serve(tmp_path)).read("a.jpg", 0, None, 100) == b""


@pytest.mark.parametrize("form", ["folder", "tars", "whole.tar", "list.csv"])
def test_any_fsspec_url_is_a_source(source, tmp_path, options, form, collection_forms):
    local = collection_forms(source)[form]
    memory = fsspec.filesystem("memory")
    memory.put(str(local), f"/test/{local.name}", recursive=True)
    if form == "list.csv":
        memory.put(str(source), f"/test/{source.name}", recursive=True)
    try:
        pack(local, tmp_path / "a", options, workers=1)
        pack(f"memory://test/{local.name}", tmp_path / "b", options, workers=1)
        pack(f"file://{local}", tmp_path / "c", options, workers=1)
    finally:
        memory.rm("/test", recursive=True)
    assert files(tmp_path / "a") == files(tmp_path / "b") == files(tmp_path / "c")
    assert verify(tmp_path / "b").ok


def test_a_list_from_elsewhere_does_not_choose_local_files():
    memory = fsspec.filesystem("memory")
    rows = ["/etc/passwd", "../x.jpg", "file:///etc/passwd", "http://u:p@host/x.jpg?sig=1", "ok.jpg"]
    memory.pipe("/test/list.csv", ("path,label\n" + "".join(f"{row},a\n" for row in rows)).encode())
    try:
        with pytest.raises(DataError) as caught:
            open_source("memory://test/list.csv")
    finally:
        memory.rm("/test", recursive=True)
    lines = str(caught.value).splitlines()
    assert [line.partition("line ")[2][:1] for line in lines] == ["2", "3", "4", "5"]
    assert lines[3].endswith("expected a memory:// URL as the list's own, found 'http://host/x.jpg'")


@pytest.mark.parametrize(
    ("url", "name"),
    [
        ("https://u:p@host:80/a/b.tar?X-Signature=s#f", "https://host:80/a/b.tar"),
        ("https://u@host/a", "https://host/a"),
        ("https://u:p@ss/w@host/a", "https://ss/w@host/a"),  # not a URL: a slash ends the host
        ("s3://bucket/a@b/c", "s3://bucket/a@b/c"),
        ("simplecache::https://u:p@host/a?s=1", "simplecache::https://host/a"),
        ("/local/a?b#c@d", "/local/a?b#c@d"),
        ("dog::1/a?.jpg", "dog::1/a?.jpg"),
    ],
)
def test_a_public_name_has_no_password_and_no_query(url, name):
    assert public_name(url) == name


# No lack of credentials; and fsspec's TypeError, of arguments that a URL cannot give.
@pytest.mark.parametrize("protocol", ["nonsense", "credentials", "reference"])
def test_an_unknown_protocol_is_a_wrong_call(protocol):
    with pytest.raises(UsageError, match="expected a path or a URL that fsspec knows"):
        open_storage(f"{protocol}://u:p@host/a")


def test_azure_without_credentials_says_where_they_come_from(monkeypatch):
    pytest.importorskip("adlfs")
    for name in [name for name in os.environ if name.startswith("AZURE_")]:
        monkeypatch.delenv(name)
    with pytest.raises(UsageError, match=r"expected credentials \(for az: AZURE_STORAGE_ACCOUNT_NAME"):
        open_storage("az://container/train")


@pytest.mark.parametrize(
    ("kind", "found"),
    [
        (
            "ConfigFileNotFound",
            r"ConfigFileNotFound; expected to be let in; check the address and the credentials$",
        ),
        ("SSHException", "SSHException$"),
    ],
)
def test_what_a_library_misses_at_once_is_an_error_that_names_the_place(kind, found):
    class AtOnce(AbstractFileSystem):
        protocol = kind.lower()

        def __init__(self, **options):
            raise type(kind, (Exception,), {})("looked for it when it was made")

    fsspec.register_implementation(AtOnce.protocol, AtOnce, clobber=True)
    with pytest.raises(StorageError, match=rf"^{kind.lower()}://b/k: cannot be opened: {found}"):
        open_storage(f"{kind.lower()}://b/k?key=secret")


def test_a_local_path_is_none_of_fsspec_s(tmp_path, monkeypatch):
    folder = tmp_path / "a::b"
    folder.mkdir()
    (folder / "list.txt").write_text("cat\n")
    assert load_class_list(folder / "list.txt") == ("cat",)
    monkeypatch.setenv("HOME", str(folder))
    assert read_text("~/list.txt", 100) == "cat\n"
    assert Path(open_storage("~/list.txt").root) == folder / "list.txt"
    assert load_class_list("~/list.txt") == ("cat",)
    write_file("~/other.txt", b"dog\n")
    assert read_text("~/other.txt", 100) == (folder / "other.txt").read_text() == "dog\n"
    monkeypatch.chdir(tmp_path)
    folder.rename("~root")
    assert load_class_list("~root/list.txt") == ("cat",)


def test_a_disk_that_fails_names_the_file(tmp_path, monkeypatch):
    (tmp_path / "a.tar").write_bytes(b"123")

    def failing(*_):
        raise OSError(errno.EIO, os.strerror(errno.EIO))  # as the system raises it, without a name

    monkeypatch.setattr("os.pread", failing)
    with pytest.raises(OSError, match=r"Input/output error: '.*/a\.tar'"):
        LocalStorage(str(tmp_path)).read("a.tar", 0, 2, 100)


def test_few_tars_stay_open(tmp_path, monkeypatch):
    monkeypatch.setattr("softshard.shards.storage._OPEN_FILES", 2)
    storage = LocalStorage(str(tmp_path))
    for i in range(5):
        (tmp_path / f"{i}.tar").write_bytes(bytes([i]) * 9)
    for i in (0, 1, 2, 3, 4, 0, 4):
        assert storage.read(f"{i}.tar", 3, 2, 100) == bytes([i]) * 2
        assert len(storage._open) <= 2


def test_a_web_server_that_is_away_is_not_a_missing_file(monkeypatch):
    pytest.importorskip("aiohttp")
    monkeypatch.setattr("softshard.shards.retries.PATIENCE_S", 0.0)
    with pytest.raises(StorageError, match="the server is away"):
        open_source("http://127.0.0.1:9/all.tar")


def test_an_address_whose_package_no_extra_brings_says_which_one_is_missing():
    expected = "dropbox://x: expected the package with which fsspec reads dropbox://, found: .*dropboxdrivefs"
    with pytest.raises(UsageError, match=expected):
        RemoteStorage("dropbox://x")
