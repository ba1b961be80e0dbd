"""The stations edit_hidden and edit_vision, with toy methods: every part, every scope, against hooks by hand."""

from dataclasses import dataclass

import pytest
import torch

from vlm_guard import wrap
from vlm_guard.families.architecture import describe_architecture
from vlm_guard.families.layer_parts import decoder_parts
from vlm_guard.method import (
    HiddenEditCall,
    Method,
    VisionEditCall,
    VisionPassCall,
    VisionPlan,
    describe_vision_tower,
    option,
)
from vlm_guard.methods.pai import PAI
from zoo import UNEQUAL_PROMPTS, Prompt, assert_pristine

torch.set_num_threads(1)
PROMPTS = [*UNEQUAL_PROMPTS, Prompt(text_before=5, images=0, text_after=12, content=2)]
SCOPES = ("all", "text", "answer")
PARTS = ("residual", "attention", "mlp")
FAMILIES = ["llava", "gemma3", "qwen2_5_vl", "glm4v", "qwen3_5", "llama4", "fuyu"]


@dataclass(frozen=True, kw_only=True)
class Steer(Method):
    """Turn hidden states, keeping their norm."""

    name = "steer"
    stations = ("hidden",)

    strength: float = option(0.5, help="how far", range=(0.0, 10.0), neutral=0.0)
    part: str = option("residual", help="what is turned", choices=PARTS)

    def hidden_parts(self, target, prepared):
        layers = [entry.index for entry in target.architecture.layers]
        return {self.part: layers[1:]} if self.strength else {}

    def edit_hidden(self, call: HiddenEditCall):
        call.memory.rows = getattr(call.memory, "rows", 0) + call.hidden.shape[1]
        return turned(call.hidden, self.strength)


class SteerAll(Steer):
    hidden_rows = "all"


class SteerText(Steer):
    hidden_rows = "text"


BY_SCOPE = {"all": SteerAll, "text": SteerText, "answer": Steer}


def turned(hidden, strength):
    moved = hidden + strength * hidden.roll(1, -1)
    return moved * hidden.norm(dim=-1, keepdim=True) / moved.norm(dim=-1, keepdim=True).clamp_min(1e-20)


def close(first, second):
    return float((first - second).abs().max()) <= 3e-5 * max(1.0, float(second.abs().max()))


def logits(model, inputs):
    with torch.no_grad():
        return model(**inputs).logits


def generate(model, inputs, **extra):
    settings = {"output_logits": True, "return_dict_in_generate": True, "do_sample": False}
    with torch.no_grad():
        return model.generate(**inputs, **({"max_new_tokens": 4} | settings | extra))


def rows_of(scope, inputs, visual):
    """[B, P] bool, written out apart from the library."""
    wanted = torch.zeros_like(visual)
    for row in range(visual.shape[0]):
        if not visual[row].any():
            continue
        first, last = int(visual[row].nonzero()[0]), visual.shape[1] - 1
        for place in range(visual.shape[1]):
            real = bool(inputs["attention_mask"][row, place])
            text = place > first and not visual[row, place]
            wanted[row, place] = real and {"all": True, "text": text, "answer": place == last}[scope]
    return wanted


