"""Views of a data set's samples: read, check the digest, decode once, render.

Both stages, verification, evaluation and contact sheets make their views here, so that no image is
rendered that is not the one the cache was made of. Parameters of views come from
`store.view_params`.

Shapes: N samples, B views, S pixels a side.
"""

from collections.abc import Sequence

import google_crc32c
import numpy as np

from cache_tools.data.images import ImageDataset
from cache_tools.numerics.array_types import I8, U1
from cache_tools.render import batch, decode, kernels, view
from cache_tools.spec import sample_table
from cache_tools.spec.sample_table import SampleTable
from cache_tools.spec.views import ViewSpec
from cache_tools.views.draw import ViewParams

ViewRequest = tuple[ViewParams, int, U1]
"""One view: parameters of B views, which of them, and [S, S, 3] to write; S is the view's own."""


class ViewRenderer:
    """Renders views of a data set; safe to call from many threads."""

    def __init__(
        self,
        images: ImageDataset,
        spec: ViewSpec,
        table: SampleTable | None,
        stored_pixels: bool = False,
        decoded_before: bool = False,
    ) -> None:
        """Render views of `images`.

        Args:
            images: A data set, in the order of the table.
            spec: The augmentation.
            table: The samples and their digests; None where there is no table yet.
            stored_pixels: Use of the pixels that a `.beton` stores instead of an encoded image.
            decoded_before: True if every image was decoded as a whole when the table was made and
                is read many times now: only what their boxes show is decoded, and from the second
                read on the CRC-32C replaces the digest (the digest costs up to a tenth of a
                decode, the CRC less than a hundredth).
        """
        self.spec = spec
        self._images, self._table = images, table
        self.keys: Sequence[str] = images.keys()[1] if table is None else table.keys
        """Names of the N samples."""
        self._stored_pixels = stored_pixels and not spec.scaled_decode
        self._crc_N = np.zeros(len(images), np.uint32) if decoded_before else None
        self._odd_N = np.zeros(len(images), bool)
        self._buffer, self._encoded = decode.DecodeBuffer(), decode.DecodeBuffer()

    def read(self, row: int) -> bytes:
        """Read the encoded bytes of one sample and compare them with its digest.

        Raises:
            DataError: They cannot be read.
            CacheMismatch: They are not those the table was made of.
        """
        return self._checked(row, self._images.read(row))

    def _checked(self, row: int, data: bytes) -> bytes:
        """Compare the encoded bytes of one sample with its digest, or with their CRC-32C."""
        if self._table is None:
            return data
        if self._crc_N is None:
            sample_table.check_digest(self._table, row, data)
            return data
        crc = google_crc32c.value(data)
        if not crc or crc != self._crc_N[row]:
            sample_table.check_digest(self._table, row, data)
            self._crc_N[row] = crc
        return data

    def decode(self, row: int) -> U1:
        """Decode one whole image to [H, W, 3].

        Raises:
            DataError: It cannot be read, or is broken.
            CacheMismatch: It is not the one the table was made of, or has another size.
        """
        return decode.decode(self.read(row), self.keys[row], sides=self._sides(row))

    def render(self, row: int, wanted: Sequence[ViewRequest], encoded: bytes | None = None) -> None:
        """Render views of one image into memory that is there already; raises as `decode`.

        `encoded`: its bytes, where they have been read; they are compared as those of `read`.
        """
        picture = self._images.pixels(row) if self._stored_pixels else None
        if picture is None:
            key, whole_before = self.keys[row], self._crc_N is not None
            data = self._images.read(row) if encoded is None else encoded
            data, sides = self._checked(row, data), self._sides(row)
            view.render_views(data, key, self.spec, wanted, self._buffer, whole_before, sides)
            return
        if (sides := self._sides(row)) is not None:
            decode.check_sides(self.keys[row], picture.shape[:2], sides)
        for params, at, out in wanted:
            view.render(picture, self.spec, params, at, out, key=self.keys[row])

    def _sides(self, row: int) -> tuple[int, int] | None:
        """Height and width of an image by the table, in pixels."""
        if self._table is None:
            return None
        return int(self._table.height_N[row]), int(self._table.width_N[row])

    def render_many(
        self, row_P: I8, first_P: I8, params: ViewParams, out: Sequence[U1], address_V: I8
    ) -> None:
        """Render views of several images, in compiled code where they are plain.

        Args:
            row_P: Rows of the images.
            first_P: [P + 1], the first view of each image, and the number of views.
            params: Parameters of the views.
            out: [S, S, 3] to write for each view, contiguous; S is the view's own.
            address_V: Their addresses.

        Raises:
            As `render`, which makes what is not plain.
        """
        size_V = np.array([len(pixels) for pixels in out], np.int64)
        status_P, held = self._compiled(row_P, first_P, params, address_V, size_V)
        for i in np.flatnonzero(status_P != batch.DONE).tolist():
            views = range(int(first_P[i]), int(first_P[i + 1]))
            self.render(int(row_P[i]), [(params, v, out[v]) for v in views], held.get(i))

    def _compiled(
        self, row_P: I8, first_P: I8, params: ViewParams, address_V: I8, size_V: I8
    ) -> tuple[U1, dict[int, bytes]]:
        """Make what compiled code can; the images' statuses, and encoded bytes by position."""
        status_P, calls_F = np.full(len(row_P), batch.LEFT, np.uint8), batch.functions()
        held = dict[int, bytes]()
        if not calls_F.size or self._table is None or self._crc_N is None:
            return status_P, held
        if self.spec.scaled_decode:
            return status_P, held
        height_P = self._table.height_N[row_P].astype(np.int64)
        width_P = self._table.width_N[row_P].astype(np.int64)
        room_P = 3 * batch.bottoms(first_P, params.box_B4, params.filter_B, size_V) * width_P
        plain_P = (room_P > 0) & (room_P <= batch.MOST_ROOM) & ~self._odd_N[row_P]
        if not plain_P.any():
            return status_P, held
        descriptor_P, begin_P, length_P = self._images.locate(row_P)
        plain_P &= (length_P > 0) & (length_P <= batch.MOST_BYTES)
        crc_P = self._crc_N[row_P]
        read_P = plain_P & ((descriptor_P < 0) | (crc_P == 0))
        to_read = np.flatnonzero(read_P).tolist()
        if to_read:
            plain_P &= ~read_P | (np.cumsum(length_P * read_P) <= batch.MOST_HELD)
            to_read = np.flatnonzero(plain_P & read_P).tolist()
        if not plain_P.any():
            return status_P, held
        status_P[plain_P] = batch.TODO
        for i in to_read:
            row = int(row_P[i])  # bytes whose CRC is known are compared in compiled code
            held[i] = self._images.read(row) if crc_P[i] else self.read(row)
            descriptor_P[i], length_P[i] = -1, len(held[i])
            begin_P[i] = np.frombuffer(held[i], np.uint8).ctypes.data
        batch.decode_views(
            *(calls_F, descriptor_P, begin_P, length_P, crc_P, height_P, width_P, first_P),
            *(params.box_B4, params.filter_B, params.flip_B, address_V, size_V),
            self._encoded.room(int(length_P[plain_P].max())),
            self._buffer.room(int(room_P[plain_P].max())),
            status_P,
        )
        self._odd_N[row_P[status_P == batch.ODD]] = True
        if params.codes_BL.any() or params.erase_BE8[:, :, 2].any():
            batch.finish_views(
                kernels.addresses(params.codes_BL),
                *(address_V, size_V, params.codes_BL, params.arguments_BL6),
                np.array(self.spec.fill, np.uint8),
                *(params.erase_BE8, params.noise_BE2, first_P, status_P),
            )
        return status_P, held

    def render_one(self, row: int, params: ViewParams, at: int = 0) -> U1:
        """Render one view, view `at` of `params`, into new memory: [S, S, 3]."""
        out = np.empty((self.spec.size, self.spec.size, 3), dtype=np.uint8)
        self.render(row, [(params, at, out)])
        return out
