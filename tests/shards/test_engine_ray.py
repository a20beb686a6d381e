"""Packing on Ray: the bytes of the local engine, whatever is killed on the way.

All tests but two share one Ray; the processes that Ray starts are known by the folder in their
environment, and every one is gone at the end.
"""

import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import closing
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import pytest
from forked import COMMAND
from packed_files import files
from ray_processes import HELD_COMMAND, held, make_ray_folder, processes, remove_ray_folder
from waiting import LONG_S, wait_until

from softshard.shards import DataError, ImageRecipe, PackOptions, UsageError, engine_ray, pack
from softshard.shards.destination import LocalDestination
from softshard.shards.engine_ray import run_on_ray
from softshard.shards.errors import MissingExtraError, RefusedError, SoftshardError
from softshard.shards.pack_plan import make_job, plan_source
from softshard.shards.shard_task import PlannedShard, ShardTask
from softshard.shards.storage import LocalStorage

pytestmark = [
    pytest.mark.usefixtures("one_ray_at_a_time"),
    pytest.mark.skipif(find_spec("ray") is None, reason="needs ray: pip install '.[ray]'"),
    pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="needs /proc to see processes"),
]

KILLS = int(os.environ.get("SOFTSHARD_TEST_KILLS", "1"))  # of each engine; benchmarks/kill_pack.py does many
LONG = PackOptions(image=ImageRecipe(1200), shard_samples=5)
LONG_OPTIONS = ["--size", "1200", "--shard-samples", "5"]
TASK = "ray::_make_shard_on_node"


def tasks(ray_folder):
    return [process for process, command in processes(ray_folder).items() if command.startswith(TASK)]


@pytest.fixture(scope="module")
def large(tmp_path_factory, jpeg):
    """Forty images that take a while, and what they are packed to without interruption."""
    folder = tmp_path_factory.mktemp("large")
    (folder / "source" / "a").mkdir(parents=True)
    (folder / "source" / "a" / "00.jpg").write_bytes(jpeg(1600, 1600))
    for i in range(1, 40):
        (folder / "source" / "a" / f"{i:02d}.jpg").hardlink_to(folder / "source" / "a" / "00.jpg")
    start = time.monotonic()
    pack(folder / "source", folder / "set", LONG, workers=1)
    return folder / "source", files(folder / "set"), time.monotonic() - start


PACK = sys.modules["softshard.shards.pack"]  # the name in the package is that of its function


def start_pack(*arguments, code=COMMAND, before=(), **settings):
    """`softshard pack` in a process of its own."""
    return subprocess.Popen(
        [*map(str, [sys.executable, "-c", code, *before, "pack", *arguments])],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        **settings,
    )


def complaints(run):
    """The lines on standard error of a run that ends, but for the one a minute that a slow machine gets."""
    lines = run.communicate(timeout=LONG_S)[1].splitlines()
    return [line for line in lines if not line.startswith("softshard: pack: ")]


@pytest.fixture
def hold(tmp_path):
    """The file that holds the tasks of `held`."""
    (tmp_path / "hold").touch()
    yield tmp_path / "hold"
    (tmp_path / "hold").unlink(missing_ok=True)  # whatever waits for it ends


def small_job(source, folder, options):
    """A job and its only shard, of all the source's images."""
    listing, plan = plan_source(source, options)
    (split,) = plan.splits
    destination = LocalDestination(folder).folder("train")
    destination.folder("receipts").make()
    shard = PlannedShard(destination, "train-000000.tar", split, 0, len(split))
    return make_job(listing, plan, options, None), shard


@pytest.fixture
def job_and_shard(source, tmp_path, options):
    return small_job(source, tmp_path / "set", replace(options, val_per_class=0))


# ---- The same bytes


