"""What `generate` can do on a guarded model, and how the model may be loaded: supported or refused, and what shows it.

The README's table is made from this list; a test checks that every test named here exists.
"""

from feature import Feature, Part
from pass_features import PASSES

DECODING = (
    Feature(
        name="greedy search",
        note="as recomputing every token without a cache gives",
        tests=(
            "test_invariants.py::test_cached_decode_equals_full_recompute",
            "test_contrast_families.py::test_padded_cached_batch_equals_branches_run_alone",
        ),
    ),
    Feature(
        name="sampling",
        note="repeatable under a seed; the tokens drawn are those transformers draws from the same logits",
        tests=(
            "test_generate_outputs.py::test_greedy_is_the_argmax_and_sampling_follows_the_seed",
            "test_contrast.py::test_sampling_draws_what_transformers_draws_from_the_same_logits",
        ),
    ),
    Feature(
        name="`num_return_sequences`",
        tests=(
            "test_generate_features.py::test_several_sequences_per_prompt_match_the_prompt_alone",
            "test_contrast.py::test_sampling_draws_what_transformers_draws_from_the_same_logits",
        ),
    ),
    Feature(
        name="beam search, beam sampling",
        note="the second branch's cache follows the beams",
        tests=(
            "test_generate_features.py::test_beam_search_scores_are_those_of_the_guarded_model",
            "test_contrast.py::test_beam_search_equals_branches_recomputed_for_every_beam",
        ),
    ),
    Feature(
        name="prompt lookup (`prompt_lookup_num_tokens`)",
        contrast="refused",
        note="for a contrast without a guard, `contrast_processor` serves it",
        tests=(
            "test_generate_features.py::test_prompt_lookup_decoding",
            "test_generate_refusals.py::test_drafted_tokens_beside_a_contrast",
            "test_contrast.py::test_processor_serves_prompt_lookup",
        ),
    ),
    Feature(
        name="assisted decoding (`assistant_model`)",
        contrast="refused",
        note="the assistant may be unguarded, guarded itself, or the same model",
        tests=(
            "test_generate_features.py::test_assisted_decoding",
            "test_generate_refusals.py::test_drafted_tokens_beside_a_contrast",
        ),
    ),
    Feature(
        name="a `custom_generate` callable",
        contrast="refused",
        note="a contrast method is one itself",
        tests=(
            "test_generate_features.py::test_custom_generate_callable_runs_guarded",
            "test_contrast.py::test_refused_with_a_reason",
        ),
    ),
    Feature(
        name="continuous batching (`generate_batch`, `init_continuous_batching`, paged cache)",
        attention="refused",
        contrast="refused",
        note="requests share a row without their images; use a padded batch",
        tests=("test_generate_refusals.py::test_continuous_batching",),
    ),
    Feature(
        name="`torch.compile` of the decode step",
        note="static cache; methods that cannot, say so (docs/compile.md); not tested with tensor parallelism",
        tests=(
            "test_compiled_decode.py::test_one_graph_for_all_steps_and_prompts",
            "test_compiled_decode.py::test_methods_that_cannot_compile_say_so_once_and_run_uncompiled",
        ),
    ),
)

