"""Data sets behind URLs: verify, stats and reshard find what they find in a local folder, and say what is wrong."""

import json
import re
import shutil
import threading
from functools import partial
from http.server import BaseHTTPRequestHandler, SimpleHTTPRequestHandler, ThreadingHTTPServer

import fsspec
import numpy as np
import pytest
from packed_files import files

from softshard.shards import DataError, Manifest, ReshardOptions, UsageError, reshard, verify
from softshard.shards.cli import main
from softshard.shards.gather import index_samples
from softshard.shards.stats import data_set_stats
from softshard.shards.storage import public_name


@pytest.fixture(autouse=True)
def _no_waits(monkeypatch):
    monkeypatch.setattr("softshard.shards.retries._FIRST_WAIT_S", 0.0)


@pytest.fixture
def impatient(monkeypatch):
    """For what fails however often it is tried."""
    monkeypatch.setattr("softshard.shards.retries.PATIENCE_S", 0.0)


@pytest.fixture
def faulty():
    """A web server over a folder whose answers can be spoiled; gives its URL and the requests it has had."""
    servers = []

    def start(folder, spoil=lambda name, data: data):
        """`spoil` gets a file's name and an answer's bytes and gives those that are sent."""
        requests = []

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                name = self.path.rpartition("/")[2]
                path = folder / self.path.lstrip("/")
                if not path.is_file():
                    self.send_error(404)
                    return
                data = path.read_bytes()
                first, last = map(int, re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers["Range"]).groups())
                requests.append((name, first, last + 1))
                if first >= len(data):
                    self.send_error(416)
                    return
                answer = data[first : last + 1]
                sent = spoil(name, answer)
                self.send_response(206)
                # A connection that breaks promises more than it sends; a tired proxy sends less.
                self.send_header("Content-Length", str(len(answer if sent is None else sent)))
                self.end_headers()
                self.wfile.write(answer[: len(answer) // 2] if sent is None else sent)
                self.close_connection = True

            def log_message(self, *_):
                pass

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        servers.append(server)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        return f"http://ann:secret@127.0.0.1:{server.server_port}", requests

    pytest.importorskip("aiohttp")
    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


# ---- The same as locally


def test_a_web_server_gives_what_the_folder_gives(serve, packed_once, tmp_path):
    url = serve(packed_once)
    report = verify(url, decode=True, workers=1)
    assert (report.shards, report.samples, report.problems) == (5, 16, [])
    assert data_set_stats(f"{url}/train") == data_set_stats(packed_once / "train")
    options = ReshardOptions(shard_samples=5, shuffle=1, name="set")
    reshard([packed_once / "train", packed_once / "val"], tmp_path / "a", options)
    reshard([f"{url}/train/", packed_once / "val"], tmp_path / "b", options)
    found = files(tmp_path / "b")
    assert found == files(tmp_path / "a")
    assert not any(b"secret" in data for data in found.values())
    assert verify(tmp_path / "b", decode=True).ok


def test_a_server_without_ranges_gives_what_is_read_whole(packed_once):
    """Python's own, `python -m http.server`."""
    pytest.importorskip("aiohttp")
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(SimpleHTTPRequestHandler, directory=packed_once))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        report = verify(f"http://127.0.0.1:{server.server_port}/train", decode=True, workers=1)
    finally:
        server.shutdown()
        server.server_close()
    assert (report.problems, report.samples) == ([], 13)


def test_two_processes_check_what_is_behind_a_url(serve, packed_once):
    report = verify(f"{serve(packed_once)}/train", workers=2)
    assert (report.shards, report.samples, report.problems) == (4, 13, [])


def test_one_shard_behind_a_url_is_checked_alone(memory, packed):
    (packed / "train" / "train-000000.tar").unlink()
    report = verify(memory(packed) + "/train/train-000001.tar")
    assert (report.shards, report.samples, report.problems) == (1, 3, [])


def test_any_fsspec_url_is_a_source_and_a_destination(memory, packed_once, tmp_path):
    url = memory(packed_once)
    assert verify(url, decode=True).samples == 16
    assert data_set_stats(f"{url}/val") == data_set_stats(packed_once / "val")
    options = ReshardOptions(shard_samples=5, shuffle=1, name="set")
    reshard([packed_once / "train"], tmp_path / "a", options)
    reshard([f"{url}/train"], tmp_path / "b", options)
    reshard([f"{url}/train"], "memory://copies/c", options, workers=2)
    reshard([f"file://{packed_once}/train"], tmp_path / "d", options)
    fsspec.filesystem("memory").get("/copies/c", str(tmp_path / "c"), recursive=True)
    expected = files(tmp_path / "a")
    assert expected == files(tmp_path / "b") == files(tmp_path / "c") == files(tmp_path / "d")
    assert verify("memory://copies/c").ok


def test_a_run_into_a_bucket_continues(memory, packed_once):
    url, bucket = memory(packed_once), fsspec.filesystem("memory")
    options = ReshardOptions(shard_samples=3)
    before = reshard([f"{url}/train"], "memory://copies/new", options)
    for lost in ("manifest.json", "train-000001.tar", "receipts/train-000002.tar.json"):
        bucket.rm(f"/copies/new/{lost}")
    assert reshard([f"{url}/train"], "memory://copies/new", options) == before
    assert verify("memory://copies/new").ok
    with pytest.raises(UsageError, match="of another run"):
        reshard([f"{url}/train"], "memory://copies/new", ReshardOptions(shard_samples=4))


@pytest.mark.parametrize("workers", [1, 2, 3])
def test_any_number_of_workers_writes_the_same_bytes(packed_once, tmp_path, workers):
    options = ReshardOptions(shard_samples=2, shuffle=3)
    reshard([packed_once / "train"], tmp_path / "a", options, workers=1)
    reshard([packed_once / "train"], tmp_path / "b", options, workers=workers)
    assert files(tmp_path / "a") == files(tmp_path / "b")


# ---- Requests


def test_neighbours_are_read_with_one_request(faulty, packed_once):
    url, requests = faulty(packed_once)
    source = f"{url}/train"
    table = index_samples([(source, Manifest.load(source))], (), lambda _: None)
    requests.clear()
    in_order = table.read(np.arange(13), ())
    assert [name for name, _, _ in sorted(requests)] == [f"train-00000{i}.tar" for i in range(4)]
    requests.clear()
    assert table.read(np.arange(13)[::-1], ()) == in_order[::-1]
    assert len(requests) == 4


def test_far_samples_are_read_by_themselves_and_large_ranges_are_bounded(faulty, packed_once, monkeypatch):
    url, requests = faulty(packed_once)
    source = f"{url}/train"
    table = index_samples([(source, Manifest.load(source))], (), lambda _: None)
    expected = table.read(np.arange(3), ())
    monkeypatch.setattr("softshard.shards.gather.RANGE_BYTES", int(table.lengths[:2].sum()))
    requests.clear()
    assert table.read(np.arange(3), ()) == expected
    assert len(requests) == 2
    monkeypatch.setattr("softshard.shards.gather._MOST_GAP_BYTES", 0)
    requests.clear()
    assert table.read(np.array([0, 2]), ()) == expected[0:3:2]
    starts, stops = table.offsets, table.offsets + table.lengths
    assert sorted(requests) == [("train-000000.tar", starts[i], stops[i]) for i in (0, 2)]


# ---- Damage


def damage_missing(folder):
    (folder / "train-000001.tar").unlink()


def damage_cut(folder):
    path = folder / "train-000001.tar"
    path.write_bytes(path.read_bytes()[:-700])


def damage_longer(folder):
    path = folder / "train-000001.tar"
    path.write_bytes(path.read_bytes() + bytes(512))


def damage_bit(folder):
    path = folder / "train-000001.tar"
    data = bytearray(path.read_bytes())
    data[-2000] ^= 1
    path.write_bytes(data)


def damage_index(folder):
    (folder / "train-000002.idx").unlink()


def damage_sidecar(folder):
    (folder / "classes.npy").write_bytes(b"")


def damage_stray(folder):
    shutil.copy(folder / "train-000001.tar", folder / "other.tar")


DAMAGES = [
    damage_missing,
    damage_cut,
    damage_longer,
    damage_bit,
    damage_index,
    damage_sidecar,
    damage_stray,
]


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
def test_the_problems_behind_a_url_are_those_of_the_folder(memory, packed, damage):
    damage(packed / "train")
    expected = verify(packed / "train").problems
    assert expected
    url = memory(packed) + "/train"
    assert [p.replace(url, str(packed / "train")) for p in verify(url).problems] == expected


@pytest.mark.parametrize("damage", DAMAGES[:5], ids=lambda damage: damage.__name__)
def test_a_damaged_source_behind_a_url_is_refused(memory, packed, tmp_path, damage):
    damage(packed / "train")
    with pytest.raises(DataError, match=r"memory://copies/set/train/train-00000[12]\.(tar|idx): expected "):
        reshard([memory(packed) + "/train"], tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_any_number_of_processes_finds_the_same_problems_in_the_same_order(packed):
    for name in ("train-000000.tar", "train-000002.tar", "train-000003.tar"):
        path = packed / "train" / name
        data = bytearray(path.read_bytes())
        data[600:1400] = bytes(800)
        path.write_bytes(data)
    shutil.copy(packed / "train" / "train-000001.idx", packed / "train" / "train-000000.idx")
    expected = verify(packed / "train", workers=1).problems
    assert len(expected) > 4
    assert verify(packed / "train", workers=3).problems == expected


def test_a_data_set_whose_manifest_was_lost_is_a_problem(memory, packed):
    (packed / "train" / "manifest.json").unlink()
    assert verify(memory(packed)).problems == [
        "memory://copies/set/train: expected manifest.json beside its shards, found none. Copy it again, or pack again"
    ]
    with pytest.raises(DataError, match=r"^memory://copies/set/train: expected a data set .*found none"):
        verify("memory://copies/set/train")
    with pytest.raises(
        DataError, match=r"^memory://copies/set/train: expected a data set, found no manifest"
    ):
        reshard(["memory://copies/set/train"], packed / "new")


# ---- The way here


def test_short_answers_are_completed(faulty, packed_once, tmp_path):
    url, requests = faulty(packed_once, lambda name, data: data[:1500] if name.endswith(".tar") else data)
    assert verify(f"{url}/train", decode=True, workers=1).problems == []
    assert len(requests) > 20
    reshard([f"{url}/train"], tmp_path / "a", ReshardOptions(name="train", shard_samples=4))
    assert Manifest.load(tmp_path / "a").fingerprint == Manifest.load(packed_once / "train").fingerprint


def test_a_connection_that_breaks_once_is_tried_again(faulty, packed_once):
    broken = set()

    def spoil(name, data):
        if name in broken:
            return data
        broken.add(name)
        return None

    url, _ = faulty(packed_once, spoil)
    assert verify(f"{url}/train", workers=1).problems == []
    assert len(broken) == 11


def test_a_connection_that_always_breaks_is_a_problem_of_that_shard(faulty, packed_once, tmp_path, impatient):
    url, _ = faulty(packed_once, lambda name, data: None if name == "train-000002.tar" else data)
    report = verify(f"{url}/train", workers=1)
    (problem,) = report.problems
    where = url.replace("ann:secret@", "") + "/train/train-000002.tar"
    assert problem.startswith(f"{where}: cannot be read: ")
    assert report.shards == 4
    with pytest.raises(DataError) as caught:
        reshard([f"{url}/train"], tmp_path / "a")
    assert str(caught.value).startswith(f"{where}: cannot be read: ")
    assert not (tmp_path / "a").exists()


def test_bytes_that_change_on_their_way_are_noticed(faulty, packed_once):
    def spoil(name, data):
        return data[:-1] + bytes([data[-1] ^ 1]) if name == "train-000001.idx" else data

    url, _ = faulty(packed_once, spoil)
    problems = verify(f"{url}/train", workers=1).problems
    assert problems[0].startswith(f"{public_name(url)}/train/train-000001.idx: expected SHA-256 ")


@pytest.mark.parametrize("command", ["verify", "stats", "reshard"])
def test_a_server_that_is_away_is_bad_data_and_the_password_is_not_told(capsys, tmp_path, impatient, command):
    pytest.importorskip("aiohttp")
    more = [str(tmp_path / "set")] if command == "reshard" else []
    assert main([command, "http://ann:secret@127.0.0.1:9/set", *more]) == 1
    output = "".join(capsys.readouterr())
    assert "http://127.0.0.1:9/set/manifest.json: cannot be read: " in output
    assert "secret" not in output


@pytest.mark.parametrize("name", ["manifest.json", "tree.json", "classes.npy", "train-000000.idx"])
@pytest.mark.parametrize("content", [b"{", None])
def test_no_message_tells_the_password(faulty, packed, capsys, tmp_path, name, content):
    (packed / "train" / name).unlink()
    if content is not None:
        (packed / "train" / name).write_bytes(content)
    url, _ = faulty(packed)
    for arguments in (
        ["verify"],
        ["stats"],
        ["reshard", str(tmp_path / "set"), "--tree", f"{url}/none.json"],
    ):
        assert main([arguments[0], f"{url}/train", *arguments[1:]]) in (1, 2)
        output = "".join(capsys.readouterr())
        assert output
        assert "secret" not in output


def test_the_commands_take_urls(memory, packed_once, capsys):
    url = memory(packed_once)
    assert main(["verify", url, "--workers", "1", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["samples"] == 16
    assert main(["stats", url, "--json"]) == 0
    assert [stats["samples"] for stats in json.loads(capsys.readouterr().out)] == [13, 3]
    assert main(["reshard", f"{url}/train", f"{url}/val", "memory://copies/all", "--workers", "2"]) == 0
    assert "memory://copies/all: 16 of 16 samples" in capsys.readouterr().out
    assert main(["verify", "memory://copies/all"]) == 0
    assert main(["verify", url, "--workers", "0"]) == 2
