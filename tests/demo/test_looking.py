import re

import numpy as np
import pytest
from PIL import Image

from vlm_guard.demo.answering import AnsweringModel, GenerationSettings
from vlm_guard.demo.attention_record import AttentionRecord, RecordStore
from vlm_guard.demo.comparing import Comparison, compare
from vlm_guard.demo.context import DemoContext
from vlm_guard.demo.findings_panel import findings_html
from vlm_guard.demo.heat_maps import ColourScale, as_grid, data_uri, enlarge, outline_cells, overlay
from vlm_guard.demo.look_panel import ALL_LAYERS, CAUTION, LookSettings, look_html
from vlm_guard.demo.looking import look_at
from vlm_guard.demo.patches import PictureView
from vlm_guard.demo.share_plot import share_plot, word_shares
from vlm_guard.demo.words import Word
from vlm_guard.method import Finding, MarkedHeads, MarkedTokens

PROMPT = "Please describe this image in detail."


def compared(context, *methods, **options):
    asked = Comparison(
        picture=context.browser.first(),
        prompt=PROMPT,
        settings=GenerationSettings(max_new_tokens=32),
        methods=methods,
        options=options,
    )
    return list(compare(context.model, asked))[-1]


VIEW = PictureView(image=Image.new("RGB", (32, 32), "white"), grid=(2, 2))


def record(weights, edited=(), share=None, findings=None, view=VIEW):
    weights = np.asarray(weights, np.float16)
    return AttentionRecord(
        weights=weights,
        layers=tuple(range(weights.shape[1])),
        edited_layers=edited,
        image_share=np.asarray(share if share is not None else weights.sum(-1).mean((1, 2)), np.float32),
        findings=findings or (),
        view=view,
        no_view="" if view else "tiles",
    )


def test_records_hold_the_attention_the_model_really_has(context):
    """Against a plain forward pass over prompt and answer with output_attentions."""
    import torch

    done = compared(context, "vcd")
    plain = context.records_of(done, "plain")[0]["plain"]
    model, answer = context.model.model, done.plain
    inputs = context.model.encode(done.picture.image, PROMPT)
    visual = inputs["input_ids"][0] == model.config.image_token_id
    length = len(visual)
    extended = torch.cat((inputs["input_ids"], torch.tensor([answer.token_ids])), 1)
    implementation = model.config.get_text_config()._attn_implementation
    model.set_attn_implementation("eager")
    try:
        with torch.inference_mode():
            out = model(input_ids=extended, pixel_values=inputs["pixel_values"], output_attentions=True)
    finally:
        model.set_attn_implementation(implementation)
    for place, layer in enumerate(plain.layers):
        rows = out.attentions[layer][0, :, length - 1 : length - 1 + len(answer.token_ids), :length][..., visual]
        expected = rows.transpose(0, 1).numpy()
        assert np.abs(plain.weights[:, place].astype(np.float32) - expected).max() < 2e-3


def test_methods_that_leave_attention_alone_show_no_difference(context):
    records, _ = context.records_of(compared(context, "vcd"), "plain")
    difference = records["guarded"].weights.astype(np.float32) - records["plain"].weights.astype(np.float32)
    assert np.abs(difference).max() < 1e-3 and records["guarded"].edited_layers == ()


def test_an_attention_method_shows_a_difference_in_its_layers_only(context):
    records, _ = context.records_of(compared(context, "pai", **{"pai.layers": "2", "pai.gain": 1.0}), "guarded")
    assert records["guarded"].edited_layers == (2,)
    difference = np.abs(records["guarded"].weights.astype(np.float32) - records["plain"].weights.astype(np.float32))
    assert difference[:, 2].max() > 0.01
    assert difference[0, :2].max() < 1e-3  # the layers below, for the first word, see the same


def test_records_are_made_once_and_kept_within_bounds():
    store, made = RecordStore(size=2), []

    def make(name):
        made.append(name)
        return name

    for name in ("a", "a", "b", "c", "b", "a"):
        assert store.get(name, lambda name=name: make(name)) == name
    assert made == ["a", "b", "c", "a"]


def test_no_record_without_an_answer(context):
    empty = Comparison(picture=context.browser.first(), prompt=PROMPT, settings=GenerationSettings(), methods=("pai",))
    with pytest.raises(ValueError, match="run the comparison first"):
        context.records_of(empty, "plain")
    with pytest.raises(ValueError, match="plain and guarded"):
        context.records_of(empty, "other")


