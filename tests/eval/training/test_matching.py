import torch
from transformers import AutoTokenizer

from vlm_guard.builtin_model import BUILTIN_DIR
from vlm_guard.eval.training.model import MATCHING_LAYERS, new_model, start_matching
from vlm_guard.eval.training.tokenizer import category_tokens


def test_matching_heads_score_a_word_above_others_at_any_distance():
    model = new_model(0)
    words = torch.tensor(category_tokens(AutoTokenizer.from_pretrained(BUILTIN_DIR)))
    start_matching(model, words, seed=0)
    text = model.config.text_config
    attention = model.model.language_model.layers[MATCHING_LAYERS[0]].self_attn
    embedded = model.get_input_embeddings().weight[words].detach()
    hidden = embedded / embedded.square().mean(-1, keepdim=True).sqrt()
    queries = attention.q_proj(hidden).view(80, text.num_attention_heads, -1)[:, -1]
    keys = attention.k_proj(hidden).view(80, text.num_key_value_heads, -1)[:, -1]
    for distance in (0, 30, 90):
        places = torch.tensor([[distance], [0]])
        cos, sin = model.model.language_model.rotary_emb(hidden, places)
        turn = lambda x, k: x * cos[k] + torch.cat([-x[:, 16:], x[:, :16]], 1) * sin[k]  # noqa: E731
        scores = turn(queries, 0) @ turn(keys, 1).T / text.head_dim**0.5
        own = scores.diagonal()
        others = (scores.sum(1) - own) / 79
        assert (own > others + 4).float().mean() > 0.9
