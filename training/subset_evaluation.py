"""`softshard subset evaluate`: is a subset good enough to compare models on, and cheaper?

    curves of both sets -> rank agreement, inversions, stable epochs, images looped -> one table, one plot

After Gao (2021): the subset has value where its final ranking of the models is reached, and stays, after fewer images
than the full set's: `images looped` = training images x that epoch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from scipy.stats import rankdata

from ..shards.errors import UsageError
from ..shards.html import Page
from ..shards.philox import check_seed
from .curves import FULL, SETS, SUBSET, Curves
from .rank_agreement import DRAWS, Z, agreement, inversions, noise, stable_from, tau_b

_LISTED_PAIRS = 20
NOISE_RULE = (
    f"a gap is beyond noise where it is larger than {Z} standard errors of a difference of two independent shares of the "
    "validation images, on each set by itself; no correction for the number of pairs"
)


def with_images(
    curves: Curves, *, train_images: int | None = None, val_images: int | None = None, where: str = ""
) -> Curves:
    """Curves with numbers of images that their file does not give.

    Raises:
        UsageError: a number below 1, or another than the file's.
    """
    given = {"train_images": train_images, "val_images": val_images}
    for name, value in given.items():
        known = getattr(curves, name)
        if value is not None and (value < 1 or known not in (None, value)):
            expected = "a number from 1" if known is None else f"the {known:,} that the file gives"
            raise UsageError(f"{where} {name}: expected {expected}, found {value:,}")
    return replace(curves, **{name: value for name, value in given.items() if value is not None})


def evaluate_subset(full: Curves, subset: Curves, *, seed: int = 0, draws: int = DRAWS) -> dict[str, Any]:
    """Compare what the same models reach on a full set and on a subset.

    Args:
        full: the full set's curves.
        subset: those of the same models on the subset.
        seed: of the bootstrap, in [0, 2**64).
        draws: of the bootstrap.

    Returns:
        `models`, each with final accuracy and rank on both sets; `agreement` of the final accuracies (see Agreement),
        with the numbers of pairs and inversions, and the largest inversions; for each set `epochs`, `train_images`,
        `val_images`, `stable_epoch`, `images_looped` and the same `_beyond_noise`; `has_value`, whether the subset's
        `images_looped` is the smaller one, or None; `curves`: tau-b with the full set's final ranking, by epoch.
    """
    check_seed(seed)
    noises = [noise(curves.final, curves.val_images) for curves in (full, subset)]
    inverted = inversions(full.final, subset.final, *noises)
    judged = noises[0] is not None and noises[1] is not None
    ranks = [rankdata(-curves.final, method="min").astype(int).tolist() for curves in (full, subset)]
    sets = {
        name: _one_set(curves, least_gap)
        for name, curves, least_gap in zip(SETS, (full, subset), noises, strict=True)
    }
    looped = [sets[name]["images_looped"] for name in SETS]
    return {
        "agreement": {
            **asdict(agreement(full.final, subset.final, seed=seed, draws=draws)),
            "pairs": len(full.models) * (len(full.models) - 1) // 2,
            "inversions": len(inverted),
            "inversions_beyond_noise": sum(bool(pair.beyond_noise) for pair in inverted) if judged else None,
            "largest_inversions": [
                asdict(pair) | {"better": full.models[pair.better], "worse": full.models[pair.worse]}
                for pair in inverted[:_LISTED_PAIRS]
            ],
        },
        **sets,
        "has_value": None if None in looped else looped[1] < looped[0],
        "noise": NOISE_RULE if judged else None,
        "seed": seed,
        "models": [
            {
                "model": model,
                **{
                    f"{name}_accuracy": float(curves.final[i])
                    for name, curves in zip(SETS, (full, subset), strict=True)
                },
                **{f"{name}_rank": rank[i] for name, rank in zip(SETS, ranks, strict=True)},
            }
            for i, model in enumerate(full.models)
        ],
        "curves": {
            name: [
                {"epoch": epoch, "kendall_tau_b": tau_b(curves.accuracy[:, place], full.final)}
                for place, epoch in enumerate(curves.epochs)
            ]
            for name, curves in zip(SETS, (full, subset), strict=True)
        },
    }


def _one_set(curves: Curves, least_gap: Any) -> dict[str, Any]:
    def looped(epoch: int | None) -> int | None:
        return None if epoch is None or curves.train_images is None else epoch * curves.train_images

    stable = curves.epochs[stable_from(curves.accuracy)]
    beyond = None if least_gap is None else curves.epochs[stable_from(curves.accuracy, least_gap)]
    return {
        "epochs": curves.epochs[-1],
        "train_images": curves.train_images,
        "val_images": curves.val_images,
        "stable_epoch": stable,
        "images_looped": looped(stable),
        "stable_epoch_beyond_noise": beyond,
        "images_looped_beyond_noise": looped(beyond),
    }


_ROWS = {
    "epochs": "epochs trained",
    "train_images": "training images",
    "val_images": "validation images",
    "stable_epoch": "final ranking from epoch",
    "images_looped": "images looped until then",
    "stable_epoch_beyond_noise": "the same beyond noise, epoch",
    "images_looped_beyond_noise": "images looped until then",
}


def format_evaluation(result: Mapping[str, Any]) -> str:
    """The table, and what it means, in lines."""
    lines = [f"{'':<30} {FULL:>16} {SUBSET:>16}"]
    for row in _table(result):
        lines.append(f"{row[0]:<30} {row[1]:>16} {row[2]:>16}")
    return "\n".join([*lines, "", *_sentences(result)])


def evaluation_page(result: Mapping[str, Any], title: str = "Subset against full set") -> Page:
    """The same as a page with one plot: how soon each set ranks the models as the full set does in the end."""
    page = Page(title)
    for sentence in _sentences(result):
        page.paragraph(sentence)
    page.table(["", FULL, SUBSET], _table(result))
    images = [result[name]["train_images"] for name in SETS]
    by_images = None not in images
    series = {
        name: [
            (point["epoch"] * (factor if by_images else 1), point["kendall_tau_b"])
            for point in result["curves"][name]
            if point["kendall_tau_b"] is not None
        ]
        for name, factor in zip(SETS, images, strict=True)
    }
    page.line_chart(
        "Agreement with the full set's final ranking",
        series,
        x_label="images looped" if by_images else "epochs",
        y_label="Kendall's tau-b",
        y_range=(0, 1),
    )
    page.heading("Models")
    page.table(
        ["model", "full, %", "rank", "subset, %", "rank"],
        [
            [
                row["model"],
                100 * row["full_accuracy"],
                row["full_rank"],
                100 * row["subset_accuracy"],
                row["subset_rank"],
            ]
            for row in sorted(result["models"], key=lambda row: row["full_rank"])
        ],
    )
    return page


def write_page(result: Mapping[str, Any], path: Path) -> None:
    """Write the page; its folder is made where it is missing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    evaluation_page(result).write(path)


