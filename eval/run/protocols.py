"""Published protocols by name: prompt, template, lengths, decoding, parser and images as a paper's numbers were made.

A protocol is a set of settings that stands below the settings file and the options of a run, so each of them can be
given otherwise; results then say that they were. What our sources do not state is named in the remarks. The sources
themselves are listed in docs/reproduction.md.
"""

import difflib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

DETAIL = "Please describe this image in detail."
HELP_ME = "Please help me describe the image in detail."
VICUNA = (
    "A chat between a curious user and an artificial intelligence assistant. The assistant gives helpful, detailed, "
    "and polite answers to the user's questions. USER: {image}\n{prompt} ASSISTANT:"
)
"""LLaVA-1.5's template with Vicuna's system sentence; llava-hf's chat template has none."""

_OPERA_IMAGES = "4339ab4b67420065cf2632dbdf2395f9dcb389a72a46fee6bbb1e018923e65eb"
_POPE_IMAGES = "b3d246eb475f49f597cfb7727e130d87999bceab9221a0b3bda6e7efadc39c65"


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """How published numbers were made.

    Attributes:
        name: as `--protocol` takes it.
        what: one line for people.
        source: whose numbers are made this way, and where that is written.
        settings: as a settings file has them, those of tasks under the task's name.
        needs: what has to be given as well: the setting's name and, in words, which file.
        images: how many pictures are asked about.
        images_sha256: sha256 of the published list's image ids in ascending order, one a line; None where the list is
            not published, or not known to us.
        remarks: what our sources do not state, and what else to know before its numbers are compared.
    """

    name: str
    what: str
    source: str
    settings: Mapping[str, Any]
    needs: tuple[str, str]
    images: int
    images_sha256: str | None = None
    remarks: str = ""


def _chair(prompt: str, mode: str, tokens: int, **further: Any) -> dict[str, Any]:
    return {
        "tasks": ["chair"],
        "split": "val2014",
        "chair_mode": mode,
        "chair": {"prompt": prompt, "max_new_tokens": tokens},
        **further,
    }


def _pope(parser: str, suffix: str, tokens: int, **further: Any) -> dict[str, Any]:
    return {
        "tasks": ["pope"],
        "split": "val2014",
        "pope": {"parser": parser, "suffix": suffix, "max_new_tokens": tokens},
        **further,
    }


_GREEDY = {"decoding": {"do_sample": False, "num_beams": 1}}
_SAMPLED = {"decoding": {"do_sample": True, "temperature": 1.0, "top_p": 1.0, "num_beams": 1}}
_POPE_FILES = (
    "pope.questions",
    "--questions FILE three times: POPE's coco_pope_random.json, coco_pope_popular.json and coco_pope_adversarial.json",
)

PROTOCOLS = (
    Protocol(
        name="opera-chair-500",
        what="CHAIR on OPERA's 500 images: one prompt, 512 tokens, WordNet pipeline, greedy.",
        source="OPERA (CVPR 2024, arXiv 2311.17911): its repository's chair.py and released captions",
        settings=_chair(DETAIL, "wordnet", 512, **_GREEDY),
        needs=("image_list", "--image-list FILE: OPERA's 500 images, for example the captions its repository releases"),
        images=500,
        images_sha256=_OPERA_IMAGES,
        remarks="beam search is the other published row: add --num-beams 5",
    ),
    Protocol(
        name="shield-chair-500",
        what="CHAIR on the same 500 images with the original (pattern) pipeline.",
        source="SHIELD: its question file lists OPERA's images and its scorer singularises by rules",
        settings=_chair(DETAIL, "pattern", 512, **_GREEDY),
        needs=("image_list", "--image-list FILE: SHIELD's data/CHAIR/questions.jsonl, or OPERA's captions"),
        images=500,
        images_sha256=_OPERA_IMAGES,
        remarks="whether Vicuna's system sentence stands in front is not stated",
    ),
    Protocol(
        name="pai-chair-500",
        what="CHAIR as PAI measures it: other prompt, Vicuna's system sentence, WordNet pipeline.",
        source="PAI (ECCV 2024, arXiv 2407.21771) and its repository; VISTA's code asks in the same way",
        settings=_chair(HELP_ME, "wordnet", 512, template=VICUNA, **_GREEDY),
        needs=(
            "image_list",
            "--image-list FILE: PAI draws 500 with seed 927 from the order of its disk; no list is out",
        ),
        images=500,
        remarks="without PAI's own list its numbers can be approached only",
    ),
    Protocol(
        name="less-is-more-chair-500",
        what="CHAIR on the 500 images of Less is More.",
        source="Less is More (ACL 2024, arXiv 2402.14545): its repository's chair-500.jsonl and scorer",
        settings=_chair(DETAIL, "wordnet", 512, **_GREEDY),
        needs=("image_list", "--image-list FILE: chair-500.jsonl of its repository"),
        images=500,
        remarks="the ids of the list are not known to us, so they are not checked",
    ),
    Protocol(
        name="halc-chair-64",
        what="CHAIR with at most 64 new tokens; never beside numbers of 512.",
        source="HALC (ICML 2024, arXiv 2403.00425); Nullu and CIPHER print the same table",
        settings=_chair(DETAIL, "pattern", 64, **_GREEDY),
        needs=("image_list", "--image-list FILE: 500 images of val2014; no common list is published"),
        images=500,
        remarks="text pipeline and images are not stated (pattern here); their beam search rows have --num-beams 3",
    ),
    Protocol(
        name="pope-chair-brief",
        what="CHAIR of POPE's Table 2, first instruction: a brief description.",
        source="POPE (EMNLP 2023, arXiv 2305.10355), Table 2 and its released captions; 2,000 images",
        settings=_chair("Provide a brief description of the given image.", "pattern", 512),
        needs=("image_list", "--image-list FILE: the 2,000 images of POPE's released captions"),
        images=2000,
        remarks="token limit and decoding are not stated: 512 here, and greedy unless the run says otherwise",
    ),
    Protocol(
        name="pope-chair-short",
        what="CHAIR of POPE's Table 2, second instruction: a short caption.",
        source="POPE (EMNLP 2023, arXiv 2305.10355), Table 2 and its released captions; 2,000 images",
        settings=_chair("Generate a short caption of the image.", "pattern", 512),
        needs=("image_list", "--image-list FILE: the 2,000 images of POPE's released captions"),
        images=2000,
        remarks="token limit and decoding are not stated: 512 here, and greedy unless the run says otherwise",
    ),
    Protocol(
        name="opera-pope",
        what="POPE-COCO, the bare question, 10 tokens, any negative word is no, greedy.",
        source="OPERA (CVPR 2024, arXiv 2311.17911): its repository; ILVAD's table of VAR, VHR and VCD is of this kind",
        settings=_pope("opera", "none", 10, **_GREEDY),
        needs=_POPE_FILES,
        images=500,
        images_sha256=_POPE_IMAGES,
        remarks="OPERA's own row has --num-beams 5 and an older random file of 2,910 questions",
    ),
    Protocol(
        name="pai-pope",
        what="POPE-COCO, the bare question with Vicuna's system sentence, up to 512 tokens, greedy.",
        source="PAI (ECCV 2024, arXiv 2407.21771) and its repository",
        settings=_pope("opera", "none", 512, template=VICUNA, **_GREEDY),
        needs=_POPE_FILES,
        images=500,
        images_sha256=_POPE_IMAGES,
    ),
    Protocol(
        name="vcd-pope",
        what="POPE-COCO sampled, one word asked for, Vicuna's system sentence, right answer as a substring.",
        source="VCD (CVPR 2024, arXiv 2311.16922) and its repository; SHIELD and AGLA score alike",
        settings=_pope("vcd", "one_word", 1024, template=VICUNA, **_SAMPLED),
        needs=_POPE_FILES,
        images=500,
        images_sha256=_POPE_IMAGES,
        remarks="its adversarial file has the typo 'imange' in 57 questions; give that file for its numbers",
    ),
    Protocol(
        name="pope-audit",
        what="POPE-COCO greedy on llava-1.5-7b-hf: the nearest published baseline to this project.",
        source="pope-audit 0.1.1 on PyPI, its README (weights in NF4)",
        settings=_pope("pope", "none", 10, template="USER: {image}\n{prompt}\nASSISTANT:", **_GREEDY),
        needs=_POPE_FILES,
        images=500,
        images_sha256=_POPE_IMAGES,
        remarks="it reads the first token's logits, here the text is read; its weights are quantised",
    ),
)
_BY_NAME = {protocol.name: protocol for protocol in PROTOCOLS}


