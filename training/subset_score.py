"""`softshard subset score`: how hard every image of a data set is, from a model that did not train on it (Gao 2021).

    keys -> two halves, equal within every class -> a model trained on each -> the probability that it gives the right
    class of every image of the other half -> scores.jsonl

The models begin without anybody's weights: those might have seen the images. A run that was killed continues.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..loaders.faults import Faults
from ..loaders.labels import Labels, LabelSource, load_labels
from ..loaders.subset import Subset
from ..shards.errors import DataError, UsageError
from ..shards.files import TEMPORARY_SUFFIX, hold_folder, replace_durably, write_atomically
from ..shards.manifest import Manifest, check_sidecar, load_sidecar, load_tree
from ..shards.philox import check_seed
from ..shards.score_file import parse_score, score_header, score_line
from ..shards.shard_files import dataset_path
from ..shards.shard_keys import each_shards_keys
from ..shards.storage import public_name
from ..shards.text_limits import some
from .checkpoint import Checkpoint
from .evaluate import model_outputs, open_checkpoint
from .recipes import Recipe
from .results import BAD_NAME, TrainResult
from .run_series import SeriesRun, any_checkpoint, settle_folder, train_series

PLAN_NAME = "scores.json"

_LAST_LINE = re.compile(r'\{"scores": ([0-9]{1,18})\}\n')


@dataclass(frozen=True)
class ScoreResult:
    """What scoring came to.

    Attributes:
        path: the file of scores, or None where a signal stopped the run.
        samples: images scored.
        mean_probability: of the right class, over all images; None where the run was stopped.
        stopped_by: number of the signal that stopped it, or None.
        skipped: images without a score, since they cannot be read; `bad_samples.jsonl` in the folder of runs says why.
    """

    path: Path | None
    samples: int
    mean_probability: float | None
    stopped_by: int | None
    skipped: int = 0


def split_halves(keys: Sequence[str], classes: np.ndarray, seed: int) -> np.ndarray:
    """Two halves of a data set, equal within every class to one image.

    Of every class half 0 has the keys with the smaller SHA-256 of seed and key; which half an odd image goes to is drawn
    for the class. So the order of the images makes no difference, and one that is added moves at most one other.

    Args:
        keys: N distinct keys.
        classes: integer [N].
        seed: of the hashes.

    Returns:
        uint8 [N], 0 or 1.
    """
    hashes = np.array(
        [hashlib.sha256(f"{seed} {key}".encode("utf-8", "surrogateescape")).digest() for key in keys], "S32"
    )
    order = np.lexsort((hashes, classes))
    values, first, counts = np.unique(classes[order], return_index=True, return_counts=True)
    halves = np.ones(len(keys), np.uint8)
    for value, start, count in zip(values.tolist(), first.tolist(), counts.tolist(), strict=True):
        odd = hashlib.sha256(f"{seed} class {value}".encode()).digest()[0] % 2
        halves[order[start : start + count // 2 + count % 2 * odd]] = 0
    return halves


def score_data_set(
    dataset: str,
    out: str | Path,
    *,
    recipe: Recipe,
    model: str,
    labels: str | Path | LabelSource | None = None,
    seed: int = 0,
    runs: str | Path | None = None,
    batch_size: int = 256,
    device: str = "cpu",
    num_threads: int | None = None,
    progress: bool = False,
    log: Callable[[str], None] | None = None,
) -> ScoreResult:
    """Train on each half of a data set and score the other.

    On a CPU the same call gives the same file; a GPU's sums differ in their last digits from run to run.

    Args:
        dataset: a local folder or any fsspec URL.
        out: the file of scores to write (see score_file.py).
        recipe: of one softmax over all classes, without a teacher: `single_label()`, say.
        model: timm's name of the architecture.
        labels: read the data set with these instead of its own, as in `train`, such as groups of classes. The halves are
            then equal within these, scores are of these, and images of other classes have none; the header's `labels` is
            their fingerprint.
        seed: of the halves, and of both trainings.
        runs: a folder for both trainings; by default beside `out`, with `.runs` behind its name. The same call
            continues there.
        batch_size: images a step when they are scored; it does not change the scores.
        device: as in `train`.
        num_threads: the loader's.
        progress: show a progress bar on standard error while images are scored.
        log: gets the lines of both trainings.

    Returns:
        Where the scores are, or which signal stopped the run.

    Raises:
        UsageError: a recipe whose model cannot be asked, a class with one image alone, or a folder with another call's
            runs.
        DataError: see `train`; or a checkpoint that was not trained on the other half.
    """
    check_seed(seed)
    if recipe.loss != "single-label" or recipe.distill != "none":
        raise UsageError(
            f"subset score: expected a recipe of single labels without a teacher, who may know the images, found "
            f"{recipe.name!r} with the loss {recipe.loss!r} and distill {recipe.distill!r}. Use single-label"
        )
    target = Path(out)
    folder = Path(f"{out}.runs") if runs is None else Path(runs)
    place = dataset_path(dataset)
    manifest = Manifest.load(place)
    check_sidecar(place, manifest)
    read_with = load_labels(labels)
    own = Labels.of(manifest, load_tree(place, manifest), read_with)
    classes = np.asarray(load_sidecar(place, manifest))
    classes = classes if own.class_map is None else own.class_map[classes]
    every_key = (key for part in each_shards_keys(place, manifest) for key in part)
    kept_keys = (key for key, kept in zip(every_key, classes >= 0, strict=True) if kept)
    keys = [key.decode("utf-8", "surrogateescape") for key in kept_keys]
    halves = _checked_halves(dataset, own.class_names, keys, classes[classes >= 0], seed)
    header = score_header(
        dataset=public_name(str(dataset)),
        fingerprint=manifest.fingerprint,
        seed=seed,
        model=model,
        recipe=asdict(recipe),
        labels=own.fingerprint,
        samples=len(keys),
        half_samples=np.bincount(halves, minlength=2).tolist(),
    )
    folder.mkdir(parents=True, exist_ok=True)
    target.parent.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        stack.enter_context(hold_folder(folder))
        # Scores are gone on with, too: whoever wants the space back deletes the checkpoints, and keeps them.
        begun = any_checkpoint(folder) or any(_scores_file(folder, half).exists() for half in (0, 1))
        settle_folder(folder / PLAN_NAME, header, "--runs", begun=begun, may_differ="dataset")
        for half in (0, 1):
            text = "".join(f"{keys[i]}\n" for i in np.flatnonzero(halves == half).tolist())
            write_atomically(_keys_file(folder, half), text.encode("utf-8", "surrogateescape"))

        def score_other(run: SeriesRun, trained: TrainResult) -> None:
            half = 1 - int(run.name[-1])
            if not _scores_file(folder, half).exists():
                _score_half(
                    trained.checkpoint,
                    dataset,
                    folder,
                    half,
                    labels=read_with,
                    batch_size=batch_size,
                    device=device,
                    num_threads=num_threads,
                    progress=progress,
                )

        options = {
            "model": model,
            "labels": read_with,
            "seed": seed,
            "device": device,
            "num_threads": num_threads,
        }
        series = [
            SeriesRun(
                f"half-{half}", recipe, dataset, options | {"subset": Subset(keys=_keys_file(folder, half))}
            )
            for half in (0, 1)
        ]
        stopped_by = train_series(series, folder, finished=score_other, log=log)
        if stopped_by is not None:
            return ScoreResult(None, 0, None, stopped_by)
        num_scored, mean = _join(folder, target, header, keys, halves)
    return ScoreResult(target, num_scored, mean, None, skipped=len(keys) - num_scored)


def _checked_halves(
    dataset: str, class_names: Sequence[str], keys: list[str], classes: np.ndarray, seed: int
) -> np.ndarray:
    if len(set(keys)) < len(keys):
        raise DataError(
            f"{public_name(dataset)}: expected distinct keys, found {len(keys) - len(set(keys)):,} a second time: their "
            "images could be in both halves. Run: softshard verify"
        )
    counts = np.bincount(classes, minlength=len(class_names))
    if single := [class_names[i] for i in np.flatnonzero(counts == 1).tolist()]:
        raise UsageError(
            f"{public_name(dataset)}: expected two images or more of each class, one for each half, found one of "
            f"{some(single)}. Leave these classes out, or group them: --labels"
        )
    return split_halves(keys, classes, seed)


def _score_half(
    checkpoint: Path,
    dataset: str,
    folder: Path,
    half: int,
    *,
    labels: LabelSource | None,
    batch_size: int,
    device: str,
    num_threads: int | None,
    progress: bool,
) -> None:
    """Write the scores of one half, in the data set's order, and their number; images that cannot be read go to a file of
    their own."""
    scored, trained = (Subset(keys=_keys_file(folder, each)) for each in (half, 1 - half))
    path = _scores_file(folder, half)
    temporary = path.with_name(path.name + TEMPORARY_SUFFIX)
    opened = open_checkpoint(
        checkpoint,
        dataset,
        labels=labels,
        subset=scored,
        batch_size=batch_size,
        device=device,
        num_threads=num_threads,
        faults=Faults(quarantine=folder / BAD_NAME),
    )
    with opened as (saved, network, loader), open(temporary, "w", encoding="utf-8") as file:
        refuse_trained_on(saved, checkpoint, trained=trained, scored=scored)
        outputs = model_outputs(network, loader, normalise=saved.recipe.normalise, progress=progress)
        num_scored = 0
        for batch, logits in outputs:
            # Not padding, nor what stands in for an image that cannot be read.
            valid = batch.valid.to(logits.device)
            classes = batch.classes.to(logits.device)[valid]
            right = logits[valid].double().softmax(dim=1).gather(1, classes[:, None])[:, 0]
            keys = [key for key, own in zip(batch.keys, batch.valid.tolist(), strict=True) if own]
            if wrong := [i for i, finite in enumerate(right.isfinite().tolist()) if not finite]:
                raise DataError(
                    f"{checkpoint}: expected a finite probability for {keys[wrong[0]]!r}, found "
                    f"{float(right[wrong[0]])}; the model's weights or outputs are not finite. Remove {checkpoint.parent} "
                    "and score again, with a lower learning rate"
                )
            rows = zip(keys, classes.tolist(), right.tolist(), strict=True)
            file.writelines(score_line(key, index, probability, half) for key, index, probability in rows)
            num_scored += len(keys)
        file.write(_last_line(num_scored))
    replace_durably(temporary, path)


def refuse_trained_on(saved: Checkpoint, path: Path, *, trained: Subset, scored: Subset) -> None:
    """Make sure that a checkpoint was trained on one part of a data set and that another part shares no image with it.

    Args:
        saved: the checkpoint.
        path: its file, for messages.
        trained: keys that it should have been trained on.
        scored: keys that it is to score.

    Raises:
        DataError: it was trained on other images, or on images that it is to score.
    """
    found = saved.loader["subset"]
    if found != trained.to_json():
        said = "all images" if found is None else "other images"
        raise DataError(
            f"{path}: expected a model that was trained on one half alone, found one that was trained on {said}; its scores "
            "would be of images that it knows. Remove its folder, and run softshard subset score again"
        )
    both = (trained.key_set or frozenset()) & (scored.key_set or frozenset())
    if both or scored.key_set is None:
        raise DataError(
            f"{path}: expected to score images that the model was not trained on, found {len(both):,} that it was, such "
            f"as {min(both, default='all')!r}"
        )


def _join(
    folder: Path, target: Path, header: dict[str, Any], keys: list[str], halves: np.ndarray
) -> tuple[int, float]:
    """Write the file of scores: both halves', in the data set's order.

    Returns:
        Images that have one, which bad ones have not, and the mean probability.
    """
    temporary = target.with_name(target.name + TEMPORARY_SUFFIX)
    total = 0.0
    num_scored = 0
    for half in (0, 1):
        with open(_scores_file(folder, half), "rb") as file:
            num_scored += sum(1 for _ in file) - 1  # without the last, which `_scores_of` checks
    with open(temporary, "w", encoding="utf-8") as file:
        parts = [_scores_of(folder, half) for half in (0, 1)]
        file.write(json.dumps(header | {"samples": num_scored, "skipped": len(keys) - num_scored}) + "\n")
        waiting = [next(part, None) for part in parts]
        for key, half in zip(keys, halves.tolist(), strict=True):
            score = waiting[half]
            if score is None or score["key"] != key:
                continue
            total += score["probability"]
            file.write(score_line(key, score["class"], score["probability"], half))
            waiting[half] = next(parts[half], None)
        for half, score in enumerate(waiting):
            if score is not None:
                raise _damaged(folder, half, f"one of {score['key']!r} that is not")
    replace_durably(temporary, target)
    return num_scored, total / max(1, num_scored)


def _scores_of(folder: Path, half: int) -> Iterator[dict[str, Any]]:
    """The scores of one half, as `_score_half` wrote them.

    Raises:
        DataError: the file was damaged since.
    """
    with open(_scores_file(folder, half), encoding="utf-8", errors="replace") as file:
        for number, line in enumerate(file, 1):
            if said := _LAST_LINE.fullmatch(line):
                if int(said[1]) != number - 1:
                    raise _damaged(folder, half, f"a last line that says {said[1]} scores after {number - 1}")
                if next(file, None) is not None:
                    raise _damaged(folder, half, f"more after line {number}, which is the last")
                return
            try:
                score = parse_score(line)
            except DataError as error:
                raise _damaged(folder, half, f"line {number}: {error}") from error
            if score["half"] != half:
                raise _damaged(folder, half, f"line {number}: one of the other half")
            yield score
    raise _damaged(
        folder, half, "no last line with their number: it was cut short, or an earlier version wrote it"
    )


def _last_line(num_scored: int) -> str:
    """Of the scores of a half: one that was cut short would else leave out images like those that cannot be read."""
    return json.dumps({"scores": num_scored}) + "\n"


def _damaged(folder: Path, half: int, found: str) -> DataError:
    return DataError(
        f"{_scores_file(folder, half)}: expected scores of the half's images in their order, found {found}. Remove that "
        "file, and run the same command again"
    )


def _keys_file(folder: Path, half: int) -> Path:
    return folder / f"keys-{half}.txt"


def _scores_file(folder: Path, half: int) -> Path:
    return folder / f"scores-{half}.jsonl"
