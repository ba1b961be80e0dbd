"""Pictures that visitors send: decoded by Pillow only, with limits on bytes, pixels and formats."""

import io
import warnings

from PIL import Image, ImageOps

MAX_UPLOAD_BYTES = 8 * 2**20
"""Largest file that is accepted."""

MAX_UPLOAD_PIXELS = 24_000_000
"""Most pixels of a picture, read from its header before anything is decoded."""

LARGEST_SIDE = 2048
"""Pictures are scaled down to this many pixels on the longer side; models look at fewer."""

FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF")


def decode_upload(content: bytes) -> Image.Image:
    """The picture in a visitor's file, upright, RGB, at most `LARGEST_SIDE` pixels long.

    Of an animated file the first frame counts.

    Raises:
        ValueError: the file is empty, too large, of another format, damaged, or has too many pixels.
    """
    if not content:
        raise ValueError("the file is empty; choose a picture")
    if len(content) > MAX_UPLOAD_BYTES:
        raise ValueError(
            f"the file has {len(content) / 2**20:.1f} MB; at most {MAX_UPLOAD_BYTES // 2**20} MB are accepted"
        )
    try:
        with warnings.catch_warnings():
            # Pillow only warns about pictures up to twice its own limit.
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(io.BytesIO(content), formats=FORMATS) as picture:
                _check_size(picture.size)
                # JPEG can be decoded at a fraction of its size, which saves memory for large photographs.
                picture.draft("RGB", (LARGEST_SIDE, LARGEST_SIDE))
                upright = ImageOps.exif_transpose(picture)
                return shrink(_on_white(upright), LARGEST_SIDE)
    except (Image.DecompressionBombWarning, Image.DecompressionBombError):
        raise ValueError(_too_many_pixels("far too many")) from None
    except (OSError, SyntaxError, EOFError, ValueError, MemoryError) as error:
        if isinstance(error, _Refused):
            raise ValueError(str(error)) from None
        raise ValueError(f"the file is no readable picture; accepted formats: {', '.join(FORMATS)}") from None


class _Refused(ValueError):
    """A picture that was refused before it was decoded."""


def _check_size(size: tuple[int, int]) -> None:
    width, height = size
    if width * height > MAX_UPLOAD_PIXELS:
        raise _Refused(_too_many_pixels(f"{width} x {height}"))
    if min(size) < 8 or max(size) > 50 * min(size):
        raise _Refused(f"the picture has {width} x {height} pixels; it is too small or too narrow to be looked at")


def _too_many_pixels(given: str) -> str:
    return f"the picture has {given} pixels; at most {MAX_UPLOAD_PIXELS // 10**6} million are accepted"


def _on_white(picture: Image.Image) -> Image.Image:
    """RGB; transparent parts become white instead of whatever colour hides behind them."""
    if picture.has_transparency_data:
        picture = picture.convert("RGBA")
        background = Image.new("RGBA", picture.size, "white")
        picture = Image.alpha_composite(background, picture)
    return picture.convert("RGB")


def shrink(picture: Image.Image, longest: int) -> Image.Image:
    """The picture with its longer side at most `longest` pixels."""
    if max(picture.size) <= longest:
        return picture
    copy = picture.copy()
    copy.thumbnail((longest, longest), Image.Resampling.LANCZOS)
    return copy
