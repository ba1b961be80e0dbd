"""Log-probabilities of answers with and without the picture, against one pass over prompt and answer."""

import pytest
import torch

from vlm_guard import wrap
from vlm_guard.grounding.likelihood import answer_log_probs
from vlm_guard.grounding.shared_prompt import SharedPrompt, require_prompt
from zoo import UNEQUAL_PROMPTS, assert_pristine, tiny_processor

torch.set_num_threads(1)
PROMPTS = list(UNEQUAL_PROMPTS)
ANSWERS = [(0, [20, 31, 44, 25]), (1, [90, 17]), (1, [33, 34, 35]), (0, [])]


def whole_pass(model, inputs, answer):
    """The log-probabilities of an answer's tokens in one pass over prompt and answer, without a cache."""
    ids = torch.cat((inputs["input_ids"], torch.tensor([answer])), 1)
    given = {**inputs, "input_ids": ids, "attention_mask": torch.ones_like(ids)}
    with torch.no_grad():
        logits = model(**given, use_cache=False).logits[0]
    before = logits[len(ids[0]) - len(answer) - 1 : -1].float().log_softmax(-1)
    return before.gather(1, torch.tensor(answer)[:, None])[:, 0]


@pytest.mark.parametrize("shared", [True, False], ids=["shared prompt", "token by token"])
def test_equals_one_pass_over_prompt_and_answer(shared, zoo_model, monkeypatch):
    zoo = zoo_model("llava")
    if not shared:
        monkeypatch.setattr(SharedPrompt, "read", classmethod(lambda *args, **kwargs: None))
    inputs = zoo.make_inputs(PROMPTS)
    with wrap(zoo.model, tiny_processor(), "none") as guard:
        prompt = require_prompt(guard, inputs, "the test")
        found = answer_log_probs(guard, inputs, prompt, ANSWERS)
        blind = answer_log_probs(guard, inputs, prompt, ANSWERS, pictures=False)
    assert found[3].tolist() == blind[3].tolist() == []
    for number, (row, ids) in enumerate(ANSWERS[:3]):
        alone = zoo.make_inputs([PROMPTS[row]])
        assert torch.allclose(found[number], whole_pass(zoo.model, alone, ids), atol=1e-3)
        text = alone["input_ids"][alone["input_ids"] != zoo.image_token_id][None]
        assert torch.allclose(blind[number], whole_pass(zoo.model, {"input_ids": text}, ids), atol=1e-3)
    assert_pristine(zoo.model)


@pytest.mark.parametrize("family", ["paligemma", "gemma3", "qwen2_5_vl", "blip_2", "mllama", "lfm2_vl"])
def test_both_ways_agree_where_families_differ(family, zoo_model, monkeypatch):
    zoo = zoo_model(family)
    inputs = zoo.make_inputs(zoo.adapt(PROMPTS))
    with wrap(zoo.model, tiny_processor(), "none") as guard:
        prompt = require_prompt(guard, inputs, "the test")
        found = [answer_log_probs(guard, inputs, prompt, ANSWERS, pictures=sees) for sees in (True, False)]
        monkeypatch.setattr(SharedPrompt, "read", classmethod(lambda *args, **kwargs: None))
        led = [answer_log_probs(guard, inputs, prompt, ANSWERS, pictures=sees) for sees in (True, False)]
    for mine, other in zip(found, led):
        for one, two in zip(mine, other):
            assert torch.allclose(one, two, atol=2e-3)
