"""Augmentation as one line of text, so that it fits a command line, a recipe and a checkpoint."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ..shards.errors import UsageError
from .augment_options import RANDAUGMENT_21K, CutMix, Erasing, Mixup, RandAugment
from .crops import Augment

# Name -> (what follows it after colons, the field of Augment, its value from these texts).
_PARTS: dict[str, tuple[str, str, Callable[..., Any]]] = {
    "color-jitter": ("STRENGTH", "color_jitter", lambda value: float(value)),
    "lighting": ("STD", "lighting", lambda value: float(value)),
    "cutout": ("SHARE", "cutout", lambda value: float(value)),
    "randaugment": ("OPS:MAGNITUDE", "randaugment", lambda ops, level: RandAugment(int(ops), int(level))),
    "randaugment-21k": ("", "randaugment", lambda: RANDAUGMENT_21K),
    "erasing": ("PROBABILITY", "erasing", lambda prob: Erasing(prob=float(prob))),
    "mixup": ("ALPHA", "mixup", lambda alpha: Mixup(float(alpha))),
    "cutmix": ("ALPHA", "cutmix", lambda alpha: CutMix(float(alpha))),
    "visible-cutmix": ("ALPHA", "cutmix", lambda alpha: CutMix(float(alpha), visible=True)),
}
AUGMENT_PARTS = tuple(f"{name}:{values}" if values else name for name, (values, _, _) in _PARTS.items())


def parse_augment(text: str) -> Augment:
    """What is done to pixels beside crop and flip.

    Args:
        text: `none`, or parts of AUGMENT_PARTS joined by `+`: `color-jitter:0.4+lighting:0.1+cutmix:1`.

    Returns:
        An Augment with these fields, and all others as they are by default.

    Raises:
        UsageError: no such part, one that comes twice, or values that do not fit it.
    """
    fields: dict[str, Any] = {}
    for part in text.split("+") if text != "none" else ():
        name, *values = part.split(":")
        try:
            _, field, build = _PARTS[name]
            value = build(*values)
        except UsageError:
            raise
        except (KeyError, TypeError, ValueError):
            raise UsageError(
                f"expected 'none', or parts joined by '+' of {', '.join(AUGMENT_PARTS)}, found {part!r}"
            ) from None
        if field in fields:
            raise UsageError(f"expected one part for {field}, found {text!r}")
        fields[field] = value
    return Augment(**fields)
