"""Every parser that is fuzzed."""

from __future__ import annotations

from . import targets_data_set, targets_lists, targets_runs, targets_service
from .judge import Target


def all_targets() -> list[Target]:
    return [
        *targets_data_set.targets(),
        *targets_lists.targets(),
        *targets_runs.targets(),
        *targets_service.targets(),
    ]
