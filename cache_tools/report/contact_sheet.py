"""A contact sheet: what the teacher saw, and what it said of it, at first sight.

One row per sample: the original with its crop boxes, then its views as the teacher was shown them,
mixed, with the partner in the corner and the top classes as bars beneath. Without a cache the bars
are missing: look at an augmentation before paying for it.

Shapes: N samples, S pixels a side.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from cache_tools.data.images import Images
from cache_tools.render import decode, mixing
from cache_tools.render import view as render
from cache_tools.runtime.text import printable
from cache_tools.spec.views import ViewSpec
from cache_tools.store import view_params
from cache_tools.store.cache import Cache
from cache_tools.views import draw as views
from cache_tools.views import ops
from cache_tools.views.draw import Mix

U1 = NDArray[np.uint8]
CELL, GAP, BAR, CLASSES = 168, 10, 15, 3
_INK, _PALE = (32, 32, 32), (120, 120, 120)
Says = Callable[[int, int], list[tuple[str, float]]]


@dataclass(frozen=True)
class Source:
    """Samples and the way their views are made."""

    spec: ViewSpec
    window: int
    """Rows within which partners are drawn."""
    keys: tuple[str, ...]
    id_N: NDArray[np.uint64]
    images: Images
    """In the order of the keys."""
    imported: Cache | None = None
    """The cache, where its views were imported and not drawn."""

    def picture(self, number: int) -> U1:
        """The decoded original of a sample."""
        return decode.decode(self.images.read(number), self.keys[number])

    def parameters(self, number: int, view: int) -> views.Views:
        """Parameters of one view."""
        if self.imported is not None:
            return view_params.parameters(self.imported, view, np.array([number]))
        height, width = decode.size(self.images.read(number), self.keys[number])
        sides = np.array([[height], [width]], dtype=np.int32)
        return views.draw(self.spec, self.id_N[number : number + 1], sides[0], sides[1], view)

    def view(self, number: int, view: int) -> U1:
        """Pixels of one view before mixing, [S, S, 3]."""
        return self._pixels(number, self.parameters(number, view))

    def partner(self, number: int, view: int) -> U1:
        """Pixels of what one view is mixed with, [S, S, 3]."""
        other = self.mix(number, view).partner_B[0]
        if self.imported is None or not view_params.has_sides(self.imported):
            return self.view(int(other), view)
        params = view_params.parameters(self.imported, view, np.array([number]), side=1)
        return self._pixels(int(other), params)

    def mix(self, number: int, view: int) -> Mix:
        """How one view is mixed; a sample that is alone is its own partner."""
        if self.imported is not None:
            return view_params.mixing(self.imported, view, number, number + 1)
        begin = number // self.window * self.window
        drawn = views.mix(self.spec, self.id_N[begin : begin + self.window], view)
        at = slice(number - begin, number - begin + 1)
        return Mix(begin + drawn.partner_B[at], drawn.lam_B[at], drawn.cut_B4[at])

    def _pixels(self, number: int, params: views.Views) -> U1:
        out = np.empty((self.spec.size, self.spec.size, 3), dtype=np.uint8)
        data = self.images.read(number)
        render.views_of(data, self.keys[number], self.spec, [(params, 0, out)])
        return out


def facts(source: Source, number: int, view: int) -> dict[str, Any]:
    """Parameters of one view for `--json`."""
    drawn = source.parameters(number, view)
    mix = source.mix(number, view)
    partner, lam, cut = int(mix.partner_B[0]), int(mix.lam_B[0]), mix.cut_B4[0]
    operations = [
        {"operation": ops.NAMES[code], "arguments": arguments}
        for code, arguments in zip(
            drawn.codes_BL[0].tolist(), drawn.arguments_BL6[0].tolist(), strict=True
        )
        if code
    ]
    mixing_ = {"partner": source.keys[partner], "lam": lam / views.LAM_ONE, "box": cut.tolist()}
    return {
        "key": source.keys[number],
        "view": view,
        "box": drawn.box_B4[0].tolist(),
        "flip": bool(drawn.flip_B[0]),
        "operations": operations,
        "erased": [box[:4] for box in drawn.erase_BE8[0].tolist() if box[2]],
        "mixing": mixing_ if partner != number else None,
    }


def draw(
    source: Source, numbers: list[int], view_numbers: list[int], says: Says | None
) -> Image.Image:
    """Draw the sheet.

    Args:
        source: Samples and views.
        numbers: Rows of the sample table, one per row of the sheet.
        view_numbers: Views, one per column.
        says: (row, view) → top classes with probabilities; None leaves the bars out.
    """
    tall = CELL + 22 + (CLASSES * BAR if says else 0) + GAP
    wide = (CELL + GAP) * (1 + len(view_numbers)) + GAP
    sheet = Image.new("RGB", (wide, tall * len(numbers) + GAP), "white")
    pen = ImageDraw.Draw(sheet)
    for row, number in enumerate(numbers):
        top = GAP + row * tall
        _original(sheet, pen, source, number, view_numbers, (GAP, top))
        for column, view in enumerate(view_numbers, start=1):
            left = GAP + column * (CELL + GAP)
            _view(sheet, pen, source, number, view, (left, top))
            if says is not None:
                _bars(pen, says(number, view), (left, top + CELL + 20))
    return sheet


def _original(
    sheet: Image.Image,
    pen: ImageDraw.ImageDraw,
    source: Source,
    number: int,
    view_numbers: list[int],
    at: tuple[int, int],
) -> None:
    picture = source.picture(number)
    height, width = picture.shape[:2]
    scale = CELL / max(height, width)
    small = Image.fromarray(picture).resize(
        (max(1, int(width * scale)), max(1, int(height * scale)))
    )
    sheet.paste(small, at)
    for view in view_numbers:
        top, left, tall, wide = source.parameters(number, view).box_B4[0].tolist()
        corners = (left, top, left + wide, top + tall)
        offset = (at[0], at[1]) * 2
        pen.rectangle(
            [o + c * scale for o, c in zip(offset, corners, strict=True)], outline="white"
        )
    _text(pen, (at[0], at[1] + CELL + 3), source.keys[number], _INK)


def _view(
    sheet: Image.Image,
    pen: ImageDraw.ImageDraw,
    source: Source,
    number: int,
    view: int,
    at: tuple[int, int],
) -> None:
    own = source.view(number, view)
    mix = source.mix(number, view)
    lam = int(mix.lam_B[0])
    label = f"view {view}"
    if lam < views.LAM_ONE:
        other = source.partner(number, view)
        pixels = _mixed(own, other, mix)
        kind = "cutmix" if mix.cut_B4[0, 2] else "mixup"
        label += f"   {kind} {lam / views.LAM_ONE:.2f}"
    else:
        other, pixels = None, own
    sheet.paste(Image.fromarray(pixels).resize((CELL, CELL)), at)
    if other is not None:
        inset = Image.fromarray(other).resize((CELL // 4, CELL // 4))
        corner = (at[0] + CELL - CELL // 4 - 3, at[1] + CELL - CELL // 4 - 3)
        sheet.paste(inset, corner)
        pen.rectangle(
            (corner[0] - 1, corner[1] - 1, *(c + CELL // 4 for c in corner)), outline="white"
        )
    _text(pen, (at[0], at[1] + CELL + 3), label, _PALE)


def _mixed(own: U1, other: U1, mix: Mix) -> U1:
    a, b = (p.transpose(2, 0, 1)[None].astype(np.float32) for p in (own, other))
    side, lam_B = np.arange(own.shape[0]), mix.lam_B.astype(np.float32)
    outside = None if mix.outside_B is None else mix.outside_B.astype(np.float32)
    mixed = mixing.mix(a, b, lam_B, mix.cut_B4, side, outside)
    return np.asarray(np.rint(mixed[0]), dtype=np.uint8).transpose(1, 2, 0)


def _bars(pen: ImageDraw.ImageDraw, classes: list[tuple[str, float]], at: tuple[int, int]) -> None:
    for i, (name, p) in enumerate(classes[:CLASSES]):
        top = at[1] + i * BAR
        pen.rectangle((at[0], top, at[0] + CELL, top + BAR - 3), fill=(240, 240, 240))
        pen.rectangle((at[0], top, at[0] + round(CELL * p), top + BAR - 3), fill=(190, 210, 232))
        _text(pen, (at[0] + 3, top), f"{100 * p:.0f} %  {name}", _INK)


def _text(
    pen: ImageDraw.ImageDraw, at: tuple[int, int], text: str, colour: tuple[int, int, int]
) -> None:
    font, text = ImageFont.load_default(11), printable(text)[:CELL]
    while len(text) > 1 and pen.textlength(text, font=font) > CELL - 4:
        text = text[:-2] + "…"
    pen.text(at, text, fill=colour, font=font)
