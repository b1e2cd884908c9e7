"""Photographs as people have them: what their numbers mean, or one line that refuses them."""

import io
import json
import re
import struct
import zlib
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from file_cases import FileCase, check, check_table

from dal_jax import DalConfig, InputError
from dal_jax.cli import main
from dal_jax.diffusion import save_checkpoint
from dal_jax.images import open_data, read_image, read_images, read_mask
from dal_jax.models import UNetConfig, init_unet

pillow = pytest.importorskip("PIL.Image")
tifffile = pytest.importorskip("tifffile")
ops = pytest.importorskip("PIL.ImageOps")

RNG = np.random.default_rng(0)
GREY = RNG.integers(0, 256, (5, 7)).astype(np.uint8)
COLOUR = RNG.integers(0, 256, (5, 7, 3)).astype(np.uint8)
GREYS = np.arange(256, dtype=np.uint8).reshape(16, 16)
ALPHA = RNG.integers(0, 256, (5, 7, 1)).astype(np.uint8)
DEEP = RNG.integers(0, 65536, (5, 7, 4)).astype(np.uint16)
EIGHT = np.ones((8, 8), np.uint8)
BITS = GREY > 127
ENTRIES = (GREY % 4).astype(np.uint8)
PALETTE = np.array([[0, 0, 0], [255, 0, 0], [9, 200, 7], [255, 255, 255]], np.uint8)
DEEP_PALETTE = np.arange(12, dtype=np.uint16).reshape(4, 3) * 5000 + 1


def in_range(pixels: np.ndarray) -> np.ndarray:
    """What `read_image` returns for pixels that are read as they are."""
    full = np.iinfo(pixels.dtype).max if pixels.dtype.kind == "u" else 1
    return pixels.reshape(*pixels.shape[:2], -1) / float(full)


def chunk(kind: bytes, data: bytes) -> bytes:
    """A part of a PNG file."""
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def passes(pixels: np.ndarray, interlaced: bool) -> list[np.ndarray]:
    """The pictures of a PNG file one after the other: one, or the seven of Adam7."""
    if not interlaced:
        return [pixels]
    starts = [(0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2)]
    parts = [pixels[y::dy, x::dx] for y, x, dy, dx in [*starts, (1, 0, 2, 1)]]
    return [part for part in parts if part.size]


def deep_png(path: Path, pixels: np.ndarray, interlaced: bool = False, exif: bytes = b"") -> None:
    """Write a PNG of 16 bits with any number of channels, and the filters of rows in turn."""
    step = 2 * pixels.shape[2]
    rows = b""
    for part in passes(pixels, interlaced):
        above = np.zeros(part.shape[1] * step, np.int64)
        for number, row in enumerate(part.astype(">u2")):
            own = np.frombuffer(row.tobytes(), np.uint8).astype(np.int64)
            left = np.concatenate([np.zeros(step, np.int64), own[:-step]])
            guess = (0 * own, left, above, (left + above) // 2)[number % 4]
            rows += bytes([number % 4]) + ((own - guess) % 256).astype(np.uint8).tobytes()
            above = own
    kind = {1: 0, 2: 4, 3: 2, 4: 6}[pixels.shape[2]]
    head = struct.pack(">IIBBBBB", *pixels.shape[1::-1], 16, kind, 0, 0, interlaced)
    more = chunk(b"eXIf", exif.removeprefix(b"Exif\0\0")) if exif else b""
    data = chunk(b"IHDR", head) + more + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + data)


def turned_exif(orientation: int) -> bytes:
    """The EXIF block that gives an orientation."""
    exif = pillow.Exif()
    exif[274] = orientation
    return exif.tobytes()


def picture(pixels: np.ndarray, mode: str | None = None, **more: Any) -> Callable[[Path], None]:
    """A writer of pixels by Pillow, after a conversion to a mode."""

    def write(path: Path) -> None:
        made = pillow.fromarray(pixels)
        (made if mode is None else made.convert(mode)).save(path, **more)

    return write


def indexed(palette: np.ndarray, **more: Any) -> Callable[[Path], None]:
    """A writer of entries of a palette by Pillow."""

    def write(path: Path) -> None:
        made = pillow.fromarray(ENTRIES, "L")
        made.putpalette(palette.tobytes())
        made.save(path, **more)

    return write


def tiff(pixels: np.ndarray, **more: Any) -> Callable[[Path], None]:
    """A writer of pixels by tifffile, without words of its own."""
    return lambda path: tifffile.imwrite(path, pixels, **{"metadata": None, **more})


def patched(write: Callable[[Path], None], **tags: Any) -> Callable[[Path], None]:
    """A writer that changes tags of the TIFF file which another one writes."""

    def change(path: Path) -> None:
        write(path)
        with tifffile.TiffFile(path, mode="r+") as file:
            for name, value in tags.items():
                file.pages[0].tags[name].overwrite(value)

    return change


def pages(*images: np.ndarray, kinds: tuple[int, ...] = (0, 0), **more: Any) -> Any:
    """A writer of several images into a TIFF file."""

    def write(path: Path) -> None:
        with tifffile.TiffWriter(path, **more) as file:
            for image, kind in zip(images, kinds, strict=False):
                file.write(image, subfiletype=kind, metadata=None, photometric="minisblack")

    return write


def lzw(path: Path) -> None:
    """Write a TIFF compressed with LZW, which Pillow can and tifffile alone cannot decode."""
    pillow.fromarray(GREY).save(path, compression="tiff_lzw")


def several(pixels: np.ndarray, **more: Any) -> Callable[[Path], None]:
    """A writer of two pictures into one file by Pillow."""
    both = [pillow.fromarray(pixels), pillow.fromarray(255 - pixels)]
    return lambda path: both[0].save(path, save_all=True, append_images=both[1:], **more)


