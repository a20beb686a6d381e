"""Which loss learns most from labels of a tree, where part of them name only an ancestor?

Job: windows of real photographs, one leaf class for each photograph, under the WordNet tree of these classes with its
branching ancestors (`--inner branching`). Of the training windows, a seeded third is labelled with one of the leaf's
ancestors instead, drawn evenly: a photograph that is known to be a `bird` only. Validation windows have their leaf
labels. Contenders, each through `softshard train` with its recipe's own loss and smoothing:

    single-label      every label is a class, inner ones too
    single-label sums   the same models, read otherwise: a class has its own probability and those of all below it
    multi-label       a sigmoid for each class, binary cross-entropy over a label and its ancestors
    semantic-softmax  one softmax for each level
    semantic-softmax down the tree   the same models, read otherwise: a class has the probability of its parent times its
                      own among its sisters. Leaves on several levels can so be compared, which in training never are
    semantic-kd       the same with a teacher: semantic softmax with another seed, trained `--teacher-times` as long

With one seed all contenders begin with the same weights and see the same images in the same order, for as many steps.
All have the learning rate of `--lrs`; where it names several, each is tried with a seed that does not count, and the
contender keeps the better one. Runs are kept in `--data`; one that has finished is not repeated.

Each photograph is cut across its longer side: windows of the first part train, those of the rest are for validation. No
pixel is shared, but it is the same photograph: this measures how well a loss learns the tree, not how well a network
would know a bird that it never saw.

Run: python benchmarks/semantic_losses.py --photos DIR, with a folder of photographs by wnid, DIR/<wnid>/*.JPEG. Without
--photos: those of the demo, fifteen classes.
"""

from __future__ import annotations

import csv
import dataclasses
import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import simplejpeg
import torch
from harness import arguments, write_result
from torch import Tensor, nn

from softshard.shards import ImageRecipe, LabelTree, PackOptions, pack
from softshard.training.ancestors import ancestor_table
from softshard.training.bootstrap import mean_interval
from softshard.training.checkpoint import load_checkpoint
from softshard.training.demo_photos import PHOTOS, Region, draw_window, read_photo
from softshard.training.down_the_tree import DownTheTree
from softshard.training.evaluate import evaluate_model, evaluation_loader
from softshard.training.models import load_trained_model
from softshard.training.recipe_list import RECIPES
from softshard.training.train import train

TRAINED_PART = 0.62  # of the longer side; the rest is for validation
ANCESTOR_SHARE = 1 / 3
TUNING_SEED = 1000  # of the runs that choose learning rates, and of the teacher
METRICS = ("semantic_accuracy", "semantic_choice", "leaf_top1", "leaf_tree_distance")
REFERENCE = "semantic-softmax"


def one_photograph_a_class(folder: Path | None, most: int) -> dict[str, np.ndarray]:
    """One photograph for each wnid, uint8 [H, W, 3 or 1]; evenly chosen where there are more than `most`."""
    if folder is None:
        return {photo.wnid: read_photo(photo) for photo in chosen(PHOTOS, most)}
    files = [sorted(path.iterdir())[0] for path in sorted(folder.iterdir()) if path.is_dir()]
    return {file.parent.name: cv2.imread(str(file))[:, :, ::-1] for file in chosen(files, most)}


