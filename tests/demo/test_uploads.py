import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from vlm_guard.demo import uploads
from vlm_guard.demo.uploads import decode_upload


def encoded(image, kind="PNG", **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def bomb(width, height):
    """A PNG that claims to be huge: its header alone is what a decoder would allocate for."""

    def chunk(name, body):
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 64)) + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "BMP", "GIF"])
def test_accepts_the_common_formats(kind):
    picture = decode_upload(encoded(Image.new("RGB", (40, 30), (200, 30, 30)), kind))
    assert picture.mode == "RGB" and picture.size == (40, 30)
    assert np.abs(np.asarray(picture)[10, 10].astype(int) - (200, 30, 30)).max() <= 12


def test_a_turned_photograph_comes_out_upright():
    sideways = Image.new("RGB", (40, 20))
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees to show
    assert decode_upload(encoded(sideways, "JPEG", exif=exif)).size == (20, 40)


def test_transparent_parts_become_white():
    picture = decode_upload(encoded(Image.new("RGBA", (20, 20), (255, 0, 0, 0))))
    assert picture.getpixel((5, 5)) == (255, 255, 255)


def test_large_pictures_are_scaled_down():
    picture = decode_upload(encoded(Image.new("RGB", (3000, 1500))))
    assert picture.size == (2048, 1024)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "empty"),
        (b"this is no picture at all", "this picture cannot be read: your file"),
        (b"%PDF-1.4 nonsense", "this picture cannot be read: your file"),
        (b'<svg xmlns="http://www.w3.org/2000/svg"/>', "this picture cannot be read: your file"),
        (encoded(Image.new("RGB", (40, 40)))[:60], "this picture cannot be read: your file"),
        (encoded(Image.new("RGB", (3, 3))), "too small"),
        (bomb(20_000, 20_000), "pixels"),
        (bomb(100_000, 100_000), "pixels"),
        (bomb(6000, 5000), "6000 x 5000"),
    ],
    ids=["empty", "text", "pdf", "svg", "truncated", "tiny", "bomb warning", "bomb error", "too many pixels"],
)
def test_refuses_what_is_no_safe_picture(content, words):
    with pytest.raises(ValueError, match=words):
        decode_upload(content)


def test_refuses_large_files_before_decoding(monkeypatch):
    monkeypatch.setattr(uploads, "MAX_UPLOAD_BYTES", 1000)
    monkeypatch.setattr(uploads.Image, "open", lambda *a, **k: pytest.fail("decoded a file that is too large"))
    with pytest.raises(ValueError, match="MB"):
        decode_upload(b"x" * 1001)
