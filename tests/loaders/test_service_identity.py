"""A RemoteLoader gives what a Loader gives, bit by bit."""

import inspect
import json
import shutil

import pytest
import torch
from service_processes import SMALL, assert_same_batches, serving, serving_two

from softshard.loaders import (
    Augment,
    Connection,
    CutMix,
    Erasing,
    LabelPooling,
    Loader,
    Mixture,
    Mixup,
    RandAugment,
    RemoteLoader,
    Subset,
    as_tuples,
)
from softshard.loaders.service_recipe import wire_dtype
from softshard.shards import LabelTree, Manifest, relabel

FLAT = [("cat", "beast"), ("dog", "beast"), ("crow", "beast"), ("oak", "thing"), ("beast", "thing")]


@pytest.fixture(scope="module")
def servers(packed, packed_all_paths):
    """Two servers of the same two data sets."""
    sets = f"small={packed}", f"paths={packed_all_paths}"
    with serving_two(*sets) as (one, other):
        yield [one.url, other.url]


def test_a_remote_loader_takes_the_options_of_a_loader_with_the_same_defaults():
    here, there = (inspect.signature(kind).parameters for kind in (Loader, RemoteLoader))
    # Shards are the servers': what they are joined with, and where they are kept.
    shared = {
        name: option.default for name, option in here.items() if name not in ("dataset", "side", "cache")
    }
    assert shared.items() <= {name: option.default for name, option in there.items()}.items()


OPTIONS = {
    "as it comes": {},
    "uint8": {"dtype": "uint8"},
    "float16, two threads": {"dtype": "float16", "num_threads": 2},
    "label maps": {"targets": "relabel", "dtype": "uint8"},
    "label maps, a grid": {"targets": LabelPooling(grid=(2, 3), original=0.25)},
    "drop, two threads": {"last_batch": "drop", "num_threads": 2},
    "in order": {"shuffle": False},
    "lanes": {"lanes": 3, "window": 7},
    "the second of two ranks": {"rank": 1, "world_size": 2, "batch_size": 6},
    "other statistics": {"mean": (0.5, 0.4, 0.3), "std": (0.2, 0.3, 0.4)},
    "balanced": {"balance": 0.5},
    "a subset": {"subset": Subset(classes=("cat", "oak", "gull"), fraction=0.7, seed=3)},
    "colours": {"augment": Augment(size=16, color_jitter=0.4, lighting=0.1, cutout=0.5)},
    "colours, uint8": {
        "augment": Augment(size=16, randaugment=RandAugment(), erasing=Erasing(prob=1)),
        "dtype": "uint8",
        "mean": (0.5, 0.4, 0.3),
    },
    "Mixup": {"augment": Augment(size=16, mixup=Mixup()), "targets": "original"},
    "CutMix": {"augment": Augment(size=16, cutmix=CutMix()), "targets": "original"},
    "visible CutMix and Mixup": {
        "augment": Augment(size=16, cutmix=CutMix(visible=True), mixup=Mixup(), mix_until_epoch=1),
        "targets": "relabel",
        "dtype": "float16",
    },
    "evaluation": {"augment": Augment.evaluation(16, 0.875), "shuffle": False},
}


@pytest.mark.parametrize("name", OPTIONS)
def test_batches_and_state_are_the_local_loaders(servers, packed, name):
    options = SMALL | OPTIONS[name]
    with RemoteLoader(servers, dataset="small", **options) as remote, Loader(packed, **options) as local:
        assert len(remote) == len(local)
        assert remote.state_dict() == local.state_dict()
        for _ in range(2):  # epochs
            assert_same_batches(remote, local)
            assert remote.state_dict() == local.state_dict()
        assert remote.num_left_out == local.num_left_out
        assert (remote.count_classes() == local.count_classes()).all()


@pytest.mark.parametrize("shared_memory", [True, False])
def test_both_ways_give_the_same_and_the_pool_knows_which_it_was(servers, packed, shared_memory):
    connection = Connection(shared_memory=shared_memory)
    options = SMALL | {"dtype": "uint8"}
    with RemoteLoader(servers, dataset="small", connection=connection, **options) as remote:
        with Loader(packed, **options) as local:
            assert_same_batches(remote, local)
        assert (remote._pool.num_in_memory > 0) == shared_memory


def test_who_writes_into_a_batch_changes_nobody_elses(servers):
    options = SMALL | {"dtype": "uint8", "dataset": "small"}
    with RemoteLoader(servers, **options) as one, RemoteLoader(servers, **options) as other:
        before = [batch.images.zero_() for batch in one]
        assert not any(images.any() for images in before)
        assert all(batch.images.any() for batch in other)


