"""Tags, weights and pseudo labels as targets: equal to what the shards say, for every way of asking."""

import json
import re
import shutil

import cv2
import msgpack
import numpy as np
import pytest
import torch
from spoiling import rewrite
from tag_lists import unresized

from softshard.loaders import (
    Augment,
    CutMix,
    Faults,
    LabelPooling,
    Loader,
    Mixture,
    Mixup,
    SparseTargets,
    as_tuples,
    pool_top_classes,
)
from softshard.loaders.inspect_page import inspect_page
from softshard.loaders.inspection import InspectOptions, inspect_data_set
from softshard.shards import (
    DataError,
    Manifest,
    ReshardOptions,
    UsageError,
    pack,
    read_shard,
    reshard,
    verify,
)
from softshard.shards.relabel import Relabelling
from softshard.shards.stored_vocabulary import Vocabulary
from softshard.shards.subset_file import ClassGroup, SubsetFile

CLASSES = ("bird", "cat", "dog", "oak")
VOCABULARY = Vocabulary(tuple(f"tag {i}" for i in range(9)), tuple(range(9, 0, -1)))
WHOLE = Augment(size=32, scale=None, flip=False)


def rows_of(folder, rng):
    for label in CLASSES:
        (folder / label).mkdir(parents=True)
        for i in range(6):
            cv2.imwrite(str(folder / label / f"{i}.png"), rng.integers(0, 256, (24, 30, 3), np.uint8))
            tags = [str(tag) for tag in rng.choice(VOCABULARY.tags, rng.integers(0, 5), replace=False)]
            others = rng.choice(CLASSES, rng.integers(0, 4), replace=False)
            weights = {
                str(name): float(weight) for name, weight in zip(others, rng.uniform(0, 1, 4), strict=False)
            }
            yield {"path": f"{label}/{i}.png", "label": label, "tags": tags, "weights": weights}


