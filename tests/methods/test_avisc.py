"""AvisC by hand: which patches are blind, its branch against a model with blanked embeddings, and what is refused."""

import contrast_oracle as oracle
import pytest
import torch

from vlm_guard import wrap
from vlm_guard.method import ContrastMethod
from vlm_guard.methods.avisc import AvisC
from zoo import Prompt, assert_pristine

torch.set_num_threads(1)
RECORD = {"max_new_tokens": 3, "do_sample": False, "output_logits": True, "return_dict_in_generate": True}
VISUAL = torch.tensor([[False, True, True, True, True]])
# Layer 0 gives the picture 0.6 of its attention, layer 1 gives it 0.2: three quarters and a quarter of both together.
WEIGHTS = torch.tensor([[[0.4, 0.05, 0.05, 0.05, 0.45]], [[0.8, 0.17, 0.01, 0.01, 0.01]]])


def test_blind_patches_by_hand():
    """Layer 0 alone reaches a half: mean 0.15, deviation sqrt((3 * 0.1^2 + 0.3^2) / 3) = 0.2, so from 0.35 on."""
    assert AvisC().blind(WEIGHTS, VISUAL).tolist() == [[False, False, False, False, True]]
    assert (
        AvisC(threshold=1.45).blind(WEIGHTS, VISUAL).sum() == 1
        and not AvisC(threshold=1.55).blind(WEIGHTS, VISUAL).any()
    )


def test_both_layers_where_one_does_not_reach_the_share():
    """Means (0.11, 0.03, 0.03, 0.23): their mean is 0.1."""
    assert AvisC(layer_share=0.8, threshold=0.0).blind(WEIGHTS, VISUAL).tolist() == [[False, True, False, False, True]]
    assert AvisC(layer_share=0.0, threshold=0.0).blind(WEIGHTS, VISUAL).tolist() == [[False, False, False, False, True]]


def test_rows_choose_their_own_layers():
    weights = torch.cat((WEIGHTS, WEIGHTS.flip(0)), 1)
    found = AvisC(threshold=0.5).blind(weights, VISUAL.expand(2, -1))
    assert found[0].tolist() == found[1].tolist() == [False, False, False, False, True]
    weights = torch.cat((WEIGHTS, torch.zeros_like(WEIGHTS)), 1)
    assert not AvisC().blind(weights, torch.cat((VISUAL, torch.zeros_like(VISUAL))))[1].any()


@pytest.mark.parametrize("use_cache", [True, False])
def test_the_branch_equals_a_model_with_blanked_embeddings(zoo_model, monkeypatch, use_cache):
    zoo = zoo_model("llava")
    inputs = zoo.make_inputs([Prompt(text_before=3, text_after=5, content=0)])
    seen, combine = [], ContrastMethod.combine_logits

    def spy(self, positive, negative, step):
        seen.append(negative)
        return combine(self, positive, negative, step)

    monkeypatch.setattr(ContrastMethod, "combine_logits", spy)
    method = AvisC(threshold=0.0, plausibility=0.0)
    with wrap(zoo.model, None, method) as guard:
        out = guard.generate(**inputs, **RECORD, use_cache=use_cache)
    visual = inputs["input_ids"] == zoo.image_token_id
    zoo.model.set_attn_implementation("eager")
    try:
        with torch.no_grad():
            rows = zoo.model(**inputs, output_attentions=True).attentions
    finally:
        zoo.model.set_attn_implementation("sdpa")
    blanked = visual & ~method.blind(torch.stack([layer[:, :, -1].mean(1) for layer in rows]), visual)
    assert 0 < int(blanked.sum()) < int(visual.sum())

    def blank(module, args, kwargs):
        hidden = (args[0] if args else kwargs.pop("hidden_states")).clone()
        hidden[:, : blanked.shape[1]][blanked] = 0
        return (hidden, *args[1:]), kwargs

    hook = zoo.model.get_decoder().layers[0].register_forward_pre_hook(blank, with_kwargs=True)
    ids = out.sequences
    whole = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "pixel_values": inputs["pixel_values"]}
    with torch.no_grad():
        expected = zoo.model(**whole).logits[:, visual.shape[1] - 1 : -1]
    hook.remove()
    assert oracle.close(torch.stack(seen, 1), expected)
    assert_pristine(zoo.model)


def test_a_prompt_in_pieces_is_refused(zoo_model):
    zoo = zoo_model("llava")
    inputs = zoo.make_inputs([Prompt(text_before=3, text_after=5, content=0)])
    with wrap(zoo.model, None, "avisc") as guard, pytest.raises(ValueError, match="avisc needs the whole prompt"):
        guard.generate(**inputs, max_new_tokens=2, prefill_chunk_size=4)
