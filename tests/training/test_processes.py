"""What the ranks say to each other, in a group of one: through gloo here, through NCCL on a GPU.

Two processes under gloo are in test_torchrun.py; two under NCCL need two GPUs.
"""

import copy
import os
import signal
import socket
from functools import partial

import pytest
import torch
from tiny_runs import tiny
from torch import distributed as dist
from torch.nn.parallel import DistributedDataParallel

from softshard.loaders.batch import Batch
from softshard.shards import LabelTree
from softshard.training import semantic_kd, semantic_softmax
from softshard.training.checkpoint import load_checkpoint
from softshard.training.models import create_model
from softshard.training.objective import create_loss
from softshard.training.processes import Stopped, process_group, stop_signal
from softshard.training.step import TrainStep
from softshard.training.teacher_store import store_teacher
from softshard.training.train import train

STOPPING = [signal.SIGTERM, signal.SIGINT, signal.SIGHUP]
GPU = (
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU"),
)
GROUPS = [pytest.param("gloo", "cpu", id="gloo"), pytest.param("nccl", "cuda:0", id="nccl", marks=GPU)]


tiny = partial(tiny, epochs=2)


@pytest.fixture
def group(request, monkeypatch):
    """A process group of one."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        monkeypatch.setenv("MASTER_PORT", str(free.getsockname()[1]))
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    with process_group(request.param, 0, 1):
        yield


@pytest.mark.parametrize(("group", "device"), GROUPS, indirect=["group"])
@pytest.mark.parametrize("changes", [{}, {"accumulate": 2, "ema_decay": 0.9, "precision": "bfloat16"}])
def test_a_wrapped_step_is_the_plain_one_and_its_buffers_are_shared(group, device, changes):
    table = [("cat", "mammal"), ("dog", "mammal"), ("crow", "bird"), ("gull", "bird")]
    tree = LabelTree.from_table(("cat", "dog", "crow", "gull"), table)
    generator = torch.Generator().manual_seed(0)
    batch = Batch(
        images=torch.randint(0, 256, (8, 3, 32, 32), generator=generator, dtype=torch.uint8).to(device),
        classes=torch.zeros(8, dtype=torch.int64, device=device),
        levels=torch.tensor(tree.vectors()[[0, 1, 2, 3] * 2], dtype=torch.int64, device=device),
        targets=None,
        crops=torch.zeros(8, 4),
        flips=torch.zeros(8, dtype=torch.bool),
        keys=[str(i) for i in range(8)],
        valid=torch.tensor([True] * 5 + [False] * 3, device=device),
    )
    recipe = tiny(semantic_softmax(), **changes)
    torch.manual_seed(0)
    network = create_model("test_resnet", len(tree.classes), 32)
    results = []
    for world_size in (1, 2):
        model = copy.deepcopy(network).to(device)
        # As rank 0 of two that are one: the mean over the ranks of a loss that is doubled for them.
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1 / world_size)
        loss = create_loss(recipe, tree).to(device)
        step = TrainStep(recipe, model, loss, optimizer, world_size=world_size)
        step.train()
        curve = [step(batch).loss.item() for _ in range(3)]
        step.share_buffers()
        results.append((curve, step.best_state_dict()))
        assert isinstance(step.model, DistributedDataParallel) == (world_size == 2)
    assert results[1][0] == pytest.approx(results[0][0], rel=1e-5)
    assert results[0][0][2] < results[0][0][0]
    for name, tensor in results[0][1].items():
        torch.testing.assert_close(results[1][1][name], tensor, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("group", "device"), GROUPS, indirect=["group"])
def test_a_run_in_the_callers_group_evaluates_through_it_and_leaves_it(group, device, shards, tmp_path):
    options = {"model": "test_resnet", "val": str(shards / "val"), "device": device, "log": lambda line: None}
    result = train(tiny(semantic_softmax()), str(shards / "train"), out=tmp_path, **options)
    assert [entry["samples"] for entry in result.history] == [12, 12]
    assert dist.is_initialized()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
@pytest.mark.parametrize("precision", ["float32", "bfloat16", "float16"])
def test_a_gpu_distils_from_a_live_and_a_stored_teacher(precision, shards, tmp_path):
    options = {"model": "test_resnet", "device": "cuda:0", "log_steps": 1, "log": lambda line: None}
    source = str(shards / "train")
    knows = tiny(semantic_softmax(), epochs=4, lr=1e-2)
    teacher = train(knows, source, out=tmp_path / "teacher", **options).checkpoint
    amp = None if precision == "float32" else precision
    made = store_teacher(source, tmp_path / "stored", teacher, amp=amp, device="cuda:0")
    assert made.teacher.how["device"] == "cuda"
    recipe = tiny(semantic_kd(), precision=precision, epochs=4, lr=3e-3)
    for name, dataset, asked in (("live", source, teacher), ("stored", str(tmp_path / "stored"), None)):
        result = train(recipe, dataset, out=tmp_path / name, teacher=asked, **options)
        assert result.history[-1]["loss"] < result.history[0]["loss"]
        saved = load_checkpoint(result.checkpoint)
        assert saved.teacher["stored"] == (name == "stored")
        assert (saved.scaler is not None) == (precision == "float16")


@pytest.mark.parametrize("number", STOPPING)
def test_a_signal_is_told_and_the_handlers_before_come_back(number):
    before = [signal.getsignal(each) for each in STOPPING]
    with stop_signal() as received:
        assert received() == 0
        os.kill(os.getpid(), number)
        assert received() == number
    assert [signal.getsignal(each) for each in STOPPING] == before


def test_one_of_several_processes_is_told_and_nothing_is_broken_off():
    with stop_signal(alone=False) as received:
        with received.interruptible():
            os.kill(os.getpid(), signal.SIGTERM)
        with received.interruptible():
            assert received() == signal.SIGTERM
        assert list(received.until([1, 2])) == [1, 2]


def test_a_block_that_a_signal_broke_off_leaves_the_next_signal_to_be_told():
    with stop_signal() as received:
        with pytest.raises(Stopped), received.interruptible():
            os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGHUP)
        assert received() == signal.SIGHUP
        with pytest.raises(Stopped), received.interruptible():
            pytest.fail("begun after the signal")


def test_a_terminal_that_goes_stops_nothing_under_nohup():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with stop_signal() as received:
            os.kill(os.getpid(), signal.SIGHUP)
            assert received() == 0
    finally:
        signal.signal(signal.SIGHUP, before)
