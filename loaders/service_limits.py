"""What a server of the data service lets its clients have, and whether a recipe asks for more.

A recipe is checked twice: before anything is opened for it, and, once the data set is known, with its number of classes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..shards.errors import UsageError
from ..shards.soft_labels import TAGS
from .decode import DTYPES
from .service_recipe import BatchRecipe
from .target_modes import LabelPooling, each_target

if TYPE_CHECKING:
    from .loader import Loader

_SAMPLE_BYTES = 4096  # that a sample takes at least, however small its image: key, class, crop
_MAX_WORLD_SIZE = 2**20


@dataclass(frozen=True)
class Limits:
    """What a server lets clients have.

    Attributes:
        cache_bytes: of recent batches.
        memory_bytes: of batches in shared memory.
        batch_bytes: of one batch.
        sending_bytes: of batches on their way through sockets, for all clients together; one alone may be larger.
        request_bytes: of one request; a recipe holds label trees and keys.
        connections: at a time, whether they ask for anything or not.
        recipes: that are open at a time; one that nobody used for `recipe_idle_s` makes room for another.
        recipe_idle_s: seconds.
        clients: that are served at a time: those that asked for something within `client_idle_s`.
        client_idle_s: seconds.
        calls: batches that are waited for or being sent, for all clients together.
        calls_per_client: of them for one.
    """

    cache_bytes: int = 2 * 2**30
    memory_bytes: int = 2 * 2**30
    batch_bytes: int = 2**29
    sending_bytes: int = 2**31
    request_bytes: int = 2**26
    connections: int = 1024
    recipes: int = 8
    recipe_idle_s: float = 10.0
    clients: int = 64
    client_idle_s: float = 60.0
    calls: int = 256
    calls_per_client: int = 32

    def __post_init__(self) -> None:
        wrong = [name for name, value in vars(self).items() if value <= 0]
        if wrong:
            raise UsageError(f"serve: expected limits above 0, found {', '.join(wrong)} not above")


def check_size(recipe: BatchRecipe, limits: Limits) -> None:
    """Refuse a batch that is too large, before anything is opened for it.

    Raises:
        UsageError: its images, or targets of a single class, take more bytes than a batch may.
    """
    size, limit = recipe.augment.size, limits.batch_bytes
    image_bytes = 3 * size * size * (DTYPES[recipe.dtype].itemsize if recipe.dtype in DTYPES else 1)
    image_bytes = max(image_bytes, _SAMPLE_BYTES)
    if recipe.batch_size * image_bytes > limit or recipe.world_size > _MAX_WORLD_SIZE:
        raise UsageError(
            f"recipe: expected a batch of at most {limit:,} bytes, found {recipe.batch_size:,} images of "
            f"{image_bytes:,} bytes for each of {recipe.world_size:,} processes. Use a smaller batch_size, "
            "or start the server with a larger --max-batch-bytes"
        )
    cells = sum(_cells(each) for each in each_target(recipe.targets) if each != "none")
    check_targets(recipe.batch_size * cells * _entry_bytes(recipe, 1), limits)


def check_targets(num_bytes: int, limits: Limits) -> None:
    """Refuse targets that are too large for a batch.

    Raises:
        UsageError: with both numbers.
    """
    if num_bytes > limits.batch_bytes:
        raise UsageError(
            f"recipe: expected targets of at most {limits.batch_bytes:,} bytes, found {num_bytes:,}"
        )


def target_bytes(recipe: BatchRecipe, loader: Loader) -> int:
    """Bytes of a batch's targets, at most, for the classes or tags of an opened data set."""
    soft, total = loader.manifest.soft_labels, 0
    for each in each_target(recipe.targets):
        if each != "none":
            width = soft.num_tags if each == TAGS and soft is not None else loader.num_classes
            total += recipe.batch_size * _cells(each) * _entry_bytes(recipe, width)
    return total


def _entry_bytes(recipe: BatchRecipe, width: int) -> int:
    """Bytes of one target of so many classes; an entry of a sparse one is a value and an int64."""
    return 4 * width if recipe.keep_targets is None else 12 * min(recipe.keep_targets, width)


def _cells(target: str | LabelPooling) -> int:
    """Targets of a sample: one, or one for each cell of a grid, whose sides may be any numbers."""
    return math.prod(target.grid or (1,)) if isinstance(target, LabelPooling) else 1
