"""What vLLM's engine is started with, so that it serves guards."""

import os
from typing import Any

from vlm_guard.serving.vllm.declaration import Declaration
from vlm_guard.serving.vllm.start.devices import this_device
from vlm_guard.serving.vllm.versions import installed_version, refuse_untested

SCHEDULER = "vlm_guard.serving.vllm.scheduling.scheduler.GuardedScheduler"
FRONT_DOOR = "vlm_guard.serving.vllm.front.front_door.FrontDoor"
WORKER = "vlm_guard.serving.vllm.grounding.worker.LensWorker"
RUNNER = "VLLM_USE_V2_MODEL_RUNNER"
"""vLLM's environment variable that says which of its model runners is taken; 1 is the second."""
_RUNNERS = "vlm_guard.serving.vllm.runners"
_ROWS = {False: f"{_RUNNERS}.first_runner:GuardedRows", True: f"{_RUNNERS}.second_runner:GuardedSlots"}


def engine_options(methods: str = "", default: str | None = None, grounding: str | None = None) -> dict[str, Any]:
    """The arguments of `vllm.LLM(...)` that make it serve guards; also declares them to the processes it starts.

    Args:
        methods: what is offered, such as "pai;m3id;strict=pai:gain=0.5".
        default: the offer of requests that name none; none leaves these plain.
        grounding: what is measured of mentions, such as "lens,self_check"; see `vlm_guard.serving.vllm.ground`.

    Returns:
        Keyword arguments for `vllm.LLM` or `vllm.AsyncEngineArgs`.

    Raises:
        ValueError: an unknown method, or one that cannot be served; the message says why.
        ImportError: vLLM is not installed, or in a version that was not tested.
    """
    declared = Declaration.read(methods, default, grounding)
    refuse_untested(installed_version())
    return guarded_options(declared)


def guarded_options(declared: Declaration) -> dict[str, Any]:
    """The same for what has been read already."""
    declared.write(os.environ)
    os.environ.setdefault(RUNNER, "0")
    rows = _ROWS[is_second_runner()]
    options: dict[str, Any] = {"scheduler_cls": SCHEDULER, "async_scheduling": False, "logits_processors": [rows]}
    if declared.observes:
        options["enforce_eager"] = True
    if "lens" in declared.grounding:
        options["worker_extension_cls"] = WORKER
    device = this_device()
    if device.chosen:
        options["attention_backend"] = device.replaced
    return options


def server_flags(declared: Declaration) -> list[str]:
    """The same for the command line of vLLM's server."""
    flags = ["--no-async-scheduling", "--middleware", FRONT_DOOR]
    options = guarded_options(declared)
    flags += ["--scheduler-cls", options["scheduler_cls"], "--logits-processors", *options["logits_processors"]]
    if "worker_extension_cls" in options:
        flags += ["--worker-extension-cls", options["worker_extension_cls"]]
    if "attention_backend" in options:
        flags += ["--attention-backend", options["attention_backend"]]
    return [*flags, *(["--enforce-eager"] if options.get("enforce_eager") else [])]


def is_second_runner() -> bool:
    """Whether this process is told to use vLLM's second model runner."""
    return os.environ.get(RUNNER, "0").strip().lower() in ("1", "true")
