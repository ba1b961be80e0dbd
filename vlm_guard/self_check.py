"""Is a model of a family nobody tested guarded truly? A short check on the model itself, when it is wrapped.

The families of the table were tested on small models. Any other model whose attention goes through transformers'
interface looks alike from outside, yet may hand over masks or biases of its own form, share keys between layers, or
count positions by the length of its cache. So before such a model is guarded it reads a prompt of some twenty ordinary
tokens, of which one id is taken for a visual token, and decodes one:

  edits     with every weight of every layer computed anew and edited by nothing, its logits must stay as they are;
  branches  the shorter branch of a contrast, decoded in one pass beside the prompt, must have the logits that it has
            when it is alone in the model.

What each method needs is checked once for a model class, configuration and type of numbers in the life of a process.
The check of edits takes four forward passes, that of branches seven, all over at most `LENGTH` tokens in two rows: less
than reading one picture of several hundred tokens (docs/models.md has the measured times).
"""

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor
from transformers import GenerationConfig

from vlm_guard.families.architecture import GenerativeModel, describe_architecture
from vlm_guard.families.family import entry_of
from vlm_guard.kernels.attention_edit import AttentionEdit
from vlm_guard.method.attention_calls import AttentionCall
from vlm_guard.method.base import Method, Station
from vlm_guard.method.contrasting import Branch, ContrastCall
from vlm_guard.method.target import GuardTarget

LENGTH = 22
VISUAL = slice(5, 17)
SHORT_BY = 4
NEW_TOKENS = 2
# Two computations of the same logits may differ by rounding; a wrong mask or position costs more than half the digits.
TOLERANCES = {torch.float32: 1e-3, torch.float64: 1e-6}
ROUGH_TOLERANCE = 0.03

_verdicts: dict[tuple[type, str, torch.dtype, str], str] = {}
MakeGuard = Callable[..., Any]


@dataclass(frozen=True, kw_only=True)
class UnchangedWeights(Method):
    """Computes every weight and output anew, and changes none."""

    name: ClassVar[str] = "the check of edits"
    stations: ClassVar[tuple[Station, ...]] = ("attention",)

    def prepare(self, target: GuardTarget) -> int:
        """How many query heads a layer is said to have; 0 where several processes share them."""
        return 0 if (target.model.tp_size or 1) > 1 else target.architecture.heads

    def edit_attention(self, call: AttentionCall) -> AttentionEdit:
        """A gain of 0, an output scale of 1 and nothing of the row's own value.

        Raises:
            ValueError: the layer has other heads than its model's configuration says.
        """
        query, key = call.query, call.key
        if call.prepared and query.shape[1] != call.prepared:
            raise ValueError(
                f"layer {call.layer} has {query.shape[1]} query heads, and the configuration says {call.prepared}"
            )
        nothing = query.new_zeros(query.shape[:2], dtype=torch.float32)
        gain = query.new_zeros(1, 1, 1, key.shape[2], dtype=torch.float32)
        return AttentionEdit(gain=gain, head_scale=nothing + 1, self_mix=nothing)


@dataclass(frozen=True, kw_only=True)
class ShorterBranch(Method):
    """Answers with the logits of the prompt without its visual tokens."""

    name: ClassVar[str] = "the check of branches"
    stations: ClassVar[tuple[Station, ...]] = ("logits",)
    needs: ClassVar[tuple[str, ...]] = ("second branch",)

    def contrasts(self) -> bool:
        """Always."""
        return True

    def contrast_branch(self, call: ContrastCall) -> Branch:
        """The prompt without its visual tokens."""
        return Branch(prompt=call.prompt.without_images(()), images="none", active=call.prompt.has_image)

    def combine_logits(self, positive: Tensor, negative: Tensor, step: int) -> Tensor:
        """Only the branch."""
        return negative


def check_unknown_family(model: GenerativeModel, methods: Sequence[Method], make_guard: MakeGuard) -> None:
    """Check what `methods` need of a model whose family is not tested; tested ones are left alone.

    Args:
        model: the model, not guarded.
        methods: what it shall be guarded with.
        make_guard: the class of guards.

    Raises:
        ValueError: the guard would change what it must not; the message says what was found.
    """
    entry = entry_of(model.config.model_type)
    if entry.refused or entry.zoo:
        return
    checks: dict[str, Callable[[GenerativeModel, MakeGuard], str]] = {}
    if any(method.edits_attention() for method in methods):
        checks["edits"] = _check_edits
    if any(method.contrasts() and "second branch" in method.needs for method in methods):
        checks["branches"] = _check_branches
    names = "+".join(method.name for method in methods)
    for name, check in checks.items():
        key = (type(model), model.config.to_json_string(), model.dtype, name)
        if key not in _verdicts:
            with _quietly(model):
                _verdicts[key] = check(model, make_guard)
        if _verdicts[key]:
            raise ValueError(
                f"{model.config.model_type} is not among the tested families, and its check found that {names} would "
                f"not act on it truly: {_verdicts[key]}; see 'vlm-guard models' for families that work"
            )


def _check_edits(model: GenerativeModel, make_guard: MakeGuard) -> str:
    """What is wrong with edited attention; empty where nothing is."""
    prompt = _Prompt.of(model)
    try:
        plain = _decode(model, prompt.input_ids, prompt.mask)
    except Exception as error:
        return f"it does not read a prompt without a picture, so that it cannot be checked ({_words(error)})"
    try:
        with _guarded(model, UnchangedWeights(), prompt, make_guard):
            edited = _decode(model, prompt.input_ids, prompt.mask)
    except Exception as error:
        return f"attention that is computed anew fails ({_words(error)})"
    distance = _distance(edited, plain)
    if distance > _tolerance(model):
        return (
            f"attention that is computed anew and edited by nothing gives other logits ({distance:.1e} of their spread)"
        )
    return ""


