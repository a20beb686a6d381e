"""`softshard replay`: makes one batch of a run again, and shows it.

A batch is a function of (data set, options, seed, epoch, what was taken before), so that a line of a log is enough.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import simplejpeg

from ..shards.errors import UsageError
from ..shards.html import Figure, Page
from ..shards.jpeg import read_jpeg_header
from ..shards.pictures import draw_box
from ..shards.schema import JPG
from .balance import BALANCE_RULE
from .batch import Batch
from .crops import Augment
from .loader import Loader
from .mixed_shards import MixedShards, all_components
from .order import DEFAULT_WINDOW, rank_slots
from .service_address import is_service
from .source import Source
from .state import STATE_VERSION


def replay(loader: Loader, epoch: int, taken: int) -> Batch:
    """The batch that follows `taken` samples of every lane; the loader stands after it.

    Args:
        loader: with the options of the run, and `last_batch="pad"` so that an epoch's last batch is there, too.
        epoch: number of the epoch.
        taken: samples that every lane gave before: step x global batch / lanes.

    Raises:
        UsageError: the epoch has ended by then.
    """
    longest = -(-loader.num_samples // loader.lanes)
    if not 0 <= taken < longest:
        per_lane = loader.global_batch // loader.lanes
        raise UsageError(
            f"replay: expected a step from 0 to {(longest - 1) // per_lane} of {loader.num_samples:,} samples, found "
            f"{taken / per_lane:g}"
        )
    loader.load_state_dict(loader.state_dict() | {"epoch": epoch, "taken": taken})
    return next(iter(loader))


def replay_command(loader: Loader, epoch: int, step: int, labels: str | None = None) -> str | None:
    """What to type to see a global batch of a loader again.

    Args:
        loader: whose batch it was.
        epoch: of the batch.
        step: of the batch, counted from the epoch's beginning with this global batch.
        labels: file of the labels that the loader was given.

    Returns:
        A command; None where the loader's options cannot be typed (subsets, mixtures, labels without a file, servers):
        there `replay` does it in Python.
    """
    state = loader.state_dict()
    if state["subset"] or state["mixture"] or (state["labels"] and labels is None):
        return None
    if is_service(loader.dataset):
        return None  # `replay` reads the data set itself
    augment = loader.augment
    words = ["softshard", "replay", loader.dataset, "--epoch", epoch, "--step", step, "--seed", loader.seed]
    words += ["--batch-size", loader.global_batch]
    words += ["--lanes", loader.lanes] if loader.lanes != 1 else []
    words += ["--window", loader.window] if loader.window != DEFAULT_WINDOW else []
    words += [] if loader.shuffle else ["--no-shuffle"]
    words += ["--balance", loader.balance] if loader.balance is not None else []
    words += ["--labels", labels] if labels is not None else []
    words += ["--size", augment.size] if augment.size != Augment.size else []
    if augment.scale is None:
        words += ["--whole-image"]
    elif augment.scale != Augment.scale:
        words += ["--scale", *augment.scale]
    words += [] if augment.flip else ["--no-flip"]
    return shlex.join(map(str, words))


def state_options(state: dict[str, Any]) -> dict[str, Any]:
    """What a saved state says of the loader it was saved by, as options of a Loader.

    Raises:
        UsageError: the state is of another version, or of a loader whose options it names by fingerprint only.
    """
    if state.get("version") != STATE_VERSION:
        raise UsageError(
            f"replay: expected a state of version {STATE_VERSION}, found {state.get('version')!r}"
        )
    given = [name for name in ("labels", "subset", "mixture") if state.get(name) is not None]
    if given:
        raise UsageError(
            f"replay: expected a state of a loader with the data set's own samples and labels, found {', '.join(given)}, "
            "of which a state holds fingerprints only. Build the loader as it was and call replay(loader, epoch, taken)"
        )
    if state.get("balance") is not None and state.get("balance_rule") != BALANCE_RULE:
        raise UsageError(
            f"replay: expected a balanced state of the rule {BALANCE_RULE!r}, found {state.get('balance_rule')!r}: an "
            "earlier version drew other samples. Replay it with that version"
        )
    names = ("seed", "lanes", "window", "shuffle", "balance")
    return {name: state[name] for name in names} | {"batch_size": state["global_batch"]}


def describe(batch: Batch, class_names: tuple[str, ...]) -> list[dict[str, Any]]:
    """The batch slot by slot, JSON-ready: key, class, crop (x0, y0, x1, y1 in fractions), flip; None in empty slots."""
    rows = []
    for slot in range(len(batch)):
        index = int(batch.classes[slot])  # -1 in somebody else's tars without classes
        real = bool(batch.valid[slot])
        rows.append(
            {
                "slot": slot,
                "key": batch.keys[slot] or None,
                "class": index if real else None,
                "class_name": (class_names[index] if index >= 0 else "no class") if real else None,
                "crop_xyxy": [round(float(edge), 4) for edge in batch.crops[slot]] if real else None,
                "flip": bool(batch.flips[slot]) if real else None,
            }
        )
    return rows


def format_rows(rows: list[dict[str, Any]]) -> str:
    """The slots as text for a terminal."""
    width = max((len(row["key"] or "") for row in rows), default=0)
    lines = []
    for row in rows:
        if row["key"] is None:
            lines.append(f"  {row['slot']:4}  (empty)")
            continue
        crop = " ".join(f"{edge:.4f}" for edge in row["crop_xyxy"])
        flip = "flipped" if row["flip"] else ""
        lines.append(
            f"  {row['slot']:4}  {row['key']:{width}}  {crop}  {row['class']:5} {row['class_name']}  {flip}"
        )
    return "\n".join(line.rstrip() for line in lines)


def replay_page(
    loader: Loader,
    batch: Batch,
    rows: list[dict[str, Any]],
    *,
    epoch: int,
    taken: int,
    title: str,
    command: str,
) -> Page:
    """A page with the stored image, its crop drawn in, and what was cut, for every slot.

    Args:
        loader: that made the batch.
        batch: uint8 images.
        rows: what `describe` says of it.
        epoch: of the batch.
        taken: samples that every lane gave before it.
        title: of the page.
        command: that makes the batch again.
    """
    page = Page(title)
    page.command(command)
    images = stored_images(loader, epoch, taken)
    figures = []
    for row, stored in zip(rows, images, strict=True):
        if stored is not None and row["crop_xyxy"] is not None:
            cut = np.ascontiguousarray(batch.images[row["slot"]].permute(1, 2, 0).numpy())
            x0, y0, x1, y1 = row["crop_xyxy"]
            flip = ", flipped" if row["flip"] else ""
            caption = f"{row['slot']}: {row['key']}, {row['class_name']}{flip}"
            figures.append(Figure([draw_box(stored, (x0, y0, x1, y1)), cut], caption))
    page.figures(figures)
    return page


def stored_images(loader: Loader, epoch: int, taken: int) -> Iterator[np.ndarray | None]:
    """The stored image of every slot of a batch of this loader's rank.

    Yields:
        uint8 [H, W, 3]; None for empty slots, and where it cannot be read.
    """
    return _stored_images(loader.source.parts, batch_samples(loader, epoch, taken))


def batch_samples(loader: Loader, epoch: int, taken: int) -> np.ndarray:
    """int64 [N], the samples of the batch that follows `taken` samples of every lane; -1 in empty slots."""
    order = loader.source.order(
        loader.seed, epoch, num_lanes=loader.lanes, window=loader.window, shuffle=loader.shuffle
    )
    return rank_slots(order, loader.global_batch, taken, loader.rank, loader.world_size).samples


def _stored_images(sources: Sequence[Source], samples: np.ndarray) -> Iterator[np.ndarray | None]:
    """uint8 [H, W, 3] of each sample; None for empty slots, and where it cannot be read."""
    records = [record for source in sources for record in source.manifest.shards]
    starts = np.cumsum([0, *(record.samples for record in records)])
    shards = MixedShards(sources)
    column = all_components(sources).index(JPG.suffix)
    numbers = (np.searchsorted(starts, samples, side="right") - 1).tolist()
    shards.expect(lambda: ([number] if number >= 0 else [] for number in numbers))
    for step, (sample, number) in enumerate(zip(samples.tolist(), numbers, strict=True)):
        if sample < 0:
            yield None
            continue
        shards.reached(step)
        jpeg = shards[number].member(sample - int(starts[number]), column)
        try:
            read_jpeg_header(jpeg)  # its limits come first
            yield simplejpeg.decode_jpeg(jpeg, "RGB")
        except ValueError:
            yield None
    shards.close()
