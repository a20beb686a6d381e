"""The demo's page: crops beside their label maps and pooled targets, loss curves, accuracies."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import simplejpeg

from ..loaders.crops import Augment
from ..loaders.loader import Loader
from ..shards.figures import Figure
from ..shards.html import Page
from ..shards.images import resample
from ..shards.labelmap import decode_label_map
from ..shards.map_pictures import overlay_class
from ..shards.pictures import draw_box
from ..shards.reader import read_shard
from ..shards.schema import JPG, LMAP
from ..shards.tree import LabelTree

if TYPE_CHECKING:
    from .demo import ModelResult

NUM_FIGURES = 9
PICTURE_PX = 192
SHOWN_CLASSES = 4


def write_page(
    path: Path, summary: dict[str, Any], models: list[ModelResult], mapped: Path, tree: LabelTree, seed: int
) -> Path:
    """Write the page.

    Args:
        path: the HTML file.
        summary: what `run_demo` gathered.
        models: teacher and students.
        mapped: folder of the data set with label maps.
        tree: its label tree.
        seed: of the crops that are shown.

    Returns:
        `path`.
    """
    page = Page("softshard demo")
    is_packaged = summary["photographs"] == "packaged"
    page.paragraph(
        f"{'Photographs' if is_packaged else 'Images'} were packed into shards with hierarchical label vectors; a small "
        "teacher, trained here, added a label map to each; the loader cut crops and pooled the map over exactly the crop "
        "that was cut; two students were trained on the result."
        + (" Validation windows share no pixel with training windows." if is_packaged else "")
    )
    page.key_values(
        {
            "samples": ", ".join(f"{count:,} {name}" for name, count in summary["samples"].items()),
            "classes": f"{summary['classes']}, per level {' '.join(map(str, summary['levels']))}",
            "bytes an image": f"{summary['bytes_a_sample']:,.0f}, with its label map "
            f"{summary['bytes_a_sample_with_maps']:,.0f}",
            "loader": f"{summary['images_per_s']:,.0f} images per second, {summary['ratio_to_decode_only']:.2f} of "
            "decoding alone",
            "training": f"{summary['epochs']} epochs each",
        }
    )
    _accuracies(page, models)
    page.heading("Crops, label maps, pooled targets")
    page.paragraph(
        "Left: the stored image, each cell that kept the crop's strongest class coloured by the teacher's score for it, "
        "with the crop outlined. Right: the crop as the model gets it (mirrored where the loader flipped it). Bars: the "
        "largest pooled probabilities."
    )
    page.figures(_figures(mapped, tree, seed))
    page.heading("Loss")
    curves = {model.name: _losses(model.folder / "metrics.csv") for model in models}
    page.line_chart("Training loss (each with its own loss)", curves, x_label="step", y_label="loss")
    page.heading("Label tree")
    page.command(tree.summary())
    page.write(path)
    return path


def _accuracies(page: Page, models: list[ModelResult]) -> None:
    page.heading("Accuracy on the validation images")
    numbers = models[0].numbers
    rows: list[list[object]] = [
        [
            model.name,
            *(_percent(model.numbers.get(name)) for name in ("top1", "leaf_top1", "semantic_accuracy")),
        ]
        for model in models
    ]
    rows.append(["chance", _percent(numbers["chance"]), _percent(numbers["leaf_chance"]), "-"])
    rows.append(["commonest class", _percent(numbers["majority"]), "-", "-"])
    page.table(
        ["model", "top-1", "leaf top-1", "semantic accuracy"],
        rows,
        caption="Top-1 over all classes, inner ones too; leaf top-1 over leaf classes on images labelled with one. "
        "Semantic softmax never compares a class with its ancestors, so leaf top-1 and semantic accuracy are its measures.",
    )
    leaf = {
        model.name: 100 * model.numbers["leaf_top1"]
        for model in models
        if model.numbers.get("leaf_top1") is not None
    }
    if leaf:
        page.bar_chart("Leaf top-1", {**leaf, "chance": 100 * numbers["leaf_chance"]}, x_label="percent")


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{share:.1%}"


def _losses(path: Path) -> list[tuple[float, float]]:
    with open(path, newline="") as file:
        return [(float(row["step"]), float(row["loss"])) for row in csv.DictReader(file)]


def _figures(mapped: Path, tree: LabelTree, seed: int) -> list[Figure]:
    with Loader(
        mapped, batch_size=64, targets="relabel", augment=Augment(size=PICTURE_PX, scale=(0.1, 0.5)), dtype="uint8",
        last_batch="pad", seed=seed, num_threads=1,
    ) as loader:  # fmt: skip
        batch = next(iter(loader))
        manifest = loader.manifest
    assert batch.targets is not None
    # One of each class as far as they go: a page of nine roofs would show little.
    order = [i for i in range(len(batch)) if bool(batch.valid[i])]
    classes = batch.classes.tolist()
    firsts = [i for place, i in enumerate(order) if classes[i] not in {classes[j] for j in order[:place]}]
    chosen = (firsts + [i for i in order if i not in firsts])[:NUM_FIGURES]
    wanted = {batch.keys[i] for i in chosen}
    stored = {
        sample.key: sample.parts
        for shard in manifest.shards
        for sample in read_shard(mapped / shard.name)
        if sample.key in wanted
    }
    figures = []
    for i in chosen:
        parts = stored[batch.keys[i]]
        image = simplejpeg.decode_jpeg(parts[JPG.suffix], "RGB")
        target = batch.targets[i].numpy()
        best = np.argsort(-target)[:SHOWN_CLASSES]
        scores_KPQ, ids_KPQ = decode_label_map(parts[LMAP.suffix])
        x0, y0, x1, y1 = batch.crops[i].tolist()
        small = resample(image, PICTURE_PX, PICTURE_PX)
        overview = draw_box(overlay_class(small, scores_KPQ, ids_KPQ, int(best[0])), (x0, y0, x1, y1))
        crop = batch.images[i].permute(1, 2, 0).numpy()
        figures.append(
            Figure(
                [overview, np.ascontiguousarray(crop)],
                f"labelled {tree.names[classes[i]]}; map of {tree.names[int(best[0])]}",
                [(tree.names[int(c)], float(target[c])) for c in best],
            )
        )
    return figures
