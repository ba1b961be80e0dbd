"""Compiled decode steps: one graph for all tokens and prompts, the same answers, and nothing left on the model."""

import warnings

import method_cases
import pytest
import torch
from transformers import CompileConfig

from vlm_guard import wrap
from vlm_guard.method.registry import method_class
from vlm_guard.methods.var import VAR
from zoo import Prompt, assert_pristine

torch.set_num_threads(1)
GRAPHS = []
STEPS = 6
PROMPTS = [
    Prompt(text_before=3, images=1, text_after=4, content=0),
    Prompt(text_before=9, images=1, text_after=6, content=1),
]
OTHER_PROMPTS = [
    Prompt(text_before=3, images=1, text_after=4, content=2),
    Prompt(text_before=9, images=1, text_after=6, content=3),
]
# Methods whose compiled step has something of its own: policies, gains, biases, scales, own values, two branches.
CASES = {
    "var": {},
    "pai": {},
    "paint": {},
    "act": {},
    "zerotuning": {},
    "vhr": {},
    "softpag": {"perturbation": "identity"},
    "vcd": {},
}


def counting(graph, inputs):
    GRAPHS.append(graph)
    return graph.forward


def compile_settings(backend=counting):
    settings = CompileConfig(fullgraph=True, backend=backend, mode=None)
    settings._compile_all_devices = True
    return settings


def run(model, inputs, **settings):
    if "compile_config" not in settings:
        settings["disable_compile"] = True
    length = {} if "max_length" in settings else {"max_new_tokens": STEPS, "min_new_tokens": STEPS}
    with torch.no_grad():
        output = model.generate(
            **inputs,
            **length,
            do_sample=False,
            cache_implementation="static",
            output_logits=True,
            return_dict_in_generate=True,
            **settings,
        )
    return output.sequences, torch.stack(output.logits)


def assert_same(actual, expected):
    assert torch.equal(actual[0], expected[0])
    assert torch.allclose(actual[1], expected[1], atol=2e-4, rtol=1e-5)


@pytest.fixture
def llava(zoo_model):
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    GRAPHS.clear()
    zoo = zoo_model("llava")
    yield zoo
    assert_pristine(zoo.model)


@pytest.mark.parametrize("method", CASES)
def test_one_graph_for_all_steps_and_prompts(llava, method):
    batches = [llava.make_inputs(PROMPTS), llava.make_inputs(OTHER_PROMPTS)]
    plain = run(llava.model, batches[0])
    with wrap(llava.model, None, method, **(method_cases.options(method) | CASES[method])):
        expected = [run(llava.model, inputs) for inputs in batches]
        assert not torch.equal(expected[0][1], plain[1])
        for inputs, wanted in zip(batches, expected):
            assert_same(run(llava.model, inputs, compile_config=compile_settings()), wanted)
            assert len(GRAPHS) == 1
    assert not torch._dynamo.utils.counters["graph_break"]
    assert torch.equal(run(llava.model, batches[0])[1], plain[1])


def test_prompts_of_other_lengths_share_the_graph_of_one_cache_size(llava):
    longer = [Prompt(text_before=6, images=1, text_after=5, content=2), Prompt(text_before=9, images=1, text_after=9)]
    batches = [llava.make_inputs(PROMPTS), llava.make_inputs(longer)]
    assert batches[0]["input_ids"].shape != batches[1]["input_ids"].shape
    length = batches[1]["input_ids"].shape[1] + STEPS
    with wrap(llava.model, None, "var", **method_cases.options("var")):
        expected = [run(llava.model, inputs, max_length=length) for inputs in batches]
        for inputs, wanted in zip(batches, expected):
            assert_same(run(llava.model, inputs, max_length=length, compile_config=compile_settings()), wanted)
    assert len(GRAPHS) == 1


def test_the_next_guard_with_the_same_methods_uses_the_graph(llava):
    inputs = llava.make_inputs(PROMPTS)
    plain = run(llava.model, inputs, compile_config=compile_settings())
    assert len(GRAPHS) == 1
    for strength, graphs in ((0.3, 2), (0.3, 2), (0.5, 3)):
        with wrap(llava.model, None, "act", threshold=0.05, layers="all", move_fraction=strength):
            expected = run(llava.model, inputs)
            assert_same(run(llava.model, inputs, compile_config=compile_settings()), expected)
        assert len(GRAPHS) == graphs
    assert torch.equal(run(llava.model, inputs, compile_config=compile_settings())[1], plain[1])
    assert len(GRAPHS) == 3
    for name in ("_compiled_call", "_last_compile_config"):  # left by transformers for the plain model
        delattr(llava.model, name)


