"""The weights that training begins with: a file's or timm's own, all of them or all but the head.

What fits is loaded by name. Only the head may differ: anything else that does not fit means another
architecture, and a head for another class list is left out only where a new head was asked for, or where
nothing says which classes it was for and their number differs. The head of timm's own weights is left out unless it is
for these very classes: timm has the wnids of ImageNet's lists.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors import safe_open
from timm.models import load_state_dict as load_weights
from torch import Tensor, nn

from ..shards.errors import DataError, UsageError
from ..shards.text_limits import some
from ..shards.tree import LabelTree
from .checkpoint import CHECKPOINT_NAME, load_checkpoint, why_unreadable
from .label_space import LabelSpace, name_difference
from .models import create_model, freeze_backbone, head_prefixes
from .preparation import own_classes
from .recipes import Recipe

Shapes = dict[str, list[int]]


@dataclass(frozen=True)
class LayerReport:
    """What was loaded and what was not: names of weights and their shapes.

    Attributes:
        source: where the weights came from.
        loaded: the model's weights that were loaded.
        new: those of the model that were not, and begin as timm draws them.
        not_used: the source's weights that the model has no place for, or was not to have.
        loaded_share: share of the model's numbers that were loaded.
        head: why timm's own head was left out although it has as many outputs; else empty.
    """

    source: str
    loaded: Shapes
    new: Shapes
    not_used: Shapes
    loaded_share: float
    head: str = ""

    def line(self) -> str:
        """The report in one line; the whole lists are in `to_json`."""
        parts = [
            f"begins with {self.source}: {len(self.loaded)} of {len(self.loaded) + len(self.new)} weights loaded "
            f"({self.loaded_share:.1%} of the numbers)"
        ]
        for what, shapes in (("new", self.new), ("not used", self.not_used)):
            if shapes:
                parts.append(f"{what}: {some([f'{name} {shape}' for name, shape in shapes.items()], 4, str)}")
        return "; ".join([*parts, self.head] if self.head else parts)

    def to_json(self) -> dict[str, Any]:
        """All of it, for `init.json`."""
        return asdict(self)


def start_model(
    name: str,
    recipe: Recipe,
    source: str | Path | None,
    *,
    labels: LabelSpace,
    dataset: str,
    seed: int,
    device: str,
) -> tuple[nn.Module, LayerReport | None]:
    """The model that a run trains, channels last on its device: the same on every rank.

    Args:
        name: timm's name of the architecture.
        recipe: says image size, and whether the head is new or all else is frozen.
        source: weights to begin with, see `load_start`; None for those that timm draws.
        labels: what the outputs stand for.
        dataset: where these are from, for messages.
        seed: of what is drawn.
        device: of the model.

    Returns:
        The model, and what was loaded into it.
    """
    torch.manual_seed(seed)
    model = create_model(name, labels.num_outputs, recipe.image_size)
    report = None
    if source is not None:
        size, new_head = recipe.image_size, recipe.new_head
        report = load_start(
            model, name, source, image_size=size, labels=labels, dataset=dataset, new_head=new_head
        )
    if recipe.freeze:
        freeze_backbone(model, name)
    model.to(device)
    return model.to(memory_format=torch.channels_last), report  # pyright: ignore[reportCallIssue]


def load_start(
    model: nn.Module,
    name: str,
    source: str | Path,
    *,
    image_size: int,
    labels: LabelSpace,
    dataset: str,
    new_head: bool = False,
) -> LayerReport:
    """Load weights into a model that was just built.

    Args:
        model: from create_model.
        name: timm's name of its architecture.
        source: a file (safetensors, or a file of torch.save's that holds no code, such as a checkpoint, of which
            averaged weights are preferred), or timm's name of weights it knows, such as `resnet50.a1_in1k`.
        image_size: pixels of both sides, for architectures that are built for one size.
        labels: what the model's outputs will stand for.
        dataset: where these labels are from, for messages.
        new_head: leave the source's head out, whatever it is for.

    Raises:
        UsageError: there are no such weights, or timm's cannot be had.
        DataError: the file cannot be read, the weights are another architecture's, or their head is for another
            class list or tree.
    """
    found, found_labels, own = _read(source, name, image_size)
    if found_labels is not None and not new_head:
        _refuse_other_labels(source, found_labels, dataset, labels)
    head_differs = "" if own is None or new_head else _other_names(own, labels)
    new_head = new_head or bool(head_differs)
    expected: dict[str, Tensor] = model.state_dict()
    heads = head_prefixes(model)
    if found_labels is not None and found_labels.class_names and not labels.tag_names:
        # Of a head for classes and keywords, the classes' part.
        num = len(found_labels.class_names)
        found = {
            key: tensor[:num] if heads and key.startswith(heads) else tensor for key, tensor in found.items()
        }
    head = {key for key in expected.keys() | found.keys() if key.startswith(heads)} if heads else set()
    left_out = {
        key
        for key in head & found.keys()
        if new_head or key not in expected or found[key].shape != expected[key].shape
    }
    if left_out:  # half a head would be neither the old one nor a new one
        left_out = head & found.keys()
    loaded = {key: tensor for key, tensor in found.items() if key not in left_out}
    _refuse_other_layers(source, name, expected, loaded, left_out=head if left_out or new_head else set())
    with torch.no_grad():
        model.load_state_dict(loaded, strict=False)
    sizes = {key: tensor.numel() for key, tensor in expected.items()}
    return LayerReport(
        source=str(source),
        loaded={key: list(tensor.shape) for key, tensor in expected.items() if key in loaded},
        new={key: list(tensor.shape) for key, tensor in expected.items() if key not in loaded},
        not_used={key: list(found[key].shape) for key in found if key in left_out},
        loaded_share=sum(sizes[key] for key in loaded) / sum(sizes.values()),
        head=head_differs,
    )


def with_rate_of_start(recipe: Recipe, source: str | Path | None) -> Recipe:
    """A recipe with the learning rate of the last step of the run that it goes on from, where it has `lr_of_start`.

    Args:
        recipe: any.
        source: what training begins with: the checkpoint of that run.

    Raises:
        UsageError: it is none.
        DataError: it is damaged.
    """
    if not recipe.lr_of_start:
        return recipe
    path = None if source is None else Path(source)
    if path is None or not path.is_file() or path.suffix == ".safetensors":
        found = "nothing" if path is None else path if path.is_file() else f"nothing at {path}"
        raise UsageError(
            f"recipe {recipe.name!r}: expected the checkpoint of a run to begin with, whose last learning rate it goes on "
            f"with, found {found}. Give --init-from {CHECKPOINT_NAME}, or a rate: --set "
            "lr_of_start=false --lr RATE"
        )
    rates = {group["lr"] for group in load_checkpoint(path).optimizer["param_groups"]}
    return dataclasses.replace(recipe, lr=max(rates))


def _other_names(own: Sequence[str], labels: LabelSpace) -> str:
    """Why a head of timm's is not for these outputs, though there are as many; empty where it is, or there are not."""
    names = [*labels.class_names, *labels.tag_names]
    if len(own) != len(names) or list(own) == names:
        return ""
    return f"the head is new: timm's is for other classes ({name_difference(own, names)})"


