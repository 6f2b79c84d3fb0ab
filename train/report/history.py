"""Rows of a run's logs, as many as a curve needs: neighbours are averaged while a file is read."""

import math
from pathlib import Path
from typing import Any

from cache_tools.file_contents import parse_json

Row = dict[str, float]
MOST = 400
"""Rows that are kept: at least so many, where there are, and less than twice as many."""
_LONGEST = 2**16
"""Characters of a line: a row has some hundreds."""


def read(path: Path) -> list[Row]:
    """Read the rows of a JSONL file: numbers only, up to a line that a kill has cut short."""
    rows: list[Row] = []
    group: list[Row] = []
    stride = 1
    if not path.is_file():
        return rows
    with path.open(encoding="utf-8", errors="replace") as file:
        while line := file.readline(_LONGEST):
            try:
                row: Any = parse_json(line)
            except ValueError:
                break
            if not isinstance(row, dict):
                break
            numbers = {k: v for k, v in row.items() if type(v) in (int, float) and math.isfinite(v)}
            group.append({str(name): float(value) for name, value in numbers.items()})
            if len(group) == stride:
                rows.append(_mean(group))
                group = []
            if len(rows) == 2 * MOST:
                rows = [_mean(rows[i : i + 2]) for i in range(0, len(rows), 2)]
                stride *= 2
    return [*rows, _mean(group)] if group else rows


def column(rows: list[Row], x: str, y: str) -> tuple[list[float], list[float]]:
    """Two columns, where both are there."""
    pairs = [(row[x], row[y]) for row in rows if x in row and y in row]
    return [a for a, _ in pairs], [b for _, b in pairs]


def _mean(rows: list[Row]) -> Row:
    """Means of the columns; of step and epoch the last, where a row was written."""
    last = rows[-1]
    means = {name: math.fsum(r.get(name, last[name]) for r in rows) / len(rows) for name in last}
    return means | {name: last[name] for name in ("epoch", "step") if name in last}
