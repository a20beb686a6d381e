"""A tiny set of noisy web images, for tests that train: each of one colour, with keywords and class weights in its row."""

import json

import cv2
import numpy as np

from softshard.shards import ImageRecipe, PackOptions, pack
from softshard.shards.stored_vocabulary import Vocabulary

COLOURS = {"cat": (200, 40, 40), "crow": (40, 40, 200), "dog": (40, 200, 40), "gull": (200, 200, 40)}
KEYWORDS = {
    "cat": ("animal", "fur", "kitten"),
    "crow": ("animal", "feather", "black"),
    "dog": ("animal", "fur", "puppy"),
    "gull": ("animal", "feather", "sea"),
}
NEAR = {"cat": "dog", "dog": "cat", "crow": "gull", "gull": "crow"}
WORDS = ("animal", "black", "feather", "fur", "kitten", "puppy", "sea")
VOCABULARY = Vocabulary(WORDS, (60, 15, 30, 30, 15, 15, 15))


def make_web_set(folder, *, vocabulary=VOCABULARY, num=15, seed=0):
    """Pack `num` images of each of four classes, 3 of them for validation; returns the folder of both splits.

    The first image of each class has no keyword, and with a vocabulary of None none has any.
    """
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True)
    rows = []
    for name, colour in COLOURS.items():
        (folder / name).mkdir()
        for i in range(num):
            pixels = np.clip(np.array(colour) + rng.normal(0, 60, (32, 32, 3)), 0, 255).astype(np.uint8)
            cv2.imwrite(str(folder / name / f"{i:02}.jpg"), pixels)
            weights = {name: 1.0, NEAR[name]: 0.4}
            tags = list(KEYWORDS[name]) if i else []
            rows.append({"path": f"{name}/{i:02}.jpg", "label": name, "tags": tags, "weights": weights})
    (folder / "web.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    options = PackOptions(
        image=ImageRecipe(size=32),
        val_per_class=3,
        shard_samples=20,
        vocabulary=vocabulary,
        weights=None if vocabulary is None else {"source": "by hand"},
    )
    pack(folder / "web.jsonl", folder / "shards", options, workers=1)
    return folder / "shards"
