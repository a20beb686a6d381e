"""A real S3 server on loopback: OpenStack Swift with its s3api, one device, no root services.

Four processes: account, container and object server with a ring of one device each, and the proxy that speaks S3
before them. All of them live in one folder, and die with the process that started them.
"""

from __future__ import annotations

import ctypes
import importlib.util
import os
import pwd
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ACCESS_KEY = "test:tester"
SECRET_KEY = "testing-1-2-3"
REGION = "us-east-1"
PAGE_ENTRIES = 20  # of a listing; Amazon gives 1,000
_BACKENDS = ("account", "container", "object")
KINDS = (*_BACKENDS, "proxy")
_MODULES = {"account": "account", "container": "container", "object": "obj", "proxy": "proxy"}
_READY_S = 240
_MAX_OBJECT_BYTES = 128 * 2**20  # of a part too
_PR_SET_PDEATHSIG = 1

_SWIFT_CONF = f"""
[swift-hash]
swift_hash_path_suffix = softshard
swift_hash_path_prefix = softshard
[storage-policy:0]
name = gold
default = yes
[swift-constraints]
max_file_size = {_MAX_OBJECT_BYTES}
"""

_DEFAULT = """
[DEFAULT]
bind_ip = 127.0.0.1
bind_port = {port}
user = {user}
swift_dir = {folder}
devices = {folder}/devices
mount_check = false
workers = 0
disable_fallocate = true
fallocate_reserve = 0
recon_cache_path = {folder}/cache
log_level = WARNING
"""

_BACKEND = """
[pipeline:main]
pipeline = {kind}-server
[app:{kind}-server]
use = egg:swift#{kind}
"""

# Without `cache`, the proxy asks for a bucket each time and remembers nothing of a server that was killed.
_PROXY = f"""
[pipeline:main]
pipeline = catch_errors gatekeeper healthcheck listing_formats s3api tempauth copy slo dlo proxy-server
[app:proxy-server]
use = egg:swift#proxy
account_autocreate = true
allow_account_management = true
# A server that was killed and is back gets its requests at once.
error_suppression_interval = 0
conn_timeout = 1
node_timeout = 10
[filter:s3api]
use = egg:swift#s3api
location = {REGION}
max_bucket_listing = {PAGE_ENTRIES}
dns_compliant_bucket_names = true
[filter:tempauth]
use = egg:swift#tempauth
user_test_tester = {SECRET_KEY} .admin .reseller_admin
"""

_RINGS = """
import sys
from swift.common.ring import RingBuilder
folder, *servers = sys.argv[1:]
for server in servers:
    kind, port = server.split("=")
    builder = RingBuilder(4, 1, 1)
    builder.add_dev({"region": 1, "zone": 1, "ip": "127.0.0.1", "port": int(port), "device": "d1", "weight": 1.0})
    builder.rebalance()
    builder.get_ring().save(f"{folder}/{kind}.ring.gz")
"""


def why_not(folder: Path) -> str | None:
    """Why Swift cannot run with its data in a folder, or None."""
    if importlib.util.find_spec("swift") is None:
        return "needs OpenStack Swift: pip install '.[dev]'"
    probe = folder / "probe"
    probe.touch()
    try:
        os.setxattr(probe, "user.softshard", b"1")
    except OSError as error:
        return f"needs a file system with extended attributes, {folder} has none: {error.strerror}"
    finally:
        probe.unlink()
    try:
        pwd.getpwuid(os.geteuid())
    except KeyError:
        return f"needs a name for user {os.geteuid()}, /etc/passwd has none"
    return None


def free_ports(count: int) -> list[int]:
    """Loopback ports that nobody listens at, outside the range that outgoing connections take theirs from."""
    ports: set[int] = set()
    while len(ports) < count:
        port = random.SystemRandom().randrange(20_000, 32_000)
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            ports.add(port)
    return list(ports)