@pytest.mark.parametrize("family", ["llava", "gemma3", "llava_gpt_oss"])
@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.parametrize("part", PARTS)
def test_it_equals_hooks_by_hand(zoo_model, family, scope, part):
    zoo = zoo_model(family)
    inputs = zoo.make_inputs(zoo.adapt(PROMPTS))
    wanted = rows_of(scope, inputs, zoo.expected_visual_mask(inputs))
    architecture = describe_architecture(zoo.model)
    layers = [entry.index for entry in architecture.layers][1:]

    def hook(module, args, output):
        first = output[0] if isinstance(output, tuple) else output
        shaped = first.view(*wanted.shape, -1)
        new = torch.where(wanted[..., None], turned(shaped, 0.5), shaped).view(first.shape)
        return (new, *output[1:]) if isinstance(output, tuple) else new

    plain = logits(zoo.model, inputs)
    hooks = [item.module.register_forward_hook(hook) for item in decoder_parts(architecture, {part: layers}, "test")]
    expected = logits(zoo.model, inputs)
    for handle in hooks:
        handle.remove()
    real = inputs["attention_mask"].bool()
    with wrap(zoo.model, None, BY_SCOPE[scope](part=part)):
        found = logits(zoo.model, inputs)
    assert close(found[real], expected[real]) and not close(found[real], plain[real])
    assert torch.equal(found[-1][real[-1]], plain[-1][real[-1]]) or close(found[-1][real[-1]], plain[-1][real[-1]])
    assert torch.equal(logits(zoo.model, inputs), plain)
    assert_pristine(zoo.model)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("scope", SCOPES)
def test_the_invariants_of_every_method(zoo_model, family, scope):
    zoo = zoo_model(family)
    prompts = zoo.adapt(list(UNEQUAL_PROMPTS))
    inputs = zoo.make_inputs(prompts)
    real = inputs["attention_mask"].bool()
    plain = logits(zoo.model, inputs)
    with wrap(zoo.model, None, BY_SCOPE[scope](strength=0.0)):
        assert torch.equal(logits(zoo.model, inputs)[real], plain[real]), "neutral is the identity"
    with wrap(zoo.model, None, BY_SCOPE[scope]()):
        together = logits(zoo.model, inputs)
        if zoo.family.batch_invariant:
            for row, prompt in enumerate(prompts):
                assert close(together[row][real[row]], logits(zoo.model, zoo.make_inputs([prompt]))[0])
        cached, recomputed = generate(zoo.model, inputs), generate(zoo.model, inputs, use_cache=False)
        assert torch.equal(cached.sequences, recomputed.sequences)
        assert all(close(first, second) for first, second in zip(cached.logits, recomputed.logits))
    assert torch.equal(logits(zoo.model, inputs), plain)
    assert_pristine(zoo.model)


@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.parametrize("use_cache", [True, False])
def test_beside_a_contrast_the_positive_rows_alone_are_edited(zoo_model, scope, use_cache):
    zoo = zoo_model("llava")
    inputs = zoo.make_inputs(list(UNEQUAL_PROMPTS))
    steer, settings = BY_SCOPE[scope](), {"use_cache": use_cache}
    with wrap(zoo.model, None, steer):
        edited = generate(zoo.model, inputs, max_new_tokens=1).logits[0]
    with wrap(zoo.model, None, PAI(gain=0.0, guidance=2.0, plausibility=0.0)):
        contrasted = generate(zoo.model, inputs, max_new_tokens=1).logits[0]
    plain = generate(zoo.model, inputs, max_new_tokens=1).logits[0]
    with wrap(zoo.model, None, [steer, PAI(gain=0.0, guidance=2.0, plausibility=0.0)]):
        both = generate(zoo.model, inputs, **settings)
    # contrasted = 2 plain - text, and the text branch is not edited: both = 2 edited - text.
    assert close(both.logits[0], 2 * edited - (2 * plain - contrasted))
    with wrap(zoo.model, None, [steer, PAI(gain=0.0, guidance=2.0, plausibility=0.0)]):
        again = generate(zoo.model, inputs, use_cache=not use_cache)
    assert torch.equal(both.sequences, again.sequences)
    assert all(close(first, second) for first, second in zip(both.logits, again.logits))
    assert_pristine(zoo.model)


