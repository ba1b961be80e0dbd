"""CHAIR: which of the objects a caption mentions are not in the image (Rohrbach et al., EMNLP 2018).

Two text pipelines are in use in the literature and give different numbers, so each score names its `mode`:
`pattern` is the original one (2018, POPE, SHIELD), rule-based and without downloads; `wordnet` is the one of OPERA's
script and its descendants (PAI, VISTA, VHR). Ground-truth object sets must be built with the same mode.
"""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import asdict, dataclass
from importlib.metadata import version
from typing import Any, Literal, get_args

from vlm_guard.eval.tasks.chair import text as chair_text
from vlm_guard.eval.tasks.chair import wordnet as chair_wordnet
from vlm_guard.eval.tasks.chair.places import FIFTHS, PlaceCounts, complete_end, count_places

ChairMode = Literal["pattern", "wordnet"]

_REPETITION_LENGTH = 4


def check_mode(mode: str) -> ChairMode:
    """`mode` if it is a text mode that can run here.

    Raises:
        ValueError: the mode is unknown.
        FileNotFoundError: the mode is `wordnet` and NLTK's data for it is not installed.
    """
    known: dict[str, ChairMode] = {name: name for name in get_args(ChairMode)}
    if mode not in known:
        raise ValueError(f"the CHAIR mode is {mode!r}; it must be one of {', '.join(get_args(ChairMode))}")
    if mode == "wordnet":
        chair_wordnet.require_nltk_data()
    return known[mode]


@dataclass(frozen=True, kw_only=True, slots=True)
class Mention:
    """One mention of an object in a caption.

    Attributes:
        node: the MSCOCO category the mention counts as.
        text: the mention as the caption spells it.
        start: first character of the mention in the caption.
        end: the character after its last one.
    """

    node: str
    text: str
    start: int
    end: int


@dataclass(frozen=True, kw_only=True)
class ReadCaption:
    """A caption after the text pipeline: its mentions in order, its length and how much it repeats itself."""

    mentions: tuple[Mention, ...]
    tokens: int
    words: int
    repeated_4_grams: float


def repeated_share(tokens: list[str], length: int = _REPETITION_LENGTH) -> float:
    """The share of a text's n-grams that have occurred in it before: 0 for no repetition, near 1 for a loop."""
    count = len(tokens) - length + 1
    return 1 - len(set(zip(*(tokens[begin:] for begin in range(length))))) / count if count > 0 else 0.0


def read_caption(caption: str, mode: ChairMode = "pattern") -> ReadCaption:
    """Put one caption through CHAIR's text pipeline.

    Args:
        caption: any text, possibly empty.
        mode: `pattern` or `wordnet`; the latter needs NLTK's data (see `check_mode`).
    """
    lowered, offsets = chair_text.lower_with_offsets(caption)
    if mode == "pattern":
        tokens = chair_text.split_words(lowered)
        reduced = [chair_text.singular(token) for token in tokens]
    else:
        tokens = chair_wordnet.split_words(lowered)
        reduced = chair_wordnet.lemmas(tokens)
    vocabulary = chair_text.object_vocabulary()
    named, merged = chair_text.find_words(reduced, vocabulary.word_pairs, vocabulary.listed)
    named = [word for word in chair_text.drop_toilet_seats(named) if word.text in vocabulary.node_of]
    # Tokens are looked up in the text one after the other, so only as far as an object is named.
    spans = chair_text.locate_tokens(tokens[: named[-1].last + 1] if named else [], lowered)
    mentions = []
    for word in named:
        start, end = spans[word.first][0], spans[word.last][1]
        if offsets is not None:
            start, end = offsets[start], offsets[end - 1] + 1
        mentions.append(Mention(node=vocabulary.node_of[word.text], text=caption[start:end], start=start, end=end))
    return ReadCaption(
        mentions=tuple(mentions),
        tokens=len(tokens) - merged,
        words=len(caption.split()),
        repeated_4_grams=repeated_share(tokens),
    )


