"""What the commands share that train models to compare them: `maps study`, `tags study`, `subset study`, `subset score`."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Mapping
from typing import Any

from .cli_process import EXIT_SIGNAL, add_device
from .recipe_presets import PRESETS, with_settings
from .recipes import Recipe


def add_study(command: argparse.ArgumentParser, *, model: str, labels: str) -> None:
    """Register what a study over seeds takes beside its data sets and recipes.

    Args:
        command: `maps study` or `tags study`.
        model: an architecture, for the help.
        labels: what --labels reads, for the help.
    """
    command.add_argument("--val", required=True, metavar="DATASET", help="what all are evaluated on")
    command.add_argument("--model", required=True, metavar="TIMM_NAME", help=f"architecture, such as {model}")
    command.add_argument(
        "--out", required=True, metavar="DIR", help="folder for study.json and a folder for each run"
    )
    command.add_argument("--seeds", type=int, default=3, metavar="N", help="runs of each (default: 3)")
    command.add_argument(
        "--labels", metavar="FILE|LIST", help=f"read {labels} with these labels, as softshard train does"
    )
    add_device(command)
    command.add_argument("--json", action="store_true", help="print study.json instead of the table")


def add_recipe(command: argparse.ArgumentParser, *, name: str, settings: str) -> None:
    """Register `--preset` and `--set`; `recipe_of` reads them.

    Args:
        command: one that trains.
        name: what they change, for the help.
        settings: examples of --set.
    """
    command.add_argument(
        "--preset",
        choices=sorted(PRESETS),
        default="paper",
        help=f"of {name}, as in softshard train (default: paper)",
    )
    add_settings(command, "--set", name=name, settings=f", such as {settings}")


def add_settings(command: argparse.ArgumentParser, option: str, *, name: str, settings: str = "") -> None:
    """Register an option that changes fields of a recipe."""
    command.add_argument(
        option,
        action="append",
        default=[],
        metavar="FIELD=VALUE",
        help=f"change a field of {name}{settings}; may be repeated",
    )


def recipe_of(args: argparse.Namespace, recipe: Recipe) -> Recipe:
    """The recipe with the preset and the settings that were given."""
    return with_settings(PRESETS[args.preset](recipe), args.set)


def stopped(what: str, signal: int) -> int:
    """Say that a signal stopped it; returns the exit code."""
    print(f"softshard: {what} was stopped; the same command continues it", file=sys.stderr)
    return EXIT_SIGNAL + signal


def print_study(
    result: Mapping[str, Any], args: argparse.Namespace, table: Callable[[Mapping[str, Any]], str]
) -> int:
    """Print what a study over seeds found; returns the exit code."""
    if result["stopped_by"] is not None:
        return stopped("the study", result["stopped_by"])
    print(json.dumps(result, indent=1) if args.json else table(result))
    return 0
