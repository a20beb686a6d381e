"""Sources in a bucket of a real S3 server, which is killed while they are read."""

import threading
import time
from contextlib import contextmanager
from types import SimpleNamespace

import pytest
from packed_files import files
from waiting import LONG_S

from servers.swift import PAGE_ENTRIES
from softshard.shards import DataError, StorageError, UsageError, pack, verify
from softshard.shards.cli import main
from softshard.shards.sources import open_source
from softshard.shards.storage import open_storage

NO_SLEEP = SimpleNamespace(monotonic=time.monotonic)  # nothing is tried twice
FORMS = ["folder", "tars", "whole.tar", "list.csv"]


@pytest.fixture
def upload(s3_bucket, s3_client):
    """Copies a file or folder to the bucket's root."""

    def put(path):
        for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
            if file.is_file():
                key = str(file.relative_to(path.parent))
                s3_client.put_object(Bucket=bucket_name(s3_bucket), Key=key, Body=file.read_bytes())
        return f"{s3_bucket}/{path.name}"

    return put


def bucket_name(url):
    return url.removeprefix("s3://")


@pytest.mark.parametrize("form", FORMS)
def test_a_bucket_gives_what_the_local_path_gives(upload, source, tmp_path, options, form, collection_forms):
    (source / "dog").rename(source / "wild dog #1? 100%")  # names that a URL would quote
    local = collection_forms(source)[form]
    url = upload(local)
    if form == "list.csv":
        upload(source)
    pack(local, tmp_path / "a", options, workers=1)
    summary = pack(url, tmp_path / "b", options, workers=2 if form == "folder" else 1)
    assert (summary.packed, summary.bad) == (16, 0)
    assert files(tmp_path / "a") == files(tmp_path / "b")
    assert verify(tmp_path / "b").ok


def test_the_command_needs_the_environment_alone(upload, source, tmp_path):
    arguments = ["--size", "16", "--shard-samples", "4", "--workers", "1"]
    assert main(["pack", str(source), str(tmp_path / "a"), *arguments]) == 0
    assert main(["pack", upload(source), str(tmp_path / "b"), *arguments]) == 0
    assert files(tmp_path / "a") == files(tmp_path / "b")


def test_a_bad_object_is_in_the_ledger_as_a_bad_file_is(upload, source, tmp_path, options):
    (source / "dog" / "empty.jpg").touch()  # S3 refuses a range of no bytes
    (source / "dog" / "cut.jpg").write_bytes((source / "dog" / "dog_0.jpg").read_bytes()[:100])
    pack(source, tmp_path / "a", options, workers=1)
    assert pack(upload(source), tmp_path / "b", options, workers=1).bad == 2
    assert files(tmp_path / "a") == files(tmp_path / "b")


def test_markers_of_empty_folders_are_no_images(upload, source, s3_bucket, s3_client):
    url = upload(source)
    for key in ("source/", "source/dog/", "source/dog/.hidden.jpg"):
        s3_client.put_object(Bucket=bucket_name(s3_bucket), Key=key, Body=b"")
    assert [folder.name for folder in open_source(url).folders] == ["bird", "dog", "oak"]
    assert [entry.name for entry in open_storage(url).entries("dog")] == [f"dog_{i}.jpg" for i in range(7)]


def test_a_second_listing_sees_what_came_since(upload, source, s3_bucket, s3_client):
    storage = open_storage(upload(source))
    assert len(storage.entries("oak")) == 4
    s3_client.put_object(Bucket=bucket_name(s3_bucket), Key="source/oak/new.jpg", Body=b"")
    assert len(storage.entries("oak")) == 5
    assert not storage._filesystem.dircache


def test_a_listing_of_more_than_a_page_is_whole(s3_bucket, s3_client):
    names = [f"{i:04}.jpg" for i in range(2 * PAGE_ENTRIES + 1)]
    for name in names:
        s3_client.put_object(Bucket=bucket_name(s3_bucket), Key=f"class/{name}", Body=b"")
    assert [entry.name for entry in open_storage(s3_bucket).entries("class")] == names


def test_a_wrong_secret_is_an_error_at_once_that_does_not_tell_it(
    s3_bucket, source, tmp_path, monkeypatch, capsys
):
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "geheim")
    monkeypatch.setattr("softshard.shards.retries.time", NO_SLEEP)
    assert main(["pack", f"{s3_bucket}/source", str(tmp_path / "set")]) == 1
    told = capsys.readouterr().err
    assert f"{s3_bucket}/source: cannot be read: PermissionError" in told
    assert "AWS_SECRET_ACCESS_KEY" in told
    assert "geheim" not in told
    with pytest.raises(StorageError, match=r"a\.jpg: cannot be read: PermissionError SignatureDoesNotMatch"):
        open_storage(s3_bucket).read("a.jpg", 0, None, 100)


