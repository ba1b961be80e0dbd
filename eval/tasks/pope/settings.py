"""The settings of POPE in a run; nothing heavy is imported here, since the command line reads it for its options."""

from vlm_guard.eval.tasks.shared.settings import FilePath, TaskSettings, setting

STRATEGIES = ("random", "popular", "adversarial")


class PopeSettings(TaskSettings):
    """How POPE is asked and read. Yes and no are first words; 10 tokens is OPERA's limit."""

    strategies: list[str] = setting(
        list(STRATEGIES), "How the absent objects are chosen: random, popular, adversarial."
    )
    per_image: int = setting(
        6, "POPE's questions for an image and strategy, even.", flag="--pope-per-image", ge=2, multiple_of=2
    )
    suffix: str = setting("none", "After POPE's questions: none, one_word, short_phrase.", flag="--suffix")
    parser: str = setting("strict", "How POPE's answers are read: strict, pope, opera, vcd.", flag="--parser")
    max_new_tokens: int = setting(10, "Token limit of POPE's answers.", flag="--pope-max-new-tokens", ge=1)
    questions: list[FilePath] = setting(
        [], "Published POPE question files instead of built questions.", flag="--questions"
    )
