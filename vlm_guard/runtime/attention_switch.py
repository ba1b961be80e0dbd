"""Switching a decoder's attention implementation, and switching it back.

transformers keeps the implementation's name in the configuration object, which several models may share. A switch is
therefore counted per configuration object: the first guard changes the name, the last one restores it.
"""

import threading
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from torch import nn

from vlm_guard.families.architecture import Architecture
from vlm_guard.runtime.attention import PREFIX, guarded_name


@dataclass
class _Switched:
    config: Any
    previous: str
    guards: int


_switched: dict[int, _Switched] = {}
_lock = threading.Lock()


def switch_attention(architecture: Architecture) -> list[Any]:
    """Route the decoder's attention through the project's function; returns the configurations to restore."""
    return switch_modules(layer.attention for layer in architecture.layers)


def switch_modules(modules: Iterable[nn.Module]) -> list[Any]:
    """The same for any attention modules that ask transformers' interface, such as those of a vision tower."""
    configs = {id(module.config): module.config for module in modules}
    with _lock:
        for key, config in configs.items():
            if key in _switched:
                _switched[key].guards += 1
                continue
            previous = config._attn_implementation or "eager"
            if previous.startswith(PREFIX):
                # A configuration copied from a guarded model carries our name; what it stands for is in the name.
                previous = previous.removeprefix(PREFIX)
            name = guarded_name(previous)
            config._attn_implementation_internal = name
            _switched[key] = _Switched(config, previous, 1)
    return list(configs.values())


def restore_attention(configs: list[Any]) -> None:
    """Undo one `switch_attention` or `switch_modules`."""
    with _lock:
        for config in configs:
            entry = _switched[id(config)]
            entry.guards -= 1
            if entry.guards == 0:
                config._attn_implementation_internal = entry.previous
                del _switched[id(config)]