def test_no_keys_at_all_is_an_error_at_once(s3_bucket, monkeypatch):
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.setattr("softshard.shards.retries.time", NO_SLEEP)
    with pytest.raises(StorageError, match="NoCredentialsError; expected to be let in"):
        open_source(f"{s3_bucket}/source")


@pytest.mark.parametrize("url", ["s3://no-such-bucket/photos", "s3://no-such-bucket", "{bucket}/nothing"])
def test_a_missing_bucket_or_key_is_a_wrong_call(s3_bucket, url):
    with pytest.raises(UsageError, match=r"^s3://[a-z0-9-]+(/[a-z]+)?: expected images, found nothing$"):
        open_source(url.format(bucket=s3_bucket))


def test_a_key_that_is_gone_is_in_the_ledger(upload, source, tmp_path, options):
    (source / "list.csv").write_text(
        "path,label\nnowhere.jpg,dog\n" + "".join(f"dog/dog_{i}.jpg,dog\n" for i in range(7))
    )
    assert pack(f"{upload(source)}/list.csv", tmp_path / "set", options, workers=1).bad == 1
    assert "FileNotFoundError NoSuchKey" in (tmp_path / "set" / "bad.jsonl").read_text()


@pytest.mark.parametrize("form", FORMS)
def test_broken_connections_change_nothing(upload, source, tmp_path, options, form, collection_forms, proxy):
    local = collection_forms(source)[form]
    url = upload(local)
    if form == "list.csv":
        upload(source)
    pack(local, tmp_path / "a", options, workers=1)
    largest = max(path.stat().st_size for path in (local, *local.rglob("*.*")))
    proxy.reset_after = 6000 + largest  # a few answers; then in the middle of a header or an image
    assert pack(url, tmp_path / "b", options, workers=1).bad == 0
    assert proxy.faults > 0
    assert files(tmp_path / "a") == files(tmp_path / "b")


@contextmanager
def when_there(path, act):
    """Calls `act` from a thread as soon as a file is there; not where what is done here ends before it is."""

    def watch():
        while not path.exists() and not done.wait(0.001):
            pass
        if path.exists():
            act()

    done = threading.Event()
    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join(LONG_S)


@pytest.mark.parametrize("killed", [("object",), ()], ids=["object server", "all servers"])
def test_a_run_rides_through_a_restart_of_the_server(
    upload, source, tmp_path, finished_once, options, proxy, s3_server, killed
):
    url = upload(source)
    proxy.delay_s = 0.05  # so that the server dies in the middle

    def restart():
        s3_server.kill(*killed)
        s3_server.start(*killed)

    with when_there(tmp_path / "b" / "train" / "train-000000.tar", restart):
        assert pack(url, tmp_path / "b", options, workers=1).bad == 0
    assert files(finished_once) == files(tmp_path / "b")


@pytest.mark.parametrize("killed", [("object",), ()], ids=["object server", "all servers"])
def test_a_run_that_lost_its_server_stops_and_the_next_one_continues(
    upload, source, tmp_path, finished_once, options, proxy, s3_server, monkeypatch, killed
):
    url = upload(source)
    proxy.delay_s = 0.05
    monkeypatch.setattr("softshard.shards.retries.PATIENCE_S", 1.0)
    first = tmp_path / "b" / "train" / "train-000000.tar"
    with (
        when_there(first, lambda: s3_server.kill(*killed)),
        pytest.raises(
            DataError, match=r"the server is away\. What is finished is kept: run the same"
        ) as caught,
    ):
        pack(url, tmp_path / "b", options, workers=1)
    assert isinstance(caught.value, StorageError)
    assert not (tmp_path / "b" / "train" / "manifest.json").exists()
    kept = first.stat()
    s3_server.start()
    assert pack(url, tmp_path / "b", options, workers=1).bad == 0
    assert (first.stat().st_ino, first.stat().st_mtime_ns) == (kept.st_ino, kept.st_mtime_ns)
    assert files(finished_once) == files(tmp_path / "b")


def test_a_tar_whose_server_is_away_is_no_damaged_tar(upload, source, collection_forms, proxy, monkeypatch):
    url = upload(collection_forms(source)["tars"])
    monkeypatch.setattr("softshard.shards.retries.PATIENCE_S", 0.0)
    storage = open_storage(url)
    with storage.open("dog.tar") as file:
        proxy.refuse = True
        proxy.cut()
        with pytest.raises(
            StorageError, match=r"tars/dog\.tar: cannot be read: .* the server is away"
        ) as caught:
            file.read(512)
    assert "damaged" not in str(caught.value)
    with pytest.raises(StorageError) as caught:
        open_source(url)
    assert len(str(caught.value).splitlines()) == 1
