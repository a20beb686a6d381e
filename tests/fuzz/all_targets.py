"""Every parser that is fuzzed."""

from __future__ import annotations

from . import targets_data_set, targets_earlier, targets_lists, targets_runs, targets_service
from .judge import Target

_PARTS = (targets_data_set, targets_lists, targets_runs, targets_earlier, targets_service)


def all_targets() -> list[Target]:
    return [target for part in _PARTS for target in part.targets()]
