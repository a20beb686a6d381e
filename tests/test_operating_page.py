"""The page for operators lists commands, metrics and exit codes; they must be those that there are."""

import argparse
import re
from importlib.metadata import entry_points
from pathlib import Path

from softshard.loaders import prometheus

PAGE = (Path(__file__).parents[1] / "docs" / "operating.md").read_text("utf-8")


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


def test_every_metric_is_on_the_page():
    source = Path(prometheus.__file__).read_text("utf-8")
    names = set(re.findall(r'"((?:[a-z]+_)+(?:total|batches|most|size))"', source)) | {"queue_size"}
    assert len(names) > 15
    assert sorted(name for name in names if name not in PAGE) == []