def _read(
    source: str | Path, name: str, image_size: int
) -> tuple[dict[str, Tensor], LabelSpace | None, tuple[str, ...] | None]:
    """Weights, and what their outputs stand for: as softshard wrote it, or by timm's lists; None where nobody says."""
    path = Path(source)
    if path.is_file():
        try:
            labels = _labels_of(path)
            # The safe way is not the default of timm 1.0.15.
            return load_weights(str(path), weights_only=True), labels, None
        except Exception as error:  # whatever the readers raise on damaged files
            raise DataError(
                f"{path}: expected weights, found a file that cannot be read ({why_unreadable(error)}). Save the "
                "model's state_dict alone, by torch.save or as safetensors"
            ) from error
    if path.is_dir():
        raise UsageError(f"--init-from: expected a file of weights, found the folder {path}")
    if not timm.is_model(str(source)):
        raise UsageError(
            f"--init-from: expected a file of weights, found nothing at {source}; nor does timm {timm.__version__} "
            "know a model of that name"
        )
    architecture = name.partition(".")[0]
    if str(source).partition(".")[0] != architecture:  # said before anything is downloaded
        raise UsageError(f"--init-from: expected weights of timm's {architecture!r}, found the name {source}")
    config: Any = timm.get_pretrained_cfg(str(source))
    # Its own head, to be treated as a file's is.
    model = create_model(str(source), config.num_classes, image_size, pretrained=True)
    return model.state_dict(), None, own_classes(config.num_classes)


def _labels_of(path: Path) -> LabelSpace | None:
    """What the outputs of weights that softshard wrote stand for; None for anybody else's."""
    if path.suffix == ".safetensors":
        with safe_open(path, "pt") as file:
            about = file.metadata() or {}
        if not {"class_names", "classes_sha256"} <= about.keys():
            return None
        names, tree = json.loads(about["class_names"]), about.get("tree_json")
        tags = json.loads(about.get("tag_names", "[]"))
    else:
        about = torch.load(path, map_location="cpu", weights_only=True)
        if not isinstance(about, dict) or not {"class_names", "classes_sha256"} <= about.keys():
            return None
        names, tree, tags = about["class_names"], about.get("tree_json"), about.get("tag_names", [])
    found = LabelTree.from_json(json.loads(tree)) if tree else None
    return LabelSpace(names, about["classes_sha256"], found, tags)


def _refuse_other_labels(source: str | Path, found: LabelSpace, dataset: str, labels: LabelSpace) -> None:
    problems = found.differences(labels)
    if problems:
        raise DataError(
            f"{source} and data set {dataset!r} do not belong together: {'; '.join(problems)}; the weights' outputs "
            "stand for other classes. Use the data set they were trained on, or begin with a new head: --new-head, "
            "or the recipe transfer"
        )


def _refuse_other_layers(
    source: str | Path,
    name: str,
    expected: dict[str, Tensor],
    loaded: dict[str, Tensor],
    left_out: set[str],
) -> None:
    problems = [
        f"no {key}"
        for key in expected.keys() - loaded.keys() - left_out
        if not key.endswith("num_batches_tracked")  # files of old versions of torch have no such counter
    ]
    problems += [f"an unknown {key}" for key in loaded.keys() - expected.keys()]
    problems += [
        f"{key} {tuple(loaded[key].shape)} for {tuple(expected[key].shape)}"
        for key in expected.keys() & loaded.keys()
        if loaded[key].shape != expected[key].shape
    ]
    if problems:
        shown = "; ".join(sorted(problems)[:5])
        raise DataError(
            f"{source}: expected weights of timm's {name!r}, found {shown}"
            + (f" and {len(problems) - 5} more differences" if len(problems) > 5 else "")
            + "; they are another architecture's, or for another image size"
        )
