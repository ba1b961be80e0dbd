import torch
from transformers import AutoTokenizer

from vlm_guard.builtin_model import BUILTIN_DIR
from vlm_guard.eval.training.losses import _early_answer_loss
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
        cos, sin = model.model.language_model.rotary_emb(hidden, torch.tensor([[distance], [0]]))
        turned = [
            vectors * cos[place] + torch.cat([-vectors[:, 16:], vectors[:, :16]], 1) * sin[place]
            for place, vectors in enumerate((queries, keys))
        ]
        scores = turned[0] @ turned[1].T / text.head_dim**0.5
        own = scores.diagonal()
        others = (scores.sum(1) - own) / 79
        assert (own > others + 4).float().mean() > 0.9


def test_early_answers_are_read_off_the_asked_word_alone():
    model = new_model(0)
    answers = torch.tensor([100, 200])
    rows = model.lm_head.weight[answers].detach()
    hidden = torch.randn(1, 3, 192)
    hidden[0, 1] = 100 * (rows[0] - rows[1])
    for truth, expected in ((1.0, True), (0.0, False)):
        presence = torch.tensor([[-1.0, truth, -1.0]])
        loss = _early_answer_loss(model, hidden, presence, answers)
        assert (loss < 0.1) == expected and (loss > 1) != expected
    assert _early_answer_loss(model, hidden, torch.full((1, 3), -1.0), answers) == 0
