"""What `LMMS_EVAL_PLUGINS` looks for: model names, each with the class in the module of that name."""

AVAILABLE_MODELS = {"vlm_guard": "VLMGuard"}
