"""What is built for others to install: the wheel and the source distribution, and what runs with each extra alone."""

import functools
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from importlib.metadata import PackageNotFoundError, packages_distributions, requires
from pathlib import Path

import cv2
import numpy as np
import pytest
from packaging.requirements import Requirement

from servers.web import SpoiledServer

ROOT = Path(__file__).parents[1]
PACKAGES = ("shards", "loaders", "training")
LICENCES = {"LICENSE", "shards/WORDNET-LICENSE"}
TOP = {"pyproject.toml", "README.md", "CHANGELOG.md", "LICENSE", "MANIFEST.in"}


# --- what is in it ---


def build(source, out, kind):
    command = [sys.executable, "-m", "build", f"--{kind}", "--no-isolation", "--outdir", out, source]
    # Files of a wheel carry a time; without one given it is that of the build.
    environment = {**os.environ, "SOURCE_DATE_EPOCH": "1700000000"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    (found,) = Path(out).glob("*.whl" if kind == "wheel" else "*.tar.gz")
    return found


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """A copy of what is built, since setuptools writes beside the sources; with tests and benchmarks to leave out."""
    copy = tmp_path_factory.mktemp("source") / "softshard"
    for name in (*PACKAGES, *TOP, "tests/test_distribution.py", "benchmarks/machine.py"):
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
        elif (ROOT / name).exists():
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, copy / name)
    return copy


@pytest.fixture(scope="module")
def wheel(source, tmp_path_factory):
    return build(source, tmp_path_factory.mktemp("wheel"), "wheel")


@pytest.fixture(scope="module")
def sdist(source, tmp_path_factory):
    return build(source, tmp_path_factory.mktemp("sdist"), "sdist")


def files_of_the_packages():
    return {
        str(path.relative_to(ROOT))
        for package in PACKAGES
        for path in (ROOT / package).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }


def contents(wheel):
    with zipfile.ZipFile(wheel) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def test_the_wheel_holds_the_files_of_the_three_folders_and_nothing_else(wheel):
    names = contents(wheel)
    assert {name for name in names if ".dist-info/" not in name} == {
        f"softshard/{name}" for name in files_of_the_packages()
    }
    assert {name.rpartition("/licenses/")[2] for name in names if "/licenses/" in name} == LICENCES
    assert "softshard/shards/wordnet.npz" in names


def test_the_source_distribution_holds_what_the_wheel_is_made_of_and_nothing_else(sdist):
    with tarfile.open(sdist) as archive:
        names = {member.name.partition("/")[2] for member in archive if member.isfile()}
    made = {
        name for name in names if name in ("PKG-INFO", "setup.cfg") or name.startswith("softshard.egg-info/")
    }
    assert names - made == files_of_the_packages() | TOP


def test_the_source_distribution_builds_the_same_wheel(sdist, wheel, tmp_path):
    with tarfile.open(sdist) as archive:
        archive.extractall(tmp_path / "unpacked", filter="data")
    (folder,) = (tmp_path / "unpacked").iterdir()
    assert contents(build(folder, tmp_path / "again", "wheel")) == contents(wheel)


