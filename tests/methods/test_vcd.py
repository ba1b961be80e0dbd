"""VCD: the noise schedule, noise that depends on nothing but the image and the seed, and the noised branch."""

import pytest
import torch

from vlm_guard import wrap
from vlm_guard.methods.vcd import VCD, add_noise, signal_share

# sqrt(abar) and sqrt(1 - abar) of the published schedule.
SCHEDULE = {
    0: (0.99999, 0.00473),
    100: (0.99829, 0.05841),
    200: (0.99388, 0.11048),
    300: (0.98098, 0.19409),
    400: (0.94486, 0.32748),
    500: (0.86302, 0.50517),
    600: (0.73425, 0.67888),
    700: (0.59268, 0.80544),
    800: (0.46701, 0.88425),
    900: (0.36489, 0.93105),
    999: (0.28504, 0.95851),
}


@pytest.mark.parametrize("step", SCHEDULE)
def test_published_schedule(step):
    share = signal_share(step)
    assert (share**0.5, (1 - share) ** 0.5) == pytest.approx(SCHEDULE[step], abs=1e-5)


def test_noise_equals_the_formula_and_keeps_the_type():
    pixels = torch.randn(2, 3, 8, 8)
    noised = add_noise(pixels, 500, torch.Generator().manual_seed(3))
    noise = torch.randn(pixels.shape, generator=torch.Generator().manual_seed(3))
    assert torch.allclose(noised, 0.86302 * pixels + 0.50517 * noise, atol=3e-5)
    assert add_noise(pixels.half(), 500).dtype == torch.float16


def test_seeded_noise_is_the_same_in_any_batch_and_unseeded_follows_torch():
    pixels = torch.randn(3, 3, 8, 8)
    method = VCD()
    together = method._noised("pixel_values", pixels, {})
    assert torch.equal(together[2:], method._noised("pixel_values", pixels[2:], {}))
    assert not torch.equal(together, VCD(seed=1)._noised("pixel_values", pixels, {}))
    free = VCD(seed=None)
    torch.manual_seed(5)
    first = free._noised("pixel_values", pixels, {})
    torch.manual_seed(5)
    assert torch.equal(first, free._noised("pixel_values", pixels, {}))
    assert not torch.equal(first, free._noised("pixel_values", pixels, {}))


def test_padding_around_and_between_images_stays_as_it_is():
    pixels = torch.zeros(1, 2, 3, 8, 8)
    pixels[0, 0, :, :4, :6] = torch.randn(3, 4, 6)
    mask = torch.zeros(1, 2, 8, 8)
    mask[0, 0, :4, :6] = 1
    noised = VCD()._noised("pixel_values", pixels, {"pixel_attention_mask": mask})
    assert bool((noised[0, 1] == 0).all()) and bool((noised[0, 0, :, 4:] == 0).all())
    assert bool((noised[0, 0, :, :4, :6] != pixels[0, 0, :, :4, :6]).all())
    alone = VCD()._noised("pixel_values", pixels[:, :1, :, :4, :6], {})
    assert torch.equal(noised[:, :1, :, :4, :6], alone)


def test_packed_patches_are_split_into_their_images():
    grid = torch.tensor([[1, 2, 2], [1, 2, 4]])
    pixels = torch.randn(12, 6)
    together = VCD()._noised("pixel_values", pixels, {"image_grid_thw": grid})
    assert torch.equal(together[4:], VCD()._noised("pixel_values", pixels[4:], {"image_grid_thw": grid[1:]}))


def test_almost_no_noise_gives_almost_the_plain_logits(zoo_model):
    from zoo import Prompt

    zoo = zoo_model("llava")
    inputs = zoo.make_inputs([Prompt()])
    record = {"return_dict_in_generate": True, "output_logits": True, "max_new_tokens": 3, "do_sample": False}
    plain = zoo.model.generate(**inputs, **record)
    with wrap(zoo.model, None, VCD(noise_step=0, plausibility=0.0)) as guard:
        faint = guard.generate(**inputs, **record)
    with wrap(zoo.model, None, VCD(noise_step=999, plausibility=0.0)) as guard:
        strong = guard.generate(**inputs, **record)
    difference = float((faint.logits[0] - plain.logits[0]).abs().max())
    assert 0 < difference < 0.1 * float((strong.logits[0] - plain.logits[0]).abs().max())


def test_the_vision_tower_runs_once_per_picture_and_branch(zoo_model):
    from zoo import Prompt

    zoo = zoo_model("llava")
    inputs = zoo.make_inputs([Prompt(), Prompt(content=4)])
    calls = []
    tower = zoo.model.model.vision_tower
    hook = tower.register_forward_hook(lambda module, args, output: calls.append(1))
    try:
        with wrap(zoo.model, None, "vcd") as guard:
            guard.generate(**inputs, max_new_tokens=4)
        both = len(calls)
        with wrap(zoo.model, None, "softpag") as guard:
            guard.generate(**inputs, max_new_tokens=4)
    finally:
        hook.remove()
    assert (both, len(calls) - both) == (2, 1)
