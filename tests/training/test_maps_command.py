"""`softshard maps make`: with a checkpoint of one's own, in several processes, in buckets."""

import json
import shutil
from importlib.util import find_spec

import pytest
import s3fs
from forked import COMMAND
from packed_files import files
from ray_processes import make_ray_folder, remove_ray_folder
from torchrun import torchrun

from softshard.shards import DataError, Manifest, verify
from softshard.shards.cli import main
from softshard.training import ray_ranks


@pytest.fixture
def own_ray():
    """A folder for a Ray of the command's own."""
    folder = make_ray_folder()
    yield folder
    remove_ray_folder(folder)


def command_options(checkpoint):
    options = ["--teacher", "test_resnet", "--checkpoint", checkpoint, "--size", 64, "--top", 3]
    return [*options, "--device", "cpu", "--threads", 1, "--batch-size", 2]


@pytest.fixture(scope="module")
def made_by_one(noisy, noisy_checkpoint, forks, tmp_path_factory):
    """Name to content of what the command writes in one process."""
    out = tmp_path_factory.mktemp("one") / "out"
    done = forks.run("maps", "make", noisy, out, *command_options(noisy_checkpoint))
    assert done.returncode == 0, done.stderr
    assert "9 label maps, top 3 of 5 classes" in done.stdout
    assert len(Manifest.load(out).label_maps.teacher["weights_sha256"]) == 64
    return files(out)


def test_two_processes_make_the_same_bytes_as_one(noisy, noisy_checkpoint, made_by_one, tmp_path):
    (tmp_path / "command.py").write_text(COMMAND)
    words = ["command.py", "maps", "make", noisy, "two", *command_options(noisy_checkpoint)]
    done = torchrun(*words, processes=2, folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("9 label maps, top 3 of 5 classes") == 1
    assert files(tmp_path / "two") == made_by_one


@pytest.mark.usefixtures("one_ray_at_a_time")
@pytest.mark.skipif(find_spec("ray") is None, reason="needs ray: pip install '.[ray]'")
def test_ray_makes_the_same_bytes_in_two_processes_and_brings_their_errors(
    noisy, noisy_checkpoint, made_by_one, forks, tmp_path, own_ray
):
    def on_ray(source, destination):
        words = ["maps", "make", source, destination, *command_options(noisy_checkpoint)]
        here = f"import os; os.chdir({str(tmp_path)!r}); {COMMAND}"
        return forks.run(*words, "--engine", "ray", "--workers", 2, code=here, RAY_TMPDIR=str(own_ray))

    done = on_ray(noisy, "two")  # relative to the folder of the command
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("9 label maps, top 3 of 5 classes") == 1
    assert files(tmp_path / "two") == made_by_one

    shutil.copytree(noisy, tmp_path / "train")
    name = Manifest.load(noisy).shards[1].name  # the second rank's
    (tmp_path / "train" / name).unlink()
    failed = on_ray("train", "bad")
    assert failed.returncode == 1
    assert f"softshard: {name}: expected the shard and its .idx" in failed.stderr
    assert "Traceback" not in failed.stderr


@pytest.mark.parametrize(
    ("errors", "told"),
    [
        ([RuntimeError("connection closed"), DataError("a.tar: expected more")], "a.tar: expected more"),
        ([None, RuntimeError("a bug"), RuntimeError("connection closed")], "a bug"),
        ([None, None], "None"),
    ],
)
def test_the_rank_that_knows_why_is_heard_also_after_one_that_only_lost_it(errors, told):
    """In a real Ray either may come first."""

    class InOrder:
        @staticmethod
        def wait(running, timeout):
            return running[:1], running[1:]

    def result(error):
        if error:
            raise error

    assert str(ray_ranks._first_error(InOrder, errors, result)) == told


def test_workers_without_ray_are_a_wrong_call(noisy, tmp_path, capsys):
    assert main(["maps", "make", str(noisy), str(tmp_path), "--teacher", "resnet10t", "--workers", "2"]) == 2
    assert "--workers: expected a number from 1 with --engine ray, found 2" in capsys.readouterr().err


def test_an_error_of_the_first_process_ends_all(noisy, noisy_checkpoint, forks, tmp_path):
    (tmp_path / "mine.txt").touch()
    options = ["--teacher", "test_resnet", "--checkpoint", noisy_checkpoint, "--size", 64, "--device", "cpu"]
    done = forks.run("maps", "make", noisy, tmp_path, *options, processes=2)
    assert done.returncode != 0
    assert done.stderr.count("expected an empty or new folder, found 'mine.txt'") == 2


def test_from_bucket_to_bucket(noisy, noisy_checkpoint, s3_bucket, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("SOFTSHARD_CACHE", str(tmp_path / "cache"))
    bucket = s3fs.S3FileSystem(skip_instance_cache=True)
    bucket.put(str(noisy), f"{s3_bucket}/train", recursive=True)
    teacher = ["--teacher", "test_resnet", "--checkpoint", str(noisy_checkpoint)]
    command = [*teacher, "--size", "64", "--device", "cpu"]
    assert main(["maps", "make", f"{s3_bucket}/train", f"{s3_bucket}/maps", *command]) == 0
    assert main(["maps", "make", str(noisy), str(tmp_path / "here"), *command]) == 0
    assert Manifest.load(f"{s3_bucket}/maps") == Manifest.load(tmp_path / "here")
    assert not verify(f"{s3_bucket}/maps", decode=True).problems
    capsys.readouterr()
    found = []
    for folder in (f"{s3_bucket}/maps", str(tmp_path / "here")):
        assert main(["maps", "check", folder, *command, "--json"]) == 0
        found.append(json.loads(capsys.readouterr().out))
    assert found[0] == found[1]


def test_a_broken_environment_of_torchrun_is_named_before_a_teacher_is_fetched(
    noisy, tmp_path, monkeypatch, capsys
):
    monkeypatch.setenv("WORLD_SIZE", "two")
    words = ["maps", "make", str(noisy), str(tmp_path / "out"), "--teacher", "no_such_model"]
    assert main([*words, "--size", "64"]) == 2
    assert "WORLD_SIZE: expected a number as torchrun sets it" in capsys.readouterr().err
