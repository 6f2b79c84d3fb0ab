"""Contact sheet: views as the teacher's input, and its top classes.

One row per sample: the original with its crop boxes, then its views as the teacher's input, mixed,
with the partner in the corner and the top classes as bars beneath. Without a cache the bars are
missing: a preview of an augmentation.

Shapes: N samples, S pixels a side.
"""

import io
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from PIL.PngImagePlugin import PngInfo

from cache_tools.data.image_folder import SHEET
from cache_tools.data.images import ImageDataset
from cache_tools.data.view_renderer import ViewRenderer
from cache_tools.numerics.array_types import U1
from cache_tools.render import decode, mixing
from cache_tools.runtime.text import printable
from cache_tools.spec.sample_table import sample_id
from cache_tools.spec.views import ViewSpec
from cache_tools.storage import atomic
from cache_tools.store import view_params
from cache_tools.store.cache import Cache
from cache_tools.views import draw as views
from cache_tools.views import ops
from cache_tools.views.draw import MixParams

CELL, GAP, BAR, CLASSES = 168, 10, 15, 3
_SYNSET = re.compile(r" \(n\d{8}\)$")
"""End of a class name of ImageNet (`spec.class_names.described`), left out where it is too long."""
_INK, _PALE = (32, 32, 32), (120, 120, 120)
TopClasses = Callable[[int, int], list[tuple[str, float]]]


class ViewSource:
    """Samples and the way their views are made: of a cache, or of a recipe before there is one."""

    def __init__(
        self, images: ImageDataset, spec: ViewSpec, window: int, cache: Cache | None = None
    ) -> None:
        """Draw views of `images` with the augmentation `spec`.

        Args:
            images: In the order of the sample table.
            spec: The augmentation, as the teacher sees it.
            window: Rows within which partners are drawn.
            cache: The cache whose views they are; None: those of a recipe.
        """
        table = None if cache is None else cache.table
        self.renderer = ViewRenderer(images, spec, table)
        self.keys = self.renderer.keys
        self._spec, self._window, self._cache = spec, window, cache

    def parameters(self, number: int, view: int) -> views.ViewParams:
        """Parameters of one view."""
        if self._cache is not None:
            return view_params.parameters(self._cache, view, np.array([number]), spec=self._spec)
        sides = decode.size(self.renderer.read(number), self.keys[number])
        height_1, width_1 = np.array(sides, dtype=np.int32)[:, None]
        first = min(number, int(self.mix(number, view).partner_B[0]))  # as `view_params.parameters`
        ids = _ids([self.keys[number], self.keys[first]])
        return views.draw(self._spec, ids[:1], height_1, width_1, view, ids[1:])

    def view(self, number: int, view: int) -> U1:
        """Pixels of one view before mixing, [S, S, 3]."""
        return self.renderer.render_one(number, self.parameters(number, view))

    def partner(self, number: int, view: int) -> U1:
        """Pixels of what one view is mixed with, [S, S, 3]."""
        other = int(self.mix(number, view).partner_B[0])
        if self._cache is None or not view_params.has_partner_params(self._cache):
            return self.view(other, view)
        params = view_params.parameters(self._cache, view, np.array([number]), partner=True)
        return self.renderer.render_one(other, params)

    def mix(self, number: int, view: int) -> MixParams:
        """Return the mixing of one view; an unmixed sample is its own partner."""
        if self._cache is not None:
            return view_params.mixing_of(self._cache, view, np.array([number]), self._spec)
        begin = number // self._window * self._window
        drawn = views.mix(self._spec, _ids(self.keys[begin : begin + self._window]), view)
        return replace(drawn, partner_B=begin + drawn.partner_B).rows(np.array([number - begin]))


def _ids(keys: Sequence[str]) -> NDArray[np.uint64]:
    return np.array([sample_id(key) for key in keys], dtype=np.uint64)


