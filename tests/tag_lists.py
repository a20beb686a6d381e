"""Small lists of web images with text, tags and weights, and what they are packed with."""

import importlib.util
import json
from pathlib import Path

from softshard.shards import ImageRecipe, PackOptions
from softshard.shards.stored_vocabulary import Vocabulary
from softshard.shards.tags_build import TagOptions

ALL = TagOptions(min_images=1, max_share=1.0)
ROWS = [
    {"path": "1.jpg", "label": "dog", "title": "A big cat", "description": "green grass", "tags": ["sea"]},
    {"path": "2.jpg", "label": "dog", "title": "Cats on the sea", "tags": "grass|big cat"},
    {"path": "3.jpg", "label": "oak tree", "title": "the of", "query": "oak"},
    {"path": "4.jpg", "label": "oak_tree", "title": "", "description": None},
    {"path": "5.jpg", "label": "zzz"},
]


# Of the list that the fixture `web` writes, whose tags it knows but for one.
VOCABULARY = Vocabulary(("beast of prey", "big cat", "zoo", "tree"), (7, 5, 3, 2))


def unresized(shard_samples=4, **options):
    """Images as they are."""
    return PackOptions(image=ImageRecipe(resize="none"), shard_samples=shard_samples, **options)


def write_rows(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def read_rows(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def definitions(num):
    folder = Path(importlib.util.find_spec("timm").submodule_search_locations[0]) / "data" / "_info"
    lines = (folder / "imagenet_synset_to_definition.txt").read_text("utf-8").splitlines()[:num]
    return [
        {"path": f"{i}.jpg", "label": wnid, "description": text}
        for i, (wnid, _, text) in enumerate(line.partition("\t") for line in lines)
    ]
