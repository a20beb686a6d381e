"""Whether the plan of an earlier run is the one that is asked for now, and what is different where it is not."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from .classes import class_list_sha256
from .errors import DataError, UsageError
from .files import canonical_json
from .pack_plan import PackOptions
from .plan import Plan
from .schema import PLAN_NAME
from .shard_task import Job
from .tree import LabelTree

_HASH = re.compile("[0-9a-f]{12}|[0-9a-f]{64}")  # of a file, or the beginning of one


def told(options: PackOptions, plan: Plan, tree: LabelTree | None) -> dict[str, Any]:
    """What the plan depends on, so that a run with another plan can be told what is different."""
    return {
        **options.to_json(),
        "tree": tree.fingerprint[:12] if tree else None,
        "class list": class_list_sha256(plan.class_names)[:12],
        "images": plan.num_samples,
    }


def check_earlier_plan(where: str, content: bytes, plan: Plan, job: Job, now: Mapping[str, Any]) -> int:
    """Compare the plan of an earlier run with ours; returns its samples of a shard.

    Args:
        where: the destination, for messages.
        content: of its `plan.json`.
        plan: ours.
        job: ours.
        now: what `told` says of ours.

    Raises:
        DataError: the earlier plan is damaged.
        UsageError: it is another one; what is different is named.
    """
    try:
        earlier = json.loads(content)
        plan_sha256, earlier_stack = earlier["sha256"], earlier["pixel_stack"]
        samples_per_shard, map_shape = int(earlier["samples_per_shard"]), earlier["map_shape"]
        if samples_per_shard < 1 or not isinstance(plan_sha256, str):
            raise ValueError(f"{samples_per_shard} samples per shard of plan {plan_sha256!r}")
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
        raise DataError(
            f"{where}/{PLAN_NAME}: expected the plan of an earlier run, found: {error!r}; it is damaged. "
            "Pack into a new folder"
        ) from error
    if plan_sha256 != plan.sha256:
        before = earlier.get("options")
        before = before if isinstance(before, dict) else {}
        changed = "; ".join(_changes(before, json.loads(canonical_json(now))))
        changed = changed or "files of the source have other names"
        raise UsageError(
            f"{where}: expected the plan {plan.sha256[:12]} of this source and these options, "
            f"found {plan_sha256[:12]} of an earlier run: {changed}. Give the same again, or pack into a new folder"
        )
    if earlier_stack != dict(job.pixel_stack):
        raise UsageError(
            f"{where}: expected the pixel stack {earlier_stack} of the earlier run, found "
            f"{dict(job.pixel_stack)}; the bytes would differ. Install those versions, or pack into a new folder"
        )
    if map_shape != (list(job.map_shape) if job.map_shape else None):
        raise UsageError(
            f"{where}: expected label maps of [K, P, Q] {map_shape} as in the earlier run, found "
            f"{list(job.map_shape or ())}. Give the same maps, or pack into a new folder"
        )
    return samples_per_shard


def _changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """The options that changed, in words."""
    # Not all are in both: options that are not given are not told.
    changed = [name for name in {**before, **now} if before.get(name) != now.get(name)]
    if "shard_samples" in changed and "shard_bytes" in changed:
        changed.remove("shard_bytes")  # nobody gave it: it counts where no samples are given
    return [_told_change(name.replace("_", "-"), before.get(name), now.get(name)) for name in changed]


def _told_change(name: str, before: Any, now: Any) -> str:
    """An option that changed, with its values; of a file, whose hash it is, or a record of many fields without."""
    value = now if before is None else before
    if isinstance(value, dict) or (isinstance(value, str) and _HASH.fullmatch(value)):
        if before is None:
            return f"{name} was not given, is"
        return f"{name} was given, is not" if now is None else f"{name} was made in another way"
    before, now = ("the default" if one is None else one for one in (before, now))
    return f"{name} was {before}, is {now}"
