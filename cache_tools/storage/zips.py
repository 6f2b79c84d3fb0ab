"""Members of a zip from outside: inside of it, apart from each other, no larger than they can be.

A few bytes of a zip can name gigabytes: its directory has every size and place twice, and deflate
packs a thousand zeros into one byte. Sizes are compared with the bytes of the file before any
member is read.
"""

import zipfile

_FREE = 2**16
"""Bytes that a member may have whatever its size in the zip."""


def check(
    archive: zipfile.ZipFile, size: int, most: int, large: int = 2**63, most_large: int = 1
) -> None:
    """Check the members of a zip of `size` bytes, that none has over `most` times its stored bytes.

    Of those of more than `large` bytes, none has over `most_large` times its stored bytes.

    Raises:
        zipfile.BadZipFile: One expands further, is not inside, or shares bytes with another.
    """
    end, before = 0, ""
    for member in sorted(archive.infolist(), key=lambda member: member.header_offset):
        name = f"its member {member.filename[:80]!r}"
        times = most_large if member.file_size > large else most
        if member.file_size > times * member.compress_size + _FREE:
            raise zipfile.BadZipFile(
                f"{name} would expand from {member.compress_size:,} to {member.file_size:,} bytes"
            )
        if member.header_offset < end:
            raise zipfile.BadZipFile(f"{name} shares bytes with {before[:80]!r}")
        end, before = member.header_offset + member.compress_size, member.filename
        if member.header_offset < 0 or end > size:
            raise zipfile.BadZipFile(f"{name} ends beyond the zip")
