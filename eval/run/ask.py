"""One picture, one prompt, one or several methods: the answers side by side."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from PIL import Image

from vlm_guard import wrap
from vlm_guard.eval.run.generation import Decoding, generate_batch
from vlm_guard.eval.run.method_findings import why_unchanged
from vlm_guard.eval.run.models import LoadedModel
from vlm_guard.eval.run.prompting import find_template
from vlm_guard.eval.run.settings import MethodSpec
from vlm_guard.grounding.answers import ground
from vlm_guard.grounding.mention import Mention
from vlm_guard.grounding.repair import Repaired
from vlm_guard.grounding.settings import Grounding


@dataclass(frozen=True, kw_only=True)
class MethodAnswer:
    """What a method answered.

    Attributes:
        method: its label.
        text: the answer.
        tokens: generated tokens.
        seconds: time inside `generate`.
        mentions: what it mentions, scored, where that was asked for.
        repaired: the answer after its repair, where that was asked for.
        unchanged: why the method changed nothing, where its answer is the plain model's, which was asked before it.
    """

    method: str
    text: str
    tokens: int
    seconds: float
    mentions: tuple[Mention, ...] | None = None
    repaired: Repaired | None = None
    unchanged: str = ""

    def to_dict(self, width: int, height: int, scores_apply: bool = True) -> dict[str, Any]:
        """The answer as JSON can hold it, boxes in fractions and in pixels of a picture of this size.

        Args:
            width: of the picture, in pixels.
            height: of the picture, in pixels.
            scores_apply: False where the model cannot know this kind of picture; said beside the mentions then.
        """
        found: dict[str, Any] = {name: getattr(self, name) for name in ("method", "text", "tokens", "seconds")}
        if self.mentions is not None:
            found["mentions"] = [_mention_entry(mention, width, height) for mention in self.mentions]
            if not scores_apply:
                found["scores_apply"] = False
        if self.repaired is not None:
            found["repaired"] = asdict(self.repaired)
        if self.unchanged:
            found["unchanged"] = self.unchanged
        return found


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
    grounding: Grounding | None = None,
) -> list[MethodAnswer]:
    """Answer `prompt` about a picture with each method.

    Raises:
        ValueError: a method cannot be applied to this model, or its mentions cannot be scored.
    """
    chosen = find_template(loaded.processor, template)
    inputs = chosen.encode(loaded.processor, [picture], [prompt])
    answers = []
    plain = None
    for spec in specs:
        with wrap(loaded.model, loaded.processor, list(spec.methods), attention_backend=attention_backend) as guard:
            batch = generate_batch(loaded.model, loaded.processor, inputs, decoding or Decoding(), max_new_tokens, seed)
            unchanged = why_unchanged(guard) if batch.answers[0].text == plain else ""
            scored = None if grounding is None else ground(guard, batch.inputs, batch.output, grounding)[0]
        answer: Any = batch.answers[0]
        if [method.name for method in spec.methods] == ["none"]:
            plain = answer.text
        answers.append(
            MethodAnswer(
                method=spec.label,
                # The places of mentions are counted in the text that they were found in.
                text=answer.text if scored is None else scored.text,
                tokens=answer.tokens,
                seconds=batch.seconds,
                mentions=None if scored is None else tuple(scored.mentions),
                repaired=None if scored is None else scored.repaired,
                unchanged=unchanged,
            )
        )
    return answers


def _mention_entry(mention: Mention, width: int, height: int) -> dict[str, Any]:
    pixels = None if mention.box is None else list(mention.box.pixels(width, height))
    return {**mention.to_dict(), "box_pixels": pixels}
