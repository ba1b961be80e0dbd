"""ONLY by hand: the contrast, the text heads, the short cut against loops over a stock model, and what is refused."""

import math

import contrast_oracle as oracle
import pytest
import torch

from vlm_guard import wrap
from vlm_guard.families.architecture import describe_architecture
from vlm_guard.families.layer_parts import decoder_parts, feed_forward_of
from vlm_guard.methods.only import ONLY, text_heads
from zoo import Prompt, assert_pristine

torch.set_num_threads(1)
RECORD = {"max_new_tokens": 3, "do_sample": False, "output_logits": True, "return_dict_in_generate": True}


def test_the_contrast_by_hand():
    """Probabilities differ by .0438 in all, less than .2: l + 3 l_c; by 1.329: 2 l - l_c. Each row for itself."""
    final = torch.tensor([[2.0, 1.0, 0.0], [2.0, 1.0, 0.0]])
    side = torch.tensor([[2.1, 1.0, 0.0], [0.0, 3.0, 0.0]])
    found = ONLY(plausibility=0.0).contrast(final, side)
    assert torch.allclose(found, torch.tensor([[8.3, 4.0, 0.0], [4.0, -1.0, 0.0]]))
    cut = ONLY(plausibility=0.2).contrast(final, side)
    assert torch.equal(cut[:, :2], found[:, :2]) and bool((cut[:, 2] < -1000).all()), "0.135 of the best is ruled out"


def test_outstanding_entries_and_image_heads_are_dropped():
    """Text .1 .1 .1 .5: mean .2, deviation .2, so .5 goes; what is left is even, as is the picture: ln 3 / ln 2.

    Head 1: mean .105, deviation .11, nothing goes; its text is less even than its picture, so the head does.
    """
    row, uneven = [0.1, 0.1, 0.1, 0.1, 0.5, 0.05, 0.05], [0.1, 0.2, 0.2, 0.01, 0.01, 0.2, 0.2]
    first = torch.tensor([[True] + [False] * 6])
    text = torch.tensor([[[False, True, True, True, True, False, False]]])
    visual = torch.tensor([[[False] * 5 + [True] * 2]])
    found = text_heads(torch.tensor([[[row], [uneven]]]), visual, text, first)
    assert torch.allclose(found[0, 0, 0], torch.tensor([0.1, 0.1, 0.1, 0.1, 0.0, 0.05, 0.05]))
    assert not found[0, 1].any()
    alone = text_heads(torch.tensor([[[uneven]]]), visual, text, first)
    assert torch.allclose(alone[0, 0, 0], torch.tensor(uneven)), "one head is as good as the mean"


def without_outstanding(values):
    mean = sum(values) / len(values)
    deviation = math.sqrt(sum((value - mean) ** 2 for value in values) / (len(values) - 1))
    return [value if value <= mean + deviation else 0.0 for value in values]


def entropy(values):
    total = sum(values)
    return -sum(value / total * math.log(value / total + 1e-6) for value in values)


