"""Models from timm: built, frozen, exported, and built again from a checkpoint. start.py gives them weights."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import timm
from safetensors.torch import save
from torch import Tensor, nn

from ..shards.errors import DataError, UsageError, first_line
from ..shards.files import write_atomically
from .checkpoint import Checkpoint


def create_model(name: str, num_classes: int, image_size: int, *, pretrained: bool = False) -> nn.Module:
    """A timm model with num_classes outputs.

    Args:
        name: timm's name of the architecture.
        num_classes: C.
        image_size: pixels of both sides, for architectures that are built for one size.
        pretrained: begin with timm's own weights for this name, downloaded once; its head for another number of
            classes is left out.

    Raises:
        UsageError: there is no such architecture, or timm's weights cannot be had.
    """
    check_model_name(name, pretrained=pretrained)
    config = timm.get_pretrained_cfg(name)
    size: dict[str, Any] = {"img_size": image_size} if config is not None and config.fixed_input_size else {}
    try:
        return timm.create_model(name, pretrained=pretrained, num_classes=num_classes, **size)
    except OSError as error:  # as those of huggingface_hub and urllib are; nothing else here opens files
        raise UsageError(
            f"model {name}: expected to download timm's own weights, found no way to them ({first_line(error)}). Run once "
            "where there is a network, or give weights in a file (train --init-from FILE, maps make --checkpoint FILE)"
        ) from error


def check_model_name(name: str, *, pretrained: bool) -> None:
    """Refuse what timm does not know, or with `pretrained` has no weights of.

    Raises:
        UsageError: see above.
    """
    if not timm.is_model(name):
        near = timm.list_models(f"{name[:6]}*")[:5]
        raise UsageError(
            f"model: expected a name that timm {timm.__version__} knows, found {name!r}"
            + (f"; near it: {', '.join(near)}" if near else "")
        )
    if pretrained and not timm.is_model_pretrained(name):
        raise UsageError(
            f"model {name}: expected an architecture with weights of timm's, found one without. Give them in a "
            "file (train --init-from FILE, maps make --checkpoint FILE)"
        )


def head_prefixes(model: nn.Module) -> tuple[str, ...]:
    """What the names of the classifier's weights begin with, such as `fc.`; some models have two classifiers."""
    classifiers = getattr(model, "pretrained_cfg", {}).get("classifier") or ()
    classifiers = (classifiers,) if isinstance(classifiers, str) else tuple(classifiers)
    return tuple(f"{name}." for name in classifiers)


def freeze_backbone(model: nn.Module, name: str) -> None:
    """Leave only the classifier to train.

    Raises:
        UsageError: timm does not say where the model's classifier is.
    """
    heads = head_prefixes(model)
    for weight, parameter in model.named_parameters():
        parameter.requires_grad_(weight.startswith(heads))
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise UsageError(
            f"model {name}: expected a classifier to train while the rest is frozen, found none that timm names. "
            "Train all of it: --set freeze=false"
        )


def set_training(model: nn.Module, *, frozen: bool) -> None:
    """Training mode; where the backbone is frozen, for the head only: batch norm elsewhere keeps its statistics."""
    model.train(not frozen)
    if frozen:
        for head in head_prefixes(model):
            model.get_submodule(head.removesuffix(".")).train()


def export_weights(path: Path, weights: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write weights (a model's state dict) as safetensors; `timm.create_model(name, checkpoint_path=path)` reads them.

    The same weights and metadata give the same bytes.
    """
    data = save(
        {name: tensor.detach().cpu().contiguous() for name, tensor in weights.items()},
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


def load_trained_model(
    path: Path, saved: Checkpoint, image_size: int, *, with_tags: bool = False
) -> nn.Module:
    """The model of a checkpoint, for images of `image_size` pixels; with averaged weights where it has them.

    Args:
        path: of the file, for messages.
        saved: what is in it.
        image_size: pixels of both sides.
        with_tags: of a model with outputs for classes and for keywords, keep both; else those of the classes.

    Raises:
        DataError: the weights do not fit the architecture, or not at that size.
    """
    weights = saved.best_model
    num_outputs = saved.label_space.num_outputs
    if saved.class_names and saved.tag_names and not with_tags:
        num_outputs = len(saved.class_names)
    model = create_model(saved.model_name, num_outputs, image_size)
    if num_outputs < saved.label_space.num_outputs:
        heads = head_prefixes(model)
        weights = {
            name: weight[:num_outputs] if name.startswith(heads) else weight
            for name, weight in weights.items()
        }
    try:
        model.load_state_dict(weights)
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
