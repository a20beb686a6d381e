"""The file in which a pool says where its servers are: written whole, read when it changes, refused when it is another."""

from types import SimpleNamespace

import pytest
from service_processes import SMALL, assert_same_batches, serving

from softshard.loaders import Connection, Faults, Loader, RemoteLoader, service_list, service_ray
from softshard.loaders.service_address import is_service
from softshard.loaders.service_list import ServerList, find_servers
from softshard.loaders.service_protocol import ServiceError
from softshard.shards.errors import UsageError

OPTIONS = SMALL | {"dtype": "uint8", "batch_size": 4}
QUICK = Connection(connect_s=20, request_s=30, deadline_s=240)


def test_what_is_written_is_read_and_a_change_is_seen_once(tmp_path, monkeypatch):
    monkeypatch.setattr(service_list, "_LOOK_S", 0)
    written, followed = ServerList(tmp_path / "servers.json"), ServerList(tmp_path / "servers.json")
    written.write(["grpc://b:2", "grpc://a:1"])
    assert followed.read() == ["grpc://a:1", "grpc://b:2"]
    assert followed.changed() is None
    written.write(["grpc://c:3"])
    assert followed.changed() == ["grpc://c:3"]
    assert followed.changed() is None
    written.write([])
    assert followed.changed() == []
    written.path.unlink()
    assert followed.changed() is None
    assert list(tmp_path.iterdir()) == []


def test_a_pool_whose_list_cannot_be_written_serves_on_and_says_so(tmp_path, caplog):
    listed = ServerList(tmp_path / "away" / "servers.json")
    assert service_ray._write_list(listed, ["grpc://a:1"]) is None
    assert "unlisted" in caplog.text
    listed.path.parent.mkdir()
    assert service_ray._write_list(listed, ["grpc://a:1"]) == ["grpc://a:1"]
    assert listed.read() == ["grpc://a:1"]


def test_looking_is_not_done_more_than_once_a_second(tmp_path, monkeypatch):
    now = [10.0]
    monkeypatch.setattr(service_list, "time", SimpleNamespace(monotonic=lambda: now[0]))
    written, followed = ServerList(tmp_path / "servers.json"), ServerList(tmp_path / "servers.json")
    written.write(["grpc://a:1"])
    assert followed.changed() == ["grpc://a:1"]
    written.write(["grpc://b:2"])
    now[0] = 10.9
    assert followed.changed() is None
    now[0] = 11.1
    assert followed.changed() == ["grpc://b:2"]


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("", "expected {"),
        ("[]", "expected {"),
        ('{"servers": "grpc://a:1"}', "expected {"),
        ('{"servers": [1]}', "expected {"),
        ('{"servers": ["http://a:1"]}', "expected an address such as grpc://"),
        ('{"servers": ["grpc://a:1", "grpc://a:1"]}', "expected different servers"),
    ],
)
def test_a_file_that_is_no_list_is_refused_and_named(tmp_path, content, expected):
    file = tmp_path / "servers.json"
    file.write_text(content)
    with pytest.raises(UsageError, match=r"servers\.json: ") as caught:
        find_servers(file.as_uri())
    assert expected in str(caught.value)


def test_a_list_that_stays_empty_is_told_as_that(tmp_path):
    listed = ServerList(tmp_path / "servers.json")
    listed.write([])
    with pytest.raises(ServiceError, match=r"Last errors: the list of servers is empty\. Are they running"):
        RemoteLoader(f"{listed.path.as_uri()}#train", connection=Connection(connect_s=0.1), **OPTIONS)


def test_a_list_that_is_not_there_is_a_wrong_call(tmp_path):
    with pytest.raises(UsageError, match=r"no\.json: expected the list of servers .* No such file"):
        find_servers((tmp_path / "no.json").as_uri())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "expected batch_size"),
        ({"faults": Faults(check_images=True)}, "expected Faults without check_images"),
    ],
    ids=["batch_size", "faults"],
)
def test_a_wrong_option_is_told_before_a_list_is_read(tmp_path, options, message):
    with pytest.raises(UsageError, match=message):
        RemoteLoader((tmp_path / "no.json").as_uri(), **(OPTIONS | options))


def test_addresses_of_lists_are_told_from_those_of_data_sets(tmp_path):
    file = tmp_path / "with space" / "servers.json"
    file.parent.mkdir()
    ServerList(file).write(["grpc://a:1"])
    assert is_service(f"{file.as_uri()}#train")
    assert not is_service("file:///data/train")
    servers, name, listed = find_servers(f"{file.as_uri()}#train")
    assert (servers, name) == (["grpc://a:1"], "train")
    assert listed is not None
    assert listed.path == file
    assert find_servers("grpc://a:1/x") == (["grpc://a:1"], "x", None)
    with pytest.raises(UsageError, match="expected a list of servers such as file:///run"):
        find_servers("file://elsewhere/run/servers.json")


def test_a_trainer_goes_on_with_the_server_that_the_list_names_now(packed, tmp_path):
    listed = ServerList(tmp_path / "servers.json")
    with serving(packed) as one:
        listed.write([one.url])
        with (
            RemoteLoader(listed.path.as_uri(), connection=QUICK, **OPTIONS) as remote,
            Loader(packed, **OPTIONS) as local,
        ):
            found, batches = [], iter(remote)
            found.append(next(batches))
            with serving(packed) as other:
                listed.write([other.url])
                one.stop()
                found.extend(batches)
                assert [server.address for server in remote._pool.servers] == [other.url]
            assert_same_batches(found, local)
