"""Builds tags: two passes over the source, in parallel, with the same bytes for any number of processes.

    source -> blocks -> [ read, tokens, candidate tags ] -> images of each tag -> vocabulary
           -> blocks -> [ the same, those of the vocabulary ] -> tags.jsonl, tags.tags.json, tags.bad.jsonl, tags.report.json

Memory does not grow with the text: the counts of all tags spill to disk, and 8 bytes an image remain, the hash that
tells images that come twice.
"""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from .classes import class_list_sha256
from .errors import DataError, UsageError
from .files import TEMPORARY_SUFFIX, replace_durably, write_atomically
from .ledger import bad_limit
from .pack_soft import load_how, save_how
from .progress import Progress, progress_bar
from .soft_labels import TAGS, WEIGHTS
from .source_lists import VALIDATION, path_prefix
from .storage import is_remote
from .stored_vocabulary import Vocabulary
from .tags_engine import run_in_order
from .tags_report import TagsReport
from .tags_source import TextSource, open_text_source
from .tags_tasks import (
    BlockStats,
    CountTask,
    TagSettings,
    WriteTask,
    count_block,
    list_line,
    tagger_of,
    write_block,
)
from .tags_text import TAGGERS, TOKENIZERS
from .tags_vocabulary import DocumentCounts, check_cuts, choose_vocabulary

_EXAMPLES = 10


@dataclass(frozen=True)
class TagOptions:
    """How to build tags.

    Attributes:
        vocabulary_size: tags wanted.
        min_images: tags of fewer images are left out.
        max_share: tags of more than this share of all images are left out.
        max_bad: share of bad rows, or of images without their text, that stops the run; ten always may be, with 0 none.
        settings: what decides an image's tags, given the vocabulary.
    """

    vocabulary_size: int = 35_000
    min_images: int = 2
    max_share: float = 0.25
    max_bad: float = 0.001
    settings: TagSettings = field(default_factory=TagSettings)

    def __post_init__(self) -> None:
        check_cuts(self.vocabulary_size, self.min_images, self.max_share)
        if not 0 <= self.max_bad <= 1:
            raise UsageError(f"max_bad: expected a share from 0 to 1, found {self.max_bad}")
        if self.settings.max_tags < 0:
            raise UsageError(f"max_tags: expected 1 or more, or 0 for all, found {self.settings.max_tags}")
        for name, value, known in (
            ("tokenizer", self.settings.tokenizer, TOKENIZERS),
            ("tagger", self.settings.tagger, TAGGERS),
        ):
            if value not in known:
                raise UsageError(f"{name}: expected one of {', '.join(known)}, found {value!r}")