def raw(data: bytes) -> Callable[[Path], object]:
    """A writer of bytes."""
    return lambda path: path.write_bytes(data)


def jpeg_of(pixels: np.ndarray, **more: Any) -> bytes:
    """A JPEG file as bytes."""
    stream = io.BytesIO()
    pillow.fromarray(pixels).save(stream, "JPEG", **more)
    return stream.getvalue()


def as_pillow_reads(data: bytes) -> np.ndarray:
    """What `read_image` returns for a file that Pillow reads as it is."""
    return in_range(np.asarray(pillow.open(io.BytesIO(data))))


TURN = "read: turned upright"
OPAQUE = np.concatenate([COLOUR, np.full((5, 7, 1), 255, np.uint8)], -1)
CLEAR = np.concatenate([COLOUR, ALPHA], -1)
UNASSOCIATED, ASSOCIATED = {"extrasamples": ["unassalpha"]}, {"extrasamples": ["assocalpha"]}
RGB = {"photometric": "rgb"}
FLAT = {"photometric": "minisblack"}
TIFF_PALETTE = {"photometric": "palette"}


def colormap(palette: np.ndarray, factor: int) -> np.ndarray:
    """The palette of a TIFF file (3, 256)."""
    found = np.zeros((3, 256), np.uint16)
    found[:, : len(palette)] = palette.T.astype(np.uint16) * factor
    return found


def colour_tag(palette: np.ndarray) -> tuple[int, str, int, list[int], bool]:
    """The tag of a palette of any number of colours, of which tifffile writes some alone."""
    colours = (palette.T.astype(int) * 257).ravel().tolist()
    return 320, "H", len(colours), colours, True


def xmp_of(number: int) -> bytes:
    """A description in XMP that gives an orientation."""
    return f'<x:xmpmeta><rdf:Description tiff:Orientation="{number}"/></x:xmpmeta>'.encode()


def in_xmp(number: int) -> Any:
    """What makes Pillow write such a description into a PNG."""
    from PIL.PngImagePlugin import PngInfo

    found = PngInfo()
    found.add_itxt("XML:com.adobe.xmp", xmp_of(number).decode())
    return found


def orientation(number: int) -> dict[str, Any]:
    """What makes tifffile write an orientation."""
    return {"extratags": [(274, "H", 1, number, True)]}


