"""From the bytes of one image file to an array, the same on every run, or a reason why not.

Image files come from anywhere, so nothing is decoded before its header is judged: only five
formats are tried, whatever the file is called, and the size is checked against a limit before
memory is asked for. Pillow is lenient in places (it skips PNG checksums, it only warns at 90
million pixels, it clips 16-bit values on conversion); here those are refused or done right.

How each kind of image becomes bytes:

    1-bit, L          grey, 0 ... 255
    I;16 (16-bit PNG) grey, scaled by 1/257 and rounded (not clipped, not cut to the high byte)
    LA, P, RGBA, tRNS composited over white: (c * a + 255 * (255 - a)) / 255, rounded
    P (opaque)        its palette colours
    CMYK, YCbCr       converted to RGB
    EXIF orientation  applied (JPEG, WebP, and the eXIf chunk of PNG)
    GIF, APNG, WebP   the first frame
    colour profiles   ignored: pixels are taken as sRGB

Resizing is antialiased (Lanczos) in 8 bits; "crop" scales the largest centred window of the
target's shape, "stretch" ignores the aspect ratio.

Inside: `header`, `decode`, `Header`, `Target`, `Unreadable`.
"""

import io
import re
import struct
import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from fewstep.data.images import Pixels

if TYPE_CHECKING:
    from PIL import Image as PillowImage

FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF")
ALLOWED = "PNG JPEG WebP BMP GIF"
EXTENSIONS = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif")
PIXEL_LIMIT = 64_000_000
RESIZES = ("error", "crop", "stretch")

_ORIENTATION = 0x0112  # EXIF tag
_GREY = frozenset(("1", "L", "LA", "La", "I", "I;16", "I;16B", "I;16L"))
_COLOUR = frozenset(("P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr"))
_OURS = (b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"RIFF", b"BM", b"GIF8")
_OTHERS = (
    (b"II*\0", "TIFF"),
    (b"MM\0*", "TIFF"),
    (b"SIMPLE", "FITS"),
    (b"%!PS", "EPS"),
    (b"8BPS", "PSD"),
    (b"%PDF", "PDF"),
    (b"<svg", "SVG"),
    (b"\0\0\1\0", "ICO"),
    (b"\0\0\0\x0cjP", "JPEG 2000"),
    (b"\xff\x0a", "JPEG XL"),
    (b"PK\3\4", "zip archive"),
    (b"\x1f\x8b", "gzip archive"),
)


class Unreadable(Exception):
    """Carry the reason why one image cannot be used; collected, then reported as DataError."""


@dataclass(frozen=True)
class Header:
    """Describe an image without its pixels: Pillow mode, upright width and height."""

    mode: str
    width: int
    height: int

    @property
    def channels(self) -> int:
        """1 if the mode is grey, else 3 (grey pictures stored as RGB count as colour)."""
        return 1 if self.mode in _GREY else 3


@dataclass(frozen=True)
class Target:
    """State the shape every image gets, and how: C in {1, 3}, H and W in pixels."""

    channels: int
    height: int
    width: int
    resize: str

    @property
    def shape(self) -> tuple[int, int, int]:
        """The shape (C, H, W)."""
        return self.channels, self.height, self.width


def _foreign(data: bytes) -> str:
    """Say what bytes are that no accepted format recognises."""
    if data.startswith(_OURS):
        return f"damaged or truncated at byte {len(data)}"
    start = data[:512].lstrip()
    for magic, name in _OTHERS:
        if data.startswith(magic) or start.startswith(magic):
            return f"format {name} not accepted; allowed {ALLOWED}"
    if start.startswith(b"<?xml") and b"<svg" in data[:4096]:
        return f"format SVG not accepted; allowed {ALLOWED}"
    if data[4:8] == b"ftyp":
        return f"format {data[8:12].decode('ascii', 'replace')} not accepted; allowed {ALLOWED}"
    text = ascii(start[:4].decode("latin-1"))
    return f"not an image (starts with {text})"


def _check_png(data: bytes) -> None:
    """Check the length and CRC of every chunk up to IEND, which Pillow does not.

    Raises:
        Unreadable: at the first chunk that is cut short or damaged.
    """
    at = 8
    while at + 12 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, at)
        end = at + 12 + length
        if end > len(data):
            break
        (stored,) = struct.unpack_from(">I", data, end - 4)
        if zlib.crc32(memoryview(data)[at + 4 : end - 4]) != stored:
            raise Unreadable(f"damaged at byte {at} (bad checksum in {kind.decode('latin-1')!a})")
        if kind == b"IEND":
            return
        at = end
    raise Unreadable(f"truncated at byte {len(data)}")


def _too_large(pixels: int) -> Unreadable:
    return Unreadable(f"{pixels / 1e6:.0f} MP > limit {PIXEL_LIMIT // 1_000_000} MP")


def _reason(error: Exception, data: bytes) -> Unreadable:
    """Turn an exception of Pillow into a reason."""
    from PIL import Image

    text = " ".join(str(error).split()) or type(error).__name__
    if isinstance(error, (Image.DecompressionBombError, Image.DecompressionBombWarning)):
        found = re.search(r"\((\d+) pixels\)", text)
        return _too_large(int(found[1])) if found else Unreadable(text[:120])
    if "text chunk" in text.lower() or "MAX_TEXT" in text or "text memory" in text.lower():
        return Unreadable("metadata too large")
    if "truncated" in text.lower() or isinstance(error, EOFError):
        return Unreadable(f"truncated at byte {len(data)}")
    return Unreadable(f"damaged ({text[:120]})")


