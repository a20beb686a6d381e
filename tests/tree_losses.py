"""The losses of a label tree."""

from softshard.training.distillation import SemanticKDLoss
from softshard.training.losses import SemanticSoftmaxLoss
from softshard.training.multi_label import AsymmetricLoss, BinaryCrossEntropyLoss


def every_loss(tree, **options):
    """By name; `kd, stored` is called with what is kept of a teacher."""
    return {
        "semantic-softmax": SemanticSoftmaxLoss(tree, **options),
        "bce": BinaryCrossEntropyLoss(tree, **options),
        "asl": AsymmetricLoss(tree, **options),
        "kd": SemanticKDLoss(tree, **options),
        "kd, stored": SemanticKDLoss(tree, **options),
    }
