"""A contrast whose second branch is read only where the gate of its method opens.

At a confident step only the given branch runs, exactly as it would in the plain model. When the gate opens in any row
the second branch reads what it has missed, in one pass over several tokens: its prompt the first time, then the tokens
since it was last asked. They are the same tokens in front of the same prompt as if it had read along, so its logits
are those of a branch without a gate.
"""

from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache, GenerationConfig
from transformers.cache_utils import LinearAttentionCacheLayerMixin
from transformers.modeling_outputs import CausalLMOutputWithPast
from transformers.utils import ModelOutput

from vlm_guard.contrast.branch_cache import PairedCaches, prompt_cache
from vlm_guard.contrast.branch_inputs import BranchInputs, given_inputs, kept_rope_deltas, prepare_branch
from vlm_guard.contrast.branched_model import BranchedModel, stand_in_output
from vlm_guard.method.gate import Gate


class GatedBranchedModel(BranchedModel):
    """Two branches as one model, the second of which is behind.

    Args:
        *arguments: of `BranchedModel`.
        **keywords: of `BranchedModel`.

    Raises:
        ValueError: the method has no gate.
    """

    def __init__(self, *arguments: Any, **keywords: Any) -> None:
        super().__init__(*arguments, **keywords)
        gate = Gate.read(self.method.gate, self.method.name)
        if gate is None:
            raise ValueError(f"{self.method.name} has no gate; use BranchedModel")
        self._gate = gate
        self._config: GenerationConfig | None = None
        self._reads_several = True
        # So many tokens of the answer the second branch has read.
        self._read_tokens = 0

    def _prefill(
        self,
        input_ids: Tensor,
        generation_config: GenerationConfig,
        model_kwargs: dict,
        is_first_iteration: bool = True,
    ) -> Any:
        self._given = given_inputs(input_ids, model_kwargs)
        self._config = generation_config
        output = self._read(self.given, 0, generation_config)
        cache = self.given.model_kwargs.get("past_key_values")
        self._paired = PairedCaches(cache)
        logits = self._contrasted(output.logits[:, -1], input_ids[:, self.given.length :], step=0)
        cached = cache is not None and self.given.model_kwargs.get("use_cache", True)
        return stand_in_output(logits, self._paired if cached else None, output.get("hidden_states"))

    def __call__(self, sequences: Tensor, return_dict: bool = True) -> ModelOutput:
        """One decoding step after `sequences` [N, P + generated]."""
        tail = sequences[:, self.given.length :]
        output = self._step_apart(self.given, 0, tail)
        logits = self._contrasted(output.logits[:, -1], tail, step=tail.shape[1])
        return stand_in_output(logits, self._paired, output.get("hidden_states"))

    # -- parts ------------------------------------------------------------------------------------------------

    def _contrasted(self, given: Tensor, tail: Tensor, step: int) -> Tensor:
        """[N, V] float32 logits, contrasted in the rows whose gate is open at the given ones."""
        given = given.float()
        open_ = self._gate.is_open(given)
        active = self.branch.active.repeat_interleave(given.shape[0] // self.branch.active.shape[0])
        open_ = open_ & active.to(open_.device)
        if not bool(open_.any()):
            return given
        second = self._catch_up(tail)
        return torch.where(open_[:, None], self._combine(given, second, step), given)

    def _catch_up(self, tail: Tensor) -> Tensor:
        """[N, V] logits of the second branch after the tokens `tail` [N, t], all of which it then has read."""
        logits = None
        if self._second is None:
            logits = self._begin_second().logits[:, -1]
        while self._read_tokens < tail.shape[1]:
            stop = tail.shape[1] if self._reads_several else self._read_tokens + 1
            logits = self._read_on(self.second, tail[:, :stop], stop - self._read_tokens).logits[:, -1]
            self._read_tokens = stop
        if logits is None:
            raise RuntimeError("the second branch was asked twice for the same step")
        return logits

    def _begin_second(self) -> Any:
        """Make the second branch and read its prompt."""
        if self._config is None:
            raise RuntimeError("the given prompt has to be read before that of the second branch")
        with self._encoding():
            self._second = prepare_branch(
                self.model, self.branch, self.inputs, self.given, self._config, embedder=self.embedder
            )
        # The offset that models with multimodal positions remember is the given branch's, which goes on.
        with kept_rope_deltas(self.model):
            if self.given.model_kwargs.get("use_cache", True):
                self._second.model_kwargs["past_key_values"] = prompt_cache(self.model)
            output = self._read(self._second, 1, self._config)
        second_cache = self._second.model_kwargs.get("past_key_values")
        self._paired.caches = (self.given.model_kwargs.get("past_key_values"), second_cache)
        self._reads_several = not _keeps_states(second_cache)
        return output

    def _read_on(self, part: BranchInputs, tail: Tensor, count: int) -> Any:
        """Read the last `count` tokens of `tail` into the cache of a branch."""
        kwargs = part.model_kwargs
        for _ in range(count - 1):
            # Masks and positions of the tokens in between, which nobody has asked for.
            kwargs.update(
                self.model._update_model_kwargs_for_generation(
                    CausalLMOutputWithPast(), kwargs, is_encoder_decoder=False
                )
            )
        inputs = self.model.prepare_inputs_for_generation(
            torch.cat((part.input_ids, tail), 1),
            next_sequence_length=count if kwargs["use_cache"] else None,
            **kwargs,
        )
        with kept_rope_deltas(self.model), self._stepping(1):
            output = self.forward(**inputs, return_dict=True)
        kwargs.update(self.model._update_model_kwargs_for_generation(output, kwargs, is_encoder_decoder=False))
        return output

    def _copy_shared_prefix(self, generation_config: GenerationConfig) -> int:
        """Nothing: the given branch has the cache that `generate` made, which may have dropped keys."""
        return 0


def _keeps_states(cache: Any) -> bool:
    """Whether a cache has running states of linear attention or convolutions, which take one token at a time."""
    return isinstance(cache, DynamicCache) and any(
        isinstance(layer, LinearAttentionCacheLayerMixin) for layer in cache.layers
    )
