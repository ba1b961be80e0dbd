"""The numbers of a training run, in one place; written to ``recipe.json`` beside the trained model."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How the built-in model is made.

    Attributes:
        vision_minutes: Wall-clock budget of the stage in which only the vision tower learns, by naming patches.
        joint_minutes: Budget of the stage in which the decoder learns to describe and to answer.
        finish_minutes: Budget of the last stage: the joint one at a small rate, with `finish_repeat_weight`
            and `finish_rare_absent`.
        scenes: Number of rendered training scenes.
        seed: Seed of weights, order and text. Two workers update shared weights without locks, so a CPU run is not
            repeatable bit for bit; a GPU run is up to the GPU's own rounding.
        workers: Training processes that share the weights (CPU), or 1 (GPU).
        vision_batch: Images per step and worker in the vision stage.
        joint_batch: Images per step and worker in the joint stage.
        vision_rate: Peak learning rate of the vision stage.
        joint_rate: Peak learning rate of the joint stage.
        tower_scale: Part of ``joint_rate`` at which the vision tower goes on learning in the joint stage; 0 leaves it
            as it is, which saves a sixth of the time. A full rate undoes what it knows.
        loader_processes: Processes that prepare text on a GPU run; 0 prepares it in the worker itself.
        image_drop: Share of images hidden from the text, so that prompts without an image are known.
        patch_weight: Weight of the patch-naming loss beside the language loss.
        side_weight: Weight of the loss that asks every visual token for its half of the picture.
        repeat_weight: Weight of the loss on probability given to a category the caption named before.
        finish_repeat_weight: The same in the last stage. Repeats go within minutes; with such a weight from the start
            the model would learn to name something absent instead.
        early_weight: Weight of the loss that asks for yes or no at the word asked about, in the middle of the decoder;
            half of it for left or right.
        presence_pairs: Present and absent categories asked about per scene, each.
        rare_absent: Percentage of these absent ones that are among the rarer half of all, so that the model expects
            frequent things.
        finish_rare_absent: The same in the last stage.
        weight_decay: AdamW's.
    """

    vision_minutes: float = 19.2
    joint_minutes: float = 54.7
    finish_minutes: float = 4.0
    scenes: int = 100_000
    seed: int = 0
    workers: int = 2
    vision_batch: int = 32
    joint_batch: int = 8
    vision_rate: float = 1e-3
    joint_rate: float = 1.2e-3
    tower_scale: float = 0.0
    loader_processes: int = 0
    image_drop: float = 0.10
    patch_weight: float = 0.5
    side_weight: float = 0.3
    repeat_weight: float = 6.0
    finish_repeat_weight: float = 12.0
    early_weight: float = 1.0
    presence_pairs: int = 3
    rare_absent: int = 70
    finish_rare_absent: int = 85
    weight_decay: float = 0.05

    def __post_init__(self) -> None:
        stages = (self.vision_minutes, self.joint_minutes, self.finish_minutes)
        if min(stages) <= 0 or self.scenes < 1000 or self.workers < 1:
            raise ValueError(
                f"minutes of the stages {stages}, scenes={self.scenes}, workers={self.workers}: minutes must be "
                f"positive, scenes at least 1000 and workers at least 1."
            )

    @property
    def minutes(self) -> float:
        """Wall-clock budget of all stages together, without rendering and evaluation."""
        return self.vision_minutes + self.joint_minutes + self.finish_minutes

    def lasting(self, minutes: float) -> Recipe:
        """The same recipe with every stage longer or shorter by one factor, so that together they take `minutes`."""
        factor = minutes / self.minutes
        names = ("vision_minutes", "joint_minutes", "finish_minutes")
        return replace(self, **{name: round(factor * getattr(self, name), 3) for name in names})

    def as_json(self) -> dict[str, Any]:
        """The fields as a plain dictionary."""
        return asdict(self)


def recipe_for(device: str, minutes: float | None = None, **changes: Any) -> Recipe:
    """The recipe for ``"cpu"`` (two processes of one thread) or ``"cuda"`` (one process, large batches, 20 minutes).

    The CUDA numbers are an estimate: they have not been tried on a GPU.

    Args:
        device: what the training runs on.
        minutes: of all stages together, if not the recipe's.
        **changes: other values of single fields.
    """
    if device == "cpu":
        recipe = Recipe(**changes)
        return recipe if minutes is None else recipe.lasting(minutes)
    gpu = {"workers": 1, "vision_batch": 512, "joint_batch": 256, "loader_processes": 8}
    recipe = Recipe(**{**gpu, "vision_rate": 2e-3, "joint_rate": 2e-3, **changes})
    return recipe.lasting(20.0 if minutes is None else minutes)
