"""RePOPE: POPE's MSCOCO questions with corrected labels, unclear ones left out (Neuhaus and Hein, arXiv 2504.15707).

`--data repope:FOLDER` holds RePOPE's `coco_repope_random.json`, `_popular.json` and `_adversarial.json` (2,774, 2,727
and 2,684 of POPE's 3,000 questions each, with POPE's numbers), in itself or in `annotations`, and MSCOCO's val2014
pictures, in itself or anywhere below it, or in the folder that `repope.images` names. Answers that were given to POPE's
questions are scored with RePOPE's labels by `vlm-guard pope ANSWERS --questions POPE --relabelled REPOPE`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlm_guard.eval.data.datasets import EvaluationData
from vlm_guard.eval.tasks.pope.questions import PopeQuestion, read_questions
from vlm_guard.eval.tasks.pope.settings import STRATEGIES
from vlm_guard.eval.tasks.pope.task import PopeTask
from vlm_guard.eval.tasks.shared.own_data import folder_of, question_data
from vlm_guard.eval.tasks.shared.registry import register_task
from vlm_guard.eval.tasks.shared.settings import FilePath, TaskSettings, setting
from vlm_guard.untrusted.paths import Inside, relative_name
from vlm_guard.untrusted.printed_text import shown

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from vlm_guard.eval.tasks.shared.drawing import Drawn

_FILE = "coco_repope_{}.json"


class RepopeSettings(TaskSettings):
    """How RePOPE is asked and read, as POPE is."""

    max_new_tokens: int = setting(10, "Token limit of an answer.", ge=1)
    images: FilePath | None = setting(None, "Folder of MSCOCO's val2014 pictures, where they are not below the data.")
    suffix: str = setting("none", "After the questions: none, one_word, short_phrase.")
    parser: str = setting("strict", "How answers are read: strict, pope, opera, vcd.")


@register_task("repope")
class RepopeTask(PopeTask):
    """POPE's questions with RePOPE's labels, about MSCOCO's pictures."""

    help = "POPE's MSCOCO questions with corrected labels; questions that cannot be decided are left out."
    source = "RePOPE: Impact of Annotation Errors on the POPE Benchmark, arXiv 2504.15707"
    table_title = "RePOPE"
    title = "RePOPE"
    own_data = "repope"
    data_kinds = ("repope",)
    data_help = "repope:FOLDER, RePOPE's coco_repope_*.json and MSCOCO's val2014 pictures (or repope.images)"
    Settings = RepopeSettings
    columns = tuple(
        replace(
            column, metric=column.metric.replace("pope.", "repope.", 1), label=column.label.replace("POPE", "RePOPE")
        )
        for column in PopeTask.columns
    )

    @classmethod
    def open_data(cls, place: str, count: int | None, settings: TaskSettings) -> EvaluationData:
        """RePOPE's questions and the pictures they are about; with a count, the first pictures."""
        folder = folder_of("repope", place, "RePOPE's coco_repope_random.json, _popular.json and _adversarial.json")
        chosen: Any = settings
        names = [_FILE.format(strategy) for strategy in STRATEGIES]
        within = next((path for path in (folder / "annotations", folder) if (path / names[0]).is_file()), folder)
        files = [within / name for name in names]
        by_file = {path: read_questions(path) for path in files}
        pictures = Path(chosen.images) if chosen.images is not None else folder
        if not pictures.is_dir():
            raise FileNotFoundError(f"repope.images: there is no folder {pictures}")
        images = find_pictures(pictures, by_file)
        questions = [question for asked in by_file.values() for question in asked]
        return question_data("repope", folder, images, questions, count=count, files=files)

    def find_questions(self) -> tuple[list[PopeQuestion], str]:
        """RePOPE's questions about the pictures of the data."""
        return [item for item in self.data.content if item.image_id in self.data.images], "RePOPE's files"

    @classmethod
    def plots(cls) -> dict[str, Callable[[Drawn], Figure]]:
        """None: POPE's plot is drawn of POPE."""
        return {}


def find_pictures(folder: Path, questions: Mapping[Path, list[PopeQuestion]]) -> dict[int, Path]:
    """The picture of every question (by their file) by its number, in the order they are asked: in the folder or below.

    Raises:
        ValueError: a question names no numbered picture, or one outside of the folder.
    """
    inside, found = Inside(folder), dict[int, Path]()
    below: Mapping[str, Path] | None = None
    for file, question in ((file, question) for file, asked in questions.items() for question in asked):
        where = f"{file}: question {question.question_id}"
        if question.image_id is None:
            raise ValueError(f"{where}: {shown(question.image)} names no picture of MSCOCO")
        if question.image_id in found:
            continue
        path = folder / relative_name(question.image, where)
        if not path.is_file():
            below = {item.name: item for item in folder.rglob("*.*")} if below is None else below
            path = below.get(path.name, path)
        found[question.image_id] = inside.check(path)
    return found
