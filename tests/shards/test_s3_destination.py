"""Shards written to a real S3 server: whole or not there, the same bytes as on disk, also when the server goes away."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from packed_files import files
from s3fs import S3FileSystem
from waiting import LONG_S, wait_until

from servers.proxy import FaultyProxy
from servers.swift import SECRET_KEY
from softshard.shards import DataError, StorageError, UsageError, pack
from softshard.shards.destination import open_destination
from softshard.shards.pack import PackOptions


def objects(client, url):
    """Key below the URL to bytes."""
    bucket, _, prefix = url.removeprefix("s3://").partition("/")
    pages = client.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=f"{prefix}/")
    keys = [entry["Key"] for page in pages for entry in page.get("Contents", ())]
    return {
        key.removeprefix(f"{prefix}/"): client.get_object(Bucket=bucket, Key=key)["Body"].read()
        for key in keys
    }


@pytest.fixture
def expected(finished_once):
    return files(finished_once)


def test_the_shards_in_a_bucket_are_those_on_disk(s3_bucket, s3_client, source, options, expected):
    pack(source, f"{s3_bucket}/a/set", options, workers=2)
    assert objects(s3_client, f"{s3_bucket}/a/set") == expected
    pack(source, f"{s3_bucket}/a/set", options, workers=2)  # finished: nothing changes
    assert objects(s3_client, f"{s3_bucket}/a/set") == expected


def test_from_one_bucket_to_another(s3_bucket, s3_client, source, options, expected):
    S3FileSystem().put(str(source), f"{s3_bucket}/photos", recursive=True)
    pack(f"{s3_bucket}/photos", f"{s3_bucket}/set", options, workers=1)
    found = objects(s3_client, f"{s3_bucket}/set")
    shards = {name for name in expected if name.endswith((".tar", ".idx", ".npy"))}
    assert {name: found[name] for name in shards} == {name: expected[name] for name in shards}


def test_a_run_that_is_killed_leaves_nothing_half_and_continues(
    s3_bucket, s3_client, source, options, expected
):
    url = f"{s3_bucket}/set"
    script = (
        "import sys; from softshard.shards import ImageRecipe, PackOptions, pack\n"
        "pack(sys.argv[1], sys.argv[2], PackOptions(ImageRecipe(16), shard_samples=4, val_per_class=1), workers=1)"
    )

    def shards_there():
        keys = s3_client.list_objects_v2(Bucket=s3_bucket.removeprefix("s3://")).get("Contents", ())
        return [entry["Key"] for entry in keys if entry["Key"].endswith(".tar")]

    for wanted in (1, 4):  # shards that are there when it is killed
        process = subprocess.Popen([sys.executable, "-c", script, str(source), url])
        wait_until(lambda run=process, wanted=wanted: run.poll() is not None or len(shards_there()) >= wanted)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        found = objects(s3_client, url)
        assert found.items() <= expected.items()
    pack(source, url, options, workers=1)
    assert objects(s3_client, url) == expected


def test_a_server_that_is_restarted_in_between_is_waited_for(
    s3_bucket, s3_client, s3_server, source, options, expected, monkeypatch
):
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    done = threading.Event()

    def restart():
        while not done.wait(0.05):
            if (
                len(s3_client.list_objects_v2(Bucket=s3_bucket.removeprefix("s3://")).get("Contents", ()))
                >= 3
            ):
                s3_server.kill("object")
                time.sleep(1.0)
                s3_server.start("object")
                return

    with ThreadPoolExecutor(1) as pool:
        restarted = pool.submit(restart)
        try:
            pack(source, f"{s3_bucket}/set", options, workers=1)
        finally:
            done.set()
        restarted.result()
    assert objects(s3_client, f"{s3_bucket}/set") == expected


def test_a_server_that_stays_away_stops_the_run_and_it_continues(
    s3_bucket, s3_client, s3_server, source, options, expected, monkeypatch
):
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    with monkeypatch.context() as patch:
        patch.setattr("softshard.shards.retries.PATIENCE_S", 0.5)
        s3_server.kill("object")
        with pytest.raises(StorageError, match=r"the server is away\. What is finished is kept"):
            pack(source, f"{s3_bucket}/set", options, workers=1)
    s3_server.start()
    pack(source, f"{s3_bucket}/set", options, workers=1)
    assert objects(s3_client, f"{s3_bucket}/set") == expected


def test_a_connection_that_breaks_in_an_upload_leaves_nothing_and_is_tried_again(
    s3_bucket, s3_server, monkeypatch
):
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    with FaultyProxy(s3_server.endpoint) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.endpoint)
        S3FileSystem.clear_instance_cache()
        target = open_destination(f"{s3_bucket}/set")
        staged = target.stage("x.tar")
        staged.file.write(os.urandom(3_000_000))
        proxy.refuse = True
        threading.Timer(1.0, setattr, (proxy, "refuse", False)).start()
        staged.publish()
        assert target.sizes() == {"x.tar": 3_000_000}


def test_a_shard_of_several_parts_appears_whole(s3_bucket, s3_client):
    target = open_destination(f"{s3_bucket}/set")
    data = os.urandom(1_000_000) * 120
    staged = target.stage("x.tar")
    staged.file.write(data)
    assert target.sizes() == {}
    staged.publish()
    assert objects(s3_client, f"{s3_bucket}/set") == {"x.tar": data}
    (bucket,) = (s3_bucket.removeprefix("s3://"),)
    assert "Uploads" not in s3_client.list_multipart_uploads(Bucket=bucket)


def test_a_plan_is_made_once_and_another_is_refused(s3_bucket, s3_client, source, options):
    url = f"{s3_bucket}/set"
    target = open_destination(url)
    assert target.create("plan.json", b"{}")
    assert not target.create("plan.json", b"[]")
    assert target.read("plan.json", 10) == b"{}"
    target.remove("plan.json")
    pack(source, url, options, workers=1)
    before = objects(s3_client, url)
    with pytest.raises(UsageError, match=r"expected the plan .* found .* of an earlier run"):
        pack(source, url, PackOptions(seed=7), workers=1)
    assert objects(s3_client, url) == before


def test_two_runs_of_one_plan_at_once_end_in_the_same_bytes(s3_bucket, s3_client, source, expected):
    script = (
        "import sys; from softshard.shards import ImageRecipe, PackOptions, pack\n"
        "pack(sys.argv[1], sys.argv[2], PackOptions(ImageRecipe(16), shard_samples=4, val_per_class=1), workers=1)"
    )
    command = [sys.executable, "-c", script, str(source), f"{s3_bucket}/set"]
    runs = [subprocess.Popen(command) for _ in range(2)]
    assert [run.wait(LONG_S) for run in runs] == [0, 0]
    assert objects(s3_client, f"{s3_bucket}/set") == expected


def test_a_wrong_secret_or_a_missing_bucket_says_so_at_once(s3_bucket, source, options, monkeypatch):
    with pytest.raises((UsageError, DataError), match="no-such-bucket") as missing:
        pack(source, "s3://no-such-bucket/set", options, workers=1)
    assert "cannot be written: the bucket is not there" in str(missing.value)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "a-wrong-secret")
    S3FileSystem.clear_instance_cache()
    with pytest.raises(StorageError, match="check the address and the credentials") as refused:
        pack(source, f"{s3_bucket}/set", options, workers=1)
    assert "a-wrong-secret" not in str(refused.value)
    assert SECRET_KEY not in str(refused.value)


def test_no_key_or_secret_is_in_what_is_written(s3_bucket, s3_client, source, options):
    pack(source, f"{s3_bucket}/set", options, workers=1)
    for name, data in objects(s3_client, f"{s3_bucket}/set").items():
        assert SECRET_KEY.encode() not in data, name
    plan = json.loads(objects(s3_client, f"{s3_bucket}/set")["plan.json"])
    assert "s3" not in json.dumps(plan)
