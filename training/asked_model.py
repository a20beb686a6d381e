"""A checkpoint's model and images prepared as it was trained on: logits for the files, or the data set, of `predict`."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from ..loaders.crops import draw_crops
from ..loaders.decode import MEAN, STD, CpuDecoder
from ..shards.errors import DataError, ImageError
from ..shards.files import read_limited
from ..shards.images import ImageRecipe, store_image
from ..shards.jpeg import read_jpeg_header
from ..shards.schema import JPG
from .checkpoint import Checkpoint
from .evaluate import evaluation_loader, named_batches
from .label_space import LabelSpace
from .models import load_trained_model
from .recipes import Recipe
from .step import model_input

if TYPE_CHECKING:
    from ..loaders.service_client import Connection


class Answer(NamedTuple):
    """What a model says of some images.

    Attributes:
        names: files, or keys of samples.
        logits: floating [n, C] on the model's device.
    """

    names: list[str]
    logits: Tensor


class AskedModel:
    """Asks one model.

    Args:
        path: of the checkpoint.
        saved: what is in it.
        device: where the model runs.
        num_threads: that decode.
    """

    def __init__(
        self, path: Path, saved: Checkpoint, *, device: str | torch.device, num_threads: int | None
    ) -> None:
        self._path, self._saved = path, saved
        self._device = torch.device(device)
        self._num_threads = num_threads
        self._model: nn.Module = load_trained_model(path, saved, saved.recipe.image_size)
        self._model.to(self._device).eval()

    def data_set(
        self, dataset: str, batch_size: int, *, other_classes: bool, connection: Connection | None = None
    ) -> Iterator[Answer]:
        """The images of a data set, in its order; see Predictor."""
        with evaluation_loader(
            self._saved.recipe,
            dataset,
            connection=connection,
            batch_size=batch_size,
            device=self._device,
            num_threads=self._num_threads,
            with_tags=False,
        ) as loader:
            trained, found = self._saved.label_space, LabelSpace.of_loader(loader)
            problems = trained.differences(found)
            if problems and trained.class_names:  # keywords are nobody's classes
                message = f"{self._path} was trained with other labels than data set {dataset!r} has: {'; '.join(problems)}"
                one, other = list(trained.class_names), list(found.class_names)
                if len(one) == len(other) and one != other and not other_classes:
                    raise DataError(
                        f"{message}. Give the checkpoint of this data set; or, to predict the checkpoint's classes: "
                        "softshard predict --other-classes"
                    )
                warnings.warn(f"{message}; the predictions are the checkpoint's classes", stacklevel=4)
            for batch in named_batches(loader):
                num = int(batch.valid.sum())  # padding comes last
                yield self._ask(batch.images[:num], batch.keys[:num])

    def files(
        self, paths: Sequence[str], bad: Callable[[ImageError], None], batch_size: int
    ) -> Iterator[Answer]:
        """Image files; see Predictor."""
        recipe = self._saved.recipe
        stored = self._saved.stored_images
        images = ImageRecipe(resize="none") if stored is None else ImageRecipe(**stored)
        decoder = CpuDecoder(
            batch_size,
            recipe.image_size,
            recipe.loader_dtype,
            MEAN,
            STD,
            self._num_threads or 1,
        )
        try:
            for first in range(0, len(paths), batch_size):
                names, jpegs = [], []
                for path in paths[first : first + batch_size]:
                    try:
                        jpegs.append(np.frombuffer(store_image(_read(path), images, path).jpeg, np.uint8))
                        names.append(path)
                    except ImageError as error:
                        bad(error)
                if jpegs:
                    decoder.submit(jpegs, *_windows(jpegs, recipe))
                    yield self._ask(decoder.take(np.arange(len(jpegs)), len(jpegs)), names)
        finally:
            decoder.close()

    def _ask(self, images: Tensor, names: list[str]) -> Answer:
        with torch.inference_mode():
            inputs = model_input(images.to(self._device), self._saved.recipe.normalise)
            logits: Tensor = self._model(inputs)
        finite = logits.isfinite().all(dim=1).tolist()
        if not all(finite):
            raise DataError(
                f"{self._path}: expected finite outputs for {names[finite.index(False)]!r}, found others; the model's "
                "weights are damaged, or its training diverged. Train it again with a lower --lr"
            )
        return Answer(names, logits)


def _read(path: str) -> bytes:
    try:
        return read_limited(path, JPG.max_bytes)
    except (OSError, DataError) as error:
        reason = error.strerror or error if isinstance(error, OSError) else error
        raise ImageError(f"{path}: expected an image file, found: {reason}") from error


def _windows(jpegs: Sequence[np.ndarray], recipe: Recipe) -> tuple[np.ndarray, np.ndarray]:
    """What evaluation sees: int32 [M, 4] windows (top, left, height, width in pixels); bool [M], no flips."""
    headers = [read_jpeg_header(jpeg.tobytes(), "image") for jpeg in jpegs]
    hw = np.array([(header.height, header.width) for header in headers])
    return draw_crops(recipe.evaluation_augment(), hw, np.arange(len(hw)), seed=0, epoch=0)
