"""ACT by hand, against whole eager maps, and its decode rows."""

import pytest
import torch
from eager_oracle import eager_attention

from vlm_guard import wrap
from vlm_guard.kernels.policies import MoveSinksToRest
from vlm_guard.methods.act.method import sink_mask
from zoo import UNEQUAL_PROMPTS, Prompt

torch.set_num_threads(1)
PROMPTS = list(UNEQUAL_PROMPTS)
OPTIONS = {"threshold": 0.07, "layers": "all", "prompt_rows": "all", "sink_rows": "all"}


def logits(model, inputs):
    with torch.no_grad():
        return model(**inputs).logits


def calibrated(weights, first, threshold=0.07, beta=0.4, rows=None, sinks=None):
    """The paper's steps with loops, for one row of the batch and one head: [Q, K] map.

    Keys count from `first` on; sinks are found from `rows` (all from `first` on), and every row from the first of
    them on is edited.
    """
    rows = list(range(first, weights.shape[0])) if rows is None else rows
    if sinks is None:
        mean = {}
        for j in range(first, rows[-1] + 1):
            seen = [float(weights[i, j]) for i in rows if i >= j]
            mean[j] = sum(seen) / len(seen) if seen else 0.0
        sinks = [j for j in mean if mean[j] > threshold][1:]
    result = weights.clone()
    for i in range(rows[0], weights.shape[0]):
        budget = (1 - beta) * sum(weights[i, j] for j in sinks)
        rest = sum(weights[i, j] for j in range(weights.shape[1]) if j not in sinks)
        for j in range(weights.shape[1]):
            if j in sinks:
                result[i, j] = beta * weights[i, j]
            elif rest > 0:
                result[i, j] = weights[i, j] + budget * weights[i, j] / rest
    return result, sinks


def test_redistribution_by_hand():
    # Row .5, .1, .4 with the middle key a sink and beta .4: it keeps .04, the .06 go to .5 and .4 in proportion 5 : 4.
    masses = torch.tensor([0.9, 0.1, 0.0, 0.0], dtype=torch.float64)
    factors = MoveSinksToRest(move_fraction=0.6).weights(masses[None, None, None])[0, 0, 0]
    row = torch.tensor([0.5, 0.1, 0.4], dtype=torch.float64) * factors[[0, 1, 0]]
    expected = torch.tensor([0.5 + 0.06 * 5 / 9, 0.04, 0.4 + 0.06 * 4 / 9], dtype=torch.float64)
    assert torch.allclose(row, expected)


def test_the_first_sink_is_kept():
    mean = torch.tensor([[[0.5, 0.05, 0.2, 0.1, 0.3]]])
    assert sink_mask(mean, 0.1).tolist() == [[[False, False, True, False, True]]]
    assert not sink_mask(torch.tensor([[[0.0, 0.9, 0.05]]]), 0.1).any()


@pytest.mark.parametrize("scope", ["all", "text"])
def test_it_equals_the_papers_steps_on_whole_maps(zoo_model, scope):
    zoo = zoo_model("llava")
    prompts = PROMPTS if scope == "all" else [PROMPTS[0], Prompt(text_before=7, images=1, text_after=6, content=1)]
    inputs = zoo.make_inputs(prompts)
    first = inputs["attention_mask"].argmax(-1).tolist()
    visual, length = inputs["input_ids"] == zoo.image_token_id, inputs["input_ids"].shape[1]
    behind = [int(row.nonzero().max()) + 1 for row in visual]
    rows = [list(range(first[row] if scope == "all" else behind[row], length)) for row in range(2)]
    found = []

    def calibrate(layer, weights):
        result = weights.clone()
        for row in range(2):
            for head in range(weights.shape[1]):
                result[row, head], sinks = calibrated(weights[row, head], first[row], rows=rows[row])
                found.append(len(sinks))
        return result

    with eager_attention(zoo.model, weights=calibrate):
        expected = logits(zoo.model, inputs)
    with wrap(zoo.model, None, "act", **OPTIONS | {"prompt_rows": scope, "sink_rows": scope}):
        ours = logits(zoo.model, inputs)
    real = inputs["attention_mask"].bool()
    assert sum(found) > 20, "the random model must have sinks at this threshold"
    assert not torch.allclose(expected[real], logits(zoo.model, inputs)[real], atol=1e-3)
    assert torch.allclose(ours[real], expected[real], atol=3e-5)


