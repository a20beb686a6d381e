"""Makes damaged files of whole ones: everything follows from a number, so that a finding is repeated by its number.

`mutated(content, kind, number)` takes one to four steps. Bytes are flipped, cut, repeated,
    put in another place, and
numbers in them changed; text gets other lines, cells and numbers; JSON gets other values, of other types,
    at any depth.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable
from typing import Any

BINARY, TEXT, JSON = "binary", "text", "JSON"

_NUMBERS = (
    0,
    1,
    -1,
    2,
    127,
    128,
    255,
    256,
    32767,
    65535,
    65536,
    2**31 - 1,
    2**31,
    2**32 - 1,
    2**63 - 1,
    2**63,
    10**30,
)
_DEEP: Any = None
for _ in range(200):
    _DEEP = [_DEEP]
_VALUES: tuple[Any, ...] = (
    *_NUMBERS, None, True, False, 0.5, -0.0, 1e308, float("inf"), float("nan"), "", " ", "a", "0", "\0",
    "\ud800", "../x", "/etc/passwd",
    "a\nb", "é", "<script>", "x" * 5000, [], {}, [[]], [0], [""], [None], {"": 0}, {"a": {}}, _DEEP,
)  # fmt: skip
_WORDS = (
    b"", b" ", b"\n", b"\r", b"\t", b",", b'"', b"'", b":", b"{", b"}", b"[", b"]", b"-", b"&a", b"*a",
    b"!!python/object", b"---", b"\0",
    b"nan", b"inf", b"1e999", b"-1", b"9" * 30, b"9" * 5000, b"\xff", b"\xed\xa0\x80", b"\xef\xbb\xbf",
    "\u2028".encode(), "٣".encode(),
    b"../", b"x" * 200_000, b"[" * 3000,
)  # fmt: skip


def mutated(content: bytes, kind: str, number: int, others: tuple[bytes, ...] = ()) -> bytes:
    """A damaged copy.

    Args:
        content: a whole file.
        kind: BINARY, TEXT or JSON; JSON is damaged as text, too.
        number: what decides the damage.
        others: whole files that pieces are taken from, beside itself.
    """
    draw = random.Random(number)
    if kind == JSON and draw.random() < 0.75:
        value = json.loads(content)
        for _ in range(draw.randint(1, 3)):
            value = _other_value(value, draw)
        return json.dumps(value, indent=draw.choice((None, 1))).encode()
    steps = _TEXT_STEPS if kind != BINARY else _STEPS
    for _ in range(draw.randint(1, 4)):
        content = draw.choice(steps)(content, draw, others)
    return content


def _other_value(value: Any, draw: random.Random) -> Any:
    """JSON with something else at one place."""
    here = draw.random() < 0.15
    if isinstance(value, dict) and value and not here:
        key = draw.choice(sorted(value))
        if draw.random() < 0.1:
            return {name: item for name, item in value.items() if name != key}
        return {**value, key: _other_value(value[key], draw)}
    if isinstance(value, list) and value and not here:
        at = draw.randrange(len(value))
        what = draw.random()
        if what < 0.1:
            return value[:at] + value[at + 1 :]
        if what < 0.2:
            return [*value, value[at]]
        return [*value[:at], _other_value(value[at], draw), *value[at + 1 :]]
    if type(value) is int and draw.random() < 0.5:
        return value + draw.choice((-1, 1, 100, -100))
    if isinstance(value, str) and value and draw.random() < 0.3:
        at = draw.randrange(len(value))
        return value[:at] + draw.choice(("0", "z", "\n", "é", "\ud800", "")) + value[at + 1 :]
    return draw.choice(_VALUES)


def _place(content: bytes, draw: random.Random) -> int:
    """Somewhere in a file; more often near its beginning, where headers are."""
    return draw.randrange(min(len(content), 128) if draw.random() < 0.4 else len(content)) if content else 0


def _flip(content: bytes, draw: random.Random, others: tuple[bytes, ...]) -> bytes:
    changed = bytearray(content)
    for _ in range(draw.choice((1, 1, 1, 2, 8))):
        if changed:
            changed[_place(content, draw)] ^= 1 << draw.randrange(8)
    return bytes(changed)


def _byte(content: bytes, draw: random.Random, others: tuple[bytes, ...]) -> bytes:
    at = _place(content, draw)
    return content[:at] + bytes([draw.choice((0, 1, 127, 128, 255, draw.randrange(256)))]) + content[at + 1 :]


def _cut(content: bytes, draw: random.Random, others: tuple[bytes, ...]) -> bytes:
    return content[: _place(content, draw)]


def _remove(content: bytes, draw: random.Random, others: tuple[bytes, ...]) -> bytes:
    at = _place(content, draw)
    return content[:at] + content[at + draw.choice((1, 2, 4, 16, 512)) :]


def _repeat(content: bytes, draw: random.Random, others: tuple[bytes, ...]) -> bytes:
    at = _place(content, draw)
    piece = content[at : at + draw.choice((1, 4, 16, 512, 1024))]
    return content[:at] + piece * draw.choice((2, 2, 3, 50)) + content[at + len(piece) :]


def _splice(content: bytes, draw: random.Random, others: tuple[bytes, ...]) -> bytes:
    other = draw.choice((content, *others))
    at = _place(other, draw)
    piece = other[at : at + draw.choice((2, 8, 64, 512, 10**9))]
    to = _place(content, draw)
    return content[:to] + piece + content[to + (len(piece) if draw.random() < 0.5 else 0) :]


def _integer(content: bytes, draw: random.Random, others: tuple[bytes, ...]) -> bytes:
    """A number of 1 to 8 bytes, of either byte order, in the place of what is there."""
    at, size = _place(content, draw), draw.choice((1, 2, 4, 8))
    number = draw.choice(_NUMBERS) % 256**size
    return content[:at] + number.to_bytes(size, draw.choice(("little", "big"))) + content[at + size :]


def _digits(content: bytes, draw: random.Random, others: tuple[bytes, ...]) -> bytes:
    """Another number where digits stand."""
    found = [match.span() for match in re.finditer(rb"\d+", content[:20_000])]
    if not found:
        return content
    start, end = draw.choice(found)
    return content[:start] + str(draw.choice(_NUMBERS)).encode() + content[end:]


def _word(content: bytes, draw: random.Random, others: tuple[bytes, ...]) -> bytes:
    at = _place(content, draw)
    return content[:at] + draw.choice(_WORDS) + content[at + draw.choice((0, 0, 1, 4)) :]


def _lines(content: bytes, draw: random.Random, others: tuple[bytes, ...]) -> bytes:
    """Lines in another order, one of them twice, or without one."""
    lines = content.split(b"\n")
    what, at = draw.randrange(3), draw.randrange(len(lines))
    if what == 0:
        draw.shuffle(lines)
    elif what == 1:
        lines.insert(draw.randrange(len(lines)), lines[at])
    else:
        del lines[at]
    return b"\n".join(lines)


_STEPS: tuple[Callable[[bytes, random.Random, tuple[bytes, ...]], bytes], ...] = (
    _flip, _flip, _byte, _cut, _remove, _repeat, _splice, _integer, _integer, _digits,
)  # fmt: skip
_TEXT_STEPS = (*_STEPS, _word, _word, _word, _digits, _lines, _lines)