def _check_branches(model: GenerativeModel, make_guard: MakeGuard) -> str:
    """What is wrong with a shorter branch; empty where nothing is."""
    prompt = _Prompt.of(model)
    try:
        alone = torch.cat([_decode(model, row[None], torch.ones_like(row[None])) for row in prompt.without_visual()])
    except Exception as error:
        return f"it does not read a prompt without a picture, so that it cannot be checked ({_words(error)})"
    try:
        with _guarded(model, ShorterBranch(), prompt, make_guard):
            beside = _decode(model, prompt.input_ids, prompt.mask)
    except Exception as error:
        return f"a second branch cannot be decoded beside the prompt ({_words(error)})"
    distance = _distance(beside, alone)
    if distance > _tolerance(model):
        return (
            f"a second branch that is shorter than the prompt has other logits than alone ({distance:.1e} of their "
            "spread), as in models that count positions by the length of their cache"
        )
    return ""


@dataclass(frozen=True, kw_only=True, eq=False)
class _Prompt:
    """Two rows of ordinary tokens, the second shorter; `visual_id` is taken for a visual token.

    input_ids and mask are [2, LENGTH] long.
    """

    input_ids: Tensor
    mask: Tensor
    visual_id: int

    @classmethod
    def of(cls, model: GenerativeModel) -> "_Prompt":
        embeddings = model.get_input_embeddings()
        vocabulary: int = vars(embeddings)["num_embeddings"]
        special = _special_ids(model)
        random = torch.Generator().manual_seed(0)
        drawn = [int(id_) for id_ in torch.randint(3, vocabulary, (8 * LENGTH,), generator=random)]
        usable = [id_ for id_ in dict.fromkeys(drawn) if id_ not in special]
        if len(usable) <= LENGTH:
            usable = [id_ for id_ in range(vocabulary) if id_ not in special] * LENGTH
        visual_id, text = usable[0], usable[1 : LENGTH + 1]
        rows = torch.tensor([text, text[::-1]])
        rows[:, VISUAL] = visual_id
        mask = torch.ones_like(rows)
        # The second row has fewer visual tokens in front, so that its branch is shorter by another number.
        mask[1, : VISUAL.start + SHORT_BY] = 0
        device = embeddings.get_parameter("weight").device
        device = model.device if device.type == "meta" else device
        return cls(input_ids=rows.to(device), mask=mask.to(device), visual_id=visual_id)

    def without_visual(self) -> Iterator[Tensor]:
        """The ids of each row without padding and visual tokens."""
        for row, real in zip(self.input_ids, self.mask.bool(), strict=True):
            yield row[real & (row != self.visual_id)]


def _special_ids(model: GenerativeModel) -> set[int]:
    """Ids that the configuration gives a meaning of their own."""
    found: set[int] = set()
    for config in (model.config, model.config.get_text_config(decoder=True), model.generation_config):
        for name, value in config.to_dict().items():
            if name.endswith(("token_id", "token_index", "patch_id", "token_ids")):
                found.update(item for item in (value if isinstance(value, list) else [value]) if isinstance(item, int))
    return found


@contextmanager
def _guarded(model: GenerativeModel, method: Method, prompt: _Prompt, make_guard: MakeGuard) -> Iterator[None]:
    """The model guarded by one method, for which the prompt's `visual_id` marks visual tokens."""
    architecture = replace(describe_architecture(model), visual_token_ids=(prompt.visual_id,))
    guard = make_guard(model, None, [method], architecture=architecture)
    guard.attach()
    try:
        yield
    finally:
        guard.remove()


def _decode(model: GenerativeModel, input_ids: Tensor, mask: Tensor) -> Tensor:
    """[B, NEW_TOKENS, V] float32 logits of greedy steps."""
    config = GenerationConfig(
        do_sample=False,
        num_beams=1,
        max_new_tokens=NEW_TOKENS,
        min_new_tokens=NEW_TOKENS,
        eos_token_id=None,
        pad_token_id=0,
        suppress_tokens=sorted(id_ for id_ in _special_ids(model) if id_ >= 0) or None,
        output_logits=True,
        return_dict_in_generate=True,
        use_cache=True,
    )
    output = model.generate(input_ids=input_ids, attention_mask=mask, generation_config=config)
    return torch.stack(output.logits, 1).float()


def _distance(given: Tensor, wanted: Tensor) -> float:
    """Root mean square of the difference, relative to the spread of the wanted logits; infinite where not finite."""
    usable = wanted > torch.finfo(torch.float32).min / 2  # Some models forbid tokens by the lowest number.
    given, wanted = given[usable], wanted[usable]
    if not bool(given.isfinite().all()) or not bool(wanted.isfinite().all()):
        return float("inf")
    return float((given - wanted).square().mean().sqrt() / wanted.std().clamp_min(1e-30))


def _tolerance(model: GenerativeModel) -> float:
    return TOLERANCES.get(model.dtype, ROUGH_TOLERANCE)


def _words(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"


@contextmanager
def _quietly(model: GenerativeModel) -> Iterator[None]:
    """In evaluation mode, without gradients or warnings; afterwards the model is as it was."""
    training = [module for module in model.modules() if module.training]
    # Models with positions in three parts remember an offset of their last prompt.
    offsets = [(module, module.rope_deltas) for module in model.modules() if hasattr(module, "rope_deltas")]
    model.eval()
    try:
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for module in training:
            module.training = True
        for module, offset in offsets:
            module.rope_deltas = offset
