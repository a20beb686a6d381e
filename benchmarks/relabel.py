"""Do label maps beat the labels that came with the images, where several objects are in view and a label names one?

Job: collages of two by two windows of real photographs, one class for each photograph. The label of a collage is one of
its four classes, drawn at random, as ImageNet's label names one object of several. The contenders are those of `softshard
maps study`, which this script calls: the five target modes of ReLabel, label smoothing, and a live teacher. With one seed
all begin with the same weights and see the same crops, for as many steps.

The label maps are made by a teacher that was trained before. `--teacher` says on what:

    windows     on single windows with their classes: a better annotator than the labels, as in the paper, where
                the teacher had learnt from more images than the student gets
    collages    on the very collages and labels that the students have, with crops: maps without any new information

The live teacher is the same model, asked about every crop of the student's.

Judged by what is known without any teacher, on parts of the photographs that neither students nor teachers saw:

    windows_top1    single windows, the right one of all classes
    collages_any    collages: the best class is one of the four
    collages_map    collages: mean over the classes of the average precision
    label_top1      collages against labels drawn like those for training: the number that a data set with such
                    labels gives, of which even a perfect model gets a quarter

Each photograph is cut across its longer side: windows of the first part train, those of the rest are for validation, as
in semantic_losses.py. It is the same photograph: nothing here says how a network would know an object that it never saw.

Run: python benchmarks/relabel.py --photos DIR, with a folder of photographs by wnid, DIR/<wnid>/*.JPEG. Without --photos:
those of the demo, fifteen classes. Runs are kept in `--data`; one that has finished is not repeated.
"""

from __future__ import annotations

import csv
import dataclasses
import json
import shutil
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import simplejpeg
import torch
from harness import RESULTS, arguments, write_result
from semantic_losses import one_photograph_a_class, part_of

from softshard.shards import ImageRecipe, PackOptions, pack
from softshard.shards.manifest import Manifest
from softshard.shards.pictures import as_rgb
from softshard.training.average_precision import average_precision
from softshard.training.checkpoint import load_checkpoint
from softshard.training.demo_photos import draw_window
from softshard.training.evaluate import evaluate, evaluation_loader
from softshard.training.maps import MapOptions, load_teacher, make_label_maps
from softshard.training.models import load_trained_model
from softshard.training.recipes import relabel
from softshard.training.step import model_input
from softshard.training.study import CONTENDERS, LIVE, format_study, study, summarise
from softshard.training.train import train

TEACHER = "resnet10t"
TEACHER_SEED = 1000
METRICS = ("windows_top1", "collages_any", "collages_map", "label_top1")

Photos = Mapping[str, np.ndarray]


def draw_tile(photo: np.ndarray, split: str, size: int, rng: np.random.Generator) -> np.ndarray:
    """A window of a split's part of a photograph, uint8 [size, size, 3]."""
    left, top, right, bottom = draw_window(photo, [part_of(photo, split)], rng)
    window = as_rgb(np.ascontiguousarray(photo[top:bottom, left:right]))
    return cv2.resize(window, (size, size), interpolation=cv2.INTER_AREA)


def draw_windows(
    photos: Photos, split: str, each: int, size: int, rng: np.random.Generator
) -> Iterator[tuple[np.ndarray, str, list[str]]]:
    """Single windows: pixels, label, classes in view."""
    for wnid, photo in photos.items():
        for _ in range(each):
            yield draw_tile(photo, split, size, rng), wnid, [wnid]