@dataclass(frozen=True, kw_only=True)
class CaptionScore:
    """CHAIR's record of one caption.

    Attributes:
        image_id: MSCOCO image id.
        caption: the caption that was scored.
        mentions: every object mention in order, repetitions kept.
        hallucinated: for each mention, whether its object is not in the image.
        objects: the objects that are in the image, sorted.
        tokens: length in tokens of the text pipeline, punctuation included, a merged word pair counted once.
        words: length in words, split at white space.
        repeated_4_grams: share of the caption's 4-grams of tokens that have occurred in it before.
    """

    image_id: int
    caption: str
    mentions: tuple[Mention, ...]
    hallucinated: tuple[bool, ...]
    objects: tuple[str, ...]
    tokens: int
    words: int
    repeated_4_grams: float

    def __post_init__(self) -> None:
        if len(self.mentions) != len(self.hallucinated):
            raise ValueError(
                f"image {self.image_id} has {len(self.mentions)} mentions but {len(self.hallucinated)} flags"
            )

    @property
    def hallucinated_mentions(self) -> tuple[Mention, ...]:
        """The mentions whose object is not in the image, in order."""
        return tuple(mention for mention, wrong in zip(self.mentions, self.hallucinated) if wrong)

    @property
    def recalled_objects(self) -> frozenset[str]:
        """The objects of the image that the caption mentions."""
        return frozenset(mention.node for mention in self.mentions).intersection(self.objects)

    @property
    def chair_s(self) -> int:
        """1 if the caption has a hallucinated mention, else 0."""
        return int(any(self.hallucinated))

    @property
    def chair_i(self) -> float:
        """Share of the mentions that are hallucinated; 0 without mentions."""
        return sum(self.hallucinated) / len(self.mentions) if self.mentions else 0.0

    @property
    def recall(self) -> float:
        """Share of the image's objects that the caption mentions; 0 for an image without objects."""
        return len(self.recalled_objects) / len(self.objects) if self.objects else 0.0

    def places(self) -> PlaceCounts:
        """The counts that depend on where in the caption the mentions stand."""
        mentions = [
            (mention.start, mention.end, mention.node, wrong)
            for mention, wrong in zip(self.mentions, self.hallucinated)
        ]
        return count_places(self.caption, mentions, complete_end(self.caption))

    def to_dict(self) -> dict[str, Any]:
        """A record that JSON can hold, one mention with its flag per entry of `mentions`."""
        return {
            "image_id": self.image_id,
            "caption": self.caption,
            "mentions": [
                {**asdict(mention), "hallucinated": wrong} for mention, wrong in zip(self.mentions, self.hallucinated)
            ],
            "objects": list(self.objects),
            "chair_s": self.chair_s,
            "chair_i": self.chair_i,
            "recall": self.recall,
            "tokens": self.tokens,
            "words": self.words,
            "repeated_4_grams": self.repeated_4_grams,
        }


class ChairScorer:
    """Scores captions against the objects of their images.

    Args:
        objects: the objects of every image, by image id. Build them with the same mode
            (`vlm_guard.eval.data.coco.object_sets`).
        mode: text pipeline, `pattern` (no downloads) or `wordnet` (needs NLTK data).

    Raises:
        ValueError: the mode is unknown, or an object is none of the 80 MSCOCO categories.
        FileNotFoundError: mode `wordnet` without NLTK's data.
    """

    def __init__(self, objects: Mapping[int, Collection[str]], mode: str = "pattern") -> None:
        self.mode = check_mode(mode)
        known = frozenset(chair_text.object_vocabulary().categories)
        unknown = set().union(*objects.values()) - known if objects else set()
        if unknown:
            raise ValueError(
                f"{', '.join(map(repr, sorted(unknown)))} is no MSCOCO category; the objects of an image are named by "
                "the 80 category names of MSCOCO, for example 'dining table'"
            )
        self._objects = objects

    def mentions(self, caption: str) -> list[Mention]:
        """Every object mention of a caption in order, repetitions kept, with its place in the caption."""
        return list(read_caption(caption, self.mode).mentions)

    def score(self, image_id: int, caption: str) -> CaptionScore:
        """Score one caption.

        Raises:
            ValueError: no objects are known for the image. The reference scripts count every mention of such an image
                as hallucinated.
        """
        if image_id not in self._objects:
            raise ValueError(
                f"image {image_id} is not among the {len(self._objects)} images of the ground truth; give the "
                "annotations it belongs to, or leave its caption out"
            )
        objects = self._objects[image_id]
        read = read_caption(caption, self.mode)
        return CaptionScore(
            image_id=image_id,
            caption=caption,
            mentions=read.mentions,
            hallucinated=tuple(mention.node not in objects for mention in read.mentions),
            objects=tuple(sorted(objects)),
            tokens=read.tokens,
            words=read.words,
            repeated_4_grams=read.repeated_4_grams,
        )


