"""A teacher's dense prediction: class logits for every cell of its last map (Yun et al. 2021, sec. 3).

The teacher's pooling layer is left out and its final linear layer runs on every cell. Pooling and a linear layer
commute, so the mean over the cells *is* the teacher's own answer; this is checked on every batch.

    features -> mean over cells ->  norm  -> linear -> answer          the model's own head
    features                    -> *a + b -> linear -> dense logits    the same, cell by cell

A norm between pooling and classifier (ConvNeXt, ViTs that pool their patches) is not linear, but its statistics are
those of the pooled vector, one mean and one variance an image. With them fixed it is `x * a + b`, and this is
applied to every cell: the mean stays exactly the answer, and a cell that differs from the rest of its image still
stands out. A norm with each cell's own statistics would neither average to the answer nor be what the classifier
was trained on.

Shape letters: N batch, F features, C classes, K kept per cell, P Q rows and columns of cells.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..shards.errors import UsageError
from .dense_head import WatchedHead, cells_of, norm_as_affine, relative_difference, watch_head
from .precision import autocast, check_amp

# How far the mean over cells may be from the model's answer, relative to its largest logit. float32 stays
# near 1e-6; half precision rounds every cell, and cuDNN's convolutions round to TF32 by default.
MEAN_TOLERANCE = 1e-4
ROUNDED_MEAN_TOLERANCE = 1e-2


class DenseTeacher:
    """Runs a timm model whose head is global average pooling, at most one norm, and one linear layer.

    CNNs with channels first or last, ConvNeXt and its kin, and vision transformers and mixers that pool their
    patches. Other heads are refused with the reason: a class token has no place in the image, a hidden layer or an
    activation behind the pooling (MobileNetV3) has no counterpart in a cell, other poolings are no mean.

    Args:
        model: built by timm.create_model; put into eval mode here, so dropout is off.
        amp: `bfloat16` or `float16`: the layers before the head run in mixed precision, the head in float32.

    Raises:
        UsageError: the model has no linear classifier, or there is no such `amp`.
    """

    def __init__(self, model: nn.Module, amp: str | None = None) -> None:
        check_amp(amp)
        self.model: Any = model.eval()  # what is called below is timm's, not nn.Module's
        self.name = type(model).__name__
        self.amp = amp
        classifier = self.model.get_classifier() if hasattr(model, "get_classifier") else None
        if not isinstance(classifier, nn.Linear | nn.Conv2d):
            found = type(classifier).__name__
            if isinstance(classifier, tuple):
                found = f"{len(classifier)} heads, as of a distilled model"
            raise _refusal(self.name, f"its classifier is {found}, not one linear layer")
        if isinstance(classifier, nn.Conv2d) and classifier.kernel_size != (1, 1):
            raise _refusal(self.name, f"its classifier is a {classifier.kernel_size} convolution")
        self.classifier = classifier

    @torch.inference_mode()
    def __call__(self, images: Tensor) -> Tensor:
        """Dense logits.

        Args:
            images: floating [N, 3, H, W], normalised as the model expects.

        Returns:
            [N, C, P, Q] logits; P runs along the image's rows, Q along its columns.

        Raises:
            UsageError: the head is another one, or the model cannot run images of this size.
        """
        features = self._features(images)
        head = watch_head(self.model, self.classifier, features)
        cells, affine = self._cells(features, head, (images.shape[2], images.shape[3]))
        # A 1x1 convolution, spelt as the linear layer it is: cuDNN's convolutions round to TF32 by default,
        # matrix products do not.
        weight_CF = self.classifier.weight.flatten(1)
        if affine is None:
            dense_NPQC = F.linear(cells, weight_CF, self.classifier.bias)
        else:
            scale_NF, shift_NF = (part.expand(len(cells), cells.shape[3]) for part in affine)
            dense_NPQC = F.linear(cells * scale_NF[:, None, None], weight_CF, self.classifier.bias)
            dense_NPQC += F.linear(shift_NF, weight_CF)[:, None, None]
        dense_NCPQ = dense_NPQC.permute(0, 3, 1, 2)
        self._check_mean(dense_NCPQ, head.answer_NC)
        return dense_NCPQ

    def _features(self, images: Tensor) -> Tensor:
        try:
            with autocast(images.device, self.amp):
                features = self.model.forward_features(images)
        except (AssertionError, RuntimeError) as error:
            reason = " ".join(str(error).split())
            if isinstance(error, RuntimeError) and not any(word in reason for word in ("shape", "size of")):
                raise  # out of memory, a broken GPU
            raise UsageError(
                f"teacher {self.name}: expected to run images of {images.shape[2]} x {images.shape[3]} pixels, found that "
                f"it cannot ({reason[:200]}). Choose a --size that its patches and windows divide"
            ) from error
        if not isinstance(features, Tensor):
            raise _refusal(self.name, f"its features are {type(features).__name__}, not one map")
        return features.to(self.classifier.weight.dtype)

    @property
    def _tolerance(self) -> float:
        weight = self.classifier.weight
        rounded = weight.dtype.itemsize < 4 or (isinstance(self.classifier, nn.Conv2d) and weight.is_cuda)
        return ROUNDED_MEAN_TOLERANCE if rounded else MEAN_TOLERANCE

    def _cells(
        self, features: Tensor, head: WatchedHead, image_hw: tuple[int, int]
    ) -> tuple[Tensor, tuple[Tensor, Tensor] | None]:
        """[N, P, Q, F], whose mean over the cells is the head's pooled vector; and (scale, shift) of its norm, or None."""
        if head.pooled_NF is None:
            raise _refusal(self.name, "its head does not run its classifier")
        affine = norm_as_affine(head.between[0], head.pooled_NF) if len(head.between) == 1 else None
        if head.between and affine is None:
            names = ", ".join(type(module).__name__ for module in head.between)
            raise _refusal(self.name, f"there is {names} between its last map and its classifier")
        num_prefix = int(getattr(self.model, "num_prefix_tokens", 0))
        cells = cells_of(features, head.pooled_NF, image_hw, num_prefix, self._tolerance)
        if isinstance(cells, str):
            raise _refusal(self.name, cells)
        return cells, affine

    def _check_mean(self, dense_NCPQ: Tensor, own_NC: Tensor) -> None:
        mean_NC = dense_NCPQ.float().mean(dim=(2, 3))
        if mean_NC.shape == own_NC.shape:
            off = relative_difference(mean_NC, own_NC)
            if off <= self._tolerance:  # false for NaN
                return
            found = f"the mean over its cells is {off:.1e} (relative) from its own answer"
        else:
            found = f"its answer has shape {tuple(own_NC.shape)}, its cells' mean {tuple(mean_NC.shape)}"
        raise _refusal(self.name, found)


