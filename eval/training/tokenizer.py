"""The built-in model's tokenizer: byte-level BPE over the scenes' language, 1536 tokens, any text encodable."""

from __future__ import annotations

import numpy as np
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from vlm_guard.eval.scenes.categories import NAMES, plural, with_article
from vlm_guard.eval.scenes.draws import Draws
from vlm_guard.eval.scenes.render import render
from vlm_guard.eval.training.questions import UNKNOWN, exchanges

VOCABULARY = 1536
SPECIAL_TOKENS = ["<unk>", "<s>", "</s>", "<pad>", "<image>"]
BOS, EOS, PAD, IMAGE = 1, 2, 3, 4
CORPUS_SEED = 31


def _corpus(scenes: int = 1500) -> list[str]:
    """Prompts and answers as the model sees them, with every category and unknown noun several times."""
    draws = Draws(CORPUS_SEED)
    even = np.ones(len(NAMES), np.int64)
    lines = []
    for number in range(scenes):
        scene = render("common", CORPUS_SEED, number)
        for item in exchanges(draws, scene.scene_type, list(scene.objects), even):
            lines += [f"USER: \n{item.question} ASSISTANT:", f" {item.answer}"]
    for noun in (*NAMES, *UNKNOWN):
        lines += [f" {with_article(noun)} {plural(noun)} {noun}"] * 40
    return lines


def build_tokenizer() -> PreTrainedTokenizerFast:
    """Train the tokenizer; takes a few seconds, the same result each time."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=SPECIAL_TOKENS,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        # Rarer words, above all invented ones, stay in pieces, as words of a user's own would.
        min_frequency=12,
        show_progress=False,
    )
    tokenizer.train_from_iterator(_corpus(), trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", BOS)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        pad_token="<pad>",
        padding_side="left",
        model_max_length=1024,
        clean_up_tokenization_spaces=False,
    )


def encode(tokenizer: PreTrainedTokenizerFast, text: str) -> list[int]:
    """Token ids without the begin-of-sequence token."""
    return tokenizer(text, add_special_tokens=False).input_ids


def category_tokens(tokenizer: PreTrainedTokenizerFast) -> list[int]:
    """One token per category that tells it from the others: its first word's, but ``bat`` and ``glove`` their last.

    Raises:
        ValueError: two categories share a token.
    """
    tokens = []
    for name in NAMES:
        words = name.split()
        word = words[-1] if words[0] == "baseball" else words[0]
        tokens.append(encode(tokenizer, f" {word}")[0])
    if len(set(tokens)) != len(tokens):
        raise ValueError("Two categories begin with the same token; enlarge the vocabulary.")
    return tokens
