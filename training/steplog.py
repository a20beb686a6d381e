"""What the steps came to: losses, images per second, the share of time spent waiting for data.

Losses stay on the device between two flushes, so that the host runs ahead of a GPU; a flush is where it
waits.
"""

from __future__ import annotations

import csv
import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch import distributed as dist

from ..shards.errors import DataError, MissingExtraError

T = TypeVar("T")

# Loss scaling begins at 2^16 and halves with every overflow: after so many in a row it is below 1, and what
# overflows is not its doing.
MAX_SKIPPED_IN_A_ROW = 20


@dataclass(frozen=True)
class LogLine:
    """A line of `metrics.csv`: the steps since the line before.

    Attributes:
        step: steps taken since the run began.
        epoch: of these steps.
        loss: mean over these steps; NaN where all of them overflowed.
        lr: learning rate of the latest.
        images_per_s: of all ranks together, from the first wait for data on.
        data_wait_share: share of that time in which rank 0 waited for data.
        skipped: steps that overflowed in float16 and changed nothing, since the run began.
    """

    step: int
    epoch: int
    loss: float
    lr: float
    images_per_s: float
    data_wait_share: float
    skipped: int


METRICS_COLUMNS = tuple(field.name for field in fields(LogLine))
_FORMATS = {"loss": ".8g", "lr": ".8g", "images_per_s": ".1f", "data_wait_share": ".3f"}


class StepLog:
    """Collects the steps of all ranks and writes a line of metrics at every flush.

    Args:
        path: the CSV, or None on ranks that write none.
        step: steps taken so far; lines beyond it, of steps that a continued run takes again, are dropped.
        global_batch: samples per step over all ranks.
        world_size: how many ranks take part.
        loss_sum: sum of the losses of the current epoch so far.
        loss_steps: how many they are.
        skipped: steps so far that overflowed in float16.
        board: a SummaryWriter of torch's, which gets the same numbers, or None.
        replay: gives the command that makes a step's batch again, from epoch and step, or None.
        without: samples of the current epoch so far without soft labels, of each kind (see without_labels.py).
    """

    def __init__(
        self,
        path: Path | None,
        step: int,
        global_batch: int,
        world_size: int,
        loss_sum: float,
        loss_steps: int,
        skipped: int = 0,
        board: Any = None,
        replay: Callable[[int, int], str | None] = lambda epoch, step: None,
        without: Sequence[int] = (),
    ) -> None:
        self.path = path
        self.step = step
        self.global_batch = global_batch
        self.world_size = world_size
        self.loss_sum = loss_sum
        self.loss_steps = loss_steps
        self.skipped = skipped
        self.without = list(without)
        self._skipped_in_a_row = 0
        self._board = board
        self._replay = replay
        self._losses: list[Tensor] = []
        self._were_skipped: list[bool] = []
        self._keys: list[list[str]] = []
        self._without: list[Tensor] = []
        self._waited_s = 0.0
        self._started: float | None = None
        if path is not None:
            _start_csv(path, step)

    def timed(self, batches: Iterable[T]) -> Iterator[T]:
        """The same batches, noting how long each is waited for. A line's clock starts at its first wait."""
        iterator = iter(batches)
        while True:
            began = time.perf_counter()
            batch = next(iterator, None)
            if self._started is None and batch is not None:
                self._started = began
            if self._started is not None:  # else an epoch ended, and no line tells of the wait for that
                self._waited_s += time.perf_counter() - began
            if batch is None:
                return
            yield batch

    def add(
        self, loss: Tensor, keys: list[str], skipped: bool = False, without: Tensor | None = None
    ) -> None:
        """Note a step.

        Args:
            loss: this rank's part of the global loss, a detached scalar.
            keys: of its samples.
            skipped: whether float16 overflowed, on all ranks alike, so that the step changed nothing.
            without: integer [kinds], how many of this rank's samples have no soft labels; None where there are none to have.

        Raises:
            DataError: too many steps in a row overflowed.
        """
        self._losses.append(loss)
        self._keys.append(keys)
        self._were_skipped.append(skipped)
        if without is not None:
            self._without.append(without)
        self.step += 1
        self.skipped += skipped
        self._skipped_in_a_row = self._skipped_in_a_row + 1 if skipped else 0
        if self._skipped_in_a_row >= MAX_SKIPPED_IN_A_ROW:
            raise DataError(
                f"step {self.step - 1}: expected gradients that float16 can hold, found {MAX_SKIPPED_IN_A_ROW} "
                "steps in a row that overflowed whatever the loss was scaled by; the model diverges, or is not made "
                "for float16. Begin again with a lower --lr, or with --precision bfloat16"
            )

    @property
    def has_new(self) -> bool:
        """Whether steps were taken since the last flush."""
        return bool(self._losses)

    def flush(self, epoch: int, lr: float, stop: int) -> tuple[LogLine, int]:
        """Wait for the steps since the last flush, on all ranks.

        Args:
            epoch: of these steps.
            lr: learning rate of the latest step.
            stop: number of the signal that asks this rank to stop, 0 for none.

        Returns:
            (the line written, the signal that any rank was asked to stop by or 0).

        Raises:
            DataError: a loss is infinite or NaN, and not because float16 overflowed; says which step and which
                samples.
        """
        own = torch.stack(self._losses).double()
        total = own.clone()
        signals = torch.tensor([stop], device=total.device)
        if self.world_size > 1:
            dist.all_reduce(total)
            dist.all_reduce(signals, op=dist.ReduceOp.MAX)
        self._count_without()
        first_step, num_steps = self.step - len(total), len(total)
        losses = []
        for i, (loss, part) in enumerate(zip(total.tolist(), own.tolist(), strict=True)):
            if math.isfinite(loss):
                losses.append(loss)
            elif not self._were_skipped[i]:
                step = first_step + i
                raise _not_finite(step, epoch, loss, part, self._keys[i], self._replay(epoch, step))
        elapsed_s = time.perf_counter() - (self._started or 0.0)
        line = LogLine(
            step=self.step,
            epoch=epoch,
            loss=sum(losses) / len(losses) if losses else math.nan,
            lr=lr,
            images_per_s=num_steps * self.global_batch / elapsed_s,
            data_wait_share=self._waited_s / elapsed_s,
            skipped=self.skipped,
        )
        self._write(line)
        self.loss_sum += sum(losses)
        self.loss_steps += len(losses)
        self._losses, self._keys, self._were_skipped = [], [], []
        self._waited_s, self._started = 0.0, None
        return line, int(signals.item())

    def _write(self, line: LogLine) -> None:
        values = asdict(line)
        if self.path is not None:
            with self.path.open("a", newline="") as file:
                csv.writer(file).writerow(
                    format(value, _FORMATS.get(name, "")) for name, value in values.items()
                )
        if self._board is not None:
            for name in METRICS_COLUMNS[2:]:  # step is the axis, and epoch follows from it
                self._board.add_scalar(name, values[name], line.step)

    def _count_without(self) -> None:
        if not self._without:
            return
        counts = torch.stack(self._without).sum(dim=0)
        if self.world_size > 1:
            dist.all_reduce(counts)
        earlier = self.without or [0] * len(counts)
        self.without = [before + new for before, new in zip(earlier, counts.tolist(), strict=True)]
        self._without = []

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps: `step`, and of the current epoch `loss_sum`, `loss_steps` and `without`; `skipped`."""
        return {
            "step": self.step,
            "loss_sum": self.loss_sum,
            "loss_steps": self.loss_steps,
            "skipped": self.skipped,
            "without": self.without,
        }

    def close_epoch(self) -> float | None:
        """Mean loss over the epoch's steps, and begin to count anew."""
        mean = self.loss_sum / self.loss_steps if self.loss_steps else None
        self.loss_sum, self.loss_steps, self.without = 0.0, 0, []
        return mean


