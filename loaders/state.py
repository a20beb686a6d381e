"""Where a loader stands: its epoch, its step, the state that says so, and what another loader takes of that."""

from __future__ import annotations

from typing import Any, Self

from ..shards.errors import UsageError
from ..shards.philox import check_seed
from .background import Background
from .balance import BALANCE_RULE
from .batch import Batch
from .epoch_plan import EpochPlan
from .faults import Quarantine
from .loader_data import LoaderData
from .subset import Subset

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


class LoaderPosition(LoaderData):
    """The part of a Loader that is about where it stands in which epoch.

    Attributes:
        epoch: the one that is iterated, or comes next.
    """

    batch_size: int
    world_size: int
    lanes: int
    window: int
    shuffle: bool
    last_batch: str
    subset: Subset | None
    balance: float | None
    seed: int
    epoch: int
    _taken: int  # samples that every lane has given in this epoch
    _resume: bool  # whether the next iteration starts there
    _per_lane: int
    _plan: EpochPlan
    _quarantine: Quarantine
    _running: Background[Batch] | None

    @property
    def global_batch(self) -> int:
        return self.batch_size * self.world_size

    @property
    def step(self) -> int:
        """Steps of this epoch that have been yielded."""
        return -(-self._taken // self._per_lane)

    @property
    def num_bad(self) -> int:
        """Samples of this rank that could not be read so far, each counted once."""
        return self._quarantine.num_bad

    @property
    def num_left_out(self) -> int:
        """Samples of an epoch that `last_batch="drop"` leaves out."""
        return 0 if self.last_batch == "pad" else self.num_samples - len(self) * self.global_batch

    def __len__(self) -> int:
        """Steps of a whole epoch; the same on every rank."""
        return self._num_steps(0)

    def _num_steps(self, taken: int) -> int:
        return self._plan.num_steps(taken)

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch to iterate next; a state loaded for this very epoch stays in force.

        Raises:
            UsageError: not a whole number from 0 to 2**32 - 1.
        """
        check_seed(self.seed, epoch)
        if epoch != self.epoch:
            self._stop()
            self.epoch, self._taken, self._resume = epoch, 0, False

    @property
    def sampler(self) -> Self:
        """The loader: Lightning and timm's train.py choose the epoch with `loader.sampler.set_epoch`."""
        return self

    batch_sampler = sampler  # Lightning expects both or neither

    def state_dict(self) -> dict[str, Any]:
        """Where the loader stands, after the batch yielded last: a few numbers, a fingerprint, this rank's bad samples."""
        return {
            "version": STATE_VERSION,
            "fingerprint": self.fingerprint,
            "seed": self.seed,
            "epoch": self.epoch,
            "taken": self._taken,
            "global_batch": self.global_batch,
            "lanes": self.lanes,
            "window": self.window,
            "shuffle": self.shuffle,
            "labels": self.source.labels_fingerprint(),
            "subset": None if self.subset is None else self.subset.to_json(),
            "balance": self.balance,
            "balance_rule": None if self.balance is None else BALANCE_RULE,
            "mixture": self.source.mixture_state(),
            "bad": self._quarantine.counted,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where a state was taken; the world size, and the global batch, may be others.

        Raises:
            UsageError: the state is of another data set, order, labels, subset, balance or mixture; both are named.
        """
        epoch, taken = check_state(state, self.state_dict(), -(-self.num_samples // self.lanes))
        bad = bad_samples(state)
        self._stop()
        self.epoch, self._taken, self._resume = epoch, taken, True
        self._quarantine.restore(bad)

    def _stop(self) -> None:
        """End the iteration that is under way."""
        if self._running is not None:
            self._running.stop()
            self._running = None
