"""Caches of two branches: merging with padding on the left, room for more tokens, beams."""

import pytest
import torch
from transformers import DynamicCache, StaticCache
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from vlm_guard.branch_cache import RoomyLayer, can_merge, decoding_cache, merge_caches, prompt_cache, reorder_together

torch.set_num_threads(1)


def filled(rows, length, layers=2):
    cache = DynamicCache()
    for index in range(layers):
        keys = torch.randn(rows, 2, length, 4)
        cache.update(keys, keys + 100, index)
    return cache


def copies(cache):
    return [(layer.keys.clone(), layer.values.clone()) for layer in cache.layers]


@pytest.mark.parametrize("lengths", [(7, 3), (3, 7), (5, 5)])
def test_shorter_prompt_is_padded_on_the_left_with_zeros(lengths, zoo_model):
    first, second = filled(2, lengths[0]), filled(2, lengths[1])
    parts = copies(first), copies(second)
    target = DynamicCache(config=zoo_model("llava").model.config)
    length = merge_caches(target, first, second)
    assert length == max(lengths)
    for index in range(2):
        merged = target.layers[index]
        for rows, part, own in ((slice(0, 2), parts[0], lengths[0]), (slice(2, 4), parts[1], lengths[1])):
            assert torch.equal(merged.keys[rows, :, length - own :], part[index][0])
            assert torch.equal(merged.values[rows, :, length - own :], part[index][1])
            assert not merged.keys[rows, :, : length - own].any()
    assert target.get_seq_length() == length
    assert first.layers[0].keys is None, "the parts are given up layer by layer"


def test_room_gives_what_concatenation_gives():
    torch.manual_seed(0)
    start = torch.randn(3, 2, 5, 4)
    roomy, plain = RoomyLayer(start, start + 1), DynamicLayer()
    plain.update(start, start + 1)
    for step in range(300):
        token = torch.randn(3, 2, 1 if step else 4, 4)
        found, expected = roomy.update(token, token + 1), plain.update(token, token + 1)
        assert torch.equal(found[0], expected[0]) and torch.equal(found[1], expected[1])
        if step in (7, 150):
            order = torch.tensor([2, 0, 0])
            roomy.reorder_cache(order)
            plain.reorder_cache(order)
        if step == 20:
            roomy.crop(-3)
            plain.crop(-3)
    assert roomy.get_seq_length() == plain.get_seq_length()


def test_a_token_does_not_copy_the_others():
    layer = RoomyLayer(torch.randn(2, 2, 5, 4), torch.randn(2, 2, 5, 4))
    token = torch.randn(2, 2, 1, 4)
    layer.update(token, token)
    place = layer.keys.data_ptr()
    layer.update(token, token)
    assert layer.keys.data_ptr() == place


def test_beams_of_both_branches_move_alike():
    cache = filled(4, 3, layers=1)
    keys = cache.layers[0].keys.clone()
    reorder_together(cache, 2)
    cache.reorder_cache(torch.tensor([1, 1]))
    assert torch.equal(cache.layers[0].keys, keys[[1, 1, 3, 3]])


def test_prompts_are_read_with_every_key_in_sliding_layers(zoo_model):
    model = zoo_model("cohere2_vision").model
    kinds = {type(layer) for layer in DynamicCache(config=model.config.get_text_config()).layers}
    assert DynamicSlidingWindowLayer in kinds
    assert {type(layer) for layer in prompt_cache(model).layers} == {DynamicLayer}


def test_what_can_be_merged():
    assert can_merge(filled(2, 5), 5)
    assert not can_merge(filled(2, 5), 6), "keys that are not the prompt's (cross attention)"


def test_a_static_cache_gets_room_for_the_longer_prompt(zoo_model):
    model = zoo_model("llava").model
    prepared = StaticCache(config=model.config, max_cache_len=20)
    assert decoding_cache(prepared, model, 6).get_max_length() == 26
    assert decoding_cache(prepared, model, -6).get_max_length() == 20
    assert decoding_cache(prepared, model, 0) is not prepared, "transformers keeps it for batches of half the rows"
    dynamic = DynamicCache()
    assert decoding_cache(dynamic, model, 6) is dynamic
