"""Pseudo labels (`soft`), as a component that is added to a finished data set.

    component = pseudo_component(source, {"model": ..., "threshold": 0.1, "top": 5})
    settle -> [ attach(..., component.beside(source), "soft", pairs, ...) ] x shards -> finish      (added_component.py)

where `pairs` are keys and what `encode_pseudo_labels` makes of a model's classes and their weights.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from .added_component import NewComponent
from .manifest import Manifest
from .schema import SOFT
from .soft_labels import SoftLabelInfo


def pseudo_component(source: Manifest, how: Mapping[str, Any]) -> NewComponent:
    """What is added, and what the manifest will say of it.

    Args:
        source: manifest of the data set that gets them; any pseudo labels that it has are replaced.
        how: they are made: model, threshold, top k; JSON-ready.
    """
    info = source.soft_labels or SoftLabelInfo()
    return NewComponent(SOFT.suffix, {"soft_labels": replace(info, pseudo=how)}, ())
