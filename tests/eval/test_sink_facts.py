"""Where tokens become attention sinks, and how far heads stand from their layer's centre, by hand and on a model."""

from io import StringIO

import pytest
import torch
from rich.console import Console

from vlm_guard.eval.attention import sinks
from vlm_guard.eval.attention.contributions import head_distances, projected_heads
from vlm_guard.eval.attention.record import record_attention
from vlm_guard.eval.attention.sinks import Followed, Origin, drawing_tokens, follow, marking_dimensions, origin_of
from vlm_guard.eval.report.sink_table import print_sinks
from vlm_guard.families.architecture import describe_architecture
from zoo import UNEQUAL_PROMPTS

torch.set_num_threads(1)


def test_a_sink_draws_a_tenth_and_five_times_an_even_share():
    """40 keys: an even share is 1/40, five times that is .125. The answer's own tokens are no sinks."""
    weights = torch.full((2, 2, 1, 41), 0.001)
    weights[0, 0, 0, 0], weights[0, 0, 0, 40] = 0.3, 0.9  # layer 0: .15 over both heads, a sink; 40 is the answer
    weights[1, :, 0, 3] = 0.11  # more than a tenth, less than five times an even share
    assert drawing_tokens(weights, 40).nonzero().tolist() == [[0, 0]]


def test_dimensions_that_hold_a_twentieth():
    state = torch.zeros(100)
    state[7], state[50], state[3] = -9.0, 4.0, 2.0
    assert marking_dimensions(state) == (7, 50), "81 and 16 of 101; 4 of them are too few"
    assert marking_dimensions(torch.ones(100)) == ()


@pytest.mark.parametrize(
    ("sizes", "block"),
    [
        ([1, 1, 8, 10], 1),
        ([6, 7, 8, 10], None),
        ([9, 1, 1, 10], 2),  # it had the size before, and lost it
        ([1, 4.9, 5.1, 10], 1),
    ],
)
def test_the_block_that_makes_a_sink_and_its_mlp_share(sizes, block):
    """In that block three quarters of the change are the MLP's, in the marking dimension; others do not count."""
    states = torch.tensor([[[float(size), 100.0 * number]] for number, size in enumerate(sizes)])
    change = states[1:] - states[:-1]
    other = torch.tensor([1.0, 0.0])
    mlp = {layer: 0.75 * change[layer] * other for layer in range(3)}
    attention = {layer: 0.25 * change[layer] for layer in range(3)}
    found = origin_of(Followed(states=states, attention=attention, mlp=mlp), 0, 3, (0,))
    assert found.block == block and found.mlp_share == (None if block is None else pytest.approx(0.75))
    if block is not None:
        unknown = Followed(states=states, attention=attention, mlp={})
        assert origin_of(unknown, 0, 3, (0,)) == Origin(block=block, mlp_share=None)


@pytest.fixture
def prompt(zoo_model):
    zoo = zoo_model("llava")
    inputs = dict(zoo.make_inputs(zoo.adapt(UNEQUAL_PROMPTS[:1])))
    return zoo.model, describe_architecture(zoo.model), inputs


def test_attention_and_mlp_add_up_to_the_change_of_a_state(prompt):
    model, architecture, inputs = prompt
    tokens = torch.tensor([0, 4])
    hidden = model(**inputs, output_hidden_states=True, use_cache=False).hidden_states
    before = _hooks(model)  # transformers' own, for these states
    found = follow(model, architecture, inputs, tokens)
    assert _hooks(model) == before
    assert torch.equal(found.states[:-1], torch.stack([state[0, tokens] for state in hidden[:-1]]))
    for layer in range(architecture.depth):
        added = found.attention[layer] + found.mlp[layer]
        assert torch.allclose(found.states[layer] + added, found.states[layer + 1], atol=1e-5)


def _hooks(model):
    return [(len(module._forward_hooks), len(module._forward_pre_hooks)) for module in model.modules()]


def test_distances_are_those_of_slices_of_the_output_projection(prompt):
    model, architecture, inputs = prompt
    with projected_heads(architecture) as given:
        seen = record_attention(model, inputs)
    rows = slice(2, -1)
    found = head_distances(architecture, given, rows)
    for place, entry in enumerate(architecture.layers):
        outputs = seen.outputs[place][rows]  # [R, H, D]
        slices = entry.attention.o_proj.weight.detach().view(-1, *outputs.shape[1:])
        added = torch.einsum("rhd,ohd->rho", outputs, slices)
        distance = (added - added.mean(1, keepdim=True)).norm(dim=-1).mean(0)
        assert torch.allclose(found[place], distance / distance.mean(), atol=1e-5)
    assert found.shape == (len(architecture.layers), architecture.heads)


def test_a_planted_sink_is_found_with_its_block_and_told(prompt, monkeypatch):
    """The MLP of layer 1 writes a large number into the first token, and layer 2 is said to look at that token only."""
    model, architecture, inputs = prompt
    length = inputs["input_ids"].shape[1]
    plant = architecture.layers[1].layer.mlp.register_forward_hook(_planted)
    try:
        record = record_attention(model, inputs)
        record.weights[2][:, :, 0], record.weights[2][:, :, 1:] = 1.0, 0.0
        for layer in (0, 1):
            record.weights[layer] = torch.full_like(record.weights[layer], 1 / length)
        found = sinks.sinks_of(model, architecture, inputs, length - 1, record)
    finally:
        plant.remove()
    assert [dict(sink.dimensions) for sink in found] == [{2: (5,)}] and not found[0].visual
    assert found[0].origin.block == 1 and found[0].origin.mlp_share == pytest.approx(1.0, abs=0.05)
    facts = sinks.summarised(architecture, found, 2) | {"data": "planted"}
    assert facts["by_layer"][2] == {"layer": 2, "sinks": 0.5, "in_picture": 0.0, "new": 0.5, "dimensions": [5]}
    assert facts["grown_in"][0]["block"] == 1 and facts["without_dimension"] == 0
    console = Console(width=80, file=StringIO())
    print_sinks(console, facts)
    said = " ".join(console.file.getvalue().split())
    assert (
        "Layer 1 makes 0.5 a picture, 0.0 of them" in said
        and "% of that is its MLP's work" in said
        and "No token" not in said
    )


def _planted(module, args, output):
    output = output.clone()
    output[0, 0, 5] += 50.0
    return output


def test_sinks_of_no_picture_are_refused(prompt):
    with pytest.raises(ValueError, match="none were given"):
        sinks.sink_facts(prompt[0], None, [])
