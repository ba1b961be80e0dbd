"""The beginning of a batch of prompts, read once by the plain model, and short texts read behind it as one batch."""

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import LongTensor, Tensor, nn
from transformers import DynamicCache, GenerationConfig, LogitsProcessorList
from transformers.cache_utils import DynamicLayer

from vlm_guard.contrast.branch_cache import prompt_cache
from vlm_guard.contrast.branch_inputs import kept_rope_deltas, read_prompt
from vlm_guard.families.architecture import Architecture, GenerativeModel, inference_device
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
    return GivenPrompt(
        input_ids=ids,
        attention_mask=mask if isinstance(mask, Tensor) and mask.shape == ids.shape else torch.ones_like(ids),
        visual_token_ids=visual,
        pad_id=padding_id(target.model, target.processor, visual),
    )


def asked_inputs(
    guard: "Guard", inputs: Mapping[str, Any], prompt: BranchPrompt, *, pictures: bool = True
) -> dict[str, Any]:
    """The inputs of `generate` for a prompt made from that of `inputs`, with the same pictures or without any."""
    given: dict[str, Any] = {"input_ids": prompt.input_ids, "attention_mask": prompt.attention_mask}
    given |= token_types(prompt, inputs)
    if not pictures:
        return given
    given |= image_inputs(inputs)
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


def read_along(
    guard: "Guard",
    inputs: Mapping[str, Any],
    prompt: BranchPrompt,
    steps: int,
    processors: LogitsProcessorList,
    *,
    pictures: bool = True,
) -> Tensor:
    """[steps, B, V] logits of the plain model in front of every token that `processors` make it say."""
    given = asked_inputs(guard, inputs, prompt, pictures=pictures)
    settings = {**_ONE_TOKEN, "max_new_tokens": steps, "min_new_tokens": steps, "logits_processor": processors}
    with _plain(guard, given, None, pictures=pictures) as model:
        output = model.generate(**given, **settings, return_dict_in_generate=True, output_logits=True)
    return torch.stack(output.logits)


@contextmanager
def _plain(
    guard: "Guard", inputs: Mapping[str, Any], states: "VisualStates | None", *, pictures: bool = True
) -> Iterator[GenerativeModel]:
    """The model as it is, without gradients; hidden states of visual tokens are kept where wanted.

    Without pictures it is the inner model of families that turn prompt and picture into embeddings.
    """
    architecture = guard.target.architecture
    with guard.suspended(), torch.no_grad(), kept_rope_deltas(guard.target.model):
        if states is None:
            yield guard.target.model if pictures else architecture.generator
            return
        with states.recording(architecture, inputs["input_ids"]):
            yield guard.target.model