PNG = [
    FileCase("PNG", "8 bits, grey", "read: one channel", "x.png", picture(GREY), in_range(GREY)),
    FileCase("PNG", "1 bit", "read: black 0, white 1", "x.png", picture(BITS), in_range(BITS)),
    FileCase(
        "PNG", "8 bits, RGB", "read: three channels", "x.png", picture(COLOUR), in_range(COLOUR)
    ),
    FileCase(
        "PNG",
        "grey with transparency",
        "read: the transparency is dropped",
        "x.png",
        picture(np.concatenate([GREY[..., None], ALPHA], -1)),
        in_range(GREY),
    ),
    FileCase(
        "PNG",
        "RGB with transparency",
        "read: the transparency is dropped",
        "x.png",
        picture(CLEAR),
        in_range(COLOUR),
    ),
    FileCase(
        "PNG",
        "palette",
        "read: the colours that it names",
        "x.png",
        indexed(PALETTE),
        in_range(PALETTE[ENTRIES]),
    ),
    FileCase(
        "PNG",
        "palette with transparent entries",
        "read: the colours; the transparency is dropped",
        "x.png",
        indexed(PALETTE, transparency=b"\x00\x80\xff"),
        in_range(PALETTE[ENTRIES]),
    ),
    *(
        FileCase(
            "PNG",
            f"16 bits, {name}",
            "read: all 16 bits" + ("; the transparency is dropped" if channels in (2, 4) else ""),
            "x.png",
            partial(deep_png, pixels=DEEP[..., :channels]),
            in_range(DEEP[..., :kept]),
        )
        for name, channels, kept in (
            ("grey", 1, 1),
            ("grey with transparency", 2, 1),
            ("RGB", 3, 3),
            ("RGB with transparency", 4, 3),
        )
    ),
    FileCase(
        "PNG",
        "16 bits, RGB, interlaced",
        "read: all 16 bits",
        "x.png",
        partial(deep_png, pixels=DEEP[..., :3], interlaced=True),
        in_range(DEEP[..., :3]),
    ),
    FileCase(
        "PNG",
        "EXIF orientation",
        TURN,
        "x.png",
        picture(COLOUR, exif=turned_exif(6)),
        in_range(np.rot90(COLOUR, -1)),
    ),
    FileCase(
        "PNG",
        "16 bits, EXIF orientation",
        TURN,
        "x.png",
        partial(deep_png, pixels=DEEP[..., :3], exif=turned_exif(8)),
        in_range(np.rot90(DEEP[..., :3])),
    ),
    FileCase(
        "PNG",
        "an orientation in XMP alone",
        "read: as it is",
        "x.png",
        lambda path: picture(COLOUR, pnginfo=in_xmp(6))(path),
        in_range(COLOUR),
    ),
    FileCase(
        "PNG",
        "fewer rows than its header says",
        "16 bytes of rows, expected 40",
        "x.png",
        lambda path: with_rows(path, 2),
    ),
    FileCase("PNG", "animated", "holds 2 images, expected one", "x.png", several(GREY)),
]
OTHERS = [
    FileCase(
        "JPEG",
        "grey",
        "read: one channel",
        "x.jpg",
        raw(jpeg_of(GREY)),
        as_pillow_reads(jpeg_of(GREY)),
    ),
    FileCase(
        "JPEG",
        "YCbCr",
        "read: RGB",
        "x.jpeg",
        raw(jpeg_of(COLOUR)),
        as_pillow_reads(jpeg_of(COLOUR)),
    ),
    FileCase(
        "JPEG",
        "EXIF orientation",
        TURN,
        "x.jpg",
        raw(jpeg_of(COLOUR, exif=turned_exif(5))),
        as_pillow_reads(jpeg_of(COLOUR)).swapaxes(0, 1),
    ),
    FileCase(
        "JPEG",
        "EXIF orientation 0 (none)",
        "read: as it is",
        "x.jpg",
        raw(jpeg_of(COLOUR, exif=turned_exif(0))),
        as_pillow_reads(jpeg_of(COLOUR)),
    ),
    FileCase(
        "JPEG",
        "an orientation in XMP alone",
        "read: as it is",
        "x.jpg",
        lambda path: path.write_bytes(jpeg_of(COLOUR, xmp=xmp_of(6))),
        as_pillow_reads(jpeg_of(COLOUR)),
    ),
    FileCase(
        "JPEG",
        "EXIF orientation 9",
        "orientation 9, expected a number from 1 to 8",
        "x.jpg",
        raw(jpeg_of(COLOUR, exif=turned_exif(9))),
    ),
    FileCase(
        "JPEG",
        "CMYK",
        "colours CMYK, expected grey, RGB or a palette",
        "x.jpg",
        picture(COLOUR, "CMYK"),
    ),
    FileCase(
        "JPEG",
        "several images, the first is named as the primary one (MPO)",
        "read: the primary one",
        "x.jpg",
        several(COLOUR, format="MPO"),
        as_pillow_reads(jpeg_of(COLOUR)),
    ),
    FileCase(
        "JPEG",
        "several images of equal rank (MPO)",
        "holds 2 images, expected one",
        "x.jpg",
        lambda path: equal_ranks(path),
    ),
    FileCase("BMP", "grey", "read: one channel", "x.bmp", picture(GREY), in_range(GREY)),
    FileCase("BMP", "RGB", "read: three channels", "x.bmp", picture(COLOUR), in_range(COLOUR)),
    FileCase(
        "BMP",
        "palette",
        "read: the colours that it names",
        "x.bmp",
        indexed(PALETTE),
        in_range(PALETTE[ENTRIES]),
    ),
    FileCase(
        "BMP",
        "8 bits, two greys as palette",
        "4 or 8 bits with a palette of two greys, which cannot be decoded: store it as PNG",
        "x.bmp",
        lambda path: small_bmp(path, 8, [0, 255]),
    ),
    FileCase(
        "BMP",
        "4 bits, greys from 0 to 15 as palette",
        "1 or 4 bits of greys, which cannot be decoded: store it as PNG",
        "x.bmp",
        lambda path: small_bmp(path, 4, list(range(16))),
    ),
    FileCase(
        "BMP",
        "an entry that its palette does not have",
        "entry 1 of a palette of 1 colours",
        "x.bmp",
        lambda path: small_bmp(path, 8, [9]),
    ),
    FileCase(
        "GIF",
        "all 256 greys as palette",
        "read: one channel",
        "x.gif",
        picture(GREYS),
        in_range(GREYS),
    ),
    FileCase(
        "GIF",
        "palette",
        "read: the colours that it names",
        "x.gif",
        indexed(PALETTE),
        in_range(PALETTE[ENTRIES]),
    ),
    FileCase(
        "GIF",
        "a frame that does not fill the picture",
        "a frame that is smaller than its picture, expected a whole one",
        "x.gif",
        lambda path: larger_gif(path),
    ),
    FileCase("GIF", "animated", "holds 2 images, expected one", "x.gif", several(GREY)),
    FileCase(
        "WebP",
        "RGB",
        "read: three channels",
        "x.webp",
        picture(COLOUR, lossless=True),
        in_range(COLOUR),
    ),
    FileCase(
        "WebP",
        "RGB with transparency",
        "read: the transparency is dropped",
        "x.webp",
        picture(CLEAR, lossless=True, exact=True),
        in_range(COLOUR),
    ),
    FileCase(
        "WebP",
        "animated",
        "holds 2 images, expected one",
        "x.webp",
        several(COLOUR, lossless=True),
    ),
    FileCase("JPEG 2000", "8 bits", "read", "x.jp2", picture(COLOUR), in_range(COLOUR)),
    FileCase(
        "JPEG 2000",
        "16 bits, grey",
        "read: all 16 bits",
        "x.jp2",
        picture(DEEP[..., 0]),
        in_range(DEEP[..., 0]),
    ),
    FileCase(
        "JPEG 2000",
        "other numbers of bits, or 16 in colour",
        "12 bits a sample, expected 8, or 16 of one grey channel: store it as PNG",
        "x.j2k",
        lambda path: other_bits(path, 12),
    ),
    FileCase(
        "JPEG 2000",
        "colours other than sRGB, grey or YCC, by the code of the file",
        "colours of code 14, expected 16 (sRGB), 17 (grey) or 18 (YCC)",
        "x.jp2",
        lambda path: with_colours(path, 14),
    ),
    FileCase("PGM", "up to 255", "read: one channel", "x.pgm", picture(GREY), in_range(GREY)),
    FileCase(
        "PGM",
        "up to 65535",
        "read: all 16 bits",
        "x.pgm",
        raw(b"P5 7 5 65535\n" + DEEP[..., 0].astype(">u2").tobytes()),
        in_range(DEEP[..., 0]),
    ),
    FileCase(
        "PGM",
        "up to another number, 15",
        "read: that number becomes 1",
        "x.pgm",
        raw(b"P5 7 5 15\n" + (GREY // 16).tobytes()),
        in_range(GREY // 16 * 17),
    ),
    FileCase(
        "PGM",
        "values above the largest one that it names",
        "values up to 90, expected at most 15",
        "x.pgm",
        raw(b"P5 3 1 15\n\x00\x0f\x5a"),
    ),
    FileCase(
        "PGM, PBM, PPM",
        "a second image behind the first",
        "holds 2 or more images, expected one",
        "x.pgm",
        raw(2 * (b"P5 7 5 255\n" + GREY.tobytes())),
    ),
    FileCase("PBM", "1 bit", "read: black 0, white 1", "x.pbm", picture(BITS), in_range(BITS)),
    FileCase(
        "PPM", "up to 255", "read: three channels", "x.ppm", picture(COLOUR), in_range(COLOUR)
    ),
    FileCase(
        "PPM",
        "more than 255",
        "colours up to 65535, expected at most 255: store it as PNG",
        "x.ppm",
        raw(b"P6 7 5 65535\n" + DEEP[..., :3].astype(">u2").tobytes()),
    ),
]
TIFFS = [
    FileCase("TIFF", "black is zero", "read: one channel", "x.tif", tiff(GREY), in_range(GREY)),
    FileCase(
        "TIFF",
        "white is zero, 8 bits",
        "read: inverted, black is 0",
        "x.tif",
        tiff(255 - GREY, photometric="miniswhite"),
        in_range(GREY),
    ),
    FileCase(
        "TIFF",
        "white is zero, 16 bits",
        "read: inverted, black is 0",
        "x.tiff",
        tiff(65535 - DEEP[..., 0], photometric="miniswhite"),
        in_range(DEEP[..., 0]),
    ),
    FileCase(
        "TIFF",
        "white is zero, 1 bit",
        "read: inverted, black is 0",
        "x.tif",
        tiff(~BITS, photometric="miniswhite"),
        in_range(BITS),
    ),
    FileCase(
        "TIFF",
        "white is zero, floats",
        "white is zero of type float32, expected unsigned integers, or black as zero",
        "x.tif",
        tiff(GREY.astype(np.float32), photometric="miniswhite"),
    ),
    FileCase("TIFF", "RGB", "read: three channels", "x.tif", tiff(COLOUR, **RGB), in_range(COLOUR)),
    FileCase(
        "TIFF",
        "RGB of one sample a pixel",
        "1 samples a pixel, expected 3",
        "x.tif",
        patched(tiff(GREY, **FLAT), PhotometricInterpretation=2),
    ),
    FileCase(
        "TIFF",
        "RGB, 16 bits, plane by plane",
        "read: three channels",
        "x.tif",
        tiff(np.moveaxis(DEEP[..., :3], -1, 0), planarconfig="separate", **RGB),
        in_range(DEEP[..., :3]),
    ),
    FileCase(
        "TIFF",
        "floats",
        "read: as they are",
        "x.tif",
        tiff(GREY.astype(np.float32), **FLAT),
        in_range(GREY.astype(np.float32)),
    ),
    FileCase(
        "TIFF",
        "integers of other types",
        "values of type int16, expected floats or unsigned 8- or 16-bit integers",
        "x.tif",
        tiff(GREY.astype(np.int16), **FLAT),
    ),
    FileCase(
        "TIFF",
        "palette, 8 bits a colour",
        "read: the colours that it names",
        "x.tif",
        tiff(ENTRIES, colormap=colormap(PALETTE, 257), **TIFF_PALETTE),
        in_range(PALETTE[ENTRIES]),
    ),
    FileCase(
        "TIFF",
        "palette, 16 bits a colour",
        "read: all 16 bits of the colours",
        "x.tif",
        tiff(ENTRIES, colormap=colormap(DEEP_PALETTE, 1), **TIFF_PALETTE),
        in_range(DEEP_PALETTE[ENTRIES]),
    ),
    FileCase(
        "TIFF",
        "palette, 1 bit",
        "read: the colours that it names",
        "x.tif",
        patched(
            tiff(BITS, photometric="minisblack", extratags=[colour_tag(PALETTE[2:])]),
            PhotometricInterpretation=3,
        ),
        in_range(PALETTE[2:][BITS.astype(int)]),
    ),
    FileCase(
        "TIFF",
        "an entry that its palette does not have",
        "entry 3 of a palette of 2 colours",
        "x.tif",
        patched(
            tiff(ENTRIES, photometric="minisblack", extratags=[colour_tag(PALETTE[2:])]),
            PhotometricInterpretation=3,
        ),
    ),
    FileCase(
        "TIFF",
        "palette without colours",
        "a palette without a ColorMap, expected its colours",
        "x.tif",
        patched(tiff(ENTRIES, **FLAT), PhotometricInterpretation=3),
    ),
    *(
        FileCase(
            "TIFF",
            f"{name} with transparency, not multiplied in",
            "read: the transparency is dropped",
            "x.tif",
            tiff(np.concatenate([pixels, ALPHA], -1), **more, **UNASSOCIATED),
            in_range(pixels),
        )
        for name, pixels, more in (
            ("grey", GREY[..., None], {**FLAT, "planarconfig": "contig"}),
            ("RGB", COLOUR, RGB),
        )
    ),
    FileCase(
        "TIFF",
        "transparency multiplied in, opaque everywhere",
        "read: the transparency is dropped",
        "x.tif",
        tiff(OPAQUE, **RGB, **ASSOCIATED),
        in_range(COLOUR),
    ),
    FileCase(
        "TIFF",
        "transparency multiplied in",
        "colours multiplied by a transparency, expected opaque ones",
        "x.tif",
        tiff(CLEAR, **RGB, **ASSOCIATED),
    ),
    FileCase(
        "TIFF",
        "RGB and a fourth band",
        "1 bands of no known meaning, expected none or a transparency (or store all as .npy)",
        "x.tif",
        tiff(CLEAR, **RGB, extrasamples=["unspecified"]),
    ),
    FileCase(
        "TIFF",
        "five bands",
        "4 bands of no known meaning, expected none or a transparency (or store all as .npy)",
        "x.tif",
        tiff(RNG.integers(0, 256, (5, 7, 5), np.uint8), planarconfig="contig", **FLAT),
    ),
    *(
        FileCase(
            "TIFF",
            words,
            f"colours {name}, expected grey, RGB or a palette",
            "x.tif",
            write,
        )
        for words, name, write in (
            ("CMYK", "SEPARATED", tiff(CLEAR, photometric="separated")),
            ("CIE L*a*b*", "CIELAB", tiff(COLOUR, photometric="cielab")),
            (
                "YCbCr, not by JPEG",
                "YCBCR",
                patched(tiff(COLOUR, **RGB), PhotometricInterpretation=6),
            ),
            ("transparency mask", "MASK", patched(tiff(GREY), PhotometricInterpretation=4)),
            ("linear raw", "LINEAR_RAW", tiff(COLOUR, photometric="linear_raw")),
            ("colour filter array", "CFA", tiff(GREY, photometric="cfa")),
        )
    ),
    FileCase(
        "TIFF",
        "bits of several sizes (5, 6, 5)",
        "(5, 6, 5) bits a sample, expected one number",
        "x.tif",
        patched(tiff(COLOUR, **RGB), BitsPerSample=(5, 6, 5)),
    ),
    FileCase(
        "TIFF",
        "orientation",
        TURN,
        "x.tif",
        tiff(COLOUR, **RGB, **orientation(6)),
        in_range(np.rot90(COLOUR, -1)),
    ),
    FileCase(
        "TIFF",
        "pages of one size",
        "holds 2 images, expected one",
        "x.tif",
        pages(GREY, GREY),
    ),
    FileCase(
        "TIFF",
        "pages of several sizes",
        "holds 2 images, expected one",
        "x.tif",
        pages(GREY[::2, ::2], GREY),
    ),
    FileCase(
        "TIFF",
        "a page marked as a smaller copy, before or behind the picture",
        "read: the picture",
        "x.tif",
        pages(GREY[::2, ::2], GREY, kinds=(1, 0)),
        in_range(GREY),
    ),
    FileCase(
        "TIFF",
        "a stack behind one page, as ImageJ stores it",
        "holds a stack of 3 images, expected one",
        "x.tif",
        lambda path: one_page_of(path, np.stack([GREY, GREY, GREY])),
    ),
    FileCase(
        "TIFF",
        "OME-TIFF with two images",
        "holds 2 images, expected one",
        "x.ome.tif",
        lambda path: tifffile.imwrite(path, np.stack([GREY, GREY]), ome=True),
    ),
    FileCase(
        "TIFF",
        "OME-TIFF with one image",
        "read",
        "x.ome.tif",
        lambda path: tifffile.imwrite(path, GREY, ome=True),
        in_range(GREY),
    ),
    FileCase(
        "TIFF",
        "values calibrated by ImageJ",
        "values calibrated by ImageJ, expected them as they are",
        "x.tif",
        lambda path: tifffile.imwrite(path, GREY, imagej=True, metadata={"c0": -9.0, "c1": 2.0}),
    ),
    FileCase(
        "TIFF",
        "a curve of ImageJ without coefficients",
        "values calibrated by ImageJ, expected them as they are",
        "x.tif",
        tiff(GREY, description="ImageJ=1.53t\ncf=21\nvunit=OD\n", **FLAT),
    ),
    FileCase(
        "TIFF",
        "GDAL_NODATA, and a pixel of that value",
        "pixels are missing (GDAL_NODATA 255), expected all of them",
        "x.tif",
        tiff(np.maximum(GREY, 255 * BITS), extratags=[(42113, "s", 0, "255", True)]),
    ),
    FileCase(
        "TIFF",
        "GDAL_METADATA with a scale",
        "values to be scaled (GDAL_METADATA), expected them as they are",
        "x.tif",
        tiff(GREY, extratags=[(42112, "s", 0, "<Item role='scale'>0.1</Item>", True)]),
    ),
    FileCase(
        "TIFF",
        "no photometric interpretation",
        "no photometric interpretation, expected grey, RGB or a palette",
        "x.tif",
        lambda path: without_photometric(path),
    ),
    FileCase(
        "TIFF",
        "missing strips or tiles",
        "strips or tiles are missing, expected all of them",
        "x.tif",
        patched(tiff(GREY), StripByteCounts=0),
    ),
    FileCase(
        "TIFF",
        "compressed by JPEG, a strip or tile without its end",
        "strips or tiles are cut off, expected whole ones",
        "x.tif",
        lambda path: cut_strip(path),
    ),
    FileCase(
        "TIFF",
        "a predictor without compression",
        "predictor 2 without compression, expected none",
        "x.tif",
        lambda path: renamed_tag(path, 319, 317),
    ),
    FileCase(
        "TIFF",
        "more than 178956970 pixels, as for the other pictures",
        "250000000 pixels, expected at most 178956970",
        "x.tif",
        patched(tiff(GREY), ImageWidth=50_000_000),
    ),
    FileCase(
        "TIFF",
        "a tag that cannot be read",
        "unreadable or damaged (<TiffTag.fromfile> raised",
        "x.tif",
        lambda path: with_a_broken_tag(path),
    ),
    FileCase(
        "TIFF",
        "any of these in a file with another name",
        "read: as a TIFF",
        "x.png",
        lambda path: tiff(255 - GREY, photometric="miniswhite")(path),
        in_range(GREY),
    ),
]
ARRAYS = [
    FileCase(
        ".npy",
        "(H, W), or (H, W, C) of any C",
        "read: every channel",
        "x.npy",
        lambda path: np.save(path, CLEAR),
        in_range(CLEAR),
    ),
    FileCase(
        ".npy",
        "16 bits, either order of bytes",
        "read: all 16 bits",
        "x.npy",
        lambda path: np.save(path, DEEP[..., 0].astype(">u2")),
        in_range(DEEP[..., 0]),
    ),
    FileCase(
        ".npy",
        "(3, H, W)",
        "shape (3, 5, 7) has them first, expected channels in the last axis",
        "x.npy",
        lambda path: np.save(path, np.moveaxis(COLOUR, -1, 0)),
    ),
    FileCase(
        ".npy",
        "a second array or other bytes behind the first",
        "163 bytes behind its array, expected one array alone",
        "x.npy",
        lambda path: two_arrays(path),
    ),
    FileCase(
        "others",
        ".avif, .heic, raw formats of cameras, .svg, .pdf, .mgz, .hdr and .img, ...",
        "unknown kind of file, expected one of",
        "x.heic",
        raw(b"x"),
    ),
]
CASES = [*PNG, *OTHERS, *TIFFS, *ARRAYS]


def with_rows(path: Path, count: int) -> None:
    """Write a PNG of grey that has some of its rows, and is whole to its end."""
    rows = b"".join(b"\0" + row.tobytes() for row in GREY[:count])
    head = struct.pack(">IIBBBBB", 7, 5, 8, 0, 0, 0, 0)
    data = chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + data)


def two_arrays(path: Path) -> None:
    with open(path, "wb") as file:
        np.save(file, GREY)
        np.save(file, GREY)


def equal_ranks(path: Path) -> None:
    """Write two JPEG images of which none is the primary one."""
    several(COLOUR, format="MPO")(path)
    # Its entry: the rank, the size, no offset, no images that depend on it.
    entry = rb"\0\0\x03\0(..\0\0" + 8 * rb"\0" + rb")"
    data, count = re.subn(entry, b"\2\0\2\0\\1", path.read_bytes(), flags=re.S)
    assert count == 1
    path.write_bytes(data)


def other_bits(path: Path, bits: int) -> None:
    """Write a JPEG 2000 codestream whose header gives another number of bits."""
    pillow.fromarray(GREY).save(path)
    data = bytearray(path.read_bytes())
    data[data.index(b"\xff\x4f\xff\x51") + 42] = bits - 1
    path.write_bytes(data)


def small_bmp(path: Path, bits: int, greys: list[int]) -> None:
    """Write a BMP of two pixels, entries 1 and 0 of a palette of greys."""
    palette, row = b"".join(bytes([n, n, n, 0]) for n in greys), b"\1\0\0\0"
    row, start = (b"\x10\0\0\0" if bits == 4 else row), 54 + len(palette)
    head = struct.pack("<IHHI", start + len(row), 0, 0, start)
    info = struct.pack("<IiiHHIIiiII", 40, 2, 1, 1, bits, 0, len(row), 0, 0, len(greys), 0)
    path.write_bytes(b"BM" + head + info + palette + row)


def larger_gif(path: Path) -> None:
    """Write a GIF whose picture is a column wider than its only frame."""
    indexed(PALETTE)(path)
    data = bytearray(path.read_bytes())
    data[6:8] = struct.pack("<H", 8)
    path.write_bytes(data)


def with_colours(path: Path, code: int) -> None:
    """Write a JPEG 2000 file whose colours have a code."""
    pillow.fromarray(COLOUR).save(path)
    data = bytearray(path.read_bytes())
    place = data.index(b"colr") + 7
    data[place : place + 4] = struct.pack(">I", code)
    path.write_bytes(data)


def cut_strip(path: Path) -> None:
    """Write a TIFF compressed by JPEG whose only strip lacks its last bytes."""
    pillow.fromarray(np.kron(GREY, EIGHT)).save(path, compression="jpeg")
    with tifffile.TiffFile(path, mode="r+") as file:
        (size,) = file.pages[0].databytecounts
        file.pages[0].tags["StripByteCounts"].overwrite(size - 20)


def renamed_tag(path: Path, number: int, other: int) -> None:
    """Write a TIFF with a tag of value 2 that tifffile would not write under its number."""
    tiff(GREY, extratags=[(number, "H", 1, 2, True)], **FLAT)(path)
    data, tag = path.read_bytes(), struct.pack("<HHI", number, 3, 1)
    assert data.count(tag) == 1
    path.write_bytes(data.replace(tag, struct.pack("<HHI", other, 3, 1)))


def one_page_of(path: Path, stack: np.ndarray) -> None:
    """Write a stack as ImageJ writes large ones: one page, and the images behind it."""
    words = f"ImageJ=1.53t\nimages={len(stack)}\nslices={len(stack)}\n"
    tifffile.imwrite(path, stack[0], description=words, metadata=None, **FLAT)
    with open(path, "ab") as file:
        file.write(stack[1:].tobytes())


def without_photometric(path: Path) -> None:
    """Write a TIFF that does not say whether black or white is zero."""
    tiff(GREY)(path)
    data, tag = path.read_bytes(), struct.pack("<HH", 262, 3)
    assert data.count(tag) == 1
    path.write_bytes(data.replace(tag, struct.pack("<HH", 263, 3)))


def with_a_broken_tag(path: Path) -> None:
    """Write a TIFF whose resolution lies behind the end of the file."""
    tiff(GREY)(path)
    data = bytearray(path.read_bytes())
    place = data.index(struct.pack("<HHI", 282, 5, 1)) + 8
    data[place : place + 4] = struct.pack("<I", 10**9)
    path.write_bytes(data)


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.kind}: {case.content}")
def test_every_file_is_read_or_refused(case: FileCase, tmp_path: Path) -> None:
    check(case, tmp_path, read_image)


def test_the_page_has_the_table() -> None:
    check_table("Photographs", CASES)


@pytest.mark.parametrize("number", range(1, 9))
@pytest.mark.parametrize("name", ["x.png", "x.tif"])
def test_every_orientation_is_turned_as_by_pillow(tmp_path: Path, name: str, number: int) -> None:
    stored = pillow.fromarray(COLOUR)
    stored.getexif()[274] = number
    if name == "x.png":
        stored.save(tmp_path / name, exif=stored.getexif())
    else:
        tiff(COLOUR, **RGB, **orientation(number))(tmp_path / name)
    expected = np.asarray(ops.exif_transpose(stored))
    np.testing.assert_array_equal(read_image(tmp_path / name), in_range(expected))


@pytest.mark.parametrize(("bits", "top"), [(4, 15), (12, 4095)])
def test_fewer_bits_than_their_type_fill_the_range(tmp_path: Path, bits: int, top: int) -> None:
    """Without imagecodecs such files cannot be decoded, and the line says what to install."""
    values = RNG.integers(0, top + 1, (5, 6)).astype(np.uint16)
    packed = "".join(f"{n:0{bits}b}" for n in values.ravel())
    data = int(packed, 2).to_bytes(len(packed) // 8)
    stored = np.frombuffer(data, np.uint8).reshape(5, -1)
    write = patched(tiff(stored, **FLAT), BitsPerSample=bits, ImageWidth=6)
    write(tmp_path / "x.tif")
    if find_spec("imagecodecs"):
        np.testing.assert_array_equal(read_image(tmp_path / "x.tif")[..., 0], values / top)
        return
    told = rf"{bits} bits a sample: reading it needs imagecodecs: pip install \"dal-jax\[tiff\]\""
    with pytest.raises(InputError, match=told):
        read_image(tmp_path / "x.tif")


@pytest.mark.parametrize(
    ("kind", "name"),
    [("tiff_lzw", "LZW"), ("jpeg", "JPEG"), ("group4", "CCITTFAX4"), ("zstd", "ZSTD")],
)
def test_compressions_are_read_or_name_what_to_install(
    tmp_path: Path, kind: str, name: str
) -> None:
    stored = np.kron(BITS, np.ones((8, 8), bool)) if kind == "group4" else np.kron(GREY, EIGHT)
    pillow.fromarray(stored).save(tmp_path / "x.tif", compression=kind)
    if find_spec("imagecodecs"):
        found = read_image(tmp_path / "x.tif")
        np.testing.assert_allclose(found, in_range(stored), atol=0.02 * (kind == "jpeg"))
        return
    told = rf"compression {name}, . bits a sample: reading it needs imagecodecs: pip install"
    with pytest.raises(InputError, match=told):
        read_image(tmp_path / "x.tif")


@pytest.mark.parametrize(
    ("package", "name", "told"),
    [
        ("skimage", "data/multipage.tif", "holds 2 images, expected one"),
        ("skimage", "data/multipage_rgb.tif", "holds 2 images, expected one"),
        ("skimage", "data/no_time_for_that_tiny.gif", r"holds \d+ images, expected one"),
    ],
)
def test_real_files_of_several_images_are_refused(package: str, name: str, told: str) -> None:
    path = real(package, name)
    with pytest.raises(InputError, match=told):
        read_image(path)


@pytest.mark.parametrize(
    ("package", "name"),
    [
        ("skimage", "data/chelsea.png"),
        ("skimage", "data/logo.png"),
        ("skimage", "data/hubble_deep_field.jpg"),
        ("matplotlib", "mpl-data/sample_data/grace_hopper.jpg"),
        ("matplotlib", "mpl-data/images/home.png"),
    ],
)
def test_real_files_are_read_as_pillow_shows_them(package: str, name: str) -> None:
    path = real(package, name)
    with pillow.open(path) as shown:
        bands = "L" if shown.mode in ("1", "L", "LA") else "RGB"
        expected = np.asarray(ops.exif_transpose(shown).convert("RGBA").convert("RGB"))
    expected = expected[..., :1] if bands == "L" else expected
    np.testing.assert_array_equal(read_image(path), in_range(expected))


def real(package: str, name: str) -> Path:
    """A file of an installed package."""
    found = find_spec(package)
    path = Path(str(found and found.origin)).parent / name
    if not path.is_file():
        pytest.skip(f"{package} is not installed, or without {name}")
    return path


SPOT = np.zeros((5, 7), np.uint8)
SPOT[1:3, 2:4] = 1
RED = np.array([[0, 0, 0], [128, 0, 0]], np.uint8)
MASKS = {
    "white is zero": ("m.tif", tiff(255 - 255 * SPOT, photometric="miniswhite")),
    "white is zero, 1 bit": ("m.tif", tiff(SPOT == 0, photometric="miniswhite")),
    "labels": ("m.png", picture(SPOT)),
    "red": ("m.png", picture(SPOT[..., None] * np.array([255, 0, 0], np.uint8))),
    "dark red of a palette": ("m.png", lambda path: entries_of(SPOT, RED, path)),
    "palette of greys": ("m.gif", lambda path: entries_of(SPOT, 255 * (RED > 0)[:, :1] + 0, path)),
    "transparent around": (
        "m.png",
        picture(np.stack([255 * SPOT, 255 * SPOT], -1)),
    ),
    "PBM": ("m.pbm", picture(SPOT > 0)),
    "WebP": ("m.webp", picture(255 * SPOT, "RGB", lossless=True)),
    "turned": ("m.png", picture(255 * SPOT[::-1, ::-1], exif=turned_exif(3))),
}
UNCLEAR = {
    "in the transparency alone": (
        picture(np.stack([0 * SPOT, 255 * SPOT], -1)),
        "colours and transparency differ",
    ),
    "white in all colours, transparent around": (
        picture(np.stack([0 * SPOT + 255, 255 * SPOT], -1)),
        "colours and transparency differ",
    ),
    "red on white": (
        picture(255 - SPOT[..., None] * np.array([0, 255, 255], np.uint8)),
        "colours without black",
    ),
    "black for one of the labels of a palette": (
        lambda path: entries_of(SPOT, RED[::-1], path),
        "a palette of colours, expected black as entry 0",
    ),
}


def entries_of(entries: np.ndarray, palette: np.ndarray, path: Path) -> None:
    """Write entries of a palette of colours, or of greys (N, 1)."""
    made = pillow.fromarray(entries, "L")
    made.putpalette(np.broadcast_to(palette, (len(palette), 3)).astype(np.uint8).tobytes())
    made.save(path)


@pytest.mark.parametrize("kind", MASKS)
def test_one_mask_stored_in_many_ways_marks_the_same(tmp_path: Path, kind: str) -> None:
    name, write = MASKS[kind]
    write(tmp_path / name)
    np.testing.assert_array_equal(read_mask(tmp_path / name), SPOT > 0)


@pytest.mark.parametrize("kind", UNCLEAR)
def test_masks_of_unclear_meaning_are_refused(tmp_path: Path, kind: str) -> None:
    write, told = UNCLEAR[kind]
    write(tmp_path / "m.png")
    with pytest.raises(InputError, match=rf"mask '.*m.png': {told}") as caught:
        read_mask(tmp_path / "m.png")
    assert "\n" not in str(caught.value)


def test_a_mask_of_four_channels_without_a_meaning_is_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "m.npy", np.ones((5, 7, 4), np.uint8))
    with pytest.raises(InputError, match=r"mask .*: shape \(5, 7, 4\), expected"):
        read_mask(tmp_path / "m.npy")


def test_a_stack_with_channels_first_is_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "train.npy", np.zeros((6, 3, 8, 8), np.uint8))
    with pytest.raises(InputError, match="has them first"):
        read_images([tmp_path / "train.npy"])
    with pytest.raises(InputError, match=r"array 'train' of .*has them first"):
        open_data(tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.kind}: {case.content}")