def build_tags(
    source: str | Path,
    output: Path,
    options: TagOptions | None = None,
    *,
    vocabulary: str | Path | None = None,
    workers: int | None = None,
    engine: str = "local",
) -> TagsReport:
    """Tag the images of a source by their own text.

    Args:
        source: list of path, label and text (.csv, .tsv, .jsonl; columns title, description, tags, query), or a WebVision
            folder; a path or any fsspec URL.
        output: the list to write (.jsonl), with a line an image: path, label, tags. Beside it come `.vocabulary.tsv`,
            `.tags.json` (how they were made, for manifests), `.report.json`, `.bad.jsonl` where there is something bad,
            and `.classes.txt` where the source has a class list.
        options: see TagOptions.
        vocabulary: one to use instead of choosing one, as an earlier build wrote it.
        workers: processes; by default one a core.
        engine: `local` or `ray`.

    Raises:
        DataError: too many bad rows, nothing to tag, or a source that changed meanwhile.
        UsageError: a wrong call, or NLTK's data are missing where they are asked for.
        MissingExtraError: NLTK or Ray is asked for and not installed.
    """
    options = options or TagOptions()
    if output.suffix.lower() not in (".jsonl", ".ndjson"):
        raise UsageError(f"{output}: expected a name that ends with .jsonl, so that pack knows it for a list")
    if not output.absolute().parent.is_dir():
        raise UsageError(
            f"{output}: expected a folder that is there, found none. Run: mkdir -p {output.parent}"
        )
    if not is_remote(source) and os.path.realpath(source) == os.path.realpath(output):
        raise UsageError(f"{output}: expected another file than the source")
    settings = options.settings
    tagger_of(settings.tokenizer, settings.tagger)  # what is missing is told before any work
    opened = open_text_source(source)
    settings = replace(settings, path_prefix=path_prefix(opened.folder, output))
    given = Vocabulary.load(vocabulary) if vocabulary is not None else None

    def over_blocks(function: Any, shared: Any, tasks: Iterator[Any]) -> Iterator[Any]:
        return run_in_order(function, shared, tasks, workers=workers, engine=engine)

    with DocumentCounts() as counts:
        with progress_bar(None, "count", "img") as bar:
            first = _count(opened, settings, given is None, counts, over_blocks, bar)
        total = int(first.sizes.sum())
        _check_bad(opened, first, options.max_bad, total)
        repeats = _repeats(first.hashes, first.sizes)
        first.hashes = np.empty(0, np.uint64)
        num_training = total - first.num_validation
        if given is None and repeats:
            tasks = (CountTask(block, repeats[i]) for i, block in enumerate(opened.blocks()) if i in repeats)
            for result in over_blocks(count_block, (opened, settings, True), tasks):
                counts.add({term: -count for term, count in result.images.items()})
                num_training -= len(result.hashes) - result.num_validation
        num_repeats = sum(map(len, repeats.values()))
        chosen = None
        if given is None:
            chosen = choose_vocabulary(
                counts.items(),
                num_images=num_training,
                size=options.vocabulary_size,
                min_images=options.min_images,
                max_share=options.max_share,
            )
    if chosen is not None and not chosen.images:
        raise DataError(
            f"{opened.storage.name}: expected tags, found none: of {chosen.num_terms} terms {chosen.num_too_rare} are in "
            f"fewer than {options.min_images} images and {chosen.num_too_common} in more than a share of "
            f"{options.max_share}; use other --min-images and --max-share"
        )
    if chosen is None:
        assert given is not None
        kept = given
    else:
        kept = Vocabulary(tuple(chosen.images), tuple(chosen.images.values()))
    tags = dict(zip(kept.tags, kept.images, strict=True))
    stats = BlockStats()
    ledger = _beside(output, ".bad.jsonl")
    with (
        _Output(output) as lines,
        _Output(ledger) as bad_lines,
        progress_bar(total, "tag", "img") as bar,
    ):
        tasks = (WriteTask(block, repeats.get(i, ())) for i, block in enumerate(opened.blocks()))
        for result in over_blocks(write_block, (opened, settings, tags), tasks):
            lines.file.write(result.lines)
            bad_lines.file.write(result.ledger)
            stats.add(result.stats)
            bar.update(result.stats.images)
        if stats.images != total - num_repeats:
            raise DataError(
                f"{opened.storage.name}: expected {total - num_repeats:,} images as on the first pass, found "
                f"{stats.images:,}; the source changed meanwhile. Run it again"
            )
        num_validation = 0
        for path, label in opened.validation():
            line = list_line(path, label, settings.path_prefix, split=VALIDATION, tags=[])
            lines.file.write(f"{line}\n".encode("ascii"))
            num_validation += 1
        vocabulary_file = Path(vocabulary) if vocabulary is not None else _beside(output, ".vocabulary.tsv")
        if chosen is not None:
            write_atomically(vocabulary_file, kept.to_bytes())
        if opened.fixed_classes:
            names = "".join(f"{name}\n" for name in opened.fixed_classes)
            write_atomically(_beside(output, ".classes.txt"), names.encode())
        report = TagsReport(
            read=total + first.num_problems,
            images=stats.images,
            duplicates=num_repeats,
            bad_rows=first.num_problems,
            no_text=first.num_textless,
            validation=num_validation,
            fields_cut=stats.fields_cut,
            vocabulary=len(tags),
            chosen=chosen,
            stats=stats,
            vocabulary_file=vocabulary_file.name,
        )
        told = _told(options, given is not None)
        provenance = {
            "source": opened.storage.name,
            "options": told,
            "vocabulary_sha256": kept.sha256,
            **report.to_json(),
        }
        write_atomically(_beside(output, ".report.json"), json.dumps(provenance, indent=1).encode() + b"\n")
        # The name alone, not where it lies: the same source elsewhere makes the same data set.
        name = opened.storage.name.rstrip("/").rpartition("/")[2]
        how = {"source": name, **told, "vocabulary_sha256": kept.sha256, "images": report.images}
        save_how(output, TAGS, how)
        if WEIGHTS in options.settings.keep:
            save_how(output, WEIGHTS, load_how(source, WEIGHTS))
        bad_lines.publish()
        lines.publish()  # last: where the list is, all is
    return report


