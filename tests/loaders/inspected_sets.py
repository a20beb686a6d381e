"""Data sets that are looked at, as `softshard inspect` does: with fixed options, and with names that are hostile."""

import cv2
import numpy as np
from html_elements import Elements

from softshard.loaders import Augment, Loader
from softshard.loaders.inspect_page import inspect_page
from softshard.loaders.inspection import InspectOptions, inspect_data_set
from softshard.shards import PackOptions, encode_label_map, pack

AUGMENT = Augment(size=24)
HOSTILE = """<script>alert("x")</script><img src=x onerror=alert(1)> & 'quoted'"""


def options(**changes) -> InspectOptions:
    return InspectOptions(**{"num_samples": 5, "num_crops": 2, "seed": 3, "augment": AUGMENT, **changes})


def page_of(dataset, **changes) -> Elements:
    return Elements(inspect_page(inspect_data_set(dataset, options(**changes))).render())


def whole_epoch(dataset, epoch, **more):
    """The one batch of a Loader's epoch: all 105 samples."""
    given = {"batch_size": 105, "augment": AUGMENT, "dtype": "uint8", "seed": 3, "num_threads": 2}
    with Loader(dataset, **given, **more) as loader:
        loader.set_epoch(epoch)
        (batch,) = loader
    return batch


def pack_classes(folder, names):
    """A data set of an image for each class, with label maps; its classes have these names."""
    (folder / "images").mkdir()
    (folder / "maps").mkdir()
    rows, rng = ["path,label"], np.random.default_rng(0)
    for i, name in enumerate(names):
        cv2.imwrite(str(folder / "images" / f"{i}.jpg"), rng.integers(0, 256, (40, 50, 3), np.uint8))
        ids = np.full((1, 3, 4), i, np.uint16)
        label_map = encode_label_map(rng.normal(0, 1, (1, 3, 4)), ids, num_classes=len(names))
        (folder / "maps" / f"{i}.lmap").write_bytes(label_map)
        rows.append(f'{i}.jpg,"{name.replace(chr(34), chr(34) * 2)}"')
    (folder / "images" / "list.csv").write_text("\n".join(rows))
    pack(
        folder / "images" / "list.csv", folder / "shards", PackOptions(label_maps=folder / "maps"), workers=1
    )
    return folder / "shards" / "train"
