"""Mllama: images are read in cross-attention layers, whose keys are all visual."""

import pytest
import torch
from transformers import CompileConfig

from vlm_guard import wrap
from vlm_guard.families.architecture import describe_architecture
from vlm_guard.method.registry import method_class, method_names
from vlm_guard.methods.vcd import VCD
from zoo import Prompt, assert_pristine
from zoo.prompts import BOS, IMAGE

torch.set_num_threads(1)

# One image in each row: with unequal numbers the stock model itself lets rows of a batch see each other's image slots.
PROMPTS = [
    Prompt(text_before=3, text_after=4, content=0),
    Prompt(text_before=9, text_after=6, content=1),
    Prompt(text_before=2, text_after=7, content=3),
]
STEPS = 4
DISTURBANCE = [151, 152, 153, 154]
RECORD = {"max_new_tokens": STEPS, "do_sample": False, "return_dict_in_generate": True, "output_logits": True}
VHR = {"layers": "all"}
WORKING = {"none": {}, "vhr": VHR, "vcd": {}, "m3id": {}, "dola": {}, "deco": {}, "flb": {}, "pai": {"gain": 0.0}}


@pytest.fixture
def zoo(zoo_model):
    return zoo_model("mllama")


@torch.no_grad()
def logits(model, inputs):
    return model(**inputs).logits


def close(first, second, scale=1.0):
    bound = 1e-4 * scale * max(1.0, float(second.abs().max()))
    return float((first - second).abs().max()) <= bound


def grown(inputs, tokens):
    """The inputs of a whole pass over the prompt and generated tokens [B, t]."""
    ids = torch.cat((inputs["input_ids"], tokens), 1)
    mask = torch.cat((inputs["attention_mask"], torch.ones_like(tokens)), 1)
    extended = {**inputs, "input_ids": ids, "attention_mask": mask}
    if "cross_attention_mask" in inputs:
        cross = inputs["cross_attention_mask"]
        extended["cross_attention_mask"] = torch.cat((cross, cross[:, -1:].expand(-1, tokens.shape[1], -1, -1)), 1)
    return extended


def test_the_cross_layers_are_found(zoo):
    layers = describe_architecture(zoo.model).layers
    assert [entry.index for entry in layers] == [0, 1, 2, 3]
    assert [entry.index for entry in layers if entry.reads_image] == zoo.config.text_config.cross_attention_layers


@pytest.mark.parametrize("method", list(WORKING))
def test_neutral_options_are_the_identity_and_nothing_is_left(zoo, method):
    inputs = zoo.make_inputs(PROMPTS)
    plain = zoo.model.generate(**inputs, **RECORD)
    with wrap(zoo.model, None, [method_class(method).neutral()]) as guard:
        found = guard.generate(**inputs, **RECORD)
        assert torch.equal(found.sequences, plain.sequences)
        assert close(torch.stack(found.logits), torch.stack(plain.logits))
    assert_pristine(zoo.model)
    if method != "none":
        with wrap(zoo.model, None, method, **WORKING[method]) as guard:
            acting = guard.generate(**inputs, **RECORD)
        assert not torch.equal(torch.stack(acting.logits), torch.stack(plain.logits))
    again = zoo.model.generate(**inputs, **RECORD)
    assert torch.equal(torch.stack(again.logits), torch.stack(plain.logits))
    assert_pristine(zoo.model)