def _told(options: TagOptions, given: bool) -> dict[str, Any]:
    """What decides the tags of a source, for report and manifest; not where files lie."""
    settings = asdict(options.settings)
    class_names = settings.pop("class_names")
    del settings["path_prefix"]
    settings["parts_of_speech_by"] = (
        "WordNet 3.0" if options.settings.tagger == "wordnet" else "NLTK's perceptron tagger"
    )
    if class_names:
        settings["classes"] = class_list_sha256(class_names)
    if "nltk" in (options.settings.tokenizer, options.settings.tagger):
        settings["nltk"] = version("nltk")
    cuts = {
        "vocabulary_size": options.vocabulary_size,
        "min_images": options.min_images,
        "max_share": options.max_share,
    }
    return {**settings, **({} if given else cuts)}


@dataclass
class _FirstPass:
    """What counting gave besides the counts."""

    sizes: np.ndarray
    hashes: np.ndarray
    num_validation: int
    num_problems: int
    num_textless: int
    examples: list[str]


def _count(
    source: TextSource,
    settings: TagSettings,
    with_tags: bool,
    counts: DocumentCounts,
    over_blocks: Any,
    bar: Progress,
) -> _FirstPass:
    sizes: list[int] = []
    hashes: list[np.ndarray] = []
    first = _FirstPass(np.empty(0, np.int64), np.empty(0, np.uint64), 0, 0, 0, [])
    tasks = (CountTask(block) for block in source.blocks())
    for result in over_blocks(count_block, (source, settings, with_tags), tasks):
        counts.add(result.images)
        sizes.append(len(result.hashes))
        hashes.append(result.hashes)
        first.num_validation += result.num_validation
        first.num_problems += result.num_problems
        first.num_textless += result.num_textless
        first.examples += result.examples[: _EXAMPLES - len(first.examples)]
        bar.update(len(result.hashes))
    first.sizes = np.array(sizes, np.int64)
    first.hashes = np.concatenate([np.empty(0, np.uint64), *hashes])
    return first


def _check_bad(source: TextSource, first: _FirstPass, max_bad: float, total: int) -> None:
    """Refuse a source that is mostly bad, or empty."""
    examples = "\n".join(first.examples)
    num_bad = first.num_problems + first.num_textless
    if num_bad > bad_limit(max_bad, total + first.num_problems):
        raise DataError(
            f"{source.storage.name}: expected at most a share of {max_bad} bad rows and images without their text (ten "
            f"always may be, with 0 none), found {first.num_problems:,} and {first.num_textless:,} of "
            f"{total + first.num_problems:,}; mend them, or raise --max-bad. The first:\n{examples}"
        )
    if not total:
        raise DataError(
            f"{source.storage.name}: expected images with path and label, found none\n{examples}".rstrip()
        )


def _repeats(hashes: np.ndarray, sizes: np.ndarray) -> dict[int, tuple[int, ...]]:
    """Block to the places of its records that stood in the source before.

    Args:
        hashes: uint64, of all records in order.
        sizes: records of each block.
    """
    order = np.argsort(hashes, kind="stable")
    ordered = hashes[order]
    again = order[1:][ordered[1:] == ordered[:-1]]
    starts = np.concatenate([[0], np.cumsum(sizes)])
    repeats: dict[int, list[int]] = {}
    for place in np.sort(again).tolist():
        block = int(np.searchsorted(starts, place, side="right")) - 1
        repeats.setdefault(block, []).append(place - int(starts[block]))
    return {block: tuple(places) for block, places in repeats.items()}


def _beside(output: Path, suffix: str) -> Path:
    return output.with_name(output.stem + suffix)


class _Output:
    """A file that appears whole or not at all; an empty one does not appear, and one of an earlier run goes."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._temporary = path.with_name(f"{path.name}.{secrets.token_hex(4)}{TEMPORARY_SUFFIX}")

    def __enter__(self) -> _Output:
        self.file: BinaryIO = open(self._temporary, "wb")
        return self

    def publish(self) -> None:
        empty = self.file.tell() == 0
        self.file.flush()
        os.fsync(self.file.fileno())
        if empty:
            self._path.unlink(missing_ok=True)
        else:
            replace_durably(self._temporary, self._path)

    def __exit__(self, *_: object) -> None:
        self.file.close()
        self._temporary.unlink(missing_ok=True)
