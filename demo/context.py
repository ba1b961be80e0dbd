"""What all visitors of one page share."""

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vlm_guard.builtin_model import BUILTIN_DIR, SMOL, is_shipped
from vlm_guard.demo.answering import Answer, AnsweringModel, GenerationSettings
from vlm_guard.demo.attention_record import AttentionRecord, RecordStore, read_record, with_view
from vlm_guard.demo.comparing import STOPPED, USER_ERRORS, Comparison, search_example
from vlm_guard.demo.method_options import chosen_methods
from vlm_guard.demo.opening import OpeningSetting, opening_setting
from vlm_guard.demo.patches import view_of
from vlm_guard.demo.pictures import Picture, PictureBrowser
from vlm_guard.demo.sure_panel import SIDES, Checked, Side
from vlm_guard.eval.scenes.recognise import note_about
from vlm_guard.eval.tasks.grounding.finders import coco_mentions
from vlm_guard.families.architecture import describe_architecture
from vlm_guard.families.profiles import find_profile
from vlm_guard.grounding.mention import Mention
from vlm_guard.grounding.nouns import find_mentions
from vlm_guard.grounding.score import weights_of
from vlm_guard.grounding.settings import Grounding
from vlm_guard.guard import Guard
from vlm_guard.method.base import Method
from vlm_guard.runtime.trace import AttentionTrace
from vlm_guard.smol_model.assembly import is_assembled

OPENING_TRIES = 25
"""So many pictures are tried for the opening example; the built-in model takes some tenths of a second for each."""

OPENING_SECONDS = 40.0
"""Nobody should wait longer for the page than this; a slower model opens with the best of what it had time for."""


@dataclass(kw_only=True, eq=False)
class DemoContext:
    """The model, the pictures and the records; nothing in it belongs to one visitor.

    Attributes:
        model: answers, one generation at a time.
        browser: the pictures to choose from.
        records: attention of the answers that were looked at last.
        setting: the method and options that a visitor finds, made from the model.
        opening: an answered example that the page opens with, and a line on how it was found.
    """

    model: AnsweringModel
    browser: PictureBrowser
    records: RecordStore = field(default_factory=RecordStore)
    opening: tuple[Comparison, str] | None = None
    setting: OpeningSetting = field(init=False)

    def __post_init__(self) -> None:
        self.architecture = describe_architecture(self.model.model)
        self.profile = find_profile(self.model.model.config)
        self.setting = opening_setting(self.architecture, self.profile)

    @property
    def model_name(self) -> str:
        """`builtin`, `smol`, a Hugging Face id, or the last part of a folder's name (never a path of this machine)."""
        name = str(getattr(self.model.model.config, "_name_or_path", "") or type(self.model.model).__name__)
        if name == str(BUILTIN_DIR):
            return "builtin"
        if is_assembled(Path(name)):
            return SMOL
        return (
            name.rstrip("/\\").replace("\\", "/").rpartition("/")[2]
            if name.startswith(("/", ".", "~")) or "\\" in name
            else name
        )

    @property
    def model_line(self) -> str:
        """Name, size and device, for the page's head."""
        parameters = sum(parameter.numel() for parameter in self.model.model.parameters())
        size = f"{parameters / 1e9:.1f} B" if parameters >= 1e9 else f"{parameters / 1e6:.1f} M"
        name = "built-in model" if self.model_name == "builtin" else self.model_name
        return f"{name}, {size} parameters, {self.model.model.device.type}"

    def note_about(self, picture: Picture) -> str:
        """A sentence where the model cannot know what is in the picture; empty where it may."""
        return note_about(self.model_name, picture.image)

    @property
    def first_picture(self) -> Picture:
        """The picture the page opens with."""
        return self.browser.first() if self.opening is None else self.opening[0].picture

    def find_opening(self, prompt: str, methods: Sequence[str], options: Mapping[str, Any] | None = None) -> None:
        """Look for an example where the guard helps, among the first pictures; keep the first one if none does.

        Where not even one picture is answered in `OPENING_SECONDS`, the page opens without an example.

        Args:
            prompt: what is asked of each picture.
            methods: names of the methods that guard.
            options: their options by "method.option".
        """
        last = self.browser.picture(self.browser.ids[-1])
        start = Comparison(
            picture=last,
            prompt=prompt,
            settings=GenerationSettings(),
            methods=tuple(methods),
            options=dict(options or {}),
        )
        stop = threading.Event()
        alarm = threading.Timer(OPENING_SECONDS, stop.set)
        alarm.daemon = True
        alarm.start()
        search = search_example(self.model, self.browser, start, stop, OPENING_TRIES)
        tried = [step for step in search if step[0].complete and not step[0].error and step[1] != STOPPED]
        alarm.cancel()
        if tried:
            example, note, found = tried[-1]
            if not found and stop.is_set():
                note = f"None of the first {len(tried)} pictures was a clear gain."
            self.opening = (example if found else tried[0][0], note)

    def records_of(self, comparison: Comparison, side: str) -> tuple[dict[str, AttentionRecord], str]:
        """Attention of both models along the words of one answer, "plain" and "guarded".

        Returns:
            The records, and why the guarded one is missing (empty if it is not).

        Raises:
            ValueError: there is no such answer yet.
        """
        answer = comparison.answer(side)
        if answer is None and comparison.error:
            raise ValueError(f"there is no answer to look at: {comparison.error}")
        if answer is None or answer.ending == "running":
            raise ValueError(f"there is no {side} answer to look at yet; run the comparison first")

        def record(which: str, methods: Sequence[Method]) -> AttentionRecord:
            key = (comparison.number, side, which)
            return self.records.get(key, lambda: self._record(comparison, answer, methods))

        records = {"plain": record("plain", ())}
        try:
            records["guarded"] = record("guarded", chosen_methods(comparison.methods, comparison.options))
        except USER_ERRORS as error:
            return records, str(error)
        return records, ""

    def check(self, comparison: Comparison) -> Checked:
        """Both answers of a comparison with a score for everything they mention, and repaired by the rules.

        The built-in model knows MSCOCO's 80 objects, so these are what it is asked about; of other models all nouns.

        Raises:
            ValueError: there are no answers yet, or this model's answers cannot be scored.
        """
        sides: dict[Side, Answer] = {}
        for side in SIDES:
            answer = comparison.answer(side)
            if answer is not None and answer.ending != "running":
                sides[side] = answer
        if not sides:
            raise ValueError("there is no answer to check yet; run the comparison first")
        find = coco_mentions if is_shipped(self.model_name) else find_mentions
        settings = Grounding(find=find, repair="drop")
        found = self.model.ground(comparison.picture.image, comparison.prompt, list(sides.values()), settings)
        return Checked(number=comparison.number, answers=dict(zip(sides, found, strict=True)))

    def score_weights(self, mention: Mention) -> Mapping[str, float] | None:
        """The weights that made a mention's score, where they were fitted for this model."""
        return weights_of(self.profile, tuple(mention.parts))

    def _record(self, comparison: Comparison, answer: Answer, guarding: Sequence[Method]) -> AttentionRecord:
        image, prompt = comparison.picture.image, comparison.prompt
        token_ids = self.architecture.visual_token_ids

        def read(trace: AttentionTrace, guard: Guard) -> AttentionRecord:
            return read_record(trace, guard, len(answer.token_ids))

        record = self.model.replay(image, prompt, guarding, answer, comparison.settings, read)
        return with_view(record, lambda refined: view_of(self.model, token_ids, refined or image, prompt))