def chosen(photos: Sequence[Any], most: int) -> Sequence[Any]:
    return [photos[len(photos) * i // most] for i in range(most)] if len(photos) > most else photos


def make_data_set(
    out: Path, photos: Mapping[str, np.ndarray], windows: Mapping[str, int], size: int
) -> LabelTree:
    """Write `out/train/train` and `out/val/train`, data sets of windows (`pack` calls what is not split `train`).

    Args:
        out: emptied before.
        photos: wnid to photograph.
        windows: of each photograph, for `train` and `val`.
        size: stored pixels a side.
    """
    shutil.rmtree(out, ignore_errors=True)
    tree = LabelTree.from_wordnet(sorted(photos), inner="branching")
    rng = np.random.default_rng(0)
    for split, count in windows.items():
        rows = []
        for leaf, photo in photos.items():
            ancestors = ancestors_of(tree, leaf)
            for number in range(count):
                left, top, right, bottom = draw_window(photo, [part_of(photo, split)], rng)
                path = out / "windows" / split / f"{leaf}_{number:03}.jpg"
                path.parent.mkdir(parents=True, exist_ok=True)
                pixels = np.ascontiguousarray(photo[top:bottom, left:right])
                space = "GRAY" if pixels.shape[2] == 1 else "RGB"
                path.write_bytes(simplejpeg.encode_jpeg(pixels, quality=95, colorspace=space))
                hidden = split == "train" and ancestors and rng.random() < ANCESTOR_SHARE
                rows.append((f"windows/{split}/{path.name}", rng.choice(ancestors) if hidden else leaf))
        table = out / f"{split}.csv"
        with table.open("w", newline="") as file:
            csv.writer(file).writerows([("path", "label"), *rows])
        image = ImageRecipe(size=size, upscale=True)
        pack(table, out / split, PackOptions(image=image, shard_samples=1000), tree=tree, workers=1)
    return tree


def part_of(photo: np.ndarray, split: str) -> Region:
    """The part of a photograph that belongs to a split."""
    height, width = photo.shape[:2]
    cut = round(TRAINED_PART * max(height, width))
    if width >= height:
        return (0, 0, cut, height) if split == "train" else (cut, 0, width, height)
    return (0, 0, width, cut) if split == "train" else (0, cut, width, height)


def ancestors_of(tree: LabelTree, name: str) -> list[str]:
    """Class names of a class's ancestors, nearest first."""
    found, node = [], tree.class_index[name]
    while (node := int(tree.parents[node])) >= 0:
        found.append(tree.classes[node])
    return found


class SumsBelow(nn.Module):
    """Logits [N, C] of one softmax to the logarithm of each class's probability and those of all its descendants."""

    def __init__(self, tree: LabelTree) -> None:
        super().__init__()
        ancestors = ancestor_table(tree).classes
        num_classes = len(ancestors)
        # float32 [C, C], 1.0 where the second class is the first or one of its ancestors.
        table = torch.zeros(num_classes, num_classes + 1)
        table.scatter_(1, ancestors.masked_fill(ancestors < 0, num_classes), 1.0)
        self.register_buffer("ancestors", table[:, :-1])

    def forward(self, logits: Tensor) -> Tensor:
        return (logits.softmax(dim=1) @ self.get_buffer("ancestors")).log()


def summaries(rows: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """For each contender and metric: mean and standard deviation over the seeds, and the difference from the
    reference with the same seed, with the 95 % bootstrap interval of its mean over seeds."""
    rows = list(rows)
    found = []
    for recipe in dict.fromkeys(row["recipe"] for row in rows):
        entry: dict[str, Any] = {"recipe": recipe}
        for metric in METRICS:
            values = np.array([row[metric] for row in rows if row["recipe"] == recipe])
            base = np.array([row[metric] for row in rows if row["recipe"] == REFERENCE])
            entry[metric] = {"mean": float(values.mean()), "std": float(values.std(ddof=1))}
            if recipe != REFERENCE:
                gaps = values - base
                interval = mean_interval(gaps, np.random.default_rng(0), 10_000)
                entry[metric] |= {"difference": float(gaps.mean()), "interval": list(interval)}
        found.append(entry)
    return found


def main() -> None:
    parser = arguments(__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=5, help="runs of each contender, from 2 (default: 5)")
    parser.add_argument("--most-photos", type=int, default=80, help="photographs used (default: 80)")
    parser.add_argument("--windows", type=int, default=16, help="training windows of each (default: 16)")
    parser.add_argument("--val-windows", type=int, default=6, help="validation windows of each (default: 6)")
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--teacher-times", type=int, default=2, help="epochs of the teacher, times as many")
    parser.add_argument("--model", default="test_efficientnet")
    parser.add_argument("--image-size", type=int, default=48)
    parser.add_argument("--lrs", type=lambda text: [float(part) for part in text.split(",")], default="4e-3")
    parser.set_defaults(threads=1)
    args = parser.parse_args()
    torch.set_num_threads(1)
    cv2.setNumThreads(0)
    home = args.data / "semantic-losses"
    photos = one_photograph_a_class(args.photos, args.most_photos)
    windows = {"train": args.windows, "val": args.val_windows}
    tree = make_data_set(home / "data", photos, windows, args.image_size)
    print(tree.summary())

    def run(name: str, seed: int, lr: float, epochs: int, teacher: Path | None = None) -> dict[str, Any]:
        recipe = dataclasses.replace(
            RECIPES[name](), lr=lr, epochs=epochs, global_batch=32, image_size=args.image_size
        )
        out = home / "runs" / f"{name}-{seed}-{lr}-{epochs}"
        result = train(
            recipe, str(home / "data" / "train" / "train"), model=args.model, out=out, seed=seed, resume=True,
            teacher=teacher, num_threads=args.threads, log=lambda line: None,
        )  # fmt: skip
        if result.stopped_by is not None:  # it stops cleanly, and half a run would count as a whole one
            raise SystemExit(128 + result.stopped_by)
        row = {"recipe": name, "seed": seed, "lr": lr, "epochs": epochs, **measure(result.checkpoint)}
        print(row, flush=True)
        return row

    def measure(checkpoint: Path, reading: nn.Module | None = None) -> dict[str, float]:
        saved = load_checkpoint(checkpoint)
        model = load_trained_model(checkpoint, saved, args.image_size)
        if reading is not None:
            model = nn.Sequential(model, reading)
        val = str(home / "data" / "val" / "train")
        with evaluation_loader(
            saved.recipe, val, batch_size=256, device="cpu", num_threads=args.threads
        ) as loader:
            numbers = evaluate_model(model, loader, normalise=saved.recipe.normalise)
        return {metric: numbers[metric] for metric in METRICS}

    contenders = ("single-label", "multi-label", REFERENCE)
    tries = args.lrs if len(args.lrs) > 1 else []
    tuning = [run(name, TUNING_SEED, lr, args.epochs) for name in contenders for lr in tries]
    lrs = dict.fromkeys(contenders, args.lrs[0])
    for name in contenders if tuning else ():
        own = [row for row in tuning if row["recipe"] == name]
        lrs[name] = max(own, key=lambda row: row["semantic_choice"])["lr"]
    lrs["semantic-kd"] = lrs[REFERENCE]
    long = args.epochs * args.teacher_times
    teacher = run(REFERENCE, TUNING_SEED, lrs[REFERENCE], long)
    checkpoint = home / "runs" / f"{REFERENCE}-{TUNING_SEED}-{lrs[REFERENCE]}-{long}" / "checkpoint.pt"
    readings = {
        "single-label": ("single-label sums", SumsBelow(tree)),
        REFERENCE: (f"{REFERENCE} down the tree", DownTheTree(tree)),
    }
    rows = []
    for seed in range(args.seeds):
        for name in lrs:
            rows.append(
                run(name, seed, lrs[name], args.epochs, checkpoint if name == "semantic-kd" else None)
            )
            if name in readings:
                other, reading = readings[name]
                trained = home / "runs" / f"{name}-{seed}-{lrs[name]}-{args.epochs}" / "checkpoint.pt"
                rows.append(rows[-1] | {"recipe": other, **measure(trained, reading)})
    write_result(
        args.out,
        benchmark="semantic_losses",
        job="losses over a label tree, a third of the labels at inner nodes; the same start, data and steps for all",
        swept={"seed": range(args.seeds), "recipe": list(dict.fromkeys(row["recipe"] for row in rows))},
        rows=rows,
        photographs=f"{len(photos)} of the demo's"
        if args.photos is None
        else f"{len(photos)}, one for each wnid",
        windows=windows,
        ancestor_share=ANCESTOR_SHARE,
        classes_per_level=list(tree.level_sizes),
        model=args.model,
        image_size=args.image_size,
        global_batch=32,
        tuning=tuning,
        teacher=teacher,
        summary=summaries(rows),
    )


if __name__ == "__main__":
    main()
