"""The attention operation of the project: exact attention for chosen query rows, with an edit inside.

`edited_attention` is what the rest of the project calls. It picks a backend (`triton` on a GPU that supports it,
`torch` elsewhere) or takes the one asked for; a backend that was asked for never falls back silently.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from importlib import import_module
from importlib.util import find_spec

import torch
from torch import Tensor

from vlm_guard.kernels.attention_edit import AttentionEdit

BACKENDS = ("reference", "torch", "triton")


@dataclass(frozen=True, kw_only=True, eq=False)
class KeyBlocks:
    """Where keys and values lie that are kept in blocks, as serving engines keep them.

    Attributes:
        table: [B, n] int32 or long, the numbers of each batch row's blocks, in order.
        keys: K, how many keys of these blocks there are; the last block may be filled in part.
    """

    table: Tensor
    keys: int

    def gather(self, parts: Tensor) -> Tensor:
        """[B, G, K, D] of blocks [blocks, G, block size, D]."""
        found = parts[self.table.long()].transpose(1, 2)
        return found.flatten(2, 3)[:, :, : self.keys]


@dataclass(frozen=True, kw_only=True, eq=False)
class AttentionProblem:
    """One call: queries of the edited rows, all keys and values, and how they may be combined.

    Attributes:
        query: [B, H, R, D], only the rows to compute.
        key: [B, G, K, D], not repeated for grouped queries (H is a multiple of G); [blocks, G, block size, D] with
            `blocks`.
        value: [B, G, K, Dv]; [blocks, G, block size, Dv] with `blocks`.
        edit: what to change.
        scaling: factor of q.k.
        mask: [B or 1, 1 or H, R, K], bool (True = attend) or float (added to the scores); None masks nothing.
        row_positions: [B or 1, R] long, key index of each row; the row attends to keys up to it. None: no causality.
        softcap: tanh soft cap of the scores, as in Gemma 2.
        sink_logits: [H] learned logits that join the softmax without a value, as in gpt-oss.
        position_bias: [B or 1, H, R, K], added to the scores.
        own_value: [B, G, R, Dv] values of the rows themselves; needed by `edit.self_mix`.
        blocks: where each batch row's keys and values are among those given; None: they are the batch row's own.
        return_weights: also return the edited weights [B, H, R, K].
        return_statistics: also return masses and logsumexp; a backend that gets them for nothing may do so anyway.
    """

    query: Tensor
    key: Tensor
    value: Tensor
    edit: AttentionEdit
    scaling: float
    mask: Tensor | None = None
    row_positions: Tensor | None = None
    softcap: float | None = None
    sink_logits: Tensor | None = None
    position_bias: Tensor | None = None
    own_value: Tensor | None = None
    blocks: KeyBlocks | None = None
    return_weights: bool = False
    return_statistics: bool = True

    def __post_init__(self) -> None:
        heads, groups = self.query.shape[1], self.key.shape[1]
        if heads % groups:
            raise ValueError(f"{heads} query heads cannot share {groups} key-value heads: not a multiple")
        if self.query.shape[-1] != self.key.shape[-1]:
            raise ValueError(f"query has head dim {self.query.shape[-1]}, key {self.key.shape[-1]}: must be equal")
        if self.edit.self_mix is not None:
            self.mixed_value()

    @property
    def key_count(self) -> int:
        """K, keys of each batch row."""
        return self.key.shape[2] if self.blocks is None else self.blocks.keys

    def gathered(self) -> "AttentionProblem":
        """The same with keys and values of each batch row side by side."""
        if self.blocks is None:
            return self
        return replace(self, key=self.blocks.gather(self.key), value=self.blocks.gather(self.value), blocks=None)

    def mixed_value(self) -> Tensor:
        """`own_value`, which an edit with `self_mix` needs.

        Raises:
            ValueError: it was not given.
        """
        if self.own_value is None:
            raise ValueError("self_mix needs own_value, the values of the edited rows")
        return self.own_value


@dataclass(frozen=True, kw_only=True, eq=False)
class EditedAttention:
    """What a backend returns.

    Attributes:
        output: [B, R, H, Dv] in the query's dtype, laid out as transformers' attention functions return it.
        masses: [B, H, R, 4] segment masses before the weight edit, at least float32; None without segments, or when
            statistics were not asked for.
        weights: [B, H, R, K] edited weights when they were asked for.
        logsumexp: [B, H, R] of the edited scores, at least float32; None when statistics were not asked for.
    """

    output: Tensor
    masses: Tensor | None = None
    weights: Tensor | None = None
    logsumexp: Tensor | None = None

    def asked_weights(self) -> Tensor:
        """The edited weights of a problem with `return_weights`.

        Raises:
            ValueError: they were not asked for.
        """
        if self.weights is None:
            raise ValueError("the weights were not asked for: set return_weights=True in the AttentionProblem")
        return self.weights

    def asked_logsumexp(self) -> Tensor:
        """The logsumexp of a problem with `return_statistics`.

        Raises:
            ValueError: it was not asked for.
        """
        if self.logsumexp is None:
            raise ValueError("the logsumexp was not asked for: set return_statistics=True in the AttentionProblem")
        return self.logsumexp


TRITON_INSTALLED = find_spec("triton") is not None
_LOADED: dict[str, Callable[[AttentionProblem], EditedAttention]] = {}
_LIMITS: dict[str, Callable[[AttentionProblem], str | None]] = {}


def load_backend(name: str) -> Callable[[AttentionProblem], EditedAttention]:
    """The function of a backend.

    Raises:
        ValueError: unknown name.
        ImportError: the backend's library is not installed.
    """
    if name not in _LOADED:
        if name not in BACKENDS:
            raise ValueError(f"unknown attention backend {name!r}; available: {', '.join(BACKENDS)}")
        module = "reference" if name == "reference" else f"{name}_backend"
        _LOADED[name] = getattr(import_module(f"vlm_guard.kernels.{module}"), f"{name}_attention")
    return _LOADED[name]


def default_backend(device: torch.device) -> str:
    """`triton` on a CUDA device when Triton is installed, `torch` elsewhere."""
    return "triton" if device.type == "cuda" and TRITON_INSTALLED else "torch"


def edited_attention(problem: AttentionProblem, impl: str | None = None) -> EditedAttention:
    """Exact attention of `problem` by the named backend, or by the default one of its device.

    Args:
        problem: queries, keys, values and the edit.
        impl: one of `BACKENDS`; asked for explicitly it is used or raises, never replaced.

    Raises:
        ValueError: unknown backend, or a problem outside the limits the asked backend declares.
    """
    if impl is not None:
        return load_backend(impl)(problem)
    name = default_backend(problem.query.device)
    if name == "triton" and _triton_limits()(problem) is not None:
        name = "torch"
    return load_backend(name)(problem)


def _triton_limits() -> Callable[[AttentionProblem], str | None]:
    # Looked up, not imported again: the graph compiler cannot follow an import in a decode step.
    if "triton" not in _LIMITS:
        _LIMITS["triton"] = import_module("vlm_guard.kernels.triton_backend").unsupported_reason
    return _LIMITS["triton"]
