"""What people write or download: lists, tables, trees, tars of images, WebVision's info folder."""

from __future__ import annotations

import json
from functools import lru_cache, partial
from pathlib import Path

import numpy as np

from softshard.shards import LabelTree
from softshard.shards.choose_classes import groups_of_file
from softshard.shards.classes import load_class_list
from softshard.shards.coarse_labels import read_coarse_labels
from softshard.shards.confusion_file import load_confusion, save_confusion
from softshard.shards.difficulty import read_difficulty
from softshard.shards.information_content import load_counts
from softshard.shards.json_lines import read_json_lines
from softshard.shards.score_file import read_scores, score_header, score_line
from softshard.shards.sources import open_source
from softshard.shards.stored_vocabulary import Vocabulary
from softshard.shards.tags_source import open_text_source
from softshard.shards.tree_sources import read_pairs, read_wordnet_list
from softshard.training.curves import read_curves
from softshard.training.label_sets import _read_sets

from . import whole_files as whole
from .judge import Target
from .mutate import BINARY, JSON, TEXT
from .targets_data_set import in_file

NAMES = whole.CLASSES


def _list(path: str) -> None:
    """A list as pack reads it, and as tags read it."""
    open_source(path, NAMES)


def _texts(path: str) -> None:
    source = open_text_source(path)
    for block in source.blocks():
        source.read(block)


def _webvision(name: str, data: bytes, folder: Path) -> None:
    for file, content in {**_WEBVISION, name: data}.items():
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        (folder / file).write_bytes(content)
    open_source(folder)
    _texts(str(folder))


_WEBVISION = {
    "info/synsets.txt": b"n01440764 tench, Tinca tinca\nn01443537 goldfish, Carassius auratus\n",
    "info/queries_synsets_map.txt": b"1 1\n2 2\n",
    "info/train_filelist_google.txt": b"google/q0001/a 1.jpg 0\ngoogle/q0001/b.jpg 0\n",
    "info/train_meta_list_google.txt": b"google/q0001.json 1\ngoogle/q0001.json 2\n",
    "info/train_filelist_flickr.txt": b"flickr/q0002/c.jpg 1\n",
    "info/train_meta_list_flickr.txt": b"flickr/q0002.json 1\n",
    "info/val_filelist.txt": b"val000000.jpg 0\nval000001.jpg 1\n",
    "google_json/q0001.json": json.dumps([{"title": "a tench"}, {"title": "b", "description": "in the sea",
    "id": 7}]).encode(),
    "flickr_json/q0002.json": json.dumps([{"title": "gold", "tags": ["big cat", "grass"],
    "description": None}]).encode(),
    "val_images_256/val000000.jpg": b"",
    "val_images_256/val000001.jpg": b"",
    "google/q0001/b.jpg": b"",
    "flickr/q0002/c.jpg": b"",
}  # fmt: skip


def _webvision_target(name: str) -> Target:
    kind = JSON if name.endswith(".json") else TEXT
    return Target(f"WebVision {Path(name).name}", partial(_webvision, name), (_WEBVISION[name],), kind)


def _json_lines(path: str) -> None:
    with open(path, "rb") as file:
        list(read_json_lines(file, 10_000))


def _tree(path: str) -> None:
    LabelTree.from_file(path)


@lru_cache(maxsize=1)
def _confusions() -> tuple[bytes, bytes]:
    """The two forms of a confusion matrix."""
    from tempfile import TemporaryDirectory

    with TemporaryDirectory() as folder:
        paths = [Path(folder, name) for name in ("a.npy", "a.csv")]
        for path in paths:
            save_confusion(path, np.arange(9).reshape(3, 3), NAMES)
        return paths[0].read_bytes(), paths[1].read_bytes()


