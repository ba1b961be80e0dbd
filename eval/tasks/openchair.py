"""OpenCHAIR: which of the things a caption names are in the picture, for any noun (Ben-Kish et al., arXiv 2312.03631).

`--data openchair:FILE` is a JSONL of `image` (a picture file beside the file or below its folder) and `captions` (one
or several true captions); OpenCHAIR's release, 2,000 made pictures with captions, is brought into this form by whoever
has it. `openchair.concreteness` names the list of Brysbaert et al. (columns Word and Conc.M, with tabs): words above
4.5 are asked about. A judge then says of each word whether the true captions allow for it.

The release finds nouns with spaCy's tagger; here every word of the list counts, verbs that look like nouns too.
"""

import csv
import io
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from vlm_guard.eval.data.datasets import EvaluationData, hash_file
from vlm_guard.eval.tasks.base import Record, Sample
from vlm_guard.eval.tasks.chair.settings import CAPTION_PROMPT
from vlm_guard.eval.tasks.chair.text import singular, split_words
from vlm_guard.eval.tasks.shared.judging import VERDICTS, JudgedTask
from vlm_guard.eval.tasks.shared.metric import Column, Metric, share
from vlm_guard.eval.tasks.shared.own_data import question_data
from vlm_guard.eval.tasks.shared.received import Count, Received
from vlm_guard.eval.tasks.shared.registry import register_task
from vlm_guard.eval.tasks.shared.settings import FilePath, TaskSettings, setting
from vlm_guard.untrusted.json_files import read_records, read_text, text_field
from vlm_guard.untrusted.paths import Inside, relative_name
from vlm_guard.untrusted.printed_text import shown

CONCRETE = 4.5
# Words for the picture itself, which the release passes over.
_PICTURES = frozenset(("painting", "drawing", "photo", "picture", "portrait", "photograph"))
_SAID = ("yes", "no", "unsure")


def read_concreteness(path: str | Path) -> frozenset[str]:
    """The words of a list of concreteness that are above 4.5.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it has not the columns Word and Conc.M, or a value that is no number.
    """
    rows = csv.DictReader(io.StringIO(read_text(path)), delimiter="\t")
    if not {"Word", "Conc.M"} <= set(rows.fieldnames or ()):
        raise ValueError(
            f"{path} must have the columns Word and Conc.M with tabs between; it has {shown(rows.fieldnames)}"
        )
    words = set()
    for number, row in enumerate(rows, 2):
        try:
            if float(row["Conc.M"]) > CONCRETE:
                words.add(row["Word"].strip().lower())
        except (TypeError, ValueError, AttributeError) as error:
            raise ValueError(f"{path}: line {number}: Conc.M is {shown(row['Conc.M'])}; it must be a number") from error
    return frozenset(words - _PICTURES)


class OpenChairSettings(TaskSettings):
    """How captions are asked for, and which words are asked about."""

    max_new_tokens: int = setting(512, "Token limit of a caption.", ge=1)
    prompt: str = setting(CAPTION_PROMPT, "Instruction for captions.")
    concreteness: FilePath | None = setting(None, "Table of words with their concreteness, with tabs; needed.")


class OpenChairScoreReceived(Received):
    """What is known of a caption before it is judged."""

    nouns: list[str]
    captions: list[str]
    words: Count


