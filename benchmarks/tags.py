"""Tags from text: how fast each tokenizer and tagger is, and whether memory stays where it is at 16 million records.

Jobs, each in a process of its own:

- `speed`: the 21,844 definitions of WordNet synsets inside timm's wheel (69 characters on average) as records; tokens
  alone, candidate tags (what the first pass does with a record's text), and all of what the second pass does with a line of
  JSON: read, tag, compare with a vocabulary, write. Records for a CPU-second of one process.
- `build`: `build_tags` over a list of these texts, repeated under new paths, one process: CPU-seconds, peak memory.
- `counts`: the counts of a first pass over 16 million records with eight tags each, simulated: tags drawn from Zipf's law,
  one in twenty a word of its own, so that 6.5 million terms are there in the end; and the hashes that tell repeated images.

What came out, on two cores with a load of 20 to 29: 22,600 records for a CPU-second with softshard's tokenizer, all
included (28,900 in another run), 4,000 with NLTK's, 1,200 with its tagger too; a peak of 141 to 144 MB for
builds of 20,000 and 200,000 records, 702 MB for the counts and hashes of 16 million.

`--tagger nltk` needs NLTK's data: set NLTK_DATA.

Run: python benchmarks/tags.py
"""

from __future__ import annotations

import importlib.util
import json
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from harness import arguments, in_own_process, peak_mb, write_result

from softshard.shards.storage import open_storage
from softshard.shards.tags_build import TagOptions, build_tags
from softshard.shards.tags_source import Block, TextSource
from softshard.shards.tags_tasks import TagSettings, WriteTask, tagger_of, write_block
from softshard.shards.tags_tokens import _remembered
from softshard.shards.tags_vocabulary import DocumentCounts, choose_vocabulary
from softshard.shards.tags_work import Counted

TERMS = 140_000  # about as many as WordNet has nouns and adjectives
BLOCK = 2000


def definitions() -> list[tuple[str, str]]:
    """(wnid, definition) of every synset in timm's wheel."""
    spec = importlib.util.find_spec("timm")
    assert spec is not None and spec.submodule_search_locations  # noqa: PT018
    folder = Path(spec.submodule_search_locations[0]) / "data" / "_info"
    lines = (folder / "imagenet_synset_to_definition.txt").read_text("utf-8").splitlines()
    return [(wnid, text) for wnid, _, text in (line.partition("\t") for line in lines)]


def lines_of(num: int) -> Iterator[bytes]:
    """A list of that many records, as lines of JSON."""
    texts = definitions()
    for i in range(num):
        wnid, text = texts[i % len(texts)]
        yield json.dumps({"path": f"{i}.jpg", "label": wnid, "title": text}).encode() + b"\n"


def best_rate(work: Callable[[], object], num: int, repeats: int) -> dict[str, float]:
    """Records for a CPU-second: the first time, when no word has been seen yet, and the best of some more."""
    rates = []
    for _ in range(repeats + 1):
        start = time.process_time()
        work()
        rates.append(num / (time.process_time() - start))
    return {"first": round(rates[0]), "best": round(max(rates)), "median": round(float(np.median(rates[1:])))}


def speed(tokenizer: str, tagger: str, num: int, repeats: int) -> dict[str, Any]:
    """Rates of one tokenizer and tagger."""
    texts = [text for _, text in definitions()[:num]]
    tag = tagger_of(tokenizer, tagger)
    cut = tag._tokenizer
    settings = TagSettings(tokenizer=tokenizer, tagger=tagger)
    vocabulary = dict.fromkeys((word for text in texts[:5000] for word in tag(text)), 2)
    source = TextSource(open_storage("simulated.jsonl"), False)
    numbered = list(enumerate(lines_of(num), 1))

    def write() -> None:
        for start in range(0, num, BLOCK):
            write_block(
                (source, settings, vocabulary), WriteTask(Block(numbered[start : start + BLOCK], [], [], []))
            )

    tag._words.clear()
    _remembered.clear()
    return {
        "records": num,
        "tokens": best_rate(lambda: [cut(text) for text in texts], num, repeats),
        "candidates": best_rate(lambda: [tag(text) for text in texts], num, repeats),
        "read_tag_write": best_rate(write, num, repeats),
    }


