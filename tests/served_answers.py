"""Answers of guards in transformers, which those of a server are held against.

Every answer must be the same token by token, and its log-probabilities the same within the rounding of float32.
"""

import json
from dataclasses import dataclass

import torch
from pytest import approx

from vlm_guard import builtin, wrap
from vlm_guard.eval.run.records import read_records
from vlm_guard.eval.run.results import read_results
from vlm_guard.families.profiles import Fact, Profile, all_profiles
from vlm_guard.grounding import ground
from vlm_guard.grounding.lens import LENS_FACT

ASK, LEADING = (
    "Please describe this image in detail.",
    "I think there is a dog in the image. Is there a dog in the image?",
)
NEW_TOKENS = 40
ROUNDING = 1e-4


def prompt_of(question, pictures=1):
    return f"USER: {'<image>' * pictures}\n{question} ASSISTANT:"


@dataclass(frozen=True, kw_only=True)
class Answer:
    """Token ids, and the most probable tokens of every step with their log-probabilities."""

    ids: list
    steps: list


class InTransformers:
    """Answers of the guard in transformers, each asked once."""

    def __init__(self, pictures, new_tokens=NEW_TOKENS):
        self.model, self.processor = builtin()
        self.pictures = pictures
        self.new_tokens = new_tokens
        self.known = {}

    def answers(self, offer, pictures=1):
        if (offer, pictures) not in self.known:
            guard = None if offer == "none" else wrap(self.model, self.processor, offer)
            shown = [self.pictures[index : index + pictures] for index in range(len(self.pictures) - pictures + 1)]
            self.known[offer, pictures] = [self.answer(offer, images) for images in shown]
            if guard is not None:
                guard.remove()
        return self.known[offer, pictures]

    def answer(self, offer, images):
        text = prompt_of(LEADING if offer == "lqcd" else ASK, len(images))
        inputs = self.processor(images=images, text=text, return_tensors="pt")
        options = {"do_sample": False, "max_new_tokens": self.new_tokens, "output_logits": True}
        with torch.inference_mode():
            output = self.model.generate(**inputs, **options, return_dict_in_generate=True)
        steps = [logits[0].float().log_softmax(-1) for logits in output.logits]
        best = [dict(zip(step.topk(5).indices.tolist(), step.topk(5).values.tolist())) for step in steps]
        return Answer(ids=output.sequences[0, inputs["input_ids"].shape[1] :].tolist(), steps=best)


def assert_same(answer, ids, steps):
    """Hold token ids, and by step the log-probabilities of some tokens, against an answer."""
    assert ids == answer.ids
    for step, best in zip(steps, answer.steps, strict=True):
        # What the plausibility cut has ruled out lies beyond the rounding of float32.
        shared = [token for token in step.keys() & best.keys() if best[token] > -100]
        assert shared and all(abs(step[token] - best[token]) < ROUNDING for token in shared)


SCORED = (
    "The image shows a zebra with a giraffe. There is a truck too.",
    "A person stands beside an umbrella and a dining table.",
    "There is a cat in front of a tv.",
)


def lens_profiles(folder, layers=(0, 3, 6)):
    """A folder of profiles, with which the built-in model's lens reads these layers, by default the last, too."""
    shipped = all_profiles(shipped_only=True)
    own = next(profile for profile in shipped if profile.name == "builtin")
    fact = Fact(value=list(layers), source="code")
    Profile(name="builtin", match=own.match, facts={LENS_FACT: fact}).save(folder / "builtin.json")
    return str(folder)


def conversation(images, answer):
    """What `vlm_guard.serving.vllm.ground` is asked about pictures and an answer."""
    content = [{"type": "image_pil", "image_pil": image} for image in images]
    return [
        {"role": "user", "content": [*content, {"type": "text", "text": ASK}]},
        {"role": "assistant", "content": answer},
    ]


def grounded_in_transformers(asked, settings=None):
    """The answers (pictures, text) with their scores in transformers, each alone."""
    model, processor = builtin()
    guard = wrap(model, processor, "none")
    found = []
    for images, text in asked:
        ids = processor.tokenizer.encode(text, add_special_tokens=False)
        inputs = processor(images=images, text=prompt_of(ASK, len(images)), return_tensors="pt")
        found += ground(guard, inputs, torch.tensor([ids]), settings)
    guard.remove()
    return found


def assert_same_mentions(found, expected):
    """Hold answers with their scores against those of transformers; both as JSON can hold them."""
    assert len(found) == len(expected) and expected
    for mine, other in zip(found, (mention.to_dict() for mention in expected), strict=True):
        parts, wanted = mine.pop("parts"), other.pop("parts")
        assert parts.keys() == wanted.keys() and all(abs(parts[name] - wanted[name]) < ROUNDING for name in wanted)
        score, reference = mine.pop("score"), other.pop("score")
        assert (score is None) == (reference is None) and abs((score or 0) - (reference or 0)) < ROUNDING
        assert json.loads(json.dumps(mine)) == json.loads(json.dumps(other))


def assert_scored_alike(served, here):
    """Hold the records and results of a run of the task `grounding` against those of one in transformers."""
    for left, right in zip(read_results(served).methods, read_results(here).methods, strict=True):
        records, expected = (
            read_records(run / method.directory / "samples.jsonl")[0] for run, method in ((served, left), (here, right))
        )
        assert records.keys() == expected.keys()
        for key, record in records.items():
            mine, other = record["score"], expected[key]["score"]
            assert record["text"] == expected[key]["text"] and mine["repaired"] == other["repaired"]
            assert len(mine["mentions"]) == len(other["mentions"])
            for mention, wanted in zip(mine["mentions"], other["mentions"], strict=True):
                parts, reference = mention.pop("parts"), wanted.pop("parts")
                assert parts == approx(reference, abs=ROUNDING)
                assert mention.pop("score") == approx(wanted.pop("score"), abs=ROUNDING)
                assert mention == wanted
        assert any(record["score"]["mentions"] for record in records.values())
        for name, estimate in left.estimates.items():
            assert estimate.value == approx(right.estimates[name].value, abs=10 * ROUNDING), name
