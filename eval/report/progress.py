"""How far a run is: bars with the time left on a terminal, elsewhere a line a minute, and what Ctrl-C leaves."""

import threading
import time
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as RichProgress

from vlm_guard.untrusted.printed_text import one_line

SECONDS_BETWEEN_LINES = 60


def _bars(console: Console) -> RichProgress:
    """Bars with the estimated time left, which print nothing where the output is no terminal."""
    return RichProgress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        console=console,
        speed_estimate_period=3600,  # batches of large models take minutes
        transient=True,
        disable=not console.is_terminal,
    )


class MeasurementBars:
    """One bar for each measurement of a calibration; a context that shows them and takes them away."""

    def __init__(self, console: Console) -> None:
        self._bars = _bars(console)
        self._tasks: dict[str, Any] = {}

    def __enter__(self) -> "MeasurementBars":
        self._bars.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._bars.stop()

    def show(self, measurement: str, done: int, total: int) -> None:
        """Move a measurement's bar to `done` of `total`."""
        if measurement not in self._tasks:
            self._tasks[measurement] = self._bars.add_task(measurement, total=total)
        self._bars.update(self._tasks[measurement], completed=done)


class ProgressBar:
    """How far a run is: a bar with the estimated time left, or a line a minute where the output is no terminal.

    Args:
        console: where it is shown.
        between: seconds from line to line, however long a batch takes.

    Attributes:
        total: answers of all methods; 0 before the start.
        done: how many of them there are, those of earlier starts among them.
    """

    def __init__(self, console: Console, between: float = SECONDS_BETWEEN_LINES) -> None:
        self.total = self.done = 0
        self._console = console
        self._between = between
        self._bar = _bars(console)
        self._task: TaskID | None = None
        self._began = 0.0
        self._earlier = 0
        self._ended = threading.Event()
        self._teller: threading.Thread | None = None

    def note(self, sentence: str) -> None:
        """Say something at once."""
        self._console.print(one_line(sentence), soft_wrap=True, markup=False, highlight=False)

    def start(self, total: int, done: int) -> None:
        """Show the bar, or begin with the lines; `done` answers are there already."""
        self.total, self.done, self._earlier = total, done, done
        self._began = time.monotonic()
        self._bar.start()
        self._task = self._bar.add_task("answers", total=total, completed=done)
        if not self._console.is_terminal:
            self._ended.clear()
            self._teller = threading.Thread(target=self._tell, name="progress", daemon=True)
            self._teller.start()

    def advance(self, count: int, method: str) -> None:
        """Move the bar on by so many answers of a method."""
        self.done = min(self.total, self.done + count)
        if self._task is not None:
            self._bar.update(self._task, advance=count, description=method)

    def stop(self) -> None:
        """Take the bar away, or end the lines."""
        self._bar.stop()
        self._ended.set()
        if self._teller is not None:
            self._teller.join()
            self._teller = None

    def _tell(self) -> None:
        while not self._ended.wait(self._between):
            line = self.line(time.monotonic() - self._began)
            self._console.print(line, soft_wrap=True, markup=False, highlight=False)

    def line(self, gone: float) -> str:
        """How far the run is after so many seconds, and how long it will take where that can be told."""
        share = f"{self.done} of {self.total} answers ({100 * self.done // max(1, self.total)} %) after {span(gone)}"
        new = self.done - self._earlier
        return f"{share}, about {span(gone * (self.total - self.done) / new)} left" if new > 0 else share

    def interrupted_text(self, place: Path) -> str:
        """What is kept after Ctrl-C, and how to go on; `place` is what `--out` named."""
        count = f"{self.done} of {self.total}" if self.total else f"{self.done}"
        kept = f"{count} answers are kept" if self.done else "there were no answers yet"
        again = "start the same command again to go on from there" if self.done else "start the same command again"
        return f"interrupted: {kept} ({place}); {again}"


def span(seconds: float) -> str:
    """A time span for people: "40 s", "12 min", "3 h 20 min"."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"
