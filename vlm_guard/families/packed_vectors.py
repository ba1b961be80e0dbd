"""Vectors as text: one for each layer of a model, small enough for a profile or an option."""

import base64
import binascii
import re

import numpy as np
import torch
from torch import Tensor

_FORM = re.compile(r"(\d{1,5})x(\d{1,6})\.([A-Za-z0-9_-]+)")


def pack_vectors(vectors: Tensor) -> str:
    """Vectors [L, D] as text: "LxD." and their values as little-endian float16 in URL-safe base64."""
    values = vectors.detach().cpu().numpy().astype("<f2")
    text = base64.urlsafe_b64encode(values.tobytes()).decode("ascii").rstrip("=")
    return f"{values.shape[0]}x{values.shape[1]}.{text}"


def unpack_vectors(text: str, shape: tuple[int, int], what: str) -> Tensor:
    """The vectors [L, D] float32 that a text stands for.

    Args:
        text: as `pack_vectors` writes it.
        shape: L and D of the model.
        what: what the text is, for the error message.

    Raises:
        ValueError: it cannot be read, or belongs to a model of another shape.
    """
    match = _FORM.fullmatch(text)
    if match is None:
        raise ValueError(f"{what} must look like '6x192.…', as 'vlm-guard calibrate MODEL' writes it")
    found = int(match[1]), int(match[2])
    if found != shape:
        raise ValueError(
            f"{what} has {found[0]} layers of {found[1]} numbers, this model {shape[0]} of {shape[1]}; "
            "run 'vlm-guard calibrate MODEL' for it"
        )
    try:
        raw = base64.b64decode(match[3] + "=" * (-len(match[3]) % 4), altchars=b"-_", validate=True)
        values = torch.from_numpy(np.frombuffer(raw, dtype="<f2").astype("float32")).view(shape)
    except (binascii.Error, ValueError, RuntimeError):
        raise ValueError(f"{what} does not hold {shape[0]} x {shape[1]} numbers of two bytes") from None
    if not bool(values.isfinite().all()):
        raise ValueError(f"{what} holds numbers that are not finite")
    return values
