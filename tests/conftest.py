import fcntl
import gc
import itertools
import os
import secrets
import signal
import tempfile
from pathlib import Path

import fsspec
import pytest
from botocore.config import Config
from botocore.session import get_session
from forked import Forks
from hypothesis import HealthCheck, settings
from ray_processes import make_ray_folder, remove_ray_folder
from s3fs import S3FileSystem
from torch_threads import torch_in_one_thread
from waiting import LONG_S, wait_until

from servers import gcs, web
from servers.proxy import FaultyProxy
from servers.swift import ACCESS_KEY, REGION, SECRET_KEY, Swift, why_not

# A shell starts what runs in its background with Ctrl-C ignored, `nohup` with the end of the terminal, and so would
# everything be that tests start.
for number, handler in ((signal.SIGINT, signal.default_int_handler), (signal.SIGHUP, signal.SIG_DFL)):
    if signal.getsignal(number) == signal.SIG_IGN:
        signal.signal(number, handler)

# The same examples in every run, on fast and slow machines: a change is judged by what it does, not by luck.
# SOFTSHARD_EXAMPLES=new draws others.
# Fixtures serve all examples of a test: here they are what no example changes.
ANY_MACHINE = {
    "deadline": None,
    "suppress_health_check": [HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
}
settings.register_profile("same", derandomize=True, **ANY_MACHINE)
settings.register_profile("new", **ANY_MACHINE)
settings.load_profile(os.environ.get("SOFTSHARD_EXAMPLES", "same"))

RAY_TOKEN = secrets.token_hex(16)

# Beside the repository, not in it: photographs and lists whose licences keep them out of the project.
SHARED = Path(__file__).parents[2] / "shared" / "data"


def pytest_make_parametrize_id(val):
    """Bytes do not name a test: torch.save's differ between processes, which are to collect the same tests."""
    return "bytes" if isinstance(val, bytes) and len(val) > 40 else None


@pytest.fixture(scope="session", autouse=True)
def what_is_imported_stays():
    """No collection of garbage looks at it again: a million objects of torch, Ray and all tests, half a second each time."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of photographs and lists; tests that ask for it carry the marker `shared`."""
    if not (SHARED / "photos").is_dir():
        pytest.skip(f"needs the photographs and lists of {SHARED}")
    return SHARED


@pytest.fixture(scope="session")
def forks():
    """Runs softshard commands in processes of their own; see forked.py."""
    forks = Forks()
    yield forks
    forks.close()


@pytest.fixture(scope="module")
def one_thread():
    """For torch, in the tests of a module. Fixtures of the session come before this one: they ask for themselves."""
    with torch_in_one_thread():
        yield


@pytest.fixture(scope="module")
def one_ray_at_a_time():
    """Two Rays that start on one machine at the same moment may take each other's ports.

    As in a new installation they want a token, but not one in the home folder. A process keeps the first that it read.
    """
    with (
        open(Path(tempfile.gettempdir()) / "softshard-tests-ray.lock", "w") as file,
        pytest.MonkeyPatch.context() as patch,
    ):
        wait_until(lambda: _locks(file), 2 * LONG_S)  # other files' tests may be before this one's
        patch.setenv("RAY_AUTH_MODE", "token")
        patch.setenv("RAY_AUTH_TOKEN", RAY_TOKEN)
        yield


def _locks(file):
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


@pytest.fixture(scope="module")
def ray_folder(one_ray_at_a_time):
    """What Ray is told by the environment, here and in the processes started here."""
    folder = make_ray_folder()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_TMPDIR", str(folder))
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.delenv("RAY_ADDRESS", raising=False)
        yield folder
    remove_ray_folder(folder)


@pytest.fixture(scope="module")
def cluster(ray_folder):
    """A Ray of one node with two CPUs, which this process is connected to."""
    import ray
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 2, "include_dashboard": False})
    try:
        ray.init(address=cluster.address, logging_level="ERROR", log_to_driver=False)
        yield cluster
    finally:
        ray.shutdown()
        cluster.shutdown()


@pytest.fixture(scope="session")
def s3_session(tmp_path_factory):
    """One S3 server for the whole run."""
    folder = tmp_path_factory.mktemp("swift")
    if reason := why_not(folder):
        pytest.skip(f"the S3 server {reason}")
    with Swift(folder / "state") as server:
        yield server


