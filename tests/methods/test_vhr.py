"""VHR by hand: divergence, outliers, selection, the layer-sequential order, and its approximations."""

import pytest
import torch
from eager_oracle import eager_attention

from vlm_guard import wrap
from vlm_guard.methods.vhr.method import vision_aware_heads
from zoo import UNEQUAL_PROMPTS, Prompt, assert_pristine

torch.set_num_threads(1)
PROMPTS = list(UNEQUAL_PROMPTS)
LAYERS = (0, 2)
OPTIONS = {"layers": "0,2"}
APPROXIMATIONS = ("none", "plain text stream", "parallel")


def logits(model, inputs):
    with torch.no_grad():
        return model(**inputs).logits


def without_image(zoo, inputs):
    keep = inputs["input_ids"] != zoo.image_token_id
    ids = inputs["input_ids"][keep][None]
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def last_outputs(zoo, inputs, layer, scales):
    """[H, D] head outputs at the last position of one prompt, before the layer's own scale."""
    seen = []

    def scale(index, output):
        if index == layer:
            seen.append(output[0, :, -1].clone())
        return output * scales[index][None, :, None, None] if index in scales else output

    with torch.no_grad(), eager_attention(zoo.model, output=scale):
        zoo.model(**inputs)
    return seen[0]


def papers_scales(zoo, inputs, approximation="none", strength=2.0):
    """Algorithm 1 for one prompt, with a forward pass of each stream for every layer."""
    text = without_image(zoo, inputs)
    scales = {}
    for layer in LAYERS:
        image_scales = {} if approximation == "parallel" else scales
        text_scales = scales if approximation == "none" else {}
        image_out = last_outputs(zoo, inputs, layer, image_scales)
        text_out = last_outputs(zoo, text, layer, text_scales)
        divergence = [float((image_out[h] - text_out[h]).norm()) for h in range(len(image_out))]
        activity = [float(text_out[h].norm()) ** 2 for h in range(len(image_out))]
        bounds = [
            sum(v) / len(v) + (sum((x - sum(v) / len(v)) ** 2 for x in v) / len(v)) ** 0.5
            for v in (divergence, activity)
        ]
        kept = [0.0 if d > bounds[0] and a > bounds[1] else d for d, a in zip(divergence, activity)]
        median = sorted(kept)[(len(kept) - 1) // 2]
        scales[layer] = torch.tensor([strength if d > median else 1.0 for d in kept], dtype=torch.float64)
    return scales


def test_divergence_and_selection_by_hand():
    # Heads differ by vectors of length 5, 1, 2 and 3: lower median 2, so heads 0 and 3 are above it.
    image = torch.tensor([[[3.0, 4.0], [1.0, 0.0], [0.0, 2.0], [3.0, 0.0]]])
    divergence, chosen = vision_aware_heads(image, torch.zeros_like(image))
    assert divergence.tolist() == [[5.0, 1.0, 2.0, 3.0]]
    assert chosen.tolist() == [[True, False, False, True]]


def test_outliers_by_hand():
    # Divergence 8, 1, 2, 1: mean 3, std sqrt(34/4) = 2.92, so head 0 (8 > 5.92) is an outlier candidate. It is removed
    # only if it also fires without the image: squared norms 9, 0, 0, 0 have mean 2.25, std 3.9, bound 6.15 < 9.
    text = torch.tensor([[[3.0, 0.0], [0.0, 0.0], [0.0, 0.0], [0.0, 0.0]]])
    image = torch.tensor([[[11.0, 0.0], [1.0, 0.0], [2.0, 0.0], [1.0, 0.0]]])
    divergence, chosen = vision_aware_heads(image, text)
    assert divergence.tolist() == [[0.0, 1.0, 2.0, 1.0]]
    assert chosen.tolist() == [[False, False, True, False]]
    assert vision_aware_heads(image, text, outliers=False)[0].tolist() == [[8.0, 1.0, 2.0, 1.0]]
    quiet = text.clone()
    quiet[0, :, 0] = 3.0
    kept = vision_aware_heads(image + quiet - text, quiet)[0]
    assert kept[0, 0] == 8.0, "a head that fires no more than the others is no outlier"


def test_half_of_an_even_number_of_heads():
    torch.manual_seed(0)
    chosen = vision_aware_heads(torch.randn(5, 8, 4), torch.zeros(5, 8, 4), outliers=False)[1]
    assert (chosen.sum(-1) == 4).all()


@pytest.mark.parametrize("approximation", APPROXIMATIONS)
def test_it_follows_the_papers_algorithm_per_row(zoo_model, approximation):
    """Heads, logits of every position, and a padded batch of unequal prompts, against one pass per layer and stream."""
    zoo = zoo_model("llava")
    batch = zoo.make_inputs(PROMPTS)
    with wrap(zoo.model, None, "vhr", approximation=approximation, **OPTIONS) as guard:
        found = logits(zoo.model, batch)
        chosen = guard.state.memory("vhr", -1).scoring.scales
    plain = logits(zoo.model, batch)
    for row, prompt in enumerate(PROMPTS):
        alone = zoo.make_inputs([prompt])
        scales = papers_scales(zoo, alone, approximation)
        for layer in LAYERS:
            assert torch.equal(chosen[layer][row].double(), scales[layer])

        def scale(index, output, scales=scales):
            return output * scales[index][None, :, None, None] if index in scales else output

        with eager_attention(zoo.model, output=scale):
            expected = logits(zoo.model, alone)[0]
        real = batch["attention_mask"][row].bool()
        assert torch.allclose(found[row][real], expected, atol=5e-5)
        assert not torch.allclose(plain[row][real], expected, atol=1e-3)


def test_the_order_of_layers_matters_somewhere(zoo_model):
    """Otherwise the comparison of sequential and parallel scoring above would prove nothing."""
    zoo = zoo_model("llava")
    differ = 0
    for content in range(12):
        alone = zoo.make_inputs([Prompt(text_before=4, images=1, text_after=5, content=content)])
        first, second = papers_scales(zoo, alone, "none", 4.0), papers_scales(zoo, alone, "parallel", 4.0)
        differ += any(not torch.equal(first[layer], second[layer]) for layer in LAYERS)
    assert differ


@pytest.mark.parametrize("approximation", APPROXIMATIONS)
@pytest.mark.parametrize("family", ["llava", "qwen2_vl", "gemma3"])
def test_heads_are_fixed_while_the_answer_grows(zoo_model, family, approximation):
    zoo = zoo_model(family)
    inputs = zoo.make_inputs(zoo.adapt(PROMPTS[:1]))
    settings = {"max_new_tokens": 4, "do_sample": False, "output_logits": True, "return_dict_in_generate": True}
    with wrap(zoo.model, None, "vhr", approximation=approximation, **OPTIONS) as guard:
        cached = guard.generate(**inputs, **settings)
        heads = {layer: scale.clone() for layer, scale in guard.state.memory("vhr", -1).scoring.scales.items()}
        static = guard.generate(**inputs, **settings, cache_implementation="static")
        assert all(
            torch.equal(scale, heads[layer]) for layer, scale in guard.state.memory("vhr", -1).scoring.scales.items()
        )
    assert torch.equal(cached.sequences, static.sequences)
    for one, other in zip(cached.logits, static.logits):
        assert torch.allclose(one, other, atol=5e-5)
    assert_pristine(zoo.model)


def test_only_rows_with_an_image_are_read_without_it(zoo_model):
    zoo = zoo_model("llava")
    prompts = [*PROMPTS, Prompt(text_before=5, images=0, text_after=9, content=2)]
    batch = zoo.make_inputs(prompts)
    plain = logits(zoo.model, batch)
    seen = []
    with wrap(zoo.model, None, "vhr", **OPTIONS) as guard:
        hook = (
            zoo.model.get_decoder().layers[0].register_forward_pre_hook(lambda module, args: seen.append(args[0].shape))
        )
        try:
            found = logits(zoo.model, batch)
        finally:
            hook.remove()
        scales = guard.state.memory("vhr", -1).scoring.scales
    assert [tuple(shape[:2]) for shape in seen] == [(2, 19), (3, batch["input_ids"].shape[1])], "text only, then all"
    assert found.shape == plain.shape
    assert all((scale[2] == 1).all() and (scale[:2] == 2).any() for scale in scales.values())
    real = batch["attention_mask"][2].bool()
    assert torch.allclose(found[2][real], plain[2][real], atol=2e-5)


@pytest.mark.parametrize("approximation", APPROXIMATIONS)
def test_beside_other_methods(zoo_model, approximation):
    """With another method in the decoder the heads are those of the bare model for 'none' and 'parallel'."""
    zoo = zoo_model("llava")
    inputs = zoo.make_inputs(PROMPTS)
    with wrap(zoo.model, None, "vhr", approximation=approximation, **OPTIONS) as guard:
        alone = guard.generate(**inputs, max_new_tokens=3, do_sample=False)
        scales = guard.state.memory("vhr", -1).scoring.scales
    options = {"vhr.approximation": approximation, "vhr.layers": "0,2"}
    with wrap(zoo.model, None, "vhr+zerotuning", **options, **{"zerotuning.factor": 1.0}) as guard:
        beside = guard.generate(**inputs, max_new_tokens=3, do_sample=False)
        again = guard.state.memory("vhr", -1).scoring.scales
    assert torch.equal(alone, beside)
    assert all(torch.equal(scales[layer], again[layer]) for layer in LAYERS)
    with wrap(zoo.model, None, "vhr+zerotuning", **options, **{"zerotuning.factor": 0.2}) as guard:
        together = guard.generate(
            **inputs, max_new_tokens=3, do_sample=False, output_logits=True, return_dict_in_generate=True
        )
    assert torch.isfinite(together.logits[0]).all()


def test_a_prompt_read_in_chunks_is_refused(zoo_model):
    zoo = zoo_model("llava")
    inputs = zoo.make_inputs(PROMPTS[:1])
    with wrap(zoo.model, None, "vhr", **OPTIONS) as guard, pytest.raises(ValueError, match="prefill_chunk_size"):
        guard.generate(**inputs, max_new_tokens=1, prefill_chunk_size=8)


# -- the second stream beside the first -----------------------------------------------------------------------


class OutOfMemory(RuntimeError):
    """What a layer raises in these tests."""


@pytest.mark.parametrize("fails_in", ["image stream", "text stream"])
def test_a_failing_stream_leaves_nothing_behind(zoo_model, fails_in):
    zoo = zoo_model("llava")
    inputs = zoo.make_inputs(PROMPTS)
    plain = logits(zoo.model, inputs)

    def fail(module, args):
        whole = args[0].shape[1] == inputs["input_ids"].shape[1]
        if whole == (fails_in == "image stream"):
            raise OutOfMemory

    with wrap(zoo.model, None, "vhr", **OPTIONS):
        expected = logits(zoo.model, inputs)
        hook = zoo.model.get_decoder().layers[1].mlp.register_forward_pre_hook(fail)
        with pytest.raises(OutOfMemory):
            logits(zoo.model, inputs)
        hook.remove()
        assert torch.equal(logits(zoo.model, inputs), expected)
    assert torch.equal(logits(zoo.model, inputs), plain)
    assert_pristine(zoo.model)


def test_the_text_stream_runs_under_the_same_settings_and_unseen_by_hooks_on_layers(zoo_model):
    zoo = zoo_model("llava")
    inputs = zoo.make_inputs(PROMPTS)
    settings, lengths = [], []
    layer = zoo.model.get_decoder().layers[2]
    hooks = [
        layer.mlp.register_forward_pre_hook(
            lambda module, args: settings.append((torch.is_inference_mode_enabled(), torch.is_autocast_enabled("cpu")))
        ),
        layer.register_forward_hook(lambda module, args, output: lengths.append(args[0].shape[1])),
    ]
    options = OPTIONS | {"layers": "0-1"}
    with wrap(zoo.model, None, "vhr", **options), torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        zoo.model(**inputs)
    assert settings == [(True, True)], "the text stream ends with the last scored layer"
    with wrap(zoo.model, None, "vhr", **OPTIONS), torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        zoo.model(**inputs)
    for hook in hooks:
        hook.remove()
    assert settings == [(True, True)] * 2 and lengths == [inputs["input_ids"].shape[1]] * 2


def test_a_decoder_that_works_between_its_layers_is_refused(zoo_model):
    zoo = zoo_model("llava")
    inputs = zoo.make_inputs(PROMPTS)
    first = zoo.model.get_decoder().layers[0]
    hook = first.register_forward_hook(lambda module, args, output: output + 1 if torch.is_tensor(output) else output)
    with wrap(zoo.model, None, "vhr", **OPTIONS) as guard:
        with pytest.raises(ValueError, match=r"vhr: the decoder of .* between its layers.*'plain text stream'"):
            guard.generate(**inputs, max_new_tokens=1)
        hook.remove()
        guard.generate(**inputs, max_new_tokens=1)
    assert_pristine(zoo.model)
