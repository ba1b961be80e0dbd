"""The numbers of a training run, in one place; written to ``recipe.json`` beside the trained model."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How the built-in model is made.

    Attributes:
        minutes: Wall-clock budget of both stages together, without rendering and evaluation.
        vision_share: Part of the budget in which only the vision tower learns, by naming patches.
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
        early_weight: Weight of the loss that asks for yes or no at the word asked about, in the middle of the decoder;
            half of it for left or right.
        presence_pairs: Present and absent categories asked about per scene, each.
        weight_decay: AdamW's.
    """

    minutes: float = 80.0
    vision_share: float = 0.24
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
    early_weight: float = 1.0
    presence_pairs: int = 3
    weight_decay: float = 0.05

    def __post_init__(self) -> None:
        if self.minutes <= 0 or self.scenes < 1000 or self.workers < 1:
            raise ValueError(
                f"minutes={self.minutes}, scenes={self.scenes}, workers={self.workers}: minutes must be positive, "
                f"scenes at least 1000 and workers at least 1."
            )
        if not 0 < self.vision_share < 1:
            raise ValueError(f"vision_share={self.vision_share} must lie between 0 and 1.")

    def as_json(self) -> dict[str, Any]:
        """The fields as a plain dictionary."""
        return asdict(self)


def recipe_for(device: str, **changes: Any) -> Recipe:
    """The recipe for ``"cpu"`` (two processes of one thread) or ``"cuda"`` (one process, large batches, 20 minutes).

    The CUDA numbers are an estimate: they have not been tried on a GPU.
    """
    if device == "cpu":
        return Recipe(**changes)
    gpu = {"minutes": 20.0, "workers": 1, "vision_batch": 512, "joint_batch": 256, "loader_processes": 8}
    return Recipe(**{**gpu, "vision_rate": 2e-3, "joint_rate": 2e-3, **changes})