def test_an_index_would_take_both(sdist, wheel):
    done = subprocess.run(
        [sys.executable, "-m", "twine", "check", "--strict", sdist, wheel],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_oldest_versions_are_those_that_the_metadata_promise():
    pinned = dict(line.split("==") for line in (ROOT / "tests" / "oldest.txt").read_text().split())
    for line in requires("softshard"):
        wanted = Requirement(line)
        lowest = [one.version for one in wanted.specifier if one.operator == ">="]
        if lowest and wanted.name in pinned:
            # 1.11 promises 1.11.x, of which the oldest with a wheel is tried.
            assert re.match(rf"{re.escape(lowest[0])}(\.|$)", pinned[wanted.name]), line
    for_users = {
        wanted.name
        for wanted in map(Requirement, requires("softshard"))
        if wanted.name != "softshard" and not re.search('extra == "(dev|docs)"', str(wanted.marker))
    }
    assert for_users <= pinned.keys()


# --- each extra alone: modules of all other packages are hidden ---

HIDE = """
import importlib.machinery, json, os, sys

class OnlyWhatIsBrought(importlib.machinery.PathFinder):
    names = frozenset(json.loads(os.environ["HIDDEN"]))

    @classmethod
    def find_spec(cls, name, path=None, target=None):
        found = super().find_spec(name, path, target)
        if found is not None and name in cls.names:
            folder = next(iter(found.submodule_search_locations or ()), found.origin)
            if os.path.basename(os.path.dirname(folder)) == "site-packages":  # Ray brings some in a folder of its own
                return None
        return found

sys.meta_path[sys.meta_path.index(importlib.machinery.PathFinder)] = OnlyWhatIsBrought
"""
MAIN = "from softshard.shards.cli import main; sys.exit(main(sys.argv[1:]))"


@functools.cache
def closure(*extras):
    """The packages that `pip install softshard[extras]` brings, on this Python."""
    found, ahead = set(), [("softshard", frozenset({"", *extras}))]
    while ahead:
        name, wanted = ahead.pop()
        if (name, wanted) in found:
            continue
        found.add((name, wanted))
        try:
            lines = requires(name) or ()
        except PackageNotFoundError:
            continue
        for line in lines:
            one = Requirement(line)
            if one.marker is None or any(one.marker.evaluate({"extra": extra}) for extra in wanted):
                ahead.append((normal(one.name), frozenset({"", *one.extras})))
    return {name for name, _ in found}


def normal(name):
    return re.sub(r"[-_.]+", "-", name).lower()


@functools.cache
def modules():
    """Module -> packages that bring it, of all that is installed."""
    return packages_distributions()


def run(extras, code, *arguments):
    """Run Python with softshard, these extras, and no other package."""
    brought = closure(*extras)
    hidden = [
        module
        for module, packages in modules().items()
        if not brought & set(map(normal, packages)) and module not in ("softshard", "_virtualenv")
    ]
    return subprocess.run(
        [sys.executable, "-c", HIDE + code, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=300,
        cwd="/",
        env={**os.environ, "HIDDEN": json.dumps(hidden)},
    )


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    """A data set of eight pictures, packed by a softshard without any extra."""
    folder = tmp_path_factory.mktemp("alone")
    rng = np.random.default_rng(0)
    for name in ("cat", "dog"):
        (folder / "photos" / name).mkdir(parents=True)
        for i in range(4):
            cv2.imwrite(
                str(folder / "photos" / name / f"{i}.png"), rng.integers(0, 256, (40, 50, 3), np.uint8)
            )
    done = run((), MAIN, "pack", folder / "photos", folder / "set", "--size", 32, "--workers", 2)
    assert done.returncode == 0, done.stderr
    return folder / "set" / "train"


def test_packages_that_an_extra_does_not_bring_are_hidden():
    assert {"numpy", "pillow", "fsspec"} <= closure()
    assert not closure() & {"torch", "timm", "aiohttp", "ray"}
    assert {"torch", "nvidia-dali-cuda120", "timm"} <= closure("training")
    code = (
        "import importlib.util\n"
        "names = ('torch', 'nvidia', 'timm', 'aiohttp', 'ray', 'nltk', 's3fs', 'pytest')\n"
        "print([name for name in names if importlib.util.find_spec(name)])"
    )
    assert run((), code).stdout == "[]\n"


OF_THE_BASE = (
    "tree build --relations {relations} -o {tree}",
    "--help",
    "train --help",
    "tree show {tree}",
    "verify {set} --decode",
    "stats {set}",
)
OF_EXTRAS = {
    "bench {set}": "loaders",
    "inspect {set}": "loaders",
    "replay {set}": "loaders",
    "train single-label {set} --model resnet18 --out {out}": "training",
    "evaluate timm:resnet18 {set}": "training",
    "maps make {set} {out} --teacher resnet18": "training",
    "verify http://127.0.0.1:1/train": "http",
    "verify s3://bucket/train": "s3",
    "verify gs://bucket/train": "gcs",
    "verify az://container/train": "azure",
    "pack {photos} {out} --engine ray": "ray",
}
# Many commands in one process: starting it takes longer than they do.
MAIN_OF_ALL = """
import contextlib, io
from softshard.shards.cli import main
found = []
for line in sys.argv[1:]:
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()) as said:
        try:
            code = main(line.split())
        except SystemExit as error:  # of --help
            code = error.code
    found.append((code, said.getvalue()))
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def of_the_base(shards, tmp_path_factory):
    """line -> [exit code, standard error] where no extra is installed."""
    folder = tmp_path_factory.mktemp("base")
    (folder / "own.csv").write_text("cat,animal\ndog,animal\n")
    places = {"set": shards, "photos": shards.parents[1] / "photos", "relations": folder / "own.csv"}
    places |= {name: folder / name for name in ("tree", "out")}
    lines = [*OF_THE_BASE, *OF_EXTRAS]
    done = run((), MAIN_OF_ALL, *(line.format(**places) for line in lines))
    assert done.returncode == 0, done.stderr
    return dict(zip(lines, json.loads(done.stdout), strict=True))


@pytest.mark.parametrize("line", OF_THE_BASE)
def test_the_base_packs_verifies_and_counts(of_the_base, line):
    assert of_the_base[line] == [0, ""]


@pytest.mark.parametrize(("line", "extra"), OF_EXTRAS.items())
def test_what_the_base_lacks_names_the_extra_that_brings_it(of_the_base, line, extra):
    code, said = of_the_base[line]
    assert code == 2, said
    assert f"pip install 'softshard[{extra}]'" in said


def test_the_extra_loaders_loads(shards):
    code = (
        "from softshard.loaders import Loader\n"
        "batches = list(Loader(sys.argv[1], batch_size=4, device='cpu', dtype='float32', num_threads=1))\n"
        "assert [tuple(batch.images.shape) for batch in batches] == [(4, 3, 224, 224)] * 2"
    )
    done = run(("loaders",), code, shards)
    assert done.returncode == 0, done.stderr


def test_the_extras_training_and_service_have_all_names_of_all_packages():
    code = (
        "import importlib\n"
        "for name in ('shards', 'loaders', 'training'):\n"
        "    package = importlib.import_module(f'softshard.{name}')\n"
        "    assert [getattr(package, one) for one in package.__all__]"
    )
    done = run(("training", "service"), code)
    assert done.returncode == 0, done.stderr


def test_the_extra_training_trains():
    code = "import softshard.training.train, softshard.training.evaluate, softshard.training.predict"
    done = run(("training",), code)
    assert done.returncode == 0, done.stderr


def test_the_extra_http_reads_behind_urls(shards):
    server = SpoiledServer(shards, lambda name, first, answer: answer)
    try:
        done = run(("http",), MAIN, "verify", server.url)
    finally:
        server.stop()
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("extra", "code"),
    [
        ("s3", "from softshard.shards.storage import open_storage; open_storage('s3://bucket/train')"),
        (
            "nltk",
            "from softshard.shards.tags_nltk import nltk_tokenizer as n; assert n()('a b') == ['a', 'b']",
        ),
        ("ray", "import softshard.shards.engine_ray, ray"),
    ],
)
def test_other_extras_bring_what_they_need(extra, code):
    done = run((extra,), code)
    assert done.returncode == 0, done.stderr
