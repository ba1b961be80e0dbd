"""The guards of the declared methods in one process: made once, of the model's configuration alone.

A guard here is attached to nothing. It stands on the model's class on the meta device, without weights, and serves its
methods' preparations, layers and facts; what runs is vLLM's own model.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from vlm_guard.families.architecture import Architecture, describe_architecture, unwrap
from vlm_guard.families.family import entry_of
from vlm_guard.families.profiles import find_profile
from vlm_guard.grounding.lens import lens_layers
from vlm_guard.guard import Guard
from vlm_guard.method.attention_calls import SLOT, BoundMethod, LayerSlot
from vlm_guard.method.base import Sign
from vlm_guard.method.forward_call import ForwardCall
from vlm_guard.method.split_heads import HeadSplit
from vlm_guard.method.state import GenerationState
from vlm_guard.serving.vllm.declaration import Declaration, Offer
from vlm_guard.serving.vllm.grounding.lens_keys import key_of
from vlm_guard.serving.vllm.grounding.lens_rows import KeptPrompts, LensPlanner

SIDES: tuple[Sign, Sign] = ("positive", "negative")


@dataclass(frozen=True, eq=False)
class EditedLayer:
    """One decoder layer of one offer, as the attention backend meets it.

    Attributes:
        slot: the layer's index, its guard and its methods.
        steady: the same with those methods alone whose edits stay the same through an answer.
        joint: those that are asked at every step about all rows that are decoded side by side.
        module: stands in for the attention module.
    """

    slot: LayerSlot
    steady: LayerSlot
    joint: tuple[BoundMethod, ...]
    module: nn.Module


@dataclass(frozen=True, kw_only=True, eq=False)
class ServedGuard:
    """One offer with its guard.

    Attributes:
        offer: what was declared.
        guard: the guard, on the meta device.
        layers: by the number of a decoder layer, those with an edit; for each branch.
    """

    offer: Offer
    guard: Guard
    layers: Mapping[Sign, Mapping[int, EditedLayer]] = field(repr=False)

    @cached_property
    def contrast(self) -> BoundMethod | None:
        """The method that contrasts logits, or None."""
        return self.guard.contrast

    @cached_property
    def observers(self) -> Mapping[Sign, Mapping[int, tuple[BoundMethod, ...]]]:
        """By branch and decoder layer, the methods that see the hidden states entering it while a prompt is read."""
        observing = [bound for bound in self.guard.methods if bound.method.observes_hidden]
        found: dict[Sign, dict[int, tuple[BoundMethod, ...]]] = {side: {} for side in SIDES}
        for bound in observing:
            own = found[bound.method.edited_branch]
            for layer in bound.layers:
                own[layer] = (*own.get(layer, ()), bound)
        return found

    @cached_property
    def beginning(self) -> Mapping[Sign, tuple[BoundMethod, ...]]:
        """By branch, the methods that look at the tokens of a prompt before they are read."""
        looking = [bound for bound in self.guard.methods if bound.method.overrides("begin_forward")]
        return {side: tuple(bound for bound in looking if bound.method.edited_branch == side) for side in SIDES}

    def begin(self, input_ids: Tensor, state: GenerationState) -> None:
        """Show these methods the tokens [1, Q] of a prompt that `state` has just taken in."""
        for bound in self.beginning[state.side]:
            call = ForwardCall(guard=self.guard, inputs={"input_ids": input_ids}, state=state, prepared=bound.prepared)
            with self.guard.reading.running(state, state.findings):
                bound.method.begin_forward(call)

    @cached_property
    def is_steady(self) -> Mapping[Sign, bool]:
        """By branch, whether its edits stay the same through an answer."""
        return {side: all(method.steady for method in self.offer.edited(side)) for side in SIDES}

    @cached_property
    def decodes_together(self) -> Mapping[Sign, bool]:
        """By branch, whether the rows of several requests that are decoded are edited together."""
        return {
            side: all(method.steady or method.overrides("join_memory") for method in self.offer.edited(side))
            for side in SIDES
        }

    @cached_property
    def joint(self) -> Mapping[Sign, Mapping[str, BoundMethod]]:
        """By branch and name, the methods that are asked at every step about all these rows."""
        layers = {side: self.layers[side].values() for side in SIDES}
        return {side: {bound.method.name: bound for layer in layers[side] for bound in layer.joint} for side in SIDES}

    @cached_property
    def edits_like_answers(self) -> Mapping[Sign, bool]:
        """By branch, whether all that is edited of a prompt is its last row, in the way of the answer's rows."""
        only = {
            side: all(m.rows == "answer" and m.whole_prompt is None for m in self.offer.edited(side)) for side in SIDES
        }
        return {side: self.is_steady[side] and only[side] for side in SIDES}

    @property
    def visual_token_ids(self) -> tuple[int, ...]:
        """Ids that stand for a patch of a picture."""
        return self.guard.target.architecture.visual_token_ids