class Swift:
    """One object store.

        with Swift(folder) as server:
            server.endpoint            # "http://127.0.0.1:28301", for ACCESS_KEY and SECRET_KEY
            server.kill("object")      # SIGKILL: reads give 503, the listing still answers
            server.start("object")

    Args:
        folder: made here, for configuration, logs and data; removed at the end.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._processes: dict[str, subprocess.Popen] = {}
        # The kernel's word for a parent is the thread that started a process: one that stays.
        self._starter = ThreadPoolExecutor(1)
        self._ports = dict(zip(KINDS, free_ports(len(KINDS)), strict=True))
        self.endpoint = f"http://127.0.0.1:{self._ports['proxy']}"

    def __enter__(self) -> Swift:
        try:
            self._configure()
            self.start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _configure(self) -> None:
        for name in ("devices/d1", "cache"):
            (self.folder / name).mkdir(parents=True)
        (self.folder / "swift.conf").write_text(_SWIFT_CONF)
        filters = ("catch_errors", "gatekeeper", "healthcheck", "listing_formats", "copy", "slo", "dlo")
        proxy = _PROXY + "".join(f"[filter:{name}]\nuse = egg:swift#{name}\n" for name in filters)
        for kind, port in self._ports.items():
            user = pwd.getpwuid(os.geteuid()).pw_name
            text = _DEFAULT.format(port=port, user=user, folder=self.folder)
            text += proxy if kind == "proxy" else _BACKEND.format(kind=kind)
            (self.folder / f"{kind}.conf").write_text(text)
        servers = [f"{kind}={self._ports[kind]}" for kind in _BACKENDS]
        command = [sys.executable, "-W", "ignore", "-c", _RINGS, str(self.folder), *servers]
        subprocess.run(command, check=True, timeout=_READY_S)

    def start(self, *kinds: str) -> None:
        """Start servers, all that do not run by default, on the data that is there; wait until they answer."""
        kinds = kinds or self.missing()
        for kind in kinds:
            self._processes[kind] = self._starter.submit(self._launch, kind).result(_READY_S)
        for kind in kinds:
            self._wait(kind)

    def _launch(self, kind: str) -> subprocess.Popen:
        code = f"from swift.{_MODULES[kind]}.server import main; main()"
        with open(self.folder / f"{kind}.log", "ab") as log:
            return subprocess.Popen(
                [sys.executable, "-W", "ignore", "-c", code, str(self.folder / f"{kind}.conf")],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                preexec_fn=die_with_parent,
            )

    def kill(self, *kinds: str) -> None:
        """SIGKILL to servers, all by default; returns when they are gone."""
        for kind in kinds or KINDS:
            if process := self._processes.pop(kind, None):
                process.send_signal(signal.SIGKILL)
                process.wait()

    def missing(self) -> list[str]:
        """The servers that do not run."""
        return [
            kind for kind in KINDS if kind not in self._processes or self._processes[kind].poll() is not None
        ]

    def stop(self) -> None:
        """Kill all servers and remove their data."""
        self.kill()
        self._starter.shutdown()
        shutil.rmtree(self.folder, ignore_errors=True)

    def _wait(self, kind: str) -> None:
        give_up = time.monotonic() + _READY_S
        while time.monotonic() < give_up:
            if self._processes[kind].poll() is not None:
                break
            try:
                socket.create_connection(("127.0.0.1", self._ports[kind]), timeout=1).close()
                return
            except OSError:
                time.sleep(0.05)
        log = (self.folder / f"{kind}.log").read_text(errors="replace")[-2000:]
        raise RuntimeError(
            f"Swift's {kind} server does not answer on port {self._ports[kind]}; its log ends: {log}"
        )


# Found here: in a fork the linker may not be asked, whose lock another thread may have held.
_prctl = ctypes.CDLL(None).prctl


def die_with_parent() -> None:
    """In a process that begins: SIGKILL to it once the thread that started it is gone."""
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