def board_writer() -> Callable[[Path, int], Any]:
    """Opens a folder for TensorBoard: called with it and the steps taken so far, of which later events are hidden.

    Raises:
        MissingExtraError: tensorboard is not installed.
    """
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ModuleNotFoundError as error:
        raise MissingExtraError("train --tensorboard", "tensorboard", error) from error
    return lambda folder, step: SummaryWriter(str(folder), purge_step=step + 1)


def _start_csv(path: Path, step: int) -> None:
    rows: list[list[str]] = []
    if step and path.exists():
        with path.open(newline="", errors="replace") as file:
            # A line that a killed run left half written has too few columns, or no number in front.
            rows = [row for row in _rows(file) if len(row) == len(METRICS_COLUMNS) and _is_upto(row[0], step)]
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([METRICS_COLUMNS, *rows])


def _rows(file: Iterable[str]) -> Iterator[list[str]]:
    """The rows that can be read: a disk that fails may leave anything."""
    rows = csv.reader(file)
    while True:
        try:
            yield next(rows)
        except csv.Error:
            continue
        except StopIteration:
            return


def _is_upto(cell: str, step: int) -> bool:
    return cell.isascii() and cell.isdigit() and len(cell) < 19 and int(cell) <= step


def _not_finite(
    step: int, epoch: int, loss: float, part: float, keys: list[str], replay: str | None
) -> DataError:
    if math.isfinite(part):
        samples = "the samples are another rank's"
    else:
        samples = f"this rank's samples are {', '.join(keys[:8])}" + (", ..." if len(keys) > 8 else "")
    look = f" Look at the whole batch with: {replay}" if replay else ""
    return DataError(
        f"step {step} (epoch {epoch}): expected a finite loss, found {loss}; {samples}. The learning rate "
        "may be too high for this batch size, or the samples' targets are damaged. Continue from the last "
        f"checkpoint with --resume after `softshard verify`, or start again with a lower --lr.{look}"
    )
