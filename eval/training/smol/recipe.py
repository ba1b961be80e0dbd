"""The numbers of a training run, in one place; written to ``recipe.json`` beside the trained part."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

MOST_BYTES = 16 * 2**20
"""Of the trained part in the package."""


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How the trained part of the small model is made. Everything is counted in pictures, nothing in minutes.

    Attributes:
        see_pictures: pictures from which tower and projector learn to name patches through SmolLM2's word embeddings.
        see_rounds: how often each of them is seen.
        see_batch: pictures a step of that stage.
        see_rate: peak learning rate of the projector in that stage.
        tower_rate: peak learning rate of the tower in that stage, which begins as the built-in model's.
        speak_pictures: pictures, each seen once, from which the language model learns to describe and to answer.
        speak_batch: pictures a step of that stage.
        speak_rate: peak learning rate of that stage.
        rank: of the low-rank changes of the language model.
        workers: processes of one thread that share the weights in the second stage. They update without locks, so two
            runs do not give the same bits.
        near: percentage of pictures that show a part of a scene, enlarged.
        far: percentage of pictures that show a scene made smaller, in a larger plain picture.
        second_view: percentage of the full pictures of the second stage behind which an enlarged part is shown, too.
        image_drop: percentage of pictures hidden from the text, so that prompts without a picture are known.
        patch_weight: weight of naming the patches in the second stage.
        side_weight: weight of telling left from right in the first stage.
        class_weight: weight of what the tower's class token learns in the first stage: which categories are there.
        repeat_weight: weight of the loss on probability given to a category that the caption named before.
        text_every: every so many steps, one of them also repeats SmolLM2's own answers to questions without a picture.
        text_questions: how many such questions there are.
        presence_pairs: present and absent categories asked about per picture, each.
        rare_absent: percentage of these absent ones that are among the rarer half of all.
        weight_decay: AdamW's.
        seed: of weights, pictures, order and text.
    """

    see_pictures: int = 6_000
    see_rounds: int = 2
    see_batch: int = 32
    see_rate: float = 2e-3
    tower_rate: float = 3e-4
    speak_pictures: int = 6_000
    speak_batch: int = 4
    speak_rate: float = 1e-3
    rank: int = 16
    workers: int = 2
    near: int = 22
    far: int = 22
    second_view: int = 16
    image_drop: int = 10
    patch_weight: float = 0.3
    side_weight: float = 0.3
    class_weight: float = 1.0
    repeat_weight: float = 4.0
    text_every: int = 4
    text_questions: int = 96
    presence_pairs: int = 2
    rare_absent: int = 70
    weight_decay: float = 0.01
    seed: int = 0

    def __post_init__(self) -> None:
        counts = (self.see_pictures, self.speak_pictures, self.see_batch, self.speak_batch, self.workers, self.rank)
        if min(counts) < 1 or self.near + self.far > 100:
            raise ValueError(
                f"counts {counts} must be at least 1, and near={self.near} and far={self.far} at most 100 together"
            )

    @property
    def see_steps(self) -> int:
        """Steps of the first stage."""
        return self.see_rounds * (self.see_pictures // self.see_batch)

    @property
    def speak_steps(self) -> int:
        """Steps of the second stage, all workers together."""
        return self.speak_pictures // self.speak_batch

    def as_json(self) -> dict[str, Any]:
        """The fields as a plain dictionary."""
        return asdict(self)
