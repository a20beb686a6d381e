"""The page for operators lists commands, metrics and exit codes; they must be those that there are."""

import argparse
import json
import re
from importlib.metadata import entry_points
from pathlib import Path

from softshard.loaders import prometheus

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "operating.md").read_text("utf-8")


def leaves(parser, name=""):
    """Every command with its parser."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for word, below in action.choices.items():
                yield from leaves(below, f"{name} {word}".strip())
            return
    yield name, parser


def test_every_command_has_json_or_is_said_to_have_none():
    parser = argparse.ArgumentParser()
    subparsers = parser.add_subparsers()
    for group in sorted(entry_points(group="softshard.commands"), key=lambda entry: entry.value):
        group.load()(subparsers)
    table, others = PAGE.split("`--json` prints")[1].split("## Containers")[0].split("The others")
    for name, command in leaves(parser):
        has_json = "--json" in command._option_string_actions
        assert has_json == bool(re.search(rf"`{name}( --json FILE)?`", table)), name
        assert has_json or f"`{name}`" in others, name


def measured():
    """What the constants of the chapter on sizes were measured as: text before the constant, what the results say."""

    def rows(name):
        return json.loads((ROOT / "benchmarks" / "results" / f"{name}.json").read_text())

    peers = {row["pixels"]: row["results"]["softshard"]["images_per_cpu_s"] for row in rows("peers")["rows"]}
    streaming, order = rows("streaming"), {row["job"]: row for row in rows("order_scale")["rows"]}
    balanced = order["epoch, 14 million, balance 0.5"]
    return {
        "core seconds = images / ": rows("sharder")["memory"][-1]["images_per_cpu_s"],
        "resizes about ": peers[224],
        "to uint8, ": peers[256],
        "of 256, ": peers[500],
        "images a second x ": streaming["shard_bytes"] / 2048,
        "soak.json: ": rows("soak")["growth"][0]["memory_mb"]["median"],
        "with class balance ": balanced["peak_mb"] - balanced["before_mb"],
        "samples open in ": order["open, 1,000 million"]["peak_mb"],
        "texts peaks at ": max(row["peak_mb"] for row in rows("tags")["rows"] if row["job"] == "build"),
        "15 x 15 cells, uint8 with zstd | ": rows("label_maps")["rows"][0]["bytes_mean"],
    }


def test_constants_of_sizing_are_those_of_the_results():
    page, wrong = " ".join(PAGE.split()), {}
    for before, value in measured().items():
        (found,) = re.findall(rf"{re.escape(before)}([\d,]+)", page)
        if (
            not 0.7 < int(found.replace(",", "")) / value < 1.4
        ):  # as far as two runs on a busy machine are apart
            wrong[before] = found, value
    assert wrong == {}


def test_every_metric_is_on_the_page():
    source = Path(prometheus.__file__).read_text("utf-8")
    names = set(re.findall(r'"((?:[a-z]+_)+(?:total|batches|most|size))"', source)) | {"queue_size"}
    assert len(names) > 15
    assert sorted(name for name in names if name not in PAGE) == []


def test_every_image_is_on_the_page_and_its_health_check_runs_what_there_is():
    text = (ROOT / "docker" / "Dockerfile").read_text("utf-8")
    stages = dict(reversed(pair) for pair in re.findall(r"^FROM (\S+) AS (\S+)$", text, re.M))
    images = stages.keys() - {"wheel", "base"}
    containers = PAGE.split("## Containers")[1]
    assert images == {"cuda", "cpu", "serve", "pack"}
    assert [image for image in images if f"`{image}`" not in containers] == []
    doctor, serve = (json.loads(check) for check in re.findall(r"HEALTHCHECK[^[]*(\[.*\])", text))
    assert doctor == ["softshard", "doctor", "--json"]  # of `base`, which all are made from
    compose = (ROOT / "docker" / "compose.yaml").read_text("utf-8")
    assert serve[-1] in compose  # its servers are asked the same
    assert "127.0.0.1:7071/healthz" in serve[-1]
