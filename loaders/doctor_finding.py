"""What `softshard doctor` says of one thing that it looked at."""

from __future__ import annotations

from dataclasses import dataclass

FINE, NOTE, WRONG = "fine", "note", "wrong"


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        name: what it is, such as `numpy` or `open files`.
        found: what is there, in a few words; no password, no key.
        state: `fine`; `note`, which something is missing or slow with; `wrong`, which something fails with.
        fix: what to do about it; empty where all is fine.
    """

    name: str
    found: str
    state: str = FINE
    fix: str = ""
