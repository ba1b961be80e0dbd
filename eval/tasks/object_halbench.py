"""Object HalBench without a language model: objects in answers to detailed questions (Yu et al., arXiv 2312.00849).

This is the release script's own variant by rules, which reads the answers themselves; the published numbers let a
language model extract the objects first, so they are others. Data and ground truth are CHAIR's. The release has 300
MSCOCO images with questions in eight wordings: `object_halbench.questions` names its file (records with `image_id` and
`question`), `object_halbench.mapping` its larger list of names for the 80 objects.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from vlm_guard.eval.data.coco import image_id
from vlm_guard.eval.data.datasets import EvaluationData, hash_file
from vlm_guard.eval.tasks.base import Record, Sample, Task
from vlm_guard.eval.tasks.chair import text as chair_text
from vlm_guard.eval.tasks.chair.settings import CAPTION_PROMPT
from vlm_guard.eval.tasks.chair.wordnet import missing_nltk_data
from vlm_guard.eval.tasks.shared.metric import Better, Column, Metric, share
from vlm_guard.eval.tasks.shared.received import Count, Received
from vlm_guard.eval.tasks.shared.registry import register_task
from vlm_guard.eval.tasks.shared.settings import FilePath, TaskSettings, setting
from vlm_guard.untrusted.json_files import parse_json, read_records, read_text, text_field
from vlm_guard.untrusted.printed_text import shown

_WORDNET = "wordnet"


@dataclass(frozen=True, kw_only=True)
class ObjectNames:
    """How answers name the 80 objects.

    Attributes:
        node_of: from a name, of one word or two, to its object.
        word_pairs: from two words in a row to the one they are read as.
    """

    node_of: Mapping[str, str]
    word_pairs: Mapping[str, str]

    @cached_property
    def listed(self) -> frozenset[str]:
        """The words that an answer's words are compared with (`chair.text.listed_words`)."""
        # "seat" beside "toilet" is left out whether or not the names have them.
        return chair_text.listed_words((*self.node_of, "toilet", "seat"), self.word_pairs)


def read_names(path: str | Path | None) -> ObjectNames:
    """The names of a release's file, JSON lists by object or lines of names with the object first; CHAIR's without one.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not of one of the two forms, or an object is none of MSCOCO's 80.
    """
    known = chair_text.object_vocabulary()
    if path is None:
        return ObjectNames(node_of=known.node_of, word_pairs=known.word_pairs)
    content = read_text(path)
    listed: Any
    if content.lstrip().startswith("{"):
        listed = parse_json(content, str(path))
    else:
        lines = [[name.strip() for name in line.split(",")] for line in content.splitlines() if line.strip()]
        listed = {names[0]: names for names in lines}
    node_of: dict[str, str] = {}
    for node, names in listed.items():
        if node not in known.categories or not isinstance(names, list) or not all(isinstance(n, str) for n in names):
            raise ValueError(
                f"{path}: {shown(node)} must be one of MSCOCO's 80 objects with a list of names, not {shown(names)}"
            )
        node_of |= dict.fromkeys((node, *names), node)
    pairs = {name: name for name in node_of if name.count(" ") == 1}
    # The pairs that CHAIR reads as another word ("baby bear", "toilet seat") are read so here, too.
    pairs |= {pair: word for pair, word in known.word_pairs.items() if pair != word or word not in known.node_of}
    return ObjectNames(node_of=node_of, word_pairs=pairs)


def read_questions_of_images(path: str | Path) -> dict[int, str]:
    """The question about every image of the release's file.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a record names no image, has no question, or is about an image that stands in the file before.
    """
    questions: dict[int, str] = {}
    for number, record in read_records(path):
        where = f"{path}: record {number}"
        try:
            image = image_id(record.get("image_id"))
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from error
        if image in questions:
            raise ValueError(f"{where} is about image {image}, which stands in the file before")
        questions[image] = text_field(record, "question", where)
    return questions