class ServedGuards:
    """The guards of everything that is declared.

    Args:
        declared: what the server offers.
        model: the model on the meta device. processor: its processor.
        split: the heads of this process, where tensor parallelism spreads them.

    Raises:
        ValueError: a method lacks something of this model; the message says what to do.
    """

    def __init__(self, declared: Declaration, model: Any, processor: Any, split: HeadSplit | None = None) -> None:
        self.declared = declared
        entry = entry_of(model.config.model_type)
        if not entry.zoo or entry.cross_attention or entry.generator:
            raise ValueError(
                f"{model.config.model_type} models cannot be served with guards: only families whose pictures are "
                "placeholder ids in an ordinary prompt, and that are tested, can; see 'vlm-guard models'"
            )
        self.by_name: dict[str, ServedGuard] = {}
        self.lens_layers: tuple[int, ...] = ()
        architecture: Architecture | None = None
        for name, offer in declared.offers.items():
            guard = Guard(model, processor, offer.methods, architecture=architecture, split=split)
            _refuse_reading_ahead(guard)
            architecture = guard.target.architecture
            layers = {side: _edited_layers(guard, side) for side in SIDES}
            self.by_name[name] = ServedGuard(offer=offer, guard=guard, layers=layers)
        self.architecture = architecture or describe_architecture(unwrap(model))
        self.model = model
        if "lens" in declared.grounding:
            self.lens_layers = lens_layers(self.architecture, profile=find_profile(model.config))

    @cached_property
    def observed_layers(self) -> frozenset[int]:
        """The decoder layers whose entering hidden states somebody looks at; the depth for what leaves the last one."""
        methods = (layer for served in self.by_name.values() for found in served.observers.values() for layer in found)
        return frozenset((*methods, *self.lens_layers))

    def lens_planner(self, kept: KeptPrompts) -> LensPlanner | None:
        """What finds the prompts whose hidden states are kept; None where the lens is not offered."""
        if not self.lens_layers:
            return None
        return LensPlanner(self.lens_layers, self.architecture.visual_token_ids, kept)

    def follows(self, extra_args: Mapping[str, object] | None) -> bool:
        """Whether anything is done for a request beyond what vLLM does."""
        return self.asked(extra_args) is not None or key_of(extra_args) is not None

    def asked(self, extra_args: Mapping[str, object] | None) -> ServedGuard | None:
        """The guard of a request; None for the plain model."""
        offer = self.declared.asked(extra_args)
        return None if offer is None else self.by_name[offer.name]


def meta_model(name: str, revision: str | None = None, trust_remote_code: bool = False) -> tuple[Any, Any]:
    """A model without its weights, and its processor.

    Args:
        name: a folder or a Hugging Face id.
        revision: of the id.
        trust_remote_code: run code that comes with the checkpoint.
    """
    from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor

    options: dict[str, Any] = {"revision": revision, "trust_remote_code": trust_remote_code}
    config = AutoConfig.from_pretrained(name, **options)
    with torch.device("meta"):
        model = AutoModelForImageTextToText.from_config(
            config, attn_implementation="sdpa", trust_remote_code=trust_remote_code
        )
    return model.eval(), AutoProcessor.from_pretrained(name, **options)


def _refuse_reading_ahead(guard: Guard) -> None:
    """Refuse a method that needs a second reading of a prompt in this model.

    Raises:
        ValueError: with the reason.
    """
    for bound in guard.methods:
        reason = bound.method.reads_ahead(guard.target, bound.prepared)
        if bound.method.overrides("begin_forward") and reason:
            raise ValueError(
                f"{bound.method.name} cannot be served inside vLLM with these settings: {reason}; or use "
                "wrap(model, processor, ...) instead"
            )


def _edited_layers(guard: Guard, side: Sign) -> dict[int, EditedLayer]:
    """The layers whose attention any method of a guard edits in the rows of one branch."""
    found = {}
    for entry in guard.target.architecture.layers:
        methods = tuple(bound for bound in guard.methods if _edits(bound, side, entry.index))
        if not methods:
            continue
        module = nn.Module()
        slot = LayerSlot(entry.index, guard, methods)
        vars(module).update({SLOT: slot, "is_causal": True})
        steady = tuple(bound for bound in methods if bound.method.steady)
        joint = tuple(bound for bound in methods if not bound.method.steady)
        found[entry.index] = EditedLayer(slot, LayerSlot(entry.index, guard, steady), joint, module)
    return found


def _edits(bound: BoundMethod, side: Sign, layer: int) -> bool:
    method = bound.method
    return method.edits_attention() and method.edited_branch == side and layer in bound.layers
