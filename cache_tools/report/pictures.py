"""Contact sheet of a cache for a page: pixels, and the targets as text alternative."""

import io

from cache_tools.errors import KdcacheError
from cache_tools.report import contact_sheet as sheet
from cache_tools.report.page import Paragraph, Picture
from cache_tools.report.sheet_source import SheetSource, evenly_spaced
from cache_tools.runtime.text import counted

ROWS, COLUMNS = 4, 5


def contact_sheet(source: SheetSource) -> Picture:
    """Draw the sheet of `kdcache views` as a JPEG."""
    numbers = evenly_spaced(len(source.views.keys), ROWS)
    views = list(range(min(COLUMNS, source.num_views)))
    out = io.BytesIO()
    drawn = sheet.draw(source.views, numbers, views, source.top_classes)
    drawn.save(out, "JPEG", quality=88, subsampling=0, optimize=True)
    shown = counted(len(views), "view")
    alt = f"{counted(len(numbers), 'sample')}, each with its original and {shown}."
    for number in numbers:
        alt += f" {source.views.keys[number]}"
        if source.top_classes is not None:
            best = [source.top_classes(number, view)[:1] for view in views]
            words = [f"{b[0][0]} {100 * b[0][1]:.0f} %" if b else "not cached yet" for b in best]
            alt += f": {', '.join(words)}"
        alt += "."
    return Picture(
        f"{len(numbers)} of {counted(len(source.views.keys), 'sample')}",
        out.getvalue(),
        "image/jpeg",
        alt,
        "The original with its crops, then the views as the teacher's input, with its top classes "
        "beneath; mixed views have the partner in the corner.",
    )


def absent(reason: KdcacheError | OSError) -> Paragraph:
    """Return the replacement of a sheet that cannot be drawn."""
    return Paragraph(f"No contact sheet: {reason}")
