"""AMBER's generative part as a task: one description per picture of its release (Wang et al., arXiv 2311.07397).

`--data amber:FOLDER` as for the yes/no part, which can be asked in the same run; used here are `annotations.json`,
`relation.json` (objects and the words that may stand for them), `safe_words.txt` (words that are never counted as
wrong) and `query/query_generative.json` or `query_all.json`, in FOLDER or in FOLDER/data.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict
from typing import Any, Literal

from vlm_guard.eval.data.datasets import EvaluationData, hash_file
from vlm_guard.eval.tasks.amber import AmberTask, find_in_release
from vlm_guard.eval.tasks.amber_generative.descriptions import count_description, read_scenes, read_vectors, read_words
from vlm_guard.eval.tasks.base import Record, Sample, Task
from vlm_guard.eval.tasks.chair.text import singular, split_words
from vlm_guard.eval.tasks.chair.wordnet import missing_nltk_data
from vlm_guard.eval.tasks.shared.metric import Better, Column, Counts, Metric, harmonic, ratio, share
from vlm_guard.eval.tasks.shared.received import Count, Received
from vlm_guard.eval.tasks.shared.registry import register_task
from vlm_guard.eval.tasks.shared.settings import FilePath, TaskSettings, setting

PROMPT = "Describe this image."
_LISTS = ("relation.json", "safe_words.txt")


class AmberGenerativeSettings(TaskSettings):
    """How descriptions are asked for and scored."""

    max_new_tokens: int = setting(512, "Token limit of a description.", ge=1)
    prompt: str = setting(PROMPT, "Instruction for descriptions.")
    nouns: Literal["pattern", "nltk"] = setting(
        "pattern", "How nouns are found: nltk, as AMBER's script (needs NLTK's data), or pattern, without its tagger."
    )
    vectors: FilePath | None = setting(None, "JSON of word vectors, for exact numbers instead of bounds.")


class AmberGenerativeScoreReceived(Received):
    """The score of a description."""

    nouns: Count
    wrong: Count
    undecided: Count
    covered: Count
    objects: Count
    invented: Count
    unlikely: Count
    undecided_words: Count
    words: Count


class AmberGenerativeDescribed(Received):
    """How descriptions were asked for and scored."""

    nouns: str
    vectors_sha256: str | None


def find_nouns(text: str, how: str, vocabulary: Collection[str]) -> list[str]:
    """The nouns of a text that are in a vocabulary, singular, in order, repetitions kept.

    Args:
        text: a description. Its case matters: AMBER's words are lower case, so a noun that begins a sentence is none.
        how: `nltk`, tokens that NLTK tags as nouns, with WordNet's lemmas, as AMBER's script has them; `pattern`, every
            token or its singular by rules, without a tagger, so verbs that look like nouns count ("plants").
        vocabulary: AMBER's words.
    """
    if how == "pattern":
        words = [token if token in vocabulary else singular(token) for token in split_words(text)]
    else:
        import nltk
        from nltk.stem import WordNetLemmatizer

        lemmatizer = WordNetLemmatizer()
        tagged = nltk.pos_tag(nltk.word_tokenize(text))
        words = [lemmatizer.lemmatize(word) for word, tag in tagged if tag.startswith("NN")]
    return [word for word in words if word in vocabulary]


@register_task("amber_generative")
class AmberGenerativeTask(Task):
    """One description per picture of AMBER's release, scored by the nouns it has.

    Raises:
        FileNotFoundError: a file of the release, of vectors, or NLTK's data for `nouns=nltk` is missing.
        ValueError: such a file is not what it should be.
    """

    help = "AMBER's descriptions: objects that are not there, that are, and those models like to invent."
    source = "AMBER: An LLM-free Multi-dimensional Benchmark for MLLMs Hallucination Evaluation, arXiv 2311.07397"
    table_title = "AMBER descriptions"
    data_kinds = ("amber",)
    data_help = "amber:FOLDER, AMBER's release: annotations.json, relation.json, safe_words.txt, query/, the pictures"
    Settings = AmberGenerativeSettings
    Score = AmberGenerativeScoreReceived
    Described = AmberGenerativeDescribed
    columns = (
        Column(metric="amber_generative.chair", label="CHAIR ↓"),
        Column(metric="amber_generative.cover", label="Cover ↑"),
        Column(metric="amber_generative.hal", label="Hal ↓"),
        Column(metric="amber_generative.cog", label="Cog ↓"),
        Column(metric="amber_generative.mean_words", label="words", kind="length"),
        Column(metric="amber_generative.score", label="AMBER score ↑", better="higher"),
    )
    joined_with = AmberTask.name
    joined_help = AmberTask.joined_help

    def __init__(self, data: EvaluationData, settings: TaskSettings | None = None, seed: int = 0) -> None:
        super().__init__(data, settings, seed)
        folder = data.folder
        self._lists = [find_in_release(folder, name, f"data/{name}") for name in _LISTS]
        self._words = read_words(*self._lists)
        names = [f"{top}query/query_{name}.json" for top in ("data/", "") for name in ("generative", "all")]
        annotations = find_in_release(folder, "annotations.json", "data/annotations.json")
        scenes = read_scenes(find_in_release(folder, *names), annotations, self._words)
        self._scenes = {number: scenes[number] for number in data.images if number in scenes}
        if not self._scenes:
            raise ValueError(f"{annotations} has no description of any of the {len(data.images)} pictures asked about")
        vectors = self.settings.vectors
        self._similar = read_vectors(vectors, self._words.all) if vectors is not None else None
        if self.settings.nouns == "nltk" and (missing := missing_nltk_data()):
            raise FileNotFoundError(
                f"amber_generative.nouns=nltk needs the NLTK data {', '.join(missing)}. Get it with `python -m "
                f"nltk.downloader {' '.join(missing)}`, or use nouns=pattern, which is another variant of the metric"
            )

    def describe(self) -> dict[str, Any]:
        """Prompt, how nouns are found, and the hashes of AMBER's lists and of the vectors."""
        vectors = self.settings.vectors
        return {
            **super().describe(),
            "vectors": None if vectors is None else vectors.name,
            "vectors_sha256": None if vectors is None else hash_file(vectors),
            "lists_sha256": {path.name: hash_file(path) for path in self._lists},
        }

    def samples(self) -> list[Sample]:
        """One per picture."""
        return [
            Sample(key=f"amber_generative/{number}", task=self.name, image_id=number, prompt=self.settings.prompt)
            for number in self._scenes
        ]

    def score(self, sample: Sample, text: str) -> dict[str, Any]:
        """The counts of a description."""
        nouns = find_nouns(text, self.settings.nouns, self._words.all)
        counts = count_description(nouns, self._scenes[sample.image_id], self._words, self._similar)
        return {**asdict(counts), "words": len(text.split())}

    @classmethod
    def counts(cls, record: Record) -> Mapping[str, float]:
        """One description, and what of it vectors would have to decide."""
        score = record["score"]
        more = score["undecided_words"]
        return {
            **{name: score[name] for name in ("nouns", "wrong", "covered", "objects", "invented", "unlikely", "words")},
            "surely_wrong": score["wrong"] - score["undecided"],
            "covered_at_most": min(score["objects"], score["covered"] + more),
            "invented_at_most": min(score["unlikely"], score["invented"] + more),
            "descriptions": 1,
            "with_wrong": score["wrong"] > 0,
            "surely_with_wrong": score["wrong"] > score["undecided"],
        }

    @classmethod
    def metrics(cls, records: Sequence[Record]) -> tuple[Metric, ...]:
        """AMBER's four numbers with their other bounds, which are equal where vectors decided."""
        return (
            _metric("chair", "lower", share("wrong", "nouns")),
            _metric("chair_low", "lower", share("surely_wrong", "nouns")),
            _metric("cover", "higher", share("covered", "objects")),
            _metric("cover_high", "higher", share("covered_at_most", "objects")),
            _metric("hal", "lower", share("with_wrong", "descriptions")),
            _metric("hal_low", "lower", share("surely_with_wrong", "descriptions")),
            _metric("cog", "lower", share("invented", "unlikely")),
            _metric("cog_high", "lower", share("invented_at_most", "unlikely")),
            Metric(
                name="amber_generative.mean_words",
                label="words",
                kind="length",
                better=None,
                compute=lambda counts: ratio(counts["words"], counts["descriptions"]),
            ),
        )

    @classmethod
    def joined_metrics(cls) -> tuple[Metric, ...]:
        """AMBER's score, (100 - CHAIR + F1) / 2, F1 being that of all yes/no questions.

        Without word vectors CHAIR is an upper bound, so the score is a lower one, and `score_high` the upper one.
        """
        return (_metric("score", "higher", _score("wrong")), _metric("score_high", "higher", _score("surely_wrong")))

    @classmethod
    def summarise(cls, records: Sequence[Record], described: Mapping[str, Any]) -> dict[str, Any]:
        """AMBER's numbers in percent, rounded to 0.1 as its script prints them, with their bounds and counts."""
        total: dict[str, float] = {}
        for record in records:
            for name, value in cls.counts(record).items():
                total[name] = total.get(name, 0) + value
        parts = {
            "CHAIR": ("surely_wrong", "wrong", "nouns"),
            "Cover": ("covered", "covered_at_most", "objects"),
            "Hal": ("surely_with_wrong", "with_wrong", "descriptions"),
            "Cog": ("invented", "invented_at_most", "unlikely"),
        }
        rates = {
            name: [round(100 * total.get(part, 0) / total[whole], 1) if total.get(whole) else 0.0 for part in bounds]
            for name, (*bounds, whole) in parts.items()
        }
        return {
            "metric": "AMBER, generative part",
            "exact": described["vectors_sha256"] is not None,
            "bounds": {name: {"low": low, "high": high} for name, (low, high) in rates.items()},
            "counts": {name: int(value) for name, value in total.items()},
        }

    @classmethod
    def caption(cls, described: Mapping[str, Any]) -> str:
        """How nouns are found, and whether the numbers are exact."""
        exact = described["vectors_sha256"] is not None
        bounds = (
            "exact by word vectors" if exact else "without word vectors: CHAIR and Hal at most, Cover and Cog at least"
        )
        return f"AMBER's descriptions, nouns by {described['nouns']}, {bounds}"

    @classmethod
    def page_entry(cls, record: Record) -> dict[str, Any]:
        """The description, with how many of its nouns are wrong."""
        score = record["score"]
        found = f"{score['wrong']} of {score['nouns']} nouns wrong, {score['covered']} of {score['objects']} objects"
        return {"question": record["prompt"], "label": "", "groups": [], "answer": found}


def _score(wrong: str) -> Callable[[Counts], Any]:
    """AMBER's score as a share, from the counts of both parts."""
    chair = share(f"amber_generative/{wrong}", "amber_generative/nouns")
    precision, recall = (share("amber/all.correct_no", f"amber/all.{whole}") for whole in ("answered_no", "label_no"))
    return lambda counts: (1 - chair(counts) + harmonic(precision(counts), recall(counts))) / 2


def _metric(name: str, better: Better, compute: Callable[[Counts], Any]) -> Metric:
    label = name.replace("_", " ")
    return Metric(name=f"amber_generative.{name}", label=label, kind="share", better=better, compute=compute)