def _open(data: bytes) -> "PillowImage.Image":
    """Open an image file's header and judge format, size and mode."""
    from PIL import Image, UnidentifiedImageError

    if not data:
        raise Unreadable("empty file")
    # libwebp calls a short file a decoder problem; its first chunk says how long it must be.
    if data[:4] == b"RIFF" and int.from_bytes(data[4:8], "little") + 8 > len(data):
        raise Unreadable(f"truncated at byte {len(data)}")
    try:
        image = Image.open(io.BytesIO(data), formats=FORMATS)
    except UnidentifiedImageError:
        raise Unreadable(_foreign(data)) from None
    except Exception as error:  # Pillow's parsers raise many kinds on hostile bytes
        raise _reason(error, data) from error
    if image.width * image.height > PIXEL_LIMIT:
        raise _too_large(image.width * image.height)
    if image.mode not in _GREY and image.mode not in _COLOUR:
        raise Unreadable(f"pixel mode {image.mode} not accepted")
    return image


def _orientation(image: "PillowImage.Image", data: bytes) -> int:
    """Return the EXIF orientation 1 ... 8 without decoding pixels where that can be known."""
    if image.format == "PNG" and b"eXIf" not in data:
        return 1  # asking Pillow would decode the whole picture to look for a late chunk
    value = image.getexif().get(_ORIENTATION, 1)
    return value if isinstance(value, int) and 1 <= value <= 8 else 1


def header(data: bytes | Pixels) -> Header:
    """Read mode and upright size of an image file, or of an array that stands for one.

    Args:
        data: the bytes of a file, or uint8 (C, H, W).

    Raises:
        Unreadable: if the header is refused.
    """
    if isinstance(data, np.ndarray):
        c, h, w = data.shape
        return Header("L" if c == 1 else "RGB", w, h)
    image = _open(data)
    try:
        turned = _orientation(image, data) >= 5
    except Exception as error:
        raise _reason(error, data) from error
    width, height = image.size
    return Header(image.mode, *((height, width) if turned else (width, height)))


def _as_mode(image: "PillowImage.Image", mode: str) -> "PillowImage.Image":
    # Pillow copies the pixels even if there is nothing to convert.
    return image if image.mode == mode else image.convert(mode)


def _flat(image: "PillowImage.Image") -> "PillowImage.Image":
    """Return the image as opaque L or RGB by the table of the module."""
    from PIL import Image

    clear = image.info.get("transparency")
    if image.mode.startswith("I"):
        wide = np.asarray(image).astype(np.int64)
        if wide.min() < 0 or wide.max() > 65535:
            raise Unreadable("grey values outside 0 ... 65535")
        if isinstance(clear, int):
            wide[wide == clear] = 65535
        return Image.fromarray(((wide + 128) // 257).astype(np.uint8))
    grey = image.mode in _GREY
    if clear is None and image.mode not in ("LA", "La", "PA", "RGBA", "RGBa"):
        return _as_mode(image, "L" if grey else "RGB")
    image = image.convert("LA" if grey else "RGBA")
    planes = np.asarray(image).astype(np.int64)
    colour, alpha = planes[..., :-1], planes[..., -1:]
    over = (colour * alpha + 255 * (255 - alpha) + 127) // 255
    over = over.astype(np.uint8)
    return Image.fromarray(over[..., 0] if grey else over)


def _resized(image: "PillowImage.Image", target: Target) -> "PillowImage.Image":
    """Bring the image to the target's size by its rule."""
    from PIL import Image

    (w, h), (width, height) = image.size, (target.width, target.height)
    if (w, h) == (width, height):
        return image
    if target.resize == "error":
        raise Unreadable(f"is {w}x{h}, not {width}x{height}")
    box = None
    if target.resize == "crop":
        if w < width or h < height:
            raise Unreadable(
                f"is {w}x{h}, smaller than {width}x{height}, and crop never enlarges "
                f"(resize=stretch does)"
            )
        # The largest centred window with the target's aspect ratio, in whole source pixels.
        cut_w, cut_h = min(w, round(h * width / height)), min(h, round(w * height / width))
        left, top = (w - cut_w) // 2, (h - cut_h) // 2
        box = (left, top, left + cut_w, top + cut_h)
    return image.resize((width, height), Image.Resampling.LANCZOS, box=box)


def decode(data: bytes | Pixels, target: Target) -> Pixels:
    """Decode an image file, or fit an array that stands for one, to the target.

    Args:
        data: the bytes of a file, or uint8 (C, H, W).
        target: shape and resize rule.

    Returns:
        uint8 (C, H, W) with the target's shape.

    Raises:
        Unreadable: if the file is damaged or does not fit the rule.
    """
    from PIL import Image

    if isinstance(data, np.ndarray):
        if data.shape == target.shape:
            return data
        image = Image.fromarray(data[0] if len(data) == 1 else data.transpose(1, 2, 0))
    else:
        image = _open(data)
        try:
            if image.format == "PNG":
                _check_png(data)
            image.load()
            turn = _orientation(image, data)
            if turn > 1:
                image = image.transpose(_turns()[turn])
            image = _flat(image)
        except Unreadable:
            raise
        except Exception as error:
            raise _reason(error, data) from error
    image = _as_mode(image, "L" if target.channels == 1 else "RGB")
    pixels = np.asarray(_resized(image, target))
    return pixels[None] if target.channels == 1 else pixels.transpose(2, 0, 1)


def _turns() -> "dict[int, PillowImage.Transpose]":
    """Return the transposition that makes each EXIF orientation upright."""
    from PIL.Image import Transpose

    return {
        2: Transpose.FLIP_LEFT_RIGHT,
        3: Transpose.ROTATE_180,
        4: Transpose.FLIP_TOP_BOTTOM,
        5: Transpose.TRANSPOSE,
        6: Transpose.ROTATE_270,
        7: Transpose.TRANSVERSE,
        8: Transpose.ROTATE_90,
    }
