"""What the steps came to: losses, images per second, the share of time spent waiting for data.

Losses stay on the device between two flushes, so that the host runs ahead of a GPU; a flush is where it
waits.
"""

from __future__ import annotations

import csv
import math
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor
from torch import distributed as dist

from ..shards.errors import DataError

T = TypeVar("T")

METRICS_COLUMNS = ("step", "epoch", "loss", "lr", "images_per_s", "data_wait_share")


class StepLog:
    """Collects the steps of all ranks and writes a line of metrics at every flush.

    Args:
        path: the CSV, or None on ranks that write none.
        step: steps taken so far; lines beyond it, of steps that a continued run takes again, are dropped.
        global_batch: samples per step over all ranks.
        world_size: how many ranks take part.
        loss_sum: sum of the losses of the current epoch so far.
        loss_steps: how many they are.
    """

    def __init__(
        self,
        path: Path | None,
        step: int,
        global_batch: int,
        world_size: int,
        loss_sum: float,
        loss_steps: int,
    ) -> None:
        self.path = path
        self.step = step
        self.global_batch = global_batch
        self.world_size = world_size
        self.loss_sum = loss_sum
        self.loss_steps = loss_steps
        self._losses: list[Tensor] = []
        self._keys: list[list[str]] = []
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
            if batch is None:
                return
            if self._started is None:
                self._started = began
            self._waited_s += time.perf_counter() - began
            yield batch

    def add(self, loss: Tensor, keys: list[str]) -> None:
        """Note a step: this rank's part of the global loss (a detached scalar) and its samples' keys."""
        self._losses.append(loss)
        self._keys.append(keys)
        self.step += 1

    def flush(self, epoch: int, lr: float, stop: int) -> tuple[float, int]:
        """Wait for the steps since the last flush, on all ranks.

        Args:
            epoch: of these steps.
            lr: learning rate of the latest step.
            stop: number of the signal that asks this rank to stop, 0 for none.

        Returns:
            (loss of the latest step, the signal that any rank was asked to stop by or 0).

        Raises:
            DataError: a loss is infinite or NaN; says which step and which samples.
        """
        own = torch.stack(self._losses).double()
        total = own.clone()
        signals = torch.tensor([stop], device=total.device)
        if self.world_size > 1:
            dist.all_reduce(total)
            dist.all_reduce(signals, op=dist.ReduceOp.MAX)
        losses = total.tolist()
        first_step = self.step - len(losses)
        for i, (loss, part) in enumerate(zip(losses, own.tolist(), strict=True)):
            if not math.isfinite(loss):
                raise _not_finite(first_step + i, epoch, loss, part, self._keys[i])
        if self.path is not None:
            elapsed_s = time.perf_counter() - (self._started or 0.0)
            with self.path.open("a", newline="") as file:
                csv.writer(file).writerow(
                    (
                        self.step,
                        epoch,
                        f"{sum(losses) / len(losses):.8g}",
                        f"{lr:.8g}",
                        f"{len(losses) * self.global_batch / elapsed_s:.1f}",
                        f"{self._waited_s / elapsed_s:.3f}",
                    )
                )
        self.loss_sum += sum(losses)
        self.loss_steps += len(losses)
        self._losses, self._keys = [], []
        self._waited_s, self._started = 0.0, None
        return losses[-1], int(signals.item())

    def close_epoch(self) -> float | None:
        """Mean loss over the epoch's steps, and begin to count anew."""
        mean = self.loss_sum / self.loss_steps if self.loss_steps else None
        self.loss_sum, self.loss_steps = 0.0, 0
        return mean


def _start_csv(path: Path, step: int) -> None:
    rows: list[list[str]] = []
    if step and path.exists():
        with path.open(newline="") as file:
            # A line that a killed run left half written has no six columns, or no number in front.
            rows = [
                row
                for row in csv.reader(file)
                if len(row) == len(METRICS_COLUMNS) and row[0].isdigit() and int(row[0]) <= step
            ]
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([METRICS_COLUMNS, *rows])


def _not_finite(step: int, epoch: int, loss: float, part: float, keys: list[str]) -> DataError:
    if math.isfinite(part):
        samples = "the samples are another rank's"
    else:
        samples = f"this rank's samples are {', '.join(keys[:8])}" + (", ..." if len(keys) > 8 else "")
    return DataError(
        f"step {step} (epoch {epoch}): expected a finite loss, found {loss}; {samples}. The learning rate "
        "may be too high for this batch size, or the samples' targets are damaged. Continue from the last "
        "checkpoint with --resume after `softshard verify`, or start again with a lower --lr"
    )
