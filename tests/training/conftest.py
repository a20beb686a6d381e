"""A data set so small that a model learns it in seconds, for tests that train."""

import cv2
import numpy as np
import pytest
import timm
import torch

from softshard.shards import ImageRecipe, LabelTree, PackOptions, encode_label_map, pack

LEAVES = ("cat", "dog", "crow", "gull")
TREE = [("cat", "mammal"), ("dog", "mammal"), ("crow", "bird"), ("gull", "bird")]
COLOURS = {"cat": (200, 40, 40), "dog": (40, 200, 40), "crow": (40, 40, 200), "gull": (200, 200, 40)}


@pytest.fixture(scope="session")
def shards(tmp_path_factory):
    """48 + 12 photographs of four leaf classes, each of one colour and noise, with a tree and label maps."""
    folder = tmp_path_factory.mktemp("tiny")
    rng = np.random.default_rng(0)
    tree = LabelTree.from_table(LEAVES, TREE)
    for name in LEAVES:
        (folder / "images" / name).mkdir(parents=True)
        (folder / "maps" / name).mkdir(parents=True)
        for i in range(15):
            pixels = np.clip(np.array(COLOURS[name]) + rng.normal(0, 60, (32, 32, 3)), 0, 255).astype(
                np.uint8
            )
            cv2.imwrite(str(folder / "images" / name / f"{i:02}.jpg"), pixels)
            ids = np.stack([rng.permutation(6)[:3] for _ in range(4)], axis=1).reshape(3, 2, 2)
            label_map = encode_label_map(rng.normal(0, 3, (3, 2, 2)), ids, num_classes=6)
            (folder / "maps" / name / f"{i:02}.lmap").write_bytes(label_map)
    options = PackOptions(
        image=ImageRecipe(size=32), val_per_class=3, shard_samples=20, label_maps=folder / "maps"
    )
    pack(folder / "images", folder / "shards", options, tree=tree, workers=1)
    return folder / "shards"  # beside folder / "images"


@pytest.fixture
def hub(monkeypatch):
    """A function: the weights that the hub would bring come from this file; all else is timm's."""
    plain = timm.create_model

    def bring(path):
        def create(name, pretrained=False, **options):
            overlay = {"pretrained_cfg_overlay": {"file": str(path)}} if pretrained else {}
            return plain(name, pretrained=pretrained, **overlay, **options)

        monkeypatch.setattr(timm, "create_model", create)

    return bring


@pytest.fixture(scope="module")
def one_thread():
    """Sums over threads would not be bit-identical, and tiny models are faster without them."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def _rank_of_two(count, rank, address, queue):
    torch.distributed.init_process_group("gloo", init_method=address, rank=rank, world_size=2)
    queue.put((rank, count(rank)))
    torch.distributed.destroy_process_group()


@pytest.fixture
def on_two_ranks(tmp_path):
    """A function: calls `count(rank)` in two processes of one group, and gives (rank, answer) of both."""

    def run(count):
        context = torch.multiprocessing.get_context("fork")
        queue = context.SimpleQueue()
        address = f"file://{tmp_path}/rendezvous"
        ranks = [context.Process(target=_rank_of_two, args=(count, r, address, queue)) for r in range(2)]
        for process in ranks:
            process.start()
        found = sorted((queue.get() for _ in ranks), key=lambda entry: entry[0])
        for process in ranks:
            process.join()
        return found

    return run
