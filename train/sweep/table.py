"""Results of a sweep as a table and as CSV."""

import csv
import io
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cache_tools.storage import atomic

Row = dict[str, Any]
_COLUMNS = (
    ("parameters", "parameters", "{:,}"),
    ("top1", "top-1", "{:.1f}"),
    ("top1_ema", "EMA", "{:.1f}"),
    ("loss", "loss", "{:.4f}"),
    ("images_per_second", "images/s", "{:,.0f}"),
    ("cost_seconds", "cost, s", "{:,.1f}"),
)


def table(rows: Sequence[Row], swept: Sequence[str]) -> str:
    """Format the students as lines of text, the most accurate first."""

    def rank(row: Row) -> tuple[bool, float, float]:
        finished = row["state"] == "finished"
        return finished, row.get("accuracy") or 0.0, -(row.get("loss") or math.inf)

    ordered, swept = sorted(rows, key=rank, reverse=True), headers(rows, swept)
    columns = [c for c in _COLUMNS if any(r.get(c[0]) is not None for r in rows)]
    head = [*swept, *(title for _, title, _ in columns), ""]
    body = [
        [
            *(format_value(row.get(key)) for key in swept),
            *("" if row.get(key) is None else form.format(row[key]) for key, _, form in columns),
            "" if row["state"] == "finished" else str(row["state"]),
        ]
        for row in ordered
    ]
    widths = [max(len(line[i]) for line in [head, *body]) for i in range(len(head))]
    left = len(swept)
    lines = [
        "  ".join(
            cell.ljust(width) if i < left else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in [head, *body]
    ]
    return "\n".join(lines)


def headers(rows: Sequence[Row], swept: Sequence[str]) -> list[str]:
    """Columns that identify students: the swept keys, after the names if those differ."""
    labels = (
        (str(row.get("name")), key, format_value(row[key]))
        for row in rows
        for key in swept
        if key in row
    )
    own = any(f"{key}={value}" not in name and value not in name for name, key, value in labels)
    return [*swept] if swept and not own else ["name", *swept]


def write_csv(rows: Sequence[Row], path: Path) -> None:
    """Write a line for each student, in the order of the grid."""
    names = list(dict.fromkeys(key for row in rows for key in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, names, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    atomic.write(path, text.getvalue().encode())


def pareto_front(rows: Sequence[Row], key: str, more: bool) -> list[Row]:
    """Students that no other beats in both accuracy and `key`, by ascending `key`."""
    ordered = sorted(rows, key=lambda row: (-row[key] if more else row[key], -row["accuracy"]))
    found: list[Row] = []
    for row in ordered:
        if not found or row["accuracy"] > found[-1]["accuracy"]:
            found.append(row)
    return found[::-1] if more else found


def format_value(value: Any) -> str:
    """Format a value for tables and plots."""
    return f"{value:g}" if isinstance(value, float) else str(value)
