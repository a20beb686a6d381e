"""Models from timm, and the weights they begin with and end as."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors.torch import save_file
from timm.models import load_state_dict as load_weights
from torch import Tensor, nn

from ..shards.errors import DataError, UsageError


def create_model(
    name: str,
    num_classes: int,
    image_size: int,
    *,
    pretrained: bool = False,
    init_from: str | Path | None = None,
) -> nn.Module:
    """A timm model with num_classes outputs.

    Args:
        name: timm's name of the architecture.
        num_classes: C.
        image_size: pixels of both sides, for architectures that are built for one size.
        pretrained: begin with timm's own weights for this name, downloaded once.
        init_from: begin with the weights in this file (safetensors, or a file of torch.save's that holds no
            code); a head for another number of classes is left out.

    Raises:
        UsageError: there is no such architecture, or both beginnings were asked for.
        DataError: the weights cannot be read or are another architecture's.
    """
    if not timm.is_model(name):
        near = timm.list_models(f"{name[:6]}*")[:5]
        raise UsageError(
            f"model: expected a name that timm {timm.__version__} knows, found {name!r}"
            + (f"; near it: {', '.join(near)}" if near else "")
        )
    if pretrained and init_from is not None:
        raise UsageError("model: expected either pretrained weights or --init-from, found both")
    config = timm.get_pretrained_cfg(name)
    size: dict[str, Any] = {"img_size": image_size} if config is not None and config.fixed_input_size else {}
    model = timm.create_model(name, pretrained=pretrained, num_classes=num_classes, **size)
    if init_from is not None:
        _load_all_but_another_head(model, name, Path(init_from))
    return model


def export_weights(path: Path, model: nn.Module, metadata: Mapping[str, str]) -> None:
    """Write the weights alone as safetensors; `timm.create_model(name, checkpoint_path=path)` reads them."""
    part = path.with_name(path.name + ".part")
    save_file(
        {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()},
        part,
        metadata=dict(metadata),
    )
    part.replace(path)


def _load_all_but_another_head(model: nn.Module, name: str, path: Path) -> None:
    if not path.is_file():
        raise UsageError(f"--init-from: expected a file of weights, found nothing at {path}")
    try:
        found: dict[str, Tensor] = load_weights(str(path))
    except Exception as error:  # whatever the two readers raise on damaged files
        raise DataError(f"{path}: expected weights, found a file that cannot be read ({error})") from error
    expected = model.state_dict()
    classifiers = getattr(model, "pretrained_cfg", {}).get("classifier") or ()
    classifiers = (classifiers,) if isinstance(classifiers, str) else classifiers
    head = {f"{classifier}.{part}" for classifier in classifiers for part in ("weight", "bias")}
    left_out = {key for key in head & found.keys() if found[key].shape != expected[key].shape}
    found = {key: tensor for key, tensor in found.items() if key not in left_out}
    problems = [f"no {key}" for key in expected.keys() - found.keys() - left_out]
    problems += [f"an unknown {key}" for key in found.keys() - expected.keys()]
    problems += [
        f"{key} {tuple(found[key].shape)} for {tuple(expected[key].shape)}"
        for key in expected.keys() & found.keys()
        if found[key].shape != expected[key].shape
    ]
    if problems:
        shown = "; ".join(sorted(problems)[:5])
        raise DataError(
            f"{path}: expected weights of timm's {name!r}, found {shown}"
            + (f" and {len(problems) - 5} more differences" if len(problems) > 5 else "")
            + "; they are another architecture's, or for another image size"
        )
    with torch.no_grad():
        model.load_state_dict(found, strict=False)
