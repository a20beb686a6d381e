"""What a loader's state must say before another loader continues from it."""

from __future__ import annotations

from typing import Any

from ..shards.errors import UsageError

STATE_VERSION = 1
NUM_EPOCHS = 2**32  # that there can be
# What may differ between the loader that was interrupted and the one that continues.
_MAY_DIFFER = ("version", "epoch", "taken", "global_batch", "bad")


def bad_samples(state: dict[str, Any]) -> list[int]:
    """The bad samples that a state's loader had counted; none in a state that is older than these.

    Raises:
        UsageError: no indices of samples.
    """
    bad = state.get("bad", [])
    if not isinstance(bad, list) or not all(type(sample) is int and sample >= 0 for sample in bad):
        raise UsageError(f"loader state: expected indices of bad samples, found {bad!r:.80}")
    return bad


def check_state(state: dict[str, Any], mine: dict[str, Any], longest: int) -> tuple[int, int]:
    """Refuse a state of another order.

    Args:
        state: what was saved.
        mine: the state of the loader that shall continue; whatever decides the order is the same in both.
        longest: samples of the longest lane.

    Returns:
        (epoch, taken) of the state.

    Raises:
        UsageError: another version, another value of something that decides the order (both are named), or
            numbers that cannot be.
    """
    if state.get("version") != STATE_VERSION:
        raise UsageError(f"loader state: expected version {STATE_VERSION}, found {state.get('version')!r}")
    for name in mine:
        if name not in _MAY_DIFFER and state.get(name) != mine[name]:
            raise UsageError(
                f"loader state: expected {name} {mine[name]!r} of this loader, found "
                f"{state.get(name)!r}; the rest of the epoch would not be the one that was begun. "
                "Build the loader as it was, or start a new epoch"
            )
    epoch, taken = state.get("epoch"), state.get("taken")
    if (
        type(epoch) is not int
        or type(taken) is not int
        or not 0 <= taken <= longest
        or not 0 <= epoch < NUM_EPOCHS
    ):
        raise UsageError(
            f"loader state: expected an epoch from 0 and 0 to {longest} samples taken, found {epoch!r} and {taken!r}"
        )
    return epoch, taken
