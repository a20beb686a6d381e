"""torchdata's nodes take a Loader as it is, its state included."""

import pytest
import torch

from softshard.loaders import Augment, Batch, Loader, as_tuples

nodes = pytest.importorskip("torchdata.nodes", reason="needs torchdata: pip install '.[dev]'")

STEPS = 4


@pytest.fixture
def make(packed):
    """A function that builds a small loader; all are closed in the end."""
    loaders = []

    def build():
        loaders.append(
            Loader(packed, batch_size=24, augment=Augment(size=16), dtype="uint8", seed=2, num_threads=1)
        )
        return loaders[-1]

    yield build
    for loader in loaders:
        loader.close()


def test_a_loader_and_its_adapters_are_stateful_for_torchdata(make):
    from torchdata.stateful_dataloader import Stateful

    loader = make()
    assert isinstance(loader, Stateful)
    assert isinstance(loader, nodes.Stateful)
    assert isinstance(as_tuples(loader), nodes.Stateful)


def pipeline(loader):
    """Batches as dicts, one ahead in a thread of torchdata's."""
    return nodes.Loader(
        nodes.Prefetcher(nodes.Mapper(nodes.IterableWrapper(loader), Batch.to_dict), prefetch_factor=1)
    )


def test_a_pipeline_of_nodes_resumes_after_any_batch_and_goes_on_to_the_next_epoch(make, within):
    epochs, states = [], []
    whole = pipeline(make())
    for _ in range(2):
        epochs.append([])
        for batch in whole:
            epochs[-1].append(batch)
            states.append(whole.state_dict())
    first, second = epochs
    assert [batch["keys"] for batch in first] != [batch["keys"] for batch in second]
    for done in range(1, STEPS + 1):
        resumed = pipeline(make())
        resumed.load_state_dict(states[done - 1])
        # A pipeline that stood at the end of an epoch begins the next one.
        expected = first[done:] or second
        found = within(lambda resumed=resumed: list(resumed))
        assert [batch["keys"] for batch in found] == [batch["keys"] for batch in expected]
        assert all(torch.equal(a["images"], b["images"]) for a, b in zip(found, expected, strict=True))
