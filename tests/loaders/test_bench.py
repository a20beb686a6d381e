"""`softshard bench` runs and says what it measured. Nothing is timed here."""

import csv
import json
import sys
from importlib.metadata import version

import fsspec
import pytest
import torch
from hanging_module import kill_above_what_hangs
from html_elements import Elements
from json_page import read_json

from softshard.loaders.against import Peer, parse_peers
from softshard.loaders.bench_page import bench_rows
from softshard.loaders.ceilings import Ceilings, Job
from softshard.loaders.mixed_source import open_source
from softshard.loaders.peers import Job as PeerJob
from softshard.shards.cli import main
from softshard.shards.errors import UsageError
from softshard.shards.reader import read_shard

SMALL = ["--batch-size", "16", "--size", "32", "--steps", "2", "--repeats", "2", "--threads", "2"]


def test_bench_measures_every_part_and_writes_json_table_and_page(packed, tmp_path, capsys):
    out, table, page = tmp_path / "bench.json", tmp_path / "bench.csv", tmp_path / "bench.html"
    files = ["--json", str(out), "--csv", str(table), "--html", str(page)]
    assert main(["bench", str(packed), "--targets", "relabel", "--dtype", "float32", *SMALL, *files]) == 0
    result = json.loads(out.read_text())
    assert result["samples"] == 105
    assert result["options"] == {
        "batch_size": 16,
        "targets": "relabel",
        "side": None,
        "device": "cpu",
        "dtype": "float32",
        "size": 32,
        "num_threads": 2,
        "warmup": 5,
        "steps": 2,
    }
    assert {"processor", "cores", "python", "packages"} <= result["machine"].keys()
    assert result["machine"]["packages"]["torch"] != "not installed"
    assert result["results"].keys() == {"loader", "decode only"}
    assert list(result["ceilings"]) == ["read", "labels", "crops", "resample", "pool", "copy"]
    for values in (*result["results"].values(), *result["ceilings"].values()):
        assert 0 < values["low"] <= values["images_per_s"] <= values["high"]
        assert values["images_per_cpu_s"] > 0
        assert values["repeats"] == 2
    assert result["ratio_to_decode_only"] > 0
    assert result["fetch"] is None
    assert result["stats"]["batches"] >= 2 * 7
    assert set(result["stats"]["stages"]) == {"order", "shard", "read", "pool", "decode", "copy"}
    assert result["verdict"]["nearest"] in result["ceilings"]
    shown = capsys.readouterr().out
    assert "105 samples" in shown
    assert "of decoding alone" in shown
    assert shown.endswith(result["verdict"]["text"] + "\n")
    rows = list(csv.DictReader(table.open(newline="")))
    assert [row["name"] for row in rows] == ["loader", "decode only", *result["ceilings"]]
    assert [row["kind"] for row in rows] == ["loader", *["ceiling"] * 7]
    assert float(rows[0]["images_per_s"]) == result["results"]["loader"]["images_per_s"]
    elements = Elements(page.read_text("utf-8"))
    assert result["verdict"]["text"] in elements.text
    assert len(elements.named("h2")) == 4
    # Bars of all that was measured, twice (by the wall clock, by CPU time), and of every stage.
    assert len([bar for bar in elements.named("rect") if bar.get("class") == "f0"]) == 8 + 8 + 6


def test_bench_leaves_out_batches_with_a_sample_whose_header_cannot_be_read(damage):
    folder, _, _ = damage(20, "jpg", lambda jpeg: b"\0" * len(jpeg))
    source = open_source(folder, None, None, None, 1)
    job = Job(16, "none", None, torch.device("cpu"), "uint8", 32, 2)
    with Ceilings(source, job) as ceilings:
        assert len(ceilings._batches) == 5  # of 6


def test_without_maps_nothing_is_pooled(packed_plain, tmp_path):
    out = tmp_path / "bench.json"
    assert main(["bench", str(packed_plain), *SMALL, "--batch-size", "8", "--json", str(out)]) == 0
    assert list(json.loads(out.read_text())["ceilings"]) == ["read", "labels", "crops", "resample", "copy"]


