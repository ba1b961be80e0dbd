"""A loaded, guarded model that answers questions in batches; knows nothing of lmms-eval."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from vlm_guard import Guard, wrap
from vlm_guard.eval.lmms_eval_plugin.decoding import TaskDecoding
from vlm_guard.eval.lmms_eval_plugin.pixel_limits import limit_pixels
from vlm_guard.eval.lmms_eval_plugin.questions import Question
from vlm_guard.eval.run.generation import read_answers
from vlm_guard.eval.run.models import load_model
from vlm_guard.eval.run.prompting import find_template
from vlm_guard.eval.run.settings import parse_methods
from vlm_guard.families.architecture import inference_device


class GuardedModel:
    """A model with its processor and its guard.

    Args:
        pretrained: "builtin", "smol", a folder or a Hugging Face id.
        method: as in `wrap`; "none" leaves the model unguarded.
        options: the methods' options by dotted name ("var.move_fraction"), as text.
        dtype, device, device_map, revision, trust_remote_code, pack_weights: as in `load_model`.
        attn_implementation: transformers' name of an attention function; None keeps the checkpoint's.
        min_pixels, max_pixels: as in `limit_pixels`.

    Attributes:
        model: the model, guarded; None after `release`.
        processor: pads on the left.
        guard: None with the method "none" and after `release`.
        device: where the inputs go.

    Raises:
        ValueError: unknown methods or options, a model that cannot be loaded or guarded.
    """

    def __init__(
        self,
        pretrained: str,
        method: str,
        options: Mapping[str, str],
        *,
        dtype: str = "auto",
        device: str = "auto",
        device_map: str | None = None,
        attn_implementation: str | None = None,
        revision: str | None = None,
        trust_remote_code: bool = False,
        min_pixels: int | None = None,
        max_pixels: int | None = None,
        pack_weights: bool = False,
    ) -> None:
        methods = parse_methods([method], options)[0].methods  # before loading, which can take minutes
        loaded = load_model(
            pretrained,
            dtype=dtype,
            device=device,
            device_map=device_map,
            revision=revision,
            trust_remote_code=trust_remote_code,
            pack_weights=pack_weights,
        )
        self.model: Any = loaded.model
        self.processor = loaded.processor
        limit_pixels(self.processor, min_pixels, max_pixels)
        self.device: torch.device = inference_device(loaded.model)
        if attn_implementation is not None:
            self.model.set_attn_implementation(attn_implementation)
        self.template = find_template(self.processor)
        guarded = [item.name for item in methods] != ["none"]
        self.guard: Guard | None = wrap(self.model, self.processor, list(methods)) if guarded else None

    def answer(self, questions: Sequence[Question], decoding: TaskDecoding) -> list[str]:
        """The answers of one batch, in the order of the questions.

        Questions with and without pictures are generated apart, as processors want a picture in every row or in none.

        Raises:
            ValueError: the model was released.
        """
        if self.model is None:
            raise ValueError("this model was released after its last answer; load it anew")
        answers: list[str] = [""] * len(questions)
        for pictured in (True, False):
            places = [place for place, question in enumerate(questions) if bool(question.images) is pictured]
            if places:
                texts = self._generate([questions[place] for place in places], decoding)
                for place, text in zip(places, texts):
                    answers[place] = text
        return answers

    def release(self) -> None:
        """Remove the guard and let go of the model. Calling it again does nothing."""
        if self.guard is not None:
            self.guard.remove()
        self.guard = self.model = None

    def _generate(self, questions: Sequence[Question], decoding: TaskDecoding) -> list[str]:
        inputs = self._encode(questions).to(self.device, dtype=self.model.dtype)
        arguments = dict(decoding.arguments)
        if decoding.stop_strings:
            arguments["stop_strings"] = list(decoding.stop_strings)
            arguments["tokenizer"] = getattr(self.processor, "tokenizer", self.processor)
        if decoding.seed is not None:
            torch.manual_seed(decoding.seed)
        with torch.inference_mode():
            output = self.model.generate(**inputs, **arguments)
        rows = read_answers(self.model, self.processor, output, inputs["input_ids"])
        return [decoding.cut(row.text) for row in rows]

    def _encode(self, questions: Sequence[Question]) -> Any:
        texts = [question.render(self.processor, self.template) for question in questions]
        options: dict[str, Any] = {"padding": True, "return_tensors": "pt"}
        tokenizer = getattr(self.processor, "tokenizer", self.processor)
        if tokenizer.bos_token is not None and texts[0].startswith(tokenizer.bos_token):
            options["add_special_tokens"] = False  # the template has written it already
        if questions[0].images:
            options["images"] = [list(question.images) for question in questions]
        return self.processor(text=texts, **options)
