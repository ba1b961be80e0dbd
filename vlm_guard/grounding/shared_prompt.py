"""The beginning of a batch of prompts, read once by the plain model, and short texts read behind it as one batch."""

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers import DynamicCache, GenerationConfig
from transformers.cache_utils import DynamicLayer

from vlm_guard.contrast.branch_cache import prompt_cache
from vlm_guard.contrast.branch_inputs import kept_rope_deltas
from vlm_guard.families.architecture import GenerativeModel, inference_device
from vlm_guard.method.branch_prompt import BranchPrompt, GivenPrompt
from vlm_guard.method.contrasting import padding_id
from vlm_guard.method.model_inputs import TOKEN_TYPES, image_inputs, token_types

if TYPE_CHECKING:
    from vlm_guard.grounding.lens import VisualStates
    from vlm_guard.guard import Guard

ROWS_AT_ONCE = 32
"""So many texts are read in one pass; each takes as much memory for keys as its whole prompt."""

# One greedy token of each row, whatever the model's own settings say.
_ONE_TOKEN: dict[str, Any] = {
    "max_new_tokens": 1,
    "min_new_tokens": None,
    "do_sample": False,
    "num_beams": 1,
    "num_return_sequences": 1,
    "output_attentions": False,
    "output_hidden_states": False,
}
# What tells a model by the columns of its prompt which token is which patch.
_BY_COLUMN = {"image_patches_indices": -1, "image_embeds_position_mask": 0}


def require_prompt(guard: "Guard", inputs: Mapping[str, Any], who: str) -> GivenPrompt:
    """The prompt of `generate`'s inputs.

    Raises:
        ValueError: the guard has no processor, or the inputs no ids.
    """
    target = guard.target
    if getattr(target.processor, "tokenizer", None) is None:
        raise ValueError(f"{who} reads words and needs the model's processor: wrap(model, processor, ...)")
    ids, mask = inputs.get("input_ids"), inputs.get("attention_mask")
    if not isinstance(ids, Tensor) or ids.dim() != 2:
        raise ValueError(f"{who} needs the prompt as input_ids [batch, length], as the processor gives it")
    visual = target.architecture.visual_token_ids
    usable = isinstance(mask, Tensor) and mask.shape == ids.shape
    return GivenPrompt(
        input_ids=ids,
        attention_mask=mask if usable else torch.ones_like(ids),
        visual_token_ids=visual,
        pad_id=padding_id(target.model, target.processor, visual),
    )


def asked_inputs(guard: "Guard", inputs: Mapping[str, Any], prompt: BranchPrompt) -> dict[str, Any]:
    """The inputs of `generate` for a prompt made from that of `inputs`, with the same pictures."""
    given = image_inputs(inputs) | {"input_ids": prompt.input_ids, "attention_mask": prompt.attention_mask}
    given |= token_types(prompt, inputs)
    if isinstance(given.get("cross_attention_mask"), Tensor):
        given["cross_attention_mask"] = prompt.follow_sight(given["cross_attention_mask"])
    for name, nothing in _BY_COLUMN.items():
        if isinstance(given.get(name), Tensor):
            moved = given[name].gather(1, prompt.source.clamp_min(0))
            given[name] = torch.where(prompt.source >= 0, moved, nothing)
    return given


def read_alone(guard: "Guard", inputs: Mapping[str, Any], states: "VisualStates | None" = None) -> Tensor:
    """[B, V] logits of the plain model for the token behind each prompt of `generate`'s inputs."""
    with _plain(guard, inputs, states) as model:
        output = model.generate(**inputs, **_ONE_TOKEN, return_dict_in_generate=True, output_logits=True)
    return output.logits[0]


@contextmanager
def _plain(guard: "Guard", inputs: Mapping[str, Any], states: "VisualStates | None") -> Iterator[GenerativeModel]:
    """The model as it is, without gradients; hidden states of visual tokens are kept where wanted."""
    architecture = guard.target.architecture
    with guard.suspended(), torch.no_grad(), kept_rope_deltas(guard.target.model):
        if states is None:
            yield guard.target.model
            return
        with states.recording(architecture, inputs["input_ids"]):
            yield guard.target.model


