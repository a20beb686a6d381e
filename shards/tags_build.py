"""Builds tags: two passes over the source, in parallel, with the same bytes for any number of processes.

    source -> blocks -> [ read, tokens, candidate tags ] -> images of each tag -> vocabulary
           -> blocks -> [ the same, those of the vocabulary ] -> tags.jsonl, tags.tags.json, tags.bad.jsonl, tags.report.json

Memory does not grow with the text: the counts of all tags spill to disk, and 8 bytes an image remain, the hash that
tells images that come twice. What is done is kept (tags_work.py), so that a build that was killed goes on.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from typing import Any

from .classes import class_list_sha256
from .destination import Destination, open_destination
from .errors import DataError, UsageError, check_choice, check_share
from .files import TEMPORARY_SUFFIX, canonical_json, sha256_hex, split_url
from .ledger import bad_limit
from .pack_soft import load_how, save_how
from .progress import Progress, progress_bar
from .soft_labels import TAGS, WEIGHTS
from .source_lists import VALIDATION, path_prefix
from .storage import is_remote, public_name
from .stored_vocabulary import Vocabulary
from .tags_engine import run_in_order
from .tags_report import TagsReport
from .tags_source import BLOCK_RECORDS, TextSource, open_text_source
from .tags_tasks import CountTask, TagSettings, WriteTask, count_block, list_line, tagger_of, write_block
from .tags_text import TAGGERS, TOKENIZERS
from .tags_vocabulary import Chosen, DocumentCounts, check_cuts, choose_vocabulary
from .tags_work import BLOCKS_KEPT, WORK_SUFFIX, Counted, TagsWork, WrittenLines, hold_work


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
        check_share("max_bad", self.max_bad)
        if self.settings.max_tags < 0:
            raise UsageError(f"max_tags: expected 1 or more, or 0 for all, found {self.settings.max_tags}")
        for name, value, known in (
            ("tokenizer", self.settings.tokenizer, TOKENIZERS),
            ("tagger", self.settings.tagger, TAGGERS),
        ):
            check_choice(name, value, known)


def build_tags(
    source: str | Path,
    output: str | Path,
    options: TagOptions | None = None,
    *,
    vocabulary: str | Path | None = None,
    workers: int | None = None,
    engine: str = "local",
    work: Path | None = None,
) -> TagsReport:
    """Tag the images of a source by their own text.

    Args:
        source: list of path, label and text (.csv, .tsv, .jsonl; columns title, description, tags, query), or a WebVision
            folder; a path or any fsspec URL.
        output: the list to write (.jsonl), a path or the URL of an object in a bucket, with a line an image: path, label,
            tags. Beside it come `.vocabulary.tsv`, `.tags.json` (how they were made, for manifests), `.report.json`,
            `.bad.jsonl` where there is something bad, and `.classes.txt` where the source has a class list. It appears
            last, whole or not at all; an earlier list of that name goes before anything beside it changes, so that where
            a list is, all beside it is of that list.
        options: see TagOptions.
        vocabulary: one to use instead of choosing one, as an earlier build wrote it.
        workers: processes; by default one a core.
        engine: `local` or `ray`.
        work: folder that keeps what is done, so that the same call goes on after a kill; by default one beside a local
            output, and for a bucket none that stays.

    Raises:
        DataError: too many bad rows, nothing to tag, or a source that changed meanwhile.
        UsageError: a wrong call, another build of the same output, or NLTK's data are missing where they are asked for.
        MissingExtraError: NLTK or Ray is asked for and not installed.
    """
    options = options or TagOptions()
    destination, name = _destination_of(output, source)
    settings = options.settings
    tagger_of(settings.tokenizer, settings.tagger)  # what is missing is told before any work
    opened = open_text_source(source)
    settings = replace(settings, path_prefix=_prefix(opened, output, destination))
    given = Vocabulary.load(vocabulary) if vocabulary is not None else None
    if work is None and not destination.remote:
        work = Path(destination.at(_beside(name, WORK_SUFFIX)))
    weights_how: dict[str, Any] = {}
    if WEIGHTS in settings.keep and not opened.webvision:
        weights_how = load_how(source, WEIGHTS)
    with hold_work(work, _key(opened, settings, given is None)) as kept:
        build = _Build(opened, settings, options, kept, workers, engine)
        first, repeats, chosen = build.count(given)
        tags = given
        if tags is None:
            assert chosen is not None
            tags = Vocabulary(tuple(chosen.images), tuple(chosen.images.values()))
        total, num_repeats = first.num_images, sum(map(len, repeats.values()))
        with kept.writing(f"{tags.sha256} {total} {num_repeats}") as written:
            build.write(tags, repeats, written, total)
            if written.stats.images != total - num_repeats:
                kept.clear()  # of a source that is no more; its size and time need not tell
                raise DataError(
                    f"{opened.storage.name}: expected {total - num_repeats:,} images as on the first pass, found "
                    f"{written.stats.images:,}; the source changed meanwhile. Run it again"
                )
            num_validation = 0
            for path, label in opened.validation():
                line = list_line(path, label, settings.path_prefix, split=VALIDATION, tags=[])
                written.lines.write(f"{line}\n".encode("ascii"))
                num_validation += 1
            vocabulary_name = _beside(name, ".vocabulary.tsv")
            destination.remove(name)  # an earlier one, before what is beside it is of another
            if given is None:
                destination.write(vocabulary_name, tags.to_bytes())
            else:
                vocabulary_name = split_url(public_name(str(vocabulary)))[1]
            if opened.fixed_classes:
                names = "".join(f"{name}\n" for name in opened.fixed_classes)
                destination.write(_beside(name, ".classes.txt"), names.encode())
            report = TagsReport(
                read=total + first.num_problems,
                images=written.stats.images,
                duplicates=num_repeats,
                bad_rows=first.num_problems,
                no_text=first.num_textless,
                validation=num_validation,
                fields_cut=written.stats.fields_cut,
                vocabulary=len(tags),
                chosen=chosen,
                stats=written.stats,
                vocabulary_file=vocabulary_name,
            )
            told = _told(options, given is not None)
            provenance = {
                "source": opened.storage.name,
                "options": told,
                "vocabulary_sha256": tags.sha256,
                **report.to_json(),
            }
            # The name alone, not where it lies: the same source elsewhere makes the same data set.
            source_name = opened.storage.name.rstrip("/").rpartition("/")[2]
            how = {"source": source_name, **told, "vocabulary_sha256": tags.sha256, "images": report.images}
            save_how(output, TAGS, how)
            if WEIGHTS in settings.keep or not _is_beside_source(opened, destination, name):
                save_how(output, WEIGHTS, weights_how)
            content = json.dumps(provenance, indent=1).encode() + b"\n"
            destination.write(_beside(name, ".report.json"), content)
            # The list last: where it is, all is.
            written.publish(destination, name, _beside(name, ".bad.jsonl"))
    return report


def _destination_of(output: str | Path, source: str | Path) -> tuple[Destination, str]:
    """Where the list is written, and its name there.

    Raises:
        UsageError: no name of a list, a folder or bucket that is not there, or the source itself.
    """
    shown = public_name(str(output))
    folder, name = split_url(str(output))
    if not name.lower().endswith((".jsonl", ".ndjson")):
        raise UsageError(f"{shown}: expected a name that ends with .jsonl, so that pack knows it for a list")
    destination = open_destination(folder)
    if destination.remote:
        same = str(source) == str(output)
    else:
        if not Path(destination.at("")).absolute().is_dir():
            raise UsageError(f"{shown}: expected a folder that is there, found none. Run: mkdir -p {folder}")
        same = not is_remote(source) and os.path.realpath(source) == os.path.realpath(destination.at(name))
    if same:
        raise UsageError(f"{shown}: expected another file than the source")
    if destination.remote:  # a bucket that is not there, or only read from, is told before any work
        probe = f"{name}{TEMPORARY_SUFFIX}"
        destination.write(probe, b"")
        destination.remove(probe)
    return destination, name


def _prefix(source: TextSource, output: str | Path, destination: Destination) -> str:
    """What leads from the new list to the source's images.

    In a bucket a list cannot name files of this machine: those of a local source keep their paths, as of images that lie
    beside the list there as they do here.
    """
    if not destination.remote:
        return path_prefix(source.folder, Path(destination.at(split_url(str(output))[1])))
    if not source.folder.remote or public_name(source.folder.root).rstrip("/") == destination.name:
        return ""
    return f"{public_name(source.folder.root).rstrip('/')}/"


def _key(source: TextSource, settings: TagSettings, with_tags: bool) -> str | None:
    """What kept work is of; None where the source has no time or tag that tells whether it changed."""
    stamp = source.stamp()
    if stamp is None:
        return None
    of = [version("softshard"), stamp, asdict(settings), with_tags, BLOCKS_KEPT, BLOCK_RECORDS]
    of.append(_nltk_version(settings))
    return sha256_hex(canonical_json(of))


def _nltk_version(settings: TagSettings) -> str | None:
    """Of NLTK where it decides tags, else None."""
    return version("nltk") if "nltk" in (settings.tokenizer, settings.tagger) else None


def _is_beside_source(source: TextSource, destination: Destination, name: str) -> bool:
    """Whether what belongs beside the new list belongs beside the source, too, as of web.csv and web.jsonl."""
    if source.webvision or source.folder.remote != destination.remote:
        return False
    if destination.remote:
        is_same_folder = public_name(source.folder.root).rstrip("/") == destination.name
    else:
        is_same_folder = os.path.realpath(source.folder.root) == os.path.realpath(destination.at(""))
    return is_same_folder and _beside(split_url(source.storage.name)[1], "") == _beside(name, "")


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
    if (nltk := _nltk_version(options.settings)) is not None:
        settings["nltk"] = nltk
    cuts = {
        "vocabulary_size": options.vocabulary_size,
        "min_images": options.min_images,
        "max_share": options.max_share,
    }
    return {**settings, **({} if given else cuts)}


class _Build:
    """Both passes over one source.

    Args:
        source: to read.
        settings: what decides an image's tags, given the vocabulary.
        options: see TagOptions.
        work: what earlier runs have done.
        workers: see `build_tags`.
        engine: see `build_tags`.
    """

    def __init__(
        self,
        source: TextSource,
        settings: TagSettings,
        options: TagOptions,
        work: TagsWork,
        workers: int | None,
        engine: str,
    ) -> None:
        self._source, self._settings, self._options, self._work = source, settings, options, work
        self._workers, self._engine = workers, engine

    def _over_blocks(self, function: Any, last: Any, tasks: Iterator[Any]) -> Iterator[Any]:
        shared = (self._source, self._settings, last)
        return run_in_order(function, shared, tasks, workers=self._workers, engine=self._engine)

    def count(self, given: Vocabulary | None) -> tuple[Counted, dict[int, tuple[int, ...]], Chosen | None]:
        """What counting gave, see `Counted.repeats`, and the vocabulary unless one is given."""
        options, source = self._options, self._source
        with DocumentCounts() as counts:
            with progress_bar(None, "count", "img") as bar:
                first = self._count_all(given is None, counts, bar)
            try:
                _check_bad(source, first, options.max_bad, first.num_images)
            except DataError:
                if source.webvision and first.num_textless:
                    self._work.clear()  # texts that are unpacked or mended now must not count as missing again
                raise
            repeats = first.repeats()
            first.hashes.clear()
            num_training = first.num_images - first.num_validation
            if given is not None:
                return first, repeats, None
            if repeats:
                tasks = (
                    CountTask(block, repeats[i]) for i, block in enumerate(source.blocks()) if i in repeats
                )
                for result in self._over_blocks(count_block, True, tasks):
                    counts.add({term: -count for term, count in result.images.items()})
                    num_training -= len(result.hashes) - result.num_validation
            chosen = choose_vocabulary(
                counts.items(),
                num_images=num_training,
                size=options.vocabulary_size,
                min_images=options.min_images,
                max_share=options.max_share,
            )
        if not chosen.images:
            raise DataError(
                f"{source.storage.name}: expected tags, found none: of {chosen.num_terms} terms {chosen.num_too_rare} are "
                f"in fewer than {options.min_images} images and {chosen.num_too_common} in more than a share of "
                f"{options.max_share}; use other --min-images and --max-share"
            )
        return first, repeats, chosen

    def _count_all(self, with_tags: bool, counts: DocumentCounts, bar: Progress) -> Counted:
        first, number = Counted(), 0
        for part in self._work.counted():
            counts.add(part.images)
            first.add_part(part)
            bar.update(part.num_images)
            number += 1
        part = Counted()
        tasks = (CountTask(block) for block in islice(self._source.blocks(), len(first.sizes), None))
        for result in self._over_blocks(count_block, with_tags, tasks):
            part.add_block(result)
            bar.update(len(result.hashes))
            if len(part.sizes) == BLOCKS_KEPT:
                self._work.keep_counted(number, part)
                counts.add(part.images)
                first.add_part(part)
                part, number = Counted(), number + 1
        counts.add(part.images)
        first.add_part(part)
        return first

    def write(
        self, vocabulary: Vocabulary, repeats: dict[int, tuple[int, ...]], written: WrittenLines, total: int
    ) -> None:
        """Write the lines that an earlier run has not written."""
        tags = dict(zip(vocabulary.tags, vocabulary.images, strict=True))
        blocks = islice(enumerate(self._source.blocks()), written.num_blocks, None)
        tasks = (WriteTask(block, repeats.get(i, ())) for i, block in blocks)
        with progress_bar(total, "tag", "img", written.stats.images) as bar:
            for result in self._over_blocks(write_block, tags, tasks):
                written.add(result)
                bar.update(result.stats.images)


def _check_bad(source: TextSource, first: Counted, max_bad: float, total: int) -> None:
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


def _beside(name: str, suffix: str) -> str:
    """The name of a file beside the list."""
    return name.rpartition(".")[0] + suffix