@dataclass(frozen=True, kw_only=True)
class ChairSummary:
    """CHAIR of a set of captions: integer counts, and the rates that follow from them.

    Attributes:
        mode: text pipeline the captions were read with.
        captions: number of captions.
        images: number of distinct images; smaller than `captions` where an image has several.
        hallucinated_captions: captions with at least one hallucinated mention.
        captions_without_mention: captions that name no object; without any mention no rate of them says anything.
        mentions: object mentions, repetitions counted.
        hallucinated_mentions: mentions whose object is not in the image.
        mentioned_objects: distinct objects per caption, summed.
        recalled_objects: distinct objects per caption that are in the image, summed.
        objects: objects in the images, summed over the captions.
        tokens: tokens, punctuation included.
        words: words split at white space.
        repetition: mean share of a caption's 4-grams that repeat an earlier one of it.
        fifth_mentions: mentions in each fifth of the captions' text.
        fifth_hallucinated_mentions: those of them whose object is not in the image.
        complete_mentions: mentions in complete sentences, so without a last one that a token limit cut off.
        complete_hallucinated_mentions: those of them whose object is not in the image.
        complete_hallucinated_captions: captions with at least one of those.
        nltk: version of NLTK, whose tokenizer (and, in wordnet mode, tagger) read the captions.
    """

    mode: str
    captions: int
    images: int
    hallucinated_captions: int
    mentions: int
    hallucinated_mentions: int
    mentioned_objects: int
    recalled_objects: int
    objects: int
    tokens: int
    words: int
    repetition: float
    fifth_mentions: tuple[int, ...] = (0,) * FIFTHS
    fifth_hallucinated_mentions: tuple[int, ...] = (0,) * FIFTHS
    complete_mentions: int = 0
    complete_hallucinated_mentions: int = 0
    complete_hallucinated_captions: int = 0
    captions_without_mention: int = 0
    nltk: str = ""

    @property
    def chair_s(self) -> float:
        """Share of the captions with a hallucinated mention."""
        return _ratio(self.hallucinated_captions, self.captions)

    @property
    def chair_i(self) -> float:
        """Share of the mentions that are hallucinated."""
        return _ratio(self.hallucinated_mentions, self.mentions)

    @property
    def recall(self) -> float:
        """Share of the images' objects that are mentioned (over all captions, not averaged per caption)."""
        return _ratio(self.recalled_objects, self.objects)

    @property
    def precision(self) -> float:
        """Share of the distinct mentioned objects that are in the image (PAI's definition)."""
        return _ratio(self.recalled_objects, self.mentioned_objects)

    @property
    def f1(self) -> float:
        """Harmonic mean of precision and recall."""
        return _ratio(2 * self.precision * self.recall, self.precision + self.recall)

    @property
    def mean_tokens(self) -> float:
        """Mean length in tokens, punctuation included (what OPERA's script prints as Len)."""
        return _ratio(self.tokens, self.captions)

    @property
    def mean_words(self) -> float:
        """Mean length in words split at white space."""
        return _ratio(self.words, self.captions)

    @property
    def per_100_words(self) -> float:
        """Hallucinated mentions in 100 words."""
        return 100 * _ratio(self.hallucinated_mentions, self.words)

    @property
    def fifth_chair_i(self) -> tuple[float, ...]:
        """Share of the mentions that are hallucinated in each fifth of the captions' text."""
        return tuple(_ratio(*pair) for pair in zip(self.fifth_hallucinated_mentions, self.fifth_mentions))

    @property
    def complete_chair_i(self) -> float:
        """Share of the mentions in complete sentences that are hallucinated."""
        return _ratio(self.complete_hallucinated_mentions, self.complete_mentions)

    @property
    def complete_chair_s(self) -> float:
        """Share of the captions with a hallucinated mention in a complete sentence."""
        return _ratio(self.complete_hallucinated_captions, self.captions)

    def to_dict(self) -> dict[str, Any]:
        """Counts and rates under their names, as JSON can hold them; rates are fractions, not percent."""
        rates = ["chair_s", "chair_i", "recall", "precision", "f1", "mean_tokens", "mean_words", "per_100_words"]
        rates += ["fifth_chair_i", "complete_chair_i", "complete_chair_s"]
        values = {**asdict(self), **{name: getattr(self, name) for name in rates}}
        return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole else 0.0


def summarise(scores: Iterable[CaptionScore], mode: str = "pattern") -> ChairSummary:
    """Add the records of captions up to the corpus-level metric.

    Args:
        scores: records of any number of captions; an iterator is read once. Without any, all rates are 0.
        mode: the mode the scorer had, kept in the summary.
    """
    counts = dict.fromkeys(
        ("captions", "hallucinated_captions", "mentions", "hallucinated_mentions", "mentioned_objects"), 0
    ) | dict.fromkeys(("recalled_objects", "objects", "tokens", "words", "captions_without_mention"), 0)
    complete = dict.fromkeys(("mentions", "hallucinated_mentions", "hallucinated_captions"), 0)
    named, wrong = [0] * FIFTHS, [0] * FIFTHS
    images = set()
    repeated = 0.0
    for score in scores:
        images.add(score.image_id)
        repeated += score.repeated_4_grams
        counts["captions"] += 1
        counts["hallucinated_captions"] += score.chair_s
        counts["mentions"] += len(score.mentions)
        counts["captions_without_mention"] += not score.mentions
        counts["hallucinated_mentions"] += sum(score.hallucinated)
        counts["mentioned_objects"] += len({mention.node for mention in score.mentions})
        counts["recalled_objects"] += len(score.recalled_objects)
        counts["objects"] += len(score.objects)
        counts["tokens"] += score.tokens
        counts["words"] += score.words
        places = score.places()
        for fifth in range(FIFTHS):
            named[fifth] += places.mentions[fifth]
            wrong[fifth] += places.hallucinated[fifth]
        complete["mentions"] += places.complete_mentions
        complete["hallucinated_mentions"] += places.complete_hallucinated
        complete["hallucinated_captions"] += places.complete_hallucinated > 0
    return ChairSummary(
        mode=mode,
        images=len(images),
        repetition=_ratio(repeated, counts["captions"]),
        **counts,
        fifth_mentions=tuple(named),
        fifth_hallucinated_mentions=tuple(wrong),
        **{f"complete_{name}": value for name, value in complete.items()},
        nltk=version("nltk"),
    )
