"""From the parts to the trained file: pictures, SmolLM2's own answers, two stages of training, and the export."""

from __future__ import annotations

import json
import os
import platform
from pathlib import Path
from typing import cast

import torch
from safetensors.torch import save_file
from transformers import LlamaConfig, LlamaForCausalLM, LlavaForConditionalGeneration, PreTrainedTokenizerFast

from vlm_guard.builtin_model import builtin
from vlm_guard.environment import library_versions, processor_name
from vlm_guard.eval.training.checkpoints import load_weights
from vlm_guard.eval.training.loop import CHILD_ENVIRONMENT
from vlm_guard.eval.training.smol.pictures import compute_features, draw_pictures
from vlm_guard.eval.training.smol.recipe import Recipe
from vlm_guard.eval.training.smol.seeing import Seer, Words, learn_to_see
from vlm_guard.eval.training.smol.speaking import Speaker, learn_to_speak
from vlm_guard.eval.training.smol.text_replay import own_answers
from vlm_guard.smol_model.language_model import load_language_model
from vlm_guard.smol_model.layout import configuration, new_processor, with_image_token
from vlm_guard.whole_files import write_atomically


def start_model(recipe: Recipe, source: str | None) -> tuple[LlavaForConditionalGeneration, PreTrainedTokenizerFast]:
    """The model before training, float32: SmolLM2, the built-in model's tower, a projector from nothing."""
    language = load_language_model(source)
    torch.manual_seed(recipe.seed)
    model = LlavaForConditionalGeneration(configuration(language.model.config))
    model.model.language_model.load_state_dict(language.model.model.state_dict())
    model.tie_weights()
    seeing, _ = builtin()
    model.model.vision_tower.load_state_dict(seeing.get_submodule("model.vision_tower").state_dict())
    for weight in model.model.multi_modal_projector.parameters():
        torch.nn.init.normal_(weight, std=weight.shape[-1] ** -0.5) if weight.dim() == 2 else weight.data.zero_()
    return model.eval(), with_image_token(language.tokenizer)


def _check_recipe(folder: Path, recipe: Recipe) -> None:
    """Write the recipe, or refuse a folder that holds a run with another one."""
    path, wanted = folder / "recipe.json", recipe.as_json()
    folder.mkdir(parents=True, exist_ok=True)
    if path.is_file():
        found = json.loads(path.read_text(encoding="utf-8"))["recipe"]
        differing = sorted(name for name in wanted if found.get(name) != wanted[name])
        if differing:
            raise ValueError(
                f"{folder} holds a run with other settings ({', '.join(differing)}); give the same settings to go on "
                f"with it, or another folder."
            )
        return
    machine = {"processor": processor_name(), "system": platform.machine(), "versions": library_versions()}
    write_atomically(path, json.dumps({"recipe": wanted, "machine": machine}, indent=2) + "\n")


def train(folder: Path, recipe: Recipe, source: str | None = None) -> Path:
    """Train, or go on with an interrupted run; returns the trained file.

    Args:
        folder: working folder: pictures, features, log, checkpoints (60 kB a picture).
        recipe: the run's numbers.
        source: of the language model, see `load_language_model`.

    Raises:
        ValueError: `folder` holds a run with another recipe, or a part is missing.
        RuntimeError: a worker process died.
    """
    os.environ.update(CHILD_ENVIRONMENT)
    torch.set_num_threads(1)
    _check_recipe(folder, recipe)
    model, tokenizer = start_model(recipe, source)
    new_processor(tokenizer).save_pretrained(folder / "processor")
    text = LlamaForCausalLM(cast(LlamaConfig, model.config.get_text_config()))
    text.model = model.model.language_model
    text.tie_weights()
    own_answers(folder / "text.json", text.eval(), tokenizer, recipe.text_questions, recipe.seed)
    words = Words.of(model.get_input_embeddings().get_parameter("weight").detach(), tokenizer)
    learn_to_see(model, draw_pictures(folder / "see", "see", recipe), words, recipe, folder)
    draw_pictures(folder / "speak", "speak", recipe)
    load_weights(folder / "see.safetensors", Seer(model))
    compute_features(folder / "speak", model.model.vision_tower.eval())
    speaker = Speaker(model, recipe.rank, recipe.seed)
    learn_to_speak(speaker, recipe, folder)
    return export(folder, model, speaker)


def export(folder: Path, model: LlavaForConditionalGeneration, speaker: Speaker) -> Path:
    """Write what was trained in bfloat16, from the last checkpoint, as `vlm_guard.smol_model.adapter` reads it."""
    load_weights(folder / "speak.safetensors", speaker.trained)
    tensors = speaker.trained_tensors()
    tensors |= {f"vision_tower.{name}": weight for name, weight in model.model.vision_tower.state_dict().items()}
    path = folder / "trained.safetensors"
    save_file({name: weight.to(torch.bfloat16).contiguous() for name, weight in tensors.items()}, path)
    return path
