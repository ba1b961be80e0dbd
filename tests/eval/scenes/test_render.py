import hashlib

import numpy as np
import pytest

from vlm_guard.eval.scenes.categories import COCO_IDS, NAMES
from vlm_guard.eval.scenes.draws import Draws
from vlm_guard.eval.scenes.icons import icons
from vlm_guard.eval.scenes.render import SIZE, draw_icon, render
from vlm_guard.eval.scenes.world import SCENE_TYPES, SPLITS, draw_categories, partners

# SHA-256 of pixels, objects and patch labels of scenes 0 to 4 with seed 7: the same on every machine.
GOLDEN = {
    "common": "f1ceb108d22c93e4b8e29d8eab55eeb08c309e67fef82483330c7e62f7b61c8f",
    "broken": "d3c99c46746048f1af5636b92fcdcbe44ad6c94e03147aea0b4f4a0641953189",
    "held-out": "498357e4d0b1a17a1acdec0c5646ea30bac39699b8eb956eb9b1dd68ebc7d3ac",
    "crowded": "5d806459ddd0aa885d6a5d91e0956ed8114c65f105e66fd338f9c67701690829",
    "small": "197032d4a2ad46758985700f1ba9daa625a5e31118ce31dc066df750733dca96",
}


@pytest.mark.parametrize("split", SPLITS)
def test_a_seed_gives_the_same_scenes_for_ever(split):
    digest = hashlib.sha256()
    for index in range(5):
        scene = render(split, 7, index)
        digest.update(scene.pixels.tobytes())
        digest.update(repr([(item.category, item.box, item.area) for item in scene.objects]).encode())
        digest.update(scene.patches.tobytes())
    assert digest.hexdigest() == GOLDEN[split]


def test_seeds_and_splits_differ():
    first = render("common", 7, 0).pixels
    assert not np.array_equal(first, render("common", 7, 1).pixels)
    assert not np.array_equal(first, render("common", 8, 0).pixels)
    assert not np.array_equal(first, render("broken", 7, 0).pixels)


def test_objects_lie_in_the_picture_and_agree_with_patches():
    for index in range(40):
        scene = render("common", 3, index)
        assert scene.pixels.shape == (SIZE, SIZE, 3) and scene.pixels.dtype == np.uint8
        for item in scene.objects:
            x, y, width, height = item.box
            assert x >= 0 and y >= 0 and x + width <= SIZE and y + height <= SIZE
            assert 25 <= item.area <= width * height
        named = {int(label) - 1 for label in scene.patches.flat if label}
        # Patches also show what is mostly covered, but large objects always have one.
        assert {item.category for item in scene.objects if item.area > 300} <= named


def test_unknown_split_is_refused():
    with pytest.raises(ValueError, match="common, broken, held-out, crowded, small"):
        render("brokn", 1)


def test_turning_and_scaling_keep_the_icon_inside_its_frame():
    icon = icons(held_out=False)[0][0]
    upright = draw_icon(icon, 20, 40, 0, False)
    turned = draw_icon(icon, 20, 40, 20, True)
    assert upright.shape == (41, 21, 4)
    assert turned.shape[0] > 40 and turned.shape[1] > 30
    assert upright[..., :3].max() <= 255 and (upright[..., :3] <= upright[..., 3:] + 1).all()
    # Opaque area is kept up to sampling at the edges.
    assert abs(turned[..., 3].sum() / upright[..., 3].sum() - 1) < 0.1


def test_every_category_has_icons_and_held_out_ones_are_others():
    shown, hidden = icons(False), icons(True)
    assert len(shown) == len(hidden) == len(NAMES) == 80
    for known, unseen in zip(shown, hidden):
        assert known and unseen
        assert {icon.style for icon in known}.isdisjoint(icon.style for icon in unseen)


def test_official_ids():
    assert len(set(COCO_IDS)) == 80
    assert (COCO_IDS[NAMES.index("person")], COCO_IDS[NAMES.index("toothbrush")]) == (1, 90)
    assert COCO_IDS[NAMES.index("tennis racket")] == 43 and COCO_IDS[NAMES.index("dining table")] == 67


def test_scene_types_cover_all_categories():
    assert {name for scene in SCENE_TYPES for name in scene.pool} == set(NAMES)


def _partner_rate(split: str) -> float:
    """Chance that a present category of a scene's pool has a present partner."""
    draws, rates = Draws(5), []
    for _ in range(400):
        scene, categories = draw_categories(draws, SPLITS[split])
        present = set(categories)
        rates += [category in partners(scene, present - {category}) for category in present]
    return sum(rates) / len(rates)


def test_broken_takes_partners_away():
    assert _partner_rate("broken") < _partner_rate("common") - 0.15


def test_crowded_scenes_have_many_categories():
    draws = Draws(5)
    assert all(6 <= len(draw_categories(draws, SPLITS["crowded"])[1]) <= 10 for _ in range(200))


def test_small_scenes_hold_as_much_as_common_ones_in_a_smaller_size():
    scenes = {split: [render(split, 3, index) for index in range(60)] for split in ("common", "small")}
    counts = {split: sum(len(scene.objects) for scene in found) for split, found in scenes.items()}
    assert counts["small"] > 0.85 * counts["common"]
    sides = {split: [max(item.box[2:]) for scene in found for item in scene.objects] for split, found in scenes.items()}
    assert max(sides["small"]) < 30 < np.median(sides["common"]) + 5 and np.median(sides["small"]) < 20


def test_draws_are_the_guaranteed_stream():
    draws = Draws(1, 2, 3)
    assert [draws.below(1000) for _ in range(4)] == [616, 483, 571, 86]
    assert sorted(draws.shuffled(range(9))) == list(range(9))
    noise = draws.noise((100, 100), 20)
    assert abs(float(noise.std()) - 20) < 1 and abs(float(noise.mean())) < 1
