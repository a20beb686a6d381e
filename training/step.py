"""One step of the optimizer: micro-batches under autocast, their gradients, scaling, clipping, average.

    batch -> `accumulate` micro-batches: forward (autocast) -> loss -> backward, gradients add up
          -> unscale -> clip -> optimizer -> moving average of the weights

The loader gives the whole batch of a step; it is cut here. So the order of the samples, the end of an epoch
(`drop` and `pad`) and what a checkpoint says of the data do not depend on `accumulate`, and the number of valid
samples that the loss divides by is that of the global batch, known before the first micro-batch.
"""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any, NamedTuple

import torch
from timm.utils.model_ema import ModelEmaV3
from torch import Tensor, nn
from torch import distributed as dist
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from ..loaders.batch import Batch, TeacherLevels, map_tensors
from ..shards.errors import DataError, UsageError
from .head_order import HeadOrder
from .level_layout import LevelOrder
from .models import set_training
from .objective import target_of
from .precision import autocast
from .recipes import Recipe
from .teacher import CheckpointTeacher
from .teacher_timm import TimmTeacher


class StepResult(NamedTuple):
    """What a step came to.

    Attributes:
        loss: this rank's part of the global loss, a detached scalar on the device.
        skipped: whether float16 overflowed, so that the weights stayed as they were.
    """

    loss: Tensor
    skipped: bool


