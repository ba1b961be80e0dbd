"""`wrap` and `Guard`: attaching, errors, restoring, shared configurations, text-only prompts, pipelines."""

import copy
import warnings

import method_cases
import pytest
import torch

import vlm_guard
from vlm_guard import wrap
from vlm_guard.guard import Guard
from vlm_guard.methods.pai import PAI
from zoo import Prompt, assert_pristine, build

torch.set_num_threads(1)
VAR_OPTIONS = method_cases.options("var")
PROMPT = [Prompt(text_before=3, images=1, text_after=4, content=0)]


@pytest.fixture
def llava(zoo_model):
    return zoo_model("llava")


def logits(model, inputs):
    with torch.no_grad():
        return model(**inputs).logits


def test_wrap_guards_generate_and_remove_restores(llava):
    inputs = llava.make_inputs(PROMPT)
    plain = logits(llava.model, inputs)
    guard = wrap(llava.model, None, "var", **VAR_OPTIONS)
    assert isinstance(guard, Guard) and guard.is_attached
    assert not torch.equal(logits(llava.model, inputs), plain)
    assert llava.model.generate(**inputs, max_new_tokens=3).shape[1] == inputs["input_ids"].shape[1] + 3
    guard.remove()
    guard.remove()
    assert not guard.is_attached
    assert torch.equal(logits(llava.model, inputs), plain)
    assert_pristine(llava.model)


def test_a_removed_guard_can_be_attached_again(llava):
    inputs = llava.make_inputs(PROMPT)
    with wrap(llava.model, None, "var", **VAR_OPTIONS) as guard:
        first = logits(llava.model, inputs)
        with pytest.raises(ValueError, match="already guarded"):
            guard.attach()
        guard.remove()
        guard.attach()
        assert torch.equal(logits(llava.model, inputs), first)
    assert_pristine(llava.model)


def test_exception_inside_the_block_restores(llava):
    with pytest.raises(RuntimeError, match="stop"), wrap(llava.model, None, "var", **VAR_OPTIONS):
        raise RuntimeError("stop")
    assert_pristine(llava.model)


def test_exception_inside_generate_leaves_the_guard_usable(llava):
    inputs = llava.make_inputs(PROMPT)

    class Stop(Exception):
        pass

    def stopping(input_ids, scores):
        raise Stop

    with wrap(llava.model, None, "var", **VAR_OPTIONS) as guard:
        expected = guard.generate(**inputs, max_new_tokens=3)
        with pytest.raises(Stop):
            guard.generate(**inputs, max_new_tokens=3, logits_processor=[stopping])
        assert torch.equal(guard.generate(**inputs, max_new_tokens=3), expected)
    assert_pristine(llava.model)


def test_wrapping_twice_is_refused_and_keeps_the_first(llava):
    with wrap(llava.model, None, "var", **VAR_OPTIONS) as guard:
        with pytest.raises(ValueError, match=r"already guarded by 'var:.*remove\(\)"):
            wrap(llava.model, None, "none")
        assert guard.is_attached
    assert_pristine(llava.model)


@pytest.mark.parametrize(
    ("method", "options", "message"),
    [
        ("vaar", {}, "Did you mean 'var'"),
        ("var", {"move_fracton": 0.5}, "Did you mean 'move_fraction'"),
        ("var", {"move_fraction": 1.5}, "allowed: 0.0 to 1.0"),
        ("var", {"sink_dimensions": "5,x"}, "must be numbers"),
        ("var", {"sink_dimensions": "99999"}, "must lie in 0 to"),
        ("var", {"sink_dimensions": "1", "layers": "9-"}, "selects no layer"),
        ("var", {"sink_dimensions": "1", "layers": "first"}, "cannot read layers"),
        ("var", {}, "vlm-guard calibrate"),
        ("var+var", {}, "named twice"),
    ],
)
def test_wrong_use_says_what_to_do_and_changes_nothing(llava, method, options, message):
    with pytest.raises(ValueError, match=message):
        wrap(llava.model, None, method, **options)
    assert_pristine(llava.model)


def test_method_of_the_wrong_type(llava):
    with pytest.raises(TypeError, match="method must be a name"):
        wrap(llava.model, None, 3)


def test_model_of_the_wrong_type():
    with pytest.raises(TypeError, match="transformers model"):
        wrap(torch.nn.Linear(2, 2), None, "none")


def test_model_outside_the_attention_interface_is_refused():
    model = build("git").model
    with pytest.raises(ValueError, match="cannot be guarded: its decoder computes attention itself"):
        wrap(model, None, "none")
    assert_pristine(model)


def test_text_model_is_refused():
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, vocab_size=20
    )
    with pytest.raises(ValueError, match="it is a text model"):
        wrap(LlamaForCausalLM(config), None, "none")


def test_text_only_prompt_is_untouched_and_says_so_once(llava):
    inputs = llava.make_inputs([Prompt(text_before=5, images=0, text_after=6)])
    plain = logits(llava.model, inputs)
    with wrap(llava.model, None, "var", **VAR_OPTIONS):
        with pytest.warns(UserWarning, match="no visual token"):
            guarded = logits(llava.model, inputs)
        assert torch.equal(guarded, plain)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            logits(llava.model, inputs)


