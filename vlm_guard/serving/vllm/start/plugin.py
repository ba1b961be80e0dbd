"""What vLLM calls in each of its processes (entry point `vllm.general_plugins`); nothing where nothing is declared."""

import logging
from typing import TYPE_CHECKING, Any

from vlm_guard.serving.vllm.declaration import Declaration
from vlm_guard.serving.vllm.start.devices import this_device
from vlm_guard.serving.vllm.start.engine import is_second_runner
from vlm_guard.serving.vllm.versions import installed_version, refuse_untested

_log = logging.getLogger(__name__)
if TYPE_CHECKING:
    from vllm.config import VllmConfig


def register() -> None:
    """Put the guarded attention backend in the place of vLLM's, if methods are declared.

    Raises:
        ImportError: this vLLM is outside of the tested range.
        ValueError: what is declared cannot be served.
    """
    declared = Declaration.of_environment()
    if declared is None:
        return
    refuse_untested(installed_version())
    from vllm.v1.attention.backends.registry import register_backend

    device = this_device()
    register_backend(_replaced(), device.backend)
    if device.untested:
        _log.warning("guards on this device: %s (docs/serving.md)", device.untested)
    _forget_chosen_backend()
    if is_second_runner():
        from vlm_guard.serving.vllm.runners.second_runner import follow_requests

        follow_requests()
    elif declared.contrasts:
        from vlm_guard.serving.vllm.runners.shared_tokens import share_sampled_tokens

        share_sampled_tokens()
    if declared.observes:
        from vlm_guard.serving.vllm.runners.layer_inputs import show_layer_inputs

        show_layer_inputs()


def withdraw() -> None:
    """Give vLLM its own attention backend back, for the engines that are started from now on in this process."""
    _replaced().clear_override()
    _forget_chosen_backend()


def _replaced() -> Any:
    """The entry of vLLM's attention backends whose place the guarded one takes."""
    from vllm.v1.attention.backends.registry import AttentionBackendEnum

    return AttentionBackendEnum[this_device().replaced]


def _forget_chosen_backend() -> None:
    """An engine asks once for its backend, and later ones of the process would be given the same."""
    from vllm.v1.attention import selector

    selector._cached_get_attn_backend.cache_clear()


def refuse_unregistered(vllm_config: "VllmConfig") -> None:
    """Refuse an engine whose attention backend is not the guarded one.

    Raises:
        ValueError: vLLM did not load the plug-in, runs on a device without a guarded backend, or was told to use
            another backend.
    """
    device = this_device()
    if _replaced().get_path() != device.backend:
        raise ValueError(
            "vLLM did not load vlm_guard's plug-in, so nothing would be guarded: install the package (not only its "
            "folder on the path), and name vlm_guard in VLLM_PLUGINS where that is set"
        )
    asked = vllm_config.attention_config.backend
    if device.chosen and asked != _replaced():
        raise ValueError(
            f"guards on this device need --attention-backend {device.replaced} (it is "
            f"{'left to vLLM' if asked is None else asked.name}), or nothing would be guarded; 'vlm-guard serve' and "
            "engine_options set it"
        )
