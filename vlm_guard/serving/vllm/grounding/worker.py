"""What vLLM's workers answer about the prompts whose hidden states they keep (`--worker-extension-cls`)."""

from collections.abc import Sequence
from typing import Any

import torch

from vlm_guard.families.patch_grid import PlacedImage
from vlm_guard.grounding.boxes import box_around_peak
from vlm_guard.grounding.lens import PromptLens
from vlm_guard.serving.vllm.grounding.lens_rows import kept_prompts
from vlm_guard.serving.vllm.grounding.readout import EngineReadout


class LensWorker:
    """Goes in front of vLLM's class of workers, whose methods the engine calls by their names."""

    vllm_config: Any
    model_runner: Any

    def vlm_guard_lens(self, key: str, words: Sequence[Sequence[Sequence[int]]]) -> dict[str, Any] | None:
        """The lens of words in a prompt that was kept, which is kept no longer.

        Args:
            key: of the prompt.
            words: of each word its spellings, as token ids.

        Returns:
            `log_probs`: of each word. `boxes`: of each, where in which picture it was read, as the fields of `Box`;
            None where the pictures' grids are not known. None in all if this worker has not kept the whole prompt.
        """
        prompt = kept_prompts(self.vllm_config.instance_id).pop(key, None)
        states = None if prompt is None else prompt.states()
        if prompt is None or states is None:
            return None
        readout = EngineReadout(self.model_runner.get_model(), self.vllm_config.model_config.get_vocab_size())
        images, start = [], 0
        for index, (rows, columns) in enumerate(prompt.grids):
            places = torch.tensor(prompt.places[start : start + rows * columns])
            images.append(PlacedImage(row=0, index=index, grid=(rows, columns), places=places))
            start += rows * columns
        with torch.inference_mode():
            lens = PromptLens(states, readout, 1, [{token for ways in words for way in ways for token in way}])
            boxes = [box_around_peak(lens.patch_log_probs(0, ways), images) for ways in words]
            log_probs = [lens.log_prob(0, ways) for ways in words]
        return {"log_probs": log_probs, "boxes": [None if box is None else vars(box) for box in boxes]}

    def vlm_guard_forget(self, key: str) -> None:
        """Nobody will ask about this prompt."""
        kept_prompts(self.vllm_config.instance_id).pop(key, None)
