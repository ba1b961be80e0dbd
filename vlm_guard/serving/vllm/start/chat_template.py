"""The chat template that gives vLLM's chat endpoint the ids that the processor gives.

A processor puts the begin token in front of a rendered prompt where its tokenizer does so; vLLM's chat endpoint leaves
that to the template. For a template without it, requests would be read one token short.
"""

from typing import Any

BEGIN = "{{ bos_token }}"


def served_chat_template(processor: Any) -> str | None:
    """The model's chat template with the begin token in front; None where the template may stay as it is.

    Args:
        processor: of the model.
    """
    template, tokenizer = getattr(processor, "chat_template", None), getattr(processor, "tokenizer", None)
    if not isinstance(template, str) or tokenizer is None or tokenizer.bos_token is None:
        return None
    if "bos_token" in template or template.lstrip().startswith(tokenizer.bos_token):
        return None
    ids = tokenizer("a")["input_ids"]
    begins = len(ids) > 0 and ids[0] == tokenizer.bos_token_id
    return BEGIN + template if begins else None
