"""Mixed precision of a model's layers, and what files say of how a model ran."""

from __future__ import annotations

import torch

AMP_DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16}


def autocast(device: str | torch.device, precision: str | None) -> torch.autocast:
    """What a model runs under on a device: one of AMP_DTYPES; float32, or None, changes nothing."""
    dtype = AMP_DTYPES.get(precision or "float32")
    return torch.autocast(torch.device(device).type, dtype=dtype, enabled=dtype is not None)


def how_it_runs(device: str | torch.device, amp: str | None) -> dict[str, str]:
    """What a manifest says of what made its labels: `precision`, `device` and `torch`."""
    return {
        "precision": f"{amp} amp" if amp else "float32",
        "device": torch.device(device).type,
        "torch": torch.__version__,
    }
