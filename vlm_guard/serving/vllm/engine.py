"""What vLLM's engine is started with, so that it serves guards."""

import os
from typing import Any

from vlm_guard.serving.vllm.declaration import Declaration
from vlm_guard.serving.vllm.versions import installed_version, refuse_untested

SCHEDULER = "vlm_guard.serving.vllm.scheduler.GuardedScheduler"
ROWS = "vlm_guard.serving.vllm.request_rows:GuardedRows"
FRONT_DOOR = "vlm_guard.serving.vllm.front_door.FrontDoor"


def engine_options(methods: str, default: str | None = None) -> dict[str, Any]:
    """The arguments of `vllm.LLM(...)` that make it serve guards; also declares them to the processes it starts.

    Args:
        methods: what is offered, such as "pai;m3id;strict=pai:gain=0.5".
        default: the offer of requests that name none; none leaves these plain.

    Returns:
        Keyword arguments for `vllm.LLM` or `vllm.AsyncEngineArgs`.

    Raises:
        ValueError: an unknown method, or one that cannot be served; the message says why.
        ImportError: vLLM is not installed, or in a version that was not tested.
    """
    declared = Declaration.read(methods, default)
    refuse_untested(installed_version())
    return guarded_options(declared)


def guarded_options(declared: Declaration) -> dict[str, Any]:
    """The same for what has been read already."""
    declared.write(os.environ)
    options: dict[str, Any] = {"scheduler_cls": SCHEDULER, "async_scheduling": False, "logits_processors": [ROWS]}
    return options | ({"enforce_eager": True} if declared.observes else {})


def server_flags(declared: Declaration) -> list[str]:
    """The same for the command line of vLLM's server."""
    declared.write(os.environ)
    flags = ["--scheduler-cls", SCHEDULER, "--no-async-scheduling", "--logits-processors", ROWS]
    return [*flags, "--middleware", FRONT_DOOR, *(["--enforce-eager"] if declared.observes else [])]
