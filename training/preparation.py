"""How models of timm's want their images, and what their outputs stand for, by timm's own configuration.

timm resizes and crops original images; the loader cuts its window of the stored one. Where the two differ is said.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm
from timm.data import resolve_data_config  # pyright: ignore[reportPrivateImportUsage]
from timm.data.imagenet_info import ImageNetInfo, infer_imagenet_subset

from ..loaders.crops import Augment
from ..shards.errors import UsageError
from ..shards.manifest import Manifest

PREFIX = "timm:"  # before the name of a model, where a checkpoint may stand as well


@dataclass(frozen=True)
class Preparation:
    """How a timm model wants its images (timm's `resolve_data_config`, test sizes where it has them).

    Attributes:
        size: pixels of both sides.
        crop_pct: size over the side that timm resizes to.
        crop_mode: `center`: the shorter side is resized, a square cut; `squash`: both sides are resized.
        interpolation: of timm's resize.
        mean: channel means, of values 0 to 1.
        std: channel standard deviations.
    """

    size: int
    crop_pct: float
    crop_mode: str
    interpolation: str
    mean: tuple[float, ...]
    std: tuple[float, ...]

    @classmethod
    def of(cls, name: str) -> Preparation:
        """That of a model's own weights.

        Raises:
            UsageError: images that are not square, without three channels, or with another kind of crop.
        """
        config = resolve_data_config(pretrained_cfg=own_config(name).to_dict(), use_test_size=True)
        channels, height, width = config["input_size"]
        if channels != 3 or height != width or config["crop_mode"] not in ("center", "squash"):
            raise UsageError(
                f"model {name}: expected square images of three channels, cut by 'center' or 'squash', found "
                f"{channels} x {height} x {width} by {config['crop_mode']!r}, which the loader cannot make"
            )
        return cls(
            size=height,
            crop_pct=config["crop_pct"],
            crop_mode=config["crop_mode"],
            interpolation=config["interpolation"],
            mean=tuple(config["mean"]),
            std=tuple(config["std"]),
        )

    @property
    def augment(self) -> Augment:
        """The window of a stored image that timm would cut of an original."""
        resized = math.floor(self.size / self.crop_pct)
        return Augment.evaluation(
            self.size, centre=min(1.0, self.size / resized), square=self.crop_mode == "center"
        )

    def differences(self, manifest: Manifest) -> list[str]:
        """What timm's own validation does otherwise, a line each."""
        found = [
            f"window and size in one step, by area averages (linear where it grows), not {self.interpolation} filters"
        ]
        stored = manifest.recipe
        resize, size = stored.get("resize"), stored.get("size")
        if resize is None:
            found.append("how the images were stored is not known")
            return found
        if resize == "squish" and self.crop_mode == "center":
            found.append(
                "images were stored squished to a square, which timm does not do: pack with --resize short-edge"
            )
        wanted = math.floor(self.size / self.crop_pct)
        if resize != "none" and isinstance(size, int) and size < wanted:
            found.append(
                f"images were stored with {size} pixels, timm resizes originals to {wanted}: pack with --size {wanted}"
            )
        found.append(f"images were encoded again, JPEG quality {stored.get('quality')}")
        return found


def timm_name(model: str | Path) -> str | None:
    """What stands behind `timm:`; None for the path of a checkpoint."""
    return str(model).removeprefix(PREFIX) if str(model).startswith(PREFIX) else None


def own_config(name: str) -> Any:
    """timm's configuration of a model.

    Raises:
        UsageError: there is no such model.
    """
    config = timm.get_pretrained_cfg(name) if timm.is_model(name) else None
    if config is None:
        raise UsageError(f"model: expected a name that timm {timm.__version__} knows, found {name!r}")
    return config


def own_classes(num_classes: int) -> tuple[str, ...] | None:
    """What the outputs of timm's own weights stand for, by their number: wnids; None where timm has no list."""
    subset = infer_imagenet_subset({"num_classes": num_classes})
    return None if subset is None else tuple(ImageNetInfo(subset).label_names())