def test_input_without_batch_dimension(llava):
    inputs = llava.make_inputs(PROMPT)
    with (
        wrap(llava.model, None, "var", **VAR_OPTIONS) as guard,
        pytest.raises(ValueError, match=r"must be \[batch, length\]"),
    ):
        guard.generate(input_ids=inputs["input_ids"][0], pixel_values=inputs["pixel_values"])
    assert_pristine(llava.model)


def test_embeddings_without_ids_are_refused(llava):
    inputs = llava.make_inputs(PROMPT)
    embeddings = llava.model.get_input_embeddings()(inputs["input_ids"])
    with wrap(llava.model, None, "var", **VAR_OPTIONS), pytest.raises(ValueError, match="input_ids"):
        llava.model(inputs_embeds=embeddings)


def test_models_that_share_a_configuration_do_not_mix():
    zoo = build("llava")
    other = type(zoo.model)(zoo.model.config).eval()
    inputs = zoo.make_inputs(PROMPT)
    plain, other_plain = logits(zoo.model, inputs), logits(other, inputs)
    first = wrap(zoo.model, None, "var", **VAR_OPTIONS)
    guarded = logits(zoo.model, inputs)
    assert torch.equal(logits(other, inputs), other_plain)
    second = wrap(other, None, "var", **VAR_OPTIONS)
    assert torch.equal(logits(zoo.model, inputs), guarded)
    first.remove()
    assert torch.equal(logits(zoo.model, inputs), plain)
    assert not torch.equal(logits(other, inputs), other_plain)
    second.remove()
    assert torch.equal(logits(other, inputs), other_plain)
    assert_pristine(zoo.model)


def test_nested_guards_of_two_models():
    first, second = build("llava"), build("qwen2_5_vl")
    inputs = first.make_inputs(PROMPT), second.make_inputs(PROMPT)
    plain = logits(first.model, inputs[0]), logits(second.model, inputs[1])
    with wrap(first.model, None, "var", **VAR_OPTIONS):
        outer = logits(first.model, inputs[0])
        with pytest.raises(KeyError), wrap(second.model, None, "var", **VAR_OPTIONS):
            raise KeyError
        assert torch.equal(logits(second.model, inputs[1]), plain[1])
        assert torch.equal(logits(first.model, inputs[0]), outer)
    assert torch.equal(logits(first.model, inputs[0]), plain[0])
    assert_pristine(first.model)
    assert_pristine(second.model)


def test_a_new_picture_gets_its_own_sinks(llava):
    """The published code keeps the first picture's sinks for every later one."""
    one = llava.make_inputs([Prompt(text_before=3, images=1, text_after=4, content=0)])
    two = llava.make_inputs([Prompt(text_before=8, images=1, text_after=3, content=2)])
    with wrap(llava.model, None, "var", **VAR_OPTIONS):
        fresh = logits(llava.model, two)
    with wrap(llava.model, None, "var", **VAR_OPTIONS):
        logits(llava.model, one)
        assert torch.equal(logits(llava.model, two), fresh)


def test_a_conversation_that_continues_its_cache(llava):
    """The second turn, fed on the first turn's cache, equals reading the whole conversation anew."""
    from transformers import DynamicCache

    inputs = llava.make_inputs(PROMPT)
    with wrap(llava.model, None, "var", **VAR_OPTIONS) as guard, torch.no_grad():
        cache = DynamicCache(config=llava.model.config.get_text_config())
        first = guard.generate(**inputs, past_key_values=cache, max_new_tokens=4, do_sample=False)
        ids = torch.cat((first, torch.tensor([[20, 21, 22]])), 1)
        mask = torch.ones_like(ids)
        settings = {"max_new_tokens": 3, "do_sample": False, "output_logits": True, "return_dict_in_generate": True}
        continued = guard.generate(input_ids=ids, attention_mask=mask, past_key_values=cache, **settings)
        assert continued.sequences.shape[1] == ids.shape[1] + 3


def test_cache_filled_before_guarding_is_refused(llava):
    inputs = llava.make_inputs(PROMPT)
    with torch.no_grad():
        cache = llava.model(**inputs, use_cache=True).past_key_values
    with wrap(llava.model, None, "var", **VAR_OPTIONS), pytest.raises(ValueError, match="filled before"):
        llava.model(input_ids=torch.tensor([[20]]), past_key_values=cache)


def test_several_methods_apply_in_order(llava):
    guard = wrap(llava.model, None, ["none", "var"], **{f"var.{key}": value for key, value in VAR_OPTIONS.items()})
    assert [bound.method.name for bound in guard.methods] == ["none", "var"]
    guard.remove()
    with pytest.raises(ValueError, match="fits no method"):
        wrap(llava.model, None, "none+var", move_fraction=0.5)
    with pytest.raises(ValueError, match=r"'vcd.strength' fits no method of var; write for example 'var.strength'"):
        wrap(llava.model, None, "var", **{"vcd.strength": 1.0})
    assert_pristine(llava.model)


