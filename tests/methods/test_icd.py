"""ICD: where the disturbance goes in plain and chat prompts, and that the branch reads it."""

import pytest
import torch
from PIL import Image

from vlm_guard import builtin, wrap
from vlm_guard.methods.icd.method import DISTURBANCES, ICD
from vlm_guard.methods.icd.system_message import system_format, with_system_message
from zoo import Prompt
from zoo.prompts import BOS, IMAGE, IMAGE_START

START, END = 8, 9  # special tokens that open and close a turn


class Tokenizer:
    """Ids 0 to 9 are special."""

    all_special_ids = list(range(10))
    bos_token_id = BOS


@pytest.mark.parametrize(
    ("place", "ids", "position"),
    [
        ("auto", [BOS, 50, 51, IMAGE, IMAGE, 52], 1),  # words after BOS: where LLaVA's system message stands
        ("auto", [BOS, IMAGE, IMAGE, 52], 1),
        ("auto", [START, 50, END, START, 51, IMAGE_START, IMAGE, 52], 5),  # roles: in front of the image's marker
        ("auto", [BOS, START, 50, IMAGE, 52], 3),
        ("start", [START, 50, IMAGE, 52], 0),
        ("user", [BOS, 50, IMAGE, 52], 2),
        ("user", [BOS, 50, 52], 1),  # no image
    ],
)
def test_place_of_the_disturbance(place, ids, position):
    assert ICD(place=place)._position(ids, Tokenizer(), (IMAGE,), frozenset({IMAGE_START})) == position


@pytest.mark.parametrize("name", DISTURBANCES)
def test_every_disturbance_changes_the_answer(zoo_model, zoo_processor, name):
    zoo = zoo_model("llava")
    inputs = zoo.make_inputs([Prompt()])
    record = {"return_dict_in_generate": True, "output_logits": True, "max_new_tokens": 2, "do_sample": False}
    plain = zoo.model.generate(**inputs, **record)
    with wrap(zoo.model, zoo_processor("llava"), "icd", disturbance=name) as guard:
        disturbed = guard.generate(**inputs, **record)
    assert float((plain.logits[0] - disturbed.logits[0]).abs().max()) > 1e-3


def test_it_needs_a_processor(zoo_model):
    with pytest.raises(ValueError, match="processor"):
        wrap(zoo_model("llava").model, None, "icd")


LLAVA = (
    "{% for m in messages %}{% if m['role'] != 'system' %}{{ m['role'].upper() + ': ' }}{% endif %}"
    "{% for part in m['content'] if part['type'] == 'image' %}<image>\n{% endfor %}"
    "{% for part in m['content'] if part['type'] == 'text' %}{{ part['text'] + ' ' }}{% endfor %}{% endfor %}"
    "{% if add_generation_prompt %}ASSISTANT:{% endif %}"
)
_TURNS = (
    "{% for m in messages %}[{{ m['role'] }}]\n{% for part in m['content'] %}"
    "{% if part['type'] == 'image' %}<image>{% else %}{{ part['text'] }}{% endif %}{% endfor %}[end]\n{% endfor %}"
    "{% if add_generation_prompt %}[assistant]\n{% endif %}"
)
# Qwen2-VL's template adds a message of its own to a chat without one, Qwen3-VL's does not.
ADDS_ITS_OWN = "{% if messages[0]['role'] != 'system' %}[system]\nYou are helpful.[end]\n{% endif %}" + _TURNS
REFUSES = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system role') }}{% endif %}" + _TURNS
WORDS = "You are a confused object detector."


def chat(*turns):
    return [{"role": role, "content": [{"type": "text", "text": text}]} for role, text in turns]


@pytest.fixture(scope="module")
def real():
    return builtin()[1]


def replaced(processor, template, text, words=WORDS):
    """The text of a prompt after the replacement, or None; what stays must keep its tokens and places."""
    processor.chat_template = template
    tokenizer = processor.tokenizer
    ids = [tokenizer.bos_token_id, *tokenizer.encode(text, add_special_tokens=False)]
    places = list(range(len(ids)))
    found = with_system_message(ids, places, len(ids), words, tokenizer, template and system_format(processor))
    if found is None:
        return None
    new, kept = found
    assert all(ids[place] == token for token, place in zip(new, kept) if place >= 0) and new[0] == ids[0]
    assert [place for place in kept if place >= 0] == sorted(place for place in kept if place >= 0)
    return tokenizer.decode(new[1:])


@pytest.mark.parametrize(
    ("template", "text", "expected"),
    [
        (LLAVA, "A chat between two. USER: \nIs it? ASSISTANT:", f"{WORDS} USER: \nIs it? ASSISTANT:"),
        (LLAVA, "USER: \nIs it? ASSISTANT:", f"{WORDS} USER: \nIs it? ASSISTANT:"),
        (_TURNS, "[system]\nBe kind.[end]\n[user]\nIs it?[end]\n", f"[system]\n{WORDS}[end]\n[user]\nIs it?[end]\n"),
        (_TURNS, "[user]\nIs it?[end]\n", f"[system]\n{WORDS}[end]\n[user]\nIs it?[end]\n"),
        (ADDS_ITS_OWN, "[system]\nYou are helpful.[end]\n[user]\nIs?", f"[system]\n{WORDS}[end]\n[user]\nIs?"),
        (ADDS_ITS_OWN, "[user]\nIs it?[end]\n", None),
        (REFUSES, "[user]\nIs it?[end]\n", None),
        (None, "A chat between two. USER: \nIs it? ASSISTANT:", f"{WORDS} USER: \nIs it? ASSISTANT:"),
        (None, "USER: \nIs it? ASSISTANT:", None),
        (None, "Question: is it? Answer:", None),
    ],
)
def test_the_system_message_is_replaced_where_the_format_has_one(real, template, text, expected):
    assert replaced(real, template, text) == expected


def test_own_words_may_hold_braces(real):
    assert replaced(real, _TURNS, "[user]\nIs it?", "{x} {words} {}") == "[system]\n{x} {words} {}[end]\n[user]\nIs it?"


def test_the_branch_of_a_prompt_with_a_system_message_is_the_released_one():
    """Replaced, the branch is the prompt that the disturbance makes as system message; inserted, it is another one."""
    model, processor = builtin()
    picture = Image.new("RGB", (96, 96), (40, 90, 200))

    def prompt(system):
        text = f"{system} USER: <image>\nIs there a dog? ASSISTANT:".lstrip()
        return processor(text=text, images=[picture], return_tensors="pt")

    record = {"return_dict_in_generate": True, "output_logits": True, "max_new_tokens": 1, "do_sample": False}
    given = prompt("A chat between a curious human and an assistant.")
    plain = model.generate(**given, **record).logits[0]
    disturbed = model.generate(**prompt(DISTURBANCES["confused"]), **record).logits[0]
    with wrap(model, processor, "icd", plausibility=0.0) as guard:
        found = guard.generate(**given, **record).logits[0]
    assert torch.allclose(found, 2 * plain - disturbed, atol=1e-4)
    with wrap(model, processor, "icd", plausibility=0.0, place="start") as guard:
        inserted = guard.generate(**given, **record).logits[0]
    assert float((inserted - found).abs().max()) > 0.05
