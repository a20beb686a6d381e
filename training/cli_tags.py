"""The command `softshard tags study`."""

from __future__ import annotations

import argparse
import json
import sys

from ..shards.cli_values import actions_of
from ..shards.errors import UsageError
from .cli_process import EXIT_SIGNAL, needs_extra, torch_device
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
    command.add_argument("--val", required=True, metavar="DATASET", help="what all are evaluated on")
    command.add_argument(
        "--model", required=True, metavar="TIMM_NAME", help="architecture, such as resnest50d"
    )
    command.add_argument(
        "--out", required=True, metavar="DIR", help="folder for study.json and a folder for each run"
    )
    command.add_argument("--seeds", type=int, default=3, metavar="N", help="runs of each (default: 3)")
    command.add_argument(
        "--preset",
        choices=sorted(PRESETS),
        default="paper",
        help="of both recipes, as in softshard train (default: paper)",
    )
    command.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="FIELD=VALUE",
        help="change a field of the recipe weakly-tagged, such as epochs=30; may be repeated",
    )
    command.add_argument(
        "--set-tuning",
        action="append",
        default=[],
        metavar="FIELD=VALUE",
        help="change a field of the recipe fine-tune; may be repeated",
    )
    command.add_argument(
        "--labels",
        metavar="FILE|LIST",
        help="read --fine-tune and --val with these labels, as softshard train does",
    )
    command.add_argument("--device", choices=("cpu", "cuda"), help="(default: cuda where there is one)")
    command.add_argument("--threads", type=int, metavar="N", help="decoding threads")
    command.add_argument("--json", action="store_true", help="print study.json instead of the table")
    command.set_defaults(run=_run_study)


def _run_study(args: argparse.Namespace) -> int:
    pretraining = with_settings(PRESETS[args.preset](weakly_tagged()), args.set)
    tuning = with_settings(PRESETS[args.preset](fine_tune()), args.set_tuning)
    with needs_extra("softshard tags study"):
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
    if result["stopped_by"] is not None:
        print("softshard: the study was stopped; the same command continues it", file=sys.stderr)
        return EXIT_SIGNAL + result["stopped_by"]
    print(json.dumps(result, indent=1) if args.json else format_tags_study(result))
    return 0


def _vocabularies(texts: list[str]) -> dict[str, str]:
    found: dict[str, str] = {}
    for text in texts:
        name, equals, dataset = text.partition("=")
        if not equals or not dataset or name in found:
            raise UsageError(f"tags study: expected NAME=DATASET with a name of its own, found {text!r}")
        found[name] = dataset
    return found
