"""From a picture and a question to a model's inputs, by the processor's own chat template."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from PIL.Image import Image

PLAIN_TEMPLATE = "USER: {image}\n{prompt} ASSISTANT:"


@dataclass(frozen=True, kw_only=True)
class PromptTemplate:
    """How a prompt is put to a model.

    Attributes:
        source: "chat template" (the processor's), "plain" (the processor has none: the LLaVA-1.5 form without system
            sentence, `PLAIN_TEMPLATE`) or "given" (by the user).
        text: the Jinja chat template, or a format string with {image} and {prompt}.
    """

    source: str
    text: str

    def describe(self) -> dict[str, str]:
        """Source and sha256 of the template, for results; the text too unless it is a long chat template."""
        described = {"source": self.source, "sha256": hashlib.sha256(self.text.encode()).hexdigest()}
        return described if self.source == "chat template" else {**described, "text": self.text}

    def render(self, processor: Any, prompt: str) -> str:
        """The text a model reads for a prompt with one image, before image tokens are expanded."""
        if self.source == "chat template":
            content = [{"type": "image"}, {"type": "text", "text": prompt}]
            return processor.apply_chat_template(
                [{"role": "user", "content": content}], add_generation_prompt=True, tokenize=False
            )
        token = getattr(processor, "image_token", None)
        if token is None:
            raise ValueError(
                f"{type(processor).__name__} has neither a chat template nor an image token, so no prompt can be made "
                "for it; choose a checkpoint with a chat template"
            )
        return self.text.replace("{image}", token).replace("{prompt}", prompt)

    def ids(self, processor: Any, prompt: str) -> list[int]:
        """The token ids of a prompt with one image, the image one placeholder that is not yet repeated."""
        text, tokenizer = self.render(processor, prompt), getattr(processor, "tokenizer", processor)
        return list(tokenizer(text, add_special_tokens=not _begins(tokenizer, text))["input_ids"])

    def encode(self, processor: Any, images: Sequence[Image], prompts: Sequence[str]) -> Any:
        """The padded model inputs of a batch, one image per prompt, on the CPU."""
        texts = [self.render(processor, prompt) for prompt in prompts]
        options: dict[str, Any] = {"padding": True, "return_tensors": "pt"}
        tokenizer = getattr(processor, "tokenizer", processor)
        if _begins(tokenizer, texts[0]):
            options["add_special_tokens"] = False  # the template has written it already
        return processor(images=[[image] for image in images], text=texts, **options)


def _begins(tokenizer: Any, text: str) -> bool:
    """Whether a text has its begin token already."""
    return tokenizer.bos_token is not None and text.startswith(tokenizer.bos_token)


def find_template(processor: Any, given: str | None = None) -> PromptTemplate:
    """The template to use: the given one, the processor's chat template, or the plain LLaVA-1.5 form.

    Raises:
        ValueError: the given template lacks {image} or {prompt}.
    """
    if given is not None:
        if "{image}" not in given or "{prompt}" not in given:
            raise ValueError(f"the template {given!r} must contain {{image}} and {{prompt}}")
        return PromptTemplate(source="given", text=given)
    template = getattr(processor, "chat_template", None)
    if isinstance(template, dict):
        template = template.get("default")
    if template:
        return PromptTemplate(source="chat template", text=template)
    return PromptTemplate(source="plain", text=PLAIN_TEMPLATE)
