"""The same pixels from the same file: every kind of image against an expected array (TR14)."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from fewstep.data.decode import Header, Target, Unreadable, decode, header

GREY = np.array([[0, 64, 128], [200, 254, 255]], dtype=np.uint8)
COLOUR = np.stack([GREY, GREY[::-1], 255 - GREY], axis=-1)


def encoded(image, kind="PNG", **options):
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def native(data):
    head = header(data)
    return decode(data, Target(head.channels, head.height, head.width, "error"))


def over_white(colour, alpha):
    """The stated formula, in floats, rounded."""
    c, a = colour.astype(np.float64), alpha.astype(np.float64)
    return np.floor((c * a + 255 * (255 - a)) / 255 + 0.5).astype(np.uint8)


ALPHA = np.array([[0, 1, 128], [254, 255, 77]], dtype=np.uint8)


def test_l_and_rgb_are_taken_as_they_are():
    assert np.array_equal(native(encoded(Image.fromarray(GREY)))[0], GREY)
    for kind, options in (("PNG", {}), ("BMP", {}), ("WEBP", {"lossless": True})):
        found = native(encoded(Image.fromarray(COLOUR), kind, **options))
        assert np.array_equal(found, COLOUR.transpose(2, 0, 1)), kind


def test_one_bit_becomes_0_and_255():
    found = native(encoded(Image.fromarray(GREY > 127)))
    assert np.array_equal(found[0], np.where(GREY > 127, 255, 0))


def test_16_bits_are_scaled_not_clipped():
    wide = np.array([[0, 127, 128], [257, 40000, 65535]], dtype=np.uint16)
    found = native(encoded(Image.fromarray(wide)))
    assert np.array_equal(found[0], np.array([[0, 0, 0], [1, 156, 255]]))
    assert np.array_equal(found[0], np.round(wide / 257))


def test_alpha_is_composited_over_white():
    la = Image.merge("LA", [Image.fromarray(GREY), Image.fromarray(ALPHA)])
    assert np.array_equal(native(encoded(la))[0], over_white(GREY, ALPHA))
    rgba = Image.fromarray(np.dstack([COLOUR, ALPHA]))
    expected = over_white(COLOUR, ALPHA[..., None]).transpose(2, 0, 1)
    assert np.array_equal(native(encoded(rgba)), expected)


def test_palettes_with_and_without_transparency():
    image = Image.new("P", (3, 1))
    image.putpalette([10, 20, 30, 200, 100, 50, 7, 8, 9])
    image.putdata([0, 1, 2])
    plain = np.array([[10, 200, 7], [20, 100, 8], [30, 50, 9]], dtype=np.uint8)[:, None]
    assert np.array_equal(native(encoded(image)), plain)
    clear = plain.copy()
    clear[:, :, 1] = 255
    assert np.array_equal(native(encoded(image, transparency=1)), clear)
    half = native(encoded(image, transparency=bytes([255, 0, 128])))
    assert np.array_equal(half[:, 0, 1], [255, 255, 255])
    assert np.array_equal(half[:, 0, 2], over_white(plain[:, 0, 2], np.uint8(128)))


def test_transparent_colour_of_grey_and_rgb_png():
    found = native(encoded(Image.fromarray(GREY), transparency=64))
    assert np.array_equal(found[0], np.where(GREY == 64, 255, GREY))
    key = tuple(int(c) for c in COLOUR[0, 1])
    found = native(encoded(Image.fromarray(COLOUR), transparency=key))
    assert found[:, 0, 1].tolist() == [255, 255, 255]
    assert np.array_equal(found[:, 1], COLOUR[1].T)


def test_cmyk_is_converted():
    flat = np.zeros((8, 8, 4), dtype=np.uint8)
    flat[..., 0], flat[..., 3] = 255, 55  # cyan, some black
    data = encoded(Image.fromarray(flat, "CMYK"), "JPEG", quality=100)
    assert header(data).mode == "CMYK"
    # Without a profile: R = (255 - C)(255 - K) / 255.
    assert np.abs(native(data)[:, 4, 4].astype(int) - [0, 200, 200]).max() <= 2


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("turn", range(1, 9))
def test_exif_orientation_is_applied(kind, turn):
    upright = np.zeros((16, 24), dtype=np.uint8)
    upright[:8, :8] = 255  # a white corner, top left
    stored = {
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.T,
        6: np.rot90(upright, 1),
        7: upright[::-1, ::-1].T,
        8: np.rot90(upright, -1),
    }[turn]
    exif = Image.Exif()
    exif[0x0112] = turn
    options = {"lossless": True} if kind == "WEBP" else {"quality": 100} if kind == "JPEG" else {}
    data = encoded(Image.fromarray(np.ascontiguousarray(stored)), kind, exif=exif, **options)
    assert (header(data).width, header(data).height) == (24, 16)
    found = native(data)[0].astype(int)
    assert np.abs(found - upright).max() <= 3


def test_moving_pictures_give_their_first_frame():
    frames = [Image.fromarray(GREY), Image.fromarray(255 - GREY), Image.fromarray(GREY // 2)]
    for kind, options in (("GIF", {}), ("PNG", {}), ("WEBP", {"lossless": True})):
        data = encoded(frames[0], kind, save_all=True, append_images=frames[1:], **options)
        assert np.array_equal(native(data)[0], GREY), kind


def test_channels_are_decided_by_mode_and_can_be_given():
    assert header(encoded(Image.fromarray(GREY))).channels == 1
    assert header(encoded(Image.fromarray(np.dstack([GREY] * 3)))).channels == 3
    assert header(encoded(Image.fromarray(GREY.astype(np.uint16)))).channels == 1
    three = decode(encoded(Image.fromarray(GREY)), Target(3, 2, 3, "error"))
    assert np.array_equal(three, np.stack([GREY] * 3))
    one = decode(encoded(Image.fromarray(COLOUR)), Target(1, 2, 3, "error"))
    luma = COLOUR @ np.array([0.299, 0.587, 0.114])
    assert np.abs(one[0] - luma).max() <= 1


def test_crop_takes_the_centre_and_scales_with_antialiasing():
    wide = np.zeros((16, 40), dtype=np.uint8)
    wide[:, 12:28] = np.indices((16, 16)).sum(0) % 2 * 255  # a chequerboard in the centre square
    found = decode(encoded(Image.fromarray(wide)), Target(1, 4, 4, "crop"))[0]
    # Antialiased: the mean of the board. Nearest-neighbour would give 0 or 255, the border 0.
    assert np.abs(found[1:3, 1:3].astype(int) - 128).max() <= 3
    same = decode(encoded(Image.fromarray(wide)), Target(1, 16, 16, "crop"))[0]
    assert np.array_equal(same, wide[:, 12:28])


def test_stretch_ignores_the_aspect_and_may_enlarge():
    halves = np.zeros((4, 8), dtype=np.uint8)
    halves[:, 4:] = 255
    found = decode(encoded(Image.fromarray(halves)), Target(1, 16, 16, "stretch"))[0]
    assert found[:, :3].max() == 0
    assert found[:, 13:].min() == 255


def chunk(kind, body):
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def huge_png(width, height):
    head = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    body = chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def text_bomb():
    data = encoded(Image.fromarray(GREY))
    bomb = chunk(b"zTXt", b"Comment\0\0" + zlib.compress(bytes(50_000_000)))
    return data[:33] + bomb + data[33:]


def noise(kind):
    pixels = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    return encoded(Image.fromarray(pixels), kind)


def flipped(data, at):
    return data[:at] + bytes([data[at] ^ 0x10]) + data[at + 1 :]


PNG, JPEG = noise("PNG"), noise("JPEG")

BAD = {
    "B8 empty": (b"", "empty file"),
    "B9 html": (b"<html><body>404</body></html>", "not an image (starts with '<htm')"),
    "B9 text": (b"hello, world", "not an image (starts with 'hell')"),
    "B9 escapes": (b"\x1b[31m", r"'\x1b[31'"),
    "B10 png": (PNG[:2000], "truncated at byte 2000"),
    "B10 png header": (PNG[:20], "truncated at byte 20"),
    "B10 jpeg": (JPEG[: len(JPEG) // 2], f"truncated at byte {len(JPEG) // 2}"),
    "B10 jpeg end": (JPEG[:-20], f"truncated at byte {len(JPEG) - 20}"),
    "B10 webp": (noise("WEBP")[:600], "truncated at byte 600"),
    "B10 bmp": (noise("BMP")[:600], "truncated at byte 600"),
    "B10 gif": (noise("GIF")[:1500], "truncated at byte 1500"),
    "B11 png pixels": (flipped(PNG, 5000), "bad checksum in 'IDAT'"),
    "B11 png header": (flipped(PNG, 19), "damaged"),
    "B12 400 MP": (huge_png(20_000, 20_000), "400 MP > limit 64 MP"),
    "B13 100 MP": (huge_png(10_000, 10_000), "100 MP > limit 64 MP"),
    "B13 65 MP": (huge_png(8_125, 8_000), "65 MP > limit 64 MP"),
    "B14 text": (text_bomb(), "metadata too large"),
    "B15 tiff": (noise("TIFF"), "format TIFF not accepted; allowed PNG JPEG WebP BMP GIF"),
    "B15 eps": (b"%!PS-Adobe-3.0 EPSF-3.0", "format EPS not accepted"),
    "B15 psd": (b"8BPS\0\1" + bytes(20), "format PSD not accepted"),
    "B15 fits": (b"SIMPLE  =  T", "format FITS not accepted"),
    "B15 svg": (b'<?xml version="1.0"?><svg/>', "format SVG not accepted"),
    "B15 ico": (noise("ICO"), "format ICO not accepted"),
    "B15 ppm": (noise("PPM"), "not an image (starts with 'P6"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_bytes_get_a_reason(case):
    data, named = BAD[case]
    with pytest.raises(Unreadable) as caught:
        native(data)
    assert named in str(caught.value)
    assert "\n" not in str(caught.value)


def test_large_images_are_refused_before_their_pixels_exist():
    """The refusal comes from the header: no allocation, no time."""
    with pytest.raises(Unreadable, match="400 MP"):
        header(huge_png(20_000, 20_000))


def test_crop_never_enlarges():
    """B18: a 1 x 5000 image has no 32 x 32 centre."""
    data = encoded(Image.new("L", (5000, 1)))
    with pytest.raises(Unreadable, match="5000x1, smaller than 32x32"):
        decode(data, Target(1, 32, 32, "crop"))


def test_a_file_that_changed_size_is_noticed():
    with pytest.raises(Unreadable, match="is 3x2, not 4x4"):
        decode(encoded(Image.fromarray(GREY)), Target(1, 4, 4, "error"))


def test_header_of_a_file():
    assert header(encoded(Image.fromarray(COLOUR))) == Header("RGB", 3, 2)
