"""Pictures from strangers: upright, on white, 8 bits, or one line that says why not."""

import io
import os
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from vlm_guard.untrusted.picture_reader import UnreadablePicture, read_picture

NOISE = np.random.default_rng(0).integers(0, 255, (20, 40, 3), dtype=np.uint8)


def encoded(picture, kind="PNG", **options):
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)
    return buffer.getvalue()


def chunk(name, body):
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


def png(width, height, *chunks):
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(chunks) + chunk(b"IEND", b"")


@pytest.mark.parametrize("orientation", range(1, 9))
def test_all_orientations_come_out_upright(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    content = encoded(Image.fromarray(NOISE), exif=exif)
    expected = ImageOps.exif_transpose(Image.open(io.BytesIO(content)))
    assert np.array_equal(np.asarray(read_picture(content)), np.asarray(expected))


@pytest.mark.parametrize("orientation", [0, 9, 65535])
def test_an_orientation_that_does_not_exist_turns_nothing(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    assert np.array_equal(np.asarray(read_picture(encoded(Image.fromarray(NOISE), exif=exif))), NOISE)


def test_a_damaged_exif_block_does_not_hide_the_picture():
    content = encoded(Image.fromarray(NOISE), exif=b"Exif\0\0" + b"\xff" * 30)
    assert np.array_equal(np.asarray(read_picture(content)), NOISE)


def test_sixteen_bit_grey_is_scaled():
    grey = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    read = np.asarray(read_picture(encoded(Image.fromarray(grey))))
    assert np.array_equal(read[..., 0], np.round(grey / 257).astype(np.uint8))


def test_white_is_behind_what_is_transparent():
    clear = Image.new("RGBA", (8, 8), (255, 0, 0, 0))
    assert read_picture(encoded(clear)).getpixel((3, 3)) == (255, 255, 255)
    half = read_picture(encoded(Image.new("RGBA", (8, 8), (0, 0, 0, 128)))).getpixel((3, 3))
    assert half[0] in (126, 127, 128) and len(set(half)) == 1
    palette = Image.fromarray(NOISE).quantize(8)
    mask = np.asarray(palette) == 3
    read = np.asarray(read_picture(encoded(palette, transparency=3)))
    assert (read[mask] == 255).all() and mask.any()
    grey = np.full((8, 8), 700, np.uint16)
    grey[2] = 9000
    read = np.asarray(read_picture(encoded(Image.fromarray(grey), transparency=700)))
    assert (read[0] == 255).all() and (read[2] == round(9000 / 257)).all()


@pytest.mark.parametrize("mode", ["L", "LA", "RGB", "RGBA", "P", "1", "CMYK"])
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "BMP", "GIF"])
def test_every_mode_becomes_rgb(mode, kind):
    made = Image.new("L" if mode == "LA" else "RGB", (40, 30), "white").convert(mode)
    try:
        content = encoded(made, kind)
    except (OSError, ValueError):
        pytest.skip(f"{kind} has no {mode}")
    read = read_picture(content)
    assert (read.mode, read.size) == ("RGB", (40, 30)) and min(read.getpixel((5, 5))) >= 250


def test_a_photograph_of_several_pictures_gives_the_first():
    first, second = (Image.new("RGB", (40, 20), colour) for colour in ((200, 30, 30), (0, 0, 0)))
    content = encoded(first, "MPO", save_all=True, append_images=[second])
    assert np.abs(np.asarray(read_picture(content)).astype(int) - (200, 30, 30)).max() <= 12


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"", "none of the formats"),
        (b"no picture", "none of the formats"),
        (b'<svg xmlns="http://www.w3.org/2000/svg"/>', "none of the formats"),
        (encoded(Image.fromarray(NOISE), "TIFF"), "none of the formats PNG, JPEG"),
        (encoded(Image.fromarray(NOISE))[:300], "damaged"),
        (encoded(Image.fromarray(NOISE), "JPEG")[:400], "damaged"),
        (png(20_000, 20_000, chunk(b"IDAT", zlib.compress(bytes(99)))), "million pixels"),
        (png(10**6, 10**6, chunk(b"IDAT", zlib.compress(bytes(99)))), "pixels"),
        (png(8, 8, chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(10**8)))), "damaged"),
        (png(0, 0), "damaged|pixels|formats"),
    ],
    ids=["empty", "text", "svg", "tiff", "cut png", "cut jpeg", "large", "huge", "text bomb", "no pixels"],
)
def test_what_cannot_be_read_is_named_with_the_reason(tmp_path, content, why):
    path = tmp_path / "holiday.png"
    path.write_bytes(content)
    with pytest.raises(UnreadablePicture, match=rf"^this picture cannot be read: holiday\.png \(.*({why})") as raised:
        read_picture(path)
    assert str(tmp_path) not in str(raised.value) and "\n" not in str(raised.value)


def test_files_that_are_none(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no picture a\.png"):
        read_picture(tmp_path / "a.png")
    with pytest.raises(UnreadablePicture, match="it is no file"):
        read_picture(tmp_path)
    os.mkfifo(tmp_path / "pipe.png")
    with pytest.raises(UnreadablePicture, match="it is no file"):
        read_picture(tmp_path / "pipe.png")


def test_damaged_bytes_anywhere_give_a_picture_or_a_reason():
    generator = np.random.default_rng(5)
    for kind in ("PNG", "JPEG", "WEBP", "GIF", "BMP"):
        content = encoded(Image.fromarray(NOISE), kind)
        for _ in range(60):
            damaged = bytearray(content)
            for place in generator.integers(0, len(damaged), 3):
                damaged[place] = generator.integers(256)
            try:
                assert read_picture(bytes(damaged)).mode == "RGB"
            except UnreadablePicture as error:
                assert str(error).startswith("this picture cannot be read: the file (")


def test_the_command_refuses_in_one_line_before_it_loads_a_model(tmp_path, capsys, monkeypatch):
    from vlm_guard.cli import main
    from vlm_guard.eval.run import models

    monkeypatch.setattr(models, "load_model", lambda *a, **k: pytest.fail("loaded a model for a broken picture"))
    path = tmp_path / "a.png"
    path.write_bytes(b"no picture")
    with pytest.raises(SystemExit) as ended:
        main(["generate", str(path)])
    assert ended.value.code == 2
    assert capsys.readouterr().err.startswith("error: this picture cannot be read: a.png (")


def test_every_reader_of_pictures_is_this_one():
    """A second way to decode would have other rules; what opens files of this project's own is named here."""
    own = {"picture_reader.py", "contact_sheet.py", "icons.py", "build_atlas.py"}
    root = Path(__file__).parent.parent
    rooms = [root / room for room in ("vlm_guard", "eval", "demo", "methods")]
    opening = {path.name for room in rooms for path in room.rglob("*.py") if "Image.open(" in path.read_text("utf-8")}
    assert opening - own == {"copying.py"}  # the code that the page shows to copy