@register_task("openchair")
class OpenChairTask(JudgedTask):
    """One caption per picture; the numbers come with the verdicts.

    Raises:
        ValueError: no list of concreteness is given, or it is not of the form needed.
        FileNotFoundError: there is no such list.
    """

    help = (
        "OpenCHAIR: things of any kind that captions name, allowed or not by a judge of your choice (vlm-guard judge)."
    )
    source = "Mitigating Open-Vocabulary Caption Hallucinations, arXiv 2312.03631"
    table_title = "OpenCHAIR"
    own_data = "openchair"
    data_kinds = ("openchair",)
    data_help = "openchair:FILE, a JSONL of image and captions"
    Settings = OpenChairSettings
    Score = OpenChairScoreReceived
    columns = (
        Column(metric="openchair.mean_words", label="words", kind="length"),
        Column(metric="openchair.nouns", label="things", kind="length"),
        Column(metric="openchair.rate", label="OpenCHAIR ↓"),
    )
    template = (
        "These captions of one picture are true:\n{captions}\n\n"
        "A program described the same picture and named: {noun}\n\n"
        "Is it in the picture, as far as the captions tell? Answer with one word: yes, no, or unsure.\n"
    )

    def __init__(self, data: EvaluationData, settings: TaskSettings | None = None, seed: int = 0) -> None:
        super().__init__(data, settings, seed)
        if self.settings.concreteness is None:
            raise ValueError(
                "openchair needs the list of words and their concreteness (Brysbaert et al., 2014): --set "
                "openchair.concreteness=FILE, with tabs between its columns, Word and Conc.M among them"
            )
        self._concrete = read_concreteness(self.settings.concreteness)

    @classmethod
    def open_data(cls, place: str, count: int | None, settings: TaskSettings) -> EvaluationData:
        """The pictures of the file; with a count, the first ones."""
        path = Path(place)
        inside = Inside(path.parent)
        content, images = {}, {}
        for number, record in read_records(path):
            where = f"{path}: record {number}"
            captions = record.get("captions")
            captions = [captions] if isinstance(captions, str) else captions
            if not isinstance(captions, list) or not captions or not all(isinstance(one, str) for one in captions):
                raise ValueError(f"{where}: 'captions' is {shown(captions)}; it must be a caption or a list of them")
            name = relative_name(text_field(record, "image", where), where)
            content[number], images[number] = captions, inside.check(path.parent / name)
        name = f"openchair:{path.name}"
        return question_data("openchair", path.parent, images, content, count=count, files=(path,), name=name)

    @cached_property
    def _hash(self) -> str:
        return hash_file(self.settings.concreteness)

    def describe(self) -> dict[str, Any]:
        """The settings, the list by name and hash."""
        name = self.settings.concreteness.name
        return {**super().describe(), "concreteness": name, "concreteness_sha256": self._hash}

    def samples(self) -> list[Sample]:
        """One per picture."""
        return [
            Sample(key=f"openchair/{number}", task=self.name, image_id=number, prompt=self.settings.prompt)
            for number in self.data.images
        ]

    def score(self, sample: Sample, text: str) -> dict[str, Any]:
        """The different concrete words of the caption in order, and the true captions."""
        tokens = split_words(text.lower())
        words = [token if token in self._concrete else singular(token) for token in tokens]
        nouns = list(dict.fromkeys(word for word in words if word in self._concrete))
        return {"nouns": nouns, "captions": self.data.content[sample.image_id], "words": len(text.split())}

    @classmethod
    def judge_fields(cls, record: Record) -> Mapping[str, Mapping[str, str]]:
        """One prompt for every word."""
        captions = "\n".join(f"- {caption}" for caption in record["score"]["captions"])
        return {noun: {"captions": captions, "noun": noun} for noun in record["score"]["nouns"]}

    @classmethod
    def read_verdict(cls, text: str) -> str | None:
        """Yes, no or unsure, by the first word."""
        word = text.strip().lower().strip("\"'.*!").partition(" ")[0].strip(",.:;!\"'*")
        return word if word in _SAID else None

    @classmethod
    def counts(cls, record: Record) -> Mapping[str, float]:
        """One caption, its words, and the verdicts about them; neither unsure nor unreadable ones count."""
        score = record["score"]
        said = list(score.get(VERDICTS, {}).values())
        counts = {"captions": 1, "words": score["words"], "nouns": len(score["nouns"])}
        decided = said.count("yes") + said.count("no")
        return {**counts, "no": said.count("no"), "decided": decided, "undecided": len(said) - decided}

    @classmethod
    def metrics(cls, records: Sequence[Record]) -> tuple[Metric, ...]:
        """Length and number of things; with verdicts the share of things that are not in the picture."""
        lengths = {"mean_words": "words", "nouns": "nouns"}
        found = [
            Metric(name=f"openchair.{name}", label=part, kind="length", better=None, compute=share(part, "captions"))
            for name, part in lengths.items()
        ]
        if any(VERDICTS in record["score"] for record in records):
            found.append(
                Metric(
                    name="openchair.rate",
                    label="OpenCHAIR",
                    kind="share",
                    better="lower",
                    compute=share("no", "decided"),
                )
            )
        return tuple(found)

    @classmethod
    def page_entry(cls, record: Record) -> dict[str, Any]:
        """The caption as it is."""
        return {**super().page_entry(record), "answer": record["text"]}
