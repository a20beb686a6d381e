"""Recipes: everything about a training run that decides its result and is not a file, a model or a machine.

A recipe is a small frozen dataclass returned by a function; its defaults are the papers' numbers. Change it
with `dataclasses.replace(semantic_softmax(), epochs=10)`: a misspelt name is a TypeError.

Both papers trained in mixed precision on GPUs that had it. Here every recipe begins as `float32`, which runs
everywhere and is what the exactness promises are tested with: say `precision="bfloat16"` on a GPU.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from ..loaders.augment_text import parse_augment
from ..loaders.crops import Augment
from ..shards.errors import UsageError
from .recipe_checks import recipe_problems


@dataclass(frozen=True)
class Recipe:
    """How a model is trained.

    Attributes:
        name: as the command line calls it.
        loss: `single-label`; `semantic-softmax`, `multi-label` (binary cross-entropy) or `asl`, which need a label
            tree; `soft-target` (needs `targets`); `live-teacher`, what a teacher says of the very crop (`train
            --teacher`); or of noisy web labels `weakly-tagged` (an image's keywords), `label-weighted` (classes with
            weights, from `targets`) or `joint`, both at once (see weighted_softmax.py).
        targets: what the loader brings as soft targets: `none`, `original` (the class, one-hot), `relabel` (each
            crop's pooled label map) or one of its variants, `tags`, `weights` or `pseudo` (see Loader); for `joint` two,
            of classes and of keywords: `weights+tags`.
        keep_targets: with noisy web labels: None for dense targets, or how many of each image's targets are kept, the
            largest: thousands of classes and keywords, of which an image has a few, then take little memory.
        smoothing: label smoothing in [0, 1), of `single-label` and `semantic-softmax`.
        levels: with a label tree: levels trained, from the root; None for all.
        weight_clamp: `semantic-softmax` only: largest weight of a level; None for no limit.
        balance: `semantic-softmax` only: what the weight of a level counts, `classes` (as published) or the data
            set's `images`.
        level_order: with a label tree: keep the head's rows in level order while it trains, which makes the loss
            faster. Checkpoints and exported weights are in class order in any case.
        gamma_neg: `asl` only: focusing of the wrong classes.
        gamma_pos: `asl` only: focusing of the right ones.
        asl_clip: `asl` only: what is taken off the probability of a wrong class.
        distill: `semantic-softmax` only: learn from a teacher, too (`train --teacher`, or stored in the shards), by the
            rule of the `paper` or of the published `code` (see SemanticKDLoss); or `none`.
        distill_weight: what the distillation's loss is multiplied with.
        optimizer: a name of timm.optim: `adam`, `sgd` (which is Nesterov there), `momentum`, `adamw`, ...
        lr: the highest learning rate, for `global_batch`; it is not scaled when that changes.
        weight_decay: left out for biases and other 1-d weights.
        momentum: for optimizers that have one.
        schedule: `one-cycle` (cosine up, cosine down to lr * warmup_from / 10,000), `cosine` (linear up,
            cosine down to 0), `step` (linear up, then `lr`, every `step_epochs` epochs times `step_factor`) or `constant`
            (linear up, then `lr`), a rate for every step. Only `step` and `constant` without warm-up know no end, so
            that a run can be given more epochs later.
        step_epochs: `step` only: epochs from one drop of the learning rate to the next.
        step_factor: `step` only: what it is then multiplied with.
        lr_of_start: take `lr` from the checkpoint that training begins with (`train --init-from`): the rate of its
            last step.
        warmup: share of all steps in which the learning rate rises.
        warmup_from: learning rate of the first step, as a share of `lr`.
        epochs: passes over the data set.
        global_batch: samples per step over all ranks, not per device.
        lanes: contiguous parts of an epoch that are read side by side: the loader's `lanes`, which divide `global_batch`.
        image_size: pixels of both sides.
        crop_scale: (least, most) area of the random crop as a share of the image; None: no crop, the whole
            image is squished.
        flip: mirror half of the images.
        augment: what else is done to them: `none`, or parts joined by `+`, such as
            `color-jitter:0.4+lighting:0.1+cutmix:1` (see `parse_augment`). Mixup and CutMix need soft targets.
        mix_off_epochs: epochs at the end without Mixup and CutMix.
        eval_centre: in evaluation: the side of a centred square as a share of the image's shorter side (0.875:
            resize to 256, cut 224); None squishes the whole image.
        normalise: subtract ImageNet's mean and divide by its standard deviation; else pixels are in [0, 1].
        precision: of the forward pass: `float32`, or under autocast `bfloat16` or `float16` (with loss scaling;
            steps that overflow are skipped). Weights, loss and evaluation are float32 in any case.
        accumulate: micro-batches that a rank's part of the global batch is cut into, for less memory. The same
            result for a model without batch norm, whose statistics are those of a micro-batch.
        ema_decay: keep a moving average of the weights, new = decay * old + (1 - decay) * weights after every
            step; it is what is evaluated and exported. None for none.
        clip_norm: largest norm of the gradient over all weights; None for no limit.
        freeze: train the head only; everything else stays as it was loaded, batch norm statistics included.
        new_head: begin with a new head, whatever the weights bring that training begins with.
        class_balance: class-balanced sampling of the training set, from 0 (as it is) to 1 (every class the same): the
            loader's `balance`.
        tag_weight: `joint` only: what the loss of the keywords is multiplied with, beside that of the classes.
    """

    name: str
    loss: str
    targets: str
    smoothing: float
    optimizer: str
    lr: float
    weight_decay: float
    schedule: str
    warmup: float
    warmup_from: float
    epochs: int
    global_batch: int
    crop_scale: tuple[float, float] | None
    flip: bool
    normalise: bool
    image_size: int = 224
    momentum: float = 0.9
    levels: int | None = None
    weight_clamp: float | None = 20.0
    balance: str = "classes"
    level_order: bool = False
    gamma_neg: float = 4.0
    gamma_pos: float = 1.0
    asl_clip: float = 0.05
    distill: str = "none"
    distill_weight: float = 1.0
    precision: str = "float32"
    accumulate: int = 1
    ema_decay: float | None = None
    clip_norm: float | None = None
    freeze: bool = False
    new_head: bool = False
    augment: str = "none"
    mix_off_epochs: int = 0
    eval_centre: float | None = None
    step_epochs: int = 90
    step_factor: float = 0.1
    lr_of_start: bool = False
    class_balance: float = 0.0
    keep_targets: int | None = None
    tag_weight: float = 1.0
    lanes: int = 1

    def __post_init__(self) -> None:
        if problems := recipe_problems(self):
            raise UsageError(f"recipe {self.name!r}: " + "; ".join(problems))

    @property
    def loader_targets(self) -> str | tuple[str, ...]:
        """`targets` as the loader takes them: `weights+tags` are two."""
        return tuple(self.targets.split("+")) if "+" in self.targets else self.targets

    @property
    def loader_dtype(self) -> str:
        """Pixels as the loader gives them: normalised, or raw ones that `model_input` scales to [0, 1]."""
        return "float32" if self.normalise else "uint8"

    def train_augment(self) -> Augment:
        """What training cuts from images and does to them."""
        augment = parse_augment(self.augment)
        return dataclasses.replace(
            augment,
            size=self.image_size,
            scale=self.crop_scale,
            flip=self.flip,
            mix_until_epoch=self.epochs - self.mix_off_epochs if augment.mixes else None,
        )

    def evaluation_augment(self) -> Augment:
        """What evaluation sees of an image."""
        return Augment.evaluation(self.image_size, self.eval_centre)

    @property
    def wants_teacher(self) -> bool:
        """Whether a teacher is asked in every step."""
        return self.distill != "none" or self.loss == "live-teacher"

    def differences(self, other: Recipe) -> list[str]:
        """One line for each field that differs: `lr: 0.1, not 0.2` (this recipe's value first)."""
        return [
            f"{field.name}: {getattr(self, field.name)!r}, not {getattr(other, field.name)!r}"
            for field in dataclasses.fields(self)
            if getattr(self, field.name) != getattr(other, field.name)
        ]

    def how(self) -> str:
        """How a step is taken, as far as it is not the plain way."""
        parts = [self.precision]
        if self.augment != "none":
            parts.append(f"augmented by {self.augment}")
        if self.mix_off_epochs:
            parts.append(f"nothing mixed in the last {self.mix_off_epochs} epochs")
        if self.lanes > 1:
            parts.append(f"{self.lanes} lanes")
        if self.accumulate > 1:
            parts.append(f"{self.accumulate} micro-batches a step")
        if self.ema_decay is not None:
            parts.append(f"weights averaged with decay {self.ema_decay}")
        if self.clip_norm is not None:
            parts.append(f"gradients clipped to norm {self.clip_norm}")
        if self.freeze:
            parts.append("only the head trains")
        if self.class_balance:
            parts.append(f"classes balanced with the exponent {self.class_balance}")
        if self.level_order:
            parts.append("head in level order")
        if self.distill != "none":
            parts.append(f"distilled by the rule of the {self.distill}, weight {self.distill_weight}")
        return ", ".join(parts)


def single_label() -> Recipe:
    """Plain cross-entropy, otherwise as semantic_softmax (Ridnik et al. 2021, the single-label baseline)."""
    return dataclasses.replace(semantic_softmax(), name="single-label", loss="single-label")


def semantic_softmax() -> Recipe:
    """ImageNet-21K-P's recipe (Ridnik et al. 2021): start it from ImageNet-1K weights.

    Global batch: the published commands, 64 on each of eight GPUs.
    """
    return Recipe(
        name="semantic-softmax",
        loss="semantic-softmax",
        targets="none",
        smoothing=0.2,
        optimizer="adam",
        lr=3e-4,
        weight_decay=1e-4,
        schedule="one-cycle",
        warmup=0.1,
        warmup_from=1 / 20,
        epochs=80,
        global_batch=512,
        crop_scale=None,
        flip=False,
        normalise=False,
        augment="cutout:0.5+randaugment-21k",
    )


def semantic_kd() -> Recipe:
    """semantic_softmax with semantic distillation from a teacher (Ridnik et al. 2021, sec. 3.3): `train --teacher`, or
    one that `softshard teacher make` stored in the shards.

    The rule is the paper's; the weight of 1 is ours.
    """
    return dataclasses.replace(semantic_softmax(), name="semantic-kd", distill="paper")


def multi_label_bce() -> Recipe:
    """A sigmoid for each class, right for a label and its ancestors; binary cross-entropy; otherwise as
    semantic_softmax (Ridnik et al. 2021, the multi-label baseline). Without smoothing."""
    return dataclasses.replace(semantic_softmax(), name="multi-label", loss="multi-label", smoothing=0.0)


def multi_label_asl() -> Recipe:
    """multi_label_bce with the asymmetric loss (Ben-Baruch et al. 2021): gammas 4 and 1, clip 0.05."""
    return dataclasses.replace(multi_label_bce(), name="asl", loss="asl")


def relabel() -> Recipe:
    """ReLabel on ImageNet-1K (Yun et al. 2021), trained from scratch: 5 of the 300 epochs are warm-up.

    With the preset `paper-cutmix` it is the paper's run with CutMix.
    """
    return Recipe(
        name="relabel",
        loss="soft-target",
        targets="relabel",
        smoothing=0.0,
        optimizer="sgd",
        lr=0.1,
        weight_decay=1e-4,
        schedule="cosine",
        warmup=5 / 300,
        warmup_from=0.0,
        epochs=300,
        global_batch=1024,
        crop_scale=(0.08, 1.0),
        flip=True,
        normalise=True,
        augment="color-jitter:0.4+lighting:0.1",
        eval_centre=0.875,
    )


def live_distillation() -> Recipe:
    """relabel with a teacher that is asked about every crop, instead of label maps: `train --teacher`.

    What Yun et al. (2021) compare ReLabel with: the targets of "knowledge distillation", at the teacher's cost in every
    step.
    """
    return dataclasses.replace(relabel(), name="live-distillation", loss="live-teacher", targets="none")


def transfer() -> Recipe:
    """A trained model for other classes: a new head, 50 epochs, cosine with 3 epochs of warm-up, an average of
    the weights with decay 0.995 (Ridnik et al. 2021, transfer).

    Global batch: ours, since the data sets are small; loss, optimizer and learning rate as in pretraining.
    `freeze=True` trains the head only.
    """
    return dataclasses.replace(
        single_label(),
        name="transfer",
        schedule="cosine",
        warmup=3 / 50,
        warmup_from=0.0,
        epochs=50,
        global_batch=128,
        ema_decay=0.995,
        new_head=True,
    )
