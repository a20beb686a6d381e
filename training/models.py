"""Models from timm, and the weights they begin with and end as."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors.torch import save
from timm.models import load_state_dict as load_weights
from torch import Tensor, nn

from ..shards.errors import DataError, UsageError
from ..shards.files import write_atomically
from .checkpoint import Checkpoint


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
        UsageError: there is no such architecture, both beginnings were asked for, or timm's weights cannot be had.
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
    if pretrained and not timm.is_model_pretrained(name):
        raise UsageError(
            f"model {name}: expected an architecture with weights of timm's, found one without. Give them in a "
            "file (train --init-from FILE, maps make --checkpoint FILE)"
        )
    try:
        model = timm.create_model(name, pretrained=pretrained, num_classes=num_classes, **size)
    except (
        OSError
    ) as error:  # what huggingface_hub and urllib raise are OSErrors; nothing else here opens files
        raise UsageError(
            f"model {name}: expected to download timm's own weights, found no way to them "
            f"({str(error).splitlines()[0] if str(error) else type(error).__name__}). Run once where there is a "
            "network, or give weights in a file (train --init-from FILE, maps make --checkpoint FILE)"
        ) from error
    if init_from is not None:
        _load_all_but_another_head(model, name, Path(init_from))
    return model


def export_weights(path: Path, model: nn.Module, metadata: Mapping[str, str]) -> None:
    """Write the weights alone as safetensors; `timm.create_model(name, checkpoint_path=path)` reads them.

    The same weights and metadata give the same bytes.
    """
    data = save(
        {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()},
        metadata=dict(metadata),
    )
    # A header is its length (uint64, little-endian) and JSON, padded to 8 bytes. The library writes the metadata
    # in the order of a hash table, which is another in every process.
    stop = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:stop])
    header["__metadata__"] = dict(sorted(metadata.items()))
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    write_atomically(path, len(text).to_bytes(8, "little") + text + data[stop:])


def load_trained_model(path: Path, saved: Checkpoint, image_size: int) -> nn.Module:
    """The model of a checkpoint, for images of `image_size` pixels.

    Raises:
        DataError: the weights do not fit the architecture, or not at that size.
    """
    model = create_model(saved.model_name, len(saved.class_names), image_size)
    try:
        model.load_state_dict(saved.model)
    except RuntimeError as error:
        trained = saved.recipe.image_size
        cause = (
            "the checkpoint was written with another version of timm"
            if image_size == trained
            else f"this architecture is built for one size. Run with --size {trained}"
        )
        reason = " ".join(str(error).split())
        raise DataError(
            f"{path}: expected weights of timm's {saved.model_name!r} for images of {image_size} pixels, found "
            f"others, trained on {trained} pixels ({reason[:200]}); {cause}"
        ) from error
    return model


def _load_all_but_another_head(model: nn.Module, name: str, path: Path) -> None:
    if not path.is_file():
        raise UsageError(f"--init-from: expected a file of weights, found nothing at {path}")
    try:
        found: dict[str, Tensor] = load_weights(
            str(path), weights_only=True
        )  # not the default of timm 1.0.15
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