@pytest.mark.parametrize("workers", [1, 2, None])
def test_ray_gives_the_bytes_of_the_local_engine(
    source, tmp_path, options, table_tree, maps_maker, cluster, workers
):
    import ray

    (source / "dog" / "dog_0.jpg").write_bytes(b"")  # the ledger is the same, too
    options = replace(options, label_maps=maps_maker(source, tmp_path / "maps", 5))
    expected = pack(source, tmp_path / "local", options, tree=table_tree, workers=1)
    summary = pack(source, tmp_path / "ray", options, tree=table_tree, workers=workers, engine="ray")
    assert summary == expected
    assert files(tmp_path / "ray") == files(tmp_path / "local")
    assert len(list((tmp_path / "ray").rglob("receipts/*.json"))) == 5
    assert ray.is_initialized()  # it is ours, not pack's


def test_a_ray_is_started_where_there_is_none_and_stopped(source, tmp_path, ray_folder):
    (source / "dog" / "dog_0.jpg").unlink()
    (source / "dog" / "dog_0.jpg").symlink_to("nowhere")  # an error that names the file's path
    own = make_ray_folder()
    try:
        for engine in ("local", "ray"):
            environment = {**os.environ, "RAY_TMPDIR": str(own)}
            # Relative paths: Ray's workers need not start in our folder.
            run = start_pack(
                "source", engine, "--size", 16, "--shard-samples", 4, "--workers", 2, "--engine", engine,
                cwd=tmp_path, env=environment,
            )  # fmt: skip
            assert (complaints(run), run.returncode) == ([], 0)
        assert (own / "ray").exists()
        wait_until(lambda: not processes(own))
    finally:
        remove_ray_folder(own)
    assert files(tmp_path / "ray") == files(tmp_path / "local")
    assert "'source/dog/dog_0.jpg'" in (tmp_path / "ray" / "bad.jsonl").read_text()


# ---- Whatever is killed


@pytest.mark.parametrize("seed", range(KILLS))
@pytest.mark.parametrize("engine", ["local", "ray"])
def test_a_run_killed_at_a_random_moment_continues_to_the_same_bytes(
    tmp_path, large, cluster, ray_folder, engine, seed
):
    source, expected, seconds = large
    environment = {**os.environ, "RAY_ADDRESS": cluster.address}
    run = start_pack(
        source, tmp_path / "set", *LONG_OPTIONS, "--workers", 2, "--engine", engine, env=environment
    )
    try:
        wait_until(lambda: (tmp_path / "set" / "plan.json").exists())
        time.sleep(random.Random(seed).uniform(0, seconds))
    finally:
        run.kill()
        run.communicate(timeout=LONG_S)
    # The cluster lives on, but the tasks of a run that is gone do not.
    wait_until(lambda: not tasks(ray_folder))
    pack(source, tmp_path / "set", LONG, workers=2, engine=engine)
    assert files(tmp_path / "set") == expected


def test_a_node_that_is_lost_half_way_costs_nothing_but_time(tmp_path, large, cluster, hold, monkeypatch):
    source, expected, _ = large
    make_job = PACK.make_job
    monkeypatch.setattr(PACK, "make_job", lambda *arguments: held(make_job(*arguments), hold))
    node = cluster.add_node(num_cpus=2)
    lost = []

    def lose_the_node():
        raylet = node.all_processes["raylet"][0].process.pid

        def busy():
            found = []
            for stat in Path("/proc").glob("[0-9]*/stat"):
                try:
                    parent = int(stat.read_text().rpartition(")")[2].split()[1])
                    if parent == raylet and (stat.parent / "cmdline").read_text().startswith(TASK):
                        found.append(stat.parent.name)
                except OSError:
                    continue
            return found

        lost.extend(wait_until(busy))
        cluster.remove_node(node, allow_graceful=False)
        hold.unlink()

    thread = threading.Thread(target=lose_the_node, daemon=True)
    thread.start()
    try:
        pack(source, tmp_path / "set", LONG, engine="ray")
    finally:
        thread.join(LONG_S)
    assert lost
    assert files(tmp_path / "set") == expected


