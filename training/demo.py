"""`softshard demo`: the main job from end to end, on real photographs, in a few minutes on two cores.

    photographs -> label tree -> shards -> teacher -> label maps -> two students -> summary and a page of pictures

Every step is what a user would type or call; the demo prints it. Nothing is downloaded: the photographs come out
of the wheels of scikit-image and scikit-learn (or from a folder of the user's), and the teacher is trained here
and must be far better than chance before it labels anything.
"""

from __future__ import annotations

import json
import shlex
import time
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from ..loaders.bench import BenchOptions, bench
from ..shards.errors import DataError, UsageError
from ..shards.images import ImageRecipe
from ..shards.manifest import Manifest
from ..shards.pack import PackOptions, pack
from ..shards.philox import check_seed
from ..shards.sources import list_image_folder
from ..shards.tree import LabelTree
from ..shards.verify import verify
from .demo_folder import MARKED, MARKER, begin, check_apart
from .demo_page import write_page
from .demo_photos import PHOTOS, read_photo, write_demo_photos
from .evaluate import evaluate
from .maps import MapOptions, load_teacher, make_label_maps
from .recipe_list import RECIPES
from .recipes import Recipe, relabel, semantic_softmax, single_label
from .train import train

MODEL = "resnet10t"
STORED_PX, CROP_PX, TEACHER_PX = 96, 64, 160
GLOBAL_BATCH, MIN_STEPS = 64, 4  # a small folder gets a smaller batch, for that many steps an epoch
# Images that each model sees, where that makes MIN_EPOCHS to MAX_EPOCHS; a folder of more than
# TRAINING_IMAGES / MIN_EPOCHS images is seen MIN_EPOCHS times and takes longer.
TRAINING_IMAGES = 15_000
MAX_EPOCHS, MIN_EPOCHS = 12, 2
# How far a teacher must have come from always saying the commonest class to always being right. A multiple of
# the commonest class's share would ask for more than 100% where there are two classes.
TEACHER_SHARE = 0.5
BENCH_STEPS, BENCH_REPEATS = 20, 3


@dataclass(frozen=True)
class ModelResult:
    """One trained model of the demo.

    Attributes:
        name: as the summary calls it.
        folder: where `train` wrote.
        numbers: of `evaluate` on the validation set.
    """

    name: str
    folder: Path
    numbers: dict[str, Any]


