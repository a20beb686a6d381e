"""The ledger of bad inputs: what could not be used, with its reason, and how many of them stop a run."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict

from .destination import Destination
from .schema import LEDGER_NAME
from .shard_task import BadInput
from .text_limits import counted

ALWAYS_ALLOWED_BAD = 10


def bad_limit(max_bad: float, num_inputs: int) -> int:
    """How many inputs may be bad: a share of all, but ten at least; none where the share is 0."""
    return max(ALWAYS_ALLOWED_BAD, int(max_bad * num_inputs)) if max_bad else 0


def too_many(
    bad: Sequence[BadInput],
    limit: int,
    destination: Destination,
    what: str = "input",
    mend: str = "Mend them in place and run again with --retry-bad",
) -> str:
    """Write the ledger of a run that stops, and say why it does.

    Args:
        bad: all that were found.
        limit: how many may be.
        destination: where the run writes.
        what: one of them is.
        mend: what to do about them.
    """
    write_ledger(destination, bad)
    shown = "; ".join(f"{item.reason} [{item.kind}]" for item in bad[:5])
    return (
        f"{destination.name}: expected at most {counted(limit, f'bad {what}')}, found {len(bad):,}: {shown}; all are in "
        f"{destination.name}/{LEDGER_NAME}. {mend}, or run again with a larger "
        "--max-bad to go on without them"
    )


def write_ledger(destination: Destination, bad: Sequence[BadInput]) -> None:
    """Write the ledger of bad inputs, a JSON object a line."""
    lines = "".join(json.dumps(asdict(item)) + "\n" for item in bad)
    destination.write(LEDGER_NAME, lines.encode("ascii"))
