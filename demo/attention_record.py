"""What is kept of a replayed answer: where its attention went, word by word."""

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from PIL import Image

from vlm_guard.demo.patches import PictureView
from vlm_guard.eval.run.method_findings import findings_of
from vlm_guard.guard import Guard
from vlm_guard.method import Finding, ReplacedPicture
from vlm_guard.runtime.trace import AttentionTrace

LARGEST_RECORD_BYTES = 96 * 2**20
KEPT_RECORDS = 8


@dataclass(frozen=True, kw_only=True, eq=False)
class AttentionRecord:
    """Attention to the picture, for every generated token of one answer.

    Attributes:
        weights: [steps, layers, heads, visual tokens] float16. Heads is 1, their mean, where one entry per head would
            have taken too much memory.
        layers: decoder layer of each entry of axis 1.
        edited_layers: the layers whose attention the methods edit; empty for the plain model and for methods that
            act elsewhere.
        image_share: [steps] float32, share of attention on the picture, mean of layers and heads.
        findings: what the methods found out about this picture.
        view: the picture as the model saw it; None where its visual tokens form no grid.
        no_view: why there is no view.
    """

    weights: np.ndarray
    layers: tuple[int, ...]
    edited_layers: tuple[int, ...]
    image_share: np.ndarray
    findings: tuple[Finding, ...]
    view: PictureView | None = None
    no_view: str = ""

    @property
    def replaced_picture(self) -> Image.Image | None:
        """The picture that the model saw instead of, or beside, the visitor's."""
        pictures = [item.picture for item in self.findings if isinstance(item, ReplacedPicture)]
        return pictures[-1] if pictures else None

    @property
    def heads(self) -> int:
        """Heads that can be looked at one by one; 0 where only their mean was kept."""
        return self.weights.shape[2] if self.weights.shape[2] > 1 else 0

    def word_map(
        self, steps: Sequence[int], layers: Sequence[int] | None = None, head: int | None = None
    ) -> np.ndarray:
        """[visual tokens] float32: attention of a word's tokens, mean of steps, layers and heads.

        Args:
            steps: the word's tokens.
            layers: decoder layers; all by default.
            head: one head instead of the mean.

        Raises:
            ValueError: a layer or head was not recorded.
        """
        chosen = self.layers if layers is None else tuple(layers)
        missing = [layer for layer in chosen if layer not in self.layers]
        if missing or not chosen:
            raise ValueError(f"layers {missing} were not recorded; recorded are {list(self.layers)}")
        if head is not None and not 0 <= head < self.heads:
            raise ValueError(f"head {head} was not recorded; there are {self.heads or 'only the means of the heads'}")
        rows = self.weights[np.ix_(list(steps), [self.layers.index(layer) for layer in chosen])].astype(np.float32)
        return rows.mean((0, 1, 2)) if head is None else rows[:, :, head].mean((0, 1))


def read_record(trace: AttentionTrace, guard: Guard, steps: int) -> AttentionRecord:
    """Condense a trace of `steps` generated tokens.

    Raises:
        ValueError: the trace does not have one entry per token, or the prompt has no visual token.
    """
    if guard.state is None or not bool(guard.state.visual[:1].any()):
        raise ValueError("no attention was recorded: the prompt has no visual token")
    if trace.steps != steps:
        raise ValueError(f"the trace has {trace.steps} steps for an answer of {steps} tokens")
    mask = guard.state.visual[0].cpu()
    layers = tuple(layer for layer in trace.layers if layer in trace.weights)
    heads, visual = trace.weights[layers[0]][0].shape[1], int(mask.sum())
    by_head = steps * len(layers) * heads * visual * 2 <= LARGEST_RECORD_BYTES
    maps = []
    for step in range(steps):
        rows = torch.stack([_visual_part(trace.weights[layer][step][0], mask) for layer in layers])
        maps.append(rows)
    share = torch.stack([rows.sum(-1).mean() for rows in maps])
    kept = torch.stack([(rows if by_head else rows.mean(1, keepdim=True)).half() for rows in maps])
    edited = sorted(set().union(*(bound.layers for bound in guard.methods if bound.method.edits_attention())))
    return AttentionRecord(
        weights=kept.numpy(),
        layers=layers,
        edited_layers=tuple(layer for layer in edited if layer in layers),
        image_share=share.numpy(),
        findings=findings_of(guard),
    )


def _visual_part(weights: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """[H, visual tokens] of one step's weights [H, K]; K has the prompt and the answer so far."""
    return weights[:, : mask.shape[0]][:, mask[: weights.shape[-1]]]


def with_view(record: AttentionRecord, find: Callable[[Image.Image | None], PictureView]) -> AttentionRecord:
    """The record with the picture its visual tokens belong to.

    Where a method put a refined picture in, that is the one; behind the original, its tokens are the last ones.

    Args:
        record: the record.
        find: the view of a refined picture, or of the visitor's own for None; ValueError where there is none.
    """
    try:
        view = find(record.replaced_picture)
    except ValueError as error:
        return replace(record, no_view=str(error))
    tokens = record.weights.shape[-1]
    if tokens < view.tokens:
        return replace(record, no_view=f"the model has {tokens} visual tokens, its grid {view.tokens}")
    return replace(record, view=view, weights=record.weights[..., tokens - view.tokens :])


class RecordStore:
    """The last few records of all visitors, made when first asked for."""

    def __init__(self, size: int = KEPT_RECORDS) -> None:
        self.size = size
        self._records: OrderedDict[Hashable, Any] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: Hashable, make: Callable[[], AttentionRecord]) -> AttentionRecord:
        """The record under `key`; `make` is called for one that is not there (any more)."""
        with self._lock:
            if key in self._records:
                self._records.move_to_end(key)
                return self._records[key]
        record = make()
        with self._lock:
            self._records[key] = record
            while len(self._records) > self.size:
                self._records.popitem(last=False)
        return record
