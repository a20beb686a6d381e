"""Commands beside a server of the data service: health and metrics, bench, and those that want shards."""

import json

import pytest
from prometheus_client.parser import text_string_to_metric_families
from service_here import served
from service_processes import SMALL, serving

from softshard.loaders import RemoteLoader
from softshard.shards.cli import main


def test_health_and_metrics_over_http(packed):
    with serving(packed) as server:
        assert server.get("/healthz") == "ok\n"
        with RemoteLoader(server.url, **SMALL) as remote:
            list(remote)
        families = {family.name: family for family in text_string_to_metric_families(server.get("/metrics"))}
        assert families["softshard_service_images"].samples[0].value == 105
        made = {
            sample.labels["how"]: sample.value for sample in families["softshard_service_batches"].samples
        }
        assert made == {"made": 9, "joined": 0, "cached": 0}
        assert server.stats()["sent_bytes"]["memory"] > 0


def test_bench_measures_servers_as_a_trainer_sees_them(packed, tmp_path, capsys):
    with served(packed) as server:
        arguments = [
            "bench",
            f"{server.address}/small",
            "--batch-size",
            "10",
            "--steps",
            "2",
            "--repeats",
            "2",
        ]
        report, table = tmp_path / "bench.json", tmp_path / "bench.csv"
        assert main([*arguments, "--size", "16", "--json", str(report), "--csv", str(table)]) == 0
        found = json.loads(report.read_text())
        assert found["samples"] == 105
        assert found["results"]["loader"]["repeats"] == 2
        assert found["requests"]["sent"] >= 2 * (5 + 2)
        assert found["requests"]["in_shared_memory"] > 0
        assert main([*arguments, "--size", "16"]) == 0  # a seed of its own
        assert server.desk.counts().made >= 2 * 2 * (5 + 2)
        assert server.desk.counts().hits == 0
        assert found["verdict"]["text"] in capsys.readouterr().out
        assert table.read_text().splitlines()[1].startswith("loader,loader,")
        for option in (("--against", "webdataset"), ("--cache", str(tmp_path))):
            assert main([*arguments, *option]) == 2
            assert f"expected {option[0]} with the folder or URL of a data set" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["inspect", "verify", "stats"])
def test_what_wants_shards_says_so_of_servers(command, capsys):
    assert main([command, "grpc+tls://a:1/train,grpc+tls://b:1/train"]) == 2
    assert "expected a folder or URL with shards, found servers of softshard serve" in capsys.readouterr().err
