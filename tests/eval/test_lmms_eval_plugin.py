"""The model vlm_guard of lmms-eval, on the real lmms-eval where it is installed and else on a stand-in for it."""

import importlib
import importlib.util
import subprocess
import sys
import tomllib
from pathlib import Path
from types import SimpleNamespace

import lmms_eval_stand_in
import pytest
import torch
from PIL import Image
from transformers import Qwen2VLImageProcessor

from vlm_guard import wrap
from vlm_guard.eval.lmms_eval_plugin import manifest
from vlm_guard.eval.lmms_eval_plugin.decoding import DEFAULT_MAX_NEW_TOKENS, read_gen_kwargs
from vlm_guard.eval.lmms_eval_plugin.models import AVAILABLE_MODELS
from vlm_guard.eval.lmms_eval_plugin.pixel_limits import limit_pixels
from vlm_guard.eval.lmms_eval_plugin.questions import from_context, from_messages
from vlm_guard.eval.run.models import load_model
from vlm_guard.eval.run.prompting import find_template
from vlm_guard.eval.scenes.render import render
from vlm_guard.runtime.installation import GUARD_ATTRIBUTE

PLUGIN = "vlm_guard.eval.lmms_eval_plugin"
MODULE = f"{PLUGIN}.models.vlm_guard"
OPTIONS = {
    "m3id.forgetting": 0.4,
    "m3id.plausibility": 0,
    "var.sink_dimensions": "1,2",
    "var.min_visual_mass": 0,
    "var.min_content_share": 0,
    "var.sink_threshold": 1,
}
METHOD = "method=var+m3id," + ",".join(
    f"{name}='{value}'" if isinstance(value, str) else f"{name}={value}" for name, value in OPTIONS.items()
)
PROMPTS = ("Please describe this image in detail.", "Is there a dog in the image?", "Describe the image.")
GREEDY = {"temperature": 0, "do_sample": False, "top_p": 1.0, "num_beams": 1}


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def plugin(monkeypatch):
    """The module that lmms-eval imports."""
    if importlib.util.find_spec("lmms_eval") is None:
        lmms_eval_stand_in.install(monkeypatch)
    monkeypatch.delitem(sys.modules, MODULE, raising=False)
    yield importlib.import_module(MODULE)
    sys.modules.pop(MODULE, None)


@pytest.fixture(scope="module")
def pictures():
    return [Image.fromarray(render("common", 7, number).pixels) for number in range(3)]


@pytest.fixture(scope="module")
def expected(pictures):
    """Answers of a guarded generate called by hand, one prompt at a time, at most 12 tokens; and unguarded ones."""
    loaded = load_model("builtin", device="cpu")
    template = find_template(loaded.processor)

    def answer(picture, prompt):
        inputs = template.encode(loaded.processor, [picture], [prompt])
        output = loaded.model.generate(**inputs, do_sample=False, max_new_tokens=12)
        new = output[0, inputs["input_ids"].shape[1] :]
        return loaded.processor.decode(new, skip_special_tokens=True).strip()

    plain = [answer(*pair) for pair in zip(pictures, PROMPTS)]
    with wrap(loaded.model, loaded.processor, "var+m3id", **OPTIONS):
        return [answer(*pair) for pair in zip(pictures, PROMPTS)], plain


def make(cls, arguments="", batch_size="2"):
    """A model as the evaluator makes it; the batch size of the command line comes as text."""
    return cls.create_from_arg_string(f"pretrained=builtin,{arguments}".rstrip(","), {"batch_size": batch_size})


def requests_of(lm, pictures, settings, prompts=PROMPTS):
    """A task of one document per picture, asked in the form that `lm` reads."""
    lm.task_dict = {
        "scenes": {"test": [{"images": [picture], "text": text} for picture, text in zip(pictures, prompts)]}
    }
    rows = []
    for place, (text, own) in enumerate(zip(prompts, settings)):
        if lm.is_simple:
            arguments = (text, own, lambda document: document["images"], place, "scenes", "test")
        else:
            arguments = (text, to_messages, own, place, "scenes", "test")
        rows.append(SimpleNamespace(args=arguments))
    return rows


