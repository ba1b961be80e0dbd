"""A forward pass that pauses inside, so that two passes can go through the layers of one model side by side.

Python's generators cannot pause inside somebody else's function, so the second pass has a thread of its own. The two
never run at the same time: whoever hands over waits.
"""

import queue
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from vlm_guard.early_exit import StopForward


@dataclass(frozen=True)
class _Paused:
    value: Any


@dataclass(frozen=True)
class _Ended:
    error: BaseException | None


class _Abandon:
    """Sent to a paused pass that nobody will go on with."""


class SteppedPass:
    """A function that runs up to its next `pause` whenever it is told to.

    Args:
        run: what to run; it calls `pause` of this object, and is stopped early by `StopForward`.
        device_type: "cpu", "cuda", ...: whose mixed precision and current stream it runs under.
    """

    def __init__(self, run: Callable[[], None], device_type: str) -> None:
        self._run = run
        self._device_type = device_type
        self._thread: threading.Thread | None = None
        self._ended = False
        self._inwards: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._outwards: queue.SimpleQueue[_Paused | _Ended] = queue.SimpleQueue()

    def advance(self) -> Any | None:
        """Run up to the next pause.

        Returns:
            What is paused with, or None when there was no further pause.

        Raises:
            Exception: whatever the pass raised.
        """
        if self._ended:
            return None
        if self._thread is None:
            settings = _thread_settings(self._device_type)
            self._thread = threading.Thread(target=self._work, args=(settings,), name="second stream", daemon=True)
            self._thread.start()
        else:
            self._inwards.put(None)
        return self._hear()

    def pause(self, value: Any) -> None:
        """Inside the pass: hand `value` over and wait until the pass is to go on."""
        self._outwards.put(_Paused(value))
        if self._inwards.get() is _Abandon:
            raise StopForward

    def close(self) -> None:
        """Abandon a pass that has not come to its end; called again, or afterwards, it does nothing."""
        if self._thread is not None and not self._ended:
            self._inwards.put(_Abandon)
            self._hear()

    def _hear(self) -> Any | None:
        message = self._outwards.get()
        if isinstance(message, _Paused):
            return message.value
        self._ended = True
        self._thread.join()
        if message.error is not None:
            raise message.error
        return None

    def _work(self, settings: Callable[[], Any]) -> None:
        error = None
        try:
            with settings():
                self._run()
        except StopForward:
            pass
        except BaseException as raised:
            # Not lost: it is raised again where the pass is waited for.
            error = raised
        self._outwards.put(_Ended(error))


def _thread_settings(device_type: str) -> Callable[[], Any]:
    """What torch keeps per thread, as it is now: gradients, inference mode, mixed precision, and the current stream."""
    gradients, inference = torch.is_grad_enabled(), torch.is_inference_mode_enabled()
    mixed, precision = torch.is_autocast_enabled(device_type), torch.get_autocast_dtype(device_type)
    stream = torch.cuda.current_stream() if device_type == "cuda" else None

    @contextmanager
    def settings() -> Iterator[None]:
        with ExitStack() as stack:
            if stream is not None:
                stack.enter_context(torch.cuda.stream(stream))
            stack.enter_context(torch.inference_mode(inference))
            stack.enter_context(torch.set_grad_enabled(gradients))
            stack.enter_context(torch.autocast(device_type, dtype=precision, enabled=mixed))
            yield

    return settings