@pytest.mark.slow
def test_decode_rows_use_the_prompts_sinks_and_sum_to_one(zoo_model):
    """The released code's decode rows sum to about 2; ours are the prompt's calibration, applied to one row."""
    zoo = zoo_model("llava")
    inputs = zoo.make_inputs(PROMPTS[1:])
    length = inputs["input_ids"].shape[1]
    settings = {"max_new_tokens": 4, "do_sample": False, "use_cache": False}
    kept = {}

    def calibrate(layer, weights):
        result = weights.clone()
        for head in range(weights.shape[1]):
            sinks = kept.get((layer, head))
            result[0, head], kept[layer, head] = calibrated(weights[0, head], 0, rows=range(length), sinks=sinks)
        return result

    with eager_attention(zoo.model, weights=calibrate):
        expected = zoo.model.generate(**inputs, **settings, output_logits=True, return_dict_in_generate=True)
    with wrap(zoo.model, None, "act", **OPTIONS) as guard, guard.trace() as trace:
        ours = guard.generate(
            **inputs, max_new_tokens=4, do_sample=False, output_logits=True, return_dict_in_generate=True
        )
    assert torch.equal(ours.sequences, expected.sequences)
    for one, other in zip(ours.logits, expected.logits):
        assert torch.allclose(one, other, atol=3e-5)
    for rows in trace.weights.values():
        for row in rows:
            assert torch.allclose(row.sum(-1), torch.ones(row.shape[:2]), atol=1e-5)


def test_only_chosen_heads_and_visual_sinks(zoo_model):
    zoo = zoo_model("llava")
    inputs = zoo.make_inputs(PROMPTS[:1])
    with wrap(zoo.model, None, "none") as guard, guard.trace("0") as plain:
        guard.generate(**inputs, max_new_tokens=1)
    with wrap(zoo.model, None, "act", heads="0:2", threshold=0.05) as guard, guard.trace("0") as edited:
        guard.generate(**inputs, max_new_tokens=1)
        assert sorted(layer for layer in guard.methods[0].layers) == []
    assert torch.equal(plain.weights[0][0], edited.weights[0][0]), "layer 0 is outside 2-30"
    with wrap(zoo.model, None, "act", heads="0:2", sinks="visual", threshold=0.05, layers="0") as guard:
        with guard.trace("0") as edited:
            guard.generate(**inputs, max_new_tokens=1)
        ids = guard.state.memory("act", 0).edit.segments.ids
        visual = guard.state.visual
    changed = (plain.weights[0][0] - edited.weights[0][0]).abs().amax(-1)[0]
    assert changed[2] > 1e-4 and (changed[[0, 1, 3]] < 1e-6).all()
    assert ids.bool().any() and not (ids.bool() & ~visual[:, None]).any()


@pytest.mark.parametrize("rows", ["text", "answer"])
def test_fewer_prompt_rows(zoo_model, rows):
    """Image tokens keep the model's own hidden states when only text rows are edited."""
    zoo = zoo_model("llava")
    inputs = zoo.make_inputs(PROMPTS[:1])
    plain = logits(zoo.model, inputs)
    with wrap(zoo.model, None, "act", **OPTIONS | {"prompt_rows": rows}):
        edited = logits(zoo.model, inputs)
    visual = inputs["input_ids"] == zoo.image_token_id
    assert torch.equal(edited[visual], plain[visual])
    assert not torch.allclose(edited[:, -1], plain[:, -1], atol=1e-4)


def test_a_prompt_read_in_chunks_is_refused(zoo_model):
    zoo = zoo_model("llava")
    inputs = zoo.make_inputs(PROMPTS[:1])
    with wrap(zoo.model, None, "act", **OPTIONS) as guard, pytest.raises(ValueError, match="prefill_chunk_size"):
        guard.generate(**inputs, max_new_tokens=1, prefill_chunk_size=8)