def run_demo(
    out: str | Path, images: str | Path | None = None, *, seed: int = 0, num_threads: int | None = None
) -> dict[str, Any]:
    """Run the demo.

    Args:
        out: a new or empty folder, or that of an earlier demo, which is made anew; apart from `images`.
        images: a folder of class folders, named by wnid or noun; by default the packaged photographs.
        seed: of everything, in [0, 2**64).
        num_threads: of the loaders.

    Returns:
        The summary that is written to `out/demo.json`.

    Raises:
        UsageError: `out` holds something else, or another option is wrong; nothing was touched then.
        DataError: the images cannot be used, or the teacher is not good enough.
        MissingExtraError: the packages that bring the photographs are not installed.
    """
    out = Path(out)
    started = time.perf_counter()
    check_seed(seed)
    if num_threads is not None and num_threads < 1:
        raise UsageError(f"threads: expected at least 1, found {num_threads}")
    if images is None:
        val_per_class = 0  # the photographs come with their own validation windows
        for photo in PHOTOS:
            read_photo(photo)
    else:
        val_per_class = _val_per_class(Path(images))
        check_apart(out, Path(images))
    begin(out)
    source, classes = (Path(images), None) if images is not None else _photographs(out, seed)

    _say(1, "a label tree from WordNet")
    if classes is None:
        classes = tuple(folder.name for folder in list_image_folder(source).folders)
    (out / "classes.txt").write_text("".join(f"{name}\n" for name in classes))
    # The packaged photographs' classes have inner nodes among them; a user's folders are most likely leaves.
    inner = "none" if images is None else "branching"
    _command("tree", "build", "--classes", out / "classes.txt", "--inner", inner, "-o", out / "tree.json")
    tree = LabelTree.from_wordnet(classes, parents="first", inner=inner)
    tree.save(out / "tree.json")
    print(tree.summary())

    _say(2, "shards with hierarchical label vectors")
    options = PackOptions(image=ImageRecipe(size=STORED_PX), val_per_class=val_per_class, seed=seed)
    split = ("--val-per-class", val_per_class) if val_per_class else ()
    _command(
        "pack", source, out / "shards", "--tree", out / "tree.json", "--size", STORED_PX, *split, "--seed", seed
    )  # fmt: skip
    packed = pack(source, out / "shards", options, tree=tree)
    print(f"read {packed.read:,} = packed {packed.packed:,} + bad {packed.bad:,}")
    for manifest in packed.manifests.values():
        print(
            f"  {manifest.name}: {manifest.num_samples:,} samples, {_bytes_a_sample(manifest):,.0f} bytes each"
        )
    _command("verify", out / "shards", "--decode")
    _verified(out / "shards")

    train_set, val_set = out / "shards" / "train", out / "shards" / "val"
    num_train = packed.manifests["train"].num_samples
    epochs = max(MIN_EPOCHS, min(MAX_EPOCHS, TRAINING_IMAGES // num_train))
    batch = min(GLOBAL_BATCH, max(2, num_train // MIN_STEPS))
    common: dict[str, Any] = dict(
        image_size=CROP_PX, global_batch=batch, epochs=epochs, augment="none", eval_centre=None
    )
    threads = () if num_threads is None else ("--threads", num_threads)
    adam = dict(
        optimizer="adamw", lr=2e-3, weight_decay=0.02, schedule="one-cycle", warmup=0.2, warmup_from=1 / 20
    )
    cropped = dict(crop_scale=(0.25, 1.0), flip=True)

    _say(3, f"a teacher: {MODEL} trained on these classes, and tested before it is used")
    # Without label smoothing: a label map holds logits, and smoothing would keep them small.
    teacher_recipe = replace(single_label(), smoothing=0.0, **common, **adam, **cropped)
    teacher = _train("teacher", teacher_recipe, train_set, val_set, out, seed, num_threads)
    _check_teacher(teacher)

    _say(4, "label maps from the teacher, packed beside the images")
    checkpoint = teacher.folder / "checkpoint.pt"
    _command(
        "maps", "make", train_set, out / "relabelled", "--teacher", MODEL, "--checkpoint", checkpoint,
        "--size", TEACHER_PX, "--device", "cpu", *threads,
    )  # fmt: skip
    manifest = Manifest.load(train_set)
    mapped = make_label_maps(
        train_set,
        out / "relabelled",
        load_teacher(MODEL, manifest, size=TEACHER_PX, checkpoint=checkpoint),
        MapOptions(size=TEACHER_PX),
        num_threads=num_threads,
    )
    assert mapped.label_maps is not None
    maps = mapped.label_maps
    print(
        f"{mapped.num_samples:,} maps: top {maps.top} of {maps.num_classes} classes on {maps.rows} x {maps.columns} cells"
    )
    _command("verify", out / "relabelled", "--decode")
    _verified(out / "relabelled")

    _say(5, "the loader: crops, and the label maps pooled over each of them")
    _command(
        "bench", out / "relabelled", "--targets", "relabel", "--size", CROP_PX, "--batch-size", batch,
        "--steps", BENCH_STEPS, "--repeats", BENCH_REPEATS, *threads,
    )  # fmt: skip
    throughput = bench(
        out / "relabelled",
        BenchOptions(
            batch_size=batch,
            targets="relabel",
            size=CROP_PX,
            num_threads=num_threads,
            steps=BENCH_STEPS,
            repeats=BENCH_REPEATS,
        ),
    )
    images_per_s = throughput["results"]["loader"]["images_per_s"]
    print(
        f"{images_per_s:,.0f} images per second, {throughput['ratio_to_decode_only']:.2f} of decoding alone"
    )

    _say(6, "two students: semantic softmax on the tree, ReLabel on the pooled maps")
    student_seed = (seed + 1) % 2**64
    students = [
        _train(
            recipe.name,
            replace(recipe, **common, **adam, **cropped),
            dataset,
            val_set,
            out,
            student_seed,
            num_threads,
        )
        for recipe, dataset in ((semantic_softmax(), train_set), (relabel(), out / "relabelled"))
    ]

    models = [teacher, *students]
    summary = {
        **MARKED,
        "photographs": "packaged" if images is None else str(images),
        "samples": {name: manifest.num_samples for name, manifest in packed.manifests.items()},
        "classes": len(tree.classes),
        "levels": list(tree.level_sizes),
        "bytes_a_sample": round(_bytes_a_sample(packed.manifests["train"]), 1),
        "bytes_a_sample_with_maps": round(_bytes_a_sample(mapped), 1),
        "images_per_s": images_per_s,
        "ratio_to_decode_only": throughput["ratio_to_decode_only"],
        "epochs": epochs,
        "accuracy": {model.name: model.numbers for model in models},
        "fingerprints": {
            "tree": tree.fingerprint,
            "shards": {name: manifest.fingerprint for name, manifest in packed.manifests.items()},
            "relabelled": mapped.fingerprint,
        },
    }
    page = write_page(out / "index.html", summary, models, out / "relabelled", tree, seed)
    summary["seconds"] = round(time.perf_counter() - started, 1)
    (out / MARKER).write_text(json.dumps(summary, indent=1) + "\n")
    _print_summary(summary, models, page)
    return summary


def _photographs(out: Path, seed: int) -> tuple[Path, tuple[str, ...]]:
    photos = write_demo_photos(out / "photos", seed=seed)
    (photos.root / "windows.csv").rename(out / "windows.csv")  # not an image: the sharder would report it
    windows = {split: sum(counts.values()) for split, counts in photos.counts.items()}
    print(
        f"photographs: {len(PHOTOS)} pictures from scikit-image and scikit-learn, cut into {windows['train']:,} "
        f"windows for training and {windows['val']:,} for validation that share no pixel with them"
    )
    return photos.root, photos.classes


def _val_per_class(source: Path) -> int:
    """A fifth of the smallest class; 0 where the source brings its own validation images."""
    listing = list_image_folder(source)
    if listing.validation:
        return 0
    smallest = min(
        (folder for folder in listing.folders if folder.files), key=lambda folder: len(folder.files)
    )
    if len(smallest.files) < 2:
        raise DataError(
            f"{source}: expected at least two images in every class, one to train on and one to validate with, found "
            f"{len(smallest.files)} in {smallest.name!r}"
        )
    return max(1, len(smallest.files) // 5)


def _train(
    name: str, recipe: Recipe, dataset: Path, val: Path, out: Path, seed: int, num_threads: int | None
) -> ModelResult:
    folder = out / name
    changed = ", ".join(
        f"{field.name}={getattr(recipe, field.name)!r}"
        for field in fields(recipe)
        if getattr(recipe, field.name) != getattr(RECIPES[recipe.name](), field.name)
    )
    print(f"  >>> recipe = replace({recipe.name.replace('-', '_')}(), {changed})")
    print(
        f"  >>> train(recipe, {str(dataset)!r}, model={MODEL!r}, out={str(folder)!r}, val={str(val)!r}, seed={seed})"
    )
    result = train(
        recipe,
        str(dataset),
        model=MODEL,
        out=folder,
        seed=seed,
        num_threads=num_threads,
        log=lambda line: print(f"  {line}"),
        val=str(val),
    )
    if (
        result.stopped_by is not None
    ):  # `train` saves and returns; half a model must not be summed up as a whole
        raise KeyboardInterrupt
    numbers = evaluate(
        folder / "checkpoint.pt", str(val), batch_size=recipe.global_batch, num_threads=num_threads
    )
    return ModelResult(name, folder, numbers)


def _check_teacher(teacher: ModelResult) -> None:
    top1, majority = teacher.numbers["top1"], teacher.numbers["majority"]
    least = majority + TEACHER_SHARE * (1 - majority)
    if top1 < least:
        raise DataError(
            f"teacher: expected a validation top-1 of at least {least:.1%} (the commonest class has {majority:.1%}), "
            f"found {top1:.1%}; its label maps would teach little. Give more images a class"
        )
    print(
        f"the teacher is right on {top1:.1%} of the validation images (commonest class {majority:.1%}): it may teach"
    )


def _verified(dataset: Path) -> None:
    report = verify(dataset, decode=True)
    if not report.ok:
        raise DataError("; ".join(report.problems))
    print(f"{report.samples:,} samples in {report.shards:,} shards: no problems")


def _bytes_a_sample(manifest: Manifest) -> float:
    return manifest.num_bytes / manifest.num_samples


def _say(number: int, text: str) -> None:
    print(f"\n[{number}/6] {text}", flush=True)


def _command(*words: object) -> None:
    print(f"  $ {shlex.join(['softshard', *map(str, words)])}", flush=True)


def _print_summary(summary: dict[str, Any], models: list[ModelResult], page: Path) -> None:
    samples = " + ".join(f"{count:,} {name}" for name, count in summary["samples"].items())
    print(f"\nsummary, after {summary['seconds']:.0f} s")
    print(f"  samples          {samples}; {summary['classes']} classes on {len(summary['levels'])} levels")
    print(
        f"  bytes an image   {summary['bytes_a_sample']:,.0f} in the tar, "
        f"{summary['bytes_a_sample_with_maps']:,.0f} with its label map"
    )
    print(f"  loader           {summary['images_per_s']:,.0f} images per second with pooled label maps")
    print(f"  {'validation':<18}{'top-1':>8}{'leaf top-1':>12}{'semantic':>10}")
    for model in models:
        row = (model.numbers["top1"], model.numbers.get("leaf_top1"), model.numbers.get("semantic_accuracy"))
        top1, leaf, semantic = ("-" if value is None else f"{value:.1%}" for value in row)
        print(f"  {model.name:<18}{top1:>8}{leaf:>12}{semantic:>10}")
    numbers = models[0].numbers
    print(f"  {'chance':<18}{numbers['chance']:>8.1%}{numbers['leaf_chance']:>12.1%}")
    print(f"  {'commonest class':<18}{numbers['majority']:>8.1%}")
    print(f"  pictures         {page}", flush=True)
