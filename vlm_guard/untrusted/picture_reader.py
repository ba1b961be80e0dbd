"""The reader of pictures: for files of a data set, files a user names, and files that visitors of the page send.

Pillow decodes, and only the formats listed here. The size is read from the header before anything is decoded. The
picture comes out as people see it: upright by its EXIF orientation, white behind transparent parts, 16-bit grey values
scaled to 8 bits.
"""

import io
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from PIL import Image, ImageChops

FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF")
"""What is decoded. Of an animated file the first frame counts."""

MAX_PIXELS = 100_000_000
"""Most pixels of a picture in a file of the user's own; decoded it takes up to 400 MB."""

_MEDIA_TYPES = {"PNG": "image/png", "JPEG": "image/jpeg", "WEBP": "image/webp"}
_ORIENTATION_TAG = 0x0112
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_SIXTEEN_BITS = ("I", "I;16", "I;16B", "I;16L", "I;16N")


class UnreadablePicture(OSError, ValueError):
    """A file is no picture that can be read; the message names it and says why."""


def read_picture(
    source: Path | bytes,
    name: str | None = None,
    *,
    max_pixels: int = MAX_PIXELS,
    longest: int | None = None,
    check_size: Callable[[tuple[int, int]], None] | None = None,
) -> Image.Image:
    """A picture as RGB, 8 bits a channel, fully decoded.

    Args:
        source: a file, or the content of one.
        name: what messages call it; by default the file's name, without the folders of the machine.
        max_pixels: a picture with more is refused before it is decoded.
        longest: the longer side is scaled down to at most so many pixels; None keeps every pixel.
        check_size: raises ValueError for a (width, height) that is not wanted; called before decoding.

    Raises:
        FileNotFoundError: there is no such file.
        UnreadablePicture: the file is empty, of another format, damaged or cut off, or has too many pixels.
    """
    called = name or (source.name if isinstance(source, Path) else "the file")
    if isinstance(source, Path):
        if not source.exists():
            raise FileNotFoundError(f"there is no picture {called}")
        if not source.is_file():
            raise UnreadablePicture(_message(called, "it is no file"))
    opened: Any = source if isinstance(source, Path) else io.BytesIO(source)
    try:
        with warnings.catch_warnings():
            # Pillow has a limit of its own, up to twice of which it only warns; ours is checked below.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(opened, formats=FORMATS) as picture:
                _check_pixels(picture.size, max_pixels)
                if check_size is not None:
                    check_size(picture.size)
                return _decode(picture, longest)
    except Image.UnidentifiedImageError:
        raise UnreadablePicture(
            _message(called, f"it is none of the formats {', '.join(FORMATS)}, or its first bytes are damaged")
        ) from None
    except Image.DecompressionBombError:
        raise UnreadablePicture(_message(called, f"it has more than {max_pixels // 10**6} million pixels")) from None
    except MemoryError:
        raise UnreadablePicture(_message(called, "this machine has not enough memory for it")) from None
    except _Refused as error:
        raise UnreadablePicture(_message(called, str(error))) from None
    except (
        Exception
    ) as error:  # damaged files make Pillow raise nearly anything, from struct.error to ZeroDivisionError
        raise UnreadablePicture(_message(called, _reason(error))) from error


def plain_media_type(content: bytes) -> str | None:
    """The media type of a picture that readers cannot understand differently; None for any other.

    Readers differ in turning pictures by their EXIF orientation, in what they put behind transparent parts, and in
    palettes, CMYK and 16-bit values.

    Args:
        content: of a file that `read_picture` has read.
    """
    with Image.open(io.BytesIO(content), formats=FORMATS) as picture:
        plain = (
            picture.mode in ("RGB", "L")
            and "transparency" not in picture.info
            and getattr(picture, "n_frames", 1) == 1
            and picture.getexif().get(_ORIENTATION_TAG, 1) == 1
        )
        return _MEDIA_TYPES.get(picture.format or "") if plain else None


class _Refused(ValueError):
    """A picture that was refused before it was decoded."""


def refuse_picture(reason: str) -> ValueError:
    """What a `check_size` raises: its words stand in the message as they are."""
    return _Refused(reason)


def _message(name: str, reason: str) -> str:
    return f"this picture cannot be read: {name} ({reason})"


def _reason(error: Exception) -> str:
    text = " ".join(str(error).split())[:200]
    return f"it is damaged: {text or type(error).__name__}"


def _check_pixels(size: tuple[int, int], most: int) -> None:
    width, height = size
    if width * height > most:
        raise _Refused(f"it has {width} x {height} pixels; at most {most // 10**6} million are read")
    if min(size) < 1:
        raise _Refused(f"it has {width} x {height} pixels")


def _decode(picture: Image.Image, longest: int | None) -> Image.Image:
    """Decode an opened picture. It is scaled down first, so that the later steps work on few pixels."""
    orientation = _orientation(picture)
    if longest is not None:
        # JPEG can be decoded at a fraction of its size, which saves memory for large photographs.
        picture.draft("RGB", (longest, longest))
    picture.load()
    if picture.mode in _SIXTEEN_BITS:
        picture = _eight_bits(picture)
    if picture.mode in ("P", "PA", "1"):  # colours of a palette cannot be mixed
        picture = picture.convert("RGBA" if picture.has_transparency_data else "RGB")
    if picture.has_transparency_data and picture.mode != "RGBA":
        picture = picture.convert("RGBA")
    if longest is not None and max(picture.size) > longest:
        scale = longest / max(picture.size)
        size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
        picture = picture.resize(size, Image.Resampling.LANCZOS, reducing_gap=3.0)
    if picture.mode == "RGBA":
        background = Image.new("RGBA", picture.size, "white")
        picture = Image.alpha_composite(background, picture)
    turn = _UPRIGHT.get(orientation)
    rgb = picture.convert("RGB")
    return rgb if turn is None else rgb.transpose(turn)


def _orientation(picture: Image.Image) -> int:
    """EXIF's orientation, 1 to 8. What else stands in the EXIF block, damaged or not, has no part in it."""
    try:
        value = picture.getexif().get(_ORIENTATION_TAG, 1)
        return value if isinstance(value, int) else 1
    except Exception:  # the pixels are fine, and every other program shows them as they are stored
        return 1


def _eight_bits(picture: Image.Image) -> Image.Image:
    """Grey values of 16 bits as 8 bits, rounded; a transparent grey value becomes a mask."""
    transparent = picture.info.get("transparency")
    wide = picture.convert("I")
    grey = wide.point(lambda value: value * (1 / 257) + 0.5).convert("L")
    if not isinstance(transparent, int):
        return grey
    # Steps of 255 beside the value: 255 everywhere but at the transparent value, where they leave 0.
    above = wide.point(lambda value: value * 255 + (-255.0 * transparent)).convert("L")
    below = wide.point(lambda value: value * -255 + 255.0 * transparent).convert("L")
    return Image.merge("LA", (grey, ImageChops.lighter(above, below)))