def test_an_interrupt_leaves_no_task_and_nothing_half_written(tmp_path, large, cluster, ray_folder, hold):
    source, expected, _ = large
    environment = {**os.environ, "RAY_ADDRESS": cluster.address}
    words = [source, tmp_path / "set", *LONG_OPTIONS, "--engine", "ray"]
    run = start_pack(*words, code=HELD_COMMAND, before=[hold], env=environment)
    try:
        wait_until(lambda: tasks(ray_folder) and list((tmp_path / "set").rglob("*.part")))
        run.send_signal(signal.SIGINT)
        hold.unlink()
        (text,) = complaints(run)
    finally:
        run.kill()
    assert run.returncode == 130
    assert text.startswith("softshard: interrupted. What is finished is kept: ")
    assert not tasks(ray_folder)
    assert not list((tmp_path / "set").rglob("*.part"))
    pack(source, tmp_path / "set", LONG, workers=2, engine="ray")
    assert files(tmp_path / "set") == expected


def test_closing_waits_until_no_task_writes(tmp_path, large, cluster, ray_folder, hold):
    source, expected, _ = large
    job, shard = small_job(source, tmp_path / "set", LONG)
    bounds = shard.split.shard_bounds(5)
    shards = [
        replace(shard, name=f"train-{number:06d}.tar", start=start, stop=stop)
        for number, (start, stop) in enumerate(bounds)
    ]
    job = held(job, hold, free={sample.location.file for sample in shards[0].task().samples})
    with closing(run_on_ray(job, shards, 6)) as receipts:  # more than the CPUs: some wait for their turn
        assert next(receipts)["read"] == 5
        wait_until(lambda: list((tmp_path / "set").rglob("*.part")))
        hold.unlink()
    assert not list((tmp_path / "set").rglob("*.part"))
    assert not tasks(ray_folder)
    made = files(tmp_path / "set" / "train")
    assert len(made) < len(expected)
    assert {name: expected[f"train/{name}"] for name in made if name.endswith(".tar")}.items() <= made.items()


# ---- Errors


def test_too_many_bad_images_stop_the_run_with_the_local_engine_s_message(source, tmp_path, options, cluster):
    for path in sorted(source.rglob("*.jpg"))[:11]:
        path.write_bytes(b"")
    texts = []
    for engine in ("local", "ray"):
        with pytest.raises(DataError, match="expected at most 10 bad inputs, found 11") as caught:
            pack(source, tmp_path / engine / "set", options, workers=1, engine=engine)
        texts.append(str(caught.value).replace(str(tmp_path / engine), ""))
        assert type(caught.value) is DataError
    assert texts[0] == texts[1]
    ledgers = [(tmp_path / engine / "set" / "bad.jsonl").read_bytes() for engine in ("local", "ray")]
    assert ledgers[0] == ledgers[1]
    assert pack(source, tmp_path / "ray" / "set", replace(options, max_bad=0.7), engine="ray").bad == 11


def test_an_error_on_a_node_is_raised_as_it_is(job_and_shard, cluster):
    job, shard = job_and_shard

    class Twice(PlannedShard):
        def task(self):
            task = super().task()
            return ShardTask(task.folder, task.name, [*task.samples, task.samples[0]])

    with pytest.raises(DataError) as caught:
        list(run_on_ray(job, [Twice(**vars(shard))], 1))
    assert type(caught.value) is DataError
    key = shard.task().samples[0].key
    assert str(caught.value) == (
        f"train-000000.tar: sample '{key}': expected each key once in a shard, found it again"
    )
    assert caught.value.__cause__ is None


def test_a_node_with_another_pixel_stack_is_refused_and_named(job_and_shard, cluster):
    job, shard = job_and_shard
    with pytest.raises(UsageError) as caught:
        list(run_on_ray(replace(job, pixel_stack={"pillow": "0.0.1"}), [shard], 1))
    assert type(caught.value) is UsageError
    assert "expected the pixel stack {'pillow': '0.0.1'} of the run, found " in str(caught.value)
    assert f" on {socket.gethostname()}; the bytes would differ" in str(caught.value)


