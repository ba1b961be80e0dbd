"""Caches of two branches: read side by side with padding on the left, room for more tokens, beams."""

import pytest
import torch
from transformers import DynamicCache, StaticCache
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer, LinearAttentionAndFullAttentionLayer

from vlm_guard.contrast.branch_cache import (
    KeyRoom,
    RoomyHybridLayer,
    RoomyLayer,
    branch_caches,
    can_merge,
    decoding_cache,
    merge_caches,
    prompt_cache,
    reorder_together,
)

torch.set_num_threads(1)


def filled(rows, length, layers=2):
    cache = DynamicCache()
    for index in range(layers):
        keys = torch.randn(rows, 2, length, 4)
        cache.update(keys, keys + 100, index)
    return cache


def read_prompts(model, rows, lengths, *, pieces=1):
    """Two caches of `branch_caches` with random prompts in them, and those prompts per branch and layer."""
    caches = branch_caches(model, rows, lengths)
    prompts = [[torch.randn(rows, 2, length, 4) for _ in cache.layers] for cache, length in zip(caches, lengths)]
    for cache, layers in zip(caches, prompts):
        for index, keys in enumerate(layers):
            for piece in keys.chunk(pieces, dim=2):
                cache.update(piece, piece + 100, index)
    return caches, prompts


@pytest.mark.parametrize("pieces", [1, 2])
@pytest.mark.parametrize("lengths", [(7, 3), (3, 7), (5, 5)])
@pytest.mark.parametrize("static", [False, True])
def test_shorter_prompt_is_padded_on_the_left_with_zeros(lengths, pieces, static, zoo_model):
    model = zoo_model("llava").model
    config = model.config.get_text_config()
    (first, second), prompts = read_prompts(model, 2, lengths, pieces=pieces)
    assert can_merge(first, second, lengths)
    room = first.layers[0].room
    room.keys[:, :, max(lengths) :] = torch.nan  # what nobody has written yet is nobody's business
    target = StaticCache(config=config, max_cache_len=9) if static else DynamicCache(config=config)
    length = merge_caches(target, first, second)
    assert length == max(lengths)
    for index, merged in enumerate(target.layers):
        for rows, part, own in ((slice(0, 2), prompts[0], lengths[0]), (slice(2, 4), prompts[1], lengths[1])):
            assert torch.equal(merged.keys[rows, :, length - own : length], part[index])
            assert torch.equal(merged.values[rows, :, length - own : length], part[index] + 100)
            assert not merged.keys[rows, :, : length - own].any()
            assert not merged.values[rows, :, : length - own].any()
    assert target.get_seq_length() == length
    assert first.layers[0].keys is None, "the parts are given up layer by layer"


def test_merging_copies_nothing(zoo_model):
    (first, second), _ = read_prompts(zoo_model("llava").model, 2, (7, 3))
    places = [layer.keys.data_ptr() for layer in first.layers]
    target = DynamicCache(config=zoo_model("llava").model.config)
    merge_caches(target, first, second)
    token = torch.randn(4, 2, 1, 4)
    for index, place in enumerate(places):
        target.update(token, token, index)
        assert target.layers[index].keys.data_ptr() == place
        assert torch.equal(target.layers[index].keys[:, :, -1:], token)


def test_linear_states_are_merged_beside_the_keys():
    caches, parts, room = [], [], KeyRoom(4, 5)
    for branch in range(2):
        cache = DynamicCache()
        layer = RoomyHybridLayer(room, slice(2 * branch, 2 * branch + 2))
        cache.layers.append(layer)
        keys, state = torch.randn(2, 2, 5, 4), torch.randn(2, 6, 3)
        cache.update(keys, keys + 100, 0)
        layer.update_recurrent_state(state)
        caches.append(cache)
        parts.append((keys, state))
    assert can_merge(*caches, (5, 5))
    target = DynamicCache()
    target.layers.append(LinearAttentionAndFullAttentionLayer())
    merge_caches(target, *caches)
    assert torch.equal(target.layers[0].keys, torch.cat([keys for keys, _ in parts]))
    assert torch.equal(target.layers[0].recurrent_states[0], torch.cat([state for _, state in parts]))


def test_room_gives_what_concatenation_gives():
    torch.manual_seed(0)
    start = torch.randn(3, 2, 5, 4)
    roomy, plain = RoomyLayer(KeyRoom(5, 7), slice(1, 4), 2), DynamicLayer()
    for layer in (roomy, plain):
        layer.update(start, start + 1)
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
        if step == 200:
            for layer in (roomy, plain):
                layer.batch_select_indices(torch.tensor([1, 2]))
                layer.batch_repeat_interleave(2)
                layer.batch_select_indices(torch.tensor([0, 1, 3]))
    assert roomy.get_seq_length() == plain.get_seq_length()
    for layer in (roomy, plain):
        layer.reset()
        assert layer.get_seq_length() == 0
        assert torch.equal(layer.update(start, start)[0], start)


def test_layers_that_go_on_apart_do_not_write_over_each_other(zoo_model):
    caches, prompts = read_prompts(zoo_model("llava").model, 2, (4, 6))
    tokens = torch.randn(200, 2, 2, 2, 1, 4)
    for token in tokens:
        for number, cache in enumerate(caches):
            cache.update(token[number], token[number], 0)
    for number, (cache, prompt) in enumerate(zip(caches, prompts)):
        expected = torch.cat((prompt[0], *tokens[:, number]), 2)
        assert torch.equal(cache.layers[0].keys, expected)


def test_a_token_does_not_copy_the_others():
    layer = RoomyLayer(KeyRoom(2, 5), slice(0, 2))
    token = torch.randn(2, 2, 1, 4)
    layer.update(*torch.randn(2, 2, 2, 5, 4))
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


def test_what_can_be_merged(zoo_model):
    caches, _ = read_prompts(zoo_model("llava").model, 2, (5, 5))
    assert can_merge(*caches, (5, 5))
    assert not can_merge(*caches, (5, 6)), "keys that are not the prompt's (cross attention)"
    assert not can_merge(filled(2, 5), filled(2, 5), (5, 5)), "layers of another kind"
    caches[1].reorder_cache(torch.tensor([1, 0]))
    keys = torch.randn(2, 2, 0, 4)
    caches[1].update(keys, keys, 0)
    assert not can_merge(*caches, (5, 5)), "not in one room any more"


def test_a_static_cache_gets_room_for_the_longer_prompt(zoo_model):
    model = zoo_model("llava").model
    prepared = StaticCache(config=model.config, max_cache_len=20)
    assert decoding_cache(prepared, model, 6).get_max_length() == 26
    assert decoding_cache(prepared, model, -6).get_max_length() == 20
    assert decoding_cache(prepared, model, 0) is not prepared, "transformers keeps it for batches of half the rows"
    dynamic = DynamicCache()
    assert decoding_cache(dynamic, model, 6) is dynamic
