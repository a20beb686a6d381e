"""Where the pages of `softshard inspect --serve` are; in a file the same words lead nowhere."""

from __future__ import annotations

from dataclasses import dataclass

from ..shards.links import Inline, Link

SHARDS, CLASSES, TREE, STEP, BAD, SEARCH = "/shards", "/classes", "/tree", "/step", "/bad", "/search"


@dataclass(frozen=True)
class Places:
    """Links between pages.

    Attributes:
        served: whether there is a server; without one, a link is its text.
    """

    served: bool = False

    def sample(self, number: int, text: str) -> Inline:
        return self._link(text, f"/sample/{number}")

    def shard(self, number: int, text: str) -> Inline:
        return self._link(text, f"/shard/{number}")

    def label(self, class_index: int, text: str) -> Inline:
        return self._link(text, f"/class/{class_index}")

    def address_of_sample(self, number: int) -> str | None:
        return f"/sample/{number}" if self.served else None

    def _link(self, text: str, href: str) -> Inline:
        return Link(text, href) if self.served else text