class SharedPrompt:
    """Prompts that lie in a cache.

    Args:
        guard: of the model; its methods stand aside.
        model: the model that reads: for families with an inner one, that.
        cache: holds P columns of each of the B rows.
        kwargs: what the next pass of the model is given, for one more token.
        logits: [B, V] for the token behind each prompt.
    """

    def __init__(
        self, guard: "Guard", model: GenerativeModel, cache: DynamicCache, kwargs: dict[str, Any], logits: Tensor
    ) -> None:
        self.guard = guard
        self.model = model
        self.cache = cache
        self.kwargs = kwargs
        self.logits = logits

    @classmethod
    def read(
        cls,
        guard: "Guard",
        inputs: Mapping[str, Any],
        prompt: BranchPrompt,
        states: "VisualStates | None" = None,
        *,
        looks_ahead: bool = True,
    ) -> "SharedPrompt | None":
        """Let the plain model read a prompt; None where texts behind it would not be read as in a whole prompt.

        Args:
            guard: of the model.
            inputs: of `generate`; their pictures are used.
            prompt: made from the prompt of `inputs`, with all its visual tokens.
            states: keeps the hidden states of visual tokens, if given.
            looks_ahead: whether the text behind it would be part of the prompt, which in some families looks ahead;
                False for answers, which never do.
        """
        entry = guard.target.architecture.entry
        if entry.cross_attention or (looks_ahead and "token_type_ids" in inputs):
            return None
        given = asked_inputs(guard, inputs, prompt)
        reader = _Reader(guard)
        with _plain(guard, given, states) as model:
            model.generate(**given, **_ONE_TOKEN, custom_generate=reader)
        read = reader.read
        if read is None or any(type(layer) is not DynamicLayer for layer in read.cache.layers):
            return None
        positions = read.kwargs.get("position_ids")
        visual = guard.target.architecture.visual_token_ids
        if (
            positions is not None
            and positions.dim() > 2
            and bool(torch.isin(prompt.input_ids[:, -1].cpu(), torch.tensor(visual)).any())
        ):
            # The place of a token behind a picture depends on the picture's size, not on the place of its last patch.
            return None
        return read

    def last_logits(self, rows: Sequence[int], tails: Sequence[Sequence[int]]) -> Tensor:
        """[N, V] logits behind each of N texts.

        Args:
            rows: the prompt each text stands behind.
            tails: the ids of the texts, none of them empty.
        """
        found = []
        for start in range(0, len(rows), ROWS_AT_ONCE):
            part = slice(start, start + ROWS_AT_ONCE)
            logits, skipped = self._pass(rows[part], tails[part])
            ends = torch.tensor([len(tail) - 1 - skipped for tail in tails[part]], device=logits.device)
            found.append(logits[torch.arange(len(ends), device=logits.device), ends])
        return torch.cat(found)

    def _pass(self, rows: Sequence[int], tails: Sequence[Sequence[int]], every: bool = False) -> tuple[Tensor, int]:
        """Logits [N, S', V] of one pass over texts padded on their right to S, and how many first columns are left out.

        Padding stands behind every token that is looked at, so nothing sees it.
        """
        device = inference_device(self.model)
        length, shortest = max(map(len, tails)), min(map(len, tails))
        ids = torch.zeros(len(tails), length, dtype=torch.long)
        real = torch.zeros(len(tails), length, dtype=torch.long)
        for number, tail in enumerate(tails):
            ids[number, : len(tail)] = torch.tensor(list(tail))
            real[number, : len(tail)] = 1
        index = torch.tensor(list(rows), device=device)
        cache = copy.deepcopy(self.cache)
        cache.reorder_cache(index)
        kwargs = {"past_key_values": cache, "use_cache": True}
        kwargs |= self._token_inputs(index, real.to(device))
        skipped = 0
        if not every and self.model._supports_logits_to_keep():
            skipped = shortest - 1
            kwargs["logits_to_keep"] = length - skipped
        with self.guard.suspended(), torch.no_grad():
            inputs = self.model.prepare_inputs_for_generation(ids.to(device), next_sequence_length=length, **kwargs)
            logits = self.model(**inputs, return_dict=True).logits
        return logits, skipped

    def _token_inputs(self, index: Tensor, real: Tensor) -> dict[str, Any]:
        """Mask, positions and token types of the rows `index` [N] and the texts `real` [N, S] behind them."""
        length = real.shape[1]
        found: dict[str, Any] = {}
        mask = self.kwargs.get("attention_mask")
        if mask is None:
            mask = real.new_ones(int(index.max()) + 1, self.cache.get_seq_length())
        found["attention_mask"] = torch.cat((mask[index].to(real), real), 1)
        positions = self.kwargs.get("position_ids")
        if positions is not None:
            last = positions[..., -1:]
            last = last.expand(*last.shape[:-2], len(index), 1) if last.shape[-2] == 1 else last[..., index, :]
            steps = torch.arange(1, length + 1, device=last.device, dtype=last.dtype)
            found["position_ids"] = last + steps
        for name in TOKEN_TYPES:
            if isinstance(self.kwargs.get(name), Tensor):
                # An answer goes on with the type of the last token, as in `generate`; text that is no image has type 0.
                types = self.kwargs[name][index]
                last = types[:, -1:] if name == "token_type_ids" else types.new_zeros(len(index), 1)
                found[name] = last.expand(-1, length)
        return found


class _Reader:
    """A `custom_generate` callable that reads the prompt and keeps what comes of it."""

    def __init__(self, guard: "Guard") -> None:
        self._guard = guard
        self.read: SharedPrompt | None = None

    def __call__(
        self,
        model: GenerativeModel,
        input_ids: Tensor,
        logits_processor: Any,
        stopping_criteria: Any,
        generation_config: GenerationConfig,
        **model_kwargs: Any,
    ) -> Tensor:
        """Read; the arguments are those that `generate` passes."""
        cache = prompt_cache(model)
        kwargs = {**model_kwargs, "past_key_values": cache, "use_cache": True}
        output = model._prefill(input_ids, generation_config, kwargs)
        kept = {name: kwargs.get(name) for name in ("attention_mask", "position_ids", *TOKEN_TYPES)}
        self.read = SharedPrompt(self._guard, model, cache, kept, output.logits[:, -1])
        return input_ids
