"""Mixed precision of a model's layers, and what files say of how a model ran."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..shards.errors import check_choice

if TYPE_CHECKING:  # the command line names precisions without torch
    import torch

AMP = ("bfloat16", "float16")
PRECISIONS = ("float32", *AMP)


def check_amp(amp: str | None) -> None:
    """Refuse a precision that is neither one of AMP nor None, which is float32.

    Raises:
        UsageError: naming those there are.
    """
    if amp is not None:
        check_choice("amp", amp, AMP)


def autocast(device: str | torch.device, precision: str | None) -> torch.autocast:
    """What a model runs under on a device: one of AMP; float32, or None, changes nothing."""
    import torch

    dtype = None if precision in (None, "float32") else getattr(torch, precision)
    return torch.autocast(torch.device(device).type, dtype=dtype, enabled=dtype is not None)


def how_it_runs(device: str | torch.device, amp: str | None) -> dict[str, str]:
    """What a manifest says of what made its labels: `precision`, `device` and `torch`."""
    import torch

    return {
        "precision": f"{amp} amp" if amp else "float32",
        "device": torch.device(device).type,
        "torch": torch.__version__,
    }
