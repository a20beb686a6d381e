"""timm's own train.py over softshard's data sets, unchanged.

    python -m softshard.training.timm_script train.py --data-dir DATASET --no-prefetcher --model resnet50 ...

The script (of timm's repository; it is not in the wheel) asks `timm.data.create_dataset` and `create_loader` for its data.
Here both are replaced before it runs: DATASET is what `softshard pack` makes, with DATASET/train and DATASET/val, or
`grpc://host:port` (several with commas between), servers that have both by these names; `--token-file FILE` and `--tls-ca
FILE` say how to speak to them, as for softshard train, and are not given to the script. Batches come from a Loader. All
else is the script's, Mixup and CutMix included. Options that would change the data and that the Loader has no equal of are
refused; those that tell timm's workers what to do mean nothing and are ignored.
"""

from __future__ import annotations

import argparse
import inspect
import runpy
import sys
from functools import partial
from typing import Any

import torch

from ..loaders.adapters import Batches, as_tuples
from ..loaders.augment_options import Erasing
from ..loaders.cli_connection import add_connection, connection_of
from ..loaders.crops import Augment
from ..loaders.either_loader import open_loader
from ..loaders.service_address import is_service
from ..shards.cli_values import EXIT_BAD_DATA, EXIT_WRONG_CALL
from ..shards.errors import DataError, SoftshardError, UsageError

SPLITS = {"validation": "val"}  # train.py's names -> folders that softshard pack writes
# Parameters of timm's create_loader.
_USED = frozenset(
    {
        "dataset", "input_size", "batch_size", "is_training", "use_prefetcher", "no_aug", "re_prob",
        "scale", "ratio", "hflip", "color_jitter", "mean", "std", "distributed", "crop_pct", "pin_memory",
        "device",
    }
)  # fmt: skip
_OF_NO_MEANING = frozenset(
    {
        "interpolation", "re_mode", "re_count", "num_workers", "use_multi_epochs_loader",
        "persistent_workers", "worker_seeding", "fp16", "img_dtype",
    }
)  # fmt: skip


class Split:
    """What create_dataset gives: one part of a data set; the script chooses the epoch with it.

    Args:
        place: folder or URL of the part, or addresses of its servers.
        seed: of order and crops.
    """

    def __init__(self, place: str, seed: int) -> None:
        self.place, self.seed = place, seed
        self.batches: Batches[Any] | None = None

    @property
    def transform(self) -> Any:
        """What the script's AugMix, `--aug-splits`, asks for before create_loader is called."""
        raise UsageError(
            "timm: expected no --aug-splits, which softshard's Loader has no equal of. Leave it out"
        )

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch that is served next."""
        if self.batches is not None:
            self.batches.set_epoch(epoch)


def create_dataset(name: str = "", root: str = "", split: str = "validation", **options: Any) -> Split:
    """In place of timm's: nothing is opened yet."""
    if not root:
        raise UsageError("timm: expected --data-dir with a data set of softshard pack, found none")
    return Split(_place(str(root), SPLITS.get(split, split)), int(options.get("seed", 42)))


def _place(root: str, name: str) -> str:
    """One part of a data set: its folder or URL, or its name at every server."""
    if not is_service(root):
        return f"{root.rstrip('/')}/{name}"
    if root.startswith("file://"):
        return f"{root}#{name}"
    return ",".join(f"{each.strip().rstrip('/')}/{name}" for each in root.split(","))


def create_loader(dataset: Split, *, asked: argparse.Namespace | None = None, **options: Any) -> Batches[Any]:
    """In place of timm's, with its parameters.

    Args:
        dataset: of `create_dataset`.
        asked: how to speak to servers, see `add_connection`.
        options: timm's.

    Raises:
        UsageError: an option that changes the data and that a Loader has no equal of; all are named.
        DataError: the data set is incomplete or damaged.
    """
    _check_options(options)
    size, is_training = options["input_size"][-1], options.get("is_training", False)
    is_distributed = options.get("distributed", False)
    loader = open_loader(
        dataset.place,
        connection=None if asked is None else connection_of(asked, dataset.place),
        batch_size=options["batch_size"],
        augment=_augment(size, options)
        if is_training
        else Augment.evaluation(size, centre=options.get("crop_pct")),
        mean=options["mean"],
        std=options["std"],
        shuffle=is_training,
        # The script cannot see which slots are padding: they are left out, which several processes would disagree about.
        last_batch="drop" if is_training or is_distributed else "pad",
        seed=dataset.seed,
        rank=torch.distributed.get_rank() if is_distributed else 0,
        world_size=torch.distributed.get_world_size() if is_distributed else 1,
        pin_memory=options.get("pin_memory", False),
        num_epochs=None if is_training else 1,
    )
    dataset.batches = as_tuples(loader, device=options.get("device"))
    return dataset.batches


def _augment(size: int, options: dict[str, Any]) -> Augment:
    if options.get("no_aug"):
        return Augment.evaluation(size)
    least, most = options.get("scale") or (0.08, 1.0)
    narrow, wide = options.get("ratio") or (3 / 4, 4 / 3)
    return Augment(
        size=size,
        scale=(least, most),
        ratio=(narrow, wide),
        flip=options.get("hflip", 0.5) > 0,
        color_jitter=options.get("color_jitter") or 0.0,
        erasing=Erasing(prob=options["re_prob"]) if options.get("re_prob") else None,
    )


def _check_options(options: dict[str, Any]) -> None:
    if options.get("use_prefetcher", True):
        raise UsageError(
            "timm: expected --no-prefetcher, with which the script takes batches as they are, found none"
        )
    if options.get("is_training") and options.get("hflip", 0.5) not in (0.0, 0.5):
        raise UsageError(f"timm: expected --hflip of 0 or 0.5, found {options['hflip']}")
    import timm.data.loader

    # Not timm.data.create_loader, which is this module's by now.
    parameters = inspect.signature(timm.data.loader.create_loader).parameters
    known = {name: parameter.default for name, parameter in parameters.items()}
    others = [
        f"{name}={value!r}"
        for name, value in options.items()
        if name not in _USED | _OF_NO_MEANING and value and value != known.get(name)
    ]
    if others:
        raise UsageError(
            f"timm: expected options that softshard's Loader has, too, found {', '.join(others)}. Leave them out, or write "
            "the Loader into the script: loaders/README.md, Plug it in"
        )


def run(arguments: list[str]) -> int:
    """Run the script that the first argument names, with the others; options of a connection may stand anywhere."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    add_connection(parser)
    asked, arguments = parser.parse_known_args(arguments)
    if not arguments:
        raise UsageError("timm: expected the path of timm's train.py and its arguments, found none")
    import timm.data

    timm.data.create_dataset = create_dataset  # pyright: ignore
    timm.data.create_loader = partial(create_loader, asked=asked)  # pyright: ignore
    sys.argv = arguments
    runpy.run_path(arguments[0], run_name="__main__")
    return 0


def main(arguments: list[str]) -> int:
    """The same; returns an exit code, as the commands do."""
    try:
        return run(arguments)
    except SoftshardError as error:
        print(f"softshard: {error}", file=sys.stderr)
        return EXIT_BAD_DATA if isinstance(error, DataError) else EXIT_WRONG_CALL


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
