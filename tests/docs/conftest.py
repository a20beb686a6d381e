"""Real photographs, cut small, in the forms that the tutorials begin with."""

import io
import tarfile

import numpy as np
import pytest
import simplejpeg

WINDOWS_PER_CLASS = 12
# As the photographs of scikit-image are called -> what they show, and its WordNet id.
SHOWN = {
    "astronaut": ("astronaut", "n09818022"),
    "chelsea": ("tabby", "n02123045"),
    "coffee": ("coffee_cup", "n03063073"),
}


@pytest.fixture(scope="session")
def windows():
    """{(noun, wnid): JPEGs}: windows of three photographs, 64 to 96 pixels a side."""
    data = pytest.importorskip("skimage.data", reason="needs scikit-image: pip install '.[demo]'")
    rng = np.random.default_rng(0)
    found = {}
    for photo, names in SHOWN.items():
        pixels = getattr(data, photo)()
        jpegs = []
        for _ in range(WINDOWS_PER_CLASS):
            height, width = rng.integers(64, 97, 2)
            top, left = rng.integers(0, np.array(pixels.shape[:2]) - (height, width))
            window = np.ascontiguousarray(pixels[top : top + height, left : left + width])
            jpegs.append(simplejpeg.encode_jpeg(window, quality=90))
        found[names] = jpegs
    return found


@pytest.fixture
def photos(windows, tmp_path):
    """`photos`: a folder for each class."""
    for (noun, _), jpegs in windows.items():
        (tmp_path / "photos" / noun).mkdir(parents=True)
        for i, jpeg in enumerate(jpegs):
            (tmp_path / "photos" / noun / f"{i:02}.jpg").write_bytes(jpeg)


@pytest.fixture
def old_webdataset(windows, tmp_path):
    """`old/train-000000.tar` to 2, as webdataset writes them, and `classes.txt`."""
    webdataset = pytest.importorskip("webdataset", reason="needs webdataset: pip install '.[dev]'")
    (tmp_path / "old").mkdir()
    (tmp_path / "classes.txt").write_text("".join(f"{noun}\n" for noun, _ in windows))
    with webdataset.ShardWriter(
        str(tmp_path / "old" / "train-%06d.tar"), maxcount=WINDOWS_PER_CLASS, verbose=0
    ) as writer:
        for i in range(WINDOWS_PER_CLASS):
            for index, (names, jpegs) in enumerate(windows.items()):
                writer.write({"__key__": f"{names[0]}_{i:02}", "jpg": jpegs[i], "cls": index})


@pytest.fixture
def fall11_whole(windows, tmp_path):
    """`fall11_whole.tar`: a tar of class tars, named by wnid."""
    with tarfile.open(tmp_path / "fall11_whole.tar", "w") as whole:
        for (_, wnid), jpegs in windows.items():
            inner = io.BytesIO()
            with tarfile.open(fileobj=inner, mode="w") as class_tar:
                for i, jpeg in enumerate(jpegs):
                    add(class_tar, f"{wnid}_{i}.JPEG", jpeg)
            add(whole, f"{wnid}.tar", inner.getvalue())


def add(tar, name, data):
    member = tarfile.TarInfo(name)
    member.size = len(data)
    tar.addfile(member, io.BytesIO(data))
