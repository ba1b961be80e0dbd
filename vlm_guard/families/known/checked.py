"""Families of transformers' image-text mapping without a model in the tests' zoo.

They are accepted after the check that `wrap` makes of an untested model (`vlm_guard.self_check`). Most can be built for
the tests as text alone, on which the check is tested; the others say why not.
"""

from vlm_guard.families.family import ArchitectureEntry

_TIMM = "its vision tower comes from the package timm, which the tests do not install"
_ONE_BRANCH = "the check refuses contrasts with a second branch: it counts positions by the length of its cache"

COHERE_COMPASS = ArchitectureEntry(family="Cohere Compass", model_types=("cohere_compass",))
COSMOS3 = ArchitectureEntry(family="Cosmos 3", model_types=("cosmos3_edge", "cosmos3_omni"))
DEEPSEEK_OCR2 = ArchitectureEntry(family="DeepSeek-OCR 2", model_types=("deepseek_ocr2",))
DEEPSEEK_VL_HYBRID = ArchitectureEntry(family="DeepSeek-VL hybrid", model_types=("deepseek_vl_hybrid",))
ERNIE4_5_VL = ArchitectureEntry(family="ERNIE 4.5 VL MoE", model_types=("ernie4_5_vl_moe",))
EXAONE4_5 = ArchitectureEntry(family="EXAONE 4.5", model_types=("exaone4_5",), note=_ONE_BRANCH)
GEMMA4_UNIFIED = ArchitectureEntry(family="Gemma 4 unified", model_types=("gemma4_unified",))
GLM5_NEXT = ArchitectureEntry(
    family="GLM-5 Next", model_types=("glm5_next",), note="only its layers with attention of the usual kind are edited"
)
GLM_OCR = ArchitectureEntry(family="GLM-OCR", model_types=("glm_ocr",))
GLMGA = ArchitectureEntry(family="GLM-GA", model_types=("glmga",))
GOT_OCR2 = ArchitectureEntry(family="GOT-OCR 2, PP-Chart2Table", model_types=("got_ocr2", "pp_chart2table"))
GRANITE_DOCLING = ArchitectureEntry(family="Granite Docling", model_types=("granite_docling",))
HYPERCLOVAX = ArchitectureEntry(
    family="HyperCLOVA X Vision 2", model_types=("hyperclovax_vision_v2",), note=_ONE_BRANCH
)
INKLING2 = ArchitectureEntry(
    family="Inkling 2",
    model_types=("inkling2",),
    note="the check refuses edits of attention: each row has a sink logit of its own",
)
KIMI_K25 = ArchitectureEntry(family="Kimi K2.5", model_types=("kimi_k25",))
LFM3_VL = ArchitectureEntry(family="LFM3-VL", model_types=("lfm3_vl",), note="only its attention layers are edited")
LLAVA_NEXT_VIDEO = ArchitectureEntry(family="LLaVA-NeXT-Video", model_types=("llava_next_video",))
MINICPM_OTHERS = ArchitectureEntry(
    family="MiniCPM-V 4.7, MiniCPM-OCR",
    model_types=("minicpmv4_7", "minicpm_ocr"),
    note="only their full-attention layers are edited",
)
MISTRAL_LARGE4 = ArchitectureEntry(
    family="Mistral Large 4",
    model_types=("mistral_large4",),
    note="layers that choose their keys are edited among these",
)
MUSE_GLIMMER = ArchitectureEntry(family="Muse Glimmer", model_types=("muse_glimmer",))
NEMOTRON_H_OMNI = ArchitectureEntry(
    family="Nemotron-H Omni", model_types=("nemotron_h_omni",), note="only its attention layers are edited"
)
PADDLEOCR_VL = ArchitectureEntry(family="PaddleOCR-VL", model_types=("paddleocr_vl",))
QIANFAN_OCR = ArchitectureEntry(family="Qianfan-OCR", model_types=("qianfan_ocr",))
QWEN4_EXP = ArchitectureEntry(
    family="Qwen4 (experimental)", model_types=("qwen4_exp",), note="only its attention layers are edited"
)
SHIELDGEMMA2 = ArchitectureEntry(family="ShieldGemma 2", model_types=("shieldgemma2",))
STEP3P7 = ArchitectureEntry(family="Step 3.7", model_types=("step3p7",))
UNLIMITED_OCR = ArchitectureEntry(family="Unlimited-OCR", model_types=("unlimited_ocr",))

FAST_VLM = ArchitectureEntry(family="FastVLM", model_types=("fast_vlm",), unbuilt=_TIMM)
PERCEPTION_LM = ArchitectureEntry(family="Perception LM", model_types=("perception_lm",), unbuilt=_TIMM)
GEMMA3N = ArchitectureEntry(family="Gemma 3n", model_types=("gemma3n",), unbuilt=_TIMM)
EMU3 = ArchitectureEntry(
    family="Emu3", model_types=("emu3",), unbuilt="its configuration needs the checkpoint's map of visual words"
)
GRANITE4_VISION = ArchitectureEntry(
    family="Granite 4 Vision",
    model_types=("granite4_vision",),
    unbuilt="its configuration needs the checkpoint's map of vision layers to decoder layers",
)
HUNYUAN_VL = ArchitectureEntry(
    family="HunYuan-VL",
    model_types=("hunyuan_vl",),
    unbuilt="its configuration needs the checkpoint's rotary settings",
)
INKLING = ArchitectureEntry(
    family="Inkling",
    model_types=("inkling_mm_model",),
    unbuilt="its vision tower has layers of fixed width, too large for the tests",
)
MUSE_SPARK = ArchitectureEntry(
    family="Muse Spark",
    model_types=("muse_spark",),
    unbuilt="its audio tower has layers of fixed width, too large for the tests",
)
PHI4_MULTIMODAL = ArchitectureEntry(
    family="Phi-4 multimodal",
    model_types=("phi4_multimodal",),
    note="outside of the mapping: load it with AutoModelForCausalLM",
    decoder="model.layers",
    token_id_fields=("vision_config.image_token_id",),
)
