"""300 real photographs through the loader, against the plain reader."""

import numpy as np
import pytest
import simplejpeg

from softshard.loaders import Augment, Loader
from softshard.loaders.resize import resize
from softshard.shards import LabelTree, PackOptions, pack, read_shard
from softshard.shards.components import decode_class, decode_levels

pytestmark = pytest.mark.shared


def test_every_photograph_arrives_once_with_its_labels_and_the_pixels_of_its_crop(shared_data, tmp_path):
    photos = shared_data / "photos"
    wnids = sorted(path.name for path in photos.iterdir() if path.is_dir())
    tree = LabelTree.from_wordnet(wnids, inner="branching")
    pack(photos, tmp_path, PackOptions(shard_samples=70), tree=tree, workers=1)
    train = tmp_path / "train"
    stored = {s.key: s.parts for tar in sorted(train.glob("*.tar")) for s in read_shard(tar)}
    assert len(stored) == 300
    seen = []
    with Loader(
        train,
        batch_size=64,
        dtype="uint8",
        augment=Augment(size=160),
        last_batch="pad",
        seed=3,
        num_threads=2,
    ) as loader:
        for batch in loader:
            for i in np.flatnonzero(batch.valid.numpy()):
                key, parts = batch.keys[i], stored[batch.keys[i]]
                seen.append(key)
                assert int(batch.classes[i]) == decode_class(parts["cls"], key)
                np.testing.assert_array_equal(batch.levels[i].numpy(), decode_levels(parts["hier.npy"], key))
                pixels = simplejpeg.decode_jpeg(parts["jpg"], "RGB")
                height, width = pixels.shape[:2]
                x0, y0, x1, y1 = np.rint(batch.crops[i].numpy() * [width, height, width, height]).astype(int)
                window = np.ascontiguousarray(pixels[y0:y1, x0:x1])
                crop = resize(window, np.empty((160, 160, 3), np.uint8), flip=bool(batch.flips[i]))
                np.testing.assert_array_equal(batch.images[i].permute(1, 2, 0).numpy(), crop)
    assert sorted(seen) == sorted(stored)
