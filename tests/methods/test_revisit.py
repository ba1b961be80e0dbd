"""ReVisiT by hand: the closest visual token and the product, against a stock model's read-outs, and what is refused."""

import math

import contrast_oracle as oracle
import pytest
import torch

from vlm_guard import wrap
from vlm_guard.methods.revisit import ReVisiT
from zoo import Prompt, assert_pristine

torch.set_num_threads(1)
RECORD = {"max_new_tokens": 3, "do_sample": False, "output_logits": True, "return_dict_in_generate": True}


def divergence(p, r, kind):
    total = 0.0
    for a, b in zip(p, r):
        m = (a + b) / 2
        total += a * math.log(a / m) + b * math.log(b / m) if kind == "textbook" else m * math.log(m * m / (a * b))
    return total / 2


@pytest.mark.parametrize("kind", ["textbook", "reversed"])
def test_the_divergence_by_hand(kind):
    p, r = [0.7, 0.2, 0.1], [[0.1, 0.3, 0.6], [0.5, 0.25, 0.25]]
    found = ReVisiT(divergence=kind).distance(torch.tensor([[p]]).log(), torch.tensor([r]).log())
    assert found[0].tolist() == pytest.approx([divergence(p, row, kind) for row in r], rel=1e-5)


def test_the_product_by_hand():
    """Two visual tokens; the closer reads (1, 3) of the two plausible tokens, softmax (.119, .881)."""
    final = torch.tensor([[1.0, -9.0, 1.5, -9.0]])
    tokens = torch.tensor([[2, 0]])
    read = torch.tensor([[[-5.0, 5.0], [3.0, 1.0], [9.0, 9.0]]])
    valid = torch.tensor([[True, True, False]])
    found, closest = ReVisiT(plausibility=0.1).product(final, tokens, read, valid)
    assert closest.tolist() == [1]
    p = torch.tensor([1.5, 1.0]).log_softmax(-1)
    expected = p + torch.tensor([3.0, 1.0]).log_softmax(-1)
    assert torch.allclose(found[0, [2, 0]], expected)
    assert bool((found[0, [1, 3]] < -1000).all()), "implausible tokens are ruled out, in the model's order"
    half, _ = ReVisiT(plausibility=0.1, strength=0.5).product(final, tokens, read, valid)
    assert torch.allclose(half[0, [2, 0]], p + torch.tensor([3.0, 1.0]).log_softmax(-1) / 2)


def test_a_row_with_fewer_plausible_tokens_rules_the_others_out():
    final = torch.tensor([[5.0, 4.9, 4.8], [5.0, 4.9, -9.0]])
    method = ReVisiT(plausibility=0.1)
    tokens = method._plausible(final)
    assert tokens.tolist() == [[0, 1, 2], [0, 1, 2]]
    found, _ = method.product(final, tokens, torch.zeros(2, 1, 3), torch.ones(2, 1, dtype=torch.bool))
    assert torch.allclose(found[1, :2], torch.tensor([5.0, 4.9]).log_softmax(-1) - math.log(2))
    assert float(found[1, 2]) < -1000
    assert ReVisiT(plausibility=0.1, most=2)._plausible(final).tolist() == [[0, 1], [0, 1]]


def by_hand(final, rows):
    """[V] log p + 0.5 log r of the closest row, over the whole vocabulary."""
    p = final.double().softmax(-1)
    shares = [row.double().softmax(-1) for row in rows]
    middle = [(p + r) / 2 for r in shares]
    distance = [float((p * (p / m).log() + r * (r / m).log()).sum()) for r, m in zip(shares, middle)]
    return (p.log() + 0.5 * shares[distance.index(min(distance))].log()).float()


@pytest.mark.parametrize("use_cache", [True, False])
@pytest.mark.parametrize("layers", ["last", "1-,last"])
def test_it_equals_the_read_outs_of_a_stock_model(zoo_model, layers, use_cache):
    """A padded batch with one and with two pictures; the last layer's read-outs are the model's own logits."""
    zoo = zoo_model("llava")
    prompts = [Prompt(text_before=3, text_after=5, content=0), Prompt(text_before=7, images=2, text_after=9, content=1)]
    batch = zoo.make_inputs(prompts)
    with wrap(zoo.model, None, "revisit", strength=0.5, plausibility=1e-30, most=10**6, layers=layers) as guard:
        out = guard.generate(**batch, **RECORD, use_cache=use_cache)
    for row, prompt in enumerate(prompts):
        inputs = zoo.make_inputs([prompt])
        visual = inputs["input_ids"][0] == zoo.image_token_id
        length = visual.shape[0]
        ids = torch.cat((inputs["input_ids"][0], out.sequences[row, batch["input_ids"].shape[1] :]))[None]
        with torch.no_grad():
            stock = zoo.model(
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                pixel_values=inputs["pixel_values"],
                output_hidden_states=True,
            )
            rows = stock.logits[0, :length][visual]
            if layers != "last":
                inner = [zoo.model.lm_head(stock.hidden_states[e][0, :length][visual]) for e in (1, 2)]
                rows = torch.cat((*inner, rows))
        for step in range(3):
            expected = by_hand(stock.logits[0, length - 1 + step], rows)
            assert oracle.close(out.logits[step][row], expected, 4.0), f"row {row} step {step}"
    assert_pristine(zoo.model)


def test_output_embeddings_that_are_no_matrix_are_refused(zoo_model):
    zoo = zoo_model("llava")

    class Quantised(torch.nn.Linear):
        pass

    kept = zoo.model.lm_head
    changed = Quantised(kept.in_features, kept.out_features, bias=False)
    changed.weight = kept.weight
    zoo.model.lm_head = changed
    try:
        with pytest.raises(ValueError, match=r"no plain matrix.*Quantised"):
            wrap(zoo.model, None, "revisit")
    finally:
        zoo.model.lm_head = kept


def test_it_needs_a_guard(zoo_model):
    from vlm_guard.contrast.unguarded import contrast_generate

    with pytest.raises(ValueError, match="revisit acts inside the model as well, which needs a guard"):
        contrast_generate(ReVisiT(), zoo_model("llava").model, None, {})
