"""What timm's train.py does with a loader, with timm's own parts.

Its script is not in timm's wheel. What it asks of a loader: `len`, pairs (input, target), another order after
`loader.sampler.set_epoch`; batches on the device, or copied there with `--no-prefetcher`, where it applies Mixup
to them itself.
"""

import numpy as np
import pytest
import timm
import torch
from timm import utils
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD, Mixup
from timm.data.loader import PrefetchLoader
from timm.loss import LabelSmoothingCrossEntropy, SoftTargetCrossEntropy
from timm.optim import create_optimizer_v2
from timm.scheduler import create_scheduler_v2

from softshard.loaders import Augment, Loader, as_tuples, open_loader

pytestmark = pytest.mark.usefixtures("one_thread")


def train_one_epoch(epoch, model, loader, optimizer, loss_fn, scheduler, mixup_fn, accum_steps=2):
    """The order of things in train.py's function of this name; returns the mean loss."""
    model.train()
    losses = utils.AverageMeter()
    updates_per_epoch = (len(loader) + accum_steps - 1) // accum_steps
    num_updates, last = epoch * updates_per_epoch, len(loader) - 1
    last_accum_steps = len(loader) % accum_steps
    optimizer.zero_grad()
    for batch_idx, (input, target) in enumerate(loader):
        need_update = batch_idx == last or (batch_idx + 1) % accum_steps == 0
        if batch_idx >= len(loader) - last_accum_steps:
            accum_steps = last_accum_steps
        input, target = input.to("cpu"), target.to("cpu")
        if mixup_fn is not None:
            input, target = mixup_fn(input, target)
        input = input.contiguous(memory_format=torch.channels_last)
        loss = loss_fn(model(input), target) / accum_steps
        loss.backward()
        losses.update(loss.item() * accum_steps, input.size(0))
        if need_update:
            optimizer.step()
            optimizer.zero_grad()
            num_updates += 1
            scheduler.step_update(num_updates=num_updates, metric=losses.avg)
    assert batch_idx == last  # the last update was made
    return losses.avg


@torch.no_grad()
def validate(model, loader):
    model.eval()
    top1, num = utils.AverageMeter(), 0
    for input, target in loader:
        output = model(input)
        top1.update(utils.accuracy(output, target)[0].item(), output.size(0))
        num += output.size(0)
    return top1.avg, num


MODES = {
    "plain": ("none", "classes", LabelSmoothingCrossEntropy(0.1), None),
    # Mixup wants an even number of images, and changes the batch in place.
    "mixup": (
        "none",
        "classes",
        SoftTargetCrossEntropy(),
        dict(mixup_alpha=0.8, cutmix_alpha=1.0),
    ),
    "relabel": ("relabel", "targets", torch.nn.CrossEntropyLoss(), None),
}


@pytest.mark.parametrize("mode", MODES)
def test_a_model_of_timms_learns_in_the_loop_of_train_py(packed, mode):
    losses = train_py(packed, mode)
    assert losses[-1] < losses[0]


@pytest.mark.parametrize("mode", MODES)
def test_against_servers_the_loop_gives_the_same_losses(packed, mode):
    pytest.importorskip("pyarrow")
    from softshard.loaders.service_desk import Desk, ServedSet
    from softshard.loaders.service_server import BatchServer

    server = BatchServer(Desk({"train": ServedSet(packed)}, num_threads=1))
    try:
        there = train_py(f"{server.address}/train", mode)
    finally:
        server.close(5)
    assert there == train_py(packed, mode)


def train_py(dataset, mode):
    """Three epochs, each followed by a pass over all images; the mean loss of each."""
    targets, labels, loss_fn, mixup = MODES[mode]
    torch.manual_seed(0)
    np.random.seed(0)  # timm's Mixup draws from it  # noqa: NPY002
    options = {"batch_size": 16, "num_threads": 1}
    with (
        open_loader(dataset, augment=Augment(size=32), targets=targets, **options) as train_source,
        open_loader(
            dataset, augment=Augment.evaluation(32), shuffle=False, last_batch="pad", **options
        ) as val_source,
    ):
        loader_train = as_tuples(train_source, labels, device="cpu")
        loader_eval = as_tuples(val_source, device="cpu")
        model = timm.create_model("test_resnet", num_classes=train_source.num_classes)
        optimizer = create_optimizer_v2(model, opt="adamw", lr=2e-3)
        mixup_fn = Mixup(**mixup, num_classes=train_source.num_classes) if mixup else None
        scheduler, num_epochs = create_scheduler_v2(
            optimizer,
            num_epochs=3,
            warmup_epochs=0,
            step_on_epochs=False,
            updates_per_epoch=(len(loader_train) + 1) // 2,
        )
        losses = []
        for epoch in range(num_epochs):
            assert callable(loader_train.sampler.set_epoch)
            loader_train.sampler.set_epoch(epoch)
            losses.append(
                train_one_epoch(epoch, model, loader_train, optimizer, loss_fn, scheduler, mixup_fn)
            )
            _, num = validate(model, loader_eval)
            assert num == 105  # each image once
        return losses


def test_timms_prefetcher_makes_of_bytes_what_the_loader_makes(packed):
    options = {"batch_size": 16, "augment": Augment(size=32), "num_threads": 1}
    with Loader(packed, dtype="uint8", **options) as pixels, Loader(packed, **options) as normalised:
        # As create_loader wraps its own: bytes go to the device, where they become floats.
        prefetcher = PrefetchLoader(
            as_tuples(pixels), IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD, device=torch.device("cpu")
        )
        assert len(prefetcher) == len(normalised) == 6
        for (images, classes), batch in zip(prefetcher, normalised, strict=True):
            torch.testing.assert_close(images, batch.images, rtol=0, atol=2e-6)
            assert torch.equal(classes, batch.classes)
