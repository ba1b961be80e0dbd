"""One picture, one prompt, one or several methods: the answers side by side."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from PIL import Image

from vlm_guard import wrap
from vlm_guard.eval.run.generation import Decoding, generate_batch
from vlm_guard.eval.run.models import LoadedModel
from vlm_guard.eval.run.prompting import find_template
from vlm_guard.eval.run.settings import MethodSpec


@dataclass(frozen=True, kw_only=True)
class MethodAnswer:
    """What a method answered.

    Attributes:
        method: its label.
        text: the answer.
        tokens: generated tokens.
        seconds: time inside `generate`.
    """

    method: str
    text: str
    tokens: int
    seconds: float


def ask(
    loaded: LoadedModel,
    picture: Image.Image,
    prompt: str,
    specs: Sequence[MethodSpec],
    *,
    decoding: Decoding | None = None,
    max_new_tokens: int = 256,
    seed: int = 0,
    attention_backend: str | None = None,
    template: str | None = None,
) -> list[MethodAnswer]:
    """Answer `prompt` about a picture with each method.

    Raises:
        ValueError: a method cannot be applied to this model.
    """
    chosen = find_template(loaded.processor, template)
    inputs = chosen.encode(loaded.processor, [picture], [prompt])
    answers = []
    for spec in specs:
        with wrap(loaded.model, loaded.processor, list(spec.methods), attention_backend=attention_backend):
            batch = generate_batch(loaded.model, loaded.processor, inputs, decoding or Decoding(), max_new_tokens, seed)
        answer: Any = batch.answers[0]
        answers.append(MethodAnswer(method=spec.label, text=answer.text, tokens=answer.tokens, seconds=batch.seconds))
    return answers
