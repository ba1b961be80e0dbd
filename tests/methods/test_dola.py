"""DoLa: the divergence, the choice of the layer row by row, and the read-out of early layers."""

import math

import pytest
import torch

from vlm_guard import wrap
from vlm_guard.contrast.layer_contrast import _read_out
from vlm_guard.contrast.output_embeddings import after_output_embeddings
from vlm_guard.methods.dola import DoLa, layer_divergence
from zoo import Prompt


def divergence_by_hand(p, q, kind):
    total = 0.0
    for a, b in zip(p.tolist(), q.tolist()):
        m = (a + b) / 2
        if kind == "textbook":
            total += (a * math.log(a / m) + b * math.log(b / m)) / 2
        else:
            total += (m * math.log(m / a) + m * math.log(m / b)) / 2
    return total


@pytest.mark.parametrize("kind", ["textbook", "reversed"])
def test_divergence_by_hand(kind):
    torch.manual_seed(0)
    final, early = torch.randn(2, 12).log_softmax(-1), torch.randn(3, 2, 12).log_softmax(-1)
    found = layer_divergence(final, early, kind)
    for layer in range(3):
        for row in range(2):
            expected = divergence_by_hand(final[row].exp(), early[layer, row].exp(), kind)
            assert float(found[layer, row]) == pytest.approx(expected, rel=1e-4)


def test_every_row_has_its_own_layer():
    final = torch.zeros(2, 4)
    near, far = torch.zeros(4), torch.tensor([9.0, 0.0, 0.0, 0.0])
    early = torch.stack((torch.stack((near, far)), torch.stack((far, near))))
    mixed = DoLa(plausibility=0.0).combine_layers(final, early, (0, 2))
    expected = final.log_softmax(-1) - far.log_softmax(-1)
    assert torch.allclose(mixed, expected)


@pytest.mark.parametrize("in_cache", [1, 2 * 12, 5 * 2 * 12])
def test_it_is_the_same_however_many_layers_are_compared_at_once(monkeypatch, in_cache):
    torch.manual_seed(1)
    final, early = torch.randn(2, 12), torch.randn(5, 2, 12)
    early[4] = early[1]
    divergence = layer_divergence(final.log_softmax(-1), early.log_softmax(-1))
    chosen = early[divergence.argmax(0), torch.arange(2)]
    monkeypatch.setattr("vlm_guard.methods.dola._IN_CACHE", in_cache)
    found = DoLa(plausibility=0.0).combine_layers(final, early, tuple(range(5)))
    assert torch.equal(found, final.log_softmax(-1) - chosen.log_softmax(-1))


@pytest.mark.parametrize("final_norm", [False, True])
@pytest.mark.parametrize("use_cache", [True, False])
def test_generation_equals_hidden_states_read_out_by_hand(zoo_model, final_norm, use_cache):
    zoo = zoo_model("llava")
    inputs = zoo.make_inputs([Prompt(content=0), Prompt(text_before=9, images=2, content=1)])
    record = {"return_dict_in_generate": True, "output_logits": True, "max_new_tokens": 4, "do_sample": False}
    method = DoLa(candidates="1-", final_norm=final_norm)
    with wrap(zoo.model, None, method) as guard:
        out = guard.generate(**inputs, **record, use_cache=use_cache)
    length = inputs["input_ids"].shape[1]
    for step in range(4):
        ids = out.sequences[:, : length + step]
        mask = torch.nn.functional.pad(inputs["attention_mask"], (0, step), value=1)
        with torch.no_grad():
            whole = zoo.model(
                input_ids=ids,
                attention_mask=mask,
                position_ids=(mask.cumsum(-1) - 1).clamp_min(0),
                pixel_values=inputs["pixel_values"],
                output_hidden_states=True,
            )
        norm = zoo.model.model.language_model.norm if final_norm else torch.nn.Identity()
        early = torch.stack([zoo.model.lm_head(norm(whole.hidden_states[layer][:, -1])) for layer in (1, 2)])
        expected = method.combine_layers(whole.logits[:, -1].float(), early.float(), (1, 2))
        assert torch.allclose(out.logits[step], expected, atol=2e-4, rtol=1e-4)


