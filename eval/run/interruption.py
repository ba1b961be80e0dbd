"""Ctrl-C and SIGTERM, once and in every process: what is kept is said by one of them, and none waits for another.

SIGTERM is what a cluster sends when a job's time is over, some seconds before it kills.

A launcher (`torchrun`, `accelerate launch`) gets the terminal's signal as its processes do and passes it on to them, so
each of them gets it twice; one that waits for another's answers would wait until the launcher kills it.
"""

import os
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import NoReturn


class Terminated(KeyboardInterrupt):
    """SIGTERM came, in place of Ctrl-C."""


@contextmanager
def interrupted_once(numbers: Sequence[int] = (signal.SIGINT, signal.SIGTERM)) -> Iterator[None]:
    """Inside, the first of these signals raises KeyboardInterrupt; later ones cannot cut the end short.

    After an interrupt later signals stay without effect, until the process ends. In other threads than the main one
    nothing is changed: signals do not reach them.

    Args:
        numbers: the signals; SIGTERM raises `Terminated`, which is a KeyboardInterrupt.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(number: int, frame: FrameType | None) -> None:
        for each in numbers:
            signal.signal(each, signal.SIG_IGN)
        raise Terminated if number == signal.SIGTERM else KeyboardInterrupt

    before = {number: signal.signal(number, interrupt) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            if signal.getsignal(number) is interrupt:
                signal.signal(number, handler)


def kept_answers(out: Path, directories: Sequence[str]) -> int:
    """How many answers the files of a run hold: those of all its processes, in the folders of its methods."""
    files = [path for name in directories for path in (out / name).glob("samples*.jsonl")]
    return sum(path.read_bytes().count(b"\n") for path in files)


def leave(code: int) -> NoReturn:
    """End this process at once, without waiting for the other processes of its group or for its own threads.

    Records are on the disk batch by batch, and the lock of a folder goes with its process, so nothing is lost.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
