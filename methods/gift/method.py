"""GIFT: gaze shift-guided cross-modal fusion enhancement (arXiv 2510.22067, ICML 2026).

While a model reads the question, its attention on the image shifts from word to word. Where it rises at a content word
is what the question is about. These places are enhanced for every generated token, and attention to the question
grows along, so that it does not lose to the image. In one layer, with A its attention and j a visual token:

    G_hij = max(A_hij - A_h,i-1,j, 0),  i the content words of the question
    g_j   = mean of G over i and the H/2 heads of the largest sum, clipped to mean +- 3 std, scaled to [0, 1]

Then, in the enhanced layers, for the row that predicts the next token:

    A_hj *= exp(alpha g_j)  for the H/2 heads with most attention on the image; r = that attention after / before
    A_hj *= r               on the question's tokens j, for the H/2 heads with most attention on the question
    the row is divided by its sum

which is the bias alpha g_j and ln r on the row's scores. r is one number per row and layer.

Stations: attention of the question's rows in one layer; attention scores of the last prompt row and every generated
one. When the saliency layer is below the enhanced ones, both happen in the same reading of the prompt; otherwise the
prompt is read once more up to the saliency layer first.

Where the values come from: alpha 5, saliency layer 11 and layers 12 to 22 of 32 are the released code's for
LLaVA-1.5-7B, given here as shares of the depth; its values for LLaVA-1.5-13B and Qwen2-VL-7B stand in the profiles of
these models, and `wrap` takes them from there. The question begins behind the line break that follows the image, as in
the code. The paper's factor beta on r is 1 and left out. Content words: the release tags parts of speech with spaCy;
here they are the words not on a list of function words (see `question_tokens`), or any function you give. Without any
content word the release averages nothing (NaN); here every token of the question counts.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from vlm_guard.kernels.attention_edit import AttentionEdit
from vlm_guard.method import (
    AttentionCall,
    ForwardCall,
    GenerationState,
    GuardTarget,
    Method,
    RowSelection,
    StopForward,
    all_heads,
    describe_function,
    find_function,
    option,
    own_heads,
    register,
    run_until_stopped,
)
from vlm_guard.methods.gift.gaze_shift import GazePlan, gaze_bias, gaze_saliency, question_flags
from vlm_guard.methods.shared.question_tokens import content_words

ALL = "all"
OPENING_UNKNOWN = (
    "gift takes everything behind the image for the question, also what makes the model answer, such as ' ASSISTANT:': "
    "no chat template says what that is. Pass wrap a processor that has one"
)


@register("gift")
@dataclass(frozen=True, kw_only=True)
class GIFT(Method):
    """Enhance the visual tokens to which attention shifted while the question was read."""

    title = "GIFT"
    paper = (
        "Capturing Gaze Shifts for Guidance: Cross-Modal Fusion Enhancement for VLM Hallucination Mitigation, "
        "ICML 2026, arXiv 2510.22067"
    )
    stations = ("attention",)
    needs = ("processor",)
    rows = "answer"
    whole_prompt = "text"

    strength: float = option(
        5.0,
        help="a visual token's attention grows by at most exp of this",
        range=(0.0, 20.0),
        neutral=0.0,
        paper="alpha; 5 for LLaVA-1.5, 4 for Qwen2-VL in the released code",
    )
    saliency_layer: str = option(
        "34%",
        help="the decoder layer whose attention shifts are read",
        paper="11 of 32 for LLaVA-1.5-7B, 10 of 40 for 13B, 14 of 28 for Qwen2-VL-7B in the released code",
    )
    layers: str = option(
        "38%-72%",
        help="decoder layers to enhance",
        paper="12-22 of 32 for LLaVA-1.5-7B, 14-20 of 40 for 13B, 5-18 of 28 for Qwen2-VL-7B in the released code",
    )
    content_words: str | Callable = option(
        "rules",
        help="'rules', 'all' (every question token counts), an import path or a function from text to character spans",
        paper="spaCy tags NOUN, PROPN, VERB, ADJ, ADV, NUM in the released code",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.content_words == ALL:
            object.__setattr__(self, "needs", ())

    def prepare(self, target: GuardTarget) -> GazePlan:
        """Layers and tokenizer.

        Raises:
            ValueError: the layers select nothing usable, or `content_words` names no function.
        """
        find = None
        if self.content_words != ALL:
            find = find_function(self.name, "content_words", self.content_words, {"rules": content_words})
        return GazePlan.of(target, self.saliency_layer, self.layers, find)

    def active_layers(self, target: GuardTarget) -> tuple[int, ...]:
        """The saliency layer and the enhanced ones."""
        plan = self.prepare(target)
        return tuple(sorted({plan.saliency, *plan.enhanced}))

    def prompt_layers(self, target: GuardTarget) -> tuple[int, ...]:
        """The saliency layer; the enhanced ones look at the rows of the answer."""
        return (self.prepare(target).saliency,)

    def reads_ahead(self, target: GuardTarget, prepared: GazePlan) -> str:
        """Empty where the saliency layer is below the enhanced ones."""
        if not prepared.needs_pass:
            return ""
        return (
            f"its saliency layer {prepared.saliency} is not below its first enhanced layer {min(prepared.enhanced)}, "
            "so it reads the prompt a second time beforehand; choose a saliency_layer below `layers`"
        )

    def begin_forward(self, call: ForwardCall) -> None:
        """Find the question in the prompt; read the prompt ahead where the saliency would come too late."""
        state, plan, ids = call.state, call.prepared, call.inputs["input_ids"]
        shared = state.memory(self.name, -1)
        length = state.prompt_length or state.offset + ids.shape[1]
        if self.strength == 0 or getattr(shared, "length", None) == length:
            return
        if state.offset + ids.shape[1] < length:
            raise ValueError("gift needs the whole prompt in one pass; do not set prefill_chunk_size with it")
        shared.length, shared.ahead, shared.saliency = length, plan.needs_pass, None
        prompt = ids[:, : length - state.offset]
        shared.question, shared.content, unsure = question_flags(prompt, state, plan.tokenizer, plan.opening, plan.find)
        if unsure:
            call.guard.reading.say(OPENING_UNKNOWN)
        if shared.ahead:
            if state.offset:
                raise ValueError(
                    "gift reads the prompt ahead with these layers, so it cannot go on with past_key_values"
                )
            run_until_stopped(call.guard.target.architecture.generator, call.inputs)
            shared.ahead = False

    def edit_attention(self, call: AttentionCall) -> AttentionEdit | None:
        """The saliency in its layer; the bias of the answer rows in the enhanced ones."""
        plan: GazePlan = call.prepared
        shared = call.state.memory(self.name, -1)
        if self.strength == 0:
            return None
        if call.layer == plan.saliency and shared.saliency is None:
            shared.saliency = self._saliency(call, shared.content)
            if shared.ahead:
                raise StopForward
        if shared.ahead or call.layer not in plan.enhanced:
            return None
        return self._enhance(call, shared.saliency, shared.question)

    def join_memory(self, kept: Sequence[SimpleNamespace], state: GenerationState) -> SimpleNamespace:
        """The saliency and the question of all, which are shared by the layers; nothing for a layer."""
        if not all(hasattr(memory, "saliency") for memory in kept):
            return SimpleNamespace()
        longest = max(memory.question.shape[1] for memory in kept)
        saliency, question = (
            torch.cat([torch.nn.functional.pad(part, (0, longest - part.shape[1])) for part in parts])
            for parts in zip(*((memory.saliency, memory.question) for memory in kept))
        )
        return SimpleNamespace(ahead=False, saliency=saliency, question=question)

    def _saliency(self, call: AttentionCall, content: Tensor) -> Tensor:
        """[B, P] float32 in [0, 1]; zero where no row of the question saw the image."""
        before = torch.nn.functional.pad(content[:, 1:], (0, 1))
        rows = RowSelection.of(content | before)
        visual = call.state.visual[:, : call.state.offset + content.shape[1]]
        if rows is None:
            return torch.zeros(visual.shape, device=visual.device)
        weights = all_heads(call.of_rows(rows).weights(), 1, call.guard.target)[..., : visual.shape[1]]
        counts = content.gather(1, rows.index) & rows.valid
        return gaze_saliency(weights, counts.to(weights.device), visual.to(weights.device))

    def _enhance(self, call: AttentionCall, saliency: Tensor, question: Tensor) -> AttentionEdit | None:
        described, target, own = saliency.shape[1], call.guard.target, call.query.shape[1]
        weights = all_heads(call.weights(), 1, target)[..., :described]
        visual = call.state.visual[:, :described]
        saliency, visual, question = (item.to(weights.device) for item in (saliency, visual, question))
        bias = gaze_bias(weights, saliency, visual, question, self.strength)
        return AttentionEdit(bias=own_heads(bias, 1, own, target))

    def describe(self) -> dict[str, Any]:
        """Name and options; a function is described by its import path."""
        description = super().describe()
        description["options"]["content_words"] = describe_function(self.content_words)
        return description
