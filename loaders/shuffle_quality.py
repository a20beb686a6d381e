"""How well an epoch is shuffled: how far samples move, and how mixed the classes of a batch are. Pure; no torch in here."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from ..shards.errors import UsageError
from ..shards.manifest import Manifest, load_sidecar
from ..shards.philox import PURPOSE_SHUFFLE, permutation
from .order import EpochOrder, num_steps, rank_slots

DEFAULT_STEPS = 200


def shuffle_quality(
    dataset: str | Path,
    *,
    global_batch: int,
    window: int,
    num_lanes: int,
    seed: int = 0,
    epoch: int = 0,
    max_steps: int = DEFAULT_STEPS,
) -> dict[str, Any]:
    """Measure the order of an epoch against no shuffle and a full one. Reads the manifest and the classes, no shard.

    Args:
        dataset: folder or fsspec URL of a data set.
        global_batch: G, samples of a step over all ranks.
        window: W of the loader.
        num_lanes: K.
        seed: of the order.
        epoch: of the order.
        max_steps: batches, spread over the epoch, whose classes are looked at.

    Returns:
        A JSON-ready dict. `moved`: mean distance between a sample's place in the epoch and its place in the data set,
        as a share of a full shuffle's, which is N/3; 1 is as far, 0 not at all. `class_entropy_bits`: of a batch's
        classes, the mean over batches, for the loader's order, a full shuffle and none.

    Raises:
        UsageError: a batch that is larger than the data set, or that the lanes do not divide.
        DataError: the data set's manifest or classes are missing or damaged.
    """
    manifest = Manifest.load(dataset)
    num = manifest.num_samples
    if global_batch < 1 or num_lanes < 1 or global_batch % num_lanes or num < global_batch:
        raise UsageError(
            f"{dataset}: expected a batch of 1 to {num:,} samples that the lanes divide, found {global_batch:,} and "
            f"{num_lanes} lanes"
        )
    classes = load_sidecar(dataset, manifest)
    counts = np.array([shard.samples for shard in manifest.shards], np.int64)
    order = EpochOrder(counts, seed, epoch, num_lanes, window)
    full = permutation(seed, PURPOSE_SHUFFLE, epoch, 0, num)
    steps = num_steps(num, num_lanes, global_batch, 0, "drop")
    looked_at = np.unique(np.linspace(0, steps - 1, min(steps, max_steps)).astype(int)).tolist()
    batches = [
        rank_slots(order, global_batch, s * global_batch // num_lanes, 0, 1).samples for s in looked_at
    ]
    spans = [slice(s * global_batch, (s + 1) * global_batch) for s in looked_at]
    return {
        "dataset": manifest.name,
        "samples": num,
        "shards": len(counts),
        "global_batch": global_batch,
        "window": window,
        "lanes": num_lanes,
        "seed": seed,
        "epoch": epoch,
        "batches_looked_at": len(looked_at),
        "moved": mean_move(order),
        "class_entropy_bits": {
            "loader": round(float(np.mean([entropy_bits(classes[batch]) for batch in batches])), 3),
            "full shuffle": round(float(np.mean([entropy_bits(classes[full[span]]) for span in spans])), 3),
            "no shuffle": round(float(np.mean([entropy_bits(classes[span]) for span in spans])), 3),
        },
    }


def mean_move(order: EpochOrder) -> float:
    """Mean distance of samples from their places in the data set, divided by a full shuffle's N/3.

    A lane's draw number p is served when p / (samples of the lane) of the epoch is over.
    """
    num, total = order.num_samples, 0.0
    for lane in range(order.num_lanes):
        first, last = order.lane_bounds(lane)
        for start in range(0, last - first, order.window):
            samples = order.lane_draws(lane, start, start + order.window).samples
            served_at = (start + np.arange(len(samples))) * (num / (last - first))
            total += float(np.abs(samples - served_at).sum())
    return round(total / num / (num / 3), 3)


def entropy_bits(classes: np.ndarray) -> float:
    """Shannon entropy of the classes of a batch, in bits: 0 where all are the same."""
    _, counts = np.unique(classes, return_counts=True)
    shares = counts / counts.sum()
    return float(-(shares * np.log2(shares)).sum()) + 0.0


def format_quality(result: dict[str, Any]) -> str:
    """The measurement as text for a terminal."""
    entropy = result["class_entropy_bits"]
    return "\n".join(
        [
            f"{result['dataset']}: the order of an epoch of {result['samples']:,} samples in {result['shards']:,} shards; "
            f"global batch {result['global_batch']:,}, window {result['window']:,}, lanes {result['lanes']}, seed "
            f"{result['seed']}, epoch {result['epoch']}",
            f"  samples move    {result['moved']:.1%} as far as in a full shuffle",
            f"  class entropy   {entropy['loader']} bits a batch; a full shuffle has {entropy['full shuffle']}, none "
            f"{entropy['no shuffle']} (mean of {result['batches_looked_at']} batches)",
        ]
    )
