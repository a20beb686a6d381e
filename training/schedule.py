"""The optimizer, and the learning rate of every step, from timm.

A timm scheduler computes the rate from the step alone, so a run that continues needs no scheduler state: its
position is the step. timm has no one-cycle schedule; the one here gives torch's numbers (a test compares
them).
"""

from __future__ import annotations

import math

import numpy as np
import torch
from timm.optim import create_optimizer_v2  # pyright: ignore[reportPrivateImportUsage]
from timm.scheduler.cosine_lr import CosineLRScheduler
from timm.scheduler.scheduler import Scheduler
from torch import nn
from torch.optim import Optimizer

from .recipes import Recipe

_FINAL_DIV = 1e4  # the last learning rate of one-cycle is the first one divided by this; torch's default
_COMPARED_STEPS = 1000


def create_optimizer(recipe: Recipe, model: nn.Module) -> Optimizer:
    """The recipe's optimizer, with its highest learning rate."""
    return create_optimizer_v2(
        model, opt=recipe.optimizer, lr=recipe.lr, weight_decay=recipe.weight_decay, momentum=recipe.momentum
    )


def create_schedule(recipe: Recipe, optimizer: Optimizer, total_steps: int) -> Scheduler:
    """The recipe's schedule; call `step_update(step)` before step 0, 1, ..., total_steps - 1."""
    if recipe.schedule == "one-cycle":
        return OneCycleScheduler(optimizer, total_steps, recipe.warmup, recipe.warmup_from)
    warmup_steps = round(recipe.warmup * total_steps)
    if recipe.schedule in ("constant", "step"):
        drops = None
        if recipe.schedule == "step":
            drops = (recipe.step_epochs * total_steps // recipe.epochs, recipe.step_factor)
        return ConstantScheduler(optimizer, warmup_steps, recipe.warmup_from, drops)
    return CosineLRScheduler(
        optimizer,
        # The cosine begins where the warm-up ends (warmup_prefix), as in ReLabel's published code.
        t_initial=max(1, total_steps - warmup_steps),
        warmup_t=warmup_steps,
        warmup_lr_init=recipe.warmup_from * recipe.lr,
        warmup_prefix=True,
        t_in_epochs=False,
    )


class OneCycleScheduler(Scheduler):
    """Cosine up to the learning rate, cosine down to almost nothing (Smith 2018; torch's OneCycleLR, two
    phases).

    Args:
        optimizer: its groups' `lr` is the highest one.
        total_steps: length of the cycle.
        warmup: share of the steps that go up.
        warmup_from: the first learning rate as a share of the highest.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        total_steps: int,
        warmup: float,
        warmup_from: float,
    ) -> None:
        # Set before the base class stores what _get_lr needs and updates the groups.
        self.top_step = warmup * total_steps - 1
        self.last_step = total_steps - 1
        self.warmup_from = warmup_from
        self.final_share = warmup_from / _FINAL_DIV
        super().__init__(optimizer, param_group_field="lr", t_in_epochs=False)

    def _get_lr(self, t: int) -> list[float]:
        if t <= self.top_step:
            share = _cosine(self.warmup_from, 1.0, t / self.top_step if self.top_step else 1.0)
        else:
            way = (t - self.top_step) / (self.last_step - self.top_step)
            share = _cosine(1.0, self.final_share, min(way, 1.0))
        return [base * share for base in self.base_values]


class ConstantScheduler(Scheduler):
    """Linear up to the learning rate, which then stays, or drops in steps.

    Args:
        optimizer: its groups' `lr` is the rate.
        warmup_steps: steps that go up.
        warmup_from: the first learning rate as a share of the rate, where there is a warm-up.
        drops: (steps, factor): each so many steps, counted from the first one, the rate is multiplied with the factor;
            None for never.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        warmup_steps: int,
        warmup_from: float,
        drops: tuple[int, float] | None = None,
    ) -> None:
        self.warmup_steps = warmup_steps
        self.warmup_from = warmup_from
        self.drops = drops
        super().__init__(optimizer, param_group_field="lr", t_in_epochs=False)

    def _get_lr(self, t: int) -> list[float]:
        way = t / self.warmup_steps if t < self.warmup_steps else 1.0
        share = self.warmup_from + (1.0 - self.warmup_from) * way
        if self.drops is not None:
            steps, factor = self.drops
            share *= factor ** (t // steps)
        return [base * share for base in self.base_values]


def first_other_rate(
    recipe: Recipe, other: Recipe, steps_per_epoch: int, steps: int
) -> tuple[int, float, float] | None:
    """Where two recipes' learning rates part, looking at a thousand of the first `steps` steps.

    Returns:
        (step, the recipe's rate, the other's), or None where they agree.
    """
    looked_at = np.unique(np.linspace(0, max(0, steps - 1), _COMPARED_STEPS, dtype=np.int64)).tolist()
    if not steps:
        return None
    pairs = zip(*(_rates(each, steps_per_epoch, looked_at) for each in (recipe, other)), strict=True)
    for step, (rate, other_rate) in zip(looked_at, pairs, strict=True):
        if not math.isclose(rate, other_rate, rel_tol=1e-9):
            return step, rate, other_rate
    return None


def _rates(recipe: Recipe, steps_per_epoch: int, steps: list[int]) -> list[float]:
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=recipe.lr)
    schedule = create_schedule(recipe, optimizer, recipe.epochs * steps_per_epoch)
    rates = []
    for step in steps:
        schedule.step_update(step)
        rates.append(optimizer.param_groups[0]["lr"])
    return rates


def _cosine(start: float, end: float, way: float) -> float:
    return end + (start - end) / 2 * (1 + math.cos(math.pi * way))
