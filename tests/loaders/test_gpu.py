"""The GPU path against the CPU path."""

import pytest
import torch
from web_set import make_web_set

from softshard.loaders import Augment, Loader
from softshard.loaders.adapters import as_tuples

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU"),
]


def epoch(dataset, device, **options):
    defaults = {
        "batch_size": 16,
        "augment": Augment(size=64),
        "dtype": "uint8",
        "last_batch": "pad",
        "seed": 3,
    }
    with Loader(dataset, device=device, **{**defaults, **options}) as loader:
        return list(loader)


def psnr(one, other, peak):
    return 10 * torch.log10(peak**2 / (one - other).double().pow(2).mean().clamp(min=1e-12))


def test_everything_but_pixels_is_identical_and_targets_agree(packed):
    for host, there in zip(
        epoch(packed, "cpu", targets="relabel"), epoch(packed, "cuda", targets="relabel"), strict=True
    ):
        assert host.keys == there.keys
        for name in ("classes", "levels", "crops", "flips", "valid"):
            assert getattr(there, name).device.type == "cuda"
            assert torch.equal(getattr(host, name), getattr(there, name).cpu()), name
        torch.testing.assert_close(host.targets, there.targets.cpu(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("dtype", "peak"), [("uint8", 255), ("float32", 4.4), ("float16", 4.4)])
def test_pixels_agree_within_30_decibels(packed, dtype, peak):
    # peak: 255, and the same range after normalisation (1 / 0.225). The resampling differs, the decoding hardly.
    hosts, others = epoch(packed, "cpu", dtype=dtype), epoch(packed, "cuda", dtype=dtype)
    for host, there in zip(hosts, others, strict=True):
        assert there.images.dtype == host.images.dtype
        assert there.images.is_contiguous(memory_format=torch.channels_last)
        assert (there.images[~there.valid] == 0).all()
        assert psnr(host.images.float(), there.images.float().cpu(), peak) > 30


def test_a_state_of_one_device_continues_on_the_other(packed):
    with Loader(packed, batch_size=16, dtype="uint8", augment=Augment(size=32), seed=1) as host:
        batches = iter(host)
        next(batches)
        state = host.state_dict()
        expected = [batch.keys for batch in batches]
    with Loader(
        packed, batch_size=16, dtype="uint8", augment=Augment(size=32), seed=1, device="cuda"
    ) as there:
        there.load_state_dict(state)
        assert [batch.keys for batch in there] == expected


def test_tags_and_weights_are_the_same_on_both(tmp_path):
    web = make_web_set(tmp_path / "web") / "train"
    for keep in (None, 2):
        options = {"targets": ("tags", "weights"), "keep_targets": keep}
        for host, there in zip(epoch(web, "cpu", **options), epoch(web, "cuda", **options), strict=True):
            for one, other in ((host.targets, there.targets), *zip(
                host.more_targets.values(), there.more_targets.values(), strict=True
            )):  # fmt: skip
                if keep is None:
                    assert other.device.type == "cuda"
                    assert torch.equal(one, other.cpu())
                else:
                    assert other.values.device.type == "cuda"
                    assert torch.equal(one.values, other.values.cpu())
                    assert torch.equal(one.ids, other.ids.cpu())


def test_memory_that_the_loop_still_uses_is_not_given_to_a_later_batch(packed):
    options = {"augment": Augment(size=32), "targets": "relabel", "dtype": "float32"}
    kept = []
    with Loader(packed, device="cuda", batch_size=16, last_batch="pad", seed=3, **options) as loader:
        for batch in loader:
            busy = torch.randn(2048, 2048, device="cuda")
            for _ in range(50):
                busy = busy @ busy.T / 2048
            # Read when all that is done, while `batch` is gone and others are made.
            kept.append((batch.images.clone(), batch.targets.clone()))
            del batch
    for host, (images, targets) in zip(epoch(packed, "cpu", **options), kept, strict=True):
        assert psnr(host.images, images.cpu(), 4.4) > 30
        torch.testing.assert_close(host.targets, targets.cpu(), rtol=1e-5, atol=1e-5)


def test_every_epoch_uses_the_memory_of_the_first(packed):
    reserved = []
    with Loader(packed, device="cuda", batch_size=16, augment=Augment(size=64), targets="relabel") as loader:
        for _ in range(6):
            for batch in loader:
                del batch
            reserved.append(torch.cuda.memory_reserved())
    assert reserved[-1] <= reserved[1]


def test_padding_is_left_out_of_tuples(packed):
    options = {
        "batch_size": 16,
        "last_batch": "pad",
        "dtype": "uint8",
        "augment": Augment(size=32),
        "seed": 3,
    }
    with Loader(packed, device="cpu", **options) as host, Loader(packed, device="cuda", **options) as there:
        for (_, labels), (_, others) in zip(as_tuples(host), as_tuples(there), strict=True):
            assert torch.equal(labels, others.cpu())


def test_a_loop_on_a_stream_of_its_own_sees_whole_batches(packed):
    mine = torch.cuda.Stream()
    with torch.cuda.stream(mine):
        seen = [(batch.images.float().mean().item(), batch.keys) for batch in epoch_of(packed)]
    assert seen == [(batch.images.float().mean().item(), batch.keys) for batch in epoch_of(packed)]


def epoch_of(packed):
    with Loader(
        packed, device="cuda", batch_size=8, augment=Augment(size=32), dtype="uint8", seed=3
    ) as loader:
        yield from loader
