"""What an author of a method writes and sees: the base class, its stations, the calls handed to them, the registry.

Methods import from here and from `vlm_guard.kernels`, and from nothing deeper. Names are resolved on first use, so that
listing methods does not import torch.

May import: kernels, families.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vlm_guard.method.attention_calls import AttentionCall, HiddenCall
    from vlm_guard.method.base import Method, RowScope, Sign, option, variant_option
    from vlm_guard.method.branch_prompt import BranchPrompt, GivenPrompt
    from vlm_guard.method.contrast_method import ContrastMethod, plausibility_option
    from vlm_guard.method.contrasting import Branch, ContrastCall, contrast_logits, cut_implausible
    from vlm_guard.method.findings import (
        Finding,
        FindingsCall,
        MarkedHeads,
        MarkedTokens,
        PictureMap,
        ReplacedPicture,
    )
    from vlm_guard.method.forward_call import ForwardCall, InputsCall
    from vlm_guard.method.key_edit_method import KeyEditMethod
    from vlm_guard.method.registry import register
    from vlm_guard.method.target import GuardTarget

_HOMES = {
    "base": ("Method", "RowScope", "Sign", "option", "variant_option"),
    "registry": ("register",),
    "attention_calls": ("AttentionCall", "HiddenCall"),
    "branch_prompt": ("BranchPrompt", "GivenPrompt"),
    "contrast_method": ("ContrastMethod", "plausibility_option"),
    "contrasting": ("Branch", "ContrastCall", "contrast_logits", "cut_implausible"),
    "findings": ("Finding", "FindingsCall", "MarkedHeads", "MarkedTokens", "PictureMap", "ReplacedPicture"),
    "forward_call": ("ForwardCall", "InputsCall"),
    "key_edit_method": ("KeyEditMethod",),
    "target": ("GuardTarget",),
}
_PUBLIC = {name: home for home, names in _HOMES.items() for name in names}

__all__ = [
    "AttentionCall",
    "Branch",
    "BranchPrompt",
    "ContrastCall",
    "ContrastMethod",
    "Finding",
    "FindingsCall",
    "ForwardCall",
    "GivenPrompt",
    "GuardTarget",
    "HiddenCall",
    "InputsCall",
    "KeyEditMethod",
    "MarkedHeads",
    "MarkedTokens",
    "Method",
    "PictureMap",
    "ReplacedPicture",
    "RowScope",
    "Sign",
    "contrast_logits",
    "cut_implausible",
    "option",
    "plausibility_option",
    "register",
    "variant_option",
]


def __getattr__(name: str) -> Any:
    if name in _PUBLIC:
        return getattr(import_module(f"vlm_guard.method.{_PUBLIC[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
