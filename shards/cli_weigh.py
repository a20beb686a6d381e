"""The commands `softshard tags weigh` and `softshard tags show`."""

from __future__ import annotations

import argparse
from typing import Any

from .cli_values import EXIT_FINE, actions_of, add_max_bad, local_path, print_json
from .errors import UsageError


def add_weigh(subparsers: argparse._SubParsersAction) -> None:
    """Register `tags weigh` and `tags show`."""
    actions = actions_of(subparsers, "tags")
    command = actions.add_parser(
        "weigh",
        help="weights of all classes for each image of a list, by its label and text",
        description="Give every image of a list weights over the classes, by how much each has to do with the image's label "
        "and text, and write a list that `softshard pack --weights` and `reshard --weights` read. Beside OUT.jsonl come "
        "OUT.weights.json, which says how, and OUT.bad.jsonl with lines that were left out.",
    )
    command.add_argument(
        "source",
        metavar="SOURCE",
        help="list (.csv, .tsv, .jsonl) with label and any of title, description, tags, text",
    )
    command.add_argument(
        "-o", "--output", type=local_path, required=True, metavar="OUT.jsonl", help="list to write"
    )
    _add_measures(command, top=20)
    add_max_bad(command, "bad lines")
    command.add_argument("--json", action="store_true", help="print the summary as JSON")
    command.set_defaults(run=_run_weigh)

    command = actions.add_parser("show", help="a page with the nearest concepts of classes and their weights")
    command.add_argument("label", nargs="+", metavar="CLASS", help="class whose neighbours are shown")
    command.add_argument(
        "-o", "--output", type=local_path, metavar="PAGE.html", help="write a page with charts"
    )
    command.add_argument("--text", default="", help="of an image, where text counts")
    _add_measures(command, top=12)
    command.set_defaults(run=_run_show)


def _add_measures(command: argparse.ArgumentParser, top: int) -> None:
    classes = command.add_mutually_exclusive_group(required=True)
    classes.add_argument("--classes", metavar="LIST", help="class list; its hierarchy is WordNet's")
    classes.add_argument(
        "--tree", metavar="FILE", help="label tree, whose classes get weights by its own hierarchy"
    )
    measures = command.add_argument_group("measures")
    measures.add_argument(
        "--by",
        default="wup",
        metavar="MEASURES",
        help="path, wup (Wu-Palmer), lch (Leacock-Chodorow), lin, jcn (Jiang-Conrath), text, confusion; or several with "
        "their shares, such as wup=0.7,text=0.3 (default: wup)",
    )
    measures.add_argument("--combine", choices=("sum", "product"), default="sum", help="(default: sum)")
    measures.add_argument(
        "--information-content",
        metavar="FILE",
        help="for lin and jcn: counts of synsets as in NLTK's wordnet_ic (ic-brown.dat), or `counts`: of the list's labels",
    )
    measures.add_argument(
        "--confusion", metavar="FILE", help="for confusion: matrix of a model's predictions (.npy or .csv)"
    )
    measures.add_argument(
        "--definitions",
        metavar="FILE",
        help="for text: lines of class, tab, definition (default: those in timm for WordNet's synsets)",
    )
    weights = command.add_argument_group("weights")
    weights.add_argument(
        "--threshold", type=float, default=0.0, metavar="S", help="leave out smaller scores (default: 0)"
    )
    weights.add_argument(
        "--top",
        type=_top,
        default=top,
        metavar="K",
        help=f"classes of an image at most; 0 or all: every one (default: {top})",
    )
    weights.add_argument(
        "--temperature",
        type=float,
        default=1.0,
        metavar="T",
        help="scores are raised to 1/T: below 1 the largest stand out (default: 1)",
    )
    weights.add_argument(
        "--normalise", choices=("none", "max", "sum"), default="none", help="(default: none)"
    )


def _top(text: str) -> int | None:
    """A number of classes, for argparse; None for all of them."""
    if text.strip().lower() in ("0", "all"):
        return None
    try:
        return int(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"expected a number of classes, or all, found {text!r}") from error


def _options(args: argparse.Namespace) -> dict[str, Any]:
    """Class names, tree, measures and options of a call."""
    from .classes import load_class_list
    from .similarities import Measures
    from .tree import LabelTree
    from .weigh import WeighOptions

    tree = LabelTree.load(args.tree) if args.tree else None
    return {
        "tree": tree,
        "class_names": tree.classes if tree is not None else load_class_list(args.classes),
        "measures": Measures.parse(
            args.by,
            combine=args.combine,
            information_content=args.information_content,
            confusion=args.confusion,
            definitions=args.definitions,
        ),
        "options": WeighOptions(
            args.temperature, args.threshold, args.top, args.normalise, getattr(args, "max_bad", 0.0)
        ),
    }


def _run_weigh(args: argparse.Namespace) -> int:
    from .pack_soft import load_how
    from .soft_labels import TAGS
    from .weigh import weigh_list

    summary = weigh_list(args.source, args.output, **_options(args))
    if args.json:
        print_json(vars(summary))
        return EXIT_FINE
    print(
        f"read {summary.read:,} = written {summary.written:,} + bad {summary.bad:,}; {summary.mean_classes:.1f} classes an "
        f"image: {args.output}"
    )
    if summary.label_only:
        print(f"  {summary.label_only:,} without a class that scores, which got their label alone")
    if summary.bad:
        print(f"  bad lines, with reasons: {args.output.with_suffix('.bad.jsonl')}")
    given = f"--tree {args.tree}" if args.tree else f"--classes {args.classes}"
    tags = " --vocabulary FILE" if load_how(args.output, TAGS) else ""
    print(f"Run: softshard pack {args.output} DST {given} --weights{tags}")
    return EXIT_FINE


def _run_show(args: argparse.Namespace) -> int:
    from .similarities import COUNTS, Similarities
    from .weigh_page import FELL_BACK, neighbours, weights_page

    given = _options(args)
    tree, options = given["tree"], given["options"]
    if args.information_content == COUNTS:
        raise UsageError(
            "tags show: expected a file of information content, found counts, which are those of a list"
        )
    similarities = Similarities(given["class_names"], given["measures"], tree)
    if args.output is not None:
        weights_page(similarities, args.label, options, text=args.text, tree=tree).write(args.output)
        print(f"{args.output}: {', '.join(args.label)}")
        return EXIT_FINE
    for label in args.label:
        found = neighbours(similarities, label, options, text=args.text, tree=tree)
        print(f"{label}: {FELL_BACK}" if found[0].fell_back else label)
        for each in found:
            said = "  ".join(f"{name} {value:.3f}" for name, value in each.measures.items())
            print(
                f"  {each.weight:.4f}  {each.name} {each.words if each.words != each.name else ''}  {said}".rstrip()
            )
    return EXIT_FINE
