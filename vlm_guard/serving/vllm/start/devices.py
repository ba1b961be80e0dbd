"""On which devices guards run inside vLLM, and with which of its attention backends."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Device:
    """A kind of device.

    Attributes:
        replaced: the name of vLLM's attention backend that is replaced.
        backend: the path of the guarded one.
        chosen: whether vLLM has other backends for the device, so that this one has to be asked for.
        untested: what has not been tried there; "" where everything has.
    """

    replaced: str
    backend: str
    chosen: bool
    untested: str = ""


_BACKENDS = "vlm_guard.serving.vllm.backends"
_ON_GPUS = "all of it was run in Triton's interpreter on a CPU, and none of it on a GPU yet; compare some answers"
DEVICES = {
    "cpu": Device(replaced="CPU_ATTN", backend=f"{_BACKENDS}.cpu.GuardedCPUBackend", chosen=False),
    "cuda": Device(
        replaced="TRITON_ATTN",
        backend=f"{_BACKENDS}.triton.GuardedTritonBackend",
        chosen=True,
        untested=_ON_GPUS,
    ),
}
"""By the name of vLLM's platform."""


def this_device() -> Device:
    """The device that vLLM runs on here.

    Raises:
        ValueError: guards do not run there.
    """
    from vllm.platforms import current_platform

    found = DEVICES.get(str(current_platform._enum.name).lower())
    if found is None:
        raise ValueError(
            f"guards inside vLLM run on CPUs and NVIDIA GPUs, and this is {current_platform.device_name}; use "
            "wrap(model, processor, ...) with transformers"
        )
    return found