def draw_collages(
    photos: Photos, split: str, num: int, size: int, rng: np.random.Generator
) -> Iterator[tuple[np.ndarray, str, list[str]]]:
    """Collages of two by two windows of different photographs: pixels, one of the classes, all four in reading order."""
    for _ in range(num):
        names = [str(name) for name in rng.choice(list(photos), 4, replace=False)]
        tiles = [draw_tile(photos[name], split, size // 2, rng) for name in names]
        pixels = np.vstack([np.hstack(tiles[:2]), np.hstack(tiles[2:])])
        yield pixels, names[rng.integers(4)], names


def make_data_set(
    out: Path, images: Iterator[tuple[np.ndarray, str, list[str]]], classes: list[str], size: int
) -> Path:
    """Pack images; `contents.json` beside the shards says which classes each of them shows, by its key.

    Returns:
        The data set's folder.
    """
    shutil.rmtree(out, ignore_errors=True)
    (out / "images").mkdir(parents=True)
    rows, contents = [], {}
    for number, (pixels, label, shown) in enumerate(images):
        name = f"{number:05}"
        data = simplejpeg.encode_jpeg(np.ascontiguousarray(pixels), quality=95, colorspace="RGB")
        (out / "images" / f"{name}.jpg").write_bytes(data)
        rows.append((f"{name}.jpg", label))
        contents[f"{label}_{name}"] = shown
    with (out / "images" / "list.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("path", "label"), *rows])
    image = ImageRecipe(size=size, reencode=False)
    pack(
        out / "images" / "list.csv",
        out / "shards",
        PackOptions(image=image, shard_samples=1000),
        class_names=classes,
        workers=1,
    )
    (out / "contents.json").write_text(json.dumps(contents))
    return out / "shards" / "train"  # `pack` calls what is not split `train`


def judge(checkpoint: Path, windows: Path, collages: Path, threads: int) -> dict[str, float]:
    """METRICS of a checkpoint."""
    saved = load_checkpoint(checkpoint)
    model = load_trained_model(checkpoint, saved, saved.recipe.image_size).eval()
    contents = json.loads((collages.parents[1] / "contents.json").read_text())
    place = {name: i for i, name in enumerate(saved.class_names)}
    scores, right, labels = [], [], []
    with (
        evaluation_loader(
            saved.recipe, str(collages), batch_size=128, device="cpu", num_threads=threads
        ) as loader,
        torch.inference_mode(),
    ):
        for batch in loader:
            kept = batch.valid
            scores.append(model(model_input(batch.images, saved.recipe.normalise)).softmax(dim=1)[kept])
            labels.append(batch.classes[kept])
            for key in batch.keys[: int(kept.sum())]:
                right.append(np.isin(np.arange(len(place)), [place[name] for name in contents[key]]))
    scores_NC, right_NC = torch.cat(scores), np.stack(right)
    best = scores_NC.argmax(dim=1).numpy()
    return {
        "windows_top1": evaluate(checkpoint, str(windows), num_threads=threads)["top1"],
        "collages_any": float(right_NC[np.arange(len(best)), best].mean()),
        "collages_map": float(average_precision(scores_NC, torch.from_numpy(right_NC)).mean()),
        "label_top1": float((best == torch.cat(labels).numpy()).mean()),
    }


def main() -> None:
    parser = arguments(__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=5, help="runs of each contender, from 2 (default: 5)")
    parser.add_argument(
        "--live-seeds",
        type=int,
        default=2,
        help="those of the live teacher, which takes longest (default: 2)",
    )
    parser.add_argument("--most-photos", type=int, default=40, help="photographs used, from 4 (default: 40)")
    parser.add_argument("--teacher", choices=("windows", "collages"), default="windows")
    parser.add_argument(
        "--collages", type=int, default=1280, help="training images of the students (default: 1280)"
    )
    parser.add_argument(
        "--windows", type=int, default=40, help="the teacher's windows of each photograph (default: 40)"
    )
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--teacher-epochs", type=int, default=8)
    parser.add_argument("--model", default="test_efficientnet")
    parser.add_argument(
        "--image-size", type=int, default=64, help="pixels of the students' crops (default: 64)"
    )
    parser.add_argument("--lr", type=float, default=0.05)
    parser.set_defaults(threads=1)
    args = parser.parse_args()
    torch.set_num_threads(1)
    cv2.setNumThreads(0)
    home = args.data / "relabel"
    photos = one_photograph_a_class(args.photos, args.most_photos)
    if len(photos) < 4:
        parser.error(f"expected 4 photographs or more, one for each part of a collage, found {len(photos)}")
    classes = sorted(photos)
    side = 2 * args.image_size  # of stored collages: a tile is as large as a student's crop
    rng = np.random.default_rng(0)
    windows = {
        split: make_data_set(
            home / f"windows-{split}",
            draw_windows(photos, split, each, args.image_size, rng),
            classes,
            args.image_size,
        )
        for split, each in (("train", args.windows), ("val", 12))
    }
    collages = {
        split: make_data_set(
            home / f"collages-{split}", draw_collages(photos, split, num, side, rng), classes, side
        )
        for split, num in (("train", args.collages), ("val", 480))
    }

    # The teacher sees windows as large as tiles; whole collages, at twice its size, go through it densely.
    base = dataclasses.replace(relabel(), global_batch=32, image_size=args.image_size, lr=args.lr, warmup=0.1)
    plain = dataclasses.replace(
        base,
        name=f"teacher of {args.teacher}",
        targets="original",
        epochs=args.teacher_epochs,
        crop_scale=(0.25, 1.0) if args.teacher == "windows" else base.crop_scale,
    )
    taught = train(
        plain,
        str(windows["train"] if args.teacher == "windows" else collages["train"]),
        model=TEACHER,
        out=home / f"teacher-{args.teacher}",
        seed=TEACHER_SEED,
        resume=True,
        num_threads=args.threads,
    )
    if taught.stopped_by is not None:
        raise SystemExit(128 + taught.stopped_by)
    of_teacher = judge(taught.checkpoint, windows["val"], collages["val"], args.threads)
    print(f"teacher: {of_teacher}")

    with_maps = home / f"collages-maps-{args.teacher}"  # kept, as the runs are
    began = time.perf_counter()
    make_label_maps(
        collages["train"],
        with_maps,
        load_teacher(
            TEACHER, Manifest.load(collages["train"]), size=3 * side // 2, checkpoint=taught.checkpoint
        ),
        MapOptions(size=3 * side // 2),
        num_threads=args.threads,
    )
    maps_s = time.perf_counter() - began
    timing = home / f"making-maps-{args.teacher}.json"
    if timing.exists():
        maps_s = json.loads(timing.read_text())
    timing.write_text(json.dumps(maps_s))

    def compare(contenders: list[str], seeds: int, out: str) -> dict[str, Any]:
        result = study(
            str(with_maps),
            str(collages["val"]),
            recipe=dataclasses.replace(base, epochs=args.epochs),
            model=args.model,
            out=home / out,
            seeds=seeds,
            contenders=contenders,
            teacher=taught.checkpoint,
            num_threads=args.threads,
            measure=lambda checkpoint: judge(checkpoint, windows["val"], collages["val"], args.threads),
            log=lambda line: print(line, flush=True) if line.startswith("finished") else None,
        )
        if result["stopped_by"] is not None:
            raise SystemExit(128 + result["stopped_by"])
        return result

    quick = [name for name in CONTENDERS if name != LIVE]
    result = compare(quick, args.seeds, f"study-{args.teacher}")
    if args.live_seeds:
        result["rows"] += compare([LIVE], args.live_seeds, f"study-{args.teacher}-live")["rows"]
        result["summary"] = summarise(result["rows"])
    print(format_study(result, METRICS))
    write_result(
        args.out or RESULTS / f"relabel_{args.teacher}.json",
        benchmark="relabel",
        job="label maps against the labels that came with the images, on collages of real photographs",
        swept={"seed": range(args.seeds), "contender": [entry["contender"] for entry in result["summary"]]},
        rows=result["rows"],
        photographs=f"{len(photos)} of the demo's"
        if args.photos is None
        else f"{len(photos)}, one for each wnid",
        collages=args.collages,
        model=args.model,
        recipe=result["recipe"],
        teacher={"model": TEACHER, "trained on": args.teacher, **of_teacher},
        making_maps_s=maps_s,
        summary=result["summary"],
    )


if __name__ == "__main__":
    main()
