"""SID by hand: which patches the branch keeps, its mask against a model masked by hand, and what is refused."""

import contrast_oracle as oracle
import pytest
import torch

from vlm_guard import wrap
from vlm_guard.method import ContrastMethod
from vlm_guard.methods.sid import SID
from zoo import Prompt, assert_pristine

torch.set_num_threads(1)
RECORD = {"max_new_tokens": 3, "do_sample": False, "output_logits": True, "return_dict_in_generate": True}


def test_the_least_attended_patches_stay():
    weights = torch.tensor([[[0.25, 0.30, 0.05, 0.10, 0.20, 0.10]]])
    visual = torch.tensor([[False, True, True, True, True, False]])
    lost = [[[False, True, False, False, True, False]]]
    assert SID(keep=2.0).removed(weights, visual).tolist() == lost, "of .30 .05 .10 .20 the keys .05 and .10 stay"
    assert SID(keep=0.5).removed(weights, visual).tolist() == lost, "half of four"
    assert not SID(keep=1.0).removed(weights, visual).any()
    assert int(SID(keep=0.01).removed(weights, visual).sum()) == 3, "one patch always stays"
    assert not SID(keep=9.0).removed(weights, visual).any(), "no more than there are"


def test_rows_keep_their_own_share():
    weights = torch.tensor([[[0.1, 0.2, 0.3, 0.4]], [[0.4, 0.3, 0.2, 0.1]]])
    visual = torch.tensor([[True, True, True, True], [False, False, True, True]])
    found = SID(keep=0.5).removed(weights, visual)
    assert found.tolist() == [[[False, False, True, True]], [[False, False, True, False]]]


@pytest.mark.parametrize("use_cache", [True, False])
def test_the_branch_equals_a_model_masked_by_hand(zoo_model, monkeypatch, use_cache):
    """Layer 0 ranks, layers 1 and 2 of a stock pass get a mask of their own, made here."""
    zoo = zoo_model("llava")
    inputs = zoo.make_inputs([Prompt(text_before=3, text_after=5, content=0)])
    seen, combine = [], ContrastMethod.combine_logits

    def spy(self, positive, negative, step):
        seen.append(negative)
        return combine(self, positive, negative, step)

    monkeypatch.setattr(ContrastMethod, "combine_logits", spy)
    with wrap(zoo.model, None, "sid", keep=5.0, layers="1-", plausibility=0.0) as guard:
        out = guard.generate(**inputs, **RECORD, use_cache=use_cache)
    length, ids = inputs["input_ids"].shape[1], out.sequences
    visual = inputs["input_ids"][0] == zoo.image_token_id
    zoo.model.set_attn_implementation("eager")
    try:
        with torch.no_grad():
            taken = zoo.model(
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                pixel_values=inputs["pixel_values"],
                output_attentions=True,
            ).attentions[0][0]
    finally:
        zoo.model.set_attn_implementation("sdpa")
    mask = torch.full((ids.shape[1], ids.shape[1]), -1e4).triu(1)
    places = visual.nonzero().flatten()
    for row in range(ids.shape[1]):
        ranking = taken[:, max(row, length - 1), places].mean(0)
        mask[row, places[ranking.argsort()[5:]]] = -1e4

    def masked(module, args, kwargs):
        return args, {**kwargs, "attention_mask": mask[None, None]}

    layers = zoo.model.get_decoder().layers[1:]
    hooks = [layer.self_attn.register_forward_pre_hook(masked, with_kwargs=True) for layer in layers]
    try:
        with torch.no_grad():
            expected = zoo.model(
                input_ids=ids, attention_mask=torch.ones_like(ids), pixel_values=inputs["pixel_values"]
            ).logits[:, length - 1 : -1]
    finally:
        for hook in hooks:
            hook.remove()
    assert oracle.close(torch.stack(seen, 1), expected)
    assert_pristine(zoo.model)


def test_published_does_not_cut():
    assert SID().plausibility == 0.1 and SID(variant="published").plausibility == 0
    assert SID(variant="published", plausibility=0.3).plausibility == 0.3


def test_without_a_layer_to_rank_it_is_refused(zoo_model):
    with pytest.raises(ValueError, match="sid: layers '0-' need attention in them and in a layer below"):
        wrap(zoo_model("llava").model, None, "sid", layers="0-")


def test_a_prompt_in_pieces_is_refused(zoo_model):
    zoo = zoo_model("llava")
    inputs = zoo.make_inputs([Prompt(text_before=3, text_after=5, content=0)])
    with wrap(zoo.model, None, "sid", layers="1-") as guard, pytest.raises(ValueError, match="sid has to see"):
        guard.generate(**inputs, max_new_tokens=2, prefill_chunk_size=4)
