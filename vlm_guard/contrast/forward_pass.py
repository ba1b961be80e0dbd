"""Contrast of logits in forward passes outside of `generate`: `model(**inputs)`, losses, decoding loops of one's own.

The second branch is a pass of its own behind the given one, over its own prompt and the same answer; its logits are put
where the same tokens stand in the given sequence. Which logits are contrasted:

  with `labels`, those that predict the labelled answer, counted from its first token, and the loss is theirs;
  without, those behind the last visual token, as the first of an answer; of a method whose strength changes with every
  token (M3ID) only the last one, and that is said;
  with a cache that such a pass has filled, all of the pass, counted from the end of the prompt.
"""

import inspect
import weakref
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers.utils import ModelOutput

from vlm_guard.contrast.branch_cache import prompt_cache
from vlm_guard.contrast.branch_inputs import BranchInputs, given_inputs, kept_rope_deltas, prepare_branch
from vlm_guard.contrast.branched_generate import ContrastGenerate
from vlm_guard.contrast.early_states import EarlyStates
from vlm_guard.contrast.read_out import reads_out
from vlm_guard.method.branch_prompt import BranchPrompt
from vlm_guard.method.contrasting import Branch
from vlm_guard.method.gate import Gate
from vlm_guard.method.state import GenerationState, PromptTokens
from vlm_guard.method.visual_tokens import visual_mask

if TYPE_CHECKING:
    from vlm_guard.guard import Guard
    from vlm_guard.method.attention_calls import BoundMethod
    from vlm_guard.runtime.reading import RunningPass


@dataclass(eq=False)
class _Followed:
    """A second branch that keeps up with the cache of a decoding loop."""

    branch: Branch
    inputs: BranchInputs
    prompt: PromptTokens
    length: int
    read: int
    state: Any = None


@dataclass(frozen=True, kw_only=True, eq=False)
class _Places:
    """Which logits of a pass are contrasted.

    Attributes:
        wanted: [B, Q] bool.
        step: [Q] long, how many tokens of the answer stand before the predicted one.
    """

    wanted: Tensor
    step: Tensor


