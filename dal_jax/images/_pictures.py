"""Pictures by Pillow and tifffile: what the stored numbers mean is known, or the file is refused.

Brightness, palettes, orientation, the images of a file, and the bands beside the colours are
interpreted here and nowhere else. `read_picture` and `read_tiff` take the library that decodes.
"""

import contextlib
import itertools
import logging
import math
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from dal_jax._errors import InputError
from dal_jax.images._png import size_of_png

# Largest number of pixels of a TIFF file, which Pillow has for other files.
MOST_PIXELS = 178_956_970
# Number of pages of a TIFF file at which counting stops.
_MOST_PAGES = 1000
# Formats that Pillow may take a file for, whatever its name.
_FORMATS = ("PNG", "JPEG", "BMP", "GIF", "WEBP", "JPEG2000", "PPM")
# Modes of Pillow that are grey or RGB, some with a transparency.
_MODES = ("1", "L", "I", "I;16", "RGB", "LA", "RGBA")
# PNGs of 16 bits that Pillow would cut to 8.
_DEEP = ("LA;16B", "RGB;16B", "RGBA;16B")
# Tags of TIFF and EXIF, and values of the photometric interpretation.
_PHOTOMETRIC, _ORIENTATION, _GDAL_METADATA, _GDAL_NODATA = 262, 274, 42112, 42113
_UNCOMPRESSED = 1
_WHITE_IS_ZERO, _PALETTE, _YCBCR = 0, 3, 6
_COLOURS = {_WHITE_IS_ZERO: 1, 1: 1, 2: 3, _PALETTE: 1}
# Compressions by JPEG, whose decoder turns YCbCr into RGB; the last has whole files as segments.
_JPEG = (6, 7)
_WHOLE_JPEG = 7
# What ends a JPEG file, and in how many of its last bytes, as some are filled up.
_JPEG_END, _JPEG_TAIL = b"\xff\xd9", 16
# Colours of JPEG 2000 that are decoded to RGB or grey: sRGB, grey, sYCC.
_COLOURS_OF_JPEG2000 = (16, 17, 18)
_PREMULTIPLIED, _ALPHA = 1, 2
# Orientation: whether rows and columns change places, then the steps through both.
_TURNS = {
    1: (False, 1, 1),
    2: (False, 1, -1),
    3: (False, -1, -1),
    4: (False, -1, 1),
    5: (True, 1, 1),
    6: (True, 1, -1),
    7: (True, -1, -1),
    8: (True, -1, 1),
}


class Picture(NamedTuple):
    """The pixels of a file, upright and with black as the smallest value."""

    pixels: np.ndarray  # (H, W) or (H, W, C), in the type of the file where that has the range
    alpha: np.ndarray | None = None  # (H, W) transparency, 0 where transparent
    entries: np.ndarray | None = None  # (H, W) entries of the palette that gave the pixels


