"""Folders that are written to, local and behind URLs: what appears appears whole."""

import pickle
import uuid

import fsspec
import pytest
from packed_files import files

from softshard.shards import DataError, StorageError, UsageError, pack
from softshard.shards.destination import LocalDestination, RemoteDestination, open_destination, write_file
from softshard.shards.pack import PackOptions


@pytest.fixture(params=["local", "memory"])
def destination(request, tmp_path):
    target = open_destination(
        tmp_path / "set" if request.param == "local" else f"memory://{uuid.uuid4()}/set"
    )
    target.make()
    return target


def test_what_is_written_is_read_back_and_listed_with_its_size(destination):
    destination.write("a.json", b"first")
    destination.write("a.json", b"[1]")
    assert destination.read("a.json", 3) == b"[1]"
    assert destination.sizes() == {"a.json": 3}
    assert destination.foreign() == ["a.json"]


def test_a_folder_below_is_a_destination_of_its_own(destination):
    below = destination.folder("train").folder("receipts")
    below.make()
    below.write("x", b"1")
    assert below.sizes() == {"x": 1}
    assert destination.sizes() == {}
    assert destination.foreign() == ["train"]
    assert below.name == f"{destination.name}/train/receipts"
    assert below.base == "receipts"


def test_a_missing_folder_is_empty_and_a_missing_file_is_not_found(destination):
    assert destination.folder("nowhere").sizes() == {}
    with pytest.raises(FileNotFoundError):
        destination.read("nothing", 10)


def test_a_file_longer_than_the_limit_is_refused(destination):
    destination.write("a.json", b"four")
    with pytest.raises(DataError, match=r"a\.json: expected at most 3 bytes, found more"):
        destination.read("a.json", 3)


def test_a_large_limit_takes_no_memory(tmp_path):
    destination = LocalDestination(tmp_path)
    destination.write("a.json", b"four")
    (tmp_path / "empty").touch()
    assert destination.read("a.json", 2**60) == b"four"
    assert destination.read("empty", 2**60) == b""


def test_a_file_below_a_file_is_refused_by_its_name(tmp_path):
    (tmp_path / "list").touch()
    with pytest.raises(
        UsageError, match=r"list/a\.json: cannot be written: .*/list: expected a folder, found a file"
    ):
        write_file(tmp_path / "list" / "a.json", b"{}")


def test_create_writes_once(destination):
    assert destination.create("plan.json", b"mine")
    assert not destination.create("plan.json", b"yours")
    assert destination.read("plan.json", 10) == b"mine"


def test_a_staged_file_appears_when_it_is_published(destination):
    staged = destination.stage("x.tar")
    staged.file.write(b"half")
    assert "x.tar" not in destination.sizes()
    staged.file.write(b" and half")
    staged.publish()
    assert destination.sizes() == {"x.tar": 13}
    staged.discard()
    assert destination.read("x.tar", 20) == b"half and half"


def test_a_discarded_file_leaves_nothing(destination):
    staged = destination.stage("x.tar")
    staged.file.write(b"half")
    staged.discard()
    assert destination.foreign() == []


def test_a_killed_run_s_leftovers_go_and_nothing_else(tmp_path):
    destination = LocalDestination(tmp_path)
    destination.folder("train").make()
    destination.folder("train").stage("x.tar").file.close()
    destination.write("plan.json", b"{}")
    destination.remove_leftovers()
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["plan.json", "train"]


def test_a_destination_goes_to_another_process(destination):
    # Pickle is how processes of one run talk; nothing of it is ever read from data.
    assert pickle.loads(pickle.dumps(destination)) == destination


def test_a_second_run_in_a_local_folder_is_kept_out(tmp_path):
    destination = LocalDestination(tmp_path)
    with (
        destination.hold(),
        pytest.raises(UsageError, match="another softshard is writing there"),
        LocalDestination(tmp_path).hold(),
    ):
        pass


class _Away(fsspec.AbstractFileSystem):
    """A store that fails in a way that may pass, with its URL in every message, as real ones have."""

    protocol = "away"
    cachable = False
    calls = 0
    fails = 0

    def pipe_file(self, path, value, mode="overwrite", **kwargs):
        type(self).calls += 1
        if self.calls <= self.fails:
            raise OSError(5, f"away://ann:secret@host/{path}")


@pytest.fixture
def away(monkeypatch):
    fsspec.register_implementation("away", _Away, clobber=True)
    monkeypatch.setattr("softshard.shards.retries._FIRST_WAIT_S", 0.0)
    _Away.calls, _Away.fails = 0, 0
    return RemoteDestination("away://ann:secret@host/set")


def test_a_store_that_comes_back_is_asked_again(away):
    _Away.fails = 1
    away.write("a.json", b"1")
    assert _Away.calls == 2


def test_a_store_that_stays_away_is_named_without_its_password(away, monkeypatch):
    monkeypatch.setattr("softshard.shards.retries.PATIENCE_S", 0.0)
    _Away.fails = 10**6
    with pytest.raises(
        DataError, match=r"^away://host/set/a\.json: cannot be written: OSError 5; tried 1 times in \d+ s"
    ) as e:
        away.write("a.json", b"1")
    assert "secret" not in str(e.value)


def test_shards_in_memory_are_the_shards_of_a_folder(source, tmp_path, options):
    pack(source, tmp_path / "set", options, workers=1)
    url = f"memory://{uuid.uuid4()}/set"
    pack(source, url, options, workers=1)
    pack(source, url, options, workers=1)  # finished: nothing changes
    store = fsspec.filesystem("memory")
    root = url.removeprefix("memory:/")
    found = {path.removeprefix(root + "/"): store.cat_file(path) for path in store.find(root)}
    assert found == files(tmp_path / "set")


@pytest.mark.parametrize("name", ["train-000000.tar.json", ".listing"])
def test_what_is_done_in_a_store_that_is_away_is_not_done_again(
    source, options, monkeypatch, collection_forms, name
):
    url = f"memory://{uuid.uuid4()}/set"
    tars = collection_forms(source)["tars"]
    pack(tars, url, options, workers=1)
    read = RemoteDestination.read

    def away(self, wanted, limit):
        if wanted == name:
            raise StorageError(f"{self.name}/{wanted}: cannot be read: the server is away")
        return read(self, wanted, limit)

    monkeypatch.setattr(RemoteDestination, "read", away)
    with pytest.raises(StorageError, match=f"{name}: cannot be read"):
        pack(tars, url, options, workers=1)


def test_another_plan_is_refused_in_a_bucket_too(source, options):
    url = f"memory://{uuid.uuid4()}/set"
    pack(source, url, options, workers=1)
    with pytest.raises(UsageError, match=r"expected the plan .* found .* of an earlier run"):
        pack(source, url, PackOptions(seed=7), workers=1)


def test_a_prefix_with_something_else_in_it_is_refused(source, options):
    url = f"memory://{uuid.uuid4()}/set"
    fsspec.filesystem("memory").pipe_file(f"{url}/holiday.jpg", b"")
    with pytest.raises(UsageError, match=r"expected an empty or new folder, found 'holiday\.jpg'"):
        pack(source, url, options, workers=1)


def test_shards_do_not_go_into_their_own_source(options):
    with pytest.raises(UsageError, match="expected a folder outside memory://photos"):
        pack("memory://photos", "memory://photos/out", options)
