"""From what lmms-eval's tasks hand over to chat turns with pictures."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from vlm_guard.eval.run.prompting import PromptTemplate
from vlm_guard.untrusted.picture_reader import read_picture

_IMAGE_MARK = "<image>"


@dataclass(frozen=True, kw_only=True)
class Question:
    """One prompt.

    Attributes:
        turns: as chat templates read them: {"role": ..., "content": [{"type": "image"} or
            {"type": "text", "text": ...}, ...]}.
        images: RGB pictures in the order of the turns' image parts.
    """

    turns: tuple[dict[str, Any], ...]
    images: tuple[Image.Image, ...]

    def render(self, processor: Any, template: PromptTemplate) -> str:
        """The text the model reads, before image tokens are expanded.

        Raises:
            ValueError: the processor has no chat template, and the question is not a single turn of the user.
        """
        if template.source == "chat template":
            return processor.apply_chat_template(list(self.turns), add_generation_prompt=True, tokenize=False)
        token = getattr(processor, "image_token", None)
        if token is None or [turn["role"] for turn in self.turns] != ["user"]:
            raise ValueError(
                f"{type(processor).__name__} has no chat template, so only single questions of a user can be put to "
                "it, and only where it names an image token; choose a checkpoint with a chat template"
            )
        parts = self.turns[0]["content"]
        text = "".join(part["text"] for part in parts if part["type"] == "text")
        return template.text.replace("{image}", token * len(self.images)).replace("{prompt}", text)


def from_context(context: str, visuals: Sequence[Any] | None) -> Question:
    """A question of a task in lmms-eval's simple form: a text and a list of pictures.

    The pictures come first, unless the text has exactly as many `<image>` marks as there are pictures, which then
    say where each belongs.

    Raises:
        ValueError: something among `visuals` is no picture.
    """
    images = tuple(_as_image(visual) for visual in visuals or ())
    pieces = context.split(_IMAGE_MARK)
    if not images or len(pieces) - 1 != len(images):
        content = [*({"type": "image"} for _ in images), {"type": "text", "text": context}]
    else:
        content = []
        for place, piece in enumerate(pieces):
            content += [{"type": "image"}] if place else []
            content += [{"type": "text", "text": piece}] if piece.strip() else []
    return Question(turns=({"role": "user", "content": content},), images=images)


def from_messages(messages: Sequence[Mapping[str, Any]]) -> Question:
    """A question of a task in lmms-eval's chat form: messages of typed parts, media under "url".

    Raises:
        ValueError: a part is a video or sound, or not what it says it is.
    """
    images: list[Image.Image] = []
    turns = []
    for message in messages:
        content = []
        for part in message["content"]:
            if part["type"] == "text":
                content.append({"type": "text", "text": part["text"]})
            elif part["type"] == "image":
                images.append(_as_image(part["url"]))
                content.append({"type": "image"})
            else:
                raise ValueError(_refusal(part["type"]))
        turns.append({"role": message["role"], "content": content})
    return Question(turns=tuple(turns), images=tuple(images))


def _as_image(visual: Any) -> Image.Image:
    if isinstance(visual, Image.Image):
        return visual.convert("RGB")
    if isinstance(visual, str | Path):
        try:
            return read_picture(Path(visual))
        except FileNotFoundError:
            raise ValueError(f"there is no picture {visual}") from None
        except OSError as error:
            raise ValueError(f"{_refusal('file that is no picture')}: {visual}") from error
    raise ValueError(_refusal(type(visual).__name__))


def _refusal(given: str) -> str:
    return (
        f"this task gives a {given}; the model vlm_guard of lmms-eval reads text and pictures only "
        "(PIL images or image files), so choose a task of pictures"
    )
