"""A data set so small that a model learns it in seconds, for tests that train."""

import pickle
from dataclasses import replace
from datetime import timedelta

import cv2
import numpy as np
import pytest
import timm
import torch
from tiny_maps import NO_SHIFT, OPTIONS
from torch_threads import torch_in_one_thread
from waiting import LONG_S, wait_until

from softshard.shards import ImageRecipe, LabelTree, PackOptions, encode_label_map, pack
from softshard.shards.classes import load_class_list
from softshard.training.maps import Teacher, make_label_maps
from softshard.training.recipes import single_label
from softshard.training.train import train

LEAVES = ("cat", "dog", "crow", "gull")
TREE = [("cat", "mammal"), ("dog", "mammal"), ("crow", "bird"), ("gull", "bird")]
COLOURS = {"cat": (200, 40, 40), "dog": (40, 200, 40), "crow": (40, 40, 200), "gull": (200, 200, 40)}


@pytest.fixture(scope="module", autouse=True)
def in_one_thread(one_thread):
    """Whatever trains or asks a model here; see `one_thread` for fixtures of the session."""


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


def write_picture(path, rng, height=40, width=40):
    path.parent.mkdir(parents=True, exist_ok=True)
    coarse = rng.integers(0, 256, (height // 8 + 1, width // 8 + 1, 3), dtype=np.uint8)
    cv2.imwrite(str(path), cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC))


@pytest.fixture(scope="session")
def imagenet(tmp_path_factory):
    """The first eight validation images of ImageNet, by name: class folders named by wnid, 40 pixels."""
    folder = tmp_path_factory.mktemp("imagenet")
    rng, wnids = np.random.default_rng(0), load_class_list("imagenet-1k")
    for number in range(1, 9):
        wnid = wnids[[65, 970, 230, 809, 516, 57, 334, 415][number - 1]]
        write_picture(folder / "val" / wnid / f"ILSVRC2012_val_{number:08}.JPEG", rng)
    options = PackOptions(image=ImageRecipe(size=32), shard_samples=3)
    pack(folder / "val", folder / "shards", options, class_names=wnids, workers=1)
    return folder / "shards" / "train"


@pytest.fixture(scope="session")
def large(tmp_path_factory):
    """`images` and `shards`: six photographs of 96 x 128 to 140 x 100 pixels, stored as they are."""
    folder = tmp_path_factory.mktemp("large")
    rng, wnids = np.random.default_rng(1), load_class_list("imagenet-1k")
    for number in range(6):
        size = (96 + 9 * number, 128) if number % 2 else (140, 100 + number)
        write_picture(folder / "images" / wnids[10 * number] / f"{number}.png", rng, *size)
    options = PackOptions(image=ImageRecipe(resize="none", quality=100), shard_samples=9)
    pack(folder / "images", folder / "shards", options, class_names=wnids, workers=1)
    return folder


@pytest.fixture(scope="session")
def noisy(tmp_path_factory):
    """Nine noisy pictures of three classes in three shards, with a tree."""
    folder = tmp_path_factory.mktemp("maps")
    rng = np.random.default_rng(0)
    for name in ("cat", "dog", "oak"):
        (folder / "images" / name).mkdir(parents=True)
        for i in range(3):
            pixels = rng.integers(0, 256, (48 + 8 * i, 64, 3), dtype=np.uint8)
            cv2.imwrite(str(folder / "images" / name / f"{i}.png"), pixels)
    tree = LabelTree.from_table(
        ("cat", "dog", "oak"), [("cat", "animal"), ("dog", "animal"), ("oak", "plant")]
    )
    options = PackOptions(image=ImageRecipe(resize="none"), shard_samples=3)
    pack(folder / "images", folder / "shards", options, tree=tree, workers=1)
    return folder / "shards" / "train"


@pytest.fixture(scope="session")
def map_teacher():
    torch.manual_seed(0)
    model = timm.create_model("resnet10t", num_classes=5).eval()
    return Teacher(model, "resnet10t", NO_SHIFT["mean"], NO_SHIFT["std"], None)


@pytest.fixture(scope="session")
def noisy_maps(noisy, map_teacher, tmp_path_factory):
    folder = tmp_path_factory.mktemp("made") / "out"
    with torch_in_one_thread():
        manifest = make_label_maps(noisy, folder, map_teacher, OPTIONS, num_threads=1)
    return folder, manifest


@pytest.fixture(scope="session")
def noisy_checkpoint(noisy, tmp_path_factory):
    out = tmp_path_factory.mktemp("teacher")
    recipe = replace(single_label(), epochs=1, global_batch=3, image_size=32)
    with torch_in_one_thread():
        return train(recipe, str(noisy), model="test_resnet", out=out, log=lambda line: None).checkpoint


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


def _be_rank_of_two(count, rank, folder):
    torch.set_num_threads(1)  # OpenMP would wait for threads that this process's parent has
    address, patience = f"file://{folder}/rendezvous", timedelta(seconds=LONG_S / 2)
    torch.distributed.init_process_group(
        "gloo", init_method=address, rank=rank, world_size=2, timeout=patience
    )
    torch.distributed.barrier()  # who left before could still break the other's init_process_group
    (folder / f"{rank}.pickle").write_bytes(pickle.dumps(count(rank)))
    torch.distributed.destroy_process_group()


@pytest.fixture
def on_two_ranks(tmp_path):
    """A function: calls `count(rank)` in two processes of one group, and gives (rank, answer) of both."""

    def run(count):
        context = torch.multiprocessing.get_context("fork")
        ranks = [context.Process(target=_be_rank_of_two, args=(count, rank, tmp_path)) for rank in (0, 1)]
        for process in ranks:
            process.start()
        try:
            wait_until(lambda: None not in [process.exitcode for process in ranks])
        finally:
            for process in ranks:
                process.kill()
                process.join()
        assert [process.exitcode for process in ranks] == [0, 0]  # standard error says why
        return [(rank, pickle.loads((tmp_path / f"{rank}.pickle").read_bytes())) for rank in (0, 1)]

    return run
