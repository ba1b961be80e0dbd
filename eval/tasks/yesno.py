"""Yes/no questions from a file of one's own: any benchmark that consists of them, as data instead of code.

`--data yesno:FILE` is a JSONL (or a JSON list) of `image`, `question`, `answer` (yes or no), and optionally `id` and
`group`; pictures lie beside the file or below its folder.
"""

from collections.abc import Sequence
from pathlib import Path

from vlm_guard.eval.data.datasets import EvaluationData
from vlm_guard.eval.tasks.base import Record
from vlm_guard.eval.tasks.shared.metric import Column, Metric, share
from vlm_guard.eval.tasks.shared.own_data import question_data
from vlm_guard.eval.tasks.shared.registry import register_task
from vlm_guard.eval.tasks.shared.settings import TaskSettings
from vlm_guard.eval.tasks.shared.yes_no import numbered_pictures, read_yes_no, yes_no_metrics
from vlm_guard.eval.tasks.shared.yes_no_task import YesNoQuestionTask

_GROUP_RATES = ("accuracy", "f1", "yes_ratio")


@register_task("yesno")
class YesNoTask(YesNoQuestionTask):
    """The yes/no questions of a file."""

    help = "Yes/no questions from a file of your own, in all and by group."
    source = "your own questions; answers are read as POPE's (arXiv 2305.10355)"
    table_title = "yes/no"
    own_data = "yesno"
    data_kinds = ("yesno",)
    data_help = "yesno:FILE, a JSONL of image, question, answer (yes or no), optionally id and group"
    columns = (
        Column(metric="yesno.all.accuracy", label="acc ↑"),
        Column(metric="yesno.all.f1", label="F1 ↑"),
        Column(metric="yesno.all.yes_ratio", label="yes"),
        Column(metric="yesno.pictures_right", label="all right ↑"),
        Column(metric="yesno.all.unparsed", label="unparsed ↓"),
        Column(metric="yesno.over_control.f1", label="F1 − control ↑", kind="difference", better="higher"),
    )

    @classmethod
    def open_data(cls, place: str, count: int | None, settings: TaskSettings) -> EvaluationData:
        """The questions of the file; with a count, those about the first pictures."""
        path = Path(place)
        images, asked = numbered_pictures(read_yes_no(path))
        return question_data("yesno", path.parent, images, asked, count=count, files=(path,), name=f"yesno:{path.name}")

    @classmethod
    def image_counts(cls, records: Sequence[Record]) -> dict[str, float]:
        """The questions of a picture, and whether all of them are answered rightly."""
        right = all(record["score"]["answer"] == record["score"]["label"] for record in records)
        return {**super().image_counts(records), "pictures": 1, "pictures_right": right}

    @classmethod
    def metrics(cls, records: Sequence[Record]) -> tuple[Metric, ...]:
        """All rates of all questions, the main ones of every group, and pictures with all questions right."""
        pictures = Metric(
            name="yesno.pictures_right",
            label="pictures with all questions right",
            kind="share",
            better="higher",
            compute=share("pictures_right", "pictures"),
        )
        of_groups = [metric for name in cls.groups(records) for metric in yes_no_metrics("yesno", name, _GROUP_RATES)]
        return (*yes_no_metrics("yesno", "all"), pictures, *of_groups)
