"""Contrast decoding inside transformers' own generation loops.

`generate` calls a `custom_generate` callable with everything prepared. The callable runs the very loop that
`generate` would have run (`_sample` or `_beam_search`), but hands it a stand-in for the model: a forward pass of the
stand-in runs the branches and returns one set of logits. Logits processors, sampling, stopping criteria, streamers,
scores and beams are therefore transformers' own.
"""

import copy
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers import GenerationConfig, StoppingCriteriaList, StopStringCriteria
from transformers.generation import GenerationMode

from vlm_guard.contrast.branched_model import BranchedModel, StandIn
from vlm_guard.contrast.first_token import FirstTokenModel
from vlm_guard.contrast.gated_branch import GatedBranchedModel
from vlm_guard.contrast.layer_contrast import LayerContrastModel
from vlm_guard.contrast.own_search import answer_by_search
from vlm_guard.contrast.read_out import reads_out
from vlm_guard.families.architecture import GenerativeModel
from vlm_guard.method.branch_prompt import GivenPrompt
from vlm_guard.method.contrasting import Branch, ContrastCall, padding_id
from vlm_guard.runtime.embedded_prompt import PromptEmbedder

if TYPE_CHECKING:
    from vlm_guard.guard import Guard
    from vlm_guard.method.attention_calls import BoundMethod
    from vlm_guard.method.base import Method
    from vlm_guard.method.target import GuardTarget

_LOOPS = {
    GenerationMode.GREEDY_SEARCH: "_sample",
    GenerationMode.SAMPLE: "_sample",
    GenerationMode.BEAM_SEARCH: "_beam_search",
    GenerationMode.BEAM_SAMPLE: "_beam_search",
}


class ContrastGenerate:
    """A `custom_generate` callable that decodes with one contrast method.

    Args:
        target: the model with its shape and processor.
        method: the contrast method.
        inputs: the model inputs that `generate` was given.
        prepared: what the method's `prepare` returned.
        guard: the guard of the model, whose attention edits then keep to their branch; None for a bare model.
    """

    def __init__(
        self,
        target: "GuardTarget",
        method: "Method",
        inputs: Mapping[str, Any],
        *,
        prepared: Any = None,
        guard: "Guard | None" = None,
    ) -> None:
        self.target = target
        self.method = method
        self.inputs = inputs
        self.prepared = prepared if guard is not None else method.prepare(target)
        self.guard = guard

    def __call__(
        self,
        model: GenerativeModel,
        input_ids: Tensor,
        logits_processor: Any,
        stopping_criteria: Any,
        generation_config: GenerationConfig,
        contrast_streamer: Any = None,
        contrast_synced_gpus: bool = False,
        **model_kwargs: Any,
    ) -> Any:
        """Decode; the arguments are those that `generate` passes, and its two that it drops under own names."""
        self._check(model, input_ids, generation_config, model_kwargs)
        if self.method.overrides("search") and self.guard is not None:
            return answer_by_search(
                self.target, self.method, self.guard, model, input_ids, logits_processor, stopping_criteria,
                generation_config, contrast_streamer, model_kwargs,
            )  # fmt: skip
        name = _LOOPS[generation_config.get_generation_mode()]
        loop = getattr(type(model), name)
        keywords: dict[str, Any] = {"synced_gpus": contrast_synced_gpus}
        if name == "_sample":
            keywords["streamer"] = contrast_streamer
        keywords |= {
            "logits_processor": logits_processor,
            "stopping_criteria": stopping_criteria,
            "generation_config": generation_config,
        }
        stand_in = self._stand_in(model, input_ids, model_kwargs)
        if stand_in is None:
            return loop(model, input_ids, **keywords, **model_kwargs)
        with stand_in:
            result = loop(stand_in, input_ids, **keywords, **model_kwargs)
        if stand_in.owns_cache and not isinstance(result, Tensor):
            # It holds the rows of both branches, which nobody could go on with.
            result.past_key_values = None
        return result

    def _stand_in(self, model: GenerativeModel, input_ids: Tensor, model_kwargs: dict[str, Any]) -> StandIn | None:
        if reads_out(self.method, self.target):
            layers = self.method.early_layers(self.target)
            return LayerContrastModel(model, self.target.architecture, self.method, layers, guard=self.guard)
        if self.method.overrides("edit_logits"):
            active = self.call(input_ids, model_kwargs.get("attention_mask")).prompt.has_image
            return FirstTokenModel(model, self.method, active) if bool(active.any()) else None
        branch = self.branch(input_ids, model_kwargs)
        if branch is None:
            return None
        kind = GatedBranchedModel if self.method.gate else BranchedModel
        return kind(
            model,
            self.method,
            branch,
            self.inputs,
            self.target.architecture.visual_token_ids,
            marker_ids=self.target.architecture.marker_ids,
            guard=self.guard,
            embedder=PromptEmbedder.of(self.target),
        )

    def branch(self, input_ids: Tensor, model_kwargs: Mapping[str, Any]) -> Branch | None:
        """The method's branch for the rows of `generate`; None when no row of this prompt has one."""
        call = self.call(input_ids, model_kwargs.get("attention_mask"))
        branch = self.method.contrast_branch(call)
        return branch if branch is not None and bool(branch.active.any()) else None

    def call(self, input_ids: Tensor, attention_mask: Tensor | None) -> ContrastCall:
        """The prompts as they were given, one row each, although `generate` repeats them for beams and sequences."""
        given = self._given_rows()
        expand = input_ids.shape[0] // given if given else 1
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        architecture = self.target.architecture
        prompt = GivenPrompt(
            input_ids=input_ids[::expand],
            attention_mask=mask[::expand],
            visual_token_ids=architecture.visual_token_ids,
            pad_id=padding_id(self.target.model, self.target.processor, architecture.visual_token_ids),
        )
        return ContrastCall(
            prompt=prompt,
            inputs=self.inputs,
            model=self.target.model,
            processor=self.target.processor,
            prepared=self.prepared,
        )

    def _given_rows(self) -> int:
        given = self.inputs.get("input_ids", self.inputs.get("inputs"))
        if not isinstance(given, Tensor):
            raise ValueError(
                "contrast decoding builds its second branch from input_ids, but generate was called without them; "
                "pass the processor's input_ids"
            )
        return given.shape[0]

    def _check(
        self, model: GenerativeModel, input_ids: Tensor, generation_config: GenerationConfig, model_kwargs: dict
    ) -> None:
        name = self.method.name
        if model is not self.target.architecture.generator:
            raise ValueError(
                f"{type(self.target.model).__name__} generates through its {type(model).__name__} from embeddings, "
                f"so {name} cannot build a second branch for it; see 'vlm-guard models' for families that can"
            )
        mode = generation_config.get_generation_mode()
        if mode not in _LOOPS:
            raise ValueError(
                f"{name} works with greedy search, sampling and beam search, not with {mode.value}; "
                "drop the option that selects it (assistant_model, prompt_lookup_num_tokens, num_beam_groups, ...)"
            )
        cache = model_kwargs.get("past_key_values")
        if getattr(cache, "_is_user_defined", False):
            raise ValueError(
                f"{name} reads two prompts into a cache of its own, so it cannot go on with past_key_values; "
                "pass the whole prompt without it"
            )
        if generation_config.output_attentions:
            raise ValueError(f"{name} does not return attentions; use guard.trace(...) to record attention")
        if input_ids.shape[1] == 0:
            raise ValueError(f"{name} needs a prompt in input_ids")