def test_read_out_of_the_last_layer_is_the_models_own(zoo_model):
    for family in ("llava", "cohere2_vision", "llava_gemma2"):  # plain, scaled logits, soft-capped logits
        zoo = zoo_model(family)
        inputs = zoo.make_inputs(zoo.adapt([Prompt()]))
        with torch.no_grad():
            whole = zoo.model(**inputs, output_hidden_states=True)
            logits = zoo.model.get_output_embeddings()(whole.hidden_states[-1][:, -1])
            read = after_output_embeddings(zoo.model)(logits.float())
        assert torch.allclose(read, whole.logits[:, -1].float(), atol=1e-4), family


class Target:
    """As much of a target as the choice of candidates needs."""

    def __init__(self, depth, tied):
        entering = torch.nn.Embedding(7, 4)
        leaving = torch.nn.Linear(4, 7, bias=False)
        leaving.weight = entering.weight if tied else leaving.weight
        self.model = type(
            "Model",
            (),
            {"get_input_embeddings": lambda self: entering, "get_output_embeddings": lambda self: leaving},
        )()
        self.architecture = type("Architecture", (), {"depth": depth})()


@pytest.mark.parametrize(
    ("candidates", "tied", "layers"),
    [
        ("low", False, tuple(range(0, 16, 2))),
        ("high", False, tuple(range(16, 32, 2))),
        ("even", False, tuple(range(0, 32, 2))),
        ("even", True, tuple(range(2, 32, 2))),
        ("20", False, (20,)),
    ],
)
def test_published_candidates_of_32_layers(candidates, tied, layers):
    assert DoLa(candidates=candidates).early_layers(Target(32, tied)) == layers


def test_no_candidate_left_is_an_error():
    with pytest.raises(ValueError, match="leaves no layer"):
        DoLa(candidates="0").early_layers(Target(8, True))


def test_the_output_embeddings_are_applied_once_per_step_and_their_hooks_taken_off(zoo_model):
    zoo = zoo_model("llava")
    seen = []
    own = zoo.model.lm_head.register_forward_hook(lambda head, args, logits: seen.append(args[0].shape[1]))
    try:
        with wrap(zoo.model, None, DoLa(candidates="1-")) as guard:
            guard.generate(**zoo.make_inputs([Prompt()]), max_new_tokens=3, min_new_tokens=3)
            assert not any(layer._forward_pre_hooks for layer in zoo.model.model.language_model.layers)
            assert "forward" not in vars(zoo.model.lm_head)
            assert not zoo.model.lm_head._forward_pre_hooks and list(zoo.model.lm_head._forward_hooks) == [own.id]
    finally:
        own.remove()
    assert seen == [3, 3, 3], "two early layers beside the last position, in one product"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("rows", [1, 2, 10, 30])
def test_read_out_is_as_exact_as_the_output_embeddings(rows, dtype):
    torch.manual_seed(rows)
    head = torch.nn.Linear(64, 500, bias=False).to(dtype)
    hidden = torch.randn(2, rows, 64).to(dtype)
    with torch.no_grad():
        found, plain, exact = _read_out(head, hidden), head(hidden), head.double()(hidden.double())
    assert found.dtype == dtype and found.shape == plain.shape and found.is_contiguous()
    error, plain_error = ((logits.double() - exact).abs().max() for logits in (found, plain))
    rounding = 2 * torch.finfo(dtype).eps * exact.abs().max()
    assert error <= plain_error + rounding


def test_output_embeddings_that_somebody_changed_are_used_as_they_are(zoo_model, monkeypatch):
    zoo = zoo_model("llava")
    inputs = zoo.make_inputs([Prompt(), Prompt()])
    expected = zoo.model.generate(**inputs, max_new_tokens=2, min_new_tokens=2)
    head = zoo.model.lm_head
    calls = []

    def forward(hidden):
        calls.append(hidden.shape)
        return torch.nn.functional.linear(hidden, head.weight)

    monkeypatch.setattr(head, "forward", forward)
    with wrap(zoo.model, None, DoLa(strength=1e-6, plausibility=0.0)) as guard:
        assert torch.equal(guard.generate(**inputs, max_new_tokens=2, min_new_tokens=2), expected)
    assert len(calls) == 2 and vars(head)["forward"] is forward
