"""A pool of servers on Ray: `softshard serve --engine ray --replicas N`.

    command   starts N actors, asks for their health, puts new ones in the place of those that are gone, and says where
              they are: JSON lines on standard output, and a file for trainers (service_list.py)
    actor     a Desk behind a BatchServer, on any node, at a port that is free there

Ray starts an actor anew when its process dies or its node is lost; one that it gives up, or that does not answer, is
replaced here. Servers keep nothing, so that trainers only wait. No batch passes through Ray: trainers ask the
servers. When the command ends, by a signal after draining or by a kill, its actors end with it.
"""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

from ..shards.engine_ray import ENVIRONMENT, connected, import_ray
from ..shards.errors import RefusedError, SoftshardError, UsageError
from .cache import Cache
from .service_access import check_listen, read_token
from .service_address import is_loopback
from .service_desk import Desk, ServedSet
from .service_limits import Limits
from .service_list import ServerList
from .service_run import log_as_json, stopped_by_signals
from .service_server import BatchServer

_POLL_S = 1.0
_HEALTH_S = 30.0  # without an answer, and the server is replaced
_START_S = 300.0  # for torch to be imported and data sets to be opened on a busy node
_CALLS = 4  # of an actor at a time: its health is asked for while it drains

logger = logging.getLogger("softshard.service")


@dataclass(frozen=True)
class PoolOptions:
    """What every server of a pool is started with. Files are read on the nodes: no secret passes through Ray.

    Attributes:
        data_sets: see Desk; folders and files are seen by all nodes under the same name.
        host: to listen on; None for the address of the server's node.
        device: `cpu` or `cuda`.
        num_threads: decoder threads, and CPUs that Ray reserves.
        cache: folder on the node for shards behind a URL.
        limits: what clients may have.
        token_file: of the token that clients must have.
        tls: files of certificate chain and key.
        shared_memory: see BatchServer.
        log_level: of the servers' logs, which lie among Ray's.
        folder: that relative paths start from.
    """

    data_sets: Mapping[str, ServedSet]
    host: str | None = None
    device: str = "cpu"
    num_threads: int = 1
    cache: Path | None = None
    limits: Limits = field(default_factory=Limits)
    token_file: Path | None = None
    tls: tuple[Path, Path] | None = None
    shared_memory: bool = True
    log_level: str = "info"
    folder: str = "."


class PoolServer:
    """One server of a pool; the actor."""

    def __init__(self, options: PoolOptions) -> None:
        import ray.util

        if os.path.isdir(options.folder):
            os.chdir(options.folder)
        log_as_json(options.log_level)
        host = options.host or ray.util.get_node_ip_address()
        token = None if options.token_file is None else read_token(options.token_file)
        check_listen(host, token, options.tls is not None)
        desk = Desk(
            options.data_sets,
            device=options.device,
            num_threads=options.num_threads,
            cache=Cache(folder=options.cache),
            limits=options.limits,
        )
        tls = None if options.tls is None else (options.tls[0].read_bytes(), options.tls[1].read_bytes())
        self._server = BatchServer(desk, host, token=token, tls=tls, shared_memory=options.shared_memory)

    def health(self) -> dict[str, Any]:
        """Where it is and how it does."""
        import ray

        stats = self._server.stats()
        return {
            "address": self._server.address,
            "node": ray.get_runtime_context().get_node_id(),
            "pid": os.getpid(),
            "images": stats.images,
            "hit_rate": stats.cache.hit_rate,
        }

    def drain(self, patience_s: float) -> bool:
        """Finish what is under way for at most so long, and stop; whether all was finished."""
        return self._server.close(patience_s)


@dataclass
class _Replica:
    """An actor, and what was last heard of it."""

    actor: Any
    asked: Any  # for its health
    since: float
    health: dict[str, Any] | None = None


class Pool:
    """Servers on Ray that are kept alive; for one thread.

    Args:
        ray: the module, connected.
        options: of every server.
        replicas: their number.
    """

    def __init__(self, ray: ModuleType, options: PoolOptions, replicas: int) -> None:
        self._ray, self._options = ray, options
        self._actor = ray.remote(
            num_cpus=options.num_threads,
            num_gpus=int(options.device.startswith("cuda")),
            scheduling_strategy="SPREAD",
            max_restarts=-1,
            max_concurrency=_CALLS,
        )(PoolServer)
        self._replicas = [self._start() for _ in range(replicas)]
        self.replaced = 0

    def _start(self) -> _Replica:
        actor = self._actor.remote(self._options)
        return _Replica(actor, actor.health.remote(), time.monotonic())

    def poll(self, patience_s: float = _POLL_S) -> list[dict[str, Any]]:
        """Look after every server; waits for answers at most so long.

        Returns:
            The health of those that are up: `address`, `node`, `pid`, `images`, `hit_rate`.

        Raises:
            SoftshardError: why a server cannot start: what it was given does not work on its node.
        """
        asked = [replica.asked for replica in self._replicas]
        done, _ = self._ray.wait(asked, num_returns=len(asked), timeout=patience_s)
        for number, replica in enumerate(self._replicas):
            if replica.asked in done and self._hear(number, replica):
                continue
            if time.monotonic() - replica.since > (_START_S if replica.health is None else _HEALTH_S):
                self._replace(number, f"no answer for {time.monotonic() - replica.since:.0f} s")
        return [replica.health for replica in self._replicas if replica.health is not None]

    def _hear(self, number: int, replica: _Replica) -> bool:
        """Take an answer that has come, and ask again; False where Ray does not hand it over."""
        errors = self._ray.exceptions
        try:
            replica.health = self._ray.get(replica.asked, timeout=_POLL_S)
        except errors.RayTaskError as error:  # of a method
            self._replace(number, str(error.cause))
            return True
        except errors.ActorDiedError as error:
            if (cause := _start_error(error)) is not None:
                raise SoftshardError(f"serve --engine ray: {cause}") from error
            self._replace(number, "it was killed")  # by somebody who forbade Ray to start it anew
            return True
        except errors.GetTimeoutError:  # as good as no answer: `since` goes on
            return False
        except errors.RayError:  # Ray is starting it anew
            replica.health = None
        replica.asked, replica.since = replica.actor.health.remote(), time.monotonic()
        return True

    def _replace(self, number: int, why: str) -> None:
        old = self._replicas[number]
        facts = {"server": None if old.health is None else old.health["address"], "why": why}
        logger.warning("replaced", extra={"facts": facts})
        self._ray.kill(old.actor)
        self._replicas[number] = self._start()
        self.replaced += 1

    def close(self, patience_s: float) -> bool:
        """Drain all servers side by side, and end them; whether all was finished."""
        up = [replica.actor.drain.remote(patience_s) for replica in self._replicas if replica.health]
        finished = True
        if up:
            done, late = self._ray.wait(up, num_returns=len(up), timeout=patience_s + 10)
            finished = not late and all(map(self._drained, done))
        for replica in self._replicas:
            self._ray.kill(replica.actor)
        return finished

    def _drained(self, reference: Any) -> bool:
        try:
            return self._ray.get(reference, timeout=_HEALTH_S)
        except self._ray.exceptions.RayError:
            return False