def test_several_methods_act_in_their_order(zoo_model):
    @dataclass(frozen=True, kw_only=True)
    class Shift(SteerAll):
        name = "shift"

        def edit_hidden(self, call):
            return call.hidden + 1

    zoo = zoo_model("llava")
    inputs = zoo.make_inputs(list(UNEQUAL_PROMPTS))
    seen = {}
    for order in ([SteerAll(), Shift()], [Shift(), SteerAll()]):
        with wrap(zoo.model, None, order), torch.no_grad():
            recorded = zoo.model(**inputs, output_hidden_states=True).hidden_states
        seen[order[0].name] = recorded[2]
        with torch.no_grad():
            before = zoo.model(**inputs, output_hidden_states=True).hidden_states[2]
        turned_first = turned(before, 0.5) + 1
        expected = turned_first if order[0].name == "steer" else turned(before + 1, 0.5)
        real = inputs["attention_mask"].bool()
        assert close(recorded[2][real], expected[real]), "what is recorded is the edited state"
    assert not close(seen["steer"], seen["shift"])
    assert_pristine(zoo.model)


def test_a_layer_without_the_part_is_refused(zoo_model):
    @dataclass(frozen=True, kw_only=True)
    class Wrong(Steer):
        def hidden_parts(self, target, prepared):
            return {"mlp": [0]}

    with pytest.raises(ValueError, match=r"steer acts on the mlp output of decoder layer 0 .* has no attention"):
        wrap(zoo_model("qwen3_5").model, None, Wrong())
    assert_pristine(zoo_model("qwen3_5").model)
    with pytest.raises(ValueError, match=r"steer acts on the feed-forward network .* its parts"):
        wrap(zoo_model("blip_2").model, None, Steer(part="mlp"))


@dataclass(frozen=True, kw_only=True)
class Dim(Method):
    """Scale what a part of the tower's layers computes, by how bright the pictures are."""

    name = "dim"
    stations = ("vision",)
    compiles = True

    factor: float = option(0.5, help="factor", range=(0.0, 2.0), neutral=1.0)
    part: str = option("residual", help="what is scaled", choices=PARTS)

    def prepare(self, target):
        return describe_vision_tower(target.model, self.name)

    def active_layers(self, target):
        return ()

    def vision_plan(self, target, prepared):
        return None if self.factor == 1 else VisionPlan(tower=prepared, edited={self.part: (0,)})

    def begin_vision(self, call: VisionPassCall) -> None:
        pixels = call.args[0] if call.args else call.kwargs["pixel_values"]
        first = call.encode(*call.args, **call.kwargs)[0]
        assert call.encode(*call.args, **call.kwargs)[0].equal(first), "runs without this method"
        call.memory.images = pixels.shape[0]
        vars(call.found).setdefault("images", []).append(pixels.shape[0])

    def edit_vision(self, call: VisionEditCall):
        assert call.hidden.shape[0] == call.memory.images
        return call.hidden * self.factor


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("family", ["llava", "internvl", "gemma3"])
def test_the_tower_is_edited_as_by_hand(zoo_model, family, part):
    zoo = zoo_model(family)
    inputs = zoo.make_inputs(zoo.adapt(PROMPTS))
    tower = describe_vision_tower(zoo.model, "test")
    children = dict(tower.layers[0].named_children())
    module = {"residual": tower.layers[0], "attention": tower.attentions[0], "mlp": children.get("mlp")}[part]

    def hook(module, args, output):
        return (output[0] * 0.5, *output[1:]) if isinstance(output, tuple) else output * 0.5

    plain = logits(zoo.model, inputs)
    handle = module.register_forward_hook(hook, prepend=True)
    expected = logits(zoo.model, inputs)
    handle.remove()
    with wrap(zoo.model, None, Dim(part=part)) as guard:
        found = logits(zoo.model, inputs)
        assert guard.findings("dim").images == [inputs["pixel_values"].shape[0]]
    real = inputs["attention_mask"].bool()
    assert torch.equal(found[real], expected[real]) and not close(found[real], plain[real])
    with wrap(zoo.model, None, Dim(factor=1.0)):
        assert torch.equal(logits(zoo.model, inputs)[real], plain[real])
    assert_pristine(zoo.model)
