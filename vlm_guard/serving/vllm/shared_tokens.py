"""Both branches of a pair go on with one token: the one that was sampled for the request itself."""

import functools
from collections import OrderedDict
from typing import Any

import torch
from torch import Tensor
from vllm.v1.sample.sampler import Sampler

from vlm_guard.serving.vllm.rows import SEED, TABLE, PairedRows

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


def share_sampled_tokens() -> None:
    """Make vLLM's sampler give the shadows of a batch the tokens of their requests; done once in a process."""
    if hasattr(Sampler, _DONE):
        return
    original, generators = Sampler.forward, PairGenerators()

    @functools.wraps(original)
    def forward(self: Sampler, logits: Tensor, sampling_metadata: Any, *args: Any, **kwargs: Any) -> Any:
        pairs = list(TABLE.pairs(logits.shape[0]))
        for pair in pairs:
            generator = generators.of(pair, logits.device)
            if generator is not None:
                sampling_metadata.generators[pair.asked] = generator
        output = original(self, logits, sampling_metadata, *args, **kwargs)
        for pair in pairs:
            sampling_metadata.generators.pop(pair.asked, None)
            output.sampled_token_ids[pair.shadow] = output.sampled_token_ids[pair.asked]
        return output

    Sampler.forward = forward
    setattr(Sampler, _DONE, True)