def build(num: int) -> dict[str, Any]:
    """All of a build."""
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "in.jsonl"
        with open(source, "wb") as file:
            file.writelines(lines_of(num))
        before = peak_mb()
        start, cpu = time.perf_counter(), time.process_time()
        report = build_tags(source, Path(folder) / "out.jsonl", TagOptions(), workers=1)
        cpu_s = time.process_time() - cpu
        return {
            "records": num,
            "wall_s": round(time.perf_counter() - start, 1),
            "cpu_s": round(cpu_s, 1),
            "records_per_cpu_s_both_passes": round(num / cpu_s),
            "tags_per_image": round(report.stats.tags / num, 2),
            "vocabulary": report.vocabulary,
            "before_mb": before,
            "peak_mb": peak_mb(),
        }


def counts(num: int) -> dict[str, Any]:
    """The first pass's counting alone."""
    rng = np.random.default_rng(0)
    before = peak_mb()
    start = time.process_time()
    hashes, sizes, own = [], [], 0
    with DocumentCounts() as kept:
        for _ in range(num // BLOCK):
            ids = np.minimum(rng.zipf(1.1, 8 * BLOCK), TERMS)
            found, times = np.unique(ids, return_counts=True)
            block = dict(zip(map(str, found.tolist()), times.tolist(), strict=True))
            new = 8 * BLOCK // 20
            block |= {f"own{own + i}": 1 for i in range(new)}
            own += new
            kept.add(block)
            hashes.append(rng.integers(0, 2**63, BLOCK, dtype=np.uint64))
            sizes.append(BLOCK)
        chosen = choose_vocabulary(kept.items(), num_images=num, size=35_000, min_images=2, max_share=0.25)
        runs = kept._num_runs
    repeats = Counted(sizes=sizes, hashes=hashes).repeats()
    return {
        "records": num,
        "terms": chosen.num_terms,
        "runs_on_disk": runs,
        "repeats": len(repeats),
        "cpu_s": round(time.process_time() - start, 1),
        "before_mb": before,
        "peak_mb": peak_mb(),
    }


def row_of(job: Callable[..., dict[str, Any]], **values: Any) -> dict[str, Any]:
    row = {"job": job.__name__, **values, **in_own_process(job, **values)}
    print(json.dumps(row))
    return row


def main() -> None:
    parser = arguments(__doc__.split("\n")[0])
    parser.add_argument("--records", type=int, nargs="*", default=[20_000, 200_000], help="of `build`")
    parser.add_argument("--counted", type=int, nargs="*", default=[1_000_000, 16_000_000], help="of `counts`")
    parser.add_argument("--no-nltk-tagger", action="store_true", help="its data are missing")
    args = parser.parse_args()
    rows = [
        row_of(speed, tokenizer="softshard", tagger="wordnet", num=21_844, repeats=args.repeats),
        row_of(speed, tokenizer="nltk", tagger="wordnet", num=21_844, repeats=1),
    ]
    if not args.no_nltk_tagger:
        for tokenizer in ("softshard", "nltk"):
            rows.append(row_of(speed, tokenizer=tokenizer, tagger="nltk", num=2000, repeats=1))
    rows += [row_of(build, num=num) for num in args.records]
    rows += [row_of(counts, num=num) for num in args.counted]
    write_result(
        args.out,
        benchmark="tags",
        job="tags from the definitions in timm's wheel; counts of a simulated first pass",
        swept={"tokenizer": ["softshard", "nltk"], "tagger": ["wordnet", "nltk"], "records": args.records},
        rows=rows,
    )


if __name__ == "__main__":
    main()
