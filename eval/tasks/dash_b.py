"""DASH-B: is there such an object? Asked of pictures that lead models to see one (Augustin et al., arXiv 2503.23573).

`--data dash_b:FOLDER` is DASH-B's release: `dash_benchmark_neg.json` and `dash_benchmark_pos.json` (the source of an
object, the object, its picture files) with the pictures in `neg/SOURCE/OBJECT/` and `pos/SOURCE/OBJECT/`, all in FOLDER
or in FOLDER/images. It is not part of this project. Of the release's 2,682 pictures half show the object; each is asked
about once.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from vlm_guard.eval.data.datasets import EvaluationData
from vlm_guard.eval.tasks.base import Record
from vlm_guard.eval.tasks.shared.metric import Column, Counts, Metric, harmonic
from vlm_guard.eval.tasks.shared.own_data import folder_of, question_data
from vlm_guard.eval.tasks.shared.registry import register_task
from vlm_guard.eval.tasks.shared.settings import TaskSettings, setting
from vlm_guard.eval.tasks.shared.yes_no import Label, YesNoQuestion, rate_of, yes_no_metrics
from vlm_guard.eval.tasks.shared.yes_no_task import YesNoQuestionTask
from vlm_guard.untrusted.json_files import read_json
from vlm_guard.untrusted.paths import relative_name
from vlm_guard.untrusted.printed_text import shown

PROMPT = "Can you see a {object} in this image? Please answer only with yes or no."
"""The release's question. It writes "a" before every object."""

FILES: dict[Label, str] = {"no": "dash_benchmark_neg.json", "yes": "dash_benchmark_pos.json"}
_PICTURES: dict[Label, str] = {"no": "neg", "yes": "pos"}


def read_dash_b(folder: str | Path, prompt: str = PROMPT) -> list[YesNoQuestion]:
    """The questions of DASH-B's release, those about pictures without the object first; the group is the source.

    Args:
        folder: holds the two files, in itself or in `images`.
        prompt: the question, with {object}.

    Raises:
        FileNotFoundError: one of the two files is missing.
        ValueError: a file is not of the release's form, or names a picture outside of its folder.
    """
    place = next((path for path in (Path(folder) / "images", Path(folder)) if (path / FILES["no"]).is_file()), None)
    if place is None:
        raise FileNotFoundError(f"{folder} is no DASH-B release: it has no {FILES['no']}, in itself or in images/")
    questions = []
    for label, name in FILES.items():
        for source, item, file in _listed(place / name):
            picture = f"{_PICTURES[label]}/{source}/{item}/{file}"
            questions.append(
                YesNoQuestion(
                    key=picture,
                    image=place / relative_name(picture, f"{place / name}: {item}"),
                    text=prompt.replace("{object}", item),
                    label=label,
                    group=source,
                )
            )
    return questions


def _listed(path: Path) -> list[tuple[str, str, str]]:
    """Source, object and picture file of every entry of one of the two files."""
    content = read_json(path)
    if not isinstance(content, dict):
        raise ValueError(f"{path} must hold an object of sources; it holds {shown(content)}")
    found = []
    for source, objects in content.items():
        for item, files in objects.items() if isinstance(objects, dict) else [(source, objects)]:
            if not isinstance(files, list) or not all(isinstance(file, str) for file in files):
                raise ValueError(f"{path}: {shown(source)}, {shown(item)} must be a list of file names: {shown(files)}")
            found += [(source, item, file) for file in files]
    return found


def read_published(text: str) -> str:
    """An answer as the release's script reads it: yes where "yes" occurs anywhere, else no where "no" does."""
    lowered = text.lower()
    return "yes" if "yes" in lowered else "no" if "no" in lowered else "unparsed"


class DashBSettings(TaskSettings):
    """How DASH-B is asked and read."""

    max_new_tokens: int = setting(10, "Token limit of an answer.", ge=1)
    prompt: str = setting(PROMPT, "The question, with {object}.")
    suffix: str = setting("", "Text after each question.")
    parser: Literal["published", "strict"] = setting(
        "published", "published: 'yes' anywhere, else 'no' anywhere; strict: the first word, as POPE's strict parser."
    )


@register_task("dash_b")
class DashBTask(YesNoQuestionTask):
    """DASH-B's questions about the pictures of its release."""

    help = "Objects that pictures lead models to see: right yes and right no, and their means."
    source = "DASH: Detection and Assessment of Systematic Hallucinations of VLMs, arXiv 2503.23573"
    table_title = "DASH-B"
    own_data = "dash_b"
    data_kinds = ("dash_b",)
    data_help = "dash_b:FOLDER, DASH-B's release: dash_benchmark_neg.json and _pos.json, the pictures in neg/ and pos/"
    Settings = DashBSettings
    columns = (
        Column(metric="dash_b.mean", label="DASH-B ↑"),
        Column(metric="dash_b.all.true_negative_rate", label="right no ↑"),
        Column(metric="dash_b.all.recall", label="right yes ↑"),
        Column(metric="dash_b.harmonic_mean", label="harm. mean ↑"),
        Column(metric="dash_b.all.unparsed", label="unparsed ↓"),
        Column(metric="dash_b.over_control.accuracy", label="acc − control ↑", kind="difference", better="higher"),
    )

    @classmethod
    def open_data(cls, place: str, count: int | None, settings: TaskSettings) -> EvaluationData:
        """The release; with a count, pictures without and with the object in turn."""
        folder = folder_of(
            "dash_b", place, "DASH-B's release: dash_benchmark_neg.json, dash_benchmark_pos.json, pictures"
        )
        chosen: Any = settings
        if "{object}" not in chosen.prompt:
            raise ValueError(f"dash_b.prompt is {shown(chosen.prompt)}; it must contain {{object}}")
        questions = read_dash_b(folder, chosen.prompt)
        absent, present = ([item for item in questions if item.label == label] for label in ("no", "yes"))
        shorter = min(len(absent), len(present))
        in_turn = [item for pair in zip(absent, present) for item in pair] + absent[shorter:] + present[shorter:]
        asked = {number: [question] for number, question in enumerate(in_turn, start=1)}
        images = {number: items[0].image for number, items in asked.items()}
        within = folder / "images" if (folder / "images" / FILES["no"]).is_file() else folder
        files = [within / name for name in FILES.values()]
        return question_data("dash_b", folder, images, asked, count=count, files=files)

    def read(self, text: str, question: YesNoQuestion) -> str:
        """The answer by the chosen parser."""
        return read_published(text) if self.settings.parser == "published" else super().read(text, question)

    @classmethod
    def metrics(cls, records: Sequence[Record]) -> tuple[Metric, ...]:
        """The release's numbers: right yes, right no, their mean (its accuracy) and their harmonic mean; by source."""
        means = {"mean": _mean, "harmonic_mean": _harmonic_mean}
        return (
            *(
                Metric(
                    name=f"dash_b.{name}", label=name.replace("_", " "), kind="share", better="higher", compute=value
                )
                for name, value in means.items()
            ),
            *yes_no_metrics("dash_b", "all"),
            *(metric for name in cls.groups(records) for metric in yes_no_metrics("dash_b", name, ("accuracy",))),
        )


def _mean(counts: Counts) -> np.ndarray:
    return (rate_of("true_negative_rate", "all")(counts) + rate_of("recall", "all")(counts)) / 2


def _harmonic_mean(counts: Counts) -> np.ndarray:
    return harmonic(rate_of("true_negative_rate", "all")(counts), rate_of("recall", "all")(counts))
