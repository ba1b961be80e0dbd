"""Model profiles: measured or published facts about a model that some methods need, each with its source.

A profile is a small JSON file. Shipped ones lie in `vlm_guard/profiles/`; `vlm-guard calibrate MODEL` writes one into
the user's folder (`$VLM_GUARD_PROFILES`, or `~/.config/vlm_guard/profiles`), which is looked at first.
"""

import json
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

from vlm_guard.untrusted.json_files import read_json, text_field
from vlm_guard.untrusted.printed_text import shown
from vlm_guard.whole_files import write_atomically

SHIPPED = Path(__file__).resolve().parents[1] / "profiles"
# Characters of a text among the facts that are shown: ranges are shorter, packed directions have thousands.
_SHOWN = 40
Source = Literal["paper", "code", "calibrated", "third party", "secondary", "inferred"]


@dataclass(frozen=True, kw_only=True)
class Fact:
    """One value of a profile.

    Attributes:
        value: a number, a list of numbers, or numbers by name.
        source: where it comes from: "paper", "code" (the authors' release), "calibrated" (measured by this project)
            "third party" (somebody else measured it), "secondary" (said to be the paper's by another text; not checked
            in the paper) or "inferred" (another model's value, the nearest that is known).
        note: how it was obtained.
    """

    value: Any
    source: Source
    note: str = ""


@dataclass(frozen=True, kw_only=True)
class Setting(Fact):
    """The value that one option of a method should have for a model.

    Attributes:
        profile: name of the profile that has it.
    """

    profile: str = ""

    @property
    def origin(self) -> str:
        """How results name it: "profile llava-1.5-7b (code)"."""
        return f"profile {self.profile} ({self.source})"


@dataclass(frozen=True, kw_only=True)
class Profile:
    """Facts about one model family and size, and the settings that methods were published with for it.

    Attributes:
        name: file stem.
        match: what a configuration must have, e.g. {"model_type": "llava", "text.hidden_size": 4096}; a list of
            values means any of them.
        facts: by name: `sink_dimensions` (hidden dimensions of massive activations), `sink_threshold`, ...
        settings: by method and option.
    """

    name: str
    match: dict[str, Any]
    facts: dict[str, Fact] = field(default_factory=dict)
    settings: dict[str, dict[str, Setting]] = field(default_factory=dict)

    def matches(self, config: Any) -> bool:
        """Whether this profile is for models with `config`."""
        return all(_agrees(_lookup(config, path), wanted) for path, wanted in self.match.items())

    def value(self, name: str) -> Any:
        """A fact's value, or None when the profile does not have it."""
        fact = self.facts.get(name)
        return None if fact is None else fact.value

    def settings_of(self, method: str) -> dict[str, Setting]:
        """The settings of a method for this model, by option; empty where none are known."""
        return self.settings.get(method, {})

    def save(self, path: Path) -> None:
        """Write the profile atomically as JSON."""
        write_atomically(path, json.dumps(asdict(self), indent=2) + "\n")


def user_profiles() -> Path:
    """The folder that `vlm-guard calibrate` writes to."""
    given = os.environ.get("VLM_GUARD_PROFILES")
    return Path(given) if given else Path.home() / ".config" / "vlm_guard" / "profiles"


def read_profile(path: Path) -> Profile:
    """A profile from its JSON file.

    Raises:
        ValueError: the file is not a profile.
    """
    try:
        data = read_json(path)
        if not isinstance(data, dict) or not isinstance(data.get("facts"), dict) or not isinstance(data["match"], dict):
            raise ValueError("it needs 'name', 'match' and 'facts'")
        for fact_name, fact in data["facts"].items():
            if not isinstance(fact, dict):
                raise ValueError(f"the fact {shown(fact_name)} is {shown(fact)}")
        name = text_field(data, "name", "it")
        facts = {key: Fact(**fact) for key, fact in data["facts"].items()}
        settings = {
            method: {
                option: Setting(**{**fact, "profile": fact.get("profile") or name}) for option, fact in own.items()
            }
            for method, own in data.get("settings", {}).items()
        }
        return Profile(name=name, match=data["match"], facts=facts, settings=settings)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} is not a model profile ({error}); delete it and run 'vlm-guard calibrate'") from error


def all_profiles(*, shipped_only: bool = False) -> Iterator[Profile]:
    """The user's profiles, then the shipped ones."""
    for folder in (SHIPPED,) if shipped_only else (user_profiles(), SHIPPED):
        for path in sorted(folder.glob("*.json")):
            state = path.stat()
            yield _read_once(path, (state.st_mtime_ns, state.st_size, state.st_ino))


def find_profile(config: Any) -> Profile | None:
    """What every profile that matches a model's configuration knows; the first to know a value, the user's, wins."""
    matching = [profile for profile in all_profiles() if profile.matches(config)]
    if not matching:
        return None
    facts: dict[str, Fact] = {}
    settings: dict[str, dict[str, Setting]] = {}
    for profile in reversed(matching):
        facts |= profile.facts
        for method, own in profile.settings.items():
            settings[method] = settings.get(method, {}) | own
    return Profile(name=matching[0].name, match=matching[0].match, facts=facts, settings=settings)


def settings_by_model(method: str, *, shipped_only: bool = False) -> list[tuple[str, Setting]]:
    """(option, setting) of every profile that has settings of a method."""
    profiles = all_profiles(shipped_only=shipped_only)
    return [item for profile in profiles for item in profile.settings_of(method).items()]


def identity_of(config: Any) -> dict[str, Any]:
    """What a new profile of a model should match: its family and the shape of its decoder."""
    text = config.get_text_config(decoder=True)
    return {
        "model_type": config.model_type,
        "text.model_type": text.model_type,
        "text.hidden_size": text.hidden_size,
        "text.num_hidden_layers": text.num_hidden_layers,
        "text.vocab_size": text.vocab_size,
    }


def short_value(value: Any) -> str:
    """A fact's value for people to look at; of packed numbers only the beginning."""
    text = str(value)
    return text if not isinstance(value, str) or len(text) <= _SHOWN else f"{text[:_SHOWN]}... ({len(text)} characters)"


@lru_cache(maxsize=64)
def _read_once(path: Path, state: tuple[int, int, int]) -> Profile:
    """The profile of a file in this state; every `wrap` looks through all files, which change once in a while."""
    return read_profile(path)


def _lookup(config: Any, path: str) -> Any:
    if path.startswith("text."):
        return getattr(config.get_text_config(decoder=True), path.removeprefix("text."), None)
    return getattr(config, path, None)


def _agrees(value: Any, wanted: Any) -> bool:
    return value in wanted if isinstance(wanted, list) else value == wanted
