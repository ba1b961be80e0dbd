"""Second stage: projector and low-rank changes learn captions and answers; the tower's features are computed before.

Several processes of one thread share the weights and update them without locks ("Hogwild", Recht et al. 2011): on a CPU
that others use too, one process of several threads waits for its slowest thread (measured here: an eighth of the speed
of one thread). Each process takes the next step's number from a shared counter, so every picture is used once.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from multiprocessing.synchronize import Lock
from pathlib import Path

import numpy as np
import torch
import torch.multiprocessing
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import LlavaForConditionalGeneration, PreTrainedTokenizerFast

from vlm_guard.eval.scenes.draws import Draws
from vlm_guard.eval.training.checkpoints import load_moments, load_weights, read_progress, save_checkpoint
from vlm_guard.eval.training.scene_store import open_store
from vlm_guard.eval.training.smol.batches import Batch, StepBatches, first_tokens
from vlm_guard.eval.training.smol.losses import naming_loss, norm_loss, repeat_loss
from vlm_guard.eval.training.smol.low_rank import UP_SCALE, make_low_rank
from vlm_guard.eval.training.smol.recipe import Recipe
from vlm_guard.eval.training.smol.seeing import Words, cosine_rate, log_line
from vlm_guard.eval.training.smol.text_replay import TextPairs, read_answers
from vlm_guard.smol_model.layout import EOS, IMAGE_ID

_LOG_STEPS = 10
_CHECKPOINT_SECONDS = 180.0
_REPLAYED_AT_ONCE = 4
_REPLAY_WORD = 7_000


class Speaker(nn.Module):
    """The language model with low-rank changes, and the projector in front of it.

    Only `trained` has parameters: the changes by the name of their matrix (dots as they are in the language model would
    not do in a module's name, so they are colons), and the projector.
    """

    def __init__(self, model: LlavaForConditionalGeneration, rank: int, seed: int) -> None:
        super().__init__()
        decoder = model.model.language_model
        decoder.set_attn_implementation("eager")
        changes = make_low_rank(decoder, rank, seed)
        # Everything that passes through the layers is bfloat16; what is trained and the losses are float32.
        for name, module in decoder.named_modules():
            if name.endswith("norm"):
                module.to(torch.bfloat16)
        self.trained = nn.ModuleDict({name.replace(".", ":"): change for name, change in changes.items()})
        self.trained["projector"] = model.model.multi_modal_projector
        # Not registered, so that what a checkpoint holds is what is trained.
        self._held = (decoder, model.get_input_embeddings().get_parameter("weight").detach())
        self._output = self._held[1].to(torch.bfloat16)

    @property
    def decoder(self) -> nn.Module:
        """The Llama decoder, without its output layer."""
        return self._held[0]

    @property
    def embeddings(self) -> Tensor:
        """float32 (49152, 576)."""
        return self._held[1]

    def hidden(self, embedded: Tensor, allowed: Tensor, positions: Tensor) -> Tensor:
        """Last hidden states (B, N, 576), bfloat16, of embedded tokens; `allowed` bool (B, 1, N, N)."""
        low = torch.bfloat16
        mask = torch.zeros(allowed.shape, dtype=low).masked_fill(~allowed, -3e4)
        out = self.decoder(inputs_embeds=embedded.to(low), attention_mask=mask, position_ids=positions, use_cache=False)
        states: Tensor = out.last_hidden_state
        return states

    def scores(self, hidden: Tensor) -> Tensor:
        """Logits of hidden states, by the word embeddings, which are SmolLM2's output layer."""
        return F.linear(hidden.to(torch.bfloat16), self._output).float()

    def trained_tensors(self) -> dict[str, Tensor]:
        """Low-rank changes and projector under the names that `vlm_guard.smol_model.adapter` reads."""
        out = {}
        for name, weight in self.trained.named_parameters():
            if name.startswith("projector."):
                out[name] = weight.detach()
            else:
                scaled = UP_SCALE * weight if name.endswith(".up") else weight
                out[f"language_model.{name.replace(':', '.')}"] = scaled.detach()
        return out


def picture_loss(
    speaker: Speaker, batch: Batch, words: Words, firsts: Tensor, recipe: Recipe
) -> tuple[Tensor, dict[str, float]]:
    """Loss and figures of one step's pictures: answers, no repeats in descriptions, patches still named."""
    visual = speaker.trained["projector"](batch.features)
    embedded = speaker.embeddings[batch.ids]
    embedded = embedded.masked_scatter((batch.ids == IMAGE_ID)[..., None], visual)
    hidden = speaker.hidden(embedded, batch.allowed(), batch.positions)
    learned = batch.labels[:, 1:] != -100
    scores = speaker.scores(hidden[:, :-1][learned])
    targets, weights = batch.labels[:, 1:][learned], batch.weights[:, 1:][learned]
    each = F.cross_entropy(scores, targets, reduction="none")
    language = (each * weights).sum() / weights.sum()
    row = torch.arange(len(batch.ids))[:, None].expand_as(batch.blocks[:, 1:])[learned]
    captions = batch.blocks[:, 1:][learned] == 1
    repeat = repeat_loss(scores[captions], targets[captions], row[captions], firsts)
    naming, accuracy = naming_loss(visual, batch.patches, words.names)
    loss = language + recipe.repeat_weight * repeat + recipe.patch_weight * naming + 0.005 * norm_loss(visual)
    yes_no = each[weights > 1.75]
    figures = {
        "caption_loss": each[captions].mean().item(),
        # The first of an answer's two tokens; the second, the end of the text, is soon certain.
        "yes_no_loss": yes_no[::2].mean().item() if len(yes_no) else float("nan"),
        "repeat_loss": repeat.item(),
        "patch_accuracy": accuracy.item(),
    }
    return loss, figures


def text_loss(speaker: Speaker, pairs: TextPairs, step: int, seed: int) -> Tensor:
    """Cross-entropy of a few of SmolLM2's own answers to questions without a picture."""
    some = Draws(seed, _REPLAY_WORD, step).sample(pairs, _REPLAYED_AT_ONCE)
    length = max(len(prompt) + len(answer) for prompt, answer in some)
    ids = torch.full((len(some), length), EOS)
    labels = torch.full((len(some), length), -100)
    for row, (prompt, answer) in enumerate(some):
        end = len(prompt) + len(answer)
        ids[row, :end] = torch.tensor(prompt + answer)
        labels[row, len(prompt) : end] = torch.tensor(answer)
    allowed = torch.ones(length, length, dtype=torch.bool).tril().expand(len(some), 1, length, length)
    positions = torch.arange(length).expand(len(some), length)
    hidden = speaker.hidden(speaker.embeddings[ids], allowed, positions)
    learned = labels[:, 1:] != -100
    scores = speaker.scores(hidden[:, :-1][learned])
    return F.cross_entropy(scores, labels[:, 1:][learned])


@dataclass(frozen=True, kw_only=True, eq=False)
class Material:
    """What the second stage learns from; opened anew by every worker, so that large arrays stay on disk.

    Attributes:
        batches: pictures with text by step.
        pairs: SmolLM2's own answers.
        words: of the language model.
    """

    batches: StepBatches
    pairs: TextPairs
    words: Words

    @classmethod
    def open(cls, folder: Path, recipe: Recipe, embeddings: Tensor) -> Material:
        """What the earlier steps of a run have left in its folder."""
        tokenizer = PreTrainedTokenizerFast.from_pretrained(folder / "processor")
        pictures = folder / "speak"
        batches = StepBatches(
            store=open_store(pictures),
            features=np.load(pictures / "features.npy", mmap_mode="r"),
            has_second=np.load(pictures / "has_second.npy"),
            tokenizer=tokenizer,
            recipe=recipe,
        )
        return cls(batches=batches, pairs=read_answers(folder / "text.json"), words=Words.of(embeddings, tokenizer))


def speak_worker(rank: int, speaker: Speaker, recipe: Recipe, folder: Path, counter: Tensor, lock: Lock) -> None:
    """Take steps until there are no more; the first worker writes the log and the checkpoint.

    Args:
        rank: number of this worker.
        speaker: its weights lie in shared memory.
        recipe: the run's numbers.
        folder: of the run, see `Material.open`.
        counter: int64 (1,), shared: the next step's number.
        lock: for the counter.
    """
    torch.set_num_threads(1)
    material = Material.open(folder, recipe, speaker.embeddings)
    weights = list(speaker.trained.parameters())
    optimiser = torch.optim.AdamW(weights, lr=1e-3, betas=(0.9, 0.98), weight_decay=recipe.weight_decay, fused=True)
    path = folder / "speak.safetensors"
    if path.is_file():
        load_moments(path, speaker.trained, optimiser)
    firsts = first_tokens(material.batches.tokenizer)
    begun = saved = time.monotonic()
    means: dict[str, float] = {}
    logged = -1
    while True:
        with lock:
            step = int(counter)
            counter += 1
        if step >= recipe.speak_steps:
            break
        for group in optimiser.param_groups:
            group["lr"] = cosine_rate(recipe.speak_rate, step, recipe.speak_steps, 20)
        loss, figures = picture_loss(speaker, material.batches.step(step), material.words, firsts, recipe)
        if step % recipe.text_every == 0:
            own = text_loss(speaker, material.pairs, step, recipe.seed)
            loss, figures["text_loss"] = loss + 0.5 * own, own.item()
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(weights, 1.0)
        optimiser.step()
        for name, value in figures.items():
            if not math.isnan(value):
                means[name] = 0.95 * means.get(name, value) + 0.05 * value
        if rank == 0 and (step // _LOG_STEPS > logged or step + recipe.workers >= recipe.speak_steps):
            logged = step // _LOG_STEPS
            log_line(folder, "speak", step + 1, recipe.speak_steps, time.monotonic() - begun, means)
        if rank == 0 and time.monotonic() - saved > _CHECKPOINT_SECONDS:
            save_checkpoint(path, speaker.trained, optimiser, {"stage": "speak", "steps": int(counter)})
            saved = time.monotonic()
    if rank == 0:
        save_checkpoint(path, speaker.trained, optimiser, {"stage": "speak", "steps": recipe.speak_steps})


def learn_to_speak(speaker: Speaker, recipe: Recipe, folder: Path) -> None:
    """Train, or go on with an interrupted run; the result is kept as ``speak.safetensors`` in `folder`.

    Raises:
        RuntimeError: a worker process died.
    """
    counter = torch.zeros(1, dtype=torch.int64).share_memory_()
    path = folder / "speak.safetensors"
    if path.is_file():
        load_weights(path, speaker.trained)
        counter.fill_(int(read_progress(path)["steps"]))
    speaker.share_memory()
    torch.multiprocessing.start_processes(
        speak_worker,
        args=(speaker, recipe, folder, counter, torch.multiprocessing.get_context("spawn").Lock()),
        nprocs=recipe.workers,
        start_method="spawn",
    )
