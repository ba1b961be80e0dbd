"""What vLLM calls in each of its processes (entry point `vllm.general_plugins`); nothing where nothing is declared."""

from vlm_guard.serving.vllm.declaration import Declaration
from vlm_guard.serving.vllm.versions import installed_version, refuse_untested

BACKEND = "vlm_guard.serving.vllm.cpu_backend.GuardedCPUBackend"


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
    from vllm.v1.attention.backends.registry import AttentionBackendEnum, register_backend

    register_backend(AttentionBackendEnum.CPU_ATTN, BACKEND)
    _forget_chosen_backend()
    if declared.contrasts:
        from vlm_guard.serving.vllm.shared_tokens import share_sampled_tokens

        share_sampled_tokens()
    if declared.observes:
        from vlm_guard.serving.vllm.layer_inputs import show_layer_inputs

        show_layer_inputs()


def withdraw() -> None:
    """Give vLLM its own attention backend back, for the engines that are started from now on in this process."""
    from vllm.v1.attention.backends.registry import AttentionBackendEnum

    AttentionBackendEnum.CPU_ATTN.clear_override()
    _forget_chosen_backend()


def _forget_chosen_backend() -> None:
    """An engine asks once for its backend, and later ones of the process would be given the same."""
    from vllm.v1.attention import selector

    selector._cached_get_attn_backend.cache_clear()


def refuse_unregistered() -> None:
    """Refuse an engine whose attention backend is not the guarded one.

    Raises:
        ValueError: vLLM did not load the plug-in, or runs on something else than a CPU.
    """
    from vllm.platforms import current_platform
    from vllm.v1.attention.backends.registry import AttentionBackendEnum

    if not current_platform.is_cpu():
        raise ValueError(
            f"guards inside vLLM run on its CPU backend only, and this is {current_platform.device_name}; on a GPU use "
            "wrap(model, processor, ...) with transformers"
        )
    if AttentionBackendEnum.CPU_ATTN.get_path() != BACKEND:
        raise ValueError(
            "vLLM did not load vlm_guard's plug-in, so nothing would be guarded: install the package (not only its "
            "folder on the path), and name vlm_guard in VLLM_PLUGINS where that is set"
        )