def to_messages(document):
    media = [{"type": "image", "url": picture} for picture in document["images"]]
    return [{"role": "user", "content": [*media, {"type": "text", "text": document["text"]}]}]


@pytest.mark.parametrize("name", ["VLMGuard", "VLMGuardChat"])
def test_answers_are_those_of_a_guarded_generate_in_the_order_of_the_requests(plugin, pictures, expected, name):
    lm = make(getattr(plugin, name), METHOD)
    # The middle request is generated after the other two: it has settings of its own.
    settings = [
        {**GREEDY, "max_new_tokens": 12},
        {"do_sample": False, "max_new_tokens": 12},
        {**GREEDY, "max_new_tokens": 12},
    ]
    kept = []
    lm.cache_hook = SimpleNamespace(add_partial=lambda kind, request, text: kept.append((request[0], text)))
    guarded, plain = expected
    assert lm.generate_until(requests_of(lm, pictures, settings)) == guarded
    assert guarded != plain
    assert kept == [(PROMPTS[place], guarded[place]) for place in (0, 2, 1)]


def test_options_arrive_and_the_guard_goes_when_lmms_eval_cleans_up(plugin):
    lm = make(plugin.VLMGuard, METHOD)
    model = lm.guarded.model
    assert [bound.method.name for bound in lm.guarded.guard.methods] == ["var", "m3id"]
    for name, value in OPTIONS.items():
        method, option = name.split(".")
        bound = next(bound for bound in lm.guarded.guard.methods if bound.method.name == method)
        assert getattr(bound.method, option) == value
    assert GUARD_ATTRIBUTE in model.__dict__ and lm.device == model.device
    lm.clean()
    lm.clean()
    assert GUARD_ATTRIBUTE not in model.__dict__
    with pytest.raises(ValueError, match="released"):
        lm.guarded.answer([from_context("Anything?", [])], read_gen_kwargs({}))


def test_method_none_leaves_the_model_unguarded(plugin, pictures, expected):
    lm = make(plugin.VLMGuardChat, "method=none")
    assert lm.guarded.guard is None and GUARD_ATTRIBUTE not in lm.guarded.model.__dict__
    assert lm.generate_until(requests_of(lm, pictures, [{"max_new_tokens": 12}] * 3)) == expected[1]


def test_the_attention_function_is_the_one_asked_for(plugin):
    for name in ("eager", "sdpa"):
        lm = make(plugin.VLMGuard, f"method=none,attn_implementation={name}")
        assert lm.guarded.model.config._attn_implementation == name
    with pytest.raises(ValueError, match="eagle"):
        make(plugin.VLMGuard, "method=none,attn_implementation=eagle")


@pytest.mark.parametrize("number", ["10", "1e1", "true", "'10'"])
def test_options_that_are_texts_stay_texts(plugin, number):
    given = lmms_eval_stand_in._value(number)
    assert plugin._read_options({"var.layers": given}) == {"var.layers": {"1e1": "10.0"}.get(number, number.strip("'"))}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("method=vcdd", "Did you mean 'vcd'"),
        ("method=var,var.fraction=0.5", "no option 'fraction'"),
        ("method=var,vcd.strength=1", "fits no method"),
        ("method=none,var.move_fraction=0.5", "fits no method"),
        ("method=var,move_fraction=0.5", "no argument 'move_fraction'.*var.move_fraction=0.5"),
        ("method=var,dtype=int3", "dtype is 'int3'"),
    ],
)
def test_what_is_unknown_is_named(plugin, arguments, message):
    with pytest.raises(ValueError, match=message):
        make(plugin.VLMGuard, arguments)


@pytest.mark.parametrize("size", ["auto", "0", "2.5"])
def test_batch_sizes_are_whole_numbers(plugin, size):
    with pytest.raises(ValueError, match="batch_size"):
        make(plugin.VLMGuard, batch_size=size)


def test_stop_strings_end_an_answer(plugin, pictures, expected):
    whole = expected[0][0]
    word = whole.split()[2]
    lm = make(plugin.VLMGuard, METHOD)
    answers = lm.generate_until(
        requests_of(lm, pictures[:1], [{"max_new_tokens": 12, "until": [word]}], prompts=PROMPTS[:1])
    )
    assert answers == [whole[: whole.index(word)].strip()]


