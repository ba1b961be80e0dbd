"""Questions without a picture and SmolLM2's own answers to them, repeated while it learns to read pictures.

What a language model is not asked during training it forgets. The answers are its own, greedy, from before the first
step; nothing new is taught here. No question is about France: a test asks for its capital.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
from transformers import PreTrainedTokenizerBase

from vlm_guard.eval.scenes.draws import Draws
from vlm_guard.families.architecture import GenerativeModel
from vlm_guard.smol_model.layout import CHAT_TEMPLATE, EOS
from vlm_guard.whole_files import write_atomically

_COUNTRIES = """
Italy, Spain, Germany, Portugal, Poland, Austria, Greece, Norway, Sweden, Finland, Denmark, Ireland, Hungary, Turkey,
Egypt, Kenya, Morocco, Japan, China, India, Thailand, Vietnam, Indonesia, Australia, Canada, Mexico, Brazil, Argentina,
Chile, Peru, Cuba, Iceland
"""
_THINGS = """
water, iron, glass, wood, paper, music, sleep, rain, snow, gravity, electricity, a volcano, a river, a desert,
a library, a museum, a bicycle, a computer, a telescope, a novel, a poem, a violin, a tree, an atom, a planet, money,
bread, cheese, friendship, democracy, history, mathematics
"""
_FORMS = (
    "What is {x}?",
    "Explain {x} in one sentence.",
    "Why is {x} important?",
    "Write a short sentence about {x}.",
    "Tell me something about {x}.",
    "Give me three words that go with {x}.",
)
TextPairs = list[tuple[list[int], list[int]]]
"""Token ids of prompts and of answers, the end of the text included where it was reached."""

_LONGEST = 40
_AT_ONCE = 32


def text_questions(count: int, seed: int) -> list[str]:
    """Different questions about capitals, sums and things, at most about 400."""
    countries = [name.strip() for name in _COUNTRIES.split(",")]
    things = [name.strip() for name in _THINGS.split(",")]
    draws = Draws(seed, 4_000)
    capitals = [f"What is the capital of {country}?" for country in countries]
    sums = [f"What is {draws.between(2, 30)} plus {draws.between(2, 30)}?" for _ in range(len(countries))]
    others = [form.format(x=thing) for thing in things for form in _FORMS]
    return draws.sample(sorted({*capitals, *sums, *others}), count)


def text_prompt(tokenizer: PreTrainedTokenizerBase, question: str) -> str:
    """The prompt of a conversation without a picture, as SmolLM2 has it."""
    chat = [{"role": "user", "content": question}]
    return str(
        tokenizer.apply_chat_template(chat, chat_template=CHAT_TEMPLATE, add_generation_prompt=True, tokenize=False)
    )


@torch.no_grad()
def own_answers(
    path: Path, model: GenerativeModel, tokenizer: PreTrainedTokenizerBase, count: int, seed: int
) -> TextPairs:
    """Token ids of prompts and of SmolLM2's answers, at most 40 tokens each; kept in `path`.

    Args:
        path: a JSON file; read if it is there.
        model: SmolLM2 as it came.
        tokenizer: pads on the left.
        count: how many questions.
        seed: which.
    """
    if path.is_file():
        return read_answers(path)
    questions = text_questions(count, seed)
    items = []
    for start in range(0, len(questions), _AT_ONCE):
        some = questions[start : start + _AT_ONCE]
        inputs = tokenizer([text_prompt(tokenizer, question) for question in some], padding=True, return_tensors="pt")
        width = inputs["input_ids"].shape[1]
        given = model.generate(**inputs, max_new_tokens=_LONGEST, do_sample=False, pad_token_id=EOS, eos_token_id=EOS)
        for question, ids, real, tokens in zip(some, inputs["input_ids"], inputs["attention_mask"], given):
            answer = tokens[width:].tolist()
            answer = answer[: answer.index(EOS) + 1] if EOS in answer else answer
            text = tokenizer.decode(answer, skip_special_tokens=True)
            items.append({"question": question, "text": text, "prompt": ids[real.bool()].tolist(), "answer": answer})
    write_atomically(path, json.dumps(items, indent=0) + "\n")
    return read_answers(path)


def read_answers(path: Path) -> TextPairs:
    """What `own_answers` kept."""
    return [(item["prompt"], item["answer"]) for item in json.loads(path.read_text(encoding="utf-8"))]
