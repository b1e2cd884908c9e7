"""PNG files: how many bytes of rows they hold, and how many their header asks for."""

import zlib
from collections.abc import Iterator

_SIGNATURE = 8
# Samples of a pixel by the type of the colours.
_SAMPLES = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}
# The pictures of an interlaced file: first column and row, steps to the next ones.
_PASSES = (
    *((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4)),
    *((0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2)),
)


def size_of_png(data: bytes) -> tuple[int, int]:
    """Return the bytes of rows that a file holds, at most those expected, and those expected.

    Args:
        data: The file.

    Returns:
        Number of bytes after decompression, and the number by the header.

    Source: the PNG specification, third edition, 7.2, 8 and 10.
    """
    chunks = list(_chunks(data))
    expected = _expected(next(content for kind, content in chunks if kind == b"IHDR"))
    unpack, found = zlib.decompressobj(), 0
    for kind, content in chunks:
        if kind == b"IDAT" and found < expected:
            found += len(unpack.decompress(content, expected - found))
    return found, expected


def _expected(header: memoryview) -> int:
    columns, rows = int.from_bytes(header[:4]), int.from_bytes(header[4:8])
    bits, interlaced = header[8] * _SAMPLES[header[9]], bool(header[12])
    total = 0
    for left, top, across, down in _PASSES if interlaced else ((0, 0, 1, 1),):
        width, height = -((left - columns) // across), -((top - rows) // down)
        if width > 0 and height > 0:
            total += height * (1 + -(-width * bits // 8))  # a byte names the filter of a row
    return total


def _chunks(data: bytes) -> Iterator[tuple[bytes, memoryview]]:
    """Yield the kind and the content of each part of the file."""
    view, start = memoryview(data), _SIGNATURE
    while start + 8 <= len(data):
        stop = start + 8 + int.from_bytes(view[start : start + 4])
        yield bytes(view[start + 4 : start + 8]), view[start + 8 : stop]
        start = stop + 4