def only_contrast(methods: "Sequence[BoundMethod]") -> "BoundMethod | None":
    """The one method that contrasts logits, if any.

    Raises:
        ValueError: there are several; the logits of one step can be contrasted once.
    """
    found = [bound for bound in methods if bound.method.contrasts()]
    if len(found) > 1:
        names = " and ".join(bound.method.name for bound in found)
        raise ValueError(
            f"{names} all contrast the logits of a step, and there is no meaning to several contrasts at once; "
            "keep one of them (attention methods combine with it)"
        )
    return found[0] if found else None


def contrast_arguments(
    guard: "Guard", bound: "BoundMethod", args: tuple, kwargs: dict[str, Any]
) -> tuple[tuple, dict[str, Any]]:
    """The arguments of a guarded `generate` call with contrast decoding by `bound` as its `custom_generate`.

    Raises:
        ValueError: the call brings a decoding of its own (custom_generate, assistant_model).
    """
    kwargs = dict(kwargs)
    for name in ("custom_generate", "assistant_model"):
        if kwargs.get(name) is not None:
            raise ValueError(
                f"{bound.method.name} decodes with two branches, which cannot be combined with {name}; "
                "drop it, or remove the guard for this call"
            )
    scale = kwargs.get("guidance_scale", getattr(kwargs.get("generation_config"), "guidance_scale", None))
    if scale is not None and scale != 1:
        raise ValueError(
            f"{bound.method.name} contrasts the logits already, which cannot be combined with guidance_scale={scale}, "
            "a contrast of transformers' own; drop one of them (attention methods combine with it)"
        )
    inputs = dict(kwargs)
    if args:
        inputs["inputs"] = args[0]
    # transformers drops these for a callable, unless they have a name that only the callable knows.
    for name in ("streamer", "synced_gpus"):
        if kwargs.get(name) is not None:
            kwargs[f"contrast_{name}"] = kwargs[name]
    _keep_stop_strings(kwargs)
    kwargs["custom_generate"] = ContrastGenerate(
        guard.target, bound.method, inputs, prepared=bound.prepared, guard=guard
    )
    return args, kwargs


def _keep_stop_strings(kwargs: dict[str, Any]) -> None:
    """Make the stopping criterion of `stop_strings` here, as transformers loses the tokenizer of a callable."""
    config = kwargs.get("generation_config")
    strings = kwargs.pop("stop_strings", None) or getattr(config, "stop_strings", None)
    if strings is None:
        return
    tokenizer = kwargs.pop("tokenizer", None)
    if tokenizer is None:
        raise ValueError("stop_strings needs the tokenizer: generate(..., stop_strings=..., tokenizer=tokenizer)")
    if config is not None:
        kwargs["generation_config"] = copy.deepcopy(config)
        kwargs["generation_config"].stop_strings = None
    criteria = StoppingCriteriaList(kwargs.get("stopping_criteria") or [])
    criteria.append(StopStringCriteria(tokenizer=tokenizer, stop_strings=strings))
    kwargs["stopping_criteria"] = criteria
