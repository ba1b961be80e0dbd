"""The settings of CHAIR in a run; nothing heavy is imported here, since the command line reads it for its options."""

from vlm_guard.eval.tasks.shared.settings import TaskSettings, setting

CAPTION_PROMPT = "Please describe this image in detail."


class ChairSettings(TaskSettings):
    """How captions are asked for. 512 tokens in nearly all published long-caption tables, 64 in others; never mix."""

    prompt: str = setting(CAPTION_PROMPT, "Instruction for captions.", flag="--prompt")
    max_new_tokens: int = setting(512, "Token limit of captions.", flag="--max-new-tokens", ge=1)
