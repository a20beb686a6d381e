"""What `--help` shows beside the options: commands by task, examples, and defaults of every option.

One table for all packages, so that the commands of one task stand together, wherever they live. A test runs every
example through the parser.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator

# Tasks in the order in which people come to them. Commands that are named nowhere come last.
TASKS = {
    "start here": ("demo", "doctor", "completion"),
    "make data sets": ("tree", "pack", "reshard", "tags", "subset"),
    "look at them": ("verify", "stats", "inspect"),
    "soft labels": ("maps", "teacher", "pseudo"),
    "load": ("bench", "replay", "serve"),
    "train": ("train", "evaluate", "predict"),
}
EXAMPLES = {
    "": ("softshard pack photos shards --val-per-class 50", "softshard COMMAND --help"),
    "demo": ("softshard demo", "softshard demo --images photos --out demo-out"),
    "doctor": ("softshard doctor", "softshard doctor s3://bucket/in21k/train --json"),
    "tree build": (
        "softshard tree build --classes imagenet-21k-p-fall11 -o tree.json",
        "softshard tree build --relations own.yaml -o own.json",
    ),
    "tree show": ("softshard tree show tree.json", "softshard tree show tree.json dog"),
    "tree check": ("softshard tree check tree.json --dataset shards",),
    "tree export": ("softshard tree export tree.json --html tree.html",),
    "pack": (
        "softshard pack photos shards --val-per-class 50",
        "softshard pack /data/imagenet21k /data/in21k --tree tree.json --preset imagenet-21k-p",
        "softshard pack s3://photos/train s3://shards/in1k --size 256 --resize short-edge",
    ),
    "verify": ("softshard verify shards --decode",),
    "stats": (
        "softshard stats shards --html stats.html",
        "softshard stats shards/train --shuffle --batch-size 1024",
    ),
    "inspect": ("softshard inspect shards/train -o inspect.html",),
    "reshard": (
        "softshard reshard shards/train larger --shard-bytes 512MB",
        "softshard reshard shards/train with-maps --label-maps maps --tree tree.json",
    ),
    "tags build": ("softshard tags build web.csv -o tags.jsonl",),
    "tags weigh": (
        "softshard tags weigh web.jsonl -o weighted.jsonl --classes imagenet-1k --by wup=0.7,text=0.3",
    ),
    "tags show": ("softshard tags show n02123045 --classes imagenet-1k --by wup",),
    "subset classes": ("softshard subset classes shards --method siblings -n 100 -o classes.json",),
    "subset images": ("softshard subset images shards --per-class 500 -o subset.json",),
    "maps make": (
        "softshard maps make shards/train with-maps --teacher resnet50.a1_in1k",
        "torchrun --nproc-per-node 8 --no-python softshard maps make shards/train with-maps --teacher resnet50",
    ),
    "maps import": (
        "softshard maps import relabel maps",
        "softshard maps import tokenlabeling maps --num-classes 1000",
    ),
    "maps join": ("softshard maps join shards/train maps with-maps",),
    "maps check": ("softshard maps check with-maps --teacher resnet50.a1_in1k",),
    "teacher make": ("softshard teacher make shards/train taught --teacher runs/teacher/checkpoint.pt",),
    "pseudo make": (
        "softshard pseudo make web/train labelled --model runs/r50/checkpoint.pt --threshold 0.5",
    ),
    "bench": (
        "softshard bench shards/train",
        "softshard bench shards/train --against webdataset,dali --html bench.html",
    ),
    "serve": (
        "softshard serve shards/train shards/val --listen 127.0.0.1:7070",
        "softshard serve train=s3://bucket/in21k/train --cache /scratch",
    ),
    "replay": ("softshard replay shards/train --epoch 3 --step 120 --out batch.html",),
    "train": (
        "softshard train single-label shards/train --val shards/val --model resnet50 --out runs/r50",
        "torchrun --nproc-per-node 8 --no-python softshard train relabel with-maps --model resnet50 --out runs/relabel",
        "softshard train single-label shards/train --model resnet18 --out runs/try --preset small --set epochs=2",
    ),
    "evaluate": (
        "softshard evaluate runs/r50/checkpoint.pt shards/val",
        "softshard evaluate timm:resnet50.a1_in1k shards/val --label-sets real",
    ),
    "predict": ("softshard predict runs/r50/checkpoint.pt swan.jpg",),
    "completion": (
        "softshard completion bash > ~/.local/share/bash-completion/completions/softshard",
        'eval "$(softshard completion zsh)"',
        "softshard completion fish > ~/.config/fish/completions/softshard.fish",
    ),
}


class ByTask(argparse.ArgumentParser):
    """The parser of `softshard`, whose help lists commands by task."""

    def format_help(self) -> str:
        formatter = self._get_formatter()
        formatter.add_usage(self.usage, self._actions, self._mutually_exclusive_groups)
        formatter.add_text(self.description)
        (commands,) = (one for one in self._actions if isinstance(one, argparse._SubParsersAction))
        entries = {entry.dest: entry for entry in commands._choices_actions}
        placed = {name for names in TASKS.values() for name in names}
        others = tuple(name for name in entries if name not in placed)
        for task, names in (*TASKS.items(), ("more", others)):
            formatter.start_section(task)
            formatter.add_arguments([entries[name] for name in names if name in entries])
            formatter.end_section()
        formatter.start_section("options")
        formatter.add_arguments([one for one in self._actions if one is not commands])
        formatter.end_section()
        formatter.add_text(self.epilog)
        return formatter.format_help()


def commands_of(
    parser: argparse.ArgumentParser, name: str = ""
) -> Iterator[tuple[str, argparse.ArgumentParser]]:
    """A parser and all below it, with their names: `""`, `pack`, `tree`, `tree build`."""
    yield name, parser
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for inner, child in action.choices.items():
                yield from commands_of(child, f"{name} {inner}".strip())


def finish_help(parser: argparse.ArgumentParser) -> None:
    """Give every command a description, which is else its line in the list, and its examples."""
    for name, command in commands_of(parser):
        for action in command._actions:
            if isinstance(action, argparse._SubParsersAction):
                for entry in action._choices_actions:
                    child = action.choices[entry.dest]
                    child.description = child.description or _sentence(entry.help or "")
        if examples := EXAMPLES.get(name):
            command.formatter_class = _Wrapped
            lines = "\n".join(f"  {line}" for line in examples)
            more = f"\n\n{command.epilog}" if command.epilog else ""
            command.epilog = f"example{'s' * (len(examples) > 1)}:\n{lines}{more}"


class _Wrapped(argparse.HelpFormatter):
    """Wraps text, but keeps the lines of examples."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        parts = text.split("\n\n")
        return "\n\n".join(
            part if part.startswith("example") else super(_Wrapped, self)._fill_text(part, width, indent)
            for part in parts
        )


def _sentence(text: str) -> str:
    return f"{text[:1].upper()}{text[1:]}." if text else text
