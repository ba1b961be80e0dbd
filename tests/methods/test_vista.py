"""VISTA by hand: the turn, the mix of late layers, the vector of a prompt, and what is refused."""

import math

import pytest
import torch
from transformers import DynamicCache

from vlm_guard import wrap
from vlm_guard.methods.shared.steering import Direction, turn
from vlm_guard.methods.vista import VISTA
from zoo import UNEQUAL_PROMPTS, Prompt, assert_pristine

torch.set_num_threads(1)
PROMPTS = [*UNEQUAL_PROMPTS, Prompt(text_before=2, images=0, text_after=8, content=2)]
STEERING = {"strength": 0.5, "augmentation": 0.0}


def logits(model, inputs):
    with torch.no_grad():
        return model(**inputs).logits


@pytest.mark.parametrize(
    ("vector", "expected"), [((0.0, 2.0), (2.7735, 4.1603)), ((0.0, -2.0), (3.4771, 3.5930)), ((0.0, 0.0), (3.0, 4.0))]
)
def test_the_turn_by_hand(vector, expected):
    """m = (3, 4), strength 0.1: towards (0, 1) by 0.1; (0, -1) is 0.8 away, so by 0.18; both of length 5."""
    hidden = torch.tensor([[[3.0, 4.0]]])
    found = turn(hidden, Direction.of(torch.tensor([[vector]])), 0.1, more_when_away=True)
    assert torch.allclose(found, torch.tensor([[expected]]), atol=1e-4)
    assert float(found.norm()) == pytest.approx(5, rel=1e-6)


def test_a_constant_turn_by_hand_and_a_zero_state():
    towards = Direction.of(torch.tensor([0.0, -2.0]))
    found = turn(torch.tensor([[[3.0, 4.0], [0.0, 0.0]]]), towards, 0.1)
    # (0.6, 0.8) + 0.1 (0, -1) = (0.6, 0.7), whose length is sqrt(0.85); back to length 5.
    assert torch.allclose(found[0, 0], torch.tensor([3.0, 3.5]) / math.sqrt(0.85))
    assert torch.equal(found[0, 1], torch.zeros(2))


def test_late_logits_by_hand():
    final, early = torch.tensor([[2.0, 1.0]]), torch.tensor([[[0.0, 4.0]], [[2.0, 2.0]]])
    assert torch.allclose(VISTA().combine_layers(final, early, (1, 2)), torch.tensor([[1.7, 1.6]]))


@pytest.mark.parametrize("final_norm", [False, True])
def test_late_states_are_read_out_with_or_without_the_final_norm(zoo_model, final_norm):
    zoo = zoo_model("llava")
    inputs, decoder, found = zoo.make_inputs(UNEQUAL_PROMPTS), zoo.model.get_decoder(), []
    hook = decoder.layers[-1].register_forward_pre_hook(lambda module, args: found.append(args[0][:, -1]))
    plain = logits(zoo.model, inputs)[:, -1]
    hook.remove()
    with torch.no_grad():
        late = zoo.model.get_output_embeddings()(decoder.norm(found[0]) if final_norm else found[0])
    with wrap(zoo.model, None, "vista", strength=0, late_layers="last:1", final_norm=final_norm):
        guarded = logits(zoo.model, inputs)[:, -1]
    assert torch.allclose(guarded, 0.7 * plain + 0.3 * late, atol=1e-5)
    assert (guarded - plain).abs().max() > 1e-3


def test_published_layers_on_a_decoder_of_32(zoo_model):
    from types import SimpleNamespace

    target = SimpleNamespace(architecture=SimpleNamespace(depth=32))
    assert VISTA().early_layers(target) == (26, 27, 28, 29, 30, 31), "what layers 25 to 30 give"


def behind_layers(zoo, inputs):
    """[L, D] states behind every layer at the last position of one prompt, by hooks."""
    states = []
    hooks = [
        layer.register_forward_hook(lambda m, a, out: states.append((out[0] if isinstance(out, tuple) else out)[0, -1]))
        for layer in zoo.model.get_decoder().layers
    ]
    logits(zoo.model, inputs)
    for hook in hooks:
        hook.remove()
    return states


@pytest.mark.parametrize("variant", ["default", "published"])
def test_it_equals_the_formula_written_into_the_layers(zoo_model, variant):
    """Row by row against feed-forward networks patched by hand, on a padded batch with a row of text."""
    zoo = zoo_model("llava")
    inputs = zoo.make_inputs(PROMPTS)
    plain, expected = logits(zoo.model, inputs), []
    for prompt in PROMPTS[:2]:
        one = zoo.make_inputs([prompt])
        keep = one["input_ids"] != zoo.image_token_id
        text = {"input_ids": one["input_ids"][keep][None], "attention_mask": one["attention_mask"][keep][None]}
        vectors = [a - b for a, b in zip(behind_layers(zoo, one), behind_layers(zoo, text))]
        if variant == "published":
            vectors[0][0] += 1
        hooks = []
        for layer, vector in zip(zoo.model.get_decoder().layers, vectors):

            def patch(module, args, m, vector=vector):
                unit = vector / vector.norm()
                length = m.norm(dim=-1, keepdim=True)
                away = (m / length @ -unit).clamp_min(0)[..., None]
                moved = m / length + 0.5 * (1 + away) * unit
                return length * moved / moved.norm(dim=-1, keepdim=True)

            hooks.append(layer.mlp.register_forward_hook(patch))
        expected.append(logits(zoo.model, one)[0])
        for hook in hooks:
            hook.remove()
    with wrap(zoo.model, None, "vista", variant=variant, **STEERING):
        found = logits(zoo.model, inputs)
    for row, alone in enumerate(expected):
        assert torch.allclose(found[row, -alone.shape[0] :], alone, atol=1e-4), f"row {row}"
    assert torch.equal(found[2], plain[2]), "a row without a picture is left alone"
    assert_pristine(zoo.model)


def test_the_next_prompt_gets_its_own_vector(zoo_model):
    zoo = zoo_model("llava")
    first, second = (zoo.make_inputs([Prompt(text_before=3, text_after=5, content=content)]) for content in (0, 3))
    record = {"max_new_tokens": 3, "do_sample": False, "output_logits": True, "return_dict_in_generate": True}
    with wrap(zoo.model, None, "vista", **STEERING) as guard:
        guard.generate(**first, **record)
        after = guard.generate(**second, **record)
    with wrap(zoo.model, None, "vista", **STEERING) as guard:
        fresh = guard.generate(**second, **record)
    assert torch.equal(torch.stack(after.logits), torch.stack(fresh.logits))


def test_a_cache_and_a_prompt_in_pieces_are_refused(zoo_model):
    zoo = zoo_model("llava")
    inputs = zoo.make_inputs([Prompt(text_before=3, text_after=5, content=0)])
    with wrap(zoo.model, None, "vista", **STEERING) as guard:
        cache = DynamicCache()
        answer = guard.generate(**inputs, max_new_tokens=3, do_sample=False, past_key_values=cache)
        more = torch.cat((answer, answer[:, :2]), 1)
        with pytest.raises(ValueError, match="vista needs the whole prompt in one pass"):
            guard.generate(input_ids=more, past_key_values=cache, max_new_tokens=2)
        with pytest.raises(ValueError, match="vista needs the whole prompt in one pass"):
            guard.generate(**inputs, max_new_tokens=2, prefill_chunk_size=4)


def test_families_without_a_feed_forward_module_are_refused(zoo_model):
    with pytest.raises(ValueError, match="vista acts on the feed-forward network"):
        wrap(zoo_model("blip_2").model, None, "vista")