def test_bench_reads_a_data_set_behind_a_url_through_a_cache_and_measures_fetching(packed, tmp_path, capsys):
    filesystem = fsspec.filesystem("memory")
    filesystem.put(str(packed), "/bench/train", recursive=True)
    out, cache = tmp_path / "bench.json", tmp_path / "cache"
    options = [*SMALL, "--cache", str(cache), "--json", str(out)]
    try:
        assert main(["bench", "memory://bench/train", *options]) == 0
        assert main(["bench", "memory://bench/train", *options, "--against", "dali"]) == 2
    finally:
        filesystem.rm("/bench", recursive=True)
    result = json.loads(out.read_text())
    assert (result["fetch"]["shards"], result["fetch"]["images"]) == (9, 105)
    assert result["fetch"]["bytes"] == sum(tar.stat().st_size for tar in packed.glob("*.tar"))
    # The parts came first, through the same cache.
    assert result["stats"]["fetch"]["shards_fetched"] == 0
    assert result["stats"]["fetch"]["cache_hits"] >= 9
    assert "expected a local folder, found a URL" in capsys.readouterr().err
    assert [entry.name for entry in cache.iterdir()] == ["shards"]  # what was fetched to measure it has gone


def test_bench_refuses_a_batch_larger_than_the_data_set(packed, capsys):
    assert main(["bench", str(packed), "--batch-size", "1000"]) == 2
    said = capsys.readouterr().err
    assert "expected at least one batch of 1000, found 105 samples. Use a smaller --batch-size" in said


@pytest.mark.parametrize("part", ["--dtype", "--targets"])
def test_bench_refuses_unknown_choices(packed, capsys, part):
    with pytest.raises(SystemExit) as stopped:
        main(["bench", str(packed), part, "other"])
    assert stopped.value.code == 2
    assert f"argument {part}: invalid choice: 'other'" in capsys.readouterr().err


def test_bench_runs_other_loaders_on_the_same_shards(packed, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(
        "softshard.loaders.measure._SETTLE_S", 0.0
    )  # for the numbers' sake, which nobody reads here
    out = tmp_path / "bench.json"
    options = [*SMALL, "--threads", "1"]
    peers = ["--against", f"dali,webdataset={sys.executable}", "--work", str(tmp_path / "work")]
    page = tmp_path / "bench.html"
    assert main(["bench", str(packed), *options, *peers, "--json", str(out), "--html", str(page)]) == 0
    result = read_json("bench", out.read_text())
    assert result["results"].keys() == {"loader", "decode only", "dali", "webdataset"}
    assert "times as fast as webdataset" in Elements(page.read_text("utf-8")).text
    assert [row["name"] for row in bench_rows(result) if row["kind"] == "peer"] == ["dali", "webdataset"]
    assert result["peers"]["webdataset"]["version"] == version("webdataset")
    assert result["results"]["dali"]["repeats"] == 2
    assert "times as fast as dali" in capsys.readouterr().out


def test_torchvision_reads_the_same_jpegs_as_files(packed, tmp_path):
    job = PeerJob(str(packed), str(tmp_path / "work"), batch_size=16, size=32, threads=1)
    wrapper = tmp_path / "python"  # which stays above the peer, as `conda run` does
    wrapper.write_text(f'#!/bin/sh\n"{sys.executable}" "$@"\nexit $?\n')
    wrapper.chmod(0o755)
    with Peer("torchvision", job, str(wrapper)) as peer:
        assert peer.measure(1, 2)[0] > 0
    files = list((tmp_path / "work" / "files").rglob("*.jpg"))
    stored = {sample.parts["jpg"] for tar in packed.glob("*.tar") for sample in read_shard(tar)}
    assert len(files) == 105
    assert {path.read_bytes() for path in files} == stored


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("pytorch", "expected distinct names of webdataset, torchvision, dali, ffcv, .*, found 'pytorch'"),
        ("dali,dali", "expected distinct names of .*, found 'dali' in 'dali,dali'"),
        ("ffcv", "expected the package 'ffcv', found none. .*--against ffcv=/path/to/python"),
    ],
)
def test_peers_that_cannot_run_are_refused(monkeypatch, text, message):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "ffcv" else object())
    with pytest.raises(UsageError, match=message):
        parse_peers(text)


def test_a_script_that_is_called_like_a_peers_package_is_none(monkeypatch, tmp_path):
    (tmp_path / "streaming.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(UsageError, match="expected the package 'mosaicml-streaming', found none"):
        parse_peers("streaming")


def test_a_peer_that_hangs_ends_with_the_command(tmp_path):
    code = (
        "from softshard.loaders.against import Peer; from softshard.loaders.peers import Job\n"
        "Peer('webdataset', Job('.', '.', 1, 1, 1))"
    )
    kill_above_what_hangs(tmp_path, "webdataset", code)


def test_a_peer_that_dies_is_an_error_with_its_last_words(tmp_path):
    job = PeerJob(str(tmp_path / "nothing-here"), str(tmp_path), batch_size=16, size=32, threads=1)
    with pytest.raises(
        UsageError, match=r"dali: .* a peer that runs, found one that ended with 1\. It said: "
    ):
        Peer("dali", job)