def test_right_padding_equals_left_padding(llava):
    prompts = [PROMPT[0], Prompt(text_before=6, images=1, text_after=8, content=1)]
    left, right = llava.make_inputs(prompts), llava.make_inputs(prompts, padding_side="right")
    with wrap(llava.model, None, "var", **VAR_OPTIONS):
        first, second = logits(llava.model, left), logits(llava.model, right)
    for row in range(2):
        a = first[row][left["attention_mask"][row].bool()]
        b = second[row][right["attention_mask"][row].bool()]
        assert torch.allclose(a, b, atol=1e-4)


def test_pipeline_runs_guarded(llava, zoo_processor):
    from PIL import Image
    from transformers import pipeline

    processor = zoo_processor("llava")
    pipe = pipeline("image-text-to-text", model=llava.model, processor=processor)
    image = Image.new("RGB", (32, 32), (200, 30, 30))
    messages = [{"role": "user", "content": [{"type": "image", "image": image}, {"type": "text", "text": "w12 w13"}]}]
    plain = pipe(text=messages, max_new_tokens=6, return_full_text=False)
    with wrap(llava.model, processor, "var", **VAR_OPTIONS) as guard:
        guarded = pipe(text=messages, max_new_tokens=6, return_full_text=False)
        assert guard.state is not None and guard.state.active
    assert isinstance(plain[0]["generated_text"], str) and isinstance(guarded[0]["generated_text"], str)
    assert_pristine(llava.model)


def test_peft_lora_model_is_guarded(llava):
    peft = pytest.importorskip("peft")
    model = copy.deepcopy(llava.model)
    lora = peft.get_peft_model(model, peft.LoraConfig(r=2, target_modules=["q_proj", "o_proj"]))
    inputs = llava.make_inputs(PROMPT)
    plain = logits(lora, inputs)
    with wrap(lora, None, "var", **VAR_OPTIONS) as guard:
        assert not torch.equal(logits(lora, inputs), plain)
        assert guard.generate(**inputs, max_new_tokens=2).shape[1] == inputs["input_ids"].shape[1] + 2
        assert guard.state is not None and guard.state.prompt_length == inputs["input_ids"].shape[1]
    assert torch.equal(logits(lora, inputs), plain)


def test_peft_prompt_tuning_is_refused(llava):
    peft = pytest.importorskip("peft")
    model = copy.deepcopy(llava.model)
    config = peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3)
    tuned = peft.get_peft_model(model, config)
    with pytest.raises(ValueError, match="virtual tokens"):
        wrap(tuned, None, "none")


def test_trace_records_every_step(llava):
    inputs = llava.make_inputs(PROMPT)
    with wrap(llava.model, None, "none") as guard:
        with guard.trace() as trace:
            guard.generate(**inputs, max_new_tokens=4, do_sample=False)
        share = trace.visual_share(guard.state.visual)
        assert trace.steps == 4 and share.shape[:2] == (4, len(trace.layers))
        assert ((share > 0) & (share < 1)).all()
        assert trace.heat_map(guard.state.visual, step=3).shape == (llava.visual_tokens(PROMPT)[0],)
        with pytest.raises(ValueError, match="step 9 was not recorded"):
            trace.heat_map(guard.state.visual, step=9)
    assert_pristine(llava.model)


def test_trace_equals_the_models_own_attention(llava):
    inputs = llava.make_inputs(PROMPT)
    eager = build("llava")
    eager.model.set_attn_implementation({"text_config": "eager"})
    with torch.no_grad():
        attentions = eager.model(**inputs, output_attentions=True).attentions
    with wrap(llava.model, None, "none") as guard, guard.trace() as trace:
        logits(llava.model, inputs)
    for layer in trace.layers:
        assert torch.allclose(trace.weights[layer][0], attentions[layer][:, :, -1], atol=1e-5)


def test_import_does_not_load_torch():
    import subprocess
    import sys

    code = "import sys, vlm_guard; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
    assert vlm_guard.wrap is wrap


@pytest.mark.parametrize("given", ["vcd", "nonsense", PAI()])
def test_a_method_in_the_place_of_the_processor_is_refused(zoo_model, given):
    with pytest.raises(TypeError, match="second argument is the model's processor"):
        wrap(zoo_model("llava").model, given)
    assert_pristine(zoo_model("llava").model)


def test_a_removed_guard_does_not_answer(zoo_model):
    zoo = zoo_model("llava")
    guard = wrap(zoo.model, None, "pai")
    guard.remove()
    for choice in ({}, {"method": "none"}):
        with pytest.raises(ValueError, match="this guard was removed"):
            guard.generate(**zoo.make_inputs(PROMPT), max_new_tokens=2, **choice)
    guard.attach()
    guard.generate(**zoo.make_inputs(PROMPT), max_new_tokens=2)
    guard.remove()
