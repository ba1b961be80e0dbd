"""ViP-LLaVA: LLaVA with features of several vision layers."""

from transformers import CLIPVisionConfig, LlamaConfig, VipLlavaConfig, VipLlavaForConditionalGeneration

from zoo.entry import Family, register
from zoo.llava_like import LLAVA_SIDE, llava_pixels
from zoo.prompts import IMAGE
from zoo.shapes import text_shape, vision_shape


def vip_llava() -> VipLlavaConfig:
    return VipLlavaConfig(
        text_config=LlamaConfig(**text_shape()),
        vision_config=CLIPVisionConfig(**vision_shape(image_size=LLAVA_SIDE)),
        image_token_index=IMAGE,
        vision_feature_layers=[-2, -1],
    )


register(
    Family(
        name="vip_llava",
        model=lambda: (VipLlavaForConditionalGeneration, vip_llava()),
        image_run=lambda image: [IMAGE] * 16,
        image_inputs=llava_pixels,
    )
)