def short_cut(zoo, ids, inputs, visual):
    """Logits [V] of the model and of the short cut at the last position, from a stock eager pass and loops."""
    layers, decoder = zoo.model.get_decoder().layers, zoo.model.get_decoder()
    kept = {}

    def keep_last(module, args, kwargs):
        kept["last"] = (args[0] if args else kwargs["hidden_states"])[0, -1]

    hooks = [
        layers[0].self_attn.v_proj.register_forward_hook(lambda m, a, out: kept.update(value=out[0])),
        layers[-1].register_forward_pre_hook(keep_last, with_kwargs=True),
        decoder.norm.register_forward_hook(lambda m, a, out: kept.update(final=out[0, -1])),
    ]
    zoo.model.set_attn_implementation("eager")
    try:
        with torch.no_grad():
            out = zoo.model(
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                pixel_values=inputs["pixel_values"],
                output_attentions=True,
            )
    finally:
        zoo.model.set_attn_implementation("sdpa")
        for hook in hooks:
            hook.remove()
    rows = out.attentions[0][0, :, -1].double()
    heads, ratios = [], []
    words = [place for place in range(1, ids.shape[1]) if place not in visual]
    for row in rows.tolist():
        text, picture = (without_outstanding([row[place] for place in places]) for places in (words, visual))
        left = [0.0] * len(row)
        left[0] = row[0]
        for places, values in ((words, text), (visual, picture)):
            for place, value in zip(places, values):
                left[place] = value
        heads.append(left)
        ratios.append(entropy(text) / entropy(picture))
    mean = sum(ratios) / len(ratios)
    size = kept["value"].shape[-1] // zoo.config.text_config.num_key_value_heads
    group = len(heads) // zoo.config.text_config.num_key_value_heads
    outputs = []
    for head, (left, ratio) in enumerate(zip(heads, ratios)):
        values = kept["value"][:, (head // group) * size : (head // group + 1) * size]
        outputs.append(torch.tensor(left).float() @ values * float(ratio >= mean))
    layer = layers[-1]
    with torch.no_grad():
        c = layer.input_layernorm(layers[0].self_attn.o_proj(torch.cat(outputs))) + 0.2 * kept["last"]
        c = c + layer.mlp(layer.post_attention_layernorm(c))
        side = zoo.model.lm_head(decoder.norm(c) + 0.5 * kept["final"])
    return out.logits[0, -1], side


@pytest.mark.parametrize("use_cache", [True, False])
def test_it_equals_loops_over_a_stock_model(zoo_model, use_cache):
    zoo = zoo_model("llava")
    prompts = [Prompt(text_before=3, text_after=5, content=0), Prompt(text_before=7, text_after=9, content=1)]
    method = ONLY(plausibility=0.0, threshold=0.0)
    with wrap(zoo.model, None, method) as guard:
        batch = zoo.make_inputs(prompts)
        out = guard.generate(**batch, **RECORD, use_cache=use_cache)
        with torch.no_grad():
            whole = zoo.model(**batch).logits[:, -1]
    assert oracle.close(whole, out.logits[0]), "model(...) is contrasted as generate is"
    for row, prompt in enumerate(prompts):
        inputs = zoo.make_inputs([prompt])
        visual = (inputs["input_ids"][0] == zoo.image_token_id).nonzero().flatten().tolist()
        for step in range(3):
            generated = out.sequences[row, batch["input_ids"].shape[1] :][:step]
            ids = torch.cat((inputs["input_ids"][0], generated))[None]
            final, side = short_cut(zoo, ids, inputs, visual)
            assert oracle.close(out.logits[step][row], 2 * final - side, 4.0), f"row {row} step {step}"
    assert_pristine(zoo.model)


def test_tokens_that_the_model_rules_out_stay_finite():
    final = torch.tensor([[2.0, torch.finfo(torch.float32).min]])
    assert ONLY(plausibility=0.0).contrast(final, torch.tensor([[0.0, 5.0]])).isfinite().all()


@pytest.mark.parametrize("family", ["llava", "gemma3", "glm4v", "llama4"])
def test_the_way_without_attention_is_what_a_layer_does_behind_it(zoo_model, family):
    """state behind = way(state in front + what attention added), with the modules that were found."""
    zoo = zoo_model(family)
    architecture = describe_architecture(zoo.model)
    entry = architecture.layers[-1]
    (attention,) = decoder_parts(architecture, {"attention": [entry.index]}, "this test")
    kept = {}
    hooks = [
        entry.layer.register_forward_pre_hook(
            lambda m, a, k: kept.update(front=a[0] if a else k["hidden_states"]), with_kwargs=True
        ),
        attention.module.register_forward_hook(
            lambda m, a, out: kept.update(added=out[0] if isinstance(out, tuple) else out)
        ),
        entry.layer.register_forward_hook(
            lambda m, a, out: kept.update(behind=out[0] if isinstance(out, tuple) else out)
        ),
    ]
    with torch.no_grad():
        zoo.model(**zoo.make_inputs(zoo.adapt([Prompt(text_before=3, text_after=5, content=0)])))
        for hook in hooks:
            hook.remove()
        found = feed_forward_of(entry.layer, "this test")(kept["front"] + kept["added"])
    assert torch.allclose(found, kept["behind"], atol=1e-5)


def test_families_without_these_modules_are_refused(zoo_model):
    with pytest.raises(ValueError, match=r"only sends a state through the norms.*OPTDecoderLayer does not have them"):
        wrap(zoo_model("blip_2").model, None, "only")
