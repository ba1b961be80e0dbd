"""SPIN: which heads are turned down, from keys summed once or from the scores themselves."""

import pytest
import torch
from eager_oracle import eager_attention

from vlm_guard import wrap
from vlm_guard.methods.spin import SPIN, _sum_of_keys
from zoo import UNEQUAL_PROMPTS, Prompt

torch.set_num_threads(1)
PROMPTS = [*UNEQUAL_PROMPTS, Prompt(text_before=5, images=0, text_after=12, content=2)]


def logits(model, inputs):
    with torch.no_grad():
        return model(**inputs).logits


def suppressed_by_hand(relevance, keep, factor):
    """[H] factors of one row from its [H] sums of scores."""
    count = int(keep * len(relevance) + 1e-9)
    best = sorted(range(len(relevance)), key=lambda head: -float(relevance[head]))[:count]
    return torch.tensor([1.0 if head in best else factor for head in range(len(relevance))])


def test_the_example_by_hand():
    assert suppressed_by_hand(torch.tensor([4.0, -1.0, 2.0, 0.5]), 0.5, 0.08).tolist() == pytest.approx(
        [1, 0.08, 1, 0.08]
    )


def test_the_published_share_of_32_heads_keeps_30():
    assert suppressed_by_hand(torch.arange(32.0), 0.95, 0.0).sum() == 30
    assert suppressed_by_hand(torch.arange(10.0), 0.7, 0.0).sum() == 7


def test_keys_are_summed_over_visual_tokens_in_float32():
    key = torch.randn(2, 3, 5, 4, dtype=torch.bfloat16)
    visual = torch.tensor([[False, True, True, False, False], [False] * 5])
    found = _sum_of_keys(key, visual)
    assert found.dtype == torch.float32 and torch.allclose(found[0, :, :, 0], key[0, :, 1:3].float().sum(1))
    assert not found[1].any()


def test_it_equals_heads_scaled_in_an_eager_model(zoo_model):
    """Every head of the last row whose visual scores sum to less than those kept; other rows stay bit-equal."""
    zoo = zoo_model("llava")
    inputs = zoo.make_inputs(PROMPTS)
    visual = inputs["input_ids"] == zoo.image_token_id
    sums = {}

    def remember(layer, scores):
        sums[layer] = (scores[:, :, -1] * visual[:, None]).sum(-1)
        return scores

    def scale(layer, output):
        scaled = output.clone()
        for row in range(2):
            scaled[row, :, -1] *= suppressed_by_hand(sums[layer][row], 0.5, 0.2)[:, None]
        return scaled

    with eager_attention(zoo.model, scores=remember, output=scale):
        expected = logits(zoo.model, inputs)
    with wrap(zoo.model, None, SPIN(keep=0.5, factor=0.2)):
        found = logits(zoo.model, inputs)
    plain = logits(zoo.model, inputs)
    assert torch.allclose(found[:, -1], expected[:, -1], atol=2e-5)
    assert not torch.allclose(plain[:2, -1], expected[:2, -1], atol=1e-3)
    assert torch.equal(found[:, :-1], plain[:, :-1]) and torch.equal(found[2], plain[2])


class Summing(SPIN):
    """The scores themselves, in every layer."""

    def _relevance(self, call):
        scores = call.scores()
        seen = call.visual_keys()[:, None, None] & scores.isfinite()
        call.memory.has_image = call.visual_keys().any(-1)[:, None, None]
        return torch.where(seen, scores, 0).sum(-1)


@pytest.mark.parametrize("family", ["llava", "qwen2_vl", "gemma3", "llava_gemma2"])
def test_summed_keys_give_what_summed_scores_give(zoo_model, family):
    """Many heads, grouped heads, windows that the answer leaves, and capped scores."""
    zoo = zoo_model(family)
    inputs = zoo.make_inputs(zoo.adapt([Prompt(text_before=2, images=1, text_after=4)]))
    answers = []
    for cls in (SPIN, Summing):
        with wrap(zoo.model, None, cls(keep=0.5)) as guard:
            answers.append(guard.generate(**inputs, max_new_tokens=4, return_dict_in_generate=True, output_logits=True))
    assert torch.equal(answers[0].sequences, answers[1].sequences)
    for first, second in zip(answers[0].logits, answers[1].logits):
        assert torch.allclose(first, second, atol=1e-5)


def test_rows_of_an_answer_that_is_given_have_heads_of_their_own(zoo_model):
    """Several answer rows in one pass (labels) are what steps of one token give."""
    zoo = zoo_model("llava")
    inputs = zoo.make_inputs([Prompt(text_before=3, images=1, text_after=5)])
    length = inputs["input_ids"].shape[1]
    with wrap(zoo.model, None, SPIN(keep=0.5)) as guard:
        answer = guard.generate(
            **inputs, max_new_tokens=4, do_sample=False, return_dict_in_generate=True, output_logits=True
        )
        whole = dict(inputs, input_ids=answer.sequences, attention_mask=torch.ones_like(answer.sequences))
        labels = answer.sequences.clone()
        labels[:, :length] = -100
        found = guard.model(**whole, labels=labels).logits[:, length - 1 : -1]
    assert torch.allclose(found[0], torch.stack(answer.logits, 1)[0], atol=2e-5)
