"""The model `vlm_guard` of lmms-eval: its tasks, answered by a guarded model. How to use it: docs/lmms-eval.md.

lmms-eval finds it by the entry point `lmms_eval.models` (its version 0.6 and later, `manifest` below) or, for a
checkout without installed metadata and for older versions, by `LMMS_EVAL_PLUGINS=vlm_guard.eval.lmms_eval_plugin`,
which imports `models` here. Both ways are described in lmms-eval's model guide. Only `models/vlm_guard.py` and
`manifest` import lmms-eval, which is an optional dependency.
"""

from typing import Any

INSTALL_HINT = "lmms-eval 0.7 or later is not installed, and the plug-in runs inside it: pip install 'lmms-eval>=0.7'"
_MODULE = f"{__name__}.models.vlm_guard"


def manifest() -> Any:
    """What lmms-eval is told: a `ModelManifest` with the class for structured messages and the one for plain text.

    Raises:
        ImportError: lmms-eval is not installed, or older than 0.6, the first to know manifests.
    """
    try:
        from lmms_eval.models.registry_v2 import ModelManifest
    except ModuleNotFoundError as error:
        raise ImportError(f"{INSTALL_HINT} ({error})") from error
    return ModelManifest(
        model_id="vlm_guard", simple_class_path=f"{_MODULE}.VLMGuard", chat_class_path=f"{_MODULE}.VLMGuardChat"
    )
