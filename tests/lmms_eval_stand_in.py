"""The part of lmms-eval that the plug-in touches, for machines without it.

Facts, from lmms-eval 0.7.3: `lmms` has `rank`, `cache_hook`, `task_dict`, `clean` and `create_from_arg_string`
(lmms_eval/api/model.py); argument strings are split at commas outside quotes and brackets, then at the first equals
sign, and values become truth values, whole numbers or numbers where they can (lmms_eval/utils.py); a manifest names a
simple and a chat class (lmms_eval/models/registry_v2.py); messages are checked by pydantic models with the media under
"url" (lmms_eval/protocol.py).
"""

import re
import sys
from dataclasses import dataclass
from types import ModuleType, SimpleNamespace
from typing import Any, Literal

from pydantic import BaseModel


class lmms:
    is_simple = True

    def __init__(self):
        self._rank, self._world_size = 0, 1
        self.cache_hook = SimpleNamespace(add_partial=lambda attribute, request, result: None)
        self.task_dict = {}

    rank = property(lambda self: self._rank)

    @classmethod
    def create_from_arg_string(cls, text, additional_config=None):
        pairs = re.findall(r"([^=,]+)=((?:\"[^\"]*\"|'[^']*'|[^,])*)", text)
        given = {name: value for name, value in (additional_config or {}).items() if value is not None}
        return cls(**{name: _value(value) for name, value in pairs}, **given)

    def clean(self):
        """Nothing to free here."""


def _value(text: str) -> Any:
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    if text.isnumeric():
        return int(text)
    try:
        return float(text)
    except ValueError:
        return text


@dataclass(frozen=True)
class ModelManifest:
    model_id: str
    simple_class_path: str | None = None
    chat_class_path: str | None = None


class Part(BaseModel):
    type: Literal["text", "image", "video", "audio"]
    text: str | None = None
    url: Any = None


class Message(BaseModel):
    role: Literal["user", "system", "assistant"]
    content: list[Part]


class ChatMessages(BaseModel):
    messages: list[Message]


def install(monkeypatch) -> None:
    """Let `import lmms_eval` find this for the length of a test."""
    contents = {
        "lmms_eval": {},
        "lmms_eval.api": {},
        "lmms_eval.api.model": {"lmms": lmms},
        "lmms_eval.models": {},
        "lmms_eval.models.registry_v2": {"ModelManifest": ModelManifest},
        "lmms_eval.protocol": {"ChatMessages": ChatMessages},
    }
    for name, items in contents.items():
        module = ModuleType(name)
        module.__dict__.update(items)
        monkeypatch.setitem(sys.modules, name, module)