class ContrastForward:
    """The contrast of one guard's method in passes that belong to no call of `generate`.

    Args:
        guard: the guard.
        bound: its method that contrasts logits.
    """

    def __init__(self, guard: "Guard", bound: "BoundMethod") -> None:
        self.guard = guard
        self.method = bound.method
        self._bound = bound
        self._gate = Gate.read(self.method.gate)
        self._layers = self.method.early_layers(guard.target)
        self._reads_out = reads_out(self.method, guard.target)
        self._followed: weakref.WeakKeyDictionary[Any, _Followed] = weakref.WeakKeyDictionary()
        self._early: EarlyStates | None = None
        # Logits [B, V] of the first token of an answer whose cache a pass of this guard has begun.
        self._first: weakref.WeakKeyDictionary[Any, Tensor] = weakref.WeakKeyDictionary()

    def begin(self, running: "RunningPass", kwargs: Mapping[str, Any]) -> None:
        """Before a pass.

        Raises:
            ValueError: this pass cannot be contrasted.
        """
        if running.open_call or running.state is None:
            return
        target, name = self.guard.target, self.method.name
        if self.method.overrides("search"):
            raise ValueError(
                f"{name} is a search, which one forward pass is no part of: call model.generate(...), or "
                "guard.suspended() for a plain pass"
            )
        if target.architecture.generator is not target.model:
            raise ValueError(
                f"{name} contrasts logits inside generate only for {target.architecture.model_type}, which generates "
                "from embeddings: call model.generate(...), or guard.suspended() for a plain pass"
            )
        if isinstance(kwargs.get("logits_to_keep"), Tensor):
            raise ValueError(f"{name} needs logits_to_keep as a number, or not at all, in model(...)")
        if kwargs.get("return_dict") is False:
            raise ValueError(f"{name} changes the logits of model(...), which needs return_dict=True")
        cache, offset = kwargs.get("past_key_values"), running.state.offset
        if offset and not self._reads_out and cache not in self._followed and cache not in self._first:
            raise ValueError(
                f"{name} goes on with a cache only where model(...) has read the whole prompt into it under this "
                "guard; start from the whole prompt, or call model.generate(...)"
            )
        if self._reads_out:
            self._early = EarlyStates(target.model, target.architecture, self.method, self._layers)

    def finish(self, running: "RunningPass", kwargs: Mapping[str, Any], output: Any) -> Any:
        """The output of a pass with its logits contrasted, or as it was.

        Args:
            running: the pass, which has ended.
            kwargs: what the model was given, `input_ids` [B, Q] among it.
            output: of the model; None when it failed.
        """
        early, self._early = self._early, None
        if early is not None:
            early.close()
        if output is None or running.open_call or running.state is None:
            return output
        input_ids, state = kwargs["input_ids"], running.state
        kept = output.logits.shape[1]
        places = self._places(input_ids, state, kwargs)
        if not bool(places.wanted[:, -kept:].any()):
            return output
        if early is not None:
            return self._with(output, self._combine_early(output.logits, early, places, state), kwargs)
        if self.method.overrides("edit_logits"):
            first = self._first_logits(output, places, state.offset, kwargs.get("past_key_values"))
            return self._with(output, self._edit_each(output.logits, first, places), kwargs)
        cache = kwargs.get("past_key_values")
        if state.offset:
            second, known = self._follow(self._followed[cache], input_ids, state.offset)
            branch = self._followed[cache].branch
        else:
            found = self._read(input_ids, kwargs, output, state.prompt)
            if found is None:
                return output
            branch, second, known = found
        places.wanted.logical_and_(known & branch.active[:, None].to(known.device))
        logits = self._combine(output.logits, second[:, -kept:], branch, places)
        return self._with(output, logits, kwargs)

    # -- which logits -----------------------------------------------------------------------------------------

    def _places(self, input_ids: Tensor, state: GenerationState, kwargs: Mapping[str, Any]) -> _Places:
        position = torch.arange(state.offset, state.offset + input_ids.shape[1], device=input_ids.device)
        has_image = state.visual.any(-1, keepdim=True).to(input_ids.device)
        length = state.prompt_length
        if length is not None and (state.prompt is not None or state.offset):
            step = position - (length - 1)
            return _Places(wanted=(step >= 0).expand(input_ids.shape) & has_image, step=step.clamp_min(0))
        visual = visual_mask(input_ids, self.guard.target.architecture.visual_token_ids)
        behind = ~visual.flip(-1).cumsum(-1).flip(-1).bool() & state.real.to(input_ids.device)
        if self.method.counts_steps:
            last = torch.where(state.real.to(position.device), position, -1).amax(-1, keepdim=True)
            if kwargs.get("logits_to_keep") != 1:
                self.guard.reading.say(
                    f"{self.method.name} contrasts the last logits of model(...) only, as it counts the tokens of the "
                    "answer; pass labels, -100 for the prompt, to have the whole answer contrasted"
                )
            behind = behind & (position == last)
        return _Places(wanted=behind & has_image, step=torch.zeros_like(position))

    # -- the second branch ------------------------------------------------------------------------------------

    def _read(
        self, input_ids: Tensor, kwargs: Mapping[str, Any], output: Any, prompt: PromptTokens | None
    ) -> tuple[Branch, Tensor, Tensor] | None:
        """Read the branch's prompt and the given answer behind it.

        Returns:
            The branch, its logits [B, Q, V] where the tokens of the given sequence stand, and [B, Q] where they do;
            None where no row has a branch.
        """
        guard, target = self.guard, self.guard.target
        length = input_ids.shape[1] if prompt is None else prompt.length
        mask = kwargs.get("attention_mask")
        mask = torch.ones_like(input_ids) if mask is None or mask.dim() != 2 else mask
        inputs = {name: value for name, value in kwargs.items() if name not in ("labels", "past_key_values")}
        inputs["input_ids"], inputs["attention_mask"] = input_ids[:, :length], mask[:, :length]
        generate = ContrastGenerate(target, self.method, inputs, prepared=self._bound.prepared, guard=guard)
        branch = generate.branch(input_ids[:, :length], {"attention_mask": mask[:, :length]})
        if branch is None:
            return None
        self._refuse_sides(branch)
        told = branch.prompt.length
        whole = _with_answer(branch.prompt, input_ids[:, length:], mask[:, length:])
        prepared = self._prepared(branch, whole, inputs, kwargs)
        given_cache = _cache_of(output)
        cache = None if given_cache is None else prompt_cache(target.model)
        prepared.model_kwargs["past_key_values"] = cache
        prepared.model_kwargs["use_cache"] = cache is not None
        tokens = PromptTokens.of(
            whole.input_ids[:, :told], whole.attention_mask[:, :told], target.architecture.visual_token_ids
        )
        with kept_rope_deltas(target.model), guard.reading.branch(branch.sign, tokens, None) as call:
            second = target.model._prefill(prepared.input_ids, target.model.generation_config, prepared.model_kwargs)
        if cache is not None:
            kept = target.model._update_model_kwargs_for_generation(
                second, prepared.model_kwargs, is_encoder_decoder=False
            )
            prepared.model_kwargs.update(kept)
            read = input_ids.shape[1]
            self._followed[given_cache] = _Followed(branch, prepared, tokens, read, read, call.state)
        logits = second.logits.new_zeros(*input_ids.shape, second.logits.shape[-1])
        source = whole.source.where(whole.attention_mask.bool(), -1)
        rows, columns = (source >= 0).nonzero(as_tuple=True)
        logits[rows, source[rows, columns]] = second.logits[rows, columns]
        known = torch.zeros_like(input_ids, dtype=torch.bool)
        known[rows, source[rows, columns]] = True
        return branch, logits, known

    def _prepared(
        self, branch: Branch, whole: BranchPrompt, inputs: Mapping[str, Any], kwargs: Mapping[str, Any]
    ) -> BranchInputs:
        model = self.guard.target.model
        wanted: dict[str, Any] = {"use_cache": True}
        if "position_ids" in inspect.signature(model.forward).parameters:
            wanted["position_ids"] = True
        given = given_inputs(kwargs["input_ids"], wanted)
        extended = Branch(prompt=whole, images=branch.images, sign=branch.sign, active=branch.active)
        types = {name: value for name, value in kwargs.items() if name.endswith("token_type_ids")}
        with self.guard.reading.probing():
            return prepare_branch(model, extended, {**inputs, **types}, given, model.generation_config)

    def _follow(self, followed: _Followed, tokens: Tensor, offset: int) -> tuple[Tensor, Tensor]:
        """Read more tokens [B, Q] of the answer; the logits [B, Q, V] behind them, all of which count."""
        model, kwargs = self.guard.target.model, followed.inputs.model_kwargs
        if offset < followed.read:
            if offset < followed.length:
                raise ValueError(
                    f"{self.method.name} cannot go on with a prompt whose end was cut from the cache; start from the "
                    "whole prompt"
                )
            kwargs["past_key_values"].crop(offset - followed.read)
            followed.read = offset
        found = []
        positions = kwargs.get("position_ids")
        for column in range(tokens.shape[1]):
            # Positions are those of the token behind what was read first.
            behind = followed.read - followed.length
            step = dict(kwargs)
            step["attention_mask"] = torch.nn.functional.pad(followed.inputs.attention_mask, (0, behind + 1), value=1)
            step["position_ids"] = None if positions is None else positions[..., -1:] + behind
            step = {name: value for name, value in step.items() if value is not None}
            token = tokens[:, column : column + 1]
            inputs = model.prepare_inputs_for_generation(token, next_sequence_length=1, **step)
            with self.guard.reading.branch(followed.branch.sign, followed.prompt, followed.state):
                found.append(model(**inputs, return_dict=True).logits[:, -1:])
            followed.read += 1
        return torch.cat(found, 1), torch.ones_like(tokens, dtype=torch.bool)

    def _refuse_sides(self, branch: Branch) -> None:
        others = [bound.method.name for bound in self.guard.methods if bound.method is not self.method]
        if branch.sign == "positive" and others:
            raise ValueError(
                f"{self.method.name} answers another prompt than the given one, whose pass {' and '.join(others)} "
                "has edited by now; call model.generate(...) for this combination"
            )

    # -- combining --------------------------------------------------------------------------------------------

    def _combine(self, given: Tensor, second: Tensor, branch: Branch, places: _Places) -> Tensor:
        """[B, K, V] the given logits with those at `places` contrasted."""
        logits, kept = given.clone(), given.shape[1]
        for column in range(kept):
            wanted = places.wanted[:, column - kept]
            if not bool(wanted.any()):
                continue
            pair = given[:, column].float(), second[:, column].to(given.device).float()
            wanted = self._open(wanted, pair[0])
            positive, negative = pair if branch.sign == "negative" else pair[::-1]
            combined = self.method.combine_logits(positive, negative, int(places.step[column - kept]))
            logits[:, column] = torch.where(
                wanted[:, None].to(given.device), combined.to(given.dtype), given[:, column]
            )
        return logits

    def _combine_early(self, given: Tensor, early: EarlyStates, places: _Places, state: GenerationState) -> Tensor:
        """[B, K, V] the given logits contrasted with those of early layers, or of other states."""
        logits, kept = given.clone(), given.shape[1]
        for column in range(kept):
            wanted = places.wanted[:, column - kept]
            if bool(wanted.any()):
                combined = early.combine(given[:, column].float(), column - kept, state)
                chosen = self._open(wanted, given[:, column])[:, None].to(given.device)
                logits[:, column] = torch.where(chosen, combined.to(given.dtype), given[:, column])
        return logits

    def _open(self, wanted: Tensor, logits: Tensor) -> Tensor:
        """[B] bool, the wanted rows whose gate is open at the given logits [B, V]."""
        return wanted if self._gate is None else wanted & self._gate.is_open(logits).to(wanted.device)

    def _first_logits(self, output: Any, places: _Places, offset: int, cache: Any) -> Tensor:
        """[B, V] float32 logits of the first token of each row's answer, which a cache's later passes go on with."""
        if offset:
            return self._first[cache]
        kept, length = output.logits.shape[1], places.wanted.shape[1]
        column = places.wanted.to(torch.int8).argmax(-1) - (length - kept)
        if bool((column < 0)[places.wanted.any(-1)].any()):
            raise ValueError(
                f"{self.method.name} needs the logits of the answer's first token, which logits_to_keep={kept} leaves "
                "out; keep those of the whole answer"
            )
        rows = torch.arange(column.shape[0], device=output.logits.device)
        first = output.logits[rows, column.clamp_min(0).to(output.logits.device)].float()
        made = _cache_of(output)
        if made is not None:
            self._first[made] = first
        return first

    def _edit_each(self, given: Tensor, first: Tensor, places: _Places) -> Tensor:
        """[B, K, V] the given logits, those at `places` edited with the answer's first ones."""
        logits, kept = given.clone(), given.shape[1]
        for column in range(kept):
            wanted = places.wanted[:, column - kept]
            if bool(wanted.any()):
                step = int(places.step[column - kept])
                edited = self.method.edit_logits(given[:, column].float(), first, step)
                chosen = self._open(wanted, given[:, column])[:, None].to(given.device)
                logits[:, column] = torch.where(chosen, edited.to(given.dtype), given[:, column])
        return logits

    def _with(self, output: ModelOutput, logits: Tensor, kwargs: Mapping[str, Any]) -> ModelOutput:
        """The output with other logits, and their loss where labels ask for one."""
        output.logits = logits
        labels = kwargs.get("labels")
        if labels is not None:
            model = self.guard.target.model
            vocabulary = model.config.get_text_config(decoder=True).vocab_size
            output.loss = model.loss_function(logits=logits, labels=labels, vocab_size=vocabulary)
        return output


def _with_answer(prompt: BranchPrompt, answer: Tensor, mask: Tensor) -> BranchPrompt:
    """A branch's prompt with the given answer [B, A] behind it; its tokens come from behind the given prompt."""
    if not answer.shape[1]:
        return prompt
    first = int(prompt.source.max()) + 1
    places = torch.arange(first, first + answer.shape[1], device=answer.device).expand_as(answer)
    return BranchPrompt(
        input_ids=torch.cat((prompt.input_ids, answer), 1),
        attention_mask=torch.cat((prompt.attention_mask, mask.to(prompt.attention_mask.dtype)), 1),
        source=torch.cat((prompt.source, places), 1),
        changed=prompt.changed,
    )


def _cache_of(output: Any) -> Any:
    return getattr(output, "past_key_values", None)
