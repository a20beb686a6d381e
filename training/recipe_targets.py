"""Losses of recipes by name, their options, and which targets of the loader's they compare the logits with."""

from __future__ import annotations

from ..loaders.target_modes import TARGETS

LOSSES = (
    "single-label",
    "semantic-softmax",
    "multi-label",
    "asl",
    "soft-target",
    "live-teacher",
    "weakly-tagged",
    "label-weighted",
    "joint",
)
# These need a label tree: what a sample is right about is its class and all its ancestors.
TREE_LOSSES = ("semantic-softmax", "multi-label", "asl")
# Of these the ones with a sigmoid for each class.
SIGMOID_LOSSES = ("multi-label", "asl")
# These compare the logits with what the loader's `targets` bring.
TARGET_LOSSES = ("soft-target", "weakly-tagged", "label-weighted", "joint")
# These train outputs for the keywords of a vocabulary; of them only `joint` has outputs for classes, too.
TAG_LOSSES = ("weakly-tagged", "joint")
# Those that take sparse targets.
SPARSE_LOSSES = ("weakly-tagged", "label-weighted", "joint")
# What the weight of a level counts, in semantic softmax; and by what rule semantic distillation trusts its teacher.
BALANCES = ("classes", "images")
DISTILLATION_RULES = ("paper", "code")
_NOT_OF_CLASSES = ("none", "tags")


def target_problems(loss: str, targets: str, keep: int | None) -> list[str]:
    """What is wrong with a recipe's `targets` and `keep_targets`: a line for each problem.

    Args:
        loss: one of `recipe_targets.LOSSES`.
        targets: names that the loader knows, joined by `+`.
        keep: of each image's targets, or None.
    """
    problems = []
    names = targets.split("+")
    of_classes = names[0] not in _NOT_OF_CLASSES
    if any(name not in TARGETS for name in names):
        problems.append(f"targets: expected one of {TARGETS}, found {targets!r}")
    elif loss in ("soft-target", "label-weighted") and not (of_classes and len(names) == 1):
        problems.append(f"targets: expected soft targets for the loss {loss!r}, found {targets!r}")
    elif loss == "weakly-tagged" and targets != "tags":
        problems.append(f"targets: expected 'tags' for the loss 'weakly-tagged', found {targets!r}")
    elif loss == "joint" and not (of_classes and names[1:] == ["tags"]):
        problems.append(
            "targets: expected those of classes and those of keywords for the loss 'joint', such as 'weights+tags', "
            f"found {targets!r}"
        )
    elif loss not in TARGET_LOSSES and len(names) > 1:
        problems.append(f"targets: expected one name for the loss {loss!r}, found {targets!r}")
    if keep is not None and (keep < 1 or loss not in SPARSE_LOSSES):
        problems.append(
            f"keep_targets: expected none, or at least 1 with a loss of {', '.join(SPARSE_LOSSES)}, found {keep} with "
            f"{loss!r}"
        )
    return problems