@pytest.fixture
def s3_server(s3_session, s3_environment):
    """The S3 server, whole before and after each test; the environment holds its address and keys."""
    yield s3_session
    s3_session.start()


@pytest.fixture
def s3_environment(s3_session, monkeypatch):
    """What users set; nothing of their own accounts is left."""
    for name in ("AWS_PROFILE", "AWS_SESSION_TOKEN", "AWS_ENDPOINT_URL_S3", "AWS_REGION"):
        monkeypatch.delenv(name, raising=False)
    for name in ("AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"):
        monkeypatch.setenv(name, "/dev/null")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3_session.endpoint)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", ACCESS_KEY)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET_KEY)
    monkeypatch.setenv("AWS_DEFAULT_REGION", REGION)
    # File systems are kept by their arguments; the environment is none of them.
    S3FileSystem.clear_instance_cache()
    yield
    S3FileSystem.clear_instance_cache()


@pytest.fixture(scope="session")
def s3_client(s3_session):
    """A client of botocore, which knows nothing of the fsspec that the tests are about."""
    return get_session().create_client(
        "s3",
        endpoint_url=s3_session.endpoint,
        aws_access_key_id=ACCESS_KEY,
        aws_secret_access_key=SECRET_KEY,
        region_name=REGION,
        config=Config(retries={"total_max_attempts": 1}),
    )


_buckets = itertools.count()


@pytest.fixture
def s3_bucket(s3_server, s3_client):
    """The URL of a new, empty bucket: `s3://bucket-0`."""
    name = f"bucket-{next(_buckets)}"
    s3_client.create_bucket(Bucket=name)
    return f"s3://{name}"


@pytest.fixture
def proxy(s3_server, monkeypatch):
    """The network between softshard and the S3 server."""
    with FaultyProxy(s3_server.endpoint, seed=3) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.endpoint)
        # s3fs and softshard try again by themselves; the pauses of botocore are for larger stores.
        monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
        yield proxy


@pytest.fixture(scope="session")
def gcs_session(tmp_path_factory):
    """One Google Cloud Storage for the whole run."""
    if reason := gcs.why_not():
        pytest.skip(f"Google Cloud Storage {reason}")
    # Before gcsfs is imported: it would look for credentials of hierarchical buckets, which the emulator has none of.
    os.environ["GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT"] = "false"
    with gcs.Emulator(tmp_path_factory.mktemp("gcs") / "log") as server:
        yield server


@pytest.fixture
def gcs_proxy(gcs_session, monkeypatch):
    """The network between softshard and Google Cloud Storage; the environment holds its address."""
    with FaultyProxy(gcs_session.endpoint, seed=3) as proxy:
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", proxy.endpoint)
        monkeypatch.setenv("NO_GCE_CHECK", "true")  # this is no machine of Google's; asking takes seconds
        monkeypatch.delenv("GOOGLE_APPLICATION_CREDENTIALS", raising=False)
        forget_gcs()
        yield proxy
    forget_gcs()


@pytest.fixture
def gcs_bucket(gcs_session, gcs_proxy):
    """The URL of a new, empty bucket: `gs://bucket-0`."""
    name = f"bucket-{next(_buckets)}"
    gcs_session.make_bucket(name)
    return f"gs://{name}"


def forget_gcs():
    """File systems are kept by their arguments; the environment is none of them."""
    fsspec.get_filesystem_class("gs").clear_instance_cache()


@pytest.fixture
def serve():
    """A function: starts a web server with ranges over a folder, and gives its URL, with user and password in it."""
    if reason := web.why_not():
        pytest.skip(reason)
    servers = []

    def start(folder):
        servers.append(web.Rclone(folder))
        return servers[-1].url

    yield start
    for server in servers:
        server.stop()


@pytest.fixture
def memory():
    """A function: copies a folder to memory://copies, and gives its URL."""
    filesystem = fsspec.filesystem("memory")

    def put(folder):
        filesystem.put(str(folder), f"/copies/{folder.name}", recursive=True)
        return f"memory://copies/{folder.name}"

    yield put
    if filesystem.exists("/copies"):
        filesystem.rm("/copies", recursive=True)