INPUTS_AND_OUTPUTS = (
    Feature(
        name="streamers (`TextStreamer`, `TextIteratorStreamer`, own)",
        tests=(
            "test_generate_outputs.py::test_text_streamer_prints_the_answer",
            "test_generate_outputs.py::test_iterator_streamer_in_a_thread_of_its_own",
            "test_contrast.py::test_streamer_gets_prompt_then_tokens",
        ),
    ),
    Feature(
        name="custom logits processors and stopping criteria",
        note="processors see the guarded (combined) logits",
        tests=("test_generate_outputs.py::test_custom_processors_and_criteria",),
    ),
    Feature(name="`stop_strings`", tests=("test_generate_outputs.py::test_stop_strings",)),
    Feature(
        name="`output_scores`, `output_logits`, `output_hidden_states`, `return_dict_in_generate`",
        note="logits are the combined ones, hidden states those of the given prompt; a contrast returns no cache",
        tests=(
            "test_generate_outputs.py::test_recorded_scores_are_those_that_were_decoded_from",
            "test_contrast.py::test_recorded_outputs_and_stopping",
        ),
    ),
    Feature(
        name="`output_attentions`",
        attention="refused",
        contrast="refused",
        note="the model would return weights before the edit; `guard.trace()` records them as they are used",
        tests=(
            "test_generate_refusals.py::test_attention_weights_of_the_model",
            "test_guard.py::test_trace_equals_the_models_own_attention",
        ),
    ),
    Feature(
        name='`pipeline("image-text-to-text")`',
        note="with chat messages and several pictures",
        tests=("test_generate_outputs.py::test_pipeline_answers_as_generate_does",),
    ),
    Feature(
        name="several pictures per prompt, different numbers per row",
        note="also rows without a picture, which are left alone",
        tests=(
            "test_invariants.py::test_padded_batch_equals_each_prompt_alone",
            "test_contrast_families.py::test_padded_cached_batch_equals_branches_run_alone",
            "test_contrast.py::test_rows_without_an_image_are_left_alone",
        ),
    ),
    Feature(
        name="videos",
        note="tested on LLaVA-OneVision, Video-LLaVA, Qwen2-VL, Qwen2.5-VL, Qwen3-VL and Qwen3.5",
        tests=(
            "test_generate_caches.py::test_videos_beside_pictures",
            "test_generate_caches.py::test_contrast_noises_videos_too",
        ),
    ),
    Feature(
        name="`inputs_embeds` without `input_ids`",
        attention="refused",
        contrast="refused",
        note="visual tokens are found in the ids",
        tests=("test_generate_refusals.py::test_generating_from_embeddings_alone",),
    ),
)

CACHES = (
    Feature(
        name="dynamic cache, static cache, no cache",
        tests=(
            "test_invariants.py::test_cached_decode_equals_full_recompute",
            "test_generate_features.py::test_equals_plain_cached_decoding",
            "test_contrast.py::test_other_caches_give_the_same_logits",
        ),
    ),
    Feature(
        name="sliding layers in these caches",
        tests=("test_generate_caches.py::test_sliding_layers_in_every_cache_equal_no_cache",),
    ),
    Feature(
        name="offloaded caches (dynamic and static)",
        note="tested without a GPU, with stand-ins for CUDA streams: all but the copies between devices",
        tests=("test_generate_caches.py::test_offloaded_caches_equal_the_plain_one",),
    ),
    Feature(
        name="quantised cache",
        note="backends fp8 and hqq; quanto (4 bits) with attention methods, contrast enlarges its coarser rounding; "
        "hqq and quanto are tested where they are installed",
        tests=(
            "test_generate_caches.py::test_quantised_cache_that_loses_nothing_equals_the_plain_one",
            "test_generate_caches.py::test_quantised_cache_costs_no_more_than_without_the_guard",
        ),
    ),
    Feature(
        name="chunked prefill (`prefill_chunk_size`)",
        note="`act`, `gift` and `vhr` look at the whole prompt first and refuse it",
        tests=(
            "test_generate_features.py::test_equals_plain_cached_decoding",
            "test_contrast.py::test_other_caches_give_the_same_logits",
            "methods/test_vhr.py::test_a_prompt_read_in_chunks_is_refused",
        ),
    ),
    Feature(
        name="chats with pictures in earlier turns, read from the beginning",
        tests=(
            "test_generate_caches.py::test_a_chat_with_pictures_in_earlier_turns_equals_no_cache",
            "test_generate_outputs.py::test_pipeline_answers_as_generate_does",
        ),
    ),
    Feature(
        name="chats that go on with `past_key_values`",
        contrast="refused",
        note="with the whole conversation or the new tokens, new pictures too, several chats in turns; tokens of an "
        "answer in the cache are no sinks of `var`",
        tests=(
            "test_generate_caches.py::test_second_turn_on_the_first_turns_cache_equals_reading_everything_anew",
            "test_generate_caches.py::test_second_turn_brings_a_picture_of_its_own",
            "test_generate_caches.py::test_two_conversations_take_turns",
            "test_generate_caches.py::test_contrast_refuses_a_cache_of_the_caller",
        ),
    ),
    Feature(
        name="`past_key_values` that were not filled under this guard (or copied)",
        attention="refused",
        contrast="refused",
        note="their visual tokens are unknown",
        tests=("test_generate_caches.py::test_caches_of_unknown_content_are_refused",),
    ),
)

