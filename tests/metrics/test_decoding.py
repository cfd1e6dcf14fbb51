import struct
import warnings
import zlib

import numpy as np
import pytest
from PIL import Image, ImageFile

from metrics.decoding import MOST_PIXELS, BadImage, decode, to_8_bits


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(values: np.ndarray, colour_type: int, *extra: bytes, size: tuple[int, int] | None = None) -> bytes:
    """A PNG written by hand: PIL writes no coloured ones of 16 bits, and none that lie about their size."""
    width, height = size or (values.shape[1], values.shape[0])
    bits = 8 * values.dtype.itemsize
    rows = b"".join(b"\0" + row.astype(values.dtype.newbyteorder(">")).tobytes() for row in values)
    header = struct.pack(">IIBBBBB", width, height, bits, colour_type, 0, 0, 0)
    body = (chunk(b"IHDR", header), *extra, chunk(b"IDAT", zlib.compress(rows)), chunk(b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(body)


def pixels(image) -> list:
    return np.asarray(image).tolist()


@pytest.fixture
def written(tmp_path):
    def write(data: bytes | Image.Image, name: str = "a.png", **options):
        path = tmp_path / name
        if isinstance(data, bytes):
            path.write_bytes(data)
        else:
            data.save(path, **options)
        return path

    return write


def test_an_rgb_picture_comes_back_as_it_is(written):
    image = Image.fromarray(np.arange(24, dtype=np.uint8).reshape(2, 4, 3))
    decoded = decode(written(image))
    assert decoded.image.mode == "RGB"
    assert pixels(decoded.image) == pixels(image)
    assert decoded.notes == ()


@pytest.mark.parametrize("mode", ["L", "1", "P"])
def test_grey_black_and_white_and_palette_become_rgb_without_a_note(written, mode):
    decoded = decode(written(Image.new("L", (2, 1), 255).convert(mode)))
    assert pixels(decoded.image) == [[[255, 255, 255], [255, 255, 255]]]
    assert decoded.notes == ()


def test_alpha_that_hides_nothing_is_dropped_without_a_note(written):
    decoded = decode(written(Image.new("RGBA", (1, 1), (10, 20, 30, 255))))
    assert (pixels(decoded.image), decoded.notes) == ([[[10, 20, 30]]], ())


def test_what_is_transparent_is_shown_on_white_with_a_note(written):
    image = Image.new("RGBA", (2, 1), (10, 20, 30, 0))
    image.putpixel((1, 0), (100, 0, 50, 51))  # a fifth of it: 0.2 * 100 + 0.8 * 255 = 224
    decoded = decode(written(image))
    assert pixels(decoded.image) == [[[255, 255, 255], [224, 204, 214]]]
    assert decoded.notes == ("transparent parts shown on white",)


@pytest.mark.parametrize("mode", ["LA", "P", "RGB", "L"])
def test_transparency_is_seen_however_it_is_stored(written, mode):
    options = {"LA": {}, "P": {"transparency": 0}, "RGB": {"transparency": (0, 0, 0)}, "L": {"transparency": 0}}[mode]
    colour = {"LA": (0, 0), "RGB": (0, 0, 0)}.get(mode, 0)
    decoded = decode(written(Image.new(mode, (1, 1), colour), **options))
    assert pixels(decoded.image) == [[[255, 255, 255]]]
    assert decoded.notes == ("transparent parts shown on white",)


def test_sixteen_bits_are_rounded_to_the_nearest_of_eight():
    values = np.array([0, 128, 129, 257, 65407, 65535], np.uint16)
    assert to_8_bits(values[:, None, None]).ravel().tolist() == [round(value / 257) for value in values.tolist()]


@pytest.mark.parametrize(("colour_type", "channels"), [(0, 1), (2, 3)])
def test_a_picture_of_16_bits_is_scaled_and_not_clipped(written, colour_type, channels):
    values = np.array([[0, 129, 32896, 65535]], np.uint16)[..., None].repeat(channels, -1)
    decoded = decode(written(png(values, colour_type)))
    assert pixels(decoded.image) == [[[grey] * 3 for grey in (0, 1, 128, 255)]]
    assert decoded.notes == ("16 bits a channel scaled to 8",)


@pytest.mark.parametrize(("colour_type", "channels"), [(4, 2), (6, 4)])
def test_a_transparent_picture_of_16_bits_gets_both_notes(written, colour_type, channels):
    values = np.zeros((1, 2, channels), np.uint16)
    values[0, 1, -1] = 65535
    decoded = decode(written(png(values, colour_type)))
    assert pixels(decoded.image) == [[[255, 255, 255], [0, 0, 0]]]
    assert decoded.notes == ("16 bits a channel scaled to 8", "transparent parts shown on white")


def test_a_grey_tiff_of_16_bits_is_scaled(written):
    image = Image.fromarray(np.array([[0, 32896, 65535]], np.uint16))
    assert pixels(decode(written(image, "a.tiff")).image) == [[[0] * 3, [128] * 3, [255] * 3]]


@pytest.mark.parametrize("dtype", [np.int32, np.float32])
def test_32_bits_a_channel_are_refused_for_nobody_knows_their_white(written, dtype):
    path = written(Image.fromarray(np.ones((2, 2), dtype)), "a.tiff")
    with pytest.raises(BadImage, match="8 or 16 bits"):
        decode(path)


def test_sixteen_bits_with_one_transparent_colour_are_refused(written):
    path = written(png(np.zeros((1, 1, 1), np.uint16), 0, chunk(b"tRNS", b"\0\0")))
    with pytest.raises(BadImage, match="one transparent colour"):
        decode(path)


def test_exif_orientation_is_applied(written):
    image, exif = Image.new("RGB", (3, 2)), Image.Exif()
    image.putpixel((0, 0), (255, 0, 0))
    exif[0x0112] = 6  # the camera was held so that the picture must be turned clockwise
    decoded = decode(written(image, exif=exif))
    assert decoded.image.size == (2, 3)
    assert decoded.image.getpixel((1, 0)) == (255, 0, 0)
    assert decoded.notes == ("turned as its EXIF orientation says",)


def test_exif_orientation_is_applied_to_16_bits_too(written):
    values = np.zeros((2, 3, 3), np.uint16)
    values[0, 0] = 65535
    exif = Image.Exif()
    exif[0x0112] = 6
    decoded = decode(written(png(values, 2, chunk(b"eXIf", exif.tobytes()[6:]))))
    assert decoded.image.size == (2, 3)
    assert decoded.image.getpixel((1, 0)) == (255, 255, 255)


@pytest.mark.parametrize("suffix", ["gif", "png", "webp"])
def test_of_an_animation_the_first_frame_is_taken_with_a_note(written, suffix):
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("white", "black")]
    decoded = decode(written(frames[0], f"a.{suffix}", save_all=True, append_images=frames[1:]))
    assert decoded.image.getpixel((4, 4)) == (255, 255, 255)
    assert decoded.notes == ("first of 2 frames",)


def test_cmyk_becomes_rgb_with_a_note(written):
    decoded = decode(written(Image.new("CMYK", (8, 8), (0, 0, 0, 0)), "a.jpg"))
    assert decoded.image.getpixel((0, 0)) == (255, 255, 255)
    assert decoded.notes == ("CMYK turned to RGB without a colour profile",)


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "gif", "bmp", "tiff"])
def test_a_truncated_file_is_a_bad_image_that_names_it(written, suffix):
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    whole = written(Image.fromarray(noise), f"whole.{suffix}").read_bytes()
    path = written(whole[: len(whole) // 2], f"cut.{suffix}")
    with pytest.raises(BadImage, match="cut"):
        decode(path)


def test_a_truncated_file_is_refused_even_if_a_library_lets_them_pass(written, monkeypatch):
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    whole = written(Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8))).read_bytes()
    path = written(whole[: len(whole) // 2])
    with pytest.raises(BadImage, match="truncated"):
        decode(path)
    assert ImageFile.LOAD_TRUNCATED_IMAGES is True


@pytest.mark.parametrize(
    "data", [b"", b"not an image", b"P6 1 1 255 abc"]
)  # the last is one, of a format we do not try
def test_what_is_no_image_is_a_bad_image_whatever_it_is_called(written, data):
    path = written(data)
    with pytest.raises(BadImage, match=r"a\.png must be an image"):
        decode(path)


@pytest.mark.parametrize("colour_type", [0, 2])
def test_a_picture_without_width_is_a_bad_image(written, colour_type):
    path = written(png(np.zeros((1, 1, 3), np.uint8), colour_type, size=(0, 1)))
    with pytest.raises(BadImage, match=r"a\.png"):
        decode(path)


def test_a_missing_file_is_a_bad_image(tmp_path):
    with pytest.raises(BadImage, match=r"nothing\.png"):
        decode(tmp_path / "nothing.png")


@pytest.mark.parametrize("side", [8193, 20_000, 100_000])
def test_a_decompression_bomb_is_refused_before_it_is_unpacked(written, side, monkeypatch):
    assert side**2 > MOST_PIXELS
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)  # as libraries that handle large scans set it
    path = written(png(np.zeros((1, 1, 3), np.uint8), 2, size=(side, side)))
    with pytest.raises(BadImage, match="pixels"):
        decode(path)


def test_warnings_of_the_reader_stay_inside(written, monkeypatch):
    path = written(Image.new("RGB", (2, 2)))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 3)  # so that PIL warns of four
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        decode(path)
        assert caught == []
        Image.open(path).close()
        assert [warning.category for warning in caught] == [Image.DecompressionBombWarning]