def vision_aware(image, text):
    """[B, H] heads above the lower median of their divergence, outliers removed; image and text [B, H, D]."""
    divergence, activity = (image - text).norm(dim=-1), text.norm(dim=-1) ** 2
    for row in range(divergence.shape[0]):
        bounds = [x[row].mean() + x[row].std(correction=0) for x in (divergence, activity)]
        divergence[row][(divergence[row] > bounds[0]) & (activity[row] > bounds[1])] = 0
    ordered = divergence.sort(-1).values
    return divergence > ordered[:, (ordered.shape[1] - 1) // 2, None]


def head_outputs(zoo, given, factors):
    """Inputs [B, H, D] of every layer's o_proj at the last position, in a pass with some of them multiplied, and its
    logits; a layer that the pass skips has none."""
    heads, seen = zoo.config.text_config.num_attention_heads, {}

    def scale(index, states):
        seen[index] = states[:, -1].view(1, heads, -1)
        return (states * factors[index],) if index in factors else None

    hooks = []
    for index, layer in enumerate(zoo.model.get_decoder().layers):
        attention = getattr(layer, "cross_attn", getattr(layer, "self_attn", None))
        hooks.append(attention.o_proj.register_forward_pre_hook(lambda _, args, key=index: scale(key, args[0])))
    found = logits(zoo.model, {**given, "use_cache": False})[0]
    [hook.remove() for hook in hooks]
    return seen, found


def reinforced_by_hand(zoo, prompt, strength, sequential):
    """Logits of one prompt alone, its heads chosen from passes of both streams and scaled before o_proj, by hooks."""
    inputs, factors = zoo.make_inputs([prompt]), {}
    keep = inputs["input_ids"] != IMAGE
    text = {"input_ids": inputs["input_ids"][keep][None], "attention_mask": inputs["attention_mask"][keep][None]}
    plain, without = head_outputs(zoo, inputs, {})[0], head_outputs(zoo, text, {})[0]
    assert set(plain) - set(without) == set(zoo.config.text_config.cross_attention_layers)
    for index in sorted(plain):
        if sequential:
            plain, without = head_outputs(zoo, inputs, factors)[0], head_outputs(zoo, text, factors)[0]
        image = plain[index]
        scale = 1 + (strength - 1) * vision_aware(image, without.get(index, torch.zeros_like(image))).float()
        factors[index] = scale.repeat_interleave(image.shape[-1], -1)[:, None]
    return head_outputs(zoo, inputs, factors)[1]


@pytest.mark.parametrize("approximation", ["none", "parallel"])
def test_vhr_scales_the_heads_that_hooks_by_hand_scale(zoo, approximation):
    batch = zoo.make_inputs(PROMPTS)
    with wrap(zoo.model, None, "vhr", layers="all", approximation=approximation):
        together = logits(zoo.model, batch)
    for row, prompt in enumerate(PROMPTS):
        expected = reinforced_by_hand(zoo, prompt, strength=2.0, sequential=approximation == "none")
        assert close(together[row, -len(expected) :], expected), f"row {row}"
    assert_pristine(zoo.model)


def test_vhr_in_batches_and_with_a_cache(zoo):
    batch = zoo.make_inputs(PROMPTS)
    with torch.no_grad(), wrap(zoo.model, None, "vhr", **VHR) as guard:
        together = logits(zoo.model, batch)
        for row, prompt in enumerate(PROMPTS):
            alone = logits(zoo.model, zoo.make_inputs([prompt]))[0]
            assert close(together[row, -len(alone) :], alone), f"row {row}"
        cached = guard.generate(**batch, **RECORD)
        whole = guard.generate(**batch, **RECORD, use_cache=False)
        assert torch.equal(cached.sequences, whole.sequences)
        assert close(torch.stack(cached.logits), torch.stack(whole.logits))
        assert close(cached.logits[0], together[:, -1])
        beams = guard.generate(**batch, max_new_tokens=3, num_beams=2)
        assert beams.shape == (3, batch["input_ids"].shape[1] + 3)
    assert_pristine(zoo.model)


def test_compiled_steps_with_vhr(zoo):
    torch._dynamo.reset()
    graphs = []
    settings = CompileConfig(fullgraph=True, backend=lambda graph, _: graphs.append(graph) or graph.forward, mode=None)
    settings._compile_all_devices = True
    inputs = zoo.make_inputs(PROMPTS[:2])
    with torch.no_grad(), wrap(zoo.model, None, "vhr", **VHR) as guard:
        plain = guard.generate(**inputs, **RECORD, cache_implementation="static", disable_compile=True)
        found = guard.generate(**inputs, **RECORD, cache_implementation="static", compile_config=settings)
        dynamic = guard.generate(**inputs, **RECORD)
    assert len(graphs) == 1 and torch.equal(found.sequences, plain.sequences)
    assert close(torch.stack(found.logits), torch.stack(plain.logits))
    assert close(torch.stack(dynamic.logits), torch.stack(plain.logits))
    assert_pristine(zoo.model)


@torch.no_grad()
def branches_by_hand(zoo, prompt, method, tokens):
    """[steps, V] combined logits of one prompt when `tokens` are forced; whole passes, no cache, no padding."""
    inputs = zoo.make_inputs([prompt])
    if method == "icd":
        ids, cross = inputs["input_ids"], inputs["cross_attention_mask"]
        negative = {**inputs, "input_ids": torch.cat((ids[:, :1], torch.tensor([DISTURBANCE]), ids[:, 1:]), 1)}
        negative["attention_mask"] = torch.ones_like(negative["input_ids"])
        blind = cross[:, :1].expand(-1, len(DISTURBANCE), -1, -1)
        negative["cross_attention_mask"] = torch.cat((cross[:, :1], blind, cross[:, 1:]), 1)
    elif method == "vcd":
        negative = {**inputs, "pixel_values": VCD()._noised("pixel_values", inputs["pixel_values"], inputs)}
    else:
        keep = inputs["input_ids"] != IMAGE
        negative = {
            "input_ids": inputs["input_ids"][keep][None],
            "attention_mask": inputs["attention_mask"][keep][None],
        }
    rows = []
    for step in range(len(tokens)):
        so_far = torch.tensor([tokens[:step]], dtype=torch.long)
        with_image, without = (logits(zoo.model, grown(given, so_far))[0, -1] for given in (inputs, negative))
        strength = min(2.0**step - 1, 1e6) if method == "m3id" else 1.0
        rows.append((1 + strength) * with_image - strength * without)
    return torch.stack(rows)


class WordProcessor:
    """As much of a processor as a disturbing instruction needs: its words are the ids themselves."""

    class tokenizer:
        all_special_ids, bos_token_id, pad_token_id = list(range(10)), BOS, 0

        @staticmethod
        def encode(text, add_special_tokens=True):
            return [int(word) for word in text.split()]


@pytest.mark.parametrize("method", ["vcd", "m3id", "icd"])
def test_contrast_equals_branches_run_alone(zoo, method):
    options = {"plausibility": 0.0} | (
        {"forgetting": 0.6931471805599453, "max_strength": 1e6} if method == "m3id" else {}
    )
    batch = zoo.make_inputs(PROMPTS)
    if method == "icd":
        options |= {"text": " ".join(map(str, DISTURBANCE)), "place": "start"}
    with wrap(zoo.model, WordProcessor(), method, **options) as guard:
        found = guard.generate(**batch, **RECORD)
        uncached = guard.generate(**batch, **RECORD, use_cache=False)
        assert guard.generate(**batch, max_new_tokens=2, num_beams=2).shape[0] == 3
    assert torch.equal(found.sequences, uncached.sequences)
    found_logits = torch.stack(found.logits, 1)
    assert close(found_logits, torch.stack(uncached.logits, 1), 4.0)
    for row, prompt in enumerate(PROMPTS):
        expected = branches_by_hand(zoo, prompt, method, found.sequences[row, -STEPS:].tolist())
        assert close(found_logits[row], expected, 4.0), f"row {row}"
    assert_pristine(zoo.model)


def test_a_prompt_as_long_as_its_image_is_not_taken_for_it(zoo):
    """The cache of a cross-attention layer then has the length of the others, but must not be merged like them."""
    patches = zoo.model.model.vision_model.num_patches * zoo.config.vision_config.max_num_tiles
    prompt = Prompt(text_before=patches - 12, text_after=10, content=0)
    inputs = zoo.make_inputs([prompt])
    assert inputs["input_ids"].shape[1] == patches
    with wrap(zoo.model, None, "vcd", plausibility=0.0) as guard:
        found = guard.generate(**inputs, **RECORD)
    expected = branches_by_hand(zoo, prompt, "vcd", found.sequences[0, -STEPS:].tolist())
    assert close(torch.stack(found.logits, 1)[0], expected, 4.0)


def test_vhr_together_with_a_contrast(zoo):
    inputs = zoo.make_inputs(PROMPTS)
    options = {f"vhr.{name}": value for name, value in VHR.items()} | {"m3id.plausibility": 0.0}
    with torch.no_grad(), wrap(zoo.model, None, "vhr+m3id", **options) as guard:
        both = guard.generate(**inputs, **RECORD)
    with torch.no_grad(), wrap(zoo.model, None, "vhr", **VHR) as guard:
        alone = guard.generate(**inputs, **RECORD)
    assert close(both.logits[0], alone.logits[0]), "M3ID has strength 0 at the first token"
    assert_pristine(zoo.model)


@pytest.mark.parametrize("method", sorted(set(method_names()) - set(WORKING) - {"lqcd"}))
def test_what_cannot_mean_anything_is_refused_with_the_reason(zoo, method):
    with pytest.raises(ValueError, match=r"cross-attention|two stages|processor"):
        wrap(zoo.model, None, method)
    assert_pristine(zoo.model)


@pytest.mark.parametrize("method", ["var", "act", "paint", "gift", "softpag", "zerotuning", "iri", "carve", "pai"])
def test_refusals_name_the_method_and_what_works(zoo, method):
    with pytest.raises(ValueError, match=f"{method} means nothing for mllama.*vhr and the contrast methods"):
        wrap(zoo.model, object(), method)


def test_other_refusals(zoo):
    with pytest.raises(ValueError, match="two stages"):
        wrap(zoo.model, object(), "uncertainty")
    with (
        wrap(zoo.model, None, "none") as guard,
        pytest.raises(ValueError, match="no share of attention"),
        guard.trace(),
    ):
        pass
    assert_pristine(zoo.model)
