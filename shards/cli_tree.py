"""The command `softshard tree`: build a label tree, show it, count it, compare it, write it for other programs."""

from __future__ import annotations

import argparse
import sys
from dataclasses import asdict

from .cli_values import EXIT_BAD_DATA, EXIT_FINE, print_result
from .errors import DataError, UsageError
from .relations import INNER_RULES, PARENT_RULES
from .storage import public_name
from .text_limits import counted


def add_tree(subparsers: argparse._SubParsersAction) -> None:
    """Register `tree` and its actions."""
    tree = subparsers.add_parser("tree", help="build a label tree, show, count, compare or export it")
    actions = tree.add_subparsers(title="actions", metavar="ACTION", required=True)
    _add_build(actions)
    _add_show(actions)
    _add_stats(actions)
    _add_check(actions)
    _add_export(actions)


def _add_build(actions: argparse._SubParsersAction) -> None:
    build = actions.add_parser("build", help="build the label tree of a class list")
    build.add_argument(
        "--classes",
        metavar="LIST",
        help="file of class names (wnids or nouns), one a line, or imagenet-1k, imagenet-21k-p-fall11, ...; "
        "without it the leaves of --relations FILE",
    )
    build.add_argument(
        "--relations",
        default="wordnet",
        metavar="wordnet|FILE",
        help="where parents come from: WordNet (default); your own child,parent .csv or .tsv, or nested .yaml; "
        "ImageNet's wordnet.is_a.txt",
    )
    build.add_argument(
        "--parents",
        choices=PARENT_RULES,
        help="which of several parents counts (default: first; in your own file several are an error)",
    )
    build.add_argument(
        "--inner",
        choices=INNER_RULES,
        help="ancestors that become classes too (default: none, the published rule; in your own file all)",
    )
    build.add_argument("--levels", type=int, metavar="N", help="keep the first N levels of the label vectors")
    build.add_argument("-o", "--out", required=True, metavar="FILE", help="tree.json to write")
    build.set_defaults(run=_run_build)


def _add_show(actions: argparse._SubParsersAction) -> None:
    show = actions.add_parser("show", help="print the tree, or a class: ancestors, children, label vector")
    show.add_argument("tree", metavar="TREE", help="tree.json")
    show.add_argument(
        "name", nargs="?", metavar="WNID", help="a class name, wnid or noun; the whole tree without it"
    )
    show.add_argument(
        "--depth",
        type=int,
        metavar="N",
        help="print the tree, or the branch of the class, N levels deep (default for the tree: what fits)",
    )
    show.add_argument("--lines", type=int, metavar="N", help="lines of the tree at most (default: 60)")
    show.set_defaults(run=_run_show)


def _add_stats(actions: argparse._SubParsersAction) -> None:
    stats = actions.add_parser("stats", help="count classes per level, leaves, children, several parents")
    stats.add_argument("tree", metavar="TREE", help="tree.json")
    stats.add_argument("--json", action="store_true", help="print the counts as JSON")
    stats.set_defaults(run=_run_stats)


def _add_check(actions: argparse._SubParsersAction) -> None:
    check = actions.add_parser(
        "check", help="compare a tree with a class list, a data set or another tree: every difference"
    )
    check.add_argument("tree", metavar="TREE", help="tree.json")
    check.add_argument("--classes", metavar="LIST", help="file of class names, or a known list")
    check.add_argument("--dataset", metavar="DATASET", help="data set, or a folder with train and val")
    check.add_argument("--tree", dest="other", metavar="FILE", help="another tree.json")
    check.add_argument("--json", action="store_true", help="print all differences as JSON")
    check.set_defaults(run=_run_check)


def _add_export(actions: argparse._SubParsersAction) -> None:
    export = actions.add_parser("export", help="write the tree for other programs, or as a page to look at")
    export.add_argument("tree", metavar="TREE", help="tree.json")
    export.add_argument(
        "--format",
        choices=("csv", "tsv", "yaml", "dot", "original", "classes"),
        help="child,parent table; nested YAML; Graphviz; JSON as the published tree of ImageNet-21K-P has it; "
        "the class list",
    )
    export.add_argument("-o", "--out", metavar="FILE", help="file to write (default: standard output)")
    export.add_argument("--html", metavar="FILE", help="page with a picture and all classes to unfold")
    export.add_argument("--branch", metavar="WNID", help="of --html: only this class and those below it")
    export.add_argument("--depth", type=int, metavar="N", help="of --html: only N levels below the top")
    export.set_defaults(run=_run_export)