LOADING = (
    Feature(
        name="bfloat16, float16",
        part="loading",
        note="as near to float32 as the unguarded model",
        tests=("test_loading.py::test_half_precision_is_near_single_precision",),
    ),
    Feature(
        name="`device_map` with layers offloaded to memory or disk",
        part="loading",
        note="all methods and calibration; answers are bit-equal",
        tests=(
            "test_loading.py::test_offloaded_layers_give_the_same_answer",
            "test_loading.py::test_offloaded_models_are_calibrated_and_fed_where_they_run",
        ),
    ),
    Feature(
        name="`device_map` over several GPUs",
        part="loading",
        attention="not tested",
        contrast="not tested",
        note="written for it (state moves to the device of the tensors), but there was no second device",
        tests=(),
    ),
    Feature(
        name="tensor parallel (`tp_plan`)",
        part="loading",
        note="two processes give the answer of one, all methods; `paint` refuses vision towers that are spread too",
        tests=("test_loading.py::test_two_processes_that_share_the_heads_give_the_answer_of_one",),
    ),
    Feature(
        name="bitsandbytes 8-bit",
        part="loading",
        note="run with bitsandbytes 0.50 on a CPU; the test skips where it is not installed",
        tests=("test_loading.py::test_eight_bit_weights",),
    ),
    Feature(
        name="bitsandbytes 4-bit, GPTQ, AWQ and others",
        part="loading",
        attention="not tested",
        contrast="not tested",
        note="no method reads or writes weights",
        tests=(),
    ),
    Feature(name="PEFT LoRA", part="loading", tests=("test_guard.py::test_peft_lora_model_is_guarded",)),
    Feature(
        name="PEFT prompt and prefix tuning",
        part="loading",
        attention="refused",
        contrast="refused",
        note="virtual tokens shift every position",
        tests=("test_guard.py::test_peft_prompt_tuning_is_refused",),
    ),
    Feature(
        name="a compiled `forward`",
        part="loading",
        note="its graph serves the decode steps of a static cache",
        tests=("test_compiled_decode.py::test_a_forward_compiled_before_wrapping_serves_the_decode_steps",),
    ),
    Feature(
        name="a model or layer compiled as a whole",
        part="loading",
        attention="refused",
        contrast="refused",
        note="wrap it before it is compiled",
        tests=("test_compiled_decode.py::test_models_that_are_compiled_as_a_whole_are_refused",),
    ),
    Feature(
        name="`model.train()`, gradients",
        part="loading",
        note="as in evaluation mode, and gradients flow through the edits; attention dropout and gradient "
        "checkpointing are refused with methods that edit attention",
        tests=(
            "test_generate_refusals.py::test_training_mode_without_dropout_computes_the_same",
            "test_generate_refusals.py::test_training_mode_with_dropout_or_checkpointing_is_refused",
            "test_generate_refusals.py::test_gradients_flow_through_the_edit",
        ),
    ),
    Feature(
        name="several threads",
        part="loading",
        note="two models run side by side; requests to one guarded model wait for each other",
        tests=(
            "test_safety.py::test_two_guarded_models_in_two_threads",
            "test_safety.py::test_one_guarded_model_asked_from_two_threads",
        ),
    ),
    Feature(
        name="`copy.deepcopy`, `pickle` of a guarded model",
        part="loading",
        attention="refused",
        contrast="refused",
        note="remove the guard first",
        tests=("test_safety.py::test_a_guarded_model_is_neither_copied_nor_pickled",),
    ),
)

FEATURES: tuple[Feature, ...] = (*DECODING, *INPUTS_AND_OUTPUTS, *CACHES, *PASSES, *LOADING)
_TITLES: dict[Part, str] = {
    "generate": "`generate`",
    "passes": "`model(...)`, calls inside of calls, changes after `wrap`",
    "loading": "how the model is loaded and used",
}


def features_markdown() -> str:
    """The README's table of features."""
    lines = [
        "| feature | methods inside the model | contrast methods | what happens | shown by |",
        "|---|---|---|---|---|",
    ]
    for part, title in _TITLES.items():
        lines.append(f"| **{title}** | | | | |")
        for feature in (item for item in FEATURES if item.part == part):
            tests = "<br>".join(f"`{test}`" for test in feature.tests) or "-"
            cells = (feature.name, feature.attention, feature.contrast, feature.note, tests)
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"