class TrainStep:
    """Takes steps, and keeps what lives from one to the next beside model and optimizer.

    The order in which the parts are put together matters: the head goes into level order before anything is kept
    of it, and the average is a copy of the model, made before the model is compiled.

    Args:
        recipe: precision, accumulation, clipping, average, freezing, target.
        model: on its device; its own state dict stays free of wrappers' prefixes.
        loss: see `create_loss`.
        optimizer: over the model's parameters.
        world_size: ranks that share the batch; with more than one, torch.distributed has begun.
        compile: run the model through torch.compile.
        teacher: of a distillation: its logits are the loss's second argument. So is what a batch brings of a stored
            one.
        head_order: how the head is kept in level order, for a loss that wants it so. By default it is not.
    """

    def __init__(
        self,
        recipe: Recipe,
        model: nn.Module,
        loss: nn.Module,
        optimizer: Optimizer,
        *,
        world_size: int = 1,
        compile: bool = False,
        teacher: CheckpointTeacher | TimmTeacher | None = None,
        head_order: HeadOrder | None = None,
    ) -> None:
        self.recipe = recipe
        self.plain_model = model
        self.loss = loss
        self.teacher = teacher
        self.optimizer = optimizer
        self.world_size = world_size
        self.device_type = next(model.parameters()).device.type
        self.scaler = torch.amp.GradScaler(self.device_type, enabled=recipe.precision == "float16")
        self.head_order = head_order or HeadOrder(model, "", None)
        self.head_order.permute_(model)
        self.ema = None if recipe.ema_decay is None else ModelEmaV3(model, decay=recipe.ema_decay)
        if compile:
            model.compile()  # in place: torch.compile's wrapper would rename every weight
        self.model: nn.Module = model if world_size == 1 else DistributedDataParallel(model)

    def __call__(self, batch: Batch) -> StepResult:
        """Take the step of this rank's part of a global batch; all ranks together."""
        num_valid = batch.valid.sum()
        if self.world_size > 1:
            dist.all_reduce(num_valid)
        num_valid = num_valid.clamp(min=1)
        self.optimizer.zero_grad(set_to_none=True)
        parts = (batch.images, target_of(self.recipe, batch), batch.valid, *(batch.teacher or ()))
        micro_batches = _cut(parts, self.recipe.accumulate)
        losses = []
        for i, (images, target, valid, *stored) in enumerate(micro_batches):
            # The ranks exchange gradients once, after the last micro-batch.
            with nullcontext() if i + 1 == len(micro_batches) else self._no_sync():
                with autocast(self.device_type, self.recipe.precision):
                    inputs = model_input(images, self.recipe.normalise)
                    logits = [self._logits(inputs)]
                    if stored:
                        logits.append(TeacherLevels(*stored))
                    elif self.teacher is not None:
                        logits.append(self.teacher(inputs))
                loss = self.loss(*logits, target, valid, num_valid)
                # Gradients are averaged over the ranks; times the world size that is the mean over samples.
                self.scaler.scale(loss * self.world_size).backward()
            losses.append(loss.detach())
        skipped = self._update_weights()
        return StepResult(torch.stack(losses).sum(), skipped)

    def _logits(self, inputs: Tensor) -> Any:
        try:
            return self.model(inputs)
        except ValueError as error:
            # What torch says of batch norm over one value; there is no type for it.
            if len(inputs) > 1 or "more than 1 value per channel" not in str(error):
                raise
            raise UsageError(
                f"accumulate: expected micro-batches of two samples or more for a model with batch norm, found batches of "
                f"one: a global batch of {self.recipe.global_batch} cut by {self.world_size} processes and into "
                f"{self.recipe.accumulate}. Give a larger --global-batch, or a smaller --accumulate"
            ) from error

    def train(self) -> None:
        """Put the model into training mode; what is frozen stays as it is in evaluation."""
        set_training(self.plain_model, frozen=self.recipe.freeze)

    @property
    def best_model(self) -> nn.Module:
        """The model to evaluate and to export: the average where there is one."""
        return self.plain_model if self.ema is None else self.ema.module

    @property
    def best_weights(self) -> str:
        """Which weights these are: `ema` or `model`."""
        return "model" if self.ema is None else "ema"

    @property
    def order(self) -> LevelOrder | None:
        """The order that the models' logits are in; None for class order."""
        return self.head_order.order

    def best_state_dict(self) -> dict[str, Tensor]:
        """The weights of `best_model`, in class order."""
        return self.head_order.to_class_order(self.best_model.state_dict())

    def check_weights(self, step: int) -> None:
        """Refuse weights that the last step spoilt: its own loss does not tell, and a checkpoint would keep them.

        Called by all ranks together, which raise together.

        Raises:
            DataError: a weight, an average or a statistic of batch norm is infinite or NaN.
        """
        models = [("", self.plain_model), *([] if self.ema is None else [("average of ", self.ema.module)])]
        kept = {f"{of}{name}": kept for of, model in models for name, kept in model.state_dict().items()}
        kept = {name: tensor for name, tensor in kept.items() if tensor.is_floating_point()}
        flags = torch.stack([tensor.isfinite().all() for tensor in kept.values()]).int()
        if self.world_size > 1:  # statistics are a rank's own, and all ranks go on or none does
            dist.all_reduce(flags, op=dist.ReduceOp.MIN)
        finite = flags.tolist()  # waits once
        if not all(finite):
            name = list(kept)[finite.index(0)]
            raise DataError(
                f"step {step}: expected finite weights after it, found others in {name}; the learning rate may be too high "
                "for this batch size. Continue from the last checkpoint, if there is one, with --resume, or begin again "
                "with a lower --lr or with --set clip_norm=1"
            )

    def share_buffers(self) -> None:
        """Give every rank the batch norm statistics of rank 0: they saw other samples, and rank 0's are saved."""
        if self.world_size > 1:
            for model in {self.plain_model, self.best_model}:
                for buffer in model.buffers():
                    dist.broadcast(buffer, src=0)

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps: `model`, `model_ema` (weights in class order; or None) and `scaler` (of float16,
        or None)."""
        to_class_order = self.head_order.to_class_order
        return {
            "model": to_class_order(self.plain_model.state_dict()),
            "model_ema": None if self.ema is None else to_class_order(self.ema.module.state_dict()),
            "scaler": self.scaler.state_dict() if self.scaler.is_enabled() else None,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from what `state_dict` gave under the same recipe."""
        to_level_order = self.head_order.to_level_order
        self.plain_model.load_state_dict(to_level_order(state["model"]))
        if self.ema is not None:
            self.ema.module.load_state_dict(to_level_order(state["model_ema"]))
        if self.scaler.is_enabled():
            self.scaler.load_state_dict(state["scaler"])

    def _update_weights(self) -> bool:
        """Returns whether the step was skipped: gradients of float16 that are not finite change nothing."""
        if self.recipe.clip_norm is not None:
            self.scaler.unscale_(self.optimizer)
            nn.utils.clip_grad_norm_(self.plain_model.parameters(), self.recipe.clip_norm)
        scale = self.scaler.get_scale()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        # The scaler says it by lowering its scale. The ranks agree: they have the same gradients.
        skipped = self.scaler.get_scale() < scale
        if self.ema is not None and not skipped:
            self.ema.update(self.plain_model)
        return skipped

    def _no_sync(self) -> Any:
        return self.model.no_sync() if isinstance(self.model, DistributedDataParallel) else nullcontext()


def _cut(parts: tuple[Any, ...], num: int) -> list[tuple[Any, ...]]:
    """Parts of a batch, tensors [N, ...] or tuples of them, cut into `num` equal micro-batches along N."""
    return [map_tensors(parts, lambda tensor, i=i: tensor.chunk(num)[i]) for i in range(num)]


def model_input(images: Tensor, normalise: bool) -> Tensor:
    """Images as the model wants them: as they came where the loader normalised them, else uint8 to [0, 1]."""
    return images if normalise else images.float() / 255.0
