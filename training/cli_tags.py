"""The command `softshard tags study`."""

from __future__ import annotations

import argparse

from ..shards.cli_values import actions_of, needs_extra
from ..shards.errors import UsageError
from .cli_process import torch_device
from .cli_study import add_recipe, add_settings, add_study, print_study, recipe_of
from .recipe_presets import PRESETS, with_settings
from .recipes_web import fine_tune, weakly_tagged


def add_tags(subparsers: argparse._SubParsersAction) -> None:
    """Register `tags study`."""
    actions = actions_of(subparsers, "tags")
    command = actions.add_parser(
        "study",
        help="pretrain on several vocabularies, fine-tune each model alike, and compare",
        description="Which keywords are worth pretraining on: nouns alone, adjectives and collocations, how many? Trains "
        "the recipe weakly-tagged on each data set (the same images packed with another --vocabulary), then the recipe "
        "fine-tune on one data set, and once without pretraining; for several seeds. Prints top-1 and its mean over "
        "classes on --val, differences from no pretraining with their 95 percent bootstrap intervals; writes study.json. "
        "A study that was killed continues when it is given again.",
    )
    command.add_argument(
        "vocabularies",
        nargs="+",
        metavar="NAME=DATASET",
        help="a name for the table, and a data set with tags, such as nouns=/data/web-nouns/train",
    )
    command.add_argument(
        "--fine-tune", required=True, metavar="DATASET", help="what all models are fine-tuned on"
    )
    add_recipe(command, name="the recipe weakly-tagged", settings="epochs=30")
    add_settings(command, "--set-tuning", name="the recipe fine-tune, which --preset changes, too")
    add_study(command, model="resnest50d", labels="--fine-tune and --val")
    command.set_defaults(run=_run_study)


def _run_study(args: argparse.Namespace) -> int:
    pretraining = recipe_of(args, weakly_tagged())
    tuning = with_settings(PRESETS[args.preset](fine_tune()), args.set_tuning)
    with needs_extra("softshard tags study", "training"):
        from .tags_study import format_tags_study, study_tags
    result = study_tags(
        _vocabularies(args.vocabularies),
        args.fine_tune,
        args.val,
        pretraining=pretraining,
        tuning=tuning,
        model=args.model,
        out=args.out,
        seeds=args.seeds,
        labels=args.labels,
        device=torch_device(args.device),
        num_threads=args.threads,
    )
    return print_study(result, args, format_tags_study)


def _vocabularies(texts: list[str]) -> dict[str, str]:
    found: dict[str, str] = {}
    for text in texts:
        name, equals, dataset = text.partition("=")
        if not equals or not dataset or name in found:
            raise UsageError(f"tags study: expected NAME=DATASET with a name of its own, found {text!r}")
        found[name] = dataset
    return found