def make_set(folder, seed, vocabulary=VOCABULARY):
    folder.mkdir()
    rows = list(rows_of(folder, np.random.default_rng(seed)))
    (folder / "web.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    options = unresized(7, vocabulary=vocabulary, weights={})
    pack(folder / "web.jsonl", folder / "dst", options, workers=1)
    return folder / "dst" / "train"


@pytest.fixture(scope="module")
def tagged(tmp_path_factory):
    """24 images of four classes with tags and weights."""
    return make_set(tmp_path_factory.mktemp("tagged") / "web", 5)


def stored(dataset):
    """key -> (tags [T], weights [C]), by plain loops."""
    found = {}
    manifest = Manifest.load(dataset)
    for shard in manifest.shards:
        for sample in read_shard(dataset / shard.name):
            meta = msgpack.unpackb(sample.parts["msgpack"])
            tags, weights = np.zeros(len(VOCABULARY), np.float32), np.zeros(len(CLASSES), np.float32)
            for tag in meta["tags"]:
                tags[tag] = 1
            for index, weight in zip(*meta["weights"], strict=True):
                weights[index] = weight
            found[sample.key] = tags, weights
    return found


def batches(dataset, **options):
    options = {
        "batch_size": 5,
        "augment": WHOLE,
        "dtype": "uint8",
        "last_batch": "pad",
        "num_threads": 1,
    } | options
    with Loader(dataset, **options) as loader:
        yield from loader


def test_dense_targets_are_what_the_shards_say_and_zeros_in_padding(tagged):
    wanted = stored(tagged)
    keys = []
    for batch in batches(tagged, targets=("tags", "weights")):
        assert batch.targets.dtype == torch.float32
        assert [*batch.more_targets] == ["weights"]
        for i, key in enumerate(batch.keys):
            tags, weights = wanted.get(key, (np.zeros(9), np.zeros(4)))
            np.testing.assert_array_equal(batch.targets[i], tags)
            np.testing.assert_array_equal(batch.more_targets["weights"][i], weights)
        keys += [key for key in batch.keys if key]
    assert sorted(keys) == sorted(wanted)


def test_a_loader_knows_what_tags_mean(tagged, packed_plain):
    with Loader(tagged, batch_size=2, targets="tags") as loader:
        assert loader.vocabulary == VOCABULARY
    with Loader(packed_plain, batch_size=2) as loader:
        assert loader.vocabulary is None


def test_one_kind_alone_brings_no_more_targets(tagged):
    wanted = stored(tagged)
    for batch in batches(tagged, targets="weights"):
        assert batch.more_targets is None
        for i, key in enumerate(batch.keys):
            np.testing.assert_array_equal(batch.targets[i], wanted[key][1] if key else np.zeros(4))


def test_sparse_targets_are_the_largest_of_the_dense(tagged):
    options = {"targets": ("weights", "tags", "original")}
    for dense, sparse in zip(
        batches(tagged, **options), batches(tagged, **options, keep_targets=2), strict=True
    ):
        assert isinstance(sparse.targets, SparseTargets)
        pairs = [(dense.targets, sparse.targets)]
        pairs += [(dense.more_targets[name], sparse.more_targets[name]) for name in ("tags", "original")]
        for whole, few in pairs:
            for i in range(len(dense)):
                order = np.lexsort((np.arange(whole.shape[1]), -whole[i].numpy()))
                best = [j for j in order if whole[i, j] > 0][:2]
                assert few.ids[i, : len(best)].tolist() == best
                np.testing.assert_array_equal(few.values[i, : len(best)], whole[i, best])
                assert (few.values[i, len(best) :] == 0).all()
                assert (few.ids[i, len(best) :] == 0).all()


@pytest.mark.parametrize("keep", [None, 3, 200])
def test_targets_without_numba_are_the_same(tagged, monkeypatch, keep):
    def targets():
        for batch in batches(tagged, targets=("tags", "weights"), keep_targets=keep):
            for each in (batch.targets, batch.more_targets["weights"]):
                yield from [each] if keep is None else [each.values, each.ids]

    compiled = list(targets())
    monkeypatch.setattr("softshard.loaders.soft_targets.load_soft_kernels", lambda: None)
    plain = list(targets())
    assert len(plain) == len(compiled) == (10 if keep is None else 20)
    assert all(map(torch.equal, plain, compiled))


def test_a_kept_pooled_target_is_that_of_the_function(packed):
    wanted = {}
    for shard in Manifest.load(packed).shards:
        for sample in read_shard(packed / shard.name):
            wanted[sample.key] = sample.parts["lmap"]
    options = {"targets": "relabel", "keep_targets": 3, "last_batch": "drop"}
    batch = next(batches(packed, **options))
    found = pool_top_classes(
        [wanted[key] for key in batch.keys],
        batch.crops,
        num_classes=Manifest.load(packed).num_classes,
        keep=3,
    )
    assert torch.equal(batch.targets.values, found.values)
    assert torch.equal(batch.targets.ids, found.ids)


@pytest.mark.parametrize("mixing", [{"mixup": Mixup(0.5)}, {"cutmix": CutMix(1.0)}])
@pytest.mark.parametrize("num_threads", [1, 3])
def test_mixing_acts_on_every_kind(tagged, mixing, num_threads):
    wanted = stored(tagged)
    augment = Augment(size=32, scale=None, flip=False, **mixing)
    mixed = 0
    for batch in batches(
        tagged,
        targets=("tags", "weights"),
        augment=augment,
        batch_size=6,
        num_threads=num_threads,
        dtype="float32",
    ):
        for i, key in enumerate(batch.keys):
            other, share = batch.keys[batch.mix.partners[i]], float(batch.mix.shares[i])
            mixed += other != key
            for found, of in ((batch.targets, 0), (batch.more_targets["weights"], 1)):
                blend = share * wanted[key][of] + (1 - share) * wanted[other][of]
                np.testing.assert_allclose(found[i], blend, atol=1e-6)
    assert mixed > 10


def test_weights_follow_classes_that_are_renamed_and_left_out(tagged):
    wanted = stored(tagged)
    new = ("oak", "dog", "bird")
    rows = [CLASSES.index(name) for name in new]
    num = 0
    for batch in batches(tagged, targets=("weights", "tags"), labels=new):
        for i, key in enumerate(batch.keys):
            if key:
                np.testing.assert_array_equal(batch.targets[i], wanted[key][1][rows])
                np.testing.assert_array_equal(batch.more_targets["tags"][i], wanted[key][0])
                num += 1
    assert num == 18


def test_weights_of_classes_that_become_one_are_added_up(tagged):
    class_map = np.array([1, 0, 0, 2], np.int32)
    merged = (("cat", "beast"), ("dog", "beast"))
    labels = Relabelling(class_map, ("beast", "bird", "oak"), None, (), merged, ())
    wanted = stored(tagged)
    for batch in batches(tagged, targets="weights", labels=labels):
        for i, key in enumerate(batch.keys):
            if key:
                bird, cat, dog, oak = wanted[key][1]
                np.testing.assert_allclose(batch.targets[i], [cat + dog, bird, oak], rtol=1e-6)


def test_a_subset_that_is_packed_or_written_out_has_the_weights_that_the_loader_gives(tagged, tmp_path):
    groups = (ClassGroup("beast", ("cat", "dog")), ClassGroup.single("bird"))
    subset = SubsetFile(groups, {"name": "file"}, {})
    reshard([tagged], tmp_path / "written", ReshardOptions(subset=subset, shard_samples=5))
    options = unresized(7, weights={}, subset=subset)
    pack(tagged.parent.parent / "web.jsonl", tmp_path / "packed", options, workers=1)
    wanted = {}
    for batch in batches(tagged, targets="weights", subset=subset):
        wanted |= {key: batch.targets[i].tolist() for i, key in enumerate(batch.keys) if key}
    assert len(wanted) == 18
    for folder in (tmp_path / "written", tmp_path / "packed" / "train"):
        assert verify(folder, decode=True).problems == []
        found = {}
        for batch in batches(folder, targets="weights"):
            found |= {key: batch.targets[i].tolist() for i, key in enumerate(batch.keys) if key}
        assert found.keys() == wanted.keys()
        for key, row in found.items():
            np.testing.assert_allclose(row, wanted[key], rtol=1e-6)


def test_a_subset_and_a_mixture_give_each_sample_its_own(tagged, tmp_path):
    other = make_set(tmp_path / "other", 6)
    wanted = stored(tagged)
    # Both sets have the same keys: what a batch says is one or the other's.
    others = stored(other)
    seen = [0, 0]
    for batch in batches(Mixture({str(tagged): 0.5, str(other): 0.5}), targets="tags"):
        for i, key in enumerate(batch.keys):
            if key:
                matches = [np.array_equal(batch.targets[i], each[key][0]) for each in (wanted, others)]
                assert any(matches)
                seen = [count + match for count, match in zip(seen, matches, strict=True)]
    assert min(seen) > 5


def test_a_mixture_of_two_vocabularies_is_refused(tagged, tmp_path):
    other = make_set(tmp_path / "other", 6, Vocabulary(VOCABULARY.tags[::-1], VOCABULARY.images))
    with pytest.raises(UsageError, match="expected tags of one vocabulary"):
        Loader(Mixture({str(tagged): 0.5, str(other): 0.5}), batch_size=2, targets="tags")
    Loader(Mixture({str(tagged): 0.5, str(other): 0.5}), batch_size=2, targets="weights").close()


def test_a_set_that_gives_another_ones_hash_with_more_tags_is_refused(tagged, tmp_path):
    # Its tags would lie outside of the targets, which are as wide as the first one's vocabulary.
    other = make_set(tmp_path / "other", 6)
    file = other / "manifest.json"
    said = json.loads(file.read_text())
    said["soft_labels"]["tags"]["size"] += 1000
    file.write_text(json.dumps(said))
    with pytest.raises(UsageError, match=r"expected tags of one vocabulary, found .* with 1,0"):
        Loader(Mixture({str(other): 0.5, str(tagged): 0.5}), batch_size=2, targets="tags")
    said["soft_labels"]["tags"]["size"] = 2**40
    file.write_text(json.dumps(said))
    with pytest.raises(DataError, match="soft_labels"):
        Loader(other, batch_size=2, targets="tags")


def test_a_batch_is_the_same_after_a_resume_and_for_two_ranks(tagged):
    options = {
        "batch_size": 6,
        "augment": WHOLE,
        "dtype": "uint8",
        "targets": ("tags", "weights"),
        "num_threads": 1,
    }
    with Loader(tagged, **options) as loader:
        whole = []
        for batch in loader:
            whole.append((batch.targets, batch.more_targets["weights"]))
            if len(whole) == 1:
                state = loader.state_dict()
    with Loader(tagged, **options) as loader:
        loader.load_state_dict(state)
        rest = [(batch.targets, batch.more_targets["weights"]) for batch in loader]
    assert len(rest) == len(whole) - 1
    for one, other in zip(whole[1:], rest, strict=True):
        assert all(map(torch.equal, one, other))
    halves = []
    for rank in range(2):
        with Loader(tagged, **options | {"batch_size": 3}, rank=rank, world_size=2) as loader:
            halves.append([batch.targets for batch in loader])
    for both, one, other in zip(whole, *halves, strict=True):
        assert torch.equal(both[0], torch.cat([one, other]))


def test_a_bad_msgpack_is_a_bad_sample_like_any_other(tagged, tmp_path):
    folder = tmp_path / "spoilt"
    shutil.copytree(tagged, folder)
    change = {"msgpack": lambda data: msgpack.packb({**msgpack.unpackb(data), "tags": [99]})}
    ((_, victim),) = rewrite(folder, {3: change})
    bad = tmp_path / "bad.jsonl"
    invalid = 0
    with Loader(
        folder, batch_size=6, targets="tags", augment=WHOLE, num_threads=1, faults=Faults(quarantine=str(bad))
    ) as loader:
        wanted = stored(tagged)
        for batch in loader:
            assert victim not in batch.keys
            invalid += int((~batch.valid).sum())
            for i, key in enumerate(batch.keys):
                np.testing.assert_array_equal(batch.targets[i], wanted[key][0])
        assert loader.num_bad == 1
    assert invalid == 1
    assert "expected tags from 0 to 8, found 99" in bad.read_text()


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"targets": "pseudo"}, "expected samples with 'pseudo' for targets='pseudo', found tags, weights"),
        ({"targets": ("tags", "tags")}, "expected targets as distinct names"),
        ({"targets": ()}, "expected targets as distinct names"),
        ({"targets": ("tags", "none")}, "expected targets as distinct names"),
        ({"targets": ("tags", "tag")}, "expected targets of none, original"),
        ({"targets": ("tags", LabelPooling())}, "expected targets of none, original"),
        ({"targets": "tags", "keep_targets": 0}, "expected keep_targets from 1"),
        ({"keep_targets": 3}, "expected keep_targets from 1, with targets to keep them of"),
        ({"targets": "tags", "side": "x"}, "expected targets that pool the label maps"),
        (
            {"targets": "tags", "keep_targets": 3, "augment": Augment(mixup=Mixup(0.2))},
            "expected dense targets for mixup and cutmix",
        ),
        (
            {"targets": ("original", "tags"), "augment": Augment(cutmix=CutMix(1.0, visible=True))},
            "CutMix\\(visible=True\\)",
        ),
    ],
)
def test_what_cannot_be_is_refused(tagged, options, says):
    with pytest.raises(UsageError, match=says):
        Loader(tagged, batch_size=4, **options)