def _table(result: Mapping[str, Any]) -> list[list[str]]:
    return [
        [text, *("-" if result[name][row] is None else f"{result[name][row]:,}" for name in SETS)]
        for row, text in _ROWS.items()
    ]


def _sentences(result: Mapping[str, Any]) -> list[str]:
    found = result["agreement"]
    scores = [
        f"{name} {_shown(found[key], found[interval])}"
        for name, key, interval in (
            ("Kendall's tau-b", "kendall_tau_b", "kendall_interval"),
            ("Spearman's rho", "spearman", "spearman_interval"),
        )
    ]
    beyond = found["inversions_beyond_noise"]
    judged = (
        "beyond noise: not known without the number of validation images"
        if beyond is None
        else f"{beyond:,} beyond noise"
    )
    lines = [
        f"{len(result['models']):,} models: {', '.join(scores)} (95 % intervals by drawing models again, seed "
        f"{result['seed']}).",
        f"{found['inversions']:,} of {found['pairs']:,} pairs are ordered differently, {judged}.",
    ]
    if result["noise"]:
        lines.append(f"Noise: {result['noise']}.")
    if result["has_value"] is None:
        lines.append("Whether the subset has value is not known without the numbers of training images.")
    else:
        ratio = result[FULL]["images_looped"] / result[SUBSET]["images_looped"]
        verdict = "fewer images: it has value" if result["has_value"] else "no fewer images: it has no value"
        lines.append(
            f"The subset's final ranking takes {verdict} (full set / subset = {ratio:.2f}), as far as the two rankings "
            "agree."
        )
    return lines


def _shown(value: float | None, interval: tuple[float, float] | None) -> str:
    if value is None or interval is None:
        return "not defined"
    return f"{value:.3f} ({interval[0]:.3f} to {interval[1]:.3f})"
