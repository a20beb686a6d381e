"""Lightning's Trainer takes a Loader as it is: epochs, checkpoints in the middle of one, two processes."""

import pytest
import torch
from two_processes import run_two

from softshard.loaders import Augment, Loader, on_device

lightning = pytest.importorskip("lightning", reason="needs lightning: pip install '.[dev]'")

OPTIONS = {"batch_size": 24, "augment": Augment(size=8), "seed": 5, "num_threads": 1}
STEPS, EPOCHS = 4, 2  # of 105 samples; 9 are left out

QUIET = {
    "accelerator": "cpu",
    "max_epochs": EPOCHS,
    "logger": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
}


class Classifier(lightning.LightningModule):
    """A linear model that remembers what it was given."""

    def __init__(self, loader):
        super().__init__()
        torch.manual_seed(0)
        self.loader, self.seen = loader, []
        self.head = torch.nn.Linear(3 * 8 * 8, loader.num_classes)

    def train_dataloader(self):
        return self.loader

    def training_step(self, batch, batch_idx):
        self.seen.append((batch.keys, batch.crops.tolist()))
        loss = torch.nn.functional.cross_entropy(self.head(batch.images.flatten(1)), batch.classes)
        self.log("loss", loss, batch_size=len(batch))
        return loss

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.01)


def fit(folder, loader, checkpoint=None, wrap=lambda loader: loader):
    """Train for the epochs, a checkpoint after every step; the model."""
    model = Classifier(loader)
    model.train_dataloader = lambda: wrap(loader)
    every_step = lightning.pytorch.callbacks.ModelCheckpoint(
        dirpath=folder, filename="{step}", every_n_train_steps=1, save_top_k=-1, save_last=False
    )
    lightning.Trainer(**QUIET, callbacks=[every_step]).fit(model, ckpt_path=checkpoint)
    return model


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning", "ignore::DeprecationWarning")
@pytest.mark.parametrize(
    "wrap", [lambda loader: loader, lambda loader: on_device(loader, "cpu")], ids=["loader", "on_device"]
)
def test_training_resumes_on_the_next_batch_of_any_checkpoint(packed, tmp_path, wrap):
    with Loader(packed, **OPTIONS) as loader:
        expected = [(batch.keys, batch.crops.tolist()) for _ in range(EPOCHS) for batch in loader]
    with Loader(packed, **OPTIONS) as loader:
        whole = fit(tmp_path / "whole", loader, wrap=wrap)
    assert whole.seen == expected  # another order and other crops in the second epoch
    checkpoints = sorted((tmp_path / "whole").glob("*.ckpt"))
    assert [path.stem for path in checkpoints] == [f"step={step}" for step in range(1, EPOCHS * STEPS + 1)]
    for done in (2, STEPS, STEPS + 1):  # in an epoch, after its last batch, in the next one
        with Loader(packed, **OPTIONS) as loader:
            resumed = fit(tmp_path / str(done), loader, checkpoints[done - 1], wrap)
        assert resumed.seen == expected[done:]
        assert torch.equal(resumed.head.weight, whole.head.weight)


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning", "ignore::DeprecationWarning")
def test_validation_sees_every_image_once_an_epoch(packed):
    counts = []

    class Validated(Classifier):
        def on_validation_epoch_start(self):
            self.keys = []

        def validation_step(self, batch, batch_idx):
            self.keys += [key for key, valid in zip(batch.keys, batch.valid, strict=True) if valid]

        def on_validation_epoch_end(self):
            counts.append((len(self.keys), len(set(self.keys))))

    with Loader(packed, **OPTIONS) as loader, Loader(packed, **OPTIONS, last_batch="pad") as val:
        model = Validated(loader)
        lightning.Trainer(**QUIET, enable_checkpointing=False).fit(model, val_dataloaders=val)
    assert counts == [(48, 48), (105, 105), (105, 105)]  # first Lightning's own check of two batches


SCRIPT = """
import json, sys
import lightning, torch
from test_plug_lightning import OPTIONS, QUIET, Classifier
from softshard.loaders import Loader

dataset, out = sys.argv[1:]

class Ranked(Classifier):
    def train_dataloader(self):
        return Loader(dataset, **{**OPTIONS, "batch_size": 12},
                      rank=self.trainer.global_rank, world_size=self.trainer.world_size)

def fit(checkpoint=None):
    with Loader(dataset, **OPTIONS) as loader:
        model = Ranked(loader)
    every_step = lightning.pytorch.callbacks.ModelCheckpoint(
        dirpath=out, filename="{step}", every_n_train_steps=1, save_top_k=-1, enable_version_counter=False)
    trainer = lightning.Trainer(**QUIET, devices=2, strategy="ddp", callbacks=[every_step])
    trainer.fit(model, ckpt_path=checkpoint)
    return {"rank": trainer.global_rank, "seen": model.seen, "weight": model.head.weight.tolist()}

torch.set_num_threads(1)
whole, resumed = fit(), fit(f"{out}/step=3.ckpt")
with open(f"{out}/{whole['rank']}.json", "w") as file:
    json.dump({"whole": whole, "resumed": resumed}, file)
"""


def test_two_processes_share_the_global_batches_and_resume_in_an_epoch(packed, tmp_path):
    ranks = run_two(SCRIPT, packed, tmp_path)
    with Loader(packed, **OPTIONS) as loader:
        expected = [batch.keys for _ in range(EPOCHS) for batch in loader]
    steps = zip(ranks[0]["whole"]["seen"], ranks[1]["whole"]["seen"], strict=True)
    assert [one[0] + other[0] for one, other in steps] == expected
    for rank in ranks:
        assert rank["resumed"]["seen"] == rank["whole"]["seen"][3:]
        assert rank["resumed"]["weight"] == rank["whole"]["weight"] == ranks[0]["whole"]["weight"]
