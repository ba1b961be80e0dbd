"""Both branches of a pair go on with one token: the one that was sampled for the request itself."""

import functools
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from vllm.v1.sample.sampler import Sampler

from vlm_guard.serving.vllm.rows import SEED, PairedRows

_DONE = "_vlm_guard_shares_tokens"
KEPT = 4096


class PairGenerators:
    """The random numbers of pairs whose request has a seed. vLLM's own would also advance while a prompt is read."""

    def __init__(self) -> None:
        self._known: OrderedDict[str, torch.Generator] = OrderedDict()

    def of(self, pair: PairedRows, device: torch.device) -> torch.Generator | None:
        """The generator of a pair; None for a request without a seed."""
        seed, name = pair.request.extra_args.get(SEED), pair.request.pair
        if seed is None or name is None:
            return None
        if name not in self._known:
            self._known[name] = torch.Generator(device).manual_seed(seed)
        self._known.move_to_end(name)
        while len(self._known) > KEPT:
            self._known.popitem(last=False)
        return self._known[name]


@dataclass
class _Sampling:
    """A call of vLLM's sampler, while it runs: its arguments, and the pairs that were met in it."""

    metadata: Any
    pairs: list[PairedRows] = field(default_factory=list)


_GENERATORS = PairGenerators()
_RUNNING: list[_Sampling] = []


def share_next_tokens(pairs: Sequence[PairedRows], device: torch.device) -> None:
    """The running call of the sampler shall give these shadows the tokens of their requests.

    Raises:
        RuntimeError: the sampler is not prepared for it, so that pairs would fall out of step.
    """
    if not pairs:
        return
    if not _RUNNING:
        raise RuntimeError("logits of pairs came from a sampler that does not share tokens")
    running = _RUNNING[-1]
    running.pairs += pairs
    for pair in pairs:
        generator = _GENERATORS.of(pair, device)
        if generator is not None:
            running.metadata.generators[pair.asked] = generator


def share_sampled_tokens() -> None:
    """Make vLLM's sampler give the shadows of a batch the tokens of their requests; done once in a process."""
    if hasattr(Sampler, _DONE):
        return
    original = Sampler.forward

    @functools.wraps(original)
    def forward(self: Sampler, logits: Tensor, sampling_metadata: Any, *args: Any, **kwargs: Any) -> Any:
        running = _Sampling(sampling_metadata)
        _RUNNING.append(running)
        try:
            output = original(self, logits, sampling_metadata, *args, **kwargs)
        finally:
            _RUNNING.pop()
            for pair in running.pairs:
                sampling_metadata.generators.pop(pair.asked, None)
        for pair in running.pairs:
            output.sampled_token_ids[pair.shadow] = output.sampled_token_ids[pair.asked]
        return output

    Sampler.forward = forward
    setattr(Sampler, _DONE, True)
