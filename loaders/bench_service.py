"""`softshard bench` of servers: how fast a trainer gets its batches, and whom it waits for."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from .bench import BenchOptions, rate_line
from .loader_stats import STAGE_WORDS
from .measure import machine, take_turns
from .remote_loader import RemoteLoader

if TYPE_CHECKING:
    from .service_client import Connection

_MEASURE = "softshard bench of the data set, on a server, says what bounds it there"
_ADVICE = {
    "service": f"Start another server, or give these more --threads; {_MEASURE}",
    "normalise": "Give more --threads here, or ask for --dtype uint8 and normalise on the GPU",
    "copy": "Ask for a smaller --dtype",
}


def bench_service(
    servers: str, options: BenchOptions, *, connection: Connection | None = None
) -> dict[str, Any]:
    """Measure a RemoteLoader; what the servers' parts could do, `softshard bench` of the data set says there.

    No batch is asked for twice, so that servers make every one: each measurement has epochs of its own, each call a seed.

    Args:
        servers: as a RemoteLoader takes them; with the name of a data set.
        options: what is measured, and for how long; the threads are those that normalise floats.
        connection: how to speak to them.

    Returns:
        A JSON-ready dict: options, machine, images per second (median, lowest, highest), requests, the loader's
        `stats()`, and the verdict: the longest stage, and what would make it shorter.

    Raises:
        UsageError: fewer samples than a batch, and what RemoteLoader raises.
        ServiceError: no server answers.
    """
    seed = secrets.randbits(31)
    with RemoteLoader(servers, **options.of_loader(), seed=seed, connection=connection) as loader:

        def batches() -> Iterator[int]:
            loader.set_epoch(loader.epoch + 1)  # the one before was left in its middle
            while True:
                for batch in loader:
                    yield len(batch)

        results = take_turns({"loader": batches}, **options.turns())
        source: Any = loader.source
        stats, fetched, pool = loader.stats(), loader.fetch_stats(), source.pool
    stage = max(stats.stages, key=lambda name: stats.stages[name].seconds)
    share = stats.stages[stage].seconds / sum(each.seconds for each in stats.stages.values())
    return {
        "dataset": loader.dataset,
        "samples": loader.num_samples,
        "options": options.to_json() | {"num_threads": loader.num_threads},
        "machine": machine(),
        "results": {name: result.to_json() for name, result in results.items()},
        "requests": {
            "sent": fetched.requests,
            "repeated": fetched.retries,
            "hedged": pool.num_hedged,
            "in_shared_memory": pool.num_in_memory,
            "bytes": fetched.bytes_fetched,
        },
        "stats": stats.to_json(),
        "verdict": {
            "stage": stage,
            "text": f"{share:.0%} of a batch's time is {STAGE_WORDS.get(stage, stage)}. {_ADVICE.get(stage, _MEASURE)}",
        },
        # What softshard bench of shards has beside these.
        "peers": {},
        "fetch": None,
        "ceilings": {},
    }


def format_bench_service(result: dict[str, Any]) -> str:
    """The result as text for a terminal."""
    options, requests = result["options"], result["requests"]
    return "\n".join(
        [
            f"{result['dataset']}: {result['samples']:,} samples; batches of {options['batch_size']}, {options['dtype']}, "
            f"{options['size']} pixels, targets {options['targets']}, {options['device']}",
            *(rate_line(name, values) for name, values in result["results"].items()),
            f"  {requests['sent']:,} requests, {requests['repeated']:,} repeated, {requests['hedged']:,} hedged; "
            f"{requests['in_shared_memory']:,} answers in shared memory; {requests['bytes']:,} bytes",
            result["verdict"]["text"],
        ]
    )
