"""The loader: shards in, training batches out. Needs the extra `loaders` (DALI and torch), and the data service `service`
(pyarrow), too.

Names are imported when they are first used, so that the command line starts without torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .adapters import Batches, as_dicts, as_tuples, as_webdataset, on_device
    from .augment_options import RANDAUGMENT_21K, CutMix, Erasing, Mixup, RandAugment
    from .batch import Batch, Mix, TeacherLevels
    from .cache import Cache
    from .crops import Augment
    from .either_loader import open_loader
    from .faults import Faults
    from .fetch_stats import FetchStats
    from .loader import Loader
    from .loader_stats import LoaderStats
    from .mixture import Mixture
    from .pooling import SparseTargets, pool_label_maps, pool_top_classes
    from .remote_loader import RemoteLoader
    from .service_client import Connection
    from .service_protocol import ServiceError
    from .subset import Subset
    from .target_modes import LabelPooling

_HOMES = {
    "RANDAUGMENT_21K": ".augment_options",
    "Augment": ".crops",
    "Batch": ".batch",
    "Batches": ".adapters",
    "Cache": ".cache",
    "Connection": ".service_client",
    "CutMix": ".augment_options",
    "Erasing": ".augment_options",
    "Faults": ".faults",
    "FetchStats": ".fetch_stats",
    "LabelPooling": ".target_modes",
    "Loader": ".loader",
    "LoaderStats": ".loader_stats",
    "Mix": ".batch",
    "Mixture": ".mixture",
    "Mixup": ".augment_options",
    "RandAugment": ".augment_options",
    "RemoteLoader": ".remote_loader",
    "ServiceError": ".service_protocol",
    "SparseTargets": ".pooling",
    "Subset": ".subset",
    "TeacherLevels": ".batch",
    "as_dicts": ".adapters",
    "as_tuples": ".adapters",
    "as_webdataset": ".adapters",
    "on_device": ".adapters",
    "open_loader": ".either_loader",
    "pool_label_maps": ".pooling",
    "pool_top_classes": ".pooling",
}

__all__ = [
    "RANDAUGMENT_21K",
    "Augment",
    "Batch",
    "Batches",
    "Cache",
    "Connection",
    "CutMix",
    "Erasing",
    "Faults",
    "FetchStats",
    "LabelPooling",
    "Loader",
    "LoaderStats",
    "Mix",
    "Mixture",
    "Mixup",
    "RandAugment",
    "RemoteLoader",
    "ServiceError",
    "SparseTargets",
    "Subset",
    "TeacherLevels",
    "as_dicts",
    "as_tuples",
    "as_webdataset",
    "on_device",
    "open_loader",
    "pool_label_maps",
    "pool_top_classes",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from ..shards.errors import MissingExtraError

    try:
        module = importlib.import_module(_HOMES[name], __name__)
    except ModuleNotFoundError as error:
        missing = (error.name or "").split(".")[0]
        if missing in ("torch", "nvidia"):
            raise MissingExtraError(f"softshard.loaders.{name}", "loaders", error) from error
        if missing == "pyarrow":
            raise MissingExtraError(f"softshard.loaders.{name}", "service", error) from error
        raise
    return getattr(module, name)