def test_changed_bytes_are_read_or_one_line(case: FileCase, tmp_path: Path) -> None:
    """Decoders raise whatever they happen upon; 100 changes of each kind of file."""
    path = tmp_path / case.name
    case.write(path)
    whole, rng = path.read_bytes(), np.random.default_rng(1)
    for _ in range(100):
        data = np.frombuffer(whole, np.uint8).copy()
        # Mostly in the header, which comes first, or at the end of small files.
        places = rng.integers(0, min(len(data), 300), rng.integers(1, 4))
        data[places] = rng.integers(0, 256, len(places))
        path.write_bytes(data.tobytes())
        for read in (read_image, read_mask):
            try:
                assert read(path).ndim in (2, 3)
            except InputError as error:
                assert case.name in str(error) and "\n" not in str(error)


def test_one_picture_stored_in_many_ways_has_one_p_value(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    """Through the command: a file that is read otherwise has another p-value."""
    pytest.importorskip("typer")
    shown = RNG.integers(0, 256, (8, 8)).astype(np.uint8)
    ways: dict[str, Callable[[Path], object]] = {
        "plain.png": picture(shown),
        "white.tif": tiff(255 - shown, photometric="miniswhite"),
        "thumbnail.tif": pages(shown[::2, ::2], shown, kinds=(1, 0)),
        "turned.png": picture(shown[::-1, ::-1], exif=turned_exif(3)),
        "turned.tif": tiff(np.rot90(shown), **FLAT, **orientation(6)),
        "alpha.png": picture(np.stack([shown, shown[::-1]], -1)),
        "deep.png": partial(deep_png, pixels=np.stack([shown, shown[::-1]], -1) * np.uint16(257)),
        "same.gif": picture(shown, optimize=False),
        "same.pgm": picture(shown),
        "other.png": picture(255 - shown),
    }
    for name, write in ways.items():
        write(tmp_path / name)
    picture(RNG.integers(0, 256, (8, 8)).astype(np.uint8))(tmp_path / "reference.bmp")
    unet = UNetConfig(channels=(2, 3))
    save_checkpoint(tmp_path / "model", init_unet(unet, 0), DalConfig(unet, image_size=8))
    words = ["test", "--model", tmp_path / "model", "--reference", tmp_path / "reference.bmp"]
    words += ["--noise", "iid:0.05", "--threshold", "0.02", "--randomization", "0", "--json"]
    for name in (*ways, "reference.bmp"):
        words += ["--image", tmp_path / name]
    assert main([str(word) for word in words]) == 0
    out, err = capsys.readouterr()
    found = {one["name"]: one for one in json.loads(out)["results"]}
    values = {name: (one["statistic"], one["p_value"]) for name, one in found.items()}
    plain, other = values.pop("plain.png"), values.pop("other.png")
    assert values.pop("reference.bmp") != plain and other != plain
    assert found["plain.png"]["status"] == "OK" and set(values.values()) == {plain}, values
    assert "--image: 1 of 11 also a reference: reference.bmp" in err
