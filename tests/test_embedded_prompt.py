"""Q-former families: the inner language model generates from embeddings, and the guard still sees every token."""

import pytest
import torch
from transformers import Blip2Config, Blip2ForConditionalGeneration, CompileConfig, T5Config

from vlm_guard import wrap
from vlm_guard.contrast.unguarded import contrast_processor
from vlm_guard.methods.m3id import M3ID
from zoo import Prompt, assert_pristine

torch.set_num_threads(1)

PROMPTS = [Prompt(text_before=3, text_after=4, content=0), Prompt(text_before=9, text_after=6, content=1)]
STEPS = 4
VAR = {"sink_dimensions": "0,5,9", "sink_threshold": 1.2, "min_visual_mass": 0.01, "layers": "all"}
METHODS = {"none": {}, "var": VAR, "vhr": {"layers": "all"}, "pai": {"layers": "all", "guidance": 1.0}}
RECORD = {"max_new_tokens": STEPS, "do_sample": False, "return_dict_in_generate": True, "output_logits": True}


@pytest.fixture(params=["blip_2", "instructblip", "instructblip_video"])
def zoo(request, zoo_model):
    return zoo_model(request.param)


def grown(inputs, tokens):
    """The inputs of a whole pass over the prompt and generated tokens [B, t]."""
    ids = torch.cat((inputs["input_ids"], tokens), 1)
    mask = torch.cat((inputs["attention_mask"], torch.ones_like(tokens)), 1)
    return {**inputs, "input_ids": ids, "attention_mask": mask}


@pytest.mark.parametrize("method", list(METHODS))
def test_generate_equals_the_inner_model_fed_with_the_whole_models_embeddings(zoo, method):
    """Each step against a pass of the whole guarded model over the prompt as it has grown, edited as one prompt."""
    inputs = zoo.make_inputs(PROMPTS)
    with torch.no_grad(), wrap(zoo.model, None, method, **METHODS[method]) as guard:
        found = guard.generate(**inputs, **RECORD)
        visual = guard.state.visual if method != "none" else None
        first = zoo.model(**inputs).logits[:, -1]
    torch.testing.assert_close(found.logits[0], first, atol=2e-5, rtol=0)
    if visual is not None:
        expected = torch.nn.functional.pad(
            zoo.expected_visual_mask(inputs), (0, visual.shape[1] - len(inputs["input_ids"][0]))
        )
        assert torch.equal(visual, expected)
    if method == "none":
        with torch.no_grad():
            whole = zoo.model(**grown(inputs, found.sequences[:, -STEPS:-1])).logits[:, -STEPS:]
        torch.testing.assert_close(torch.stack(found.logits, 1), whole, atol=2e-4, rtol=0)
    assert_pristine(zoo.model)


def test_head_bias_of_every_step_equals_an_attention_mask_on_embeddings(zoo):
    """An edit with a known answer: rows from the last prompt token on that see no visual token at all."""
    inputs = zoo.make_inputs(PROMPTS[:1])
    options = {"layers": "all", "scope": "answer", "plausibility": 0.0, "strength": 1.0}
    with wrap(zoo.model, None, "softpag", **options) as guard:
        found = guard.generate(**inputs, **RECORD)
    plain = zoo.model.generate(**inputs, **RECORD)
    visual = inputs["input_ids"][0] == zoo.image_token_id
    tokens = found.sequences[:, -STEPS:]
    for step in (0, STEPS - 1):
        blind = _logits_without_keys(zoo, inputs, tokens[:, :step], visual)
        whole = zoo.model(**grown(inputs, tokens[:, :step])).logits[0, -1]
        torch.testing.assert_close(found.logits[step][0], 2 * whole - blind, atol=2e-3, rtol=0)
    assert not torch.equal(found.logits[0], plain.logits[0])


@torch.no_grad()
def _logits_without_keys(zoo, inputs, tokens, visual):
    """Last logits when rows from the last prompt token on see no visual key, by a 4-D mask on the embeddings."""
    encode = getattr(zoo.model, "get_video_features", None) or zoo.model.get_image_features
    given = {name: value for name, value in inputs.items() if name not in ("input_ids", "attention_mask")}
    embeddings = encode(**given, return_dict=True).pooler_output
    ids = torch.cat((inputs["input_ids"], tokens), 1)
    prompt = visual.shape[0]
    where = torch.nn.functional.pad(visual, (0, tokens.shape[1]))
    given = zoo.model.get_input_embeddings()(ids).masked_scatter(where[None, :, None], embeddings)
    allowed = torch.ones(ids.shape[1], ids.shape[1], dtype=torch.bool).tril()
    allowed[prompt - 1 :] &= ~where
    mask = torch.zeros(allowed.shape).masked_fill(~allowed, torch.finfo(torch.float32).min)[None, None]
    positions = torch.arange(ids.shape[1])[None]
    return zoo.model.language_model(inputs_embeds=given, attention_mask=mask, position_ids=positions).logits[0, -1]