def find_protocol(name: str) -> Protocol:
    """A protocol by name.

    Raises:
        ValueError: there is none; the message suggests the nearest one.
    """
    if name not in _BY_NAME:
        near = difflib.get_close_matches(name, _BY_NAME, n=1, cutoff=0.5)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"there is no protocol {name!r}.{hint} There are {', '.join(_BY_NAME)}")
    return _BY_NAME[name]


def require_needs(protocol: Protocol, settings: Any) -> None:
    """Refuse a run that lacks what a protocol does not bring along: its list of images, or its questions.

    Raises:
        ValueError: it is not given; the message says what to give.
    """
    setting, what = protocol.needs
    value = settings
    for part in setting.split("."):
        value = getattr(value, part)
    if not value:
        raise ValueError(f"--protocol {protocol.name} needs {what}")


def below(protocol: Protocol, given: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a protocol with those that were given on top.

    A split is left out where the data is no COCO folder: scenes have theirs in their name.
    """
    settings = dict(protocol.settings)
    if not str(given.get("data", "")).startswith("coco:"):
        settings.pop("split", None)
    return _merged(settings, given)


def _merged(lower: Mapping[str, Any], upper: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(lower)
    for name, value in upper.items():
        before = merged.get(name)
        if isinstance(before, Mapping) and isinstance(value, Mapping):
            value = _merged(before, value)
        merged[name] = value
    return merged


def deviations(protocol: Protocol, settings: Any, image_ids: Mapping[int, Any], ids_hash: str) -> list[str]:
    """What a run does otherwise than its protocol, in words; empty where it is as published.

    Args:
        protocol: the run's protocol.
        settings: the run's settings (`RunSettings`).
        image_ids: the pictures that are asked about, by id.
        ids_hash: sha256 of their ids in ascending order, one a line.
    """
    found = []
    for way, published in _leaves(protocol.settings):
        now = settings
        for part in way:
            now = getattr(now, part)
        if now != published:
            found.append(f"{'.'.join(way)} is {now!r} instead of {published!r}")
    if len(image_ids) != protocol.images:
        found.append(f"{len(image_ids)} images instead of {protocol.images}")
    elif protocol.images_sha256 not in (None, ids_hash):
        found.append("other images than the published list")
    return found


def _leaves(settings: Mapping[str, Any], way: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    for name, value in settings.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, (*way, name))
        else:
            yield (*way, name), value


def protocols_markdown() -> str:
    """The table of docs/reproduction.md."""
    lines = ["| protocol | what it is | source | give as well | remarks |", "|---|---|---|---|---|"]
    for item in PROTOCOLS:
        cells = (f"`{item.name}`", item.what, item.source, item.needs[1], item.remarks)
        lines.append(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |")
    return "\n".join(lines) + "\n"
