"""Whether a model reads its logits out with the very weights that embed its input tokens."""

from torch import nn
from transformers import PreTrainedModel


def has_tied_embeddings(model: PreTrainedModel) -> bool:
    """Whether the output embeddings' weight is the input embeddings' weight.

    What the configuration says does not decide: `tie_word_embeddings` stands in the text configuration of some
    families, in the whole model's of others, and in some in both with different values. So the weights themselves are
    compared. Where one of them is not in memory (offloaded) or is stored in another form (quantised), they cannot be
    compared, and what transformers recorded when it tied the model's weights is asked instead; so it is where they are
    spread over processes.

    Args:
        model: a model, or the inner language model of one.
    """
    entering, leaving = model.get_input_embeddings(), model.get_output_embeddings()
    first, second = getattr(entering, "weight", None), getattr(leaving, "weight", None)
    if first is None or second is None:
        return False
    if first is second:
        return True
    in_memory = first.device.type != "meta" and second.device.type != "meta"
    # Weights that are spread over processes have no address of their own, and each process would judge for itself.
    spread = any(hasattr(weight, "to_local") for weight in (first, second))
    if in_memory and not spread and first.shape == second.shape and first.dtype == second.dtype:
        return first.data_ptr() == second.data_ptr()
    return _were_tied(model, entering, leaving)


def _were_tied(model: PreTrainedModel, entering: nn.Module, leaving: nn.Module) -> bool:
    """Whether transformers tied the two modules' weights when the model was built or loaded."""
    names = {id(module): name for name, module in model.named_modules()}
    given, source = (f"{names.get(id(module))}.weight" for module in (leaving, entering))
    tied = model.all_tied_weights_keys
    return given != source and tied.get(given, given) == tied.get(source, source)
