"""The command `softshard tree`: build a label tree, or show it."""

from __future__ import annotations

import argparse

from .errors import UsageError


def add_tree(subparsers: argparse._SubParsersAction) -> None:
    """Register `tree build` and `tree show`."""
    tree = subparsers.add_parser("tree", help="build a label tree, or show it")
    actions = tree.add_subparsers(title="actions", metavar="ACTION", required=True)
    build = actions.add_parser("build", help="build the label tree of a class list")
    build.add_argument(
        "--classes",
        required=True,
        metavar="LIST",
        help="file of class names (wnids or nouns), one a line, or imagenet-1k, imagenet-21k-p-fall11, ...",
    )
    build.add_argument(
        "--relations",
        default="wordnet",
        metavar="wordnet|FILE",
        help="where parents come from: WordNet, or a child,parent CSV",
    )
    build.add_argument(
        "--parents",
        default="first",
        choices=("first", "last", "published", "longest", "shortest"),
        help="which of several WordNet parents counts (default: first)",
    )
    build.add_argument(
        "--inner",
        default="none",
        choices=("none", "branching", "all"),
        help="ancestors that become classes too (default: none, the published rule)",
    )
    build.add_argument("--levels", type=int, metavar="N", help="keep the first N levels of the label vectors")
    build.add_argument("-o", "--out", required=True, metavar="FILE", help="tree.json to write")
    build.set_defaults(run=_run_tree_build)
    show = actions.add_parser("show", help="print a class, its ancestors and its label vector")
    show.add_argument("tree", metavar="TREE", help="tree.json")
    show.add_argument(
        "name", nargs="?", metavar="WNID", help="a class name, wnid or noun; the whole tree without it"
    )
    show.set_defaults(run=_run_tree_show)


def _run_tree_build(args: argparse.Namespace) -> int:
    from .classes import load_class_list, noun_senses
    from .tree import LabelTree

    if args.relations == "wordnet":
        tree = LabelTree.from_wordnet(
            load_class_list(args.classes), parents=args.parents, inner=args.inner, levels=args.levels
        )
    else:
        if args.parents != "first" or args.inner != "none":
            raise UsageError("--parents and --inner choose among WordNet's relations; a table states its own")
        tree = LabelTree.from_file(args.relations, classes=load_class_list(args.classes), levels=args.levels)
    tree.save(args.out)
    print(tree.summary())
    if args.relations == "wordnet":
        for line in noun_senses(tree.classes[: tree.num_listed]):
            print(line)
    return 0


def _run_tree_show(args: argparse.Namespace) -> int:
    from .tree import LabelTree

    tree = LabelTree.load(args.tree)
    print(tree.summary() if args.name is None else tree.show(args.name))
    return 0
