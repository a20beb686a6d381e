"""A RemoteLoader's targets, subsets and vocabulary are a Loader's, bit by bit."""

import dataclasses
import json
import shutil

import numpy as np
import pytest
from service_processes import SMALL, assert_same_batches
from taught_sets import with_teacher
from test_soft_targets import VOCABULARY, make_set

from softshard.loaders import Augment, CutMix, LabelPooling, Loader, Mixup, RemoteLoader, Subset
from softshard.loaders.service_desk import Desk, ServedSet
from softshard.loaders.service_limits import Limits
from softshard.loaders.service_server import BatchServer
from softshard.shards import DataError, LabelTree, Manifest, ShardWriter, SubsetFile, UsageError, read_shard
from softshard.shards.soft_labels import encode_pseudo_labels


def with_pseudo_labels(dataset, folder):
    """A copy of a data set with the component `soft`."""
    manifest, rng, records = Manifest.load(dataset), np.random.default_rng(2), []
    shutil.copytree(dataset, folder, ignore=shutil.ignore_patterns("*.tar", "*.idx", "manifest.json"))
    for shard in manifest.shards:
        with ShardWriter(folder / shard.name, [*manifest.components, "soft"]) as writer:
            for sample in read_shard(dataset / shard.name):
                ids = np.sort(rng.permutation(manifest.num_classes)[: rng.integers(0, 4)])
                soft = encode_pseudo_labels(ids, rng.uniform(0.1, 1, len(ids)), manifest.num_classes)
                writer.write(sample.key, {**sample.parts, "soft": soft})
        records.append(writer.record)
    info = dataclasses.replace(manifest.soft_labels, pseudo={"models": []})
    dataclasses.replace(manifest, components=writer.suffixes, shards=tuple(records), soft_labels=info).save(
        folder
    )
    return folder


@pytest.fixture(scope="module")
def sets(packed, tmp_path_factory):
    """`small` has label maps, `web` tags, weights and pseudo labels, `taught` a teacher's."""
    folder = tmp_path_factory.mktemp("targets")
    with_teacher(packed, folder / "taught", LabelTree.load(packed / "tree.json").level_sizes)
    web = with_pseudo_labels(make_set(folder / "plain", 5), folder / "web")
    return {"small": packed, "web": web, "taught": folder / "taught"}


@pytest.fixture(scope="module")
def server(sets):
    """In this process."""
    desk = Desk(
        {name: ServedSet(path) for name, path in sets.items()}, num_threads=1, limits=Limits(recipes=64)
    )
    server = BatchServer(desk)
    yield server
    server.close(5)


@pytest.fixture(autouse=True)
def no_threads_left():
    """The server's threads stay until the last test: see test_service_identity for those of a client."""


TARGETS = {
    "tags": ("web", {"targets": "tags"}),
    "weights": ("web", {"targets": "weights"}),
    "pseudo labels": ("web", {"targets": "pseudo"}),
    "one in a list": ("web", {"targets": ["tags"]}),
    "several": ("web", {"targets": ("weights", "tags", "original", "pseudo")}),
    "several, the largest": ("web", {"targets": ("tags", "pseudo"), "keep_targets": 2}),
    "more than there are": ("web", {"targets": "weights", "keep_targets": 100}),
    "several, mixed": (
        "web",
        {
            "targets": ("weights", "tags"),
            "batch_size": 6,
            "augment": Augment(size=16, cutmix=CutMix(), mixup=Mixup()),
        },
    ),
    "label maps, the largest": ("small", {"targets": "relabel", "keep_targets": 3}),
    "label maps and classes": ("small", {"targets": ("original", "relabel-global", "relabel-single")}),
    "a teacher": ("taught", {"teacher": True}),
}


@pytest.mark.parametrize("name", TARGETS)
def test_targets_are_the_local_loaders(server, sets, name):
    dataset, options = TARGETS[name]
    options = SMALL | {"batch_size": 5} | options
    with (
        RemoteLoader(server.address, dataset=dataset, **options) as remote,
        Loader(sets[dataset], **options) as local,
    ):
        assert remote.state_dict() == local.state_dict()
        assert_same_batches(remote, local)


def test_tags_mean_the_same(server):
    with RemoteLoader(f"{server.address}/web", batch_size=2, targets="tags") as remote:
        assert remote.vocabulary == VOCABULARY
    with RemoteLoader(f"{server.address}/small", batch_size=2) as remote:
        assert remote.vocabulary is None