@pytest.mark.parametrize("lost", ["source", "set"])
def test_a_node_that_does_not_see_a_folder_is_refused_and_named(job_and_shard, tmp_path, cluster, lost):
    job, shard = job_and_shard
    if lost == "source":
        job = replace(job, storage=LocalStorage("source elsewhere"))
        where = "source elsewhere"
    else:
        shutil.rmtree(tmp_path / "set")
        where = str(tmp_path / "set" / "train")
    with pytest.raises(UsageError) as caught:
        list(run_on_ray(job, [shard], 1))
    assert str(caught.value) == (
        f"{where}: expected a folder that all machines of the cluster share, found none on "
        f"{socket.gethostname()}. Mount it there under the same path, or use a bucket"
    )


class EndsItsProcess:
    """A sample that ends the process that unpacks it."""

    def __reduce__(self):
        return os._exit, (1,)


def test_a_task_that_loses_its_worker_each_time_is_given_up(job_and_shard, cluster, monkeypatch):
    monkeypatch.setattr(engine_ray, "_RETRIES", 1)
    job, shard = job_and_shard

    class Deadly(PlannedShard):
        def task(self):
            return ShardTask(self.folder, self.name, [EndsItsProcess()])

    with pytest.raises(SoftshardError, match="found one that lost its worker 2 times") as caught:
        list(run_on_ray(job, [Deadly(**vars(shard))], 1))
    assert not isinstance(caught.value, (DataError, UsageError))
    assert "Finished shards are kept. Run it again to continue" in str(caught.value)


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("127.0.0.1:1", "RAY_ADDRESS=127.0.0.1:1: expected a Ray of version "),
        ("ray://127.0.0.1:1", "RAY_ADDRESS: expected HOST:PORT or auto, found 'ray://127.0.0.1:1'"),
    ],
)
def test_an_address_without_a_cluster_is_a_wrong_call(source, tmp_path, ray_folder, address, expected):
    run = start_pack(source, tmp_path / "set", "--engine", "ray", env={**os.environ, "RAY_ADDRESS": address})
    try:
        text = run.communicate(timeout=LONG_S)[1]
    finally:
        run.kill()
    assert run.returncode == 2
    assert text.startswith(f"softshard: {expected}")
    assert "Traceback" not in text


def test_a_cluster_that_wants_a_token_is_told_from_one_that_is_not_there(source, tmp_path, cluster):
    pytest.importorskip("ray", minversion="2.52")  # the first with tokens
    # A new shell has no mode, and Ray then sends no token to an address that it was given; once, not for 20 s.
    new = {"RAY_ADDRESS": cluster.address, "RAY_NUM_REDIS_GET_RETRIES": "1"}
    kept = {name: value for name, value in os.environ.items() if not name.startswith("RAY_AUTH_")}
    run = start_pack(source, tmp_path / "set", "--engine", "ray", env=kept | new)
    try:
        text = run.communicate(timeout=LONG_S)[1]
    finally:
        run.kill()
    assert run.returncode == 2
    assert text.splitlines()[-1].endswith(engine_ray._NO_TOKEN)


def test_a_node_that_a_store_does_not_let_in_is_told_whose_environment_counts(job_and_shard, cluster):
    job, shard = job_and_shard

    class Refusing(LocalStorage):  # local, so that it goes to the nodes with its code
        def __reduce__(self):
            return Refusing, (self.root,)

        def read(self, path, *range_):
            raise RefusedError(f"{path}: cannot be read: AccessDenied; expected to be let in")

    with pytest.raises(
        RefusedError, match=r"expected to be let in; what runs on a Ray cluster has the environment that"
    ):
        list(run_on_ray(replace(job, storage=Refusing(job.storage.root)), [shard], 1))


def test_without_ray_the_extra_is_named(job_and_shard, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    job, shard = job_and_shard
    with pytest.raises(MissingExtraError, match=r"--engine ray needs the module 'ray'.*'softshard\[ray\]'"):
        list(run_on_ray(job, [shard], 1))
