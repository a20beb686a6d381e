"""Which ceiling a loader is nearest to, and the one setting to change: `softshard bench`'s last line.

A loader that makes more than 1.1 of what its slowest part makes alone was not measured well: something else ran meanwhile,
and nothing is advised. Otherwise the rule is, in this order:

1. A loader below 0.6 of what its parts reach one after the other on the same threads is held up by none of them:
   by storage where it waits for that longest (a smaller window, or more ahead), by small batches below 64, and else by
   a queue too short (prefetch).
2. Otherwise the slowest part decides:
   fetch       Cache(num_fetchers)
   read        cache: a copy on a faster disk
   crops       num_threads where cores are left; the stored size where it is above 1.3 of the crops'; device where there is a
               GPU; otherwise nothing but more cores
   resample    num_threads where cores are left; the stored size; dtype uint8, normalised on the GPU, for floats
   labels      batch_size below 64; otherwise nothing
   pool        num_threads where cores are left; otherwise nothing
   copy        dtype: a smaller one
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

FAR_BELOW = 0.6
NOISE = 1.1  # of the slowest part: more cannot be
SMALL_BATCH = 64
LARGE_SIDE = 1.3  # stored side by crop side

# What each ceiling is, in the sentence.
WORDS = {
    "fetch": "fetching shards",
    "read": "reading the samples' bytes",
    "labels": "reading labels",
    "crops": "decoding the crops",
    "resample": "resampling",
    "pool": "label pooling",
    "copy": "copying the images",
}


@dataclass(frozen=True)
class Situation:
    """What was measured, and with which options.

    Attributes:
        loader: images per second.
        ceilings: images per second of the loader's parts, by the names of WORDS.
        longest_stage: of `loader.stats()`, as STAGE_WORDS says it.
        num_threads: of the loader.
        cores: that this process may use.
        batch_size: N.
        dtype: of the images.
        size: S, pixels of the batch's images.
        stored_side: pixels of the stored images, on average.
        prefetch: batches that may wait in the queue.
        num_fetchers: shards that are fetched at a time.
        other_gpu: whether there is a GPU that the loader does not use.
    """

    loader: float
    ceilings: Mapping[str, float]
    longest_stage: str
    num_threads: int
    cores: int
    batch_size: int
    dtype: str
    size: int
    stored_side: int
    prefetch: int = 2
    num_fetchers: int = 8
    other_gpu: bool = False

    @property
    def together(self) -> float:
        """Images per second of the loader's parts one after the other; fetching runs beside them."""
        parts = [rate for name, rate in self.ceilings.items() if name not in ("fetch", "copy")]
        return min(1 / sum(1 / rate for rate in parts), self.ceilings.get("fetch", float("inf")))


@dataclass(frozen=True)
class Verdict:
    """What bounds a loader.

    Attributes:
        nearest: the slowest of its parts, one of WORDS.
        setting: the option to change; None where there is none left.
        text: both in a sentence, with the numbers.
    """

    nearest: str
    setting: str | None
    text: str


def judge(found: Situation) -> Verdict:
    """Name the nearest ceiling and the setting to change; see the top of the file for the rule."""
    nearest = min(found.ceilings, key=lambda name: found.ceilings[name])
    rate, share = found.ceilings[nearest], found.loader / found.together
    if found.loader > NOISE * rate:
        return Verdict(
            nearest,
            None,
            f"The loader makes {found.loader:,.0f} images/s and {WORDS[nearest]} alone {rate:,.0f}, which cannot be: "
            "something else ran on the machine, or the rounds are too short. Measure again on a quiet machine, with "
            "more --steps and --repeats",
        )
    far = share < FAR_BELOW
    setting, change = _held_up(found) if far else _slowest(found, nearest)
    together = f"{found.together:,.0f}; the loader reaches {share:.2f} of that"
    text = (
        f"The nearest ceiling is {WORDS[nearest]}: {rate:,.0f} images/s, of which the loader makes {found.loader:,.0f}. "
        f"One after the other on {found.num_threads} threads its parts make about {together}"
        f"{', so that none of them is what holds it up' if far else ''}. {change}"
    )
    return Verdict(nearest, setting, text)


def _held_up(found: Situation) -> tuple[str, str]:
    if found.longest_stage == "storage":
        return "window", (
            "It waits for storage longest. Change window: a smaller one needs fewer shards at a time "
            "(or Cache(ahead=...): fetch more of them ahead)"
        )
    if found.batch_size < SMALL_BATCH:
        return "batch_size", f"Change batch_size: {found.batch_size} -> {SMALL_BATCH} or more"
    return (
        "prefetch",
        f"Change prefetch: {found.prefetch} -> {2 * found.prefetch}, if nothing else uses the machine",
    )


def _slowest(found: Situation, nearest: str) -> tuple[str | None, str]:
    """The setting that raises a ceiling, and the sentence."""
    spare = found.cores > found.num_threads
    more_threads = (
        "num_threads",
        f"Change num_threads: {found.num_threads} -> {found.cores}, the cores that this process may use",
    )
    large = found.stored_side > LARGE_SIDE * found.size
    smaller = (
        "stored size",
        (
            f"Change the stored size: the images have {found.stored_side} pixels a side, the crops {found.size}. "
            f"Pack them with --size {round(LARGE_SIDE * found.size)} or less"
        ),
    )
    none = None, "No setting raises it: that takes more or faster cores"
    match nearest:
        case "fetch":
            return (
                "num_fetchers",
                (
                    f"Change Cache(num_fetchers): {found.num_fetchers} -> {2 * found.num_fetchers}; epochs that find their "
                    "shards in the cache are not bound by it"
                ),
            )
        case "read":
            return "cache", "Change where the data lie: a folder, or Cache(folder=...), on a faster disk"
        case "crops" if not spare and not large and found.other_gpu:
            return "device", "Change device: cpu -> cuda, which decodes on the GPU"
        case "resample" if not spare and not large and found.dtype != "uint8":
            return "dtype", f"Change dtype: {found.dtype} -> uint8, and normalise on the GPU"
        case "crops" | "resample" | "pool" if spare:
            return more_threads
        case "crops" | "resample" if large:
            return smaller
        case "labels" if found.batch_size < SMALL_BATCH:
            return "batch_size", f"Change batch_size: {found.batch_size} -> {SMALL_BATCH} or more"
        case "copy" if found.dtype != "uint8":
            less = "float16" if found.dtype == "float32" else "uint8"
            return "dtype", f"Change dtype: {found.dtype} -> {less}"
    return none