@pytest.mark.parametrize("kind", ["tree", "names", "relabelling"])
def test_labels_are_sent_as_data(servers, packed, kind):
    tree = LabelTree.from_table(None, FLAT)
    manifest = Manifest.load(packed)
    names = [name for name in reversed(manifest.class_names) if name != "dog"]
    labels = {"tree": tree, "names": names, "relabelling": relabel(manifest.class_names, tree)}[kind]
    options = SMALL | {"labels": labels}
    with RemoteLoader(servers, dataset="small", **options) as remote, Loader(packed, **options) as local:
        assert remote.class_names == local.class_names
        trees = [None if each.tree is None else each.tree.fingerprint for each in (remote, local)]
        assert trees[0] == trees[1]
        assert remote.state_dict() == local.state_dict()
        assert_same_batches(remote, local)


def test_keys_are_read_here_and_sent(servers, packed, tmp_path):
    with Loader(packed, **SMALL) as local:
        keys = next(iter(local)).keys
    (tmp_path / "keys.txt").write_text("\n".join(keys))
    options = SMALL | {"subset": Subset(keys=tmp_path / "keys.txt"), "batch_size": 5}
    with RemoteLoader(servers, dataset="small", **options) as remote, Loader(packed, **options) as local:
        assert remote.state_dict() == local.state_dict()
        assert_same_batches(remote, local)


def test_classes_with_several_parents_have_several_rows(servers, packed_all_paths):
    options = SMALL | {"batch_size": 4}
    urls = [f"{url}/paths" for url in servers]
    with RemoteLoader(",".join(urls), **options) as remote, Loader(packed_all_paths, **options) as local:
        assert_same_batches(remote, local)


def test_a_mixture_of_a_servers_data_sets(packed_plain, tmp_path):
    twin = shutil.copytree(packed_plain, tmp_path / "twin")
    with serving(f"plain={packed_plain}", f"twin={twin}") as server:
        mixture = Mixture({"plain": 2, "twin": 1}, epoch_samples=30)
        here = Mixture({packed_plain: 2, twin: 1}, epoch_samples=30)
        with RemoteLoader(server.url, dataset=mixture, **SMALL) as remote, Loader(here, **SMALL) as local:
            assert remote.state_dict() == local.state_dict()
            assert_same_batches(remote, local)


def test_states_go_from_one_kind_to_the_other_before_every_batch(servers, packed):
    options = SMALL | {"dtype": "uint8", "lanes": 2}
    with RemoteLoader(servers, dataset="small", **options) as remote, Loader(packed, **options) as local:
        states, batches = [remote.state_dict()], []
        for batch in remote:
            batches.append(batch)
            states.append(remote.state_dict())
        for number, state in enumerate(states[:-1]):
            local.load_state_dict(json.loads(json.dumps(state)))
            assert_same_batches(local, batches[number:])
            local.load_state_dict(state)
            remote.load_state_dict(local.state_dict())
            assert_same_batches(remote, batches[number:])


def test_another_world_size_continues_a_local_state(servers, packed):
    options = SMALL | {"dtype": "uint8"}
    with Loader(packed, **options) as local:
        batches = iter(local)
        next(batches)
        state = local.state_dict()
        expected = list(batches)
    parts = []
    for rank in range(2):
        options = options | {"batch_size": 6, "world_size": 2, "rank": rank}
        with RemoteLoader(servers, dataset="small", **options) as remote:
            remote.load_state_dict(state)
            parts.append(list(remote))
    for whole, one, other in zip(expected, *parts, strict=True):
        assert whole.keys == one.keys + other.keys
        assert torch.equal(whole.images, torch.cat([one.images, other.images]))


def test_bad_samples_are_replaced_and_counted_as_a_local_loader_does(damage):
    folder, _, key = damage(20, "jpg", lambda jpeg: bytes(len(jpeg)))
    with (
        serving(folder) as server,
        RemoteLoader(server.url, **SMALL) as remote,
        Loader(folder, **SMALL) as local,
    ):
        assert_same_batches(remote, local)
        assert remote.num_bad == local.num_bad == 1
        assert key not in {name for batch in remote for name in batch.keys}


def test_adapters_take_it_as_they_take_a_loader(servers, packed):
    options = SMALL | {"last_batch": "drop"}
    with RemoteLoader(servers, dataset="small", **options) as remote, Loader(packed, **options) as local:
        found, expected = as_tuples(remote), as_tuples(local)
        found.sampler.set_epoch(3)
        expected.sampler.set_epoch(3)
        for (images, classes), (others, labels) in zip(found, expected, strict=True):
            assert torch.equal(images, others)
            assert torch.equal(classes, labels)


def test_what_is_blended_after_normalisation_is_sent_as_floats():
    assert wire_dtype(Augment(), "float32") == wire_dtype(Augment(cutmix=CutMix()), "float16") == "uint8"
    assert (
        wire_dtype(Augment(mixup=Mixup()), "float32")
        == wire_dtype(Augment(erasing=Erasing()), "float32")
        == "float32"
    )
