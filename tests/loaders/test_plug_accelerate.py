"""Accelerate with two processes: each has its own Loader, and the state is saved with the model's."""

import pytest
from two_processes import run_two

from softshard.loaders import Augment, Loader

pytest.importorskip("accelerate", reason="needs accelerate: pip install '.[dev]'")

OPTIONS = {"augment": Augment(size=8), "seed": 5, "num_threads": 1}

SCRIPT = """
import json, sys
import torch
from accelerate import Accelerator
from softshard.loaders import Loader
from test_plug_accelerate import OPTIONS

dataset, out = sys.argv[1:]
accelerator = Accelerator(cpu=True)
loader = Loader(dataset, batch_size=12, rank=accelerator.process_index, world_size=accelerator.num_processes, **OPTIONS)
torch.manual_seed(0)
model = torch.nn.Linear(3 * 8 * 8, loader.num_classes)
optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
model, optimizer, prepared = accelerator.prepare(model, optimizer, loader)
assert prepared is loader  # whoever prepares it after all changes nothing
accelerator.register_for_checkpointing(loader)

def train(epochs, save_at=None):
    seen = []
    for epoch in range(loader.epoch, epochs):
        loader.set_epoch(epoch)
        for batch in loader:
            batch = batch.to(accelerator.device)
            loss = torch.nn.functional.cross_entropy(model(batch.images.flatten(1)), batch.classes)
            accelerator.backward(loss)
            optimizer.step()
            optimizer.zero_grad()
            seen.append((batch.keys, loss.item()))
            if len(seen) == save_at:
                accelerator.save_state(f"{out}/state")
    return seen

whole = train(2, save_at=3)
accelerator.wait_for_everyone()
accelerator.load_state(f"{out}/state")
with open(f"{out}/{accelerator.process_index}.json", "w") as file:
    json.dump({"whole": whole, "resumed": train(2), "processes": accelerator.num_processes}, file)
loader.close()
accelerator.end_training()
"""


def test_two_processes_share_the_global_batches_and_resume_in_an_epoch(packed, tmp_path):
    # `accelerate launch` starts several processes on GPUs only (or through MPI).
    ranks = run_two(SCRIPT, packed, tmp_path, HF_HOME=str(tmp_path))
    with Loader(packed, batch_size=24, **OPTIONS) as loader:
        expected = [batch.keys for _ in range(2) for batch in loader]
    assert [rank["processes"] for rank in ranks] == [2, 2]
    steps = zip(ranks[0]["whole"], ranks[1]["whole"], strict=True)
    assert [one[0] + other[0] for one, other in steps] == expected
    for rank in ranks:
        assert rank["resumed"] == rank["whole"][3:]
