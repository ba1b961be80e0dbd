"""The tab "Where it looked": one word, the two models on the same words, and their difference."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from vlm_guard.demo.attention_record import AttentionRecord
from vlm_guard.demo.heat_maps import ColourScale, as_grid, data_uri, gradient_css, overlay
from vlm_guard.demo.marked_answer import bare, escape, message_html
from vlm_guard.demo.patches import PictureView
from vlm_guard.demo.share_plot import share_plot, word_shares
from vlm_guard.demo.words import Word

# Short: on narrow screens a longer word is cut off in its field.
METHOD_LAYERS = "the method's"
ALL_LAYERS = "all layers"
ALL_HEADS = "all heads"
SHARES_OF = f" (mean of {ALL_LAYERS} and {ALL_HEADS}, whatever is chosen above)"
"""What the plot shows; its line covers the whole answer and is kept once."""
CAUTION = "Attention is not an explanation: a patch that draws attention need not be what the word rests on."


@dataclass(frozen=True, kw_only=True)
class LookSettings:
    """What is averaged and how it is coloured.

    Attributes:
        layer: `METHOD_LAYERS`, `ALL_LAYERS` or "layer N".
        head: `ALL_HEADS` or "head N".
        absolute: one scale for all words of the answer instead of each map's own.
    """

    layer: str = METHOD_LAYERS
    head: str = ALL_HEADS
    absolute: bool = False

    def layers_of(self, record: AttentionRecord, edited: Sequence[int]) -> tuple[int, ...]:
        """The decoder layers to average.

        Raises:
            ValueError: the layer is none of the recorded ones.
        """
        if self.layer == ALL_LAYERS or (self.layer == METHOD_LAYERS and not edited):
            return record.layers
        if self.layer == METHOD_LAYERS:
            return tuple(edited)
        return (_number(self.layer, "layer"),)

    @property
    def head_number(self) -> int | None:
        """The chosen head, or None for the mean."""
        return None if self.head == ALL_HEADS else _number(self.head, "head")


def _number(text: str, kind: str) -> int:
    word, _, number = str(text).partition(" ")
    if word != kind or not number.isdigit():
        raise ValueError(f"{text!r} is no {kind}; choose one from the list")
    return int(number)


def layer_choices(layers: Sequence[int]) -> list[str]:
    """What the layer list offers."""
    return [METHOD_LAYERS, ALL_LAYERS, *(f"layer {layer}" for layer in layers)]


def head_choices(heads: int) -> list[str]:
    """What the head list offers."""
    return [ALL_HEADS, *(f"head {head}" for head in range(heads))]


def look_html(words: Sequence[Word], selected: int, records: dict[str, AttentionRecord], settings: LookSettings) -> str:
    """The panel for one word.

    Args:
        words: the words of the answer that both models were led along.
        selected: number of the word to show.
        records: "plain" and, where the methods can be applied, "guarded".
        settings: what to average.

    Raises:
        ValueError: the word, layer or head does not exist.
    """
    if not 0 <= selected < len(words):
        raise ValueError(f"word {selected + 1} does not exist; the answer has {len(words)} words")
    last = list(records.values())[-1]
    edited = last.edited_layers
    layers = settings.layers_of(last, edited)
    shares = {side: word_shares(words, record.image_share) for side, record in records.items()}
    return (
        f'<p class="vg-looking">Attention to the picture while the model was about to say '
        f"<strong>{escape(bare(words[selected]))}</strong> ({_described(settings, layers, edited)}). "
        f"{'Both models were led along the same words.' if len(records) > 1 else ''}</p>"
        f"{_maps_html(words, selected, records, layers, settings)}"
        f'<p class="vg-caution">{CAUTION}</p>'
        f"{share_plot(words, shares, selected, SHARES_OF)}"
    )


def _maps_html(
    words: Sequence[Word],
    selected: int,
    records: dict[str, AttentionRecord],
    layers: Sequence[int],
    settings: LookSettings,
) -> str:
    """The heat-maps; their difference only where both models saw the same picture."""
    unseen = next((record for record in records.values() if record.view is None), None)
    if unseen is not None:
        return message_html("note", f"No heat-map: {unseen.no_view}.")
    views = {side: record.view for side, record in records.items() if record.view is not None}
    both = len(records) > 1
    alike = both and records["guarded"].replaced_picture is None

    def word_maps(word: Word) -> dict[str, np.ndarray]:
        maps = {
            side: as_grid(record.word_map(word.steps, layers, settings.head_number), views[side].grid)
            for side, record in records.items()
        }
        return maps | ({"difference": maps["guarded"] - maps["plain"]} if alike else {})

    last = list(records.values())[-1]
    shown = word_maps(words[selected])
    everything = [word_maps(word) for word in words] if settings.absolute else [shown]
    scales = {side: ColourScale.of([maps[side] for maps in everything], side == "difference") for side in shown}
    if settings.absolute and both:
        scales["plain"] = scales["guarded"] = max((scales["plain"], scales["guarded"]), key=lambda scale: scale.high)
    views["difference"] = views["plain"]
    word, of = bare(words[selected]), _described(settings, layers, last.edited_layers)
    figures = "".join(_figure(views[side], side, cells, scales[side], word, of) for side, cells in shown.items())
    note = (
        ""
        if alike or not both
        else message_html("note", "The guarded model saw a refined picture, so there is no difference.")
    )
    return f'<div class="vg-maps">{figures}</div>{note}'


def _described(settings: LookSettings, layers: Sequence[int], edited: Sequence[int]) -> str:
    if len(layers) == 1:
        where = f"layer {layers[0]}"
    elif settings.layer == METHOD_LAYERS and edited:
        where = f"mean of the {len(layers)} layers the method acts on"
    elif settings.layer == METHOD_LAYERS:
        where = "mean of all layers; this method acts on none of them"
    else:
        where = f"mean of all {len(layers)} layers"
    return f"{where}, {'mean of all heads' if settings.head == ALL_HEADS else settings.head}"


_TITLES = {"plain": "Plain", "guarded": "Guarded", "difference": "Guarded minus plain"}


def _figure(view: PictureView, side: str, cells: np.ndarray, scale: ColourScale, word: str, of: str) -> str:
    total = float(cells.sum())
    strongest = np.unravel_index(int(np.abs(cells).argmax()), cells.shape)
    place = f"row {strongest[0] + 1}, column {strongest[1] + 1}"
    if side == "difference":
        summary = f"{100 * total:+.1f} points on the picture; largest change at {place}"
    else:
        summary = f"{100 * total:.1f} % on the picture; most at {place}"
    patches = f"{view.grid[0]} x {view.grid[1]} patches"
    low, high = (
        f"{100 * scale.low:+.2f} %" if scale.diverging else "0",
        f"{100 * scale.high:{'+' if scale.diverging else ''}.2f} %",
    )
    return (
        f'<figure class="vg-map vg-map-{side}"><figcaption>{_TITLES[side]} <small>{patches}</small></figcaption>'
        f'<img src="{data_uri(overlay(view.image, cells, scale))}" alt="{_TITLES[side]}: attention heat-map for '
        f'the word {escape(word)}, {summary}">'
        f'<div class="vg-scale"><span>{low}</span><i style="background:{gradient_css(scale.diverging)}"></i>'
        f"<span>{high}</span></div><p>{summary} ({escape(of)})</p></figure>"
    )
