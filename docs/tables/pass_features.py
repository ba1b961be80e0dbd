"""What a guarded model does outside of a plain call of `generate`."""

from feature import Feature

PASSES = (
    Feature(
        name="`model(**inputs)`, decoding loops over `model(...)` with a cache",
        part="passes",
        note="what is read in passes over several tokens is the prompt, single tokens behind it are the answer; a "
        "contrast reads its branch behind each pass. Without labels, methods that count tokens (M3ID) "
        "contrast the last logits only, and say so; refused for families that generate from embeddings",
        tests=(
            "runtime/test_passes_outside_generate.py::test_own_loops_equal_generate",
            "runtime/test_passes_outside_generate.py::test_contrasts_in_own_loops_equal_generate",
            "runtime/test_passes_outside_generate.py::test_a_contrast_that_counts_tokens_says_what_it_contrasts",
            "runtime/test_passes_outside_generate.py::test_contrasts_that_cannot_be_followed_are_refused",
        ),
    ),
    Feature(
        name="losses and likelihoods (`labels`)",
        part="passes",
        note="labels tell where the answer begins; loss and logits are the guarded ones",
        tests=(
            "runtime/test_passes_outside_generate.py::test_labels_tell_where_the_answer_begins",
            "runtime/test_passes_outside_generate.py::test_contrasts_of_labelled_answers",
        ),
    ),
    Feature(
        name="`type(model).generate(model, ...)`",
        part="passes",
        attention="refused",
        contrast="refused",
        note="call `model.generate(...)`",
        tests=("runtime/test_passes_outside_generate.py::test_the_class_function_is_refused",),
    ),
    Feature(
        name="`model(...)` or `generate` called by a logits processor, streamer or stopping criterion",
        part="passes",
        note="a generation of its own; the outer one does not notice",
        tests=(
            "runtime/test_which_pass.py::test_nested_calls_are_their_own_and_leave_the_outer_one_alone",
            "runtime/test_which_pass.py::test_generations_inside_a_contrast_are_their_own",
        ),
    ),
    Feature(
        name="the language model or an inner model called by itself",
        part="passes",
        note="runs without edits, and a warning says so",
        tests=("runtime/test_which_pass.py::test_parts_called_by_themselves_are_left_as_they_are_and_said_so",),
    ),
    Feature(
        name="`set_attn_implementation`, an assignment to the configuration after `wrap`",
        part="passes",
        note="followed: unedited rows run the new one, and it stays after `remove`",
        tests=("runtime/test_which_pass.py::test_another_attention_implementation_is_followed",),
    ),
    Feature(
        name="layers, attention or language model replaced after `wrap`",
        part="passes",
        attention="refused",
        contrast="refused",
        note="the message names what was replaced; an attention that no longer asks for its edit is found at the "
        "end of the prompt",
        tests=(
            "runtime/test_which_pass.py::test_replaced_modules_are_refused_by_name",
            "runtime/test_which_pass.py::test_a_layer_that_computes_attention_another_way_is_found_at_the_end_of_the_prompt",
        ),
    ),
    Feature(
        name="a cached text prefix, then picture and question",
        part="passes",
        contrast="refused",
        note="zerotuning and vhr, which edit every row of a prompt, refuse it",
        tests=("runtime/test_cached_prompts.py::test_a_text_prefix_read_first_is_right_or_refused",),
    ),
    Feature(
        name="a cache cropped to a beginning, then another picture or question",
        part="passes",
        contrast="refused",
        note="methods that learn from the prompt as a whole (act, gift, vhr) refuse what they would have had to see",
        tests=(
            "runtime/test_cached_prompts.py::test_another_picture_behind_the_same_text",
            "runtime/test_cached_prompts.py::test_another_question_about_a_cached_picture",
        ),
    ),
    Feature(
        name="`attention_mask` left out of a padded batch",
        part="passes",
        note="inferred as transformers infers it",
        tests=("runtime/test_cached_prompts.py::test_a_mask_that_is_left_out_is_inferred_as_transformers_does",),
    ),
    Feature(
        name="`guidance_scale`",
        part="passes",
        contrast="refused",
        note="two contrasts of the same logits mean nothing",
        tests=(
            "runtime/test_cached_prompts.py::test_classifier_free_guidance_works_beside_attention_and_is_refused_beside_a_contrast",
        ),
    ),
    Feature(
        name="another method for one call (`guard.generate(method=...)`, `model.generate(guard=...)`)",
        part="passes",
        note="calls from several threads queue, each with its own method",
        tests=(
            "test_per_call.py::test_a_call_has_its_own_method_and_leaves_the_guards",
            "test_per_call.py::test_threads_queue_and_each_gets_its_own_answer",
        ),
    ),
    Feature(
        name="`remove()`, `suspended()` while another thread generates",
        part="passes",
        note="they wait; `remove()` from inside a generation is refused",
        tests=(
            "runtime/test_giving_back.py::test_other_threads_wait_for_a_running_generation",
            "runtime/test_giving_back.py::test_remove_inside_a_generation_is_refused",
        ),
    ),
    Feature(
        name="attributes that a user has put on the model",
        part="passes",
        note="come back after `remove`, also those put there meanwhile",
        tests=(
            "runtime/test_giving_back.py::test_what_the_user_has_put_on_the_model_comes_back",
            "runtime/test_giving_back.py::test_every_step_is_undone_although_one_fails",
        ),
    ),
)