def targets() -> list[Target]:
    scores = (
        json.dumps(score_header(dataset="train", fingerprint="f" * 64, seed=0, model="m", samples=2)) + "\n"
    )
    scores += score_line("a_1", 0, 0.5, 0) + score_line("b_2", 1, 0.25, 1)
    rows = [
        ("cat/a.jpg", NAMES[0], "a big cat"),
        ("dog/b.jpg", NAMES[1], "x, y"),
        ("dog/c.jpg", NAMES[1], ""),
    ]
    comma = "path,label,title\n" + "".join(f'{path},{label},"{text}"\n' for path, label, text in rows)
    tabs = "path\tlabel\ttitle\n" + "".join("\t".join(row) + "\n" for row in rows)
    lines = "".join(
        json.dumps({"path": path, "label": i, "title": text, "tags": ["a", "b"]}) + "\n"
        for i, (path, _, text) in enumerate(rows)
    )
    pictures = {f"{NAMES[i % 2]}_{i}.jpg": whole.jpeg(i) for i in range(3)}
    samples = {
        f"{i}.{suffix}": data
        for i in range(2)
        for suffix, data in (("jpg", whole.jpeg(i)), ("json", b'{"label": 1}'), ("cls", b"1"))
    }
    nested = {f"{NAMES[i]}.tar": whole.tar({f"{i}.jpg": whole.jpeg(i)}) for i in range(2)}
    tars = tuple(map(whole.tar, ({f"{k[:9]}/{k}": v for k, v in pictures.items()}, samples, nested)))
    tars += (whole.tar({f"{'a' * 120}/{NAMES[0]}/{i}.jpg": whole.jpeg(i) for i in range(2)}, form=1),)
    tars += (whole.tar({f"{'é' * 120}/{NAMES[0]}/{i}.jpg": whole.jpeg(i) for i in range(2)}, form=2),)
    tree_table = b"child,parent\ncat,animal\ndog,animal\noak,plant\nplant,\n"
    tree_yaml = b"animal:\n  bird: [swan, goose]\n  fish:\nplant:\n  tree: oak\n  moss: {green: , grey: }\n"
    curves = "set,model,epoch,accuracy\n" + "".join(
        f"{part},{model},{epoch},0.{epoch}{len(model)}\n"
        for part in ("full", "subset") for model in ("a", "bb") for epoch in (1, 2)
    )  # fmt: skip
    npy, comma_matrix = _confusions()
    counts = b"wnver::eOS9lXC6GvMWznF1wkZofDdtbBU\n1740n 17 ROOT\n1930n 3\n2684n 5.5\n"
    return [
        Target("list.csv", in_file("list.csv", _list), (comma.encode(),), TEXT, "list.csv"),
        Target("list.tsv", in_file("list.tsv", _list), (tabs.encode(),), TEXT, "list.tsv"),
        Target("list.jsonl", in_file("list.jsonl", _list), (lines.encode(),), TEXT, "list.jsonl"),
        Target("texts.csv", in_file("list.csv", _texts), (comma.encode(),), TEXT, "list.csv"),
        Target("texts.jsonl", in_file("list.jsonl", _texts), (lines.encode(),), TEXT, "list.jsonl"),
        Target("JSON lines", in_file("a.jsonl", _json_lines), (lines.encode(),), TEXT),
        Target("source tar", in_file("whole.tar", _list), tars, BINARY, "whole.tar"),
        *map(_webvision_target, [name for name, content in _WEBVISION.items() if content]),
        Target("class list", in_file("classes.txt", load_class_list), ("\n".join(NAMES).encode(),), TEXT,
            "classes.txt"),
        Target("tree table", in_file("tree.csv", _tree), (tree_table,), TEXT, "tree.csv"),
        Target("tree YAML", in_file("tree.yaml", _tree), (tree_yaml,), TEXT, "tree.yaml"),
        Target("tree pairs", in_file("tree.tsv", read_pairs), (tree_table.replace(b",", b"\t"),), TEXT,
            "tree.tsv"),
        Target("is_a list", in_file("is_a.txt", read_wordnet_list),
            (b"n01440764 n01443537\nn01440764 n02123045\n",), TEXT,
               "is_a.txt"),
        Target("coarse labels", in_file("coarse.csv", lambda path: read_coarse_labels(path, NAMES)),
               ("wnid,label\n{},fish\n{},fish\n{},cat\n".format(*NAMES).encode(),), TEXT, "coarse.csv"),
        Target("classes as YAML", in_file("classes.yaml", lambda path: groups_of_file(path, NAMES)),
               ("fish:\n  - {}\n  - {}\ncat: [{}]\n".format(*NAMES).encode(),), TEXT, "classes.yaml"),
        Target("confusion.csv", in_file("confusion.csv", lambda path: load_confusion(path, NAMES)),
            (comma_matrix,), TEXT,
               "confusion.csv"),
        Target("confusion.npy", in_file("confusion.npy", lambda path: load_confusion(path, NAMES)), (npy,),
            BINARY,
               "confusion.npy"),
        Target("scores", in_file("scores.jsonl", read_scores), (scores.encode(),), TEXT, "scores.jsonl"),
        Target("difficulty", in_file("hard.csv", lambda path: read_difficulty(path, "f")),
               (b"key,score,half,trained_on\na,0.5,0,1\nb,1,1,0\n",), TEXT, "hard.csv"),
        Target("counts of words", in_file("ic.dat", load_counts), (counts,), TEXT, "ic.dat"),
        Target("vocabulary of tags", in_file("vocabulary.tsv", Vocabulary.load),
            (b"tag\timages\nbig cat\t7\nfish\t3\n",), TEXT,
               "vocabulary.tsv"),
        Target("accuracy curves", in_file("curves.csv", lambda path: read_curves([path])),
            (curves.encode(),), TEXT,
               "curves.csv"),
        Target("label sets", in_file("sets.json", _read_sets), (b'{"a.jpg": ["cat", 1], "b": []}',), JSON,
            "sets.json"),
    ]  # fmt: skip
