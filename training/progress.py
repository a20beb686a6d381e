"""How far a run is, for the person who waits: a bar on a terminal, elsewhere a line now and then."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import Any

from tqdm import tqdm

from ..loaders.loader import Loader
from ..loaders.loader_stats import WAITING_SHARE
from .label_space import LabelSpace
from .recipes import Recipe
from .steplog import LogLine
from .without_labels import WITHOUT_NAMES

LINE_EVERY_S = 60.0


class Progress:
    """Shows the steps of an epoch.

    Args:
        say: gets the lines.
        bar: whether standard error is a terminal and this is rank 0.
        total_steps: of the whole run.
        line_every_s: seconds from one line to the next; the first comes with the first numbers.
    """

    def __init__(
        self, say: Callable[[str], None], *, bar: bool, total_steps: int, line_every_s: float = LINE_EVERY_S
    ) -> None:
        self._say = say
        self._with_bar = bar
        self._total_steps = total_steps
        self._line_every_s = line_every_s
        self._next_line = 0.0
        self._steps_per_epoch = 0
        self._bar: tqdm | None = None

    def begin_epoch(self, epoch: int, steps_per_epoch: int, done: int) -> None:
        """An epoch begins, or goes on after `done` of its steps."""
        self._steps_per_epoch = steps_per_epoch
        self._bar = tqdm(
            total=steps_per_epoch,
            initial=done,
            desc=f"epoch {epoch}",
            unit="step",
            disable=not self._with_bar,
        )

    def advance(self) -> None:
        """A step was taken."""
        if self._bar is not None:
            self._bar.update()

    def show(self, line: LogLine, longest_stage: str = "") -> None:
        """Numbers are there; where data are waited for, `longest_stage` says what takes the loader longest."""
        speed = f"{line.images_per_s:,.0f} images/s, {line.data_wait_share:.0%} of the time waiting for data"
        if longest_stage and line.data_wait_share >= WAITING_SHARE:
            speed += f" (mostly {longest_stage})"
        if self._bar is not None:
            self._bar.set_postfix_str(f"loss {line.loss:.4f}, {speed}", refresh=False)
        if not self._with_bar and time.monotonic() >= self._next_line:
            self._next_line = time.monotonic() + self._line_every_s
            step = line.step - line.epoch * self._steps_per_epoch
            self._say(
                f"epoch {line.epoch}, step {step} of {self._steps_per_epoch} ({line.step} of "
                f"{self._total_steps} in all): loss {line.loss:.4f}, lr {line.lr:.3g}, {speed}"
                + (f", {line.skipped} steps skipped" if line.skipped else "")
            )

    def end_epoch(self) -> None:
        """The epoch is over, or the run stops."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None


def run_line(recipe: Recipe, loader: Loader, labels: LabelSpace) -> str:
    """What a run is going to do, in a line: steps, samples, labels, and how a step is taken."""
    processes, steps = loader.world_size, len(loader)
    return (
        f"{recipe.name}: global batch {recipe.global_batch} ({recipe.global_batch // processes} on each of {processes} "
        f"processes), {steps} steps an epoch from {loader.num_samples} samples ({loader.num_left_out} samples left out of "
        f"each epoch by drop), {recipe.epochs} epochs, {recipe.epochs * steps} steps; {labels.shown}; {recipe.how()}"
    )


def epoch_line(entry: dict[str, Any]) -> str:
    """What an epoch came to, in a line: an entry of TrainResult's history."""
    shares = ("semantic_accuracy", "leaf_top1", "top1", "top5", "chance", "tag_top1", "tag_chance")
    shown = [f"{name} {entry[name]:.2%}" for name in shares if entry.get(name) is not None]
    if shown and entry["weights"] == "ema":
        shown[0] = f"averaged weights: {shown[0]}"
    loss = "-" if entry["loss"] is None else f"{entry['loss']:.4f}"
    if entry.get("num_bad"):
        shown.append(f"{entry['num_bad']:,} bad samples left out so far")
    for name in filter(entry.get, WITHOUT_NAMES.values()):
        shown.append(f"{entry[name]:,} samples {name.replace('_', ' ')}")
    return ", ".join([f"epoch {entry['epoch']}: loss {loss}", *shown])


def stop_line(number: int, step: int, total_steps: int, saved_step: int | None) -> str:
    """Why a run ends before its last step, in a line, and where it continues.

    Args:
        number: of the signal.
        step: steps taken.
        total_steps: of the whole run.
        saved_step: the checkpoint's, None where there is none. It is older where the signal lost a batch on its way.
    """
    goes_on = "--resume continues"
    if saved_step is None:
        goes_on = "there is no checkpoint yet, and --resume begins again"
    elif saved_step < step:
        goes_on += f" from the checkpoint of step {saved_step}"
    return f"stopped by signal {number} after {step} of {total_steps} steps; {goes_on}"


def print_to_stderr(line: str) -> None:
    """Say a line where people look for it while results go to standard output."""
    print(line, file=sys.stderr, flush=True)


def say_nothing(_line: str) -> None:
    """What the other ranks say."""
