"""The command `softshard tags build`."""

from __future__ import annotations

import argparse

from .cli_values import EXIT_FINE, actions_of, add_max_bad, local_path, print_json
from .storage import public_name


def add_build(subparsers: argparse._SubParsersAction) -> None:
    """Register `tags build`."""
    actions = actions_of(subparsers, "tags")
    command = actions.add_parser(
        "build",
        help="a list of images with tags, and their vocabulary",
        description="Find the nouns, adjectives and collocations in each image's title, description and tags, choose a "
        "vocabulary of the most frequent that are not too common, and write a list that `softshard pack` reads: a line an "
        "image with path, label and tags. Beside OUT.jsonl come OUT.vocabulary.tsv, OUT.tags.json, which says how they were "
        "made, OUT.report.json, OUT.bad.jsonl with whatever could not be used, and OUT.classes.txt where the source has a "
        "class list.",
    )
    command.add_argument(
        "source",
        metavar="SOURCE",
        help="list (.csv, .tsv, .jsonl) with path, label and any of title, description, tags, query; or a WebVision "
        "folder; a path or any fsspec URL",
    )
    command.add_argument(
        "-o",
        "--output",
        required=True,
        metavar="OUT.jsonl",
        help="list to write; a path, or the URL of an object in a bucket",
    )
    vocabulary = command.add_argument_group("vocabulary")
    vocabulary.add_argument(
        "--vocabulary", metavar="FILE", help="use this one, which an earlier build wrote, and choose none"
    )
    vocabulary.add_argument(
        "--vocabulary-size", type=int, default=35_000, metavar="N", help="tags wanted (default: 35000)"
    )
    vocabulary.add_argument(
        "--min-images", type=int, default=2, metavar="N", help="leave out tags of fewer images (default: 2)"
    )
    vocabulary.add_argument(
        "--max-share",
        type=float,
        default=0.25,
        metavar="SHARE",
        help="leave out tags of more than this share of all images (default: 0.25)",
    )
    words = command.add_argument_group("words")
    words.add_argument(
        "--tokenizer", default="softshard", choices=("softshard", "nltk"), help="(default: softshard)"
    )
    words.add_argument(
        "--tagger",
        default="wordnet",
        choices=("wordnet", "nltk"),
        help="who says what is a noun or an adjective: WordNet, which needs no data (default), or NLTK's perceptron tagger",
    )
    words.add_argument(
        "--max-tags",
        type=int,
        default=0,
        metavar="N",
        help="tags of an image, the rarest of it (default: all)",
    )
    words.add_argument(
        "--no-fallback",
        action="store_true",
        help="leave images without tags whose text gives none, instead of taking the words of their query or label",
    )
    words.add_argument(
        "--classes",
        metavar="LIST",
        help="class list that says what labels that are numbers mean, for the fallback",
    )
    words.add_argument(
        "--keep",
        action="append",
        default=[],
        metavar="FIELD",
        help="write this field of the source too, such as title; may be given again",
    )
    run = command.add_argument_group("run")
    run.add_argument("--workers", type=int, metavar="N", help="processes (default: one a core)")
    run.add_argument(
        "--engine", default="local", choices=("local", "ray"), help="as in `softshard pack` (default: local)"
    )
    run.add_argument(
        "--work",
        type=local_path,
        metavar="DIR",
        help="keep here what is done, so that the same command goes on after a kill (default: OUT.tags-work beside a "
        "local list, gone with the run; for a bucket nothing is kept)",
    )
    add_max_bad(run, "bad rows")
    run.add_argument("--json", action="store_true", help="print the report as JSON")
    command.set_defaults(run=_run_build)


def _run_build(args: argparse.Namespace) -> int:
    from .classes import load_class_list
    from .tags_build import TagOptions, build_tags
    from .tags_tasks import TagSettings

    options = TagOptions(
        vocabulary_size=args.vocabulary_size,
        min_images=args.min_images,
        max_share=args.max_share,
        max_bad=args.max_bad,
        settings=TagSettings(
            tokenizer=args.tokenizer,
            tagger=args.tagger,
            fallback=not args.no_fallback,
            max_tags=args.max_tags,
            keep=tuple(args.keep),
            class_names=load_class_list(args.classes) if args.classes else (),
        ),
    )
    report = build_tags(
        args.source,
        args.output,
        options,
        vocabulary=args.vocabulary,
        workers=args.workers,
        engine=args.engine,
        work=args.work,
    )
    if args.json:
        print_json(report.to_json())
        return EXIT_FINE
    print(report.text())
    if args.tagger == "wordnet":
        print("  parts of speech: by WordNet alone (--tagger nltk reads sentences, slowly)")
    if report.bad_rows or report.duplicates or report.no_text:
        print(f"  bad rows, with reasons: {public_name(args.output).rpartition('.')[0]}.bad.jsonl")
    vocabulary = args.vocabulary or f"{str(args.output).rpartition('.')[0]}.vocabulary.tsv"
    print(f"Run: softshard pack {public_name(args.output)} DST --vocabulary {public_name(vocabulary)}")
    return EXIT_FINE
