"""What `softshard bench` measured as a page with plots, and as a table for a spreadsheet."""

from __future__ import annotations

import csv
import io
from typing import Any

from ..shards.html import Page
from .loader_stats import STAGE_WORDS

COLUMNS = ("kind", "name", "images_per_s", "low", "high", "images_per_cpu_s", "repeats")


def bench_rows(result: dict[str, Any]) -> list[dict[str, Any]]:
    """One row for each that was measured, by the names of COLUMNS; empty where a column says nothing.

    Args:
        result: of `bench`.
    """
    peers = result["peers"]
    rows = [
        {
            "kind": "peer" if name in peers else "loader" if name == "loader" else "ceiling",
            "name": name,
            **values,
        }
        for name, values in result["results"].items()
    ]
    if result["fetch"] is not None:
        rows.append(
            {
                "kind": "ceiling",
                "name": "fetch",
                "images_per_s": result["fetch"]["images_per_s"],
                "repeats": 1,
            }
        )
    rows += [{"kind": "ceiling", "name": name, **values} for name, values in result["ceilings"].items()]
    return [{column: row.get(column, "") for column in COLUMNS} for row in rows]


def bench_csv(result: dict[str, Any]) -> str:
    """The rows as CSV, with a header."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    writer.writerows(row.values() for row in bench_rows(result))
    return text.getvalue()


def bench_page(result: dict[str, Any]) -> Page:
    """The page: the verdict, bars of all rates, where the loader's time went, and the table behind them."""
    options, rows = result["options"], bench_rows(result)
    page = Page(f"How fast {result['dataset']} loads")
    page.paragraph(result["verdict"]["text"])
    machine = result["machine"]
    page.key_values(
        {
            "samples": f"{result['samples']:,} of {result['bytes_per_sample']:,.0f} bytes, {result['stored_side']} pixels "
            "a side",
            "batches": f"{options['batch_size']} images of {options['size']} pixels, {options['dtype']}, targets "
            f"{options['targets']}",
            "device": f"{options['device']}, {options['num_threads']} threads on {machine['cores']} cores of "
            f"{machine['processor']}",
        }
    )
    page.heading("Images per second")
    page.bar_chart(
        "The loader, and each of its parts alone on the same samples and threads",
        {row["name"]: row["images_per_s"] for row in rows if row["kind"] != "peer"},
        x_label="images per second",
    )
    if result["peers"]:
        page.bar_chart(
            "The loader and others on the same shards and the same job (uint8, no targets)",
            {row["name"]: row["images_per_s"] for row in rows if row["kind"] != "ceiling"},
            x_label="images per second",
        )
    page.heading("What a second of the processor makes")
    page.bar_chart(
        "Processor time of each, all threads together; on a shared machine it says more than the clock on the wall",
        {row["name"]: row["images_per_cpu_s"] for row in rows if row["images_per_cpu_s"] != ""},
        x_label="images per CPU-second",
    )
    stats = result["stats"]
    if stats["batches"]:
        page.heading("Where the loader's time went")
        page.bar_chart(
            "Milliseconds a batch in each stage of the thread that makes batches",
            {STAGE_WORDS.get(name, name): 1000 * stage["mean_s"] for name, stage in stats["stages"].items()},
            x_label="milliseconds a batch",
        )
    page.heading("The numbers")
    page.table(
        ["", "", "images/s", "lowest", "highest", "a CPU-second", "runs"],
        [list(row.values()) for row in rows],
        caption="Medians; everything has its turn in every round.",
    )
    for name, peer in result["peers"].items():
        page.paragraph(
            f"The loader is {peer['loader_is_times']:.2f} times as fast as {name} {peer['version']}."
        )
    return page
