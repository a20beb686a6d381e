"""Refuses a loader's options that cannot be, before anything is opened."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ..shards.errors import UsageError
from .decode import DTYPES
from .order import LAST_BATCHES
from .source import Source
from .target_modes import TARGETS, LabelPooling


def check_choices(targets: str | LabelPooling, dtype: str, last_batch: str) -> None:
    """Refuse names of no choice.

    Raises:
        UsageError: with the choices there are.
    """
    for name, value, choices in (
        ("targets", "none" if isinstance(targets, LabelPooling) else targets, TARGETS),
        ("dtype", dtype, DTYPES),
        ("last_batch", last_batch, LAST_BATCHES),
    ):
        if value not in choices:
            raise UsageError(f"loader: expected {name} of {', '.join(choices)}, found {value!r}")


def check_numbers(batch_size: int, prefetch: int, window: int, num_threads: int | None) -> None:
    """Refuse counts below 1.

    Raises:
        UsageError: with all of them.
    """
    if batch_size < 1 or prefetch < 1 or window < 1 or (num_threads is not None and num_threads < 1):
        raise UsageError(
            "loader: expected batch_size, prefetch, window and num_threads from 1, found "
            f"{batch_size}, {prefetch}, {window} and {num_threads}"
        )


def check_normalisation(mean: Sequence[float], std: Sequence[float]) -> None:
    """Refuse what is not three channels' mean and spread.

    Raises:
        UsageError: with both.
    """
    if len(mean) != 3 or len(std) != 3 or not min(std) > 0:
        raise UsageError(
            f"loader: expected a mean and a std above 0 of three channels, found {mean} and {std}"
        )


def check_side(side: str | Path, targets: str | LabelPooling, sources: Sequence[Source]) -> None:
    """Refuse side shards that nothing would read, or that are of one of several data sets.

    Raises:
        UsageError: see there.
    """
    if targets in ("none", "original"):
        raise UsageError(
            f"loader: expected targets that pool the label maps of side={str(side)!r}, found {targets!r}"
        )
    if len(sources) > 1:
        raise UsageError(
            f"loader: expected a single data set for side={str(side)!r}, found a mixture of {len(sources)}. Join them "
            "first: softshard maps join"
        )
