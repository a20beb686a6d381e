"""A teacher's dense prediction: class logits for every cell of its last map (Yun et al. 2021, sec. 3).

The teacher's pooling layer is left out and its final linear layer runs as a 1x1 convolution with the same
weights. Pooling and a linear layer commute, so the mean over the cells *is* the teacher's own answer; this is
checked on every batch, because it fails exactly where a head has something between the two.

Shape letters: N batch, F features, C classes, K kept per cell, P Q rows and columns of cells.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..shards.errors import UsageError

# How far the mean over cells may be from the model's answer, relative to its largest logit. float32 stays
# near 1e-6; half precision rounds every cell.
MEAN_TOLERANCE = 1e-4
HALF_MEAN_TOLERANCE = 1e-2


class DenseTeacher:
    """Runs a timm model whose head is global average pooling, then one linear layer.

    Heads with a norm, a hidden layer or an activation in between (ConvNeXt, MobileNetV3), other poolings and
    models that work on tokens (ViT) are refused: the mean over their cells is not their answer.

    Args:
        model: built by timm.create_model; put into eval mode here, so dropout is off.

    Raises:
        UsageError: the model has no linear classifier.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model: Any = model.eval()  # what is called below is timm's, not nn.Module's
        self.name = type(model).__name__
        classifier = self.model.get_classifier() if hasattr(model, "get_classifier") else None
        if not isinstance(classifier, nn.Linear | nn.Conv2d):
            raise _refusal(self.name, f"its classifier is {type(classifier).__name__}, not one linear layer")
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
            UsageError: the head is not average pooling and one linear layer.
        """
        features = self.model.forward_features(images)
        num_features = self.classifier.weight.shape[1]
        if features.ndim != 4:
            raise _refusal(
                self.name, f"its features are tokens {tuple(features.shape)}, not a map [N, F, P, Q]"
            )
        features_NFPQ = features
        if features.shape[1] != num_features and features.shape[3] == num_features:
            features_NFPQ = features.permute(0, 3, 1, 2)  # Swin and its kin work channels-last
        if features_NFPQ.shape[1] != num_features:
            raise _refusal(
                self.name,
                f"its classifier takes {num_features} features, its last map has {features_NFPQ.shape[1]}: "
                "there is another layer between them",
            )
        # A 1x1 convolution, spelt as the linear layer it is: cuDNN's convolutions round to TF32 by default,
        # matrix products do not.
        weight_CF = self.classifier.weight.flatten(1)
        dense_NPQC = F.linear(features_NFPQ.permute(0, 2, 3, 1), weight_CF, self.classifier.bias)
        dense_NCPQ = dense_NPQC.permute(0, 3, 1, 2)
        self._check_mean(dense_NCPQ, self.model.forward_head(features))
        return dense_NCPQ

    def _check_mean(self, dense_NCPQ: Tensor, own_NC: Tensor) -> None:
        mean_NC = dense_NCPQ.float().mean(dim=(2, 3))
        own_NC = own_NC.float()
        if mean_NC.shape == own_NC.shape:
            off = float((mean_NC - own_NC).abs().max() / own_NC.abs().max().clamp(min=1e-12))
            tolerance = HALF_MEAN_TOLERANCE if dense_NCPQ.dtype.itemsize < 4 else MEAN_TOLERANCE
            if off <= tolerance:  # false for NaN
                return
            found = f"the mean over its cells is {off:.1e} (relative) from its own answer"
        else:
            found = f"its answer has shape {tuple(own_NC.shape)}, its cells' mean {tuple(mean_NC.shape)}"
        raise _refusal(self.name, f"{found}: its head is not average pooling and one linear layer")


def dense_logits(model: nn.Module, images: Tensor) -> Tensor:
    """DenseTeacher for one batch: images [N, 3, H, W] to logits [N, C, P, Q]."""
    return DenseTeacher(model)(images)


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
        f"teacher {name}: expected a head of global average pooling and one linear layer, found that "
        f"{reason}. Choose another teacher, for instance a ResNet, RegNet or EfficientNet"
    )
