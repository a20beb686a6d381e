"""What a build of tags did, for a person and for a program."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from .tags_tasks import BlockStats
from .tags_vocabulary import Chosen
from .text_limits import counted


@dataclass(frozen=True)
class TagsReport:
    """What a build did. `read == images + duplicates + bad_rows` always holds.

    Attributes:
        read: rows of the source.
        images: lines of the result.
        duplicates: rows whose path and label stood in the source before.
        bad_rows: rows that could not be used.
        no_text: images whose text is missing or damaged; they are among `images`.
        validation: lines of WebVision's validation images, which have no text; they are not among `images`.
        fields_cut: titles, descriptions or tags of more than 20,000 characters, of which the rest was left out.
        vocabulary: tags in the vocabulary.
        chosen: what was left out of it; None where it was given.
        stats: lines by number of tags and by whose words they are.
        vocabulary_file: where the vocabulary is.
    """

    read: int
    images: int
    duplicates: int
    bad_rows: int
    no_text: int
    validation: int
    fields_cut: int
    vocabulary: int
    chosen: Chosen | None
    stats: BlockStats
    vocabulary_file: str

    @property
    def coverage(self) -> float:
        """Share of images with at least one tag of their own text."""
        return self.stats.by_source["text"] / max(1, self.images)

    def to_json(self) -> dict[str, Any]:
        """The report for a program; the same for any number of processes."""
        stats = self.stats
        values: dict[str, Any] = {
            "read": self.read,
            "images": self.images,
            "duplicates": self.duplicates,
            "bad_rows": self.bad_rows,
            "no_text": self.no_text,
            "validation": self.validation,
            "fields_cut": self.fields_cut,
            "vocabulary": self.vocabulary,
            "vocabulary_file": self.vocabulary_file,
            "coverage": self.coverage,
            "tags_per_image": stats.tags / max(1, self.images),
            "share_of_candidates_kept": stats.candidates_kept / max(1, stats.candidates),
            "images_by_words_of": {
                name: stats.by_source[name] for name in ("text", "query", "label", "none")
            },
            "images_by_number_of_tags": stats.by_number,
        }
        if self.chosen is not None:
            values["terms"] = {
                "found": self.chosen.num_terms,
                "too_common": self.chosen.num_too_common,
                "most_common": [list(item) for item in self.chosen.too_common],
                "too_rare": self.chosen.num_too_rare,
                "beyond_the_size": self.chosen.num_beyond,
            }
        return values

    def text(self) -> str:
        """The report for a person."""
        stats, images = self.stats, max(1, self.images)
        lines = [
            f"read {self.read:,} = tagged {self.images:,} + duplicates {self.duplicates:,} + bad {self.bad_rows:,}",
            f"  vocabulary: {counted(self.vocabulary, 'tag')} in {self.vocabulary_file}",
        ]
        if chosen := self.chosen:
            lines.append(
                f"  of {chosen.num_terms:,} found: {chosen.num_too_rare:,} too rare, {chosen.num_too_common:,} too common, "
                f"{chosen.num_beyond:,} beyond the size"
            )
            if chosen.too_common:
                shown = ", ".join(f"{tag} ({count:,})" for tag, count in chosen.too_common[:5])
                lines.append(f"  too common: {shown}{', ...' if chosen.num_too_common > 5 else ''}")
        few = stats.by_number
        lines += [
            f"  tags per image: {stats.tags / images:.2f}; images with 0: {few[0]:,}, 1: {few[1]:,}, "
            f"2 to 5: {sum(few[2:6]):,}, 6 to 10: {sum(few[6:11]):,}, more: {few[11]:,}",
            f"  coverage: {100 * self.coverage:.1f} % of the images have tags of their own text; by words of their query "
            f"{stats.by_source['query']:,}, of their label {stats.by_source['label']:,}, none {stats.by_source['none']:,}",
        ]
        if self.validation:
            lines.append(f"  {counted(self.validation, 'validation image')}, without tags")
        if self.no_text:
            lines.append(f"  {counted(self.no_text, 'image')} whose text is missing or damaged")
        if self.fields_cut:
            lines.append(f"  {counted(self.fields_cut, 'text')} of more than 20,000 characters, cut there")
        return "\n".join(lines)
