"""Switching a decoder's attention implementation, following it when it is changed, and switching it back.

transformers keeps the implementation's name in the configuration object, which several models may share. A switch is
therefore counted per configuration object: the first guard changes the name, the last one restores it. Whoever sets
another implementation meanwhile (`model.set_attn_implementation(...)`, an assignment to the configuration) is followed:
unedited rows then run that one, and it is what the last guard leaves behind.
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
    name: str
    guards: int


_switched: dict[int, _Switched] = {}
_lock = threading.Lock()


def switch_attention(architecture: Architecture) -> list[Any]:
    """Route the decoder's attention through the project's function; returns the configurations to restore."""
    return switch_modules(layer.attention for layer in architecture.layers)


def switch_modules(modules: Iterable[nn.Module]) -> list[Any]:
    """The same for any attention modules that ask transformers' interface, such as those of a vision tower."""
    configs: dict[int, Any] = {id(module.config): module.config for module in modules}
    with _lock:
        for key, config in configs.items():
            if key in _switched:
                _switched[key].guards += 1
                continue
            previous = config._attn_implementation or "eager"
            # A configuration copied from a guarded model carries our name; what it stands for is in the name.
            previous = previous.removeprefix(PREFIX)
            name = guarded_name(previous)
            config._attn_implementation_internal = name
            _switched[key] = _Switched(config, previous, name, 1)
    return list(configs.values())


def follow_attention() -> None:
    """Guard the implementation that somebody has set since a switch, if anybody has.

    Raises:
        ValueError: that implementation has no mask function, so it cannot be guarded.
    """
    for entry in tuple(_switched.values()):
        config = entry.config
        if config._attn_implementation_internal == entry.name:
            continue
        with _lock:
            wanted = (config._attn_implementation_internal or "eager").removeprefix(PREFIX)
            try:
                entry.name = guarded_name(wanted)
            except KeyError:
                raise ValueError(
                    f"the attention implementation was set to {wanted!r} after wrap, which has no mask function "
                    "registered with transformers, so it cannot be guarded; set another one, or remove the guard"
                ) from None
            entry.previous = wanted
            config._attn_implementation_internal = entry.name


def restore_attention(configs: list[Any]) -> None:
    """Undo one `switch_attention` or `switch_modules`; an implementation set meanwhile stays."""
    with _lock:
        for config in configs:
            entry = _switched[id(config)]
            entry.guards -= 1
            if entry.guards == 0:
                if config._attn_implementation_internal == entry.name:
                    config._attn_implementation_internal = entry.previous
                del _switched[id(config)]
