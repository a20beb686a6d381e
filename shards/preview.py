"""`softshard pack --dry-run`: the plan for people to look at, with nothing written."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .pack_plan import PackOptions, estimate_shard, make_job, plan_source
from .text_limits import counted, some
from .tree import LabelTree

_SHOWN = 10


@dataclass(frozen=True)
class Preview:
    """What a run would do.

    Attributes:
        source: as messages name it.
        num_files: images listed.
        num_classes: length of the class list.
        kept: (class, images) of the classes that are packed.
        dropped: (folder, images, reason) of the others.
        without_images: classes of the list that have none.
        ignored: what is there and is no image.
        splits: split name to samples, shards and estimated bytes.
        sample_bytes: mean bytes of a few samples as they would be stored, tar headers included.
        samples_per_shard: at most.
        sha256: the plan's fingerprint.
    """

    source: str
    num_files: int
    num_classes: int
    kept: tuple[tuple[str, int], ...]
    dropped: tuple[tuple[str, int, str], ...]
    without_images: tuple[str, ...]
    ignored: tuple[str, ...]
    splits: dict[str, dict[str, int]]
    sample_bytes: int
    samples_per_shard: int
    sha256: str

    def to_json(self) -> dict[str, Any]:
        return {
            "source": self.source,
            "files": self.num_files,
            "classes": self.num_classes,
            "kept": dict(self.kept),
            "dropped": [
                {"folder": name, "images": images, "reason": reason} for name, images, reason in self.dropped
            ],
            "without_images": list(self.without_images),
            "ignored": list(self.ignored),
            "splits": self.splits,
            "sample_bytes": self.sample_bytes,
            "samples_per_shard": self.samples_per_shard,
            "plan": self.sha256,
        }

    def text(self) -> str:
        """Lines for a terminal."""
        images, dropped = (sum(row[1] for row in rows) for rows in (self.kept, self.dropped))
        lines = [
            f"{self.source}: {counted(self.num_files, 'image')}; plan {self.sha256[:12]}",
            f"  kept: {counted(len(self.kept), 'class')} with {counted(images, 'image')}",
            f"  dropped: {counted(len(self.dropped), 'folder')} with {counted(dropped, 'image')}",
        ]
        lines += [
            f"    {name}: {counted(count, 'image')}: {reason}"
            for name, count, reason in self.dropped[:_SHOWN]
        ]
        if len(self.dropped) > _SHOWN:
            lines.append(f"    and {len(self.dropped) - _SHOWN:,} more (--json names all)")
        for what, names in (
            ("classes of the list without images", self.without_images),
            ("other files, ignored", self.ignored),
        ):
            if names:
                lines.append(f"  {what}: {len(names):,}: {some(names, _SHOWN, str)}")
        for name, split in self.splits.items():
            lines.append(
                f"  {name}: {counted(split['samples'], 'sample')} in {counted(split['shards'], 'shard')}, "
                f"about {split['bytes'] / 1e6:,.1f} MB"
            )
        if not self.sample_bytes:
            lines.append(
                "  none of up to 256 images could be read, so that sizes are not known; nothing was written"
            )
            return "\n".join(lines)
        lines.append(
            f"  about {self.sample_bytes:,} bytes a sample, at most {counted(self.samples_per_shard, 'sample')} a shard; "
            "nothing was written"
        )
        return "\n".join(lines)


def preview(
    source: str | Path,
    options: PackOptions | None = None,
    *,
    class_names: Sequence[str] | None = None,
    tree: LabelTree | None = None,
) -> Preview:
    """Plan a run and estimate its bytes from up to 256 images, as packing itself would.

    Raises:
        DataError: as `pack`.
        UsageError: as `pack`.
    """
    options = options or PackOptions()
    listing, plan = plan_source(source, options, class_names, tree)
    per_shard, size = estimate_shard(plan, options, make_job(listing, plan, options, tree))
    splits = {
        split.name: {
            "samples": len(split),
            "shards": len(split.shard_bounds(per_shard)),
            "bytes": round(len(split) * size),
        }
        for split in plan.splits
    }
    few = max(options.min_images, 1)
    dropped = []
    for name, count in plan.dropped:
        reason = f"fewer than {counted(few, 'image')}" if count < few else "not in the class list"
        if name.startswith("val/") and listing.validation:
            reason = "its class is not packed"
        dropped.append((name, count, reason))
    counts: dict[str, int] = {}
    for folder in plan.splits[0].files.folders:
        counts[folder.name] = counts.get(folder.name, 0) + len(folder.files)
    return Preview(
        source=str(listing.root),
        num_files=listing.num_files,
        num_classes=len(plan.class_names),
        kept=tuple(counts.items()),
        dropped=tuple(dropped),
        without_images=plan.without_images,
        ignored=listing.ignored,
        splits=splits,
        sample_bytes=round(size),
        samples_per_shard=per_shard,
        sha256=plan.sha256,
    )
