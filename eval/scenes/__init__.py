"""Scenes: pictures of icons with MSCOCO's 80 categories, made on the spot and read like any MSCOCO folder."""

from vlm_guard.eval.scenes.contact_sheet import contact_sheet
from vlm_guard.eval.scenes.dataset import (
    BENCHMARK_SEED,
    ScenesSpec,
    load_scenes,
    parse_scenes_spec,
    write_scenes,
)
from vlm_guard.eval.scenes.world import SPLITS

__all__ = [
    "BENCHMARK_SEED",
    "SPLITS",
    "ScenesSpec",
    "contact_sheet",
    "load_scenes",
    "parse_scenes_spec",
    "write_scenes",
]
