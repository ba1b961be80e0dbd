"""What an author of a method writes and sees: the base classes, their hooks, the calls handed to them, the registry.

Methods import from here and from `vlm_guard.kernels`, and from nothing deeper; what they need of the families of models
is offered here too. Names are resolved on first use, so that listing methods does not import torch.

May import: kernels, families.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vlm_guard.families.architecture import describe_architecture, unwrap
    from vlm_guard.families.head_list import head_list, select_heads, select_heads_of
    from vlm_guard.families.layer_parts import (
        FeedForward,
        LayerPart,
        Part,
        attending_parts,
        feed_forward_of,
        output_projection,
        replace_output,
    )
    from vlm_guard.families.layers import layer_ranges, select_attending_layers, select_layers, select_layers_of
    from vlm_guard.families.packed_vectors import pack_vectors, unpack_vectors
    from vlm_guard.families.patch_grid import PlacedImage, place_images, require_grid
    from vlm_guard.families.pictures import flat_pictures, magnify_regions, recover_pictures, seen_part, stretch
    from vlm_guard.families.profiles import Fact
    from vlm_guard.families.tied_embeddings import has_tied_embeddings
    from vlm_guard.families.vision_tower import VisionTower, describe_vision_tower
    from vlm_guard.method.attention_calls import AttentionCall, HiddenCall
    from vlm_guard.method.base import Method, RowScope, Sign, option, variant_option
    from vlm_guard.method.branch_prompt import INSERTED, BranchPrompt, GivenPrompt, first_visual, image_markers
    from vlm_guard.method.contrast_method import ContrastMethod, plausibility_option
    from vlm_guard.method.contrasting import (
        Branch,
        ContrastCall,
        contrast_logits,
        cut_implausible,
        lower_implausible,
        padding_id,
    )
    from vlm_guard.method.early_exit import StopForward, run_until_stopped
    from vlm_guard.method.findings import (
        Finding,
        FindingsCall,
        MarkedHeads,
        MarkedTokens,
        PictureMap,
        ReplacedPicture,
    )
    from vlm_guard.method.forward_call import ForwardCall, InputsCall
    from vlm_guard.method.function_option import describe_function, find_function
    from vlm_guard.method.hidden_edit_call import HiddenEditCall
    from vlm_guard.method.hooks import acts_in_model
    from vlm_guard.method.key_edit_method import KeyEditMethod
    from vlm_guard.method.measure_call import MeasureCall
    from vlm_guard.method.model_inputs import TOKEN_TYPES, image_inputs, token_types
    from vlm_guard.method.question_place import answer_opening, question_range, token_spans
    from vlm_guard.method.read_out_call import ReadOutCall, require_plain_head
    from vlm_guard.method.registry import register
    from vlm_guard.method.search_call import CandidatePasses, SearchCall
    from vlm_guard.method.split_heads import all_heads, own_heads, refuse_split_tower
    from vlm_guard.method.state import GenerationState
    from vlm_guard.method.target import GuardTarget
    from vlm_guard.method.two_streams import TwoStreams
    from vlm_guard.method.vision_calls import VisionEditCall, VisionPassCall, VisionPlan, VisionRowCall
    from vlm_guard.method.visual_tokens import RowSelection, spread_over_visual_tokens, visual_mask

_HOMES = {
    "families.architecture": ("describe_architecture", "unwrap"),
    "families.head_list": ("head_list", "select_heads", "select_heads_of"),
    "families.layer_parts": (
        "FeedForward",
        "LayerPart",
        "Part",
        "attending_parts",
        "feed_forward_of",
        "output_projection",
        "replace_output",
    ),
    "families.layers": ("layer_ranges", "select_attending_layers", "select_layers", "select_layers_of"),
    "families.packed_vectors": ("pack_vectors", "unpack_vectors"),
    "families.patch_grid": ("PlacedImage", "place_images", "require_grid"),
    "families.pictures": ("flat_pictures", "magnify_regions", "recover_pictures", "seen_part", "stretch"),
    "families.profiles": ("Fact",),
    "families.tied_embeddings": ("has_tied_embeddings",),
    "families.vision_tower": ("VisionTower", "describe_vision_tower"),
    "method.attention_calls": ("AttentionCall", "HiddenCall"),
    "method.base": ("Method", "RowScope", "Sign", "option", "variant_option"),
    "method.branch_prompt": ("INSERTED", "BranchPrompt", "GivenPrompt", "first_visual", "image_markers"),
    "method.contrast_method": ("ContrastMethod", "plausibility_option"),
    "method.contrasting": (
        "Branch",
        "ContrastCall",
        "contrast_logits",
        "cut_implausible",
        "lower_implausible",
        "padding_id",
    ),
    "method.early_exit": ("StopForward", "run_until_stopped"),
    "method.findings": ("Finding", "FindingsCall", "MarkedHeads", "MarkedTokens", "PictureMap", "ReplacedPicture"),
    "method.forward_call": ("ForwardCall", "InputsCall"),
    "method.function_option": ("describe_function", "find_function"),
    "method.hidden_edit_call": ("HiddenEditCall",),
    "method.hooks": ("acts_in_model",),
    "method.key_edit_method": ("KeyEditMethod",),
    "method.measure_call": ("MeasureCall",),
    "method.model_inputs": ("TOKEN_TYPES", "image_inputs", "token_types"),
    "method.question_place": ("answer_opening", "question_range", "token_spans"),
    "method.read_out_call": ("ReadOutCall", "require_plain_head"),
    "method.registry": ("register",),
    "method.search_call": ("CandidatePasses", "SearchCall"),
    "method.split_heads": ("all_heads", "own_heads", "refuse_split_tower"),
    "method.state": ("GenerationState",),
    "method.target": ("GuardTarget",),
    "method.two_streams": ("TwoStreams",),
    "method.vision_calls": ("VisionEditCall", "VisionPassCall", "VisionPlan", "VisionRowCall"),
    "method.visual_tokens": ("RowSelection", "spread_over_visual_tokens", "visual_mask"),
}
_PUBLIC = {name: home for home, names in _HOMES.items() for name in names}

__all__ = [
    "INSERTED",
    "TOKEN_TYPES",
    "AttentionCall",
    "Branch",
    "BranchPrompt",
    "CandidatePasses",
    "ContrastCall",
    "ContrastMethod",
    "Fact",
    "FeedForward",
    "Finding",
    "FindingsCall",
    "ForwardCall",
    "GenerationState",
    "GivenPrompt",
    "GuardTarget",
    "HiddenCall",
    "HiddenEditCall",
    "InputsCall",
    "KeyEditMethod",
    "LayerPart",
    "MarkedHeads",
    "MarkedTokens",
    "MeasureCall",
    "Method",
    "Part",
    "PictureMap",
    "PlacedImage",
    "ReadOutCall",
    "ReplacedPicture",
    "RowScope",
    "RowSelection",
    "SearchCall",
    "Sign",
    "StopForward",
    "TwoStreams",
    "VisionEditCall",
    "VisionPassCall",
    "VisionPlan",
    "VisionRowCall",
    "VisionTower",
    "acts_in_model",
    "all_heads",
    "answer_opening",
    "attending_parts",
    "contrast_logits",
    "cut_implausible",
    "describe_architecture",
    "describe_function",
    "describe_vision_tower",
    "feed_forward_of",
    "find_function",
    "first_visual",
    "flat_pictures",
    "has_tied_embeddings",
    "head_list",
    "image_inputs",
    "image_markers",
    "layer_ranges",
    "lower_implausible",
    "magnify_regions",
    "option",
    "output_projection",
    "own_heads",
    "pack_vectors",
    "padding_id",
    "place_images",
    "plausibility_option",
    "question_range",
    "recover_pictures",
    "refuse_split_tower",
    "register",
    "replace_output",
    "require_grid",
    "require_plain_head",
    "run_until_stopped",
    "seen_part",
    "select_attending_layers",
    "select_heads",
    "select_heads_of",
    "select_layers",
    "select_layers_of",
    "spread_over_visual_tokens",
    "stretch",
    "token_spans",
    "token_types",
    "unpack_vectors",
    "unwrap",
    "variant_option",
    "visual_mask",
]


def __getattr__(name: str) -> Any:
    if name in _PUBLIC:
        return getattr(import_module(f"vlm_guard.{_PUBLIC[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