def test_a_word_is_the_mean_of_its_tokens():
    weights = np.arange(2 * 3 * 2 * 4).reshape(2, 3, 2, 4) / 100
    made = record(weights)
    assert np.allclose(made.word_map([0, 1]), weights.mean((0, 1, 2)), atol=1e-3)
    assert np.allclose(made.word_map([1], [2], 1), weights[1, 2, 1], atol=1e-3)
    for wrong in ({"layers": [7]}, {"layers": []}, {"head": 2}):
        with pytest.raises(ValueError, match="recorded"):
            made.word_map([0], **wrong)
    with pytest.raises(ValueError, match="only the means"):
        record(weights[:, :, :1]).word_map([0], head=0)


def panel(settings=None, selected=0):
    words = tuple(Word(text=text, start=0, end=1, steps=(step,)) for step, text in enumerate(["one", "two."]))
    plain = record([[[[0.1, 0.2, 0.0, 0.0]]], [[[0.0, 0.0, 0.0, 0.4]]]])
    guarded = record([[[[0.2, 0.2, 0.0, 0.0]]], [[[0.0, 0.0, 0.0, 0.8]]]], edited=(0,))
    return look_html(words, selected, {"plain": plain, "guarded": guarded}, settings or LookSettings())


def test_the_panel_names_word_place_and_difference():
    shown = panel()
    assert "<strong>one</strong>" in shown and CAUTION in shown and shown.count("2 x 2 patches") == 3
    assert "30.0 % on the picture; most at row 1, column 2" in shown
    assert "+10.0 points on the picture; largest change at row 1, column 1" in shown
    assert shown.count("<img") == 3 and all(re.findall(r'<img [^>]*alt="[^"]{20,}"', shown))


def test_the_absolute_scale_is_one_for_all_words():
    own, common = panel(), panel(LookSettings(absolute=True))
    assert "<span>20.00 %" in own and "<span>79" not in own
    assert common.count("<span>79.98 %") == 2 and "+39.99 %" in common  # half precision


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (LookSettings(layer="layer 9"), "not recorded"),
        (LookSettings(head="head 5"), "not recorded"),
        (LookSettings(layer="drop table"), "no layer"),
        (LookSettings(head="head x"), "no head"),
    ],
)
def test_unknown_layers_and_heads_are_refused(settings, words):
    with pytest.raises(ValueError, match=words):
        panel(settings)
    with pytest.raises(ValueError, match="has 2 words"):
        panel(selected=5)


def test_the_whole_way_from_a_pressed_word(context):
    done = compared(context, "pai")
    for settings in (LookSettings(), LookSettings(layer=ALL_LAYERS), LookSettings(layer="layer 1", head="head 2")):
        shown = look_at(context, done, "guarded", 1, settings)
        assert shown.count("data:image/png") == 3 and "8 x 8 patches" in shown and "vg-plot" in shown


def test_colour_scales():
    flat = ColourScale.of([np.zeros((2, 2))])
    assert flat.high > 0
    apart = ColourScale.of([np.array([[-0.2, 0.1]])], diverging=True)
    assert (apart.low, apart.high) == (-0.2, 0.2)
    middle = apart.colours(np.zeros((1, 1)))[0, 0].astype(int)
    assert np.ptp(middle) < 12  # no colour where nothing changed
    assert flat.colours(np.zeros((1, 1))).dtype == np.uint8