def find_mentions(text: str, names: ObjectNames, lemmas: str) -> list[dict[str, Any]]:
    """The mentions of an answer in order, repetitions kept: `node`, `text`, `start`, `end`.

    Args:
        text: the answer.
        names: how objects are named.
        lemmas: `wordnet`, WordNet's noun lemma of every token, as the release's script; `pattern`, CHAIR's rules.
    """
    lowered, offsets = chair_text.lower_with_offsets(text)
    tokens = chair_text.split_words(lowered)
    if lemmas == _WORDNET:
        from nltk.stem import WordNetLemmatizer

        reduced = list(map(WordNetLemmatizer().lemmatize, tokens))
    else:
        reduced = list(map(chair_text.singular, tokens))
    spans = chair_text.locate_tokens(tokens, lowered)
    words, _ = chair_text.find_words(reduced, names.word_pairs, names.listed)
    found = []
    for word in chair_text.drop_toilet_seats(words):
        if node := names.node_of.get(word.text):
            start, end = spans[word.first][0], spans[word.last][1]
            if offsets is not None:
                start, end = offsets[start], offsets[end - 1] + 1
            found.append({"node": node, "text": text[start:end], "start": start, "end": end})
    return found


class ObjectHalBenchSettings(TaskSettings):
    """How answers are asked for and read."""

    max_new_tokens: int = setting(512, "Token limit of an answer.", ge=1)
    prompt: str = setting(CAPTION_PROMPT, "The question where no file gives one.")
    questions: FilePath | None = setting(None, "The release's questions: a JSONL of image_id and question.")
    mapping: FilePath | None = setting(None, "The release's names of the objects; CHAIR's without it.")
    lemmas: Literal["pattern", "wordnet"] = setting("pattern", "Singular forms: wordnet as released, or CHAIR's rules.")


class _Mention(Received):
    node: str
    text: str
    start: Count
    end: Count
    hallucinated: bool


class ObjectHalBenchScoreReceived(Received):
    """The score of an answer."""

    mentions: list[_Mention]
    objects: list[str]
    words: Count


class ObjectHalBenchDescribed(Received):
    """How answers were read."""

    lemmas: str
    mapping: str | None