class AnsweredPrompt:
    """What is left of a `generate` call of the plain model: its cache, which holds the keys of the whole prompts.

    Attributes:
        cache: what `generate` returned as `past_key_values`; None before it has.
        positions: [..., B or 1, P] position ids of the prompts, where the model was given any.
    """

    def __init__(self, architecture: Architecture) -> None:
        self._generator = architecture.generator
        self.cache: Any = None
        self.positions: Tensor | None = None

    @contextmanager
    def watching(self, length: int) -> Iterator[None]:
        """Inside, the positions of the first pass over prompts of `length` tokens are kept."""

        def look(module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
            handle.remove()
            positions = kwargs.get("position_ids")
            if isinstance(positions, Tensor) and positions.shape[-1] == length:
                self.positions = positions

        handle = self._generator.register_forward_pre_hook(look, with_kwargs=True)
        try:
            yield
        finally:
            handle.remove()

    def beginning(self, guard: "Guard", inputs: Mapping[str, Any], prompt: BranchPrompt) -> "SharedPrompt | None":
        """The keys of the first tokens of these prompts; None where they are not to be had, or would not do.

        Args:
            guard: of the model.
            inputs: what `generate` was given.
            prompt: the first tokens of the prompts in `inputs`.
        """
        entry, given = guard.target.architecture.entry, inputs["input_ids"]
        if entry.cross_attention or "token_type_ids" in inputs or not _only_keys(self.cache):
            return None
        if self.cache.get_seq_length() < given.shape[1] or inputs.get("past_key_values") is not None:
            return None
        place = prompt.source.clamp_min(0)
        # Beams and returned sequences have the same prompt; the first of them stands for all.
        repeats = self.cache.layers[0].keys.shape[0] // given.shape[0]
        positions = self.positions
        if positions is None:
            positions = prompt.attention_mask.cumsum(-1) - 1
        else:
            index = place.to(positions.device)
            if positions.shape[-2] > 1:
                positions = positions[..., ::repeats, :]
            shape = (*positions.shape[:-2], *index.shape)
            positions = positions.expand(*shape[:-1], positions.shape[-1]).gather(-1, index.expand(shape))
        if _unsure_place(guard, prompt, positions):
            return None
        cache = DynamicCache()
        for number, layer in enumerate(self.cache.layers):
            cache.update(_columns(layer.keys[::repeats], place), _columns(layer.values[::repeats], place), number)
        kept: dict[str, Any] = {"attention_mask": prompt.attention_mask, "position_ids": positions}
        kept |= token_types(prompt, inputs)
        return SharedPrompt(guard, guard.target.architecture.generator, cache, kept, None)


def _only_keys(cache: Any) -> bool:
    """Whether every layer of a cache holds all keys of its prompts and nothing else."""
    layers = getattr(cache, "layers", ())
    return bool(layers) and all(
        type(layer) is DynamicLayer and layer.is_initialized and layer.keys is not None and layer.keys.numel()
        for layer in layers
    )


def _unsure_place(guard: "Guard", prompt: BranchPrompt, positions: Tensor | None) -> bool:
    """Whether the place of a text behind a prompt is not the next one after its last token.

    Where positions have several parts, that of a text behind a picture depends on the picture's size, not on the place
    of its last patch.
    """
    if positions is None or positions.dim() == 2:
        return False
    visual = torch.tensor(guard.target.architecture.visual_token_ids)
    return bool(torch.isin(prompt.input_ids[:, -1].cpu(), visual).any())


def _columns(states: Tensor, place: Tensor) -> Tensor:
    """[B, G, L, D] of keys or values [B, G, P, D]: the columns that `place` [B, L] names."""
    index = place.to(states.device)[:, None, :, None]
    return states.gather(2, index.expand(-1, states.shape[1], -1, states.shape[3]))


class SharedPrompt:
    """Prompts that lie in a cache.

    Args:
        guard: of the model; its methods stand aside.
        model: the model that reads: for families with an inner one, that.
        cache: holds P columns of each of the B rows.
        kwargs: what the next pass of the model is given, for one more token.
        logits: [B, V] for the token behind each prompt; None where they are not known.
    """

    def __init__(
        self,
        guard: "Guard",
        model: GenerativeModel,
        cache: DynamicCache,
        kwargs: dict[str, Any],
        logits: Tensor | None,
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
        pictures: bool = True,
    ) -> "SharedPrompt | None":
        """Let the plain model read a prompt; None where texts behind it would not be read as in a whole prompt.

        Args:
            guard: of the model.
            inputs: of `generate`; their pictures are used.
            prompt: made from the prompt of `inputs`, with all its visual tokens.
            states: keeps the hidden states of visual tokens, if given.
            looks_ahead: whether the text behind it would be part of the prompt, which in some families looks ahead;
                False for answers, which never do.
            pictures: False where the prompt has no visual tokens.
        """
        entry = guard.target.architecture.entry
        if entry.cross_attention or (looks_ahead and "token_type_ids" in inputs):
            return None
        given = asked_inputs(guard, inputs, prompt, pictures=pictures)
        reader = _Reader(guard)
        with _plain(guard, given, states, pictures=pictures) as model:
            model.generate(**given, **_ONE_TOKEN, custom_generate=reader)
        read = reader.read
        if read is None or any(type(layer) is not DynamicLayer for layer in read.cache.layers):
            return None
        return None if _unsure_place(guard, prompt, read.kwargs.get("position_ids")) else read

    def first_logits(self, row: int) -> Tensor:
        """[V] logits for the token behind a prompt.

        Raises:
            RuntimeError: only the keys of the prompt are known.
        """
        if self.logits is None:
            raise RuntimeError("a beginning taken from a cache has keys and no logits")
        return self.logits[row]

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

    def all_logits(self, rows: Sequence[int], tails: Sequence[Sequence[int]]) -> Tensor:
        """[N, S, V] logits behind every token of N texts of at most S tokens; see `last_logits`."""
        return self._pass(rows, tails, every=True)[0]

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
        cache.reorder_cache(cast(LongTensor, index))
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
        output = read_prompt(model, input_ids, generation_config, kwargs)
        kept = {name: kwargs.get(name) for name in ("attention_mask", "position_ids", *TOKEN_TYPES)}
        self.read = SharedPrompt(self._guard, model, cache, kept, output.logits[:, -1])
        return input_ids
