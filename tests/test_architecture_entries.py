"""Entries of model families: their grids lie as the pictures do, they are found, and a new one takes a few lines."""

import re
from pathlib import Path

import method_cases
import pytest
import torch

from vlm_guard.families import family as entries
from vlm_guard.families.architecture import describe_architecture
from vlm_guard.families.family import GENERIC, ArchitectureEntry, entry_of, register_architecture
from vlm_guard.families.patch_grid import place_images
from vlm_guard.families.vision_tower import describe_vision_tower
from zoo import Prompt, families

torch.set_num_threads(1)

GUIDE = Path(__file__).parents[1] / "docs" / "new-family.md"
LONGEST_FAMILY = 40
OF_PIXELS = ["llava", "video_llava", "llava_pixtral", "mistral3", "gemma3", "paligemma", "deepseek_vl", "janus"]


@torch.no_grad()
def entering(zoo, inputs):
    """[P, hidden size] what enters the first decoder layer."""
    seen = []
    first = describe_architecture(zoo.model).layers[0].layer
    hook = first.register_forward_pre_hook(
        lambda _, args, kwargs: seen.append(args[0] if args else kwargs["hidden_states"]), with_kwargs=True
    )
    zoo.model(**inputs)
    hook.remove()
    return seen[0][0]


@pytest.mark.parametrize("family", OF_PIXELS)
@pytest.mark.parametrize("content", [0, 1])
def test_the_grid_lies_as_the_picture_does(zoo_model, family, content):
    """Pixels of one cell of the grid change the token of that cell most; in a random tower one other may come close."""
    zoo = zoo_model(family)
    inputs = zoo.make_inputs([Prompt(text_before=2, images=1, text_after=3, content=content)])
    visual = inputs["input_ids"] == zoo.image_token_id
    (image,) = place_images(zoo.model, inputs, visual, "this test")
    rows, columns = image.grid
    sizes = inputs.get("image_sizes")
    height, width = inputs["pixel_values"].shape[-2:] if sizes is None else sizes[0].tolist()
    assert rows * width == columns * height
    before = entering(zoo, inputs)
    for row, column in ((0, 0), (0, columns - 1), (rows - 1, 0), (rows - 1, columns - 1)):
        pixels = inputs["pixel_values"].clone()
        high, wide = height // rows, width // columns
        pixels[..., row * high : (row + 1) * high, column * wide : (column + 1) * wide] *= -3
        change = (entering(zoo, inputs | {"pixel_values": pixels}) - before)[image.places].norm(dim=-1)
        assert row * columns + column in change.topk(2).indices.tolist()


@pytest.mark.parametrize("family", sorted(set(families()) - {"git"}))
def test_every_family_has_a_grid_or_says_why_not(zoo_model, family):
    zoo = zoo_model(family)
    inputs = zoo.make_inputs([Prompt(text_before=2, images=1, text_after=3, content=index) for index in range(2)])
    visual = inputs["input_ids"] == zoo.image_token_id
    reason = entry_of(zoo.config.model_type).no_grid
    if reason:
        with pytest.raises(ValueError, match=f"heat-map needs one grid.*{re.escape(reason)}"):
            place_images(zoo.model, inputs, visual, "heat-map")
        return
    placed = place_images(zoo.model, inputs, visual, "heat-map")
    assert [image.row for image in placed] == [0, 1]
    assert [image.grid[0] * image.grid[1] for image in placed] == visual.sum(-1).tolist()


@pytest.mark.parametrize("family", sorted(set(families()) - {"git"}))
def test_every_family_has_a_usable_tower_or_says_why_not(zoo_model, family):
    zoo = zoo_model(family)
    if method_cases.tower_type(family) in entry_of(zoo.config.model_type).packed_towers:
        with pytest.raises(ValueError, match="as one sequence"):
            describe_vision_tower(zoo.model, "this test")
    elif entry_of(zoo.config.model_type).no_tower:
        with pytest.raises(ValueError, match=re.escape(entry_of(zoo.config.model_type).no_tower)):
            describe_vision_tower(zoo.model, "this test")
    elif family != "molmo2":
        tower = describe_vision_tower(zoo.model, "this test")
        assert tower.depth == getattr(zoo.config.vision_config, "num_hidden_layers", tower.depth) >= 1


def test_unknown_model_types_are_served_by_the_generic_entry():
    assert entry_of("a_family_of_tomorrow") is GENERIC
    with pytest.raises(ValueError, match="family and its model_types"):
        ArchitectureEntry(family="nothing", model_types=())
    with pytest.raises(TypeError, match="given str"):
        register_architecture("llava")


@pytest.fixture
def registered():
    """What a test registers is forgotten afterwards."""
    known = dict(entries._REGISTERED)
    yield
    entries._REGISTERED.clear()
    entries._REGISTERED.update(known)


def test_the_files_of_the_guide_are_those_that_the_tests_run():
    """The guide's example is a family of the project, so every test of a family is a test of the guide."""
    blocks = re.findall(r"```python\n# (\S+)\n(.*?)```", GUIDE.read_text(encoding="utf-8"), re.DOTALL)
    assert [name for name, _ in blocks] == ["vlm_guard/families/known/vip_llava.py", "tests/zoo/vip_llava.py"]
    for name, text in blocks:
        assert (GUIDE.parents[1] / name).read_text(encoding="utf-8") == text
    lines = [line for _, text in blocks for line in text.splitlines() if line.strip()]
    assert len(lines) <= LONGEST_FAMILY
    assert "vip_llava" in families() and "vip_llava" in entry_of("vipllava").zoo


def test_a_new_file_is_found_by_being_there(tmp_path):
    folder = tmp_path / "known"
    folder.mkdir()
    (folder / "ours.py").write_text(
        "from vlm_guard.families.family import ArchitectureEntry\n"
        'OURS = ArchitectureEntry(family="Ours", model_types=("our_vlm",), refused="it only hums")\n',
        encoding="utf-8",
    )
    assert entries.entries_in(folder)["our_vlm"].refused == "it only hums"
    (folder / "theirs.py").write_text((folder / "ours.py").read_text(encoding="utf-8"), encoding="utf-8")
    with pytest.raises(ValueError, match="second entry for the model type 'our_vlm'"):
        entries.entries_in(folder)


def test_an_entry_of_ones_own_takes_a_model_type_over(registered):
    ours = register_architecture(ArchitectureEntry(family="Ours", model_types=("llava", "our_vlm"), note="ours"))
    assert entry_of("llava") is ours and entry_of("our_vlm") is ours