def test_questions_without_and_with_several_pictures_share_a_batch(plugin, pictures):
    documents = [{"images": pictures[:2], "text": PROMPTS[0]}, {"images": [], "text": PROMPTS[1]}]
    documents.append({"images": pictures[2:], "text": PROMPTS[2]})
    answers = {}
    for size in ("3", "1"):
        lm = make(plugin.VLMGuardChat, "method=none", batch_size=size)
        lm.task_dict = {"scenes": {"test": documents}}
        rows = [("", to_messages, {"max_new_tokens": 6}, place, "scenes", "test") for place in range(3)]
        answers[size] = lm.generate_until([SimpleNamespace(args=arguments) for arguments in rows])
    assert answers["3"] == answers["1"] and all(answers["1"])


def test_what_cannot_be_run_says_what_can(plugin):
    lm = make(plugin.VLMGuard, "method=none")
    for call in (lm.loglikelihood, lm.generate_until_multi_round):
        with pytest.raises(ValueError, match="generate_until, and this one is"):
            call([])


def test_several_processes_take_a_gpu_each(plugin, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert [plugin._device_of_process(device) for device in ("auto", "cuda", "cpu")] == ["cuda:1", "cuda:1", "cpu"]
    monkeypatch.setenv("WORLD_SIZE", "1")
    assert plugin._device_of_process("auto") == "auto"


def test_pictures_stand_where_a_text_or_a_message_puts_them(pictures, tmp_path):
    kinds = [part["type"] for part in from_context("first <image> then <image>?", pictures[:2]).turns[0]["content"]]
    assert kinds == ["text", "image", "text", "image", "text"]
    content = from_context("only <image> one mark", pictures[:2]).turns[0]["content"]
    assert content == [{"type": "image"}, {"type": "image"}, {"type": "text", "text": "only <image> one mark"}]
    file = tmp_path / "picture.png"
    pictures[0].save(file)
    turns = [
        {"role": "system", "content": [{"type": "text", "text": "Be brief."}]},
        {"role": "user", "content": [{"type": "text", "text": "What"}, {"type": "image", "url": str(file)}]},
    ]
    question = from_messages(turns)
    assert [turn["role"] for turn in question.turns] == ["system", "user"]
    assert question.turns[1]["content"] == [{"type": "text", "text": "What"}, {"type": "image"}]
    assert question.images[0].tobytes() == pictures[0].tobytes()


def test_videos_and_sound_are_refused(tmp_path):
    video = tmp_path / "film.mp4"
    video.write_bytes(b"not a picture")
    for visuals in ([str(video)], [{"array": [0.0], "sampling_rate": 16000}], [str(tmp_path / "absent.png")]):
        with pytest.raises(ValueError, match=r"pictures only|there is no picture"):
            from_context("What happens?", visuals)
    with pytest.raises(ValueError, match="gives a video"):
        from_messages([{"role": "user", "content": [{"type": "video", "url": "film.mp4"}]}])


def test_a_processor_without_a_chat_template_takes_single_questions(zoo_processor, pictures):
    processor = zoo_processor("llava")
    processor.chat_template = None
    template = find_template(processor)
    assert from_context("what is it ?", pictures[:2]).render(processor, template) == (
        "USER: <image><image>\nwhat is it ? ASSISTANT:"
    )
    turns = [{"role": role, "content": [{"type": "text", "text": "hello"}]} for role in ("user", "assistant", "user")]
    with pytest.raises(ValueError, match="no chat template"):
        from_messages(turns).render(processor, template)


@pytest.mark.parametrize(
    ("asked", "sampling"),
    [
        ({}, None),
        ({"temperature": 0}, None),
        ({"temperature": 0, "do_sample": True}, None),
        ({"temperature": 0.7, "do_sample": False, "top_p": 0.9}, None),
        ({"temperature": 0.7}, {"temperature": 0.7, "top_p": 1.0, "top_k": 0}),
        ({"do_sample": True, "top_p": 0.9, "top_k": 5}, {"temperature": 1.0, "top_p": 0.9, "top_k": 5}),
    ],
)
def test_temperature_zero_is_greedy(asked, sampling):
    decoding = read_gen_kwargs(asked)
    found = {name: decoding.arguments[name] for name in ("temperature", "top_p", "top_k")}
    assert decoding.arguments["do_sample"] is (sampling is not None)
    assert found == (sampling or dict.fromkeys(found))
    assert decoding.arguments["max_new_tokens"] == DEFAULT_MAX_NEW_TOKENS


def test_other_settings_are_passed_on_or_named():
    decoding = read_gen_kwargs({"until": "\n\n", "num_beams": 3, "max_new_tokens": 7.0, "seed": 5})
    assert decoding.stop_strings == ("\n\n",) and decoding.seed == 5
    assert decoding.arguments["num_beams"] == 3 and decoding.arguments["max_new_tokens"] == 7
    assert read_gen_kwargs({"until": ["b", "", "a", "b"]}).cut(" one a two b") == "one"
    with pytest.warns(UserWarning, match="image_aspect_ratio"):
        read_gen_kwargs({"image_aspect_ratio": "original"})
    for wrong in ({"until": 3}, {"temperature": -1}):
        with pytest.raises(ValueError, match="allowed"):
            read_gen_kwargs(wrong)


def test_a_seed_makes_sampled_answers_repeatable(plugin, pictures):
    lm = make(plugin.VLMGuard, "method=none")
    asked = requests_of(lm, pictures[:1], [{"temperature": 3.0, "max_new_tokens": 8, "seed": 11}], prompts=PROMPTS[:1])
    assert lm.generate_until(asked) == lm.generate_until(asked)


def test_lmms_eval_finds_both_classes(plugin):
    found = manifest()
    entry = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text(encoding="utf-8"))
    assert entry["project"]["entry-points"]["lmms_eval.models"] == {found.model_id: f"{PLUGIN}:manifest"}
    for path, simple in ((found.simple_class_path, True), (found.chat_class_path, False)):
        module, name = path.rsplit(".", 1)
        assert module == MODULE and getattr(plugin, name).is_simple is simple
    assert f"{PLUGIN}.models.{found.model_id}.{AVAILABLE_MODELS[found.model_id]}" == found.simple_class_path