def read_picture(path: Path, pillow: Any) -> Picture:
    """Read a PNG, JPEG, BMP, GIF, WebP, JPEG 2000 or PNM file with the module `PIL.Image`."""
    with pillow.open(path, formats=_FORMATS) as picture:
        count = getattr(picture, "n_frames", 1)
        if count != 1 and not _first_is_primary(picture):
            raise refusal(path, f"holds {count} images, expected one")
        raw = picture.tile[0][3] if picture.tile else None
        _check_depth(picture, raw, path)
        entries = None
        if picture.mode in ("P", "PA"):
            entries = np.asarray(picture).reshape(*picture.size[::-1], -1)[..., 0]
            _check_entries(entries, len(picture.getpalette("RGB")) // 3, path)
        if raw in _DEEP:
            pixels = _read_deep(path, pillow, raw)
        else:
            pixels = np.asarray(_in_colours(picture, path))
        if picture.format == "PNG":
            _check_rows(path)
        turn = _turn(_orientation(picture), path)
    pixels = pixels.astype(np.uint16) if pixels.dtype.kind == "i" else pixels  # mode "I"
    alpha = None
    if pixels.shape[2:] in ((2,), (4,)):
        pixels, alpha = _split(pixels)
    return _upright(Picture(pixels, alpha, entries), turn)


def _orientation(picture: Any) -> Any:
    """Return the orientation of EXIF, without that of XMP, which Pillow takes where EXIF has none.

    A PNG may have either behind its pixels, so that they are read first.
    """
    picture.load()
    for name in ("XML:com.adobe.xmp", "xmp"):
        picture.info.pop(name, None)
    return picture.getexif().get(_ORIENTATION)


def read_tiff(path: Path, tifffile: Any) -> Picture:
    """Read a TIFF file with the module `tifffile`."""
    with _strictly(), tifffile.TiffFile(path) as file:
        page = _only_page(file, path)
        colours = _num_colours(page, path)
        _check_meaning(file, page, path)
        turn = _turn(page.tags.valueof(_ORIENTATION), path)
        missing = page.tags.valueof(_GDAL_NODATA)
        palette = page.colormap if page.photometric == _PALETTE else None
        stored = _decoded(page, path)
    if missing is not None and (stored == float(missing)).any():
        raise refusal(path, f"pixels are missing (GDAL_NODATA {missing}), expected all of them")
    if page.axes == "SYX":
        stored = np.moveaxis(stored, 0, -1)
    elif page.axes not in ("YX", "YXS"):
        raise refusal(path, f"holds {page.axes} of shape {stored.shape}, expected one image")
    alpha = None
    if page.samplesperpixel > colours:
        stored, alpha = _split(stored)
        if page.extrasamples == (_PREMULTIPLIED,):
            if (alpha != _full(page, alpha)).any():
                raise refusal(path, "colours multiplied by a transparency, expected opaque ones")
            alpha = None
    if palette is not None:
        return _upright(Picture(_looked_up(palette, stored, path), None, stored), turn)
    return _upright(Picture(_scaled(page, stored, path), alpha), turn)


def refusal(path: Path, reason: str) -> InputError:
    """Return the one-line error that refuses an image file for a reason."""
    return InputError(f"image {str(path)!r}: {reason}")


def _first_is_primary(picture: Any) -> bool:
    """Return whether a JPEG of several images names its first as the primary one."""
    if picture.format != "MPO":
        return False
    return picture.mpinfo[0xB002][0]["Attribute"]["MPType"] == "Baseline MP Primary Image"


def _check_depth(picture: Any, raw: Any, path: Path) -> None:
    """Refuse formats of more bits than Pillow gives, or of a range that it does not fill."""
    if picture.format == "PPM" and picture.mode in ("1", "L", "I", "RGB"):
        _check_pnm(picture, raw, path)
    if picture.format == "GIF" and tuple(picture.tile[0][1]) != (0, 0, *picture.size):
        raise refusal(path, "a frame that is smaller than its picture, expected a whole one")
    if picture.format == "BMP" and picture.tile[0][0] == "raw":
        _check_bmp(picture.mode, path)
    if picture.format == "JPEG2000":
        data = path.read_bytes()
        bits, code = _bits_of_jpeg2000(data), _colours_of_jpeg2000(data)
        if bits - {8} and not (bits == {16} and picture.mode == "I;16"):
            expected = "8, or 16 of one grey channel: store it as PNG"
            raise refusal(path, f"{_listed(bits)} bits a sample, expected {expected}")
        if code is not None and code not in _COLOURS_OF_JPEG2000:
            raise refusal(
                path, f"colours of code {code}, expected 16 (sRGB), 17 (grey) or 18 (YCC)"
            )


def _check_rows(path: Path) -> None:
    """Refuse a PNG with less data than its rows have, which Pillow fills with zeros."""
    found, expected = size_of_png(path.read_bytes())
    if found < expected:
        raise refusal(path, f"{found} bytes of rows, expected {expected}")


def _check_pnm(picture: Any, raw: Any, path: Path) -> None:
    """Refuse values above the largest one, which Pillow cuts to it, and a second image."""
    codec, _, start, _ = picture.tile[0]
    top = raw[1] if isinstance(raw, tuple) else 65535 if raw == "I;16B" else 255
    if picture.mode == "RGB" and top > 255:
        raise refusal(path, f"colours up to {top}, expected at most 255: store it as PNG")
    if codec == "ppm_plain":
        return  # the decoder of numbers in words refuses larger ones
    columns, rows = picture.size
    row = -(-columns // 8) if picture.mode == "1" else columns * len(picture.getbands())
    data, size = path.read_bytes()[start:], row * rows * (1 if top < 256 else 2)
    found = np.frombuffer(data[:size], np.uint8 if top < 256 else ">u2").max(initial=0)
    if found > top:
        raise refusal(path, f"values up to {found}, expected at most {top}")
    if re.match(rb"P[1-7]\s", data[size:].lstrip()):
        raise refusal(path, "holds 2 or more images, expected one")


def _check_entries(entries: np.ndarray, count: int, path: Path) -> None:
    if entries.max(initial=0) >= count:
        raise refusal(path, f"entry {entries.max()} of a palette of {count} colours")


def _check_bmp(mode: str, path: Path) -> None:
    """Refuse palettes of greys that Pillow takes for grey pixels of another number of bits."""
    usual = {"1": (1, "4 or 8 bits with a palette of two greys"), "L": (8, "1 or 4 bits of greys")}
    bits, words = usual.get(mode, (None, ""))
    if bits is not None and _bits_of_bmp(path) != bits:
        raise refusal(path, f"{words}, which cannot be decoded: store it as PNG")


def _bits_of_bmp(path: Path) -> int:
    """Return the bits of a pixel, whose place depends on the size of the header."""
    with open(path, "rb") as file:
        head = file.read(30)
    start = 24 if int.from_bytes(head[14:18], "little") == 12 else 28
    return int.from_bytes(head[start : start + 2], "little")


def _bits_of_jpeg2000(data: bytes) -> set[int]:
    """Return the bits of each component, negative for signed ones, from the SIZ marker."""
    start = data.index(b"\xff\x4f\xff\x51")
    count = int.from_bytes(data[start + 40 : start + 42])
    sizes = data[start + 42 : start + 42 + 3 * count : 3]
    return {(1 + (n & 127)) * (-1 if n & 128 else 1) for n in sizes}


def _colours_of_jpeg2000(data: bytes) -> int | None:
    """Return the code of the colours by the first box that names them; None without a code."""
    for kind, header in _boxes(data):
        if kind != b"jp2h":
            continue
        for inner, colours in _boxes(header):
            if inner == b"colr":
                return int.from_bytes(colours[3:7]) if colours[0] == 1 else None
    return None


def _boxes(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Yield the kind and the content of each box of JPEG 2000; a bare codestream has none."""
    start = 0
    while start + 8 <= len(data) and not data.startswith(b"\xff\x4f"):
        size, kind, head = int.from_bytes(data[start : start + 4]), data[start + 4 : start + 8], 8
        if size == 1:
            size, head = int.from_bytes(data[start + 8 : start + 16]), 16
        stop = start + size if size else len(data)
        yield kind, data[start + head : stop]
        start = max(stop, start + head)


def _listed(numbers: set[int]) -> str:
    return " and ".join(map(str, sorted(numbers)))


def _in_colours(picture: Any, path: Path) -> Any:
    """Return a picture as grey or RGB, with its transparency in a last channel if it has one."""
    clear = "transparency" in picture.info  # of single entries or colours
    if picture.mode in ("P", "PA"):
        return picture.convert("RGBA" if clear or picture.mode == "PA" else "RGB")
    if picture.mode in ("1", "L", "RGB") and clear:
        return picture.convert("RGBA" if picture.mode == "RGB" else "LA")
    if picture.mode not in _MODES:
        raise refusal(path, f"colours {picture.mode}, expected grey, RGB or a palette")
    return picture


def _read_deep(path: Path, pillow: Any, raw: str) -> np.ndarray:
    """Read a PNG of 16 bits and several channels: its high bytes, and again its low ones."""
    if raw == "LA;16B":  # four bytes a pixel, as of RGBA: of the grey, and of the transparency
        both = _read_as(path, pillow, "RGBA")
        high, low = both[..., ::2], both[..., 1::2]
    else:  # the other order of bytes takes the low byte for the high one
        high, low = (_read_as(path, pillow, f"{raw[:-1]}{order}") for order in "BL")
    return high.astype(np.uint16) << 8 | low


def _read_as(path: Path, pillow: Any, raw: str) -> np.ndarray:
    with pillow.open(path, formats=("PNG",)) as picture:
        picture.tile = [(*tile[:3], raw) for tile in picture.tile]
        return np.asarray(picture)


@contextlib.contextmanager
def _strictly() -> Iterator[None]:
    """Turn into an error what tifffile else writes to its log before it goes on and guesses."""
    logger = logging.getLogger("tifffile")

    def refuse(record: logging.LogRecord) -> bool:
        if record.levelno >= logging.ERROR:
            raise ValueError(record.getMessage())
        return False

    logger.addFilter(refuse)
    try:
        yield
    finally:
        logger.removeFilter(refuse)


def _only_page(file: Any, path: Path) -> Any:
    """Return the only page that is neither a smaller copy nor a transparency of another."""
    every = (p for page in file.pages for p in (page, *(page.pages or ())))
    pages = list(itertools.islice(every, _MOST_PAGES))  # the chain of a damaged file has no end
    own = [p for p in pages if not (p.is_reduced or p.is_mask)] or pages
    if len(own) != 1 or len(pages) == _MOST_PAGES:
        more = " or more" if len(pages) == _MOST_PAGES else ""
        raise refusal(path, f"holds {len(own)}{more} images, expected one")
    # Some programs describe a stack in words and store it behind the first page.
    stack = 1 if file.is_ome else max(math.prod(series.shape) for series in file.series)
    if stack > own[0].size:
        raise refusal(path, f"holds a stack of {stack // own[0].size} images, expected one")
    return own[0]


def _num_colours(page: Any, path: Path) -> int:
    """Return the number of samples that are colours; refuse what is neither grey nor RGB."""
    by_jpeg = page.compression in _JPEG
    if _PHOTOMETRIC not in page.tags and not by_jpeg:
        raise refusal(path, "no photometric interpretation, expected grey, RGB or a palette")
    colours = 3 if page.photometric == _YCBCR and by_jpeg else _COLOURS.get(page.photometric)
    if colours is None:
        name = getattr(page.photometric, "name", page.photometric)
        raise refusal(path, f"colours {name}, expected grey, RGB or a palette")
    if page.samplesperpixel < colours:
        raise refusal(path, f"{page.samplesperpixel} samples a pixel, expected {colours}")
    more, kinds = page.samplesperpixel - colours, tuple(page.extrasamples)
    known = kinds in ((_ALPHA,), (_PREMULTIPLIED,)) and page.photometric != _PALETTE
    if more and not (more == 1 and known):
        expected = "none or a transparency (or store all as .npy)"
        raise refusal(path, f"{more} bands of no known meaning, expected {expected}")
    return colours


def _check_meaning(file: Any, page: Any, path: Path) -> None:
    """Refuse bits of several sizes, and numbers that a description scales."""
    if not isinstance(page.bitspersample, int):
        raise refusal(path, f"{page.bitspersample} bits a sample, expected one number")
    scaled = str(page.tags.valueof(_GDAL_METADATA) or "")
    if re.search(r"""role\s*=\s*["'](scale|offset)["']""", scaled):
        raise refusal(path, "values to be scaled (GDAL_METADATA), expected them as they are")
    words = (file.imagej_metadata or {}) if file.is_imagej else {}
    if "c1" in words or words.get("cf") not in (None, 0):
        raise refusal(path, "values calibrated by ImageJ, expected them as they are")
    if page.photometric == _PALETTE and page.colormap is None:
        raise refusal(path, "a palette without a ColorMap, expected its colours")
    if page.compression == _UNCOMPRESSED and page.predictor != 1:
        raise refusal(path, f"predictor {page.predictor:d} without compression, expected none")


def _decoded(page: Any, path: Path) -> np.ndarray:
    pixels = page.imagewidth * page.imagelength
    if pixels > MOST_PIXELS:
        raise refusal(path, f"{pixels} pixels, expected at most {MOST_PIXELS}")
    if not all(page.databytecounts):
        raise refusal(path, "strips or tiles are missing, expected all of them")
    if page.compression == _WHOLE_JPEG and not all(_jpeg_ends(page, path)):
        raise refusal(path, "strips or tiles are cut off, expected whole ones")
    try:
        return page.asarray()
    except (ImportError, NotImplementedError, ValueError) as error:
        if isinstance(error, ValueError) and "imagecodecs" not in str(error):
            raise
        name = getattr(page.compression, "name", page.compression)
        kind = f"compression {name}, {page.bitspersample} bits a sample"
        hint = 'pip install "dal-jax[tiff]"'
        raise refusal(path, f"{kind}: reading it needs imagecodecs: {hint}") from error


def _jpeg_ends(page: Any, path: Path) -> Iterator[bool]:
    """Yield for each segment whether it has its end; decoders fill what is missing with grey."""
    with open(path, "rb") as file:
        for start, size in zip(page.dataoffsets, page.databytecounts, strict=True):
            tail = min(size, _JPEG_TAIL)
            file.seek(start + size - tail)
            yield _JPEG_END in file.read(tail)


def _scaled(page: Any, stored: np.ndarray, path: Path) -> np.ndarray:
    """Turn white into the largest value, and bits that do not fill their type into [0, 1]."""
    if page.photometric == _WHITE_IS_ZERO:
        if stored.dtype.kind not in "bu":
            expected = "unsigned integers, or black as zero"
            raise refusal(path, f"white is zero of type {stored.dtype}, expected {expected}")
        stored = ~stored if stored.dtype.kind == "b" else _full(page, stored) - stored
    if stored.dtype.kind == "u" and page.bitspersample < 8 * stored.dtype.itemsize:
        return stored / float(_full(page, stored))
    return stored


def _full(page: Any, values: np.ndarray) -> Any:
    """Return the largest value that samples of this type and number of bits can have."""
    if values.dtype.kind == "u":
        return values.dtype.type(2**page.bitspersample - 1)
    return values.dtype.type(1)


def _looked_up(colormap: np.ndarray, entries: np.ndarray, path: Path) -> np.ndarray:
    """Return the colours (H, W, 3) of the entries of a palette (3, N)."""
    palette = colormap.T
    if palette.max(initial=0) < 256:
        palette = palette.astype(np.uint8)  # stored without the shift to 16 bits
    elif not (palette % 256).any() or (palette % 257 == 0).all():
        palette = (palette >> 8).astype(np.uint8)  # 8 bits in one of the two usual ways
    _check_entries(entries, len(palette), path)
    return palette[entries.astype(np.intp)]  # entries of 1 bit are booleans


def _split(pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the colours and the last channel."""
    colours = pixels[..., :-1]
    return colours[..., 0] if colours.shape[-1] == 1 else colours, pixels[..., -1]


def _turn(orientation: Any, path: Path) -> tuple[bool, int, int]:
    found = _TURNS.get(orientation or 1)  # some cameras write 0 for none
    if found is None:
        raise refusal(path, f"orientation {orientation!r}, expected a number from 1 to 8")
    return found


def _upright(picture: Picture, turn: Sequence[int]) -> Picture:
    across, rows, columns = turn

    def turned(values: np.ndarray | None) -> np.ndarray | None:
        if values is None:
            return None
        return (values.swapaxes(0, 1) if across else values)[::rows, ::columns]

    pixels = turned(picture.pixels)
    assert pixels is not None
    return Picture(pixels, turned(picture.alpha), turned(picture.entries))
