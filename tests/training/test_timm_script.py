"""timm's train.py over softshard's data sets: the script itself where there is one, and its calls where there is none."""

import inspect
import os
from pathlib import Path

import pytest
import timm.data.loader
from timm.data import AugMixDataset

from softshard.shards import UsageError
from softshard.training import timm_script

# What train.py asks for its data, in its order and with its defaults (timm 1.0); what it does with them in short.
SCRIPT = """
import argparse
import torch
from timm import create_model
from timm.data import Mixup, create_dataset, create_loader

parser = argparse.ArgumentParser()
parser.add_argument("--data-dir")
parser.add_argument("--no-prefetcher", action="store_true")
parser.add_argument("--mixup", type=float, default=0.0)
parser.add_argument("--vflip", type=float, default=0.0)
args = parser.parse_args()
device, mean, std = torch.device("cpu"), (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
torch.manual_seed(0)
dataset_train = create_dataset(
    "", root=args.data_dir, split="train", is_training=True, class_map="", download=False, batch_size=8, seed=42, repeats=0.0
)
dataset_eval = create_dataset("", root=args.data_dir, split="validation", is_training=False, class_map="", batch_size=8)
mixup_fn = Mixup(mixup_alpha=args.mixup, num_classes=6) if args.mixup else None
loader_train = create_loader(
    dataset_train, input_size=(3, 32, 32), batch_size=8, is_training=True, no_aug=False, re_prob=0.0, re_mode="pixel",
    re_count=1, re_split=False, scale=[0.08, 1.0], ratio=[3.0 / 4.0, 4.0 / 3.0], hflip=0.5, vflip=args.vflip,
    color_jitter=0.4, auto_augment=None, num_aug_repeats=0, num_aug_splits=0, interpolation="random", mean=mean, std=std,
    num_workers=4, distributed=False, collate_fn=None, pin_memory=False, device=device,
    use_prefetcher=not args.no_prefetcher, use_multi_epochs_loader=False, worker_seeding="all",
)
loader_eval = create_loader(
    dataset_eval, input_size=(3, 32, 32), batch_size=8, is_training=False, use_prefetcher=not args.no_prefetcher,
    interpolation="bicubic", mean=mean, std=std, num_workers=4, distributed=False, crop_pct=0.875, pin_memory=False,
    device=device,
)
model = create_model("test_resnet", num_classes=6)
optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
for epoch in range(2):
    if hasattr(dataset_train, "set_epoch"):
        dataset_train.set_epoch(epoch)
    elif hasattr(loader_train.sampler, "set_epoch"):
        loader_train.sampler.set_epoch(epoch)
    for batch_idx, (input, target) in enumerate(loader_train):
        input, target = input.to(device), target.to(device)
        if mixup_fn is not None:
            input, target = mixup_fn(input, target)
        loss = torch.nn.functional.cross_entropy(model(input), target)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert batch_idx == len(loader_train) - 1
    model.eval()
    with torch.no_grad():
        num = sum(len(model(input)) for input, target in loader_eval)
    model.train()
    print("epoch", epoch, "steps", len(loader_train), "first", target.tolist(), "evaluated", num)
"""


@pytest.fixture
def run(forks):
    """`python -m softshard.training.timm_script`."""
    module = '"softshard.training.timm_script", run_name="__main__", alter_sys=True'
    code = f"import runpy; runpy.run_module({module})"
    return lambda script, data, *rest: forks.run(script, "--data-dir", data, *rest, code=code)


@pytest.fixture
def script(tmp_path):
    path = tmp_path / "train.py"
    path.write_text(SCRIPT)
    return path


@pytest.mark.parametrize("arguments", [[], ["--mixup", "0.8"]], ids=["plain", "mixup"])
def test_a_script_that_asks_timm_for_its_data_gets_the_loaders(run, shards, script, arguments):
    done = run(script, shards, "--no-prefetcher", *arguments)
    assert done.returncode == 0, done.stderr
    first, second = [line for line in done.stdout.splitlines() if line.startswith("epoch")]
    assert first.endswith("evaluated 12")
    assert second.endswith("evaluated 12")
    assert first.split("first")[1] != second.split("first")[1]  # another order


def test_batches_come_from_servers_where_the_data_set_is_their_address(run, shards, script, tmp_path):
    pytest.importorskip("pyarrow")
    from softshard.loaders.service_desk import Desk, ServedSet
    from softshard.loaders.service_server import BatchServer

    token = tmp_path / "token"
    token.write_text("0123456789abcdef0123456789abcdef")
    token.chmod(0o600)
    sets = {name: ServedSet(shards / name) for name in ("train", "val")}
    servers = [BatchServer(Desk(sets, num_threads=1), token=token.read_text()) for _ in range(2)]
    addresses = ",".join(server.address for server in servers)
    try:
        done = run(script, addresses, "--no-prefetcher", "--token-file", str(token))
        assert sum(server.desk.totals()["images"] for server in servers) > 0
        assert not any(server.stats().unauthenticated for server in servers)
    finally:
        for server in servers:
            server.close(5)
    assert done.returncode == 0, done.stderr
    assert done.stdout == run(script, shards, "--no-prefetcher").stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "timm: expected --no-prefetcher"),
        (
            ["--no-prefetcher", "--vflip", "0.5"],
            "timm: expected options that softshard's Loader has, too, found vflip=0.5. Leave them out",
        ),
    ],
)
def test_what_the_loader_does_not_have_is_refused(run, shards, script, arguments, message):
    done = run(script, shards, *arguments)
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith(f"softshard: {message}")


def test_a_data_set_that_is_not_there_is_named(run, tmp_path, script):
    done = run(script, tmp_path / "nothing", "--no-prefetcher")
    assert done.returncode == 1
    assert f"{tmp_path}/nothing/train" in done.stderr


def test_the_parameters_are_those_of_the_installed_timm():
    known = inspect.signature(timm.data.loader.create_loader).parameters
    assert set(known) >= timm_script._USED
    assert set(known) >= timm_script._OF_NO_MEANING
    with pytest.raises(UsageError, match=r"expected the path of timm's train\.py"):
        timm_script.run([])


def test_timms_augmix_is_refused_before_it_asks_for_a_loader():
    with pytest.raises(UsageError, match="timm: expected no --aug-splits"):
        AugMixDataset(timm_script.create_dataset(root="set"), num_splits=2)


@pytest.mark.skipif(
    "SOFTSHARD_TIMM_TRAIN" not in os.environ,
    reason="SOFTSHARD_TIMM_TRAIN does not name timm's train.py, which is not in its wheel",
)
def test_timms_own_train_py_trains(run, shards, tmp_path):
    options = {
        "model": "test_resnet",
        "num-classes": 6,
        "batch-size": 8,
        "epochs": 2,
        "warmup-epochs": 0,
        "opt": "adamw",
    }
    options |= {"lr": 0.002, "cooldown-epochs": 0, "log-interval": 1, "img-size": 32}
    path = Path(os.environ["SOFTSHARD_TIMM_TRAIN"]).resolve()
    if "--device" in path.read_text():  # the script of 2023 has none
        options["device"] = "cpu"
    arguments = ["--no-prefetcher", *(f"--{name}={value}" for name, value in options.items())]
    done = run(path, shards, *arguments, "--output", str(tmp_path / "out"), "--experiment", "run")
    assert done.returncode == 0, done.stderr
    rows = (tmp_path / "out" / "run" / "summary.csv").read_text().splitlines()
    assert len(rows) == 3