def facts(source: ViewSource, number: int, view: int) -> dict[str, Any]:
    """Return the parameters of one view for `--json`."""
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
    share, box = lam / views.LAMBDA_SCALE, cut.tolist()
    mixing_ = {"partner": source.keys[partner], "lam": share, "box": box}
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
    source: ViewSource, numbers: list[int], view_numbers: list[int], top_classes: TopClasses | None
) -> Image.Image:
    """Draw the sheet: a row for each row number of the sample table, a column for each view.

    `top_classes`: (row, view) → top classes with probabilities; None leaves the bars out.
    """
    tall = CELL + 22 + (CLASSES * BAR if top_classes else 0) + GAP
    wide = (CELL + GAP) * (1 + len(view_numbers)) + GAP
    sheet = Image.new("RGB", (wide, tall * len(numbers) + GAP), "white")
    pen = ImageDraw.Draw(sheet)
    for row, number in enumerate(numbers):
        top = GAP + row * tall
        picture = source.renderer.decode(number)
        scale = CELL / max(picture.shape[:2])
        size = [max(1, int(side * scale)) for side in picture.shape[1::-1]]
        sheet.paste(Image.fromarray(picture).resize(size), (GAP, top))
        for view in view_numbers:
            y, x, height, width = source.parameters(number, view).box_B4[0].tolist()
            corners = zip((GAP, top) * 2, (x, y, x + width, y + height), strict=True)
            pen.rectangle([o + c * scale for o, c in corners], outline="white")
        _text(pen, (GAP, top + CELL + 3), source.keys[number], _INK)
        for column, view in enumerate(view_numbers, start=1):
            left = GAP + column * (CELL + GAP)
            _view(sheet, pen, source, number, view, (left, top))
            classes = top_classes(number, view)[:CLASSES] if top_classes is not None else []
            for i, (name, p) in enumerate(classes):
                y = top + CELL + 20 + i * BAR
                for share, color in ((1.0, (240, 240, 240)), (p, (190, 210, 232))):
                    bar = (left, y, left + round(CELL * share), y + BAR - 3)
                    pen.rectangle(bar, fill=color)
                _text(pen, (left + 3, y), f"{100 * p:.0f} %  {name}", _INK)
    return sheet


def _view(
    sheet: Image.Image,
    pen: ImageDraw.ImageDraw,
    source: ViewSource,
    number: int,
    view: int,
    at: tuple[int, int],
) -> None:
    """Draw one view as it is mixed, with the partner in the corner."""
    pixels, mix = source.view(number, view), source.mix(number, view)
    lam, label, other = int(mix.lam_B[0]), f"view {view}", None
    if lam < views.LAMBDA_SCALE:
        other = source.partner(number, view)
        a, b = (p.transpose(2, 0, 1)[None].astype(np.float32) for p in (pixels, other))
        side, lam_B = np.arange(pixels.shape[0]), mix.lam_B.astype(np.float32)
        outside = None if mix.outside_B is None else mix.outside_B.astype(np.float32)
        mixed = mixing.mix(a, b, lam_B, mix.cut_B4, side, outside)
        pixels = np.asarray(np.rint(mixed[0]), dtype=np.uint8).transpose(1, 2, 0)
        kind = "cutmix" if mix.cut_B4[0, 2] else "mixup"
        label += f"   {kind}, own {own_share(lam)}"
    sheet.paste(Image.fromarray(pixels).resize((CELL, CELL)), at)
    if other is not None:
        inset = Image.fromarray(other).resize((CELL // 4, CELL // 4))
        corner = (at[0] + CELL - CELL // 4 - 3, at[1] + CELL - CELL // 4 - 3)
        sheet.paste(inset, corner)
        frame = corner[0] - 1, corner[1] - 1, *(c + CELL // 4 for c in corner)
        pen.rectangle(frame, outline="white")
    _text(pen, (at[0], at[1] + CELL + 3), label, _PALE)


def own_share(lam: int) -> str:
    """Format the share of the own picture in a mixed one, of `lam` in units of the format."""
    percent = 100 * lam / views.LAMBDA_SCALE
    if 1 <= percent <= 99:
        return f"{percent:.0f} %"
    return f"{min(max(percent, 0.1 * (lam > 0)), 99.9):.1f} %"


def _text(
    pen: ImageDraw.ImageDraw, at: tuple[int, int], text: str, color: tuple[int, int, int]
) -> None:
    font, text = ImageFont.load_default(11), printable(text)[:CELL]
    if pen.textlength(text, font=font) > CELL - 4:
        text = _SYNSET.sub("", text)
    while len(text) > 1 and pen.textlength(text, font=font) > CELL - 4:
        text = text[:-2] + "…"
    pen.text(at, text, fill=color, font=font)


def save(sheet: Image.Image, out: Path) -> None:
    """Save a sheet with a comment, so that no data set takes it for a sample."""
    comment, data = PngInfo(), io.BytesIO()
    comment.add_text("Comment", SHEET)
    kind = Image.registered_extensions()[out.suffix.lower()]
    sheet.save(data, kind, pnginfo=comment, comment=SHEET)
    atomic.sweep(out)
    atomic.write(out, data.getvalue())