def mean_of_teachers(dense_NCPQ: Sequence[Tensor], names: Sequence[str]) -> Tensor:
    """The mean of several teachers' dense logits.

    Raises:
        UsageError: they are on other grids: resampling would move what a cell says.
    """
    shapes = [tuple(dense.shape[1:]) for dense in dense_NCPQ]
    if len(set(shapes)) > 1:
        grids = ", ".join(
            f"{name} {rows} x {columns}" for name, (_, rows, columns) in zip(names, shapes, strict=True)
        )
        raise UsageError(
            f"teachers: expected dense predictions on one grid of cells, found {grids}. Choose teachers of one stride, or "
            "run them one by one"
        )
    return dense_NCPQ[0] if len(dense_NCPQ) == 1 else torch.stack(list(dense_NCPQ)).mean(dim=0)


def top_k_map(dense_NCPQ: Tensor, k: int = 5) -> tuple[Tensor, Tensor]:
    """The k best classes of every cell.

    Args:
        dense_NCPQ: floating [N, C, P, Q].
        k: K, between 1 and C.

    Returns:
        (scores, ids): float32 [N, K, P, Q] logits, largest first, and int64 [N, K, P, Q] class indices.
    """
    num_classes = dense_NCPQ.shape[1]
    if not 1 <= k <= num_classes:
        raise UsageError(f"top_k_map: expected k between 1 and {num_classes} (the classes), found {k}")
    scores, ids = dense_NCPQ.float().topk(k, dim=1)
    return scores, ids


def _refusal(name: str, reason: str) -> UsageError:
    return UsageError(
        f"teacher {name}: expected a head of global average pooling, at most one norm and one linear layer, found that "
        f"{reason}. Choose another teacher, for instance a ResNet, RegNet, EfficientNet or ConvNeXt"
    )