@pytest.mark.parametrize(
    "options",
    [
        {"targets": ("tags", "none")},
        {"targets": ("tags", "tags")},
        {"targets": "tags", "keep_targets": 0},
        {"keep_targets": 2},
        {"targets": "weights", "keep_targets": 2, "augment": Augment(size=16, mixup=Mixup())},
        {"targets": "relabel"},
    ],
)
def test_targets_that_cannot_be_are_the_same_error_as_here(server, sets, options):
    errors = []
    for make in (
        lambda: RemoteLoader(server.address, dataset="web", **SMALL | options),
        lambda: Loader(sets["web"], **SMALL | options),
    ):
        with pytest.raises(UsageError) as caught:
            make()
        errors.append(str(caught.value).partition(": expected")[2])
    assert errors[0] == errors[1] != ""


@pytest.mark.parametrize("name", ["classes.json", "images.json"])
@pytest.mark.parametrize("read", [str, SubsetFile.load])
def test_the_file_of_a_subset_is_read_here_and_sent(server, packed, subset_files, name, read):
    options = SMALL | {"subset": read(subset_files / name), "targets": "relabel"}
    with (
        RemoteLoader(server.address, dataset="small", **options) as remote,
        Loader(packed, **options) as local,
    ):
        assert remote.class_names == local.class_names == ("pet", "gull", "rest")
        assert remote.tree.fingerprint == local.tree.fingerprint
        assert remote.state_dict() == local.state_dict()
        assert_same_batches(remote, local)


def test_the_classes_of_a_subset_are_labels_too(server, packed, subset_files):
    options = SMALL | {"labels": SubsetFile.load(subset_files / "images.json").without_keys()}
    with (
        RemoteLoader(server.address, dataset="small", **options) as remote,
        Loader(packed, **options) as local,
    ):
        assert remote.num_samples == local.num_samples == 75
        assert remote.state_dict() == local.state_dict()


def test_a_subset_beside_labels_and_one_of_another_data_set_are_refused(server, subset_files):
    with pytest.raises(UsageError, match=r"found both\. Leave one out"):
        RemoteLoader(
            server.address, dataset="small", subset=subset_files / "classes.json", labels=["cat"], **SMALL
        )
    with pytest.raises(DataError, match="that it does not have: 'gull', 'plant'"):
        RemoteLoader(server.address, dataset="web", subset=subset_files / "classes.json", **SMALL)


def test_states_with_a_balance_and_bad_samples_go_both_ways(server, packed):
    options = SMALL | {"balance": 0.5, "subset": Subset(fraction=0.6), "num_epochs": 2}
    with (
        RemoteLoader(server.address, dataset="small", **options) as remote,
        Loader(packed, **options) as local,
    ):
        batches = iter(local)
        next(batches)
        state = json.loads(json.dumps(local.state_dict() | {"bad": [3, 5]}))
        assert state["balance_rule"] is not None
        remote.load_state_dict(state)
        assert remote.num_bad == 2
        assert remote.state_dict() == state
        assert_same_batches(remote, batches)


def test_what_pools_is_compared_where_label_maps_are_pooled_and_nowhere_else(server, monkeypatch):
    real = __import__("softshard.loaders.remote_loader", fromlist=["decode_stack"]).decode_stack
    monkeypatch.setattr(
        "softshard.loaders.remote_loader.decode_stack", lambda kind: real(kind) | {"pooling": "abacus"}
    )
    with pytest.raises(UsageError, match="pooling abacus here and num"):
        RemoteLoader(server.address, dataset="small", **SMALL | {"targets": "relabel"})
    RemoteLoader(server.address, dataset="small", **SMALL).close()


def test_targets_larger_than_a_batch_may_be_are_refused(packed):
    server = BatchServer(Desk({"small": ServedSet(packed)}, num_threads=1, limits=Limits(batch_bytes=25_000)))
    options = SMALL | {"batch_size": 5, "targets": LabelPooling(grid=(14, 14))}
    try:
        with pytest.raises(UsageError, match=r"expected targets of at most 25,000 bytes, found 35,280"):
            RemoteLoader(server.address, **options)
        with RemoteLoader(server.address, keep_targets=1, **options) as remote:
            assert len(list(remote)) == 21
    finally:
        server.close(5)
