"""Refuses a loader's options that cannot be, before anything is read."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ..shards.errors import UsageError
from ..shards.shard_files import dataset_name
from .decode import DTYPES
from .order import LAST_BATCHES
from .source import Source
from .target_modes import TARGET_MODES, TARGETS, LabelPooling, Targets, each_target


def check_choices(targets: Targets, dtype: str, last_batch: str) -> None:
    """Refuse names of no choice.

    Raises:
        UsageError: with the choices there are.
    """
    for name, value, choices in (
        *(
            ("targets", "none" if each is targets and isinstance(each, LabelPooling) else each, TARGETS)
            for each in each_target(targets)
        ),
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


def check_keep(keep: int | None, targets: Targets, mixes: bool) -> None:
    """Refuse sparse targets that are none, or that images would have to be mixed with.

    Raises:
        UsageError: see there.
    """
    if keep is None:
        return
    if keep < 1 or targets == "none":
        raise UsageError(
            f"loader: expected keep_targets from 1, with targets to keep them of, found {keep} and {targets!r}"
        )
    if mixes:
        raise UsageError(
            f"loader: expected dense targets for mixup and cutmix, found keep_targets={keep}. Leave one of them out"
        )


def check_enough(dataset: str, num_samples: int, lanes: int, global_batch: int, last_batch: str) -> None:
    """Refuse an epoch that has no whole step, where nothing else is served.

    Raises:
        UsageError: with both numbers.
    """
    if last_batch == "drop" and num_samples // lanes < global_batch // lanes:
        raise UsageError(
            f"{dataset}: expected a global batch of samples, which is {global_batch} on {lanes} lanes, found "
            f"{num_samples}. Use a smaller batch_size (in commands --global-batch N or --set global_batch=N), or "
            "last_batch='pad'"
        )


def check_side(side: str | Path, targets: Targets, sources: Sequence[Source]) -> None:
    """Refuse side shards that nothing would read, or that are of one of several data sets.

    Raises:
        UsageError: see there.
    """
    if not any(isinstance(each, LabelPooling) or each in TARGET_MODES for each in each_target(targets)):
        raise UsageError(
            f"loader: expected targets that pool the label maps of side={dataset_name(side)!r}, found {targets!r}"
        )
    if len(sources) > 1:
        raise UsageError(
            f"loader: expected a single data set for side={dataset_name(side)!r}, found a mixture of {len(sources)}. Join "
            "them first: softshard maps join"
        )
