"""What augmentation makes of one batch: every slot's stored image with its window, what the model gets, its target."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from ..shards.errors import UsageError
from ..shards.figures import Figure
from ..shards.html import Page
from ..shards.pictures import draw_box
from .batch import Batch
from .faults import Faults
from .inspect_figures import DRAWN_PX, ClassNames, shrunk
from .inspect_links import Places
from .inspect_views import InspectOptions
from .loader import Loader
from .order import DEFAULT_WINDOW
from .replay import batch_samples, describe, replay, replay_command, stored_images

MAX_SLOTS = 32  # that are made, and shown, at a time
MAX_GLOBAL_BATCH = 2**20


@dataclass(frozen=True)
class Step:
    """One batch of a run.

    Attributes:
        epoch: number of the epoch.
        step: of the epoch.
        batch_size: G, samples of the global batch.
        lanes: K, as the run's loader had them.
        window: W, as the run's loader had it.
        part: which slots are shown: the batch is made in parts of `slots`.

    Raises:
        UsageError: numbers out of range.
    """

    epoch: int = 0
    step: int = 0
    batch_size: int = 32
    lanes: int = 1
    window: int = DEFAULT_WINDOW
    part: int = 0

    def __post_init__(self) -> None:
        if not 1 <= self.batch_size <= MAX_GLOBAL_BATCH:
            raise UsageError(
                f"inspect: expected a global batch of 1 to {MAX_GLOBAL_BATCH:,}, found {self.batch_size:,}"
            )
        if self.lanes < 1 or self.batch_size % self.lanes:
            raise UsageError(
                f"inspect: expected lanes that divide the global batch {self.batch_size:,}, found {self.lanes:,}"
            )
        if not 0 <= self.part < self.num_parts:
            raise UsageError(f"inspect: expected a part from 0 to {self.num_parts - 1}, found {self.part}")

    @property
    def slots(self) -> int:
        """Slots of a part: as many as divide the batch, even ones where that is possible, since pairs are mixed."""
        divisors = [n for n in range(1, MAX_SLOTS + 1) if self.batch_size % n == 0]
        return next((n for n in reversed(divisors) if n % 2 == 0), divisors[-1])

    @property
    def num_parts(self) -> int:
        return self.batch_size // self.slots


def add_step(
    page: Page,
    dataset: str | Path,
    options: InspectOptions,
    targets: str,
    asked: Step,
    names: ClassNames,
    *,
    top: int,
    places: Places,
) -> None:
    """Add the pictures of one part of a batch, made by a Loader as a run would make them.

    Args:
        page: that they are added to.
        dataset: as the Loader's.
        options: seed, augmentation, side shards.
        targets: target mode; `none` becomes `original` where images are mixed.
        asked: which batch.
        names: of classes.
        top: classes of every target.
        places: links.

    Raises:
        UsageError: no such step; options that do not fit the data set.
        DataError: a shard cannot be had.
    """
    augment = options.augment
    if augment.mixes and targets == "none":
        targets = "original"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about somebody else's tars: said when they were opened first
        loader = Loader(
            dataset,
            batch_size=asked.slots,
            rank=asked.part,
            world_size=asked.num_parts,
            lanes=asked.lanes,
            window=asked.window,
            targets=targets,
            side=options.side,
            augment=augment,
            dtype="uint8",
            last_batch="pad",
            seed=options.seed,
            num_threads=1,
            prefetch=1,
            num_epochs=1,
            faults=Faults(max_bad=1.0),
        )
    with loader:
        taken = asked.step * loader.global_batch // loader.lanes
        batch = replay(loader, asked.epoch, taken)
        command = replay_command(loader, asked.epoch, asked.step)
        if command is not None and not (augment.mixes or augment.changes_pixels):
            page.command(command)
        figures = _figures(loader, batch, asked, taken, names, top, places)
    page.figures(figures, card_rem=20)


def _figures(
    loader: Loader, batch: Batch, asked: Step, taken: int, names: ClassNames, top: int, places: Places
) -> list[Figure]:
    first = asked.part * asked.slots
    samples = batch_samples(loader, asked.epoch, taken).tolist()
    figures = []
    rows = describe(batch, loader.class_names)
    images = list(stored_images(loader, asked.epoch, taken))
    for row, number, stored in zip(rows, samples, images, strict=True):
        slot = row["slot"]
        if number < 0:
            continue
        href = places.address_of_sample(number)
        if row["crop_xyxy"] is None:
            text = f"Slot {first + slot}: its sample cannot be read; {row['key']} takes its place, marked as not valid"
            figures.append(Figure([], text, href=href))
            continue
        cut = np.ascontiguousarray(batch.images[slot].permute(1, 2, 0).numpy())
        label = names.short(row["class"]) if row["class"] >= 0 else "no class"
        caption = f"Slot {first + slot}: {row['key']}, {label}"
        caption += ", mirrored" if row["flip"] else ""
        caption += _mix_text(batch, slot, first)
        pictures = [cut]
        if stored is None:
            caption += "; the stored image is damaged, of which the decoder made what it could"
        else:
            x0, y0, x1, y1 = row["crop_xyxy"]
            pictures = [draw_box(_as_drawn(stored), (x0, y0, x1, y1)), cut]
        bars, own = _bars(batch, slot, row["class"], names, top)
        figures.append(Figure(pictures, caption, bars, own, href))
    return figures


def _as_drawn(image: np.ndarray) -> np.ndarray:
    """The image at the size that boxes are drawn on; the pixels of a tiny one stay squares."""
    height, width = image.shape[:2]
    scale = DRAWN_PX / max(height, width)
    if scale <= 1:
        return shrunk(image, DRAWN_PX)
    size = max(1, round(width * scale)), max(1, round(height * scale))
    return cv2.resize(image, size, interpolation=cv2.INTER_NEAREST)


def _mix_text(batch: Batch, slot: int, first: int) -> str:
    if batch.mix is None or int(batch.mix.partners[slot]) == slot:
        return ""
    partner, share = first + int(batch.mix.partners[slot]), float(batch.mix.shares[slot])
    if int(batch.mix.boxes[slot, 2]) > 0:
        return f"; CutMix with slot {partner}, {share:.0%} of it its own"
    return f"; Mixup with slot {partner}, {share:.0%} of it its own"


def _bars(
    batch: Batch, slot: int, class_index: int, names: ClassNames, top: int
) -> tuple[list[tuple[str, float]], int | None]:
    """The largest entries of a slot's target, and the place of its own class among them."""
    if batch.targets is None:
        return [], None
    target = np.asarray(batch.targets[slot])  # dense: no `keep_targets`
    best = [index for index in np.argsort(-target, kind="stable")[:top].tolist() if target[index] > 0]
    own = best.index(class_index) if not names.tags and class_index in best else None
    return [(names.of_target(index), float(target[index])) for index in best], own


def even_batch(num_samples: int) -> int:
    """A batch to begin with: as many as fit a page, or fewer in a small data set."""
    return max(2, min(MAX_SLOTS, num_samples - num_samples % 2))