def _start_error(error: BaseException) -> str | None:
    """What a server's constructor raised, which would fail again; None where it was lost otherwise."""
    text = str(error)
    if "creation task" not in text and "__init__" not in text:
        return None
    lines = [line.strip() for line in text.splitlines() if "Error: " in line]
    said = lines[-1] if lines else text.splitlines()[0]
    return f"{said}; {ENVIRONMENT}" if RefusedError.__name__ in said else said


def run_pool(
    options: PoolOptions,
    *,
    replicas: int,
    address: str | None = None,
    addresses: Path | None = None,
    drain_s: float = 30.0,
    say: Callable[[str], None] = print,
) -> bool:
    """Serve on Ray until a signal says to stop; for a process's main thread.

    Args:
        options: of every server.
        replicas: servers.
        address: of a Ray cluster; None for what RAY_ADDRESS says, and a Ray on this machine without it.
        addresses: file for the list of servers.
        drain_s: seconds that requests under way have after the signal.
        say: is told where the servers are, in a line of JSON, whenever that changes.

    Returns:
        Whether everything that was under way was finished.

    Raises:
        MissingExtraError: ray is not installed.
        UsageError: no such cluster, or one that is too small; servers that others reach, without token and TLS.
        SoftshardError: what keeps a server from starting on its node.
    """
    ray = import_ray()
    num_cpus = replicas * options.num_threads
    with connected(ray, num_cpus, address):
        _check_cluster(ray, options, num_cpus)
        listed = None if addresses is None else ServerList(addresses)
        if listed is not None:
            listed.write([])  # now, not when servers are up, since it may be a wrong place
        with stopped_by_signals() as stop:
            pool = Pool(ray, options, replicas)
            said = unlisted = None
            written: list[str] | None = []
            try:
                while not stop.is_set():
                    up = pool.poll()
                    servers = sorted(health["address"] for health in up)
                    if listed is not None and servers != written:
                        written = _write_list(listed, servers, warn=servers != unlisted)
                        unlisted = None if written == servers else servers
                    if servers != said and (servers or said is not None):
                        said = servers
                        say(json.dumps({"event": "serving", "servers": servers, "replaced": pool.replaced}))
                    stop.wait(_POLL_S)
                logger.info("draining", extra={"facts": {"servers": said or []}})
            finally:
                if listed is not None:
                    _write_list(listed, [])
                finished = pool.close(drain_s if stop.is_set() else 0.0)
            return finished


def _write_list(listed: ServerList, servers: list[str], *, warn: bool = True) -> list[str] | None:
    """Write where the servers are; what stands there then, or None where that could not be written.

    They serve all the same, and a full disk has room again.
    """
    try:
        listed.write(servers)
    except UsageError as error:
        if warn:
            logger.warning("unlisted", extra={"facts": {"servers": servers, "why": str(error)}})
        return None
    return servers


def _check_cluster(ray: ModuleType, options: PoolOptions, num_cpus: int) -> None:
    """Refuse what could not work before anything is started.

    Raises:
        UsageError: saying what is missing.
    """
    there = int(ray.cluster_resources().get("CPU", 0))
    if num_cpus > there:
        raise UsageError(
            f"serve --engine ray: expected {num_cpus} CPUs for replicas times threads, found {there} in the cluster. Use "
            "fewer --replicas or --threads, or a larger cluster"
        )
    hosts = {node["NodeManagerAddress"] for node in ray.nodes() if node["Alive"]}
    token = None if options.token_file is None else "read on the nodes"
    for host in sorted(hosts) if options.host is None else [options.host]:
        check_listen(host, token, options.tls is not None)
    if options.host is not None and is_loopback(options.host) and len(hosts) > 1:
        raise UsageError(
            f"serve --engine ray: expected an address that trainers reach on all {len(hosts)} hosts of the cluster, found "
            f"{options.host}. Use --listen node:0, with a token and TLS"
        )
