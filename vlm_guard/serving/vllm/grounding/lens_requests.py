"""What the scheduler does with a request whose picture the lens reads."""

from typing import TYPE_CHECKING

import torch

from vlm_guard.families.patch_grid import place_images
from vlm_guard.method.visual_tokens import visual_mask
from vlm_guard.serving.vllm.grounding.lens_keys import GRIDS, key_of
from vlm_guard.serving.vllm.scheduling.shadows import joint_inputs
from vlm_guard.serving.vllm.served_guards import ServedGuards

if TYPE_CHECKING:
    from vllm.v1.request import Request


def prepare_lens(request: "Request", served: ServedGuards) -> None:
    """Have a prompt read from its first token on, and write the grids of its pictures into its arguments.

    Nothing is done to requests that are not the lens's.
    """
    params = request.sampling_params
    if params is None or key_of(params.extra_args) is None or request.prompt_token_ids is None:
        return
    request.skip_reading_prefix_cache = True
    ids = torch.tensor([list(request.prompt_token_ids)])
    visual = visual_mask(ids, served.architecture.visual_token_ids)
    try:
        placed = place_images(served.model, joint_inputs(request.mm_features)[0], visual, "a box")
    except ValueError:
        return  # tiles, or pictures that this process was not given: no boxes
    params.extra_args = {**(params.extra_args or {}), GRIDS: [list(image.grid) for image in placed]}
