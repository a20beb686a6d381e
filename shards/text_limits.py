"""Numbers and names in words, of a length that a page or a message can show."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

_MAX_PROBLEMS = 20


def shortened(text: str, most: int) -> str:
    """The text, cut where it is longer than `most` characters, with what is left out counted."""
    return text if len(text) <= most else f"{text[:most]} ... and {len(text) - most:,} characters more"


def counted(num: int, thing: str, things: str = "") -> str:
    """A number of things in words: `1 shard`, `2 shards`, `1,000 classes`; `things` where the plural is another."""
    several = things or f"{thing}{'es' if thing.endswith('s') else 's'}"
    return f"{num:,} {thing if num == 1 else several}"


def some(names: Sequence[str], num: int = 10, show: Callable[[str], str] = repr) -> str:
    """The first few names, and how many more there are."""
    more = f" and {len(names) - num:,} more" if len(names) > num else ""
    return ", ".join(map(show, names[:num])) + more


def every_problem(problems: Iterable[str]) -> str:
    """One message of several problems, a line each, up to a limit."""
    problems = list(problems)
    more = len(problems) - _MAX_PROBLEMS
    return "\n".join(problems[:_MAX_PROBLEMS]) + (
        f"\nand {counted(more, 'more problem')}" if more > 0 else ""
    )