@register_task("object_halbench")
class ObjectHalBenchTask(Task):
    """One answer per picture, scored by the objects it names."""

    help = "Object HalBench by rules: answers with, and mentions of, objects that are not in the picture."
    source = "RLHF-V, CVPR 2024, arXiv 2312.00849; the script's variant without a language model"
    table_title = "Object HalBench"
    Settings = ObjectHalBenchSettings
    Score = ObjectHalBenchScoreReceived
    Described = ObjectHalBenchDescribed
    columns = (
        Column(metric="object_halbench.response", label="answers ↓"),
        Column(metric="object_halbench.mention", label="mentions ↓"),
        Column(metric="object_halbench.recall", label="recall ↑"),
        Column(metric="object_halbench.mean_words", label="words", kind="length"),
    )

    def __init__(self, data: EvaluationData, settings: TaskSettings | None = None, seed: int = 0) -> None:
        super().__init__(data, settings, seed)
        chosen = self.settings
        self._names = read_names(chosen.mapping)
        self._prompts = {number: chosen.prompt for number in data.images}
        if chosen.questions is not None:
            asked = read_questions_of_images(chosen.questions)
            self._prompts = {number: asked[number] for number in data.images if number in asked}
            if not self._prompts:
                raise ValueError(f"{chosen.questions} asks about none of the {len(data.images)} pictures of the data")
        if chosen.lemmas == _WORDNET and "wordnet" in missing_nltk_data():
            raise FileNotFoundError(
                "object_halbench.lemmas=wordnet needs the NLTK data wordnet. Get it with `python -m nltk.downloader "
                "wordnet`, or use lemmas=pattern, which is another variant of the metric"
            )

    def describe(self) -> dict[str, Any]:
        """The settings, files by name and hash."""
        files = {name: getattr(self.settings, name) for name in ("questions", "mapping")}
        return {
            **super().describe(),
            **{name: None if path is None else path.name for name, path in files.items()},
            **{f"{name}_sha256": hash_file(path) for name, path in files.items() if path is not None},
        }

    def samples(self) -> list[Sample]:
        """One per picture that is asked about."""
        return [
            Sample(key=f"object_halbench/{number}", task=self.name, image_id=number, prompt=prompt)
            for number, prompt in self._prompts.items()
        ]

    def _objects(self, image: int) -> set[str]:
        """CHAIR's objects of a picture, and with a mapping also what it finds in the reference captions."""
        objects = set(self.data.objects[image])
        captions: Iterable[str] = () if self.settings.mapping is None else self.data.captions.get(image, ())
        for caption in captions:
            objects.update(mention["node"] for mention in find_mentions(caption, self._names, self.settings.lemmas))
        return objects

    def score(self, sample: Sample, text: str) -> dict[str, Any]:
        """Every mention with its place, the objects of the picture, the answer's words."""
        objects = self._objects(sample.image_id)
        mentions = find_mentions(text, self._names, self.settings.lemmas)
        marked = [{**mention, "hallucinated": mention["node"] not in objects} for mention in mentions]
        return {"mentions": marked, "objects": sorted(objects), "words": len(text.split())}

    @classmethod
    def counts(cls, record: Record) -> Mapping[str, float]:
        """The counts of one answer."""
        score = record["score"]
        nodes, wrong = (
            {mention["node"] for mention in score["mentions"]},
            [m["hallucinated"] for m in score["mentions"]],
        )
        return {
            "answers": 1,
            "with_objects": bool(wrong),
            "hallucinated_answers": any(wrong),
            "mentions": len(wrong),
            "hallucinated_mentions": sum(wrong),
            "recalled": len(nodes.intersection(score["objects"])),
            "objects": len(score["objects"]),
            "words": score["words"],
        }

    @classmethod
    def metrics(cls, records: Sequence[Record]) -> tuple[Metric, ...]:
        """Hallucinated answers among those that name an object, hallucinated mentions, recall, length."""
        return (
            _metric("response", "lower", "hallucinated_answers", "with_objects"),
            _metric("mention", "lower", "hallucinated_mentions", "mentions"),
            _metric("recall", "higher", "recalled", "objects"),
            Metric(
                name="object_halbench.mean_words",
                label="words",
                kind="length",
                better=None,
                compute=share("words", "answers"),
            ),
        )

    @classmethod
    def summarise(cls, records: Sequence[Record], described: Mapping[str, Any]) -> dict[str, Any]:
        """The integer counts."""
        counted = [cls.counts(record) for record in records]
        total = {name: int(sum(counts[name] for counts in counted)) for name in (counted[0] if counted else ())}
        return {"metric": "Object HalBench by rules", **total}

    @classmethod
    def caption(cls, described: Mapping[str, Any]) -> str:
        """Which names and which singular forms."""
        names = f"names of {described['mapping']}" if described["mapping"] else "CHAIR's names"
        return f"Object HalBench by rules, not by a language model, {names}, {described['lemmas']} lemmas"

    @classmethod
    def page_entry(cls, record: Record) -> dict[str, Any]:
        """The answer with its mentions, as CHAIR's captions."""
        score = record["score"]
        mentions = [[item["start"], item["end"], item["node"], int(item["hallucinated"])] for item in score["mentions"]]
        caption = {
            "text": record["text"],
            "mentions": mentions,
            "words": score["words"],
            "finished": record["finished"],
        }
        return {"objects": score["objects"], "caption": caption}


def _metric(name: str, better: Better, part: str, whole: str) -> Metric:
    return Metric(
        name=f"object_halbench.{name}",
        label=f"hallucinated {name}s" if better == "lower" else name,
        kind="share",
        better=better,
        compute=share(part, whole),
    )
