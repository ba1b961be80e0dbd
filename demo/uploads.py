"""Pictures that visitors send: one is decoded at a time, with limits on bytes and pixels, and no file of it is kept."""

import contextlib
import ctypes
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import gradio as gr
from PIL import Image

from vlm_guard.untrusted.picture_reader import FORMATS, read_picture, refuse_picture

__all__ = ["FORMATS", "MAX_UPLOAD_BYTES", "MAX_UPLOAD_PIXELS", "decode_upload", "read_once", "shrink"]

MAX_UPLOAD_BYTES = 8 * 2**20
"""Largest file that is accepted."""

MAX_UPLOAD_PIXELS = 24_000_000
"""Most pixels of a picture, read from its header before anything is decoded."""

LARGEST_SIDE = 2048
"""Pictures are scaled down to this many pixels on the longer side; models look at fewer."""

# A small file can hold a picture that takes 200 MB while it is decoded, and visitors come in numbers. One thread
# decodes them all: what the allocator keeps for a thread is kept once.
_DECODER = ThreadPoolExecutor(max_workers=1, thread_name_prefix="decode-upload")


def read_once(button: gr.UploadButton) -> gr.UploadButton:
    """Make a button delete a visitor's file as soon as it is read, so that nothing that was sent stays on the disk.

    The button then gives None where the file has gone, as when two visitors send the same one at the same moment.
    """
    read = button.preprocess

    def preprocess(payload: Any) -> Any:
        try:
            return read(payload)
        except FileNotFoundError:
            return None
        finally:
            path = getattr(payload, "path", None)
            if path:
                with contextlib.suppress(OSError):
                    Path(path).unlink()
                    Path(path).parent.rmdir()  # Gradio makes a folder for every file

    # On the instance: Gradio writes a file beside the source of every class that is derived from a component.
    vars(button)["preprocess"] = preprocess
    return button


def decode_upload(content: bytes) -> Image.Image:
    """The picture in a visitor's file, upright, RGB, at most `LARGEST_SIDE` pixels long.

    Waits while another visitor's picture is decoded. Of an animated file the first frame counts.

    Raises:
        ValueError: the file is empty, too large, of another format, damaged, or has too many pixels.
    """
    if not content:
        raise ValueError("the file is empty; choose a picture")
    if len(content) > MAX_UPLOAD_BYTES:
        raise ValueError(
            f"the file has {len(content) / 2**20:.1f} MB; at most {MAX_UPLOAD_BYTES // 2**20} MB are accepted"
        )
    return _DECODER.submit(_decode, content).result()


def _decode(content: bytes) -> Image.Image:
    try:
        return read_picture(
            content, "your file", max_pixels=MAX_UPLOAD_PIXELS, longest=LARGEST_SIDE, check_size=_check_shape
        )
    finally:
        _give_back_memory()


def _give_back_memory() -> None:
    """Hand freed memory to the system where the C library has a call for it (glibc); it keeps hundreds of MB else."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if os.name == "posix" else None
    if trim is not None:
        trim(0)


def _check_shape(size: tuple[int, int]) -> None:
    width, height = size
    if min(size) < 8 or max(size) > 50 * min(size):
        raise refuse_picture(f"it has {width} x {height} pixels, too small or too narrow to be looked at")


def shrink(picture: Image.Image, longest: int) -> Image.Image:
    """The picture with its longer side at most `longest` pixels."""
    if max(picture.size) <= longest:
        return picture
    copy = picture.copy()
    copy.thumbnail((longest, longest), Image.Resampling.LANCZOS)
    return copy