def test_overlays_lie_on_the_patch_they_belong_to():
    cells = np.zeros((2, 4))
    cells[1, 3] = 1.0
    drawn = np.asarray(overlay(Image.new("RGB", (160, 80), "grey"), cells, ColourScale(low=0, high=1))).astype(int)
    marked = np.abs(drawn - drawn[0, 0]).sum(-1) > 60
    rows, columns = np.nonzero(marked)
    height, width = marked.shape
    assert (rows.min(), columns.min()) == (height // 2, width * 3 // 4) and marked.mean() == 1 / 8


def test_a_map_must_fill_the_grid():
    with pytest.raises(ValueError, match="7 visual tokens"):
        as_grid(np.zeros(7), (2, 4))


def test_pictures_for_the_page():
    small = enlarge(Image.new("RGB", (96, 96)))
    assert small.size == (480, 480)
    assert data_uri(small).startswith("data:image/png;base64,")
    assert data_uri(Image.new("RGB", (900, 700))).startswith("data:image/jpeg;base64,")


def test_the_share_plot_follows_the_words():
    words = tuple(Word(text=text, start=0, end=1, steps=steps) for text, steps in [("a", (0,)), ("b<", (1, 2))])
    shares = word_shares(words, np.array([0.2, 0.4, 0.6], np.float32))
    assert shares == pytest.approx([0.2, 0.5])
    plot = share_plot(words, {"plain": shares, "guarded": shares}, selected=1)
    assert "b&lt;" in plot and plot.count("<polyline") == 2 and "plain: 35 % on average" in plot


def test_marked_tokens_are_crossed_out_and_words_are_told():
    marked = np.array([False, True, False, False])
    sinks = MarkedTokens(title="sinks", text="layer 2: 1 visual <1 other>", marked=marked, name="the sinks")
    shown = findings_html(VIEW, [sinks])
    assert "1 crossed-out patches, the sinks" in shown and "layer 2: 1 visual &lt;1 other&gt;" in shown
    assert findings_html(None, [sinks]) == "", "marks need a picture to be drawn on"
    drawn = np.asarray(outline_cells(VIEW.image, np.array([[False, True], [False, False]])))
    side = drawn.shape[0] // 2
    outside = drawn.copy()
    outside[: side + 3, side - 3 :] = 255
    assert (drawn != 255).any() and (outside == 255).all()
    shown = findings_html(None, [Finding(title="sinks", text="No token is one.")])
    assert "No token is one" in shown and "<img" not in shown


def test_vhr_heads_are_drawn_as_the_method_chose_them(context):
    done = compared(context, "vhr")
    assert not done.error, done.error
    (finding,) = context.records_of(done, "guarded")[0]["guarded"].findings
    assert isinstance(finding, MarkedHeads) and "multiplied by 2" in finding.text
    chosen = finding.marked
    assert chosen and all(len(heads) == context.architecture.heads and heads.any() for heads in chosen.values())
    shown = look_at(context, done, "guarded", 0, LookSettings())
    assert shown.count('class="vg-head-on"') == sum(int(heads.sum()) for heads in chosen.values())


def test_carve_shows_its_map_and_what_the_guarded_model_saw(context):
    for final_inputs in ("refined", "both"):
        done = compared(context, "carve", **{"carve.final_inputs": final_inputs, "carve.steps": 4})
        assert not done.error, done.error
        records, _ = context.records_of(done, "plain")
        refined = records["guarded"].replaced_picture
        assert refined is not None and records["guarded"].view.image.size == refined.size
        assert records["guarded"].weights.shape[-1] == records["guarded"].view.tokens
        shown = look_at(context, done, "plain", 1, LookSettings())
        assert "contrast map" in shown and "refined picture" in shown
        assert "Guarded minus plain" not in shown and "saw a refined picture" in shown


def test_models_that_cut_tiles_get_the_plot_and_the_reason():
    words = (Word(text="one", start=0, end=3, steps=(0,)),)
    tiled = record([[[[0.1, 0.2]]]], view=None)
    shown = look_html(words, 0, {"plain": tiled, "guarded": tiled}, LookSettings())
    assert "No heat-map: tiles" in shown and "<img" not in shown and "vg-plot" in shown


def test_methods_without_findings_show_none(context):
    assert "vg-findings" not in look_at(context, compared(context, "vcd"), "plain", 0, LookSettings())


@pytest.mark.parametrize(("family", "maps"), [("llava", 3), ("gemma3", 3), ("llava_next", 0)])
def test_other_families(zoo_model, zoo_processor, pictures, family, maps):
    """Square grids, sliding layers, and tiles that form no grid."""
    model = AnsweringModel(model=zoo_model(family).model, processor=zoo_processor(family))
    context = DemoContext(model=model, browser=pictures)
    settings = GenerationSettings(max_new_tokens=6)
    asked = Comparison(picture=pictures.first(), prompt="describe the image", settings=settings, methods=("pai",))
    done = list(compare(model, asked))[-1]
    assert not done.error and done.plain.words, done.error
    shown = look_at(context, done, "plain", 0, LookSettings())
    assert shown.count("<img") == maps and "vg-plot" in shown
    assert ("cuts its images into tiles" in shown) == (maps == 0)


def test_a_method_that_cannot_be_applied_leaves_nothing_to_look_at(context):
    done = compared(context, "var", **{"var.sink_dimensions": "5000"})
    with pytest.raises(ValueError, match="there is no answer to look at: var: sink_dimensions"):
        look_at(context, done, "plain", 0, LookSettings(absolute=True))