def _run_build(args: argparse.Namespace) -> int:
    from .classes import load_class_list, noun_senses
    from .tree import LabelTree
    from .tree_sources import is_wordnet_list

    from_wordnet = args.relations == "wordnet" or is_wordnet_list(args.relations)
    if from_wordnet and args.classes is None:
        raise UsageError(
            "tree build: expected --classes LIST, found none; without it only the leaves of your own file can be "
            "the classes"
        )
    classes = None if args.classes is None else load_class_list(args.classes)
    if from_wordnet:
        assert classes is not None
        tree = LabelTree.from_wordnet(
            classes,
            parents=args.parents or "first",
            inner=args.inner or "none",
            levels=args.levels,
            relations_file=None if args.relations == "wordnet" else args.relations,
        )
    else:
        relations = public_name(args.relations)
        if args.inner not in (None, "all"):
            raise UsageError(
                f"tree build: --inner {args.inner}: expected none for {relations}: the inner nodes of your own "
                "file are always classes; take out of the file what is to be none"
            )
        if args.parents == "published":
            raise UsageError(
                f"tree build: --parents published: expected relations of WordNet, found {relations}; choose "
                "first, last, longest, shortest or all-paths"
            )
        tree = LabelTree.from_file(args.relations, classes, parents=args.parents, levels=args.levels)
    tree.save(args.out)
    print(tree.summary())
    if from_wordnet:
        for line in noun_senses(tree.classes[: tree.num_listed]):
            print(line)
    return EXIT_FINE


def _run_show(args: argparse.Namespace) -> int:
    from .tree import LabelTree
    from .tree_text import OUTLINE_LINES, find_one, outline

    tree = LabelTree.load(args.tree)
    lines = OUTLINE_LINES if args.lines is None else args.lines
    if args.name is None:
        print(tree.summary(), outline(tree, depth=args.depth, lines=lines), sep="\n\n")
    elif args.depth is None and args.lines is None:
        print(tree.show(args.name))
    else:
        print(outline(tree, find_one(tree, args.name), depth=args.depth, lines=lines))
    return EXIT_FINE


def _run_stats(args: argparse.Namespace) -> int:
    from .tree import LabelTree
    from .tree_stats import format_tree_stats, tree_stats

    stats = tree_stats(LabelTree.load(args.tree))
    print_result(args, stats, format_tree_stats(stats))
    return EXIT_FINE


def _run_check(args: argparse.Namespace) -> int:
    from .classes import load_class_list
    from .tree import LabelTree
    from .tree_check import compare_classes, compare_data_set, compare_trees

    tree = LabelTree.load(args.tree)
    differences = []
    if args.classes is not None:
        differences += compare_classes(tree, load_class_list(args.classes), public_name(args.classes))
    if args.other is not None:
        differences += compare_trees(tree, LabelTree.load(args.other), public_name(args.other))
    if args.dataset is not None:
        differences += compare_data_set(tree, args.dataset)
    print_result(
        args,
        {"ok": not differences, "differences": [asdict(difference) for difference in differences]},
        "\n".join(difference.text() for difference in differences)
        or f"tree {tree.fingerprint[:12]}: no differences",
    )
    return EXIT_BAD_DATA if differences else EXIT_FINE


def _run_export(args: argparse.Namespace) -> int:
    from .tree import LabelTree
    from .tree_export import EXPORTERS

    if args.format is None and args.html is None:
        raise UsageError("tree export: expected --format or --html, found neither")
    if args.html is None and (args.branch is not None or args.depth is not None):
        raise UsageError("tree export: expected --html with --branch and --depth; a table is always whole")
    if args.out is not None and args.format is None:
        raise UsageError("tree export: expected --format with -o; a page goes to --html FILE")
    if args.depth is not None and args.depth < 0:
        raise UsageError(f"tree export: expected --depth from 0, found {args.depth}")
    tree = LabelTree.load(args.tree)
    if args.html is not None:
        _write_page(tree, args)
    if args.format is not None:
        text = EXPORTERS[args.format](tree)
        if args.out is None:
            sys.stdout.write(text)
        else:
            _write_text(args.out, text)
    return EXIT_FINE


def _write_page(tree, args: argparse.Namespace) -> None:
    from .tree_page import tree_page
    from .tree_text import find_one

    top = None if args.branch is None else find_one(tree, args.branch)
    page, left_out = tree_page(tree, top, depth=args.depth)
    _write_text(args.html, page.render())
    print(f"wrote {public_name(args.html)}", file=sys.stderr)
    if left_out and args.depth is None:
        print(
            f"softshard: left out of the page, which would open slowly: {counted(left_out, 'class')} of the deepest levels; "
            "draw a branch with --branch",
            file=sys.stderr,
        )


def _write_text(url: str, text: str) -> None:
    from .destination import write_file

    try:
        data = text.encode()
    except UnicodeEncodeError as error:
        raise DataError(
            f"{public_name(url)}: expected class names in UTF-8, found {text[error.start : error.end]!r} in one; it "
            "was a folder name of another encoding"
        ) from error
    write_file(url, data)
