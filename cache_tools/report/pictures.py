"""The contact sheet of a cache for a page: the pixels, and in words what the teacher said."""

import io

from cache_tools.errors import KdcacheError
from cache_tools.report import contact_sheet as sheet
from cache_tools.report.formatting import count
from cache_tools.report.page import Note, Picture
from cache_tools.report.sheet_source import Shown, spread

ROWS, COLUMNS = 4, 5


def contact_sheet(shown: Shown) -> Picture:
    """The sheet of `kdcache views`, as a JPEG."""
    numbers = spread(len(shown.source.keys), ROWS)
    views = list(range(min(COLUMNS, shown.num_views)))
    out = io.BytesIO()
    drawn = sheet.draw(shown.source, numbers, views, shown.says)
    drawn.save(out, "JPEG", quality=88, subsampling=0, optimize=True)
    alt = f"{len(numbers)} samples, each with its original and {len(views)} views. " + " ".join(
        _words(shown, number, views) for number in numbers
    )
    return Picture(
        f"{len(numbers)} of {count(len(shown.source.keys))} samples",
        out.getvalue(),
        "image/jpeg",
        alt,
        "The original with its crops, then the views as the teacher was shown them, with what it "
        "said beneath; mixed views have the partner in the corner.",
    )


def absent(why: KdcacheError | OSError) -> Note:
    """What stands in the place of a sheet that cannot be drawn."""
    return Note(f"No contact sheet: {why}")


def _words(shown: Shown, number: int, views: list[int]) -> str:
    """What the teacher says first of each view of a sample."""
    if shown.says is None:
        return f"{shown.source.keys[number]}."
    said = [shown.says(number, view) for view in views]
    first = [f"{one[0][0]} {100 * one[0][1]:.0f} %" if one else "not asked yet" for one in said]
    return f"{shown.source.keys[number]}: {', '.join(first)}."
