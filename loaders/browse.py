"""The pages of `softshard inspect --serve`: what the command's page in a file says, for all of a data set, to walk through.

No page lists all samples: shards come by the hundred, samples by the two dozen, from one shard's index or from
`classes.npy`. What a page is asked for is a number or a key of the data set; nothing else is opened.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import numpy as np

from ..shards.errors import UsageError
from ..shards.html import Page
from ..shards.links import Field, Inline, Link, nav_html
from ..shards.shard_keys import find_key, shard_keys
from ..shards.text_limits import shortened
from ..shards.tree_page import tree_page
from .browse_bad import LINES_A_PAGE, add_ledger, add_quarantine
from .browse_parts import add_pages, relatives, thumbs
from .browse_step import MAX_SLOTS, Step, add_step, even_batch
from .inspect_figures import ClassNames
from .inspect_links import BAD, CLASSES, SEARCH, SHARDS, STEP, TREE, Places
from .inspect_lists import add_classes, add_shards, largest_classes
from .inspect_page import DEFAULT_TOP, MAX_STORED_BYTES, augment_text, data_set_facts, missing_parts
from .inspect_sample import add_sample, sample_title
from .inspect_views import InspectOptions
from .inspection import Inspector

SAMPLES_A_PAGE, ROWS_A_PAGE = 24, 100
THUMB_REM = 10
MAX_CROPS = 8
MAX_QUERY = 200
MAX_FOUND_CLASSES = 50
_PLACES = Places(served=True)


class NoSuchPage(UsageError):
    """The data set has no such sample, shard or class."""


class Browser:
    """Draws pages of one data set. Not for several threads.

    Args:
        dataset: as the Loader's: a folder, a URL, somebody else's tars.
        options: seed, augmentation, targets and side shards of what the loader is asked for.
        quarantine: a loader's file of bad samples, or None.
        top: classes of every target.

    Raises:
        UsageError, DataError: see Inspector.
    """

    def __init__(
        self,
        dataset: str | Path,
        options: InspectOptions,
        quarantine: Path | None = None,
        top: int = DEFAULT_TOP,
    ) -> None:
        self._dataset, self.options, self._quarantine, self._top = dataset, options, quarantine, top
        self._inspector = Inspector(dataset, options)
        self._found = self._inspector.found()
        self._names = ClassNames(self._found)
        self._remote = not isinstance(self._inspector.folder, Path) and "://" in str(dataset)

    @property
    def title(self) -> str:
        """What the data set is called."""
        return self._found.dataset

    def close(self) -> None:
        """Let the shards go."""
        self._inspector.close()

    def page(self, title: str, current: str = "") -> Page:
        """An empty page with the links that all have."""
        links = [Link("Overview", "/"), Link("Shards", SHARDS)]
        links += [Link("Classes", CLASSES)] if self._found.manifest.num_classes else []
        links += [Link("Tree", TREE)] if self._found.tree is not None else []
        links += [Link("Batches", STEP), Link("Bad samples", BAD), Link("Search", SEARCH)]
        return Page(title, nav=nav_html(links, "Pages", current))

    def overview(self) -> Page:
        found, manifest = self._found, self._found.manifest
        page = self.page(f"Data set {found.dataset}", "/")
        page.form([Field("q", "Key, number or class")], "Search", SEARCH)
        facts = data_set_facts(found)
        facts["bytes"] = f"{manifest.num_bytes:,}"
        facts["crops"] = f"seed {self.options.seed}; {augment_text(self.options.augment)}"
        facts["targets"] = found.targets
        page.key_values(facts)
        if self._inspector.foreign:
            page.paragraph("Somebody else's tars, without a manifest: no hashes to compare with.")
        elif missing := missing_parts(found):
            page.paragraph("Not in this data set: " + "; ".join(missing) + ".")
        if not self._remote:
            page.heading(f"Epoch {self.options.epoch} begins with")
            self._add_thumbs(page, self._inspector.first_samples()[:12])
        page.heading("Shards")
        add_shards(page, found, 0, 10, _PLACES)
        if manifest.num_classes:
            page.heading("Largest classes")
            add_classes(page, found, self._names, largest_classes(found, 10), _PLACES)
        for heading, content in (("Recipe", manifest.recipe), ("Pixel stack", manifest.pixel_stack)):
            if content:
                page.heading(heading)
                page.command(shortened(json.dumps(dict(content), indent=1, ensure_ascii=False), 20_000))
        return page

    def shards(self, number: int) -> Page:
        page = self.page("Shards", SHARDS)
        total = len(self._found.manifest.shards)
        first = self._first(number, ROWS_A_PAGE, total)
        add_shards(page, self._found, first, ROWS_A_PAGE, _PLACES)
        add_pages(page, number, ROWS_A_PAGE, total, lambda n: f"{SHARDS}?page={n}")
        return page

    def shard(self, number: int, page_number: int, pictures: bool) -> Page:
        """A shard's samples; behind a URL, pictures are drawn only when asked for, since they fetch the shard."""
        records = self._found.manifest.shards
        self._check(number, len(records), "shard")
        record = records[number]
        page = self.page(f"Shard {record.name}")
        first = self._first(page_number, SAMPLES_A_PAGE, record.samples)
        start = int(self._inspector.starts[number])
        page.key_values(
            {
                "samples": f"{record.samples:,}, numbers {start:,} to {start + record.samples - 1:,}",
                "bytes": f"{record.bytes:,}",
                "SHA-256 of the index" if self._inspector.foreign else "SHA-256": record.sha256,
                "classes": f"{len(np.unique(self._inspector.classes[start : start + record.samples])):,}",
            }
        )
        neighbours = [Link("Shard before", f"/shard/{number - 1}")] if number else []
        neighbours += [Link("Shard after", f"/shard/{number + 1}")] if number + 1 < len(records) else []
        if neighbours:
            page.links(neighbours, "Neighbours")
        last = min(first + SAMPLES_A_PAGE, record.samples)
        address = f"/shard/{number}?" + ("pictures=1&" if pictures and self._remote else "")
        if pictures or not self._remote:
            self._add_thumbs(page, range(start + first, start + last))
        else:
            page.paragraph(
                (
                    "Its pictures are ",
                    Link(f"fetched, {record.bytes:,} bytes", f"/shard/{number}?pictures=1"),
                    ".",
                )
            )
            self._add_keys(page, number, range(first, last))
        add_pages(page, page_number, SAMPLES_A_PAGE, record.samples, lambda n: f"{address}page={n}")
        return page

    def classes(self, number: int, by_name: bool) -> Page:
        page = self.page("Classes", CLASSES)
        total = self._found.manifest.num_classes
        first = self._first(number, ROWS_A_PAGE, total)
        links = [Link("By samples", CLASSES), Link("By number", f"{CLASSES}?order=number")]
        page.links(links, "Order")
        order = np.arange(total) if by_name else largest_classes(self._found, total)
        shown = order[first : first + ROWS_A_PAGE]
        add_classes(page, self._found, self._names, shown, _PLACES, first)
        extra = "order=number&" if by_name else ""
        add_pages(page, number, ROWS_A_PAGE, total, lambda n: f"{CLASSES}?{extra}page={n}")
        return page

    def label(self, index: int, page_number: int) -> Page:
        """A class: its place in the tree, and its samples."""
        self._check(index, self._found.manifest.num_classes, "class")
        page = self.page(f"Class {self._names.title(index)}")
        count = int(self._found.class_counts[index])
        facts: dict[str, Inline] = {"class": index, "samples": f"{count:,}"}
        if self._found.tree is not None and self._names.tree_fits:
            facts |= relatives(self._found.tree, index, self._names, _PLACES)
        page.key_values(facts)
        numbers = np.flatnonzero(self._inspector.classes == index)
        first = self._first(page_number, SAMPLES_A_PAGE, len(numbers))
        shown = numbers[first : first + SAMPLES_A_PAGE].tolist()
        if not shown:
            page.paragraph("No sample has this class as its own.")
        elif self._remote:
            page.paragraph("Pictures are fetched with their shards, one sample or one shard at a time.")
            self._add_numbers(page, shown)
        else:
            self._add_thumbs(page, shown)
        add_pages(page, page_number, SAMPLES_A_PAGE, count, lambda n: f"/class/{index}?page={n}")
        return page

    def tree(self) -> Page:
        if self._found.tree is None:
            raise NoSuchPage("inspect: expected a label tree, found none in this data set")
        drawn, left_out = tree_page(self._found.tree)
        drawn.nav = self.page("", TREE).nav
        if left_out:
            drawn.paragraph(f"{left_out:,} classes are left out; each class's own page has its path.")
        return drawn

    def sample(self, number: int, epoch: int, num_crops: int) -> Page:
        self._check(number, self._found.manifest.num_samples, "sample")
        if not 1 <= num_crops <= MAX_CROPS:
            raise UsageError(f"inspect: expected crops of 1 to {MAX_CROPS} epochs, found {num_crops}")
        # Checks the numbers, and how much is drawn.
        replace(self.options, keys=(), num_samples=1, epoch=epoch, num_crops=num_crops)
        (view,) = self._inspector.look_at_all([number], epoch, num_crops)
        page = self.page(sample_title(view))
        neighbours = [Link("Sample before", f"/sample/{number - 1}")] if number else []
        if number + 1 < self._found.manifest.num_samples:
            neighbours.append(Link("Sample after", f"/sample/{number + 1}"))
        page.links(neighbours, "Neighbours")
        found = self._inspector.found([view])
        budget = MAX_STORED_BYTES
        add_sample(page, found, view, self._names, top=self._top, budget=budget, places=_PLACES)
        page.heading("Crops of other epochs", 3)
        fields = [
            Field("epoch", "First epoch", str(epoch), True),
            Field("crops", "Epochs", str(num_crops), True),
        ]
        page.form(fields, "Show", f"/sample/{number}")
        return page

    def step(self, asked: Step | None) -> Page:
        asked = asked or Step(batch_size=even_batch(self._found.manifest.num_samples))
        page = self.page(f"Epoch {asked.epoch}, step {asked.step}", STEP)
        page.form(
            [
                Field("epoch", "Epoch", str(asked.epoch), True),
                Field("step", "Step", str(asked.step), True),
                Field("batch", "Global batch", str(asked.batch_size), True),
                Field("lanes", "Lanes", str(asked.lanes), True),
                Field("window", "Window", str(asked.window), True),
            ],
            "Show",
            STEP,
        )
        page.paragraph(
            f"What a Loader with seed {self.options.seed} makes of this batch; "
            f"{augment_text(self.options.augment)}. Left the stored image with the window that is cut, right what the "
            "model gets; bars are the target's largest entries, ✓ marks the image's own class."
        )
        address = (
            f"{STEP}?epoch={asked.epoch}&batch={asked.batch_size}&lanes={asked.lanes}&window={asked.window}"
        )
        links = [Link("Step before", f"{address}&step={asked.step - 1}")] if asked.step else []
        page.links([*links, Link("Step after", f"{address}&step={asked.step + 1}")], "Steps")
        add_step(
            page,
            self._dataset,
            self.options,
            self._found.targets,
            asked,
            self._names,
            top=self._top,
            places=_PLACES,
        )
        if asked.num_parts > 1:
            first = asked.part * asked.slots
            page.paragraph(f"Slots {first} to {first + asked.slots - 1} of {asked.batch_size:,}.")
            near = range(max(0, asked.part - 3), min(asked.num_parts, asked.part + 4))
            links = [Link(f"From {n * asked.slots}", f"{address}&step={asked.step}&part={n}") for n in near]
            page.links(links, f"Parts of {MAX_SLOTS} slots at most")
        return page

    def bad(self, number: int) -> Page:
        """The quarantine file, and the ledger of what could not be packed."""
        page = self.page("Bad samples", BAD)
        first = self._first(number, LINES_A_PAGE, 10**9)
        num_samples = self._found.manifest.num_samples
        folder = None if self._inspector.foreign else self._inspector.folder
        more = add_quarantine(page, self._quarantine, first, num_samples, _PLACES)
        more |= add_ledger(page, folder, first, num_samples, _PLACES)
        links = [Link("Lines before", f"{BAD}?page={number - 1}")] if number else []
        links += [Link("More lines", f"{BAD}?page={number + 1}")] if more else []
        if links:
            page.links(links, "More")
        return page

    def search(self, query: str) -> Page:
        """Samples by key or number, classes by a part of their names."""
        page = self.page("Search", SEARCH)
        page.form([Field("q", "Key, number or class", query)], "Search", SEARCH)
        if not query:
            page.paragraph("A sample's key, its number in the data set, or part of a class's name.")
            return page
        if len(query) > MAX_QUERY:
            raise UsageError(
                f"inspect: expected at most {MAX_QUERY} characters to search for, found {len(query)}"
            )
        samples = self._search_samples(query)
        page.heading("Samples")
        if samples:
            self._add_numbers(page, samples)
        else:
            page.paragraph(f"No sample has the key {query!r}.")
        names = self._found.manifest.class_names
        classes = [i for i in range(len(names)) if self._names.has(i, query)]
        if names:
            page.heading("Classes")
            if classes:
                add_classes(page, self._found, self._names, classes[:MAX_FOUND_CLASSES], _PLACES, None)
            page.paragraph(f"Classes with {query!r} in their names: {len(classes):,}.")
        return page

    def _search_samples(self, query: str) -> list[int]:
        found = []
        if query.isascii() and query.isdigit() and len(query) < 19:
            found += [int(query)] if int(query) < self._found.manifest.num_samples else []
        if self._inspector.foreign:
            with suppress(UsageError):
                found += self._inspector.find_keys([query])
        elif (place := find_key(self._inspector.folder, self._found.manifest, query)) is not None:
            found.append(int(self._inspector.starts[place[0]]) + place[1])
        return list(dict.fromkeys(found))

    def _add_keys(self, page: Page, shard: int, inside: range) -> None:
        """Keys from the shard's index alone."""
        keys = shard_keys(self._inspector.folder, self._found.manifest, shard)
        start = int(self._inspector.starts[shard])
        rows = []
        for i in inside:
            key = keys[i].decode("ascii", "replace")
            rows.append([_PLACES.sample(start + i, key), self._class_of(start + i)])
        page.table(["sample", "class"], rows)

    def _add_numbers(self, page: Page, numbers: Sequence[int]) -> None:
        rows = []
        for number in numbers:
            shard, _ = self._inspector.place_of(number)
            name = self._found.manifest.shards[shard].name
            rows.append(
                [
                    _PLACES.sample(number, f"sample {number:,}"),
                    self._class_of(number),
                    _PLACES.shard(shard, name),
                ]
            )
        page.table(["sample", "class", "shard"], rows)

    def _class_of(self, number: int) -> Inline:
        index = int(self._inspector.classes[number])
        return _PLACES.label(index, self._names.title(index)) if index >= 0 else "none"

    def _add_thumbs(self, page: Page, numbers: Sequence[int]) -> None:
        page.figures(thumbs(self._inspector, numbers, self._names, _PLACES), card_rem=THUMB_REM)

    def _check(self, number: int, total: int, what: str) -> None:
        if number >= total:
            raise NoSuchPage(f"inspect: expected a {what} from 0 to {total - 1}, found {number}")

    def _first(self, number: int, per_page: int, total: int) -> int:
        """Where a page begins.

        Raises:
            NoSuchPage: behind the end.
        """
        if number and number * per_page >= total:
            raise NoSuchPage(
                f"inspect: expected a page from 0 to {max(0, total - 1) // per_page}, found {number}"
            )
        return number * per_page
