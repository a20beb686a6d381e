"""Data sets in Google Cloud Storage, as an emulator speaks it: packed there, verified, read through the cache."""

import logging
import os
import time
from types import SimpleNamespace

import fsspec
import pytest
from cached_sets import OPTIONS
from service_processes import assert_same_batches

from servers.gcs import Refusing
from softshard.loaders import Cache, Loader
from softshard.loaders.doctor_storage import check_data_set
from softshard.shards import ImageRecipe, Manifest, PackOptions, StorageError, UsageError, pack, verify
from softshard.shards.destination import open_destination
from softshard.shards.storage import open_storage

NO_SLEEP = SimpleNamespace(monotonic=time.monotonic)  # nothing is tried twice


@pytest.fixture
def images(packed_plain):
    return packed_plain.parents[1] / "images"


def options(**changed):
    return PackOptions(**{"shard_samples": 10, "image": ImageRecipe(24), **changed})


@pytest.fixture
def far(images, gcs_bucket):
    """URL of a data set of two shards that was packed into a bucket."""
    pack(images, f"{gcs_bucket}/set", options(), workers=1)
    return f"{gcs_bucket}/set/train"


@pytest.fixture
def near(images, tmp_path):
    """The same in a folder."""
    pack(images, tmp_path / "set", options(), workers=1)
    return tmp_path / "set" / "train"


def test_the_shards_in_a_bucket_are_those_on_disk_and_a_second_run_finds_them(
    far, near, gcs_session, gcs_bucket, images
):
    objects = gcs_session.objects(gcs_bucket.removeprefix("gs://"))
    files = [path for path in near.parent.rglob("*") if path.is_file() and path.name != ".lock"]
    assert objects == {f"set/{path.relative_to(near.parent)}": path.read_bytes() for path in files}
    assert verify(far.removesuffix("/train"), decode=True).ok
    pack(images, f"{gcs_bucket}/set", options(), workers=1)
    assert gcs_session.objects(gcs_bucket.removeprefix("gs://")) == objects
    with pytest.raises(UsageError, match=r"expected the plan .* of an earlier run: size was 24, is 20"):
        pack(images, f"{gcs_bucket}/set", options(image=ImageRecipe(20)), workers=1)


def test_a_bucket_gives_the_folders_batches_and_counts_what_it_fetched(far, near, tmp_path):
    cache = Cache(folder=tmp_path / "cache")
    with Loader(near, **OPTIONS) as local, Loader(far, cache=cache, **OPTIONS) as loader:
        for _ in range(2):
            assert_same_batches(loader, local)
        stats = loader.fetch_stats()
        iterator = iter(loader)
        next(iterator)
        state = loader.state_dict()
        with Loader(near, **OPTIONS) as other:
            other.load_state_dict(state)
            assert_same_batches(other, iterator)
    shards = Manifest.load(near).shards
    assert (stats.shards_fetched, stats.requests, stats.retries) == (2, 4, 0)
    indexes = sum(path.stat().st_size for path in near.glob("*.idx"))
    assert stats.bytes_fetched == indexes + sum(shard.bytes for shard in shards)


def test_connections_that_break_in_the_middle_change_nothing(far, near, tmp_path, gcs_proxy):
    gcs_proxy.break_share, gcs_proxy.break_within = 0.5, 20_000
    with Loader(near, **OPTIONS) as local, Loader(far, cache=Cache(tmp_path / "cache"), **OPTIONS) as loader:
        assert_same_batches(loader, local)
    assert gcs_proxy.faults > 0


def test_a_shard_of_several_megabytes_is_uploaded_whole(gcs_bucket):
    """gcsfs sends what is longer than 5 MiB in another way: a session, then its bytes."""
    target = open_destination(f"{gcs_bucket}/set")
    data = os.urandom(6 * 2**20)
    staged = target.stage("x.tar")
    staged.file.write(data)
    assert target.sizes() == {}
    staged.publish()
    assert target.sizes() == {"x.tar": len(data)}
    assert open_storage(f"{gcs_bucket}/set").read("x.tar", 5_000_000, 1000, 2000) == data[5_000_000:5_001_000]


def test_a_missing_bucket_or_object_says_so_at_once(gcs_bucket, images, monkeypatch):
    monkeypatch.setattr("softshard.shards.retries.time", NO_SLEEP)
    with pytest.raises(
        UsageError, match=r"^gs://no-bucket/set/plan\.json: .*: the bucket is not there\. Make it"
    ):
        pack(images, "gs://no-bucket/set", options(), workers=1)
    for url in ("gs://no-bucket/set", f"{gcs_bucket}/nothing"):
        with pytest.raises(Exception, match=rf"^{url}: expected a data set, found no manifest\.json"):
            Loader(url, **OPTIONS)
        with pytest.raises(UsageError, match=rf"^{url}: expected images, found nothing$"):
            pack(url, gcs_bucket, options(), workers=1)
        (finding,) = check_data_set(url)
        assert finding.found == f"{url}/manifest.json: cannot be read: FileNotFoundError"


def test_doctor_tells_how_a_bucket_answers(far):
    found = {finding.name: finding for finding in check_data_set(far)}
    assert found["storage"].found.startswith(f"{far}: answers in ")
    assert found["ranges"].found == "answered: broken downloads continue"
    assert found["manifest"].found == "20 samples of 2 classes in 2 shards"
    assert found["train-000000.tar"].found.startswith("there; ")


@pytest.mark.parametrize("status", [401, 403])
def test_who_is_not_let_in_is_told_so_at_once(gcs_bucket, images, tmp_path, monkeypatch, status, capfd):
    monkeypatch.setattr("softshard.shards.retries.time", NO_SLEEP)
    monkeypatch.setattr(
        logging.root, "handlers", []
    )  # as in a process where nobody, such as Ray, wants log lines
    told = r"expected to be let in; .* \(for gs: GOOGLE_APPLICATION_CREDENTIALS, or run: gcloud auth"
    with Refusing(status) as server:
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", server.endpoint)
        fsspec.get_filesystem_class("gs").clear_instance_cache()
        with pytest.raises(
            StorageError, match=rf"^{gcs_bucket}/set/manifest\.json: cannot be read: .*{told}"
        ):
            Loader(f"{gcs_bucket}/set", **OPTIONS)
        with pytest.raises(StorageError, match=rf"^{gcs_bucket}/set/plan\.json: cannot be .*{told}"):
            pack(images, f"{gcs_bucket}/set", options(), workers=1)
        with pytest.raises(StorageError, match=rf"^{gcs_bucket}/photos: cannot be read: .*{told}"):
            pack(f"{gcs_bucket}/photos", tmp_path / "set", options(), workers=1)
    assert "Traceback" not in capfd.readouterr().err
