"""The names that users type and import, as `public_names.txt` has them: what changes there changes somebody's program.

    python tests/test_public_names.py     writes the file again

Additions are welcome; what goes or changes belongs into CHANGELOG.md, with what to write instead.
"""

import argparse
import dataclasses
import difflib
import importlib
import inspect
from pathlib import Path

from softshard.shards.cli import build_parser
from softshard.shards.cli_help import commands_of

FILE = Path(__file__).with_name("public_names.txt")


def signature(function):
    """Parameters with their kinds and whether they have a default: values and annotations may differ between versions."""
    words, only_named = [], False
    for one in inspect.signature(function).parameters.values():
        if one.name in ("self", "cls"):
            continue
        if one.kind is one.KEYWORD_ONLY and not only_named:
            only_named = True
            words.append("*")
        if one.kind is one.VAR_POSITIONAL:
            only_named = True
        star = {one.VAR_POSITIONAL: "*", one.VAR_KEYWORD: "**"}.get(one.kind, "")
        words.append(f"{star}{one.name}" + ("" if one.default is one.empty else "=..."))
    return f"({', '.join(words)})"


def members(found):
    """Public methods, properties and fields of a class, in its own body or a base of softshard's."""
    names = {}
    for base in reversed(found.__mro__):
        if not base.__module__.startswith("softshard."):
            continue
        if dataclasses.is_dataclass(base):
            names.update({field.name: "" for field in dataclasses.fields(base)})
        for name, value in vars(base).items():
            if name.startswith("_") or (
                dataclasses.is_dataclass(base) and name in names and not callable(value)
            ):
                continue
            inner = getattr(value, "__func__", value)
            names[name] = signature(inner) if inspect.isfunction(inner) else ""
    return names


def lines_of_packages():
    for package in ("shards", "loaders", "training"):
        module = importlib.import_module(f"softshard.{package}")
        for name in module.__all__:
            found = getattr(module, name)
            where = f"softshard.{package}.{name}"
            if inspect.isclass(found):
                yield where + ("" if issubclass(found, Exception) else signature(found))
                yield from (f"{where}.{inner}{call}" for inner, call in sorted(members(found).items()))
            else:
                yield where + (signature(found) if callable(found) else "")


def lines_of_commands():
    for name, parser in commands_of(build_parser()):
        for action in parser._actions:
            if isinstance(action, (argparse._HelpAction, argparse._SubParsersAction)):
                continue
            option = " ".join(action.option_strings) or f"<{action.dest}>"
            several = " ..." if action.nargs in ("+", "*") else ""
            choices = f" {{{','.join(map(str, action.choices))}}}" if action.choices else ""
            yield f"softshard {name}".rstrip() + f" {option}{several}{choices}"


def public_names():
    return "".join(f"{line}\n" for line in (*lines_of_packages(), *lines_of_commands()))


def test_public_names_are_those_of_the_file():
    changed = [
        line
        for line in difflib.unified_diff(
            FILE.read_text().splitlines(),
            public_names().splitlines(),
            "public_names.txt",
            "now",
            n=0,
            lineterm="",
        )
        if not line.startswith("@@")
    ]
    assert not changed, (
        "names that users write have changed. Where that is meant, say so in CHANGELOG.md and run "
        "`python tests/test_public_names.py`:\n" + "\n".join(changed)
    )


def test_the_file_has_what_users_write():
    text = FILE.read_text()
    for name in (
        "softshard.loaders.Loader(",
        "softshard.loaders.Loader.state_dict()",
        "softshard pack --shard-bytes",
    ):
        assert name in text


if __name__ == "__main__":
    FILE.write_text(public_names())