def test_without_lmms_eval_asking_for_the_plugin_says_how_to_install_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "lmms_eval", None)
    for name in [name for name in sys.modules if name.startswith("lmms_eval.")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.delitem(sys.modules, MODULE, raising=False)
    for ask in (manifest, lambda: importlib.import_module(MODULE)):
        with pytest.raises(ImportError, match=r"pip install 'lmms-eval>=0\.7'"):
            ask()


def test_importing_vlm_guard_imports_no_lmms_eval():
    code = "import sys, vlm_guard, vlm_guard.eval.lmms_eval_plugin.models; print('lmms_eval' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_pixel_limits_of_qwen_decide_how_many_visual_tokens_there_are(pictures):
    processor = SimpleNamespace(image_processor=Qwen2VLImageProcessor())
    large = pictures[0].resize((448, 448))

    def patches() -> int:
        return int(processor.image_processor(images=[large], return_tensors="pt")["image_grid_thw"].prod())

    before = patches()
    limit_pixels(processor, None, None)
    assert patches() == before
    limit_pixels(processor, 28 * 28, 112 * 112)
    few = patches()
    limit_pixels(processor, 448 * 448, 896 * 896)
    assert few <= 112 * 112 // 14**2 < patches()
    for limits, message in (
        ((0, None), "allowed: whole numbers from 1"),
        ((None, 1.5), "allowed: whole numbers from 1"),
        ((900 * 900, None), "the first must not be larger"),
    ):
        with pytest.raises(ValueError, match=message):
            limit_pixels(processor, *limits)


def test_pixel_limits_are_refused_where_the_processor_has_none(plugin):
    with pytest.raises(ValueError, match="has none: leave both out"):
        make(plugin.VLMGuard, "max_pixels=200704")
