"""DeCo: the candidates, the choice of the layer, and what is done to the logits."""

import pytest
import torch

from vlm_guard import wrap
from vlm_guard.methods.deco import DeCo
from zoo import Prompt

FINAL = torch.tensor([[2.0, 1.5, 0.0, -3.0]])
EARLY = torch.tensor([[[0.0, 2.0, 1.0, 0.0]], [[1.0, 3.0, 0.0, 0.0]]])


def test_a_step_by_hand():
    """p = (.572, .347, .077, .004): tokens 0 and 1 reach 0.9; layer 1 believes .8098 in token 1, which then wins."""
    corrected = DeCo().combine_layers(FINAL, EARLY, (20, 21))[0]
    assert corrected[:2].tolist() == pytest.approx([2 + 0.6 * 0.8098 * 1, 1.5 + 0.6 * 0.8098 * 3], abs=1e-3)
    assert corrected.argmax() == 1
    assert corrected.softmax(-1)[2:].tolist() == [0.0, 0.0] and corrected[2] > corrected[3]


def test_a_token_that_reaches_top_p_alone_is_the_only_candidate():
    sure = torch.tensor([[5.0, 1.0, 0.0, 0.0]])
    assert sure.softmax(-1).max() > 0.9
    corrected = DeCo().combine_layers(sure, EARLY, (20, 21))[0]
    assert corrected.softmax(-1).tolist() == [1.0, 0.0, 0.0, 0.0]
    assert DeCo(top_p=0.0).combine_layers(FINAL, EARLY, (20, 21)).argmax() == 0


def test_at_most_k_candidates_also_where_they_tie():
    even = torch.zeros(1, 6)
    corrected = DeCo(top_k=2).combine_layers(even, torch.randn(2, 1, 6), (20, 21))
    assert int((corrected > -1000).sum()) == 2


def test_the_belief_of_a_layer_counts_over_the_whole_vocabulary_but_is_sought_among_candidates():
    """The first layer is surest, of a token that is no candidate; the second is chosen."""
    early = torch.tensor([[[0.0, 0.0, 9.0, 0.0]], [[0.0, 1.0, 0.0, 0.0]]])
    corrected = DeCo(strength=1.0).combine_layers(FINAL, early, (20, 21))[0]
    belief = early[1, 0].softmax(-1)[1]
    assert torch.allclose(corrected[:2], FINAL[0, :2] + belief * early[1, 0, :2])


def test_rows_choose_apart_and_a_constant_added_to_a_layer_changes_no_choice():
    torch.manual_seed(0)
    final, early = torch.randn(3, 30) * 3, torch.randn(4, 3, 30)
    together = DeCo().combine_layers(final, early, (1, 2, 3, 4))
    for row in range(3):
        alone = DeCo().combine_layers(final[row : row + 1], early[:, row : row + 1], (1, 2, 3, 4))
        assert torch.allclose(together[row], alone[0])
    moved = DeCo().combine_layers(final, early + 2.5, (1, 2, 3, 4))
    assert torch.allclose(moved.softmax(-1), together.softmax(-1), atol=1e-6)


def test_everything_neutral_but_the_switch_is_the_identity():
    torch.manual_seed(1)
    final, early = torch.randn(2, 30), torch.randn(3, 2, 30)
    kept = DeCo(strength=1e-9, top_p=1.0, top_k=1_000_000).combine_layers(final, early, (1, 2, 3))
    assert torch.allclose(kept, final, atol=1e-6)
    assert not DeCo(strength=0.0).contrasts()


@pytest.mark.parametrize(("depth", "layers"), [(32, range(20, 29)), (28, range(17, 25))])
def test_default_layers_are_the_published_share_of_the_depth(depth, layers):
    from vlm_guard.families.layers import select_layers

    assert select_layers(DeCo().layers, depth) == tuple(layers)


def test_generation_equals_hidden_states_read_out_by_hand(zoo_model):
    zoo = zoo_model("llava")
    inputs = zoo.make_inputs([Prompt(content=0), Prompt(text_before=9, images=2, content=1)])
    method = DeCo(layers="1-2", top_k=5)
    with wrap(zoo.model, None, method) as guard:
        out = guard.generate(
            **inputs, max_new_tokens=3, do_sample=False, return_dict_in_generate=True, output_logits=True
        )
    length = inputs["input_ids"].shape[1]
    for step in range(3):
        mask = torch.nn.functional.pad(inputs["attention_mask"], (0, step), value=1)
        with torch.no_grad():
            whole = zoo.model(
                input_ids=out.sequences[:, : length + step],
                attention_mask=mask,
                position_ids=(mask.cumsum(-1) - 1).clamp_min(0),
                pixel_values=inputs["pixel_values"],
                output_hidden_states=True,
            )
        norm, head = zoo.model.model.language_model.norm, zoo.model.lm_head
        for row in range(2):
            early = [head(norm(whole.hidden_states[layer][row, -1])) for layer in (1, 2)]
            expected = corrected_by_hand(whole.logits[row, -1], early, method)
            assert torch.allclose(out.logits[step][row], expected, atol=2e-4, rtol=1e-4)


def corrected_by_hand(final, early, method):
    """[V] logits of one row, with loops."""
    probability, order = final.softmax(-1).sort(descending=True)
    candidates, total = [], 0.0
    for p, token in zip(probability.tolist(), order.tolist()):
        if total >= method.top_p or len(candidates) == method.top_k:
            break
        candidates.append(token)
        total += p
    belief, layer = max((float(z.softmax(-1)[y]), e) for e, z in enumerate(early) for y in candidates)
    expected = final - 1e4
    for token in candidates:
        expected[token] = final[token] + method.strength * belief * early[layer][token]
    return expected


def test_no_layer_left_is_an_error(zoo_model):
    from transformers.models.gemma3.configuration_gemma3 import Gemma3Config

    zoo = zoo_model("gemma3")
    assert isinstance(zoo.config, Gemma3Config)
    with pytest.raises(ValueError, match="deco: layers '0' leaves no layer"):
        wrap(zoo.model, None, DeCo(layers="0"))
