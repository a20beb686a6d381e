"""Losses, metrics, recipes and one training script; everything is imported when it is first used."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .losses import SemanticSoftmaxLoss, SingleLabelLoss, SoftTargetLoss
    from .metrics import SemanticAccuracy, TopKAccuracy
    from .recipes import Recipe, relabel, semantic_softmax, single_label, small, transfer

__all__ = [
    "Recipe",
    "SemanticAccuracy",
    "SemanticSoftmaxLoss",
    "SingleLabelLoss",
    "SoftTargetLoss",
    "TopKAccuracy",
    "relabel",
    "semantic_softmax",
    "single_label",
    "small",
    "transfer",
]

_MODULES = {
    "SemanticSoftmaxLoss": "losses",
    "SingleLabelLoss": "losses",
    "SoftTargetLoss": "losses",
    "SemanticAccuracy": "metrics",
    "TopKAccuracy": "metrics",
    "Recipe": "recipes",
    "relabel": "recipes",
    "semantic_softmax": "recipes",
    "single_label": "recipes",
    "small": "recipes",
    "transfer": "recipes",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        return getattr(importlib.import_module(f".{_MODULES[name]}", __name__), name)
    except ModuleNotFoundError as error:
        from ..shards.errors import MissingExtraError

        if error.name is not None and error.name.startswith(__name__.partition(".")[0]):
            raise
        raise MissingExtraError(f"{__name__}.{name}", "training", error) from error


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