def test_vhr_in_generate_equals_vhr_on_the_whole_prompt(zoo):
    inputs = zoo.make_inputs(PROMPTS)
    for approximation in ("none", "plain text stream", "parallel"):
        with torch.no_grad(), wrap(zoo.model, None, "vhr", layers="all", approximation=approximation) as guard:
            first = guard.generate(**inputs, **RECORD).logits[0]
            torch.testing.assert_close(zoo.model(**inputs).logits[:, -1], first, atol=2e-5, rtol=0)
    assert_pristine(zoo.model)


def test_beams_and_positional_pixels(zoo):
    inputs = zoo.make_inputs(PROMPTS)
    pixels = inputs.pop("pixel_values")
    with wrap(zoo.model, None, "var", **VAR) as guard:
        beams = guard.generate(pixels, **inputs, num_beams=2, max_new_tokens=3)
        assert guard.state.visual.shape[0] == 4
    assert beams.shape[0] == 2
    with wrap(zoo.model, None, "vcd") as guard:
        assert guard.generate(pixels, **inputs, num_beams=2, max_new_tokens=3).shape == beams.shape
    assert_pristine(zoo.model)


def test_compiled_steps_of_the_inner_model(zoo_model):
    torch._dynamo.reset()
    zoo, graphs = zoo_model("instructblip"), []
    settings = CompileConfig(fullgraph=True, backend=lambda graph, _: graphs.append(graph) or graph.forward, mode=None)
    settings._compile_all_devices = True
    inputs = zoo.make_inputs(PROMPTS)
    with torch.no_grad(), wrap(zoo.model, None, "var", **VAR) as guard:
        plain = guard.generate(**inputs, **RECORD, cache_implementation="static", disable_compile=True)
        found = guard.generate(**inputs, **RECORD, cache_implementation="static", compile_config=settings)
    assert len(graphs) == 1 and torch.equal(found.sequences, plain.sequences)
    torch.testing.assert_close(torch.stack(found.logits), torch.stack(plain.logits), atol=2e-4, rtol=1e-5)
    assert_pristine(zoo.model)


def test_captions_without_a_prompt(zoo):
    inputs = zoo.make_inputs(PROMPTS)
    del inputs["input_ids"], inputs["attention_mask"]
    plain = zoo.model.generate(**inputs, **RECORD)
    with wrap(zoo.model, None, "pai", gain=0.0, guidance=1.0) as guard:
        found = guard.generate(**inputs, **RECORD)
        assert guard.state.visual.sum(-1).tolist() == [plain.sequences.shape[1] - STEPS - 1] * 2
    assert torch.equal(found.sequences, plain.sequences)
    with wrap(zoo.model, None, "var", **VAR) as guard:
        assert not torch.equal(guard.generate(**inputs, **RECORD).logits[0], plain.logits[0])
    assert_pristine(zoo.model)


def test_a_prompt_given_as_embeddings_is_refused(zoo):
    inputs = zoo.make_inputs(PROMPTS)
    inputs["inputs_embeds"] = zoo.model.get_input_embeddings()(inputs.pop("input_ids"))
    with wrap(zoo.model, None, "var", **VAR) as guard, pytest.raises(ValueError, match="pass input_ids"):
        guard.generate(**inputs, max_new_tokens=2)
    assert_pristine(zoo.model)


def test_findings_of_the_vision_tower_survive_the_inner_pass(zoo):
    inputs = zoo.make_inputs(PROMPTS)
    options = {"pixel_std": "0.27,0.26,0.28", "iterations": 1, "layers": "0", "probe_layers": "0-1"}
    with (
        torch.no_grad(),
        wrap(zoo.model, None, "uncertainty+none", **{f"uncertainty.{k}": v for k, v in options.items()}) as guard,
    ):
        zoo.model(**inputs)
        assert len(guard.findings("uncertainty").maps) == 1


def test_what_cannot_be_is_refused(zoo_model):
    zoo = zoo_model("blip_2")
    with pytest.raises(ValueError, match="use wrap"):
        contrast_processor(M3ID(), zoo.model, None, zoo.make_inputs(PROMPTS))
    inputs = zoo.make_inputs(PROMPTS)
    with (
        wrap(zoo.model, None, "paint", layers="all"),
        pytest.raises(ValueError, match="one visual token for each patch"),
    ):
        zoo.model(**inputs)


def test_t5_as_text_model_is_refused(zoo_model):
    config = zoo_model("blip_2").config.to_dict()
    config["text_config"] = T5Config(vocab_size=200, d_model=64, d_kv=16, d_ff=96, num_layers=1, num_heads=4).to_dict()
    with torch.device("meta"):
        model = Blip2ForConditionalGeneration(Blip2Config(**config))
    with pytest.raises(ValueError, match="encoder-decoder"):
        wrap(model, None, "none")
