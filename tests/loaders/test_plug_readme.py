"""The guide's code that plugs the loader in, run as it stands but for sizes and paths."""

import sys
import types
from pathlib import Path

import pytest
import torch

from page_blocks import code_blocks, put_in_place, run_python

pytestmark = pytest.mark.usefixtures("one_thread")

GUIDE = (Path(__file__).parents[2] / "loaders" / "README.md").read_text()
README = (Path(__file__).parents[2] / "README.md").read_text()
PASSAGE = GUIDE.partition("## Order")[0] + GUIDE.partition("## Plug it in")[2].partition("## Measure it")[0]
BLOCKS = [code for _, code in code_blocks(PASSAGE, "python")]
# What a block is known by -> the module that it needs, and how often each text is put in place of another.
EXAMPLES = {
    "SemanticSoftmaxLoss": ("timm", {"/data/in21k/train": 1, "size=224": 1, "resnet50": 1, ", 80)": 1}),
    "LightningModule": ("lightning", {"/data/in1k/train": 1, "resnet50": 1, "max_epochs=80": 1}),
    "Accelerator": ("accelerate", {"/data/in1k/train": 1, "resnet50": 1, ", 80)": 1}),
    "data_config": ("timm", {}),
    "torchdata": ("torchdata", {"/data/in1k/train": 1}),
    "as_webdataset": ("webdataset", {"/data/in1k/train": 1, "evaluation(224)": 1}),
}
SMALLER = {
    "size=224": "size=32",
    "evaluation(224)": "evaluation(32)",
    "resnet50": "test_resnet",
    ", 80)": ", 2)",
    "max_epochs=80": "max_epochs=2, accelerator='cpu'",
}


def example(name, packed):
    """The one block that holds a name, with its texts replaced."""
    (block,) = [block for block in BLOCKS if name in block]
    counts = EXAMPLES[name][1]
    block = put_in_place(
        block, {text: (SMALLER.get(text, str(packed)), count) for text, count in counts.items()}
    )
    return block.replace("batch_size=256", "batch_size=16")


def test_every_example_of_plugging_in_is_run():
    assert len(BLOCKS) == len(EXAMPLES) == 6
    assert BLOCKS[0] in README  # the one loop that both show


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning", "ignore::DeprecationWarning")
@pytest.mark.parametrize("name", EXAMPLES)
def test_an_example_of_the_readme_runs(packed, tmp_path, monkeypatch, capsys, name):
    pytest.importorskip(EXAMPLES[name][0], reason=f"needs {EXAMPLES[name][0]}: pip install '.[dev]'")
    monkeypatch.chdir(tmp_path)
    module = types.ModuleType("example")
    monkeypatch.setitem(sys.modules, "example", module)
    if name == "data_config":  # what train.py has at that place
        data = tmp_path / "data"
        data.mkdir()
        for split in ("train", "val"):
            (data / split).symlink_to(packed)
        module.args = types.SimpleNamespace(batch_size=16, seed=1, rank=0, world_size=1, data_dir=data)
        module.data_config = {"input_size": (3, 32, 32), "mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)}
        module.device = torch.device("cpu")
    run_python(example(name, packed), f"README: {name}", module)
    left = vars(module)
    if name == "SemanticSoftmaxLoss":
        state = torch.load("checkpoint.pt")["loader"]
        assert (state["epoch"], state["taken"]) == (2, 0)
    elif name == "Accelerator":
        left["accelerator"].load_state("checkpoint")
        assert left["batches"].epoch == 2
    elif name == "LightningModule":
        (checkpoint,) = tmp_path.rglob("*.ckpt")
        assert "epoch=1-step=12" in checkpoint.name
    elif name == "data_config":
        images, classes = next(iter(left["loader_train"]))
        assert images.shape == (16, 3, 32, 32)
        assert classes.shape == (16,)
        assert len(left["loader_train"]) == len(left["loader_eval"]) == 6
    elif name == "torchdata":
        assert left["state"]["num_yielded"] == 6
    elif name == "as_webdataset":
        assert capsys.readouterr().out.count("torch.Size([16, 3, 32, 32])") == 6
    module.__dict__.clear()  # the loaders' threads end


def test_the_examples_of_faults_and_stats_run(packed, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    module = types.ModuleType("readme")
    blocks = [code for _, code in code_blocks(GUIDE, "python") if "faults = " in code or ".stats()" in code]
    assert len(blocks) == 2
    for block in blocks:
        code = block.replace("/data/in21k/train", str(packed)).replace("batch_size=256", "batch_size=16")
        run_python(code, "loaders/README.md", module)
    module.loader.close()
    assert "'decode': " in capsys.readouterr().out
    assert "softshard_loader_batches_total" in Path("softshard.prom").read_text()
