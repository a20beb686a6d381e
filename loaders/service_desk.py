"""A server's work without the network: recipes are opened, and batches asked for.

recipe -> RecipeMaker (one a recipe, least recently used closed first) -> RecentItems (one for all) -> Made
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..shards.errors import UsageError
from .cache import Cache
from .data_set import open_data_set
from .decode import usable_device
from .mixture import Mixture
from .service_cache import CacheCounts, RecentItems
from .service_limits import Limits, check_size, check_targets, target_bytes
from .service_maker import CLOSE_PATIENCE_S, Made, Place, PlaceLoader, RecipeMaker
from .service_memory import SegmentStore
from .service_protocol import BUSY, UNKNOWN_RECIPE, Refusal, Ticket
from .service_recipe import BatchRecipe, NamedMixture
from .target_modes import pools_maps

_POLL_S = 0.5  # between two looks whether a waiting client is still there


@dataclass(frozen=True)
class ServedSet:
    """A data set that a server was started with.

    Attributes:
        path: folder or URL.
        side: folder of side shards whose label maps are joined to its samples, where a recipe pools them.
    """

    path: str | Path
    side: str | None = None


class Desk:
    """Takes recipes and gives batches. For several threads.

    Args:
        data_sets: by the names that clients call them.
        device: that decodes.
        num_threads: of each recipe's decoder.
        cache: of shards that are behind a URL.
        limits: what clients may have.

    Raises:
        UsageError: no such device, or no data sets.
        DataError: one of them is incomplete, damaged or of a newer version.
    """

    def __init__(
        self,
        data_sets: Mapping[str, ServedSet],
        *,
        device: str = "cpu",
        num_threads: int | None = None,
        cache: Cache | None = None,
        limits: Limits | None = None,
    ) -> None:
        self.data_sets, self.device = dict(data_sets), usable_device(device)
        self.limits = limits or Limits()
        self._num_threads, self._cache = num_threads, cache
        if not self.data_sets:
            raise UsageError("serve: expected a data set, found none")
        # Opened now, so that what is wrong with them is said to whoever starts the server.
        self.fingerprints = {
            name: open_data_set(served.path, cache).manifest.fingerprint
            for name, served in self.data_sets.items()
        }
        self._lock = threading.Lock()
        self._opening: dict[str, threading.Lock] = {}
        self._makers: OrderedDict[str, tuple[RecipeMaker, float]] = OrderedDict()
        self._num_opening = 0  # recipes for which there is room, and that are not in `_makers` yet
        self._recent: RecentItems[Made] = RecentItems(self.limits.cache_bytes)
        # Batches are made in it, so that one that is kept may be in the way of a new one.
        self.segments = SegmentStore(self.limits.memory_bytes, self._recent.drop_oldest)
        self._images = self._bad = 0
        self._closed = False

    def open(self, content: Any) -> dict[str, Any]:
        """Open a recipe; says what a loader with its options must know.

        Raises:
            UsageError: not a recipe, one that does not fit the data set, or beyond the limits.
            DataError: the data set is damaged.
            Refusal: as many recipes as are allowed are in use.
        """
        recipe = BatchRecipe.from_json(content)
        loader = self._maker_of(recipe).loader
        source = loader.source
        return {
            "recipe": recipe.fingerprint,
            "dataset": self._name_of(recipe),
            "fingerprint": loader.fingerprint,
            "num_samples": loader.num_samples,
            "labels": source.labels_fingerprint(),
            "mixture": source.mixture_state(),
            "class_names": list(loader.class_names),
            "tree": None if loader.tree is None else loader.tree.to_json(),
            "manifest": loader.manifest.to_json(),
        }

    def count_classes(self, recipe: str) -> list[int]:
        """Draws of each class in an epoch.

        Raises:
            Refusal: a recipe that is not open.
            DataError: the file of classes is missing or damaged.
        """
        return self._opened(recipe).loader.count_classes().tolist()

    def vocabulary(self, recipe: str) -> dict[str, Any]:
        """What tags mean: `tags` and `images`, see Vocabulary.

        Raises:
            Refusal: a recipe that is not open.
            UsageError: samples have no tags.
            DataError: the file is damaged, or another one than the manifest says.
        """
        loader = self._opened(recipe).loader
        if (vocabulary := loader.vocabulary) is None:
            raise UsageError(f"{loader.dataset}: expected samples with tags, found none")
        return {"tags": vocabulary.tags, "images": vocabulary.images}

    def batch(self, ticket: Ticket, is_gone: Callable[[], bool] = lambda: False) -> Made:
        """The batch of a ticket; waits for it.

        Args:
            ticket: of a client.
            is_gone: whether the client has given up.

        Raises:
            Refusal: a recipe that is not open; nobody waits for the answer any more.
            UsageError: a place that there is not.
            DataError: it cannot be made.
        """
        maker, place = self._opened(ticket.recipe), Place(ticket.epoch, ticket.taken, ticket.rank)
        maker.loader.check(place)
        return wait_for(self._recent.ask((ticket.recipe, place), lambda: self._submit(maker, place)), is_gone)

    def _submit(self, maker: RecipeMaker, place: Place) -> Future[Made]:
        future = maker.submit(place)
        future.add_done_callback(self._count)
        return future

    def _count(self, done: Future[Made]) -> None:
        if not done.cancelled() and done.exception() is None:
            with self._lock:
                self._images += done.result().images
                self._bad += done.result().num_bad

    def _opened(self, recipe: str) -> RecipeMaker:
        with self._lock:
            found = self._makers.get(recipe)
            if found is None:
                raise Refusal(
                    UNKNOWN_RECIPE, f"recipe {recipe:.12}: expected one that is open here, found none"
                )
            self._makers[recipe] = found[0], time.monotonic()
            self._makers.move_to_end(recipe)
            return found[0]

    def _maker_of(self, recipe: BatchRecipe) -> RecipeMaker:
        check_size(recipe, self.limits)
        with self._lock:
            opening = self._opening.setdefault(recipe.fingerprint, threading.Lock())
        with opening:  # several trainers of a sweep open the same at once: it is opened once
            try:
                return self._opened(recipe.fingerprint)
            except Refusal:
                return self._add(recipe)
            finally:
                with self._lock:
                    self._opening.pop(recipe.fingerprint, None)

    def _add(self, recipe: BatchRecipe) -> RecipeMaker:
        """Open a recipe that is not open."""
        closed = self._make_room()
        try:
            for each in closed:  # before more memory is taken
                each.close()
            maker = RecipeMaker(self._open_loader(recipe))
        except BaseException:
            with self._lock:
                self._num_opening -= 1
            raise
        with self._lock:
            self._num_opening -= 1
            # Who came while the lock of this recipe was given back may have opened it, too.
            there = self._makers.get(recipe.fingerprint)
            if there is None and not self._closed:
                self._makers[recipe.fingerprint] = maker, time.monotonic()
                return maker
        maker.close()
        if there is None:
            raise Refusal(BUSY, "the server is stopping")
        return there[0]

    def _make_room(self) -> list[RecipeMaker]:
        """Take the room of a recipe that is about to be opened, from those used least recently; returns those, to be closed.

        Raises:
            Refusal: all are in use.
        """
        closed, limit = [], self.limits.recipes
        with self._lock:
            oldest, now = iter(self._makers.values()), time.monotonic()
            while len(self._makers) - len(closed) + self._num_opening >= limit:
                maker, used = next(oldest, (None, now))  # None: the others are only being opened
                idle_s = now - used
                if maker is None or idle_s < self.limits.recipe_idle_s or maker.num_waiting:
                    raise Refusal(
                        BUSY,
                        f"expected at most {limit} recipes in use, found another. Recipes differ by seed, batch size, world "
                        "size, crops and so on; share one, or start the server with a larger --max-recipes",
                        retry_s=max(0.1, self.limits.recipe_idle_s - idle_s),
                    )
                closed.append(maker)
            for _ in closed:
                self._makers.popitem(last=False)
            self._num_opening += 1
        return closed

    def _open_loader(self, recipe: BatchRecipe) -> PlaceLoader:
        dataset, side = self._find(recipe)
        loader = PlaceLoader(
            dataset,
            self.segments,
            **recipe.options(),
            device=self.device,
            side=side if pools_maps(recipe.targets) else None,
            num_threads=self._num_threads,
            cache=self._cache,
        )
        try:
            loader.target_bytes = target_bytes(recipe, loader)
            check_targets(loader.target_bytes, self.limits)
        except BaseException:
            loader.close()
            raise
        return loader

    def _find(self, recipe: BatchRecipe) -> tuple[str | Path | Mixture, str | None]:
        """The data set, or mixture, that a recipe names, and its side shards."""
        wanted = recipe.dataset
        if wanted is None:
            if len(self.data_sets) > 1:
                raise UsageError(f"recipe: expected the name of a data set, found none. {self._names()}")
            (found,) = self.data_sets.values()
            return found.path, found.side
        names = wanted.names if isinstance(wanted, NamedMixture) else (wanted,)
        unknown = [name for name in names if name not in self.data_sets]
        if unknown:
            raise UsageError(
                f"recipe: expected the name of a data set, found {unknown[0]!r:.80}. {self._names()}"
            )
        if not isinstance(wanted, NamedMixture):
            return self.data_sets[wanted].path, self.data_sets[wanted].side
        paths = [self.data_sets[name].path for name in names]
        return Mixture(dict(zip(paths, wanted.weights, strict=False)), wanted.epoch_samples), None

    def _name_of(self, recipe: BatchRecipe) -> str:
        """What clients call it in their messages; where it lies is the server's business."""
        wanted = next(iter(self.data_sets)) if recipe.dataset is None else recipe.dataset
        return " + ".join(wanted.names) if isinstance(wanted, NamedMixture) else wanted

    def _names(self) -> str:
        return f"This server has {', '.join(sorted(self.data_sets))}"

    def counts(self) -> CacheCounts:
        """Of the cache of batches."""
        return self._recent.counts()

    def totals(self) -> dict[str, int]:
        """Open recipes, batches that wait, images made, bad samples met."""
        with self._lock:
            makers = [maker for maker, _ in self._makers.values()]
            images, bad = self._images, self._bad
        waiting = sum(maker.num_waiting for maker in makers)
        return {"recipes": len(makers), "waiting": waiting, "images": images, "bad_samples": bad}

    def stop(self) -> None:
        """Begin no batch more; returns at once. Who waits for one that was not begun gets a CancelledError."""
        with self._lock:
            self._closed = True
            makers = [maker for maker, _ in self._makers.values()]
        for maker in makers:
            maker.stop()

    def close(self, patience_s: float = CLOSE_PATIENCE_S) -> bool:
        """Stop making batches, and let everything go; whether what was under way was done within so many seconds."""
        self.stop()
        with self._lock:
            makers, self._makers = [maker for maker, _ in self._makers.values()], OrderedDict()
        give_up = time.monotonic() + patience_s
        done = [maker.close(max(0.0, give_up - time.monotonic())) for maker in makers]
        self._recent.clear()
        return all(done)


def wait_for(future: Future[Made], is_gone: Callable[[], bool]) -> Made:
    """A batch that is being made.

    Raises:
        Refusal: the client has gone.
        Exception: what making it came to.
    """
    while True:
        try:
            return future.result(timeout=_POLL_S)
        except FutureTimeout:
            if future.done():  # just now, or with a time-out of its own
                return future.result()
            if is_gone():
                raise Refusal(BUSY, "the client has gone") from None