def test_the_edit_of_a_compiled_step_does_not_depend_on_whether_a_prompt_has_sinks():
    visual, sinks = torch.tensor([[False, True, True]]), torch.zeros(1, 3, dtype=torch.bool)
    method = VAR(sink_dimensions="0")
    assert method._edit(visual, sinks, False) is None
    assert method._edit(visual, sinks, True) is not None


def test_a_prompt_in_chunks_and_a_traced_call_run_uncompiled(llava):
    inputs = llava.make_inputs(PROMPTS)
    with wrap(llava.model, None, "var", **method_cases.options("var")) as guard:
        with guard.trace() as trace:
            traced = run(llava.model, inputs, compile_config=compile_settings())
        assert trace.steps == STEPS and not GRAPHS
        expected = run(llava.model, inputs, prefill_chunk_size=8)
        assert_same(run(llava.model, inputs, prefill_chunk_size=8, compile_config=compile_settings()), expected)
        assert len(GRAPHS) == 1
    assert torch.allclose(traced[1], expected[1], atol=2e-4)


@pytest.mark.parametrize("method", ["iri", "dola", "gift"])
def test_methods_that_cannot_compile_say_so_once_and_run_uncompiled(llava, method):
    assert not method_class(method).compiles
    inputs = llava.make_inputs(PROMPTS)
    with wrap(llava.model, None, method, **method_cases.options(method)):
        expected = run(llava.model, inputs)
        with pytest.warns(UserWarning, match=f"{method} cannot run in a compiled decode step"):
            assert_same(run(llava.model, inputs, compile_config=compile_settings()), expected)
        with warnings.catch_warnings():
            warnings.filterwarnings("error", message=".*cannot run in a compiled decode step")
            assert_same(run(llava.model, inputs, compile_config=compile_settings()), expected)
    assert not GRAPHS


def test_a_growing_cache_runs_uncompiled(llava):
    inputs = llava.make_inputs(PROMPTS)
    given = llava.model.forward = torch.compile(llava.model.forward, backend=counting)
    try:
        with wrap(llava.model, None, "var", **method_cases.options("var")), torch.no_grad():
            with pytest.warns(UserWarning, match="DynamicCache grows; only a static cache"):
                llava.model.generate(**inputs, max_new_tokens=3, do_sample=False)
            assert not GRAPHS
        assert llava.model.forward is given
    finally:
        del llava.model.forward


def test_a_forward_compiled_before_wrapping_serves_the_decode_steps(llava):
    inputs = llava.make_inputs(PROMPTS)
    options = method_cases.options("var")
    with wrap(llava.model, None, "var", **options):
        expected = run(llava.model, inputs)
    given = llava.model.forward = torch.compile(llava.model.forward, backend=counting, fullgraph=True)
    try:
        with wrap(llava.model, None, "var", **options):
            for _ in range(2):
                assert_same(run(llava.model, inputs), expected)
        assert len(GRAPHS) == 1
        assert llava.model.forward is given
    finally:
        del llava.model.forward


def test_models_that_are_compiled_as_a_whole_are_refused(llava):
    with pytest.raises(ValueError, match="the model is compiled already"):
        wrap(torch.compile(llava.model), None, "none")
    for module in (llava.model, llava.model.get_decoder().layers[0]):
        module.compile()
        try:
            with pytest.raises(ValueError, match=r"compiled already.*Wrap the model before anything of it is compiled"):
                wrap(llava.model, None, "none")
        finally:
            del module._compiled_call_impl
    vars(llava.model).pop("_is_torch_compile", None)


def test_a_graph_of_a_layer_made_later_leaves_the_guard_out(llava):
    inputs = llava.make_inputs(PROMPTS)
    layer = llava.model.get_decoder().layers[1]
    with wrap(llava.model, None, "zerotuning", factor=0.3), torch.no_grad():
        expected = llava.model(**inputs).logits
        try:
            layer.forward = torch.compile(layer.forward, backend=counting)
            assert torch.allclose(llava.model(**inputs).logits, expected, atol=2e-4)
            assert GRAPHS
            del layer.forward
            torch._dynamo.reset()
            layer.forward = torch.compile(layer.forward, backend=counting, fullgraph=True)
            with pytest.raises(torch._dynamo.exc.Unsupported, match="a guard keeps what it knows"):
                llava.model(**inputs)
        finally:
            del layer.forward
