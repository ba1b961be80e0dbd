"""The plots of a comparison, drawn by the tasks. Needs matplotlib (the extra `plot`)."""

from pathlib import Path

from vlm_guard.eval.report.compare import Comparison
from vlm_guard.eval.tasks.shared.drawing import Drawn
from vlm_guard.eval.tasks.shared.registry import task_class


def save_plots(comparison: Comparison, folder: Path, style: str = "png") -> list[Path]:
    """Draw every plot the comparison has data for.

    Args:
        comparison: from `compare_runs`.
        folder: where the files go; made if absent.
        style: file format that matplotlib can write: png, svg or pdf.

    Returns:
        The files written.

    Raises:
        ImportError: matplotlib is not installed.
        ValueError: unknown format, or none of the tasks has a plot.
    """
    if style not in ("png", "svg", "pdf"):
        raise ValueError(f"the plot format is {style!r}; it must be png, svg or pdf")
    results = comparison.results
    drawn = Drawn(results=results, records=comparison.records)
    answered = {task for method in results.methods for task, counts in method.samples.items() if counts.answered}
    plots = {name: draw for task in sorted(answered) for name, draw in task_class(task).plots().items()}
    if not plots:
        names = ", ".join(sorted(answered)) or "a run without answers"
        raise ValueError(f"there is nothing to draw: {names} has no plot")
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for name, draw in plots.items():
        path = folder / f"{name}.{style}"
        draw(drawn).savefig(path, dpi=150)
        written.append(path)
    return written
