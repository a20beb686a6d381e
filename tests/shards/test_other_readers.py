"""Our shards in the hands of readers that know nothing of softshard: they must see the same samples."""

import importlib.util
import io

import numpy as np
import pytest
import simplejpeg

from softshard.shards import Manifest, decode_label_map, read_shard
from softshard.shards.components import decode_meta


def needs(module):
    # Finding a module does not import it, or torch with it.
    return pytest.mark.skipif(importlib.util.find_spec(module) is None, reason=f"needs {module}")


@pytest.fixture(scope="module")
def train(packed_once):
    return packed_once / "train"


@pytest.fixture(scope="module")
def tars(train):
    return [str(train / shard.name) for shard in Manifest.load(train).shards]


@pytest.fixture(scope="module")
def expected(tars):
    """Our own reader's samples, in shard order."""
    samples = [sample for tar in tars for sample in read_shard(tar)]
    assert len(samples) == 13
    return samples


def path_of(key):
    return f"{key.partition('_')[0]}/{key}.jpg"


def levels(sample):
    return np.load(io.BytesIO(sample.parts["hier.npy"])).tolist()


@needs("webdataset")
def test_stock_webdataset_decodes_what_we_decode(tars, expected):
    import webdataset

    dataset = webdataset.WebDataset(tars, shardshuffle=False).decode("rgb8")
    found = list(dataset)
    assert [sample["__key__"] for sample in found] == [sample.key for sample in expected]
    for sample, ours in zip(found, expected, strict=True):
        assert sample["cls"] == int(ours.parts["cls"])
        assert sample["hier.npy"].dtype == np.int16
        assert sample["hier.npy"].tolist() == levels(ours)
        # Its decoders know `mp` and `msg`; `msgpack` they pass on.
        assert decode_meta(sample["msgpack"], ours.key) == {"path": path_of(ours.key), "size": [30, 40]}
        scores, ids = decode_label_map(sample["lmap"])
        assert np.array_equal(scores, decode_label_map(ours.parts["lmap"])[0])
        assert ids.shape == (3, 4, 5)
        # Pillow and simplejpeg both decode with libjpeg-turbo; the last bit may differ between their builds.
        pixels = simplejpeg.decode_jpeg(ours.parts["jpg"], "RGB")
        assert np.abs(sample["jpg"].astype(int) - pixels).max() <= 3


@needs("nvidia.dali")
@pytest.mark.parametrize("with_index", [True, False])
def test_dali_s_reader_gives_our_bytes(tars, expected, with_index):
    from nvidia.dali import fn, pipeline_def

    suffixes = ["jpg", "cls", "hier.npy", "lmap", "msgpack"]
    indexes = {"index_paths": [tar.removesuffix("tar") + "idx" for tar in tars]} if with_index else {}

    @pipeline_def(batch_size=len(expected), num_threads=1, device_id=None, exec_dynamic=True)
    def members():
        return tuple(
            fn.readers.webdataset(
                paths=tars, ext=suffixes, missing_component_behavior="error", name="reader", **indexes
            )
        )

    pipeline = members()
    pipeline.build()
    outputs = pipeline.run()
    assert pipeline.reader_meta("reader")["epoch_size"] == len(expected)
    for suffix, output in zip(suffixes, outputs, strict=True):
        for i, ours in enumerate(expected):
            assert np.asarray(output.at(i)).tobytes() == ours.parts[suffix], f"{ours.key}.{suffix}"


@needs("datasets")
@pytest.mark.parametrize("streaming", [True, False])
def test_hugging_face_datasets_decode_what_we_decode(tars, expected, streaming, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    import datasets

    dataset = datasets.load_dataset(
        "webdataset",
        data_files={"train": tars},
        split="train",
        streaming=streaming,
        cache_dir=str(tmp_path / "cache"),
    )
    rows = list(dataset)
    assert [row["__key__"] for row in rows] == [sample.key for sample in expected]
    assert set(rows[0]) == {"jpg", "cls", "hier.npy", "lmap", "msgpack", "__key__", "__url__"}
    for row, ours in zip(rows, expected, strict=True):
        assert row["cls"] == int(ours.parts["cls"])
        assert list(row["hier.npy"]) == levels(ours)
        assert bytes(row["lmap"]) == ours.parts["lmap"]
        assert row["jpg"].size == (16, 16)
        assert row["jpg"].mode == "RGB"


@needs("timm")
@needs("webdataset")
def test_timm_s_reader_finds_the_shards_by_our_info(train, expected):
    from timm.data import create_dataset

    dataset = create_dataset("wds/softshard", root=str(train), split="train", is_training=False, batch_size=4)
    assert len(dataset) == 13
    found = list(dataset)
    assert [target for _, target in found] == [int(sample.parts["cls"]) for sample in expected]
    assert all(image.size == (16, 16) for image, _ in found)