def test_a_data_set_without_soft_labels_says_how_to_add_them(packed_plain):
    with pytest.raises(UsageError, match=r"found none\. Add them: softshard tags build"):
        Loader(packed_plain, batch_size=2, targets="tags")


def test_inspect_shows_tags_by_name_and_classes_by_theirs(tagged):
    wanted = stored(tagged)
    for targets in ("tags", "weights"):
        found = inspect_data_set(tagged, InspectOptions(targets=targets, num_samples=4))
        assert found.problems == []
        for sample in found.samples:
            np.testing.assert_array_equal(sample.crops[0].target, wanted[sample.key][targets == "weights"])
        text = inspect_page(found).render()
        tags = {VOCABULARY.tags[i] for sample in found.samples for i in np.flatnonzero(wanted[sample.key][0])}
        bars = set(re.findall(r'<span(?: class="own")? title="([^"]*)">', text))
        assert all((tag in bars) == (targets == "tags") for tag in tags)
        # What is stored is shown whatever the targets are.
        assert all(tag in text for tag in tags)
        for sample in found.samples:
            weights = wanted[sample.key][1]
            assert dict(sample.soft["weights"]) == {i: float(weights[i]) for i in np.flatnonzero(weights)}
            assert [i for i, _ in sample.soft["tags"]] == np.flatnonzero(wanted[sample.key][0]).tolist()
        assert text.count("<h3>Class weights</h3>") == text.count("<h3>Tags</h3>") == 4


def test_sparse_targets_are_given_to_other_peoples_loops_without_padding(tagged):
    options = {"batch_size": 5, "augment": WHOLE, "last_batch": "pad", "num_threads": 1, "targets": "weights"}
    with Loader(tagged, **options) as dense, Loader(tagged, **options, keep_targets=4) as sparse:
        for (_, whole), (_, few) in zip(
            as_tuples(dense, "targets"), as_tuples(sparse, "targets"), strict=True
        ):
            assert len(whole) == len(few.values)
            assert torch.equal(torch.zeros_like(whole).scatter_add(1, few.ids, few.values), whole)
