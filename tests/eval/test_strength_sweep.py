"""What the sweep tries, and what it chooses."""

import json

import pytest
from rich.console import Console

from vlm_guard.eval.report.sweep_table import USE_THIS, sweep_tables
from vlm_guard.eval.run.settings import RunSettings
from vlm_guard.eval.run.strength_sweep import Strength, _choice, _point, main_strength, sweep, sweep_rule
from vlm_guard.families.profiles import Setting
from vlm_guard.method.registry import method_class, method_names


def test_half_once_and_twice_the_distance_from_neutral():
    assert main_strength("pai").values == (0.1, 0.2, 0.4)
    assert main_strength("vhr").values == (1.5, 2.0, 3.0), "neutral is 1, the default 2"
    assert main_strength("carve").values == (0.01, 0.2, 0.6), "cut off at the option's range"
    assert main_strength("zerotuning").labels == ["zerotuning", "zerotuning:factor=0.5", "zerotuning:factor=2"]
    assert main_strength("none") is None


def test_every_strength_is_tried_with_every_value_that_another_option_names():
    strength = main_strength("icd")
    assert strength.values == (0.5, 1.0, 2.0) and strength.beside == {"plausibility": (0.1, 0.5, 0.7)}
    half, once = strength.labels[:3], strength.labels[3:6]
    assert half == ["icd:strength=0.5", "icd:strength=0.5,plausibility=0.5", "icd:strength=0.5,plausibility=0.7"]
    assert once == ["icd", "icd:plausibility=0.5", "icd:plausibility=0.7"]
    labels = main_strength("vcd").labels
    assert len(labels) == len(set(labels)) == 18 and "vcd:plausibility=0.7,noise_step=999" in labels


@pytest.mark.parametrize("name", [name for name in method_names() if name != "none"])
def test_every_method_has_a_strength_within_its_range(name):
    strength = main_strength(name)
    low, high = next(
        item.metadata["range"]
        for item in method_class(name).__dataclass_fields__.values()
        if item.name == strength.option
    )
    assert len(strength.values) >= 2 and all(low <= value <= high for value in strength.values)


class _Estimate:
    def __init__(self, value, width=0.001):
        self.value, self.low, self.high = value, value - width, value + width


class _Entry:
    def __init__(self, label, chair, recall, width=0.001):
        self.label = label
        values = {"chair_i": chair, "chair_s": chair, "recall": recall, "mean_words": 20.0}
        self.estimates = {name: _Estimate(value) for name, value in values.items()}
        self.difference_to_baseline = {
            "chair_i": _Estimate(chair - 0.2, width),
            "recall": _Estimate(recall - 0.7, width),
        }


class _Results:
    def __init__(self, *entries):
        self.methods = entries


def test_the_lowest_chair_that_keeps_the_recall_is_chosen():
    strength = Strength(method="pai", option="gain", default=0.2, values=(0.1, 0.2, 0.4))
    entries = (_Entry("pai:gain=0.1", 0.19, 0.70), _Entry("pai", 0.18, 0.697), _Entry("pai:gain=0.4", 0.1, 0.5))
    chosen = _choice(_Results(*entries), strength, 100)
    assert chosen["chosen"] == "pai" and chosen["points"][1]["chair_i_change_interval"] == pytest.approx(
        [-0.021, -0.019]
    )
    assert _choice(_Results(*entries), strength, 49)["chosen"] is None, "too few pictures"
    unsure = [_Entry(entry.label, 0.19, 0.7, width=0.02) for entry in entries]
    assert _choice(_Results(*unsure), strength, 100)["chosen"] is None, "each fall may be chance"
    losing = [_Entry(entry.label, 0.1, 0.6) for entry in entries]
    assert _choice(_Results(*losing), strength, 100)["chosen"] is None, "none keeps the recall"
    worse = [_Entry(entry.label, 0.21, 0.8) for entry in entries]
    assert _choice(_Results(*worse), strength, 100)["chosen"] is None, "none lowers CHAIR_i"


def test_a_sweep_from_end_to_end(tmp_path):
    settings = RunSettings(model="builtin", data="scenes:common:31", count=2, max_new_tokens=12, device="cpu")
    report = sweep(settings, ["paint"], tmp_path)
    assert json.loads(json.dumps(report)) == json.loads((tmp_path / "sweep.json").read_text())
    assert [point["label"] for point in report["methods"][0]["points"]] == main_strength("paint").labels
    assert report["methods"][0]["chosen"] in (None, *main_strength("paint").labels)
    with pytest.raises(ValueError, match="no strength to vary"):
        sweep(settings, ["none"], tmp_path)


def test_a_models_published_setting_counts_as_its_default():
    setting = Setting(value=0.5, source="paper", profile="tiny")
    strength = main_strength("pai", {"gain": setting})
    assert (strength.default, strength.values) == (0.5, (0.25, 0.5, 1.0))
    assert strength.labels[:2] == ["pai:gain=0.25", "pai:gain=0.25,plausibility=0.5"] and "pai" in strength.labels


@pytest.mark.parametrize("width", [80, 60, 40])
def test_the_table_fits_the_terminal_and_the_mark_stays_with_its_setting(width):
    results = _Results(_Entry("pai", 0.18, 0.7), _Entry("vcd:strength=0.5,plausibility=0.7,noise_step=999", 0.1, 0.7))
    points = [_point(results, entry.label, sweep_rule()[1]) for entry in results.methods]
    plain = {"label": "none", "chair_i": 0.2, "recall": 0.7}
    methods = [{"chosen": point["label"] if place else None, "points": [point]} for place, point in enumerate(points)]
    report = {"task": "chair", "lower": "chair_i", "keep": "recall", "baseline": plain, "methods": methods}
    console = Console(width=width)
    with console.capture() as shown:
        for table in sweep_tables(report, width):
            console.print(table)
    lines = [line.rstrip() for line in shown.get().splitlines()]
    assert max(map(len, lines)) <= width and "…" not in shown.get()
    tables = 1 if width >= 60 else 2
    assert sum(line.startswith("setting") for line in lines) == tables
    assert sum(line == USE_THIS for line in lines) == tables
    before = lines[lines.index(USE_THIS) - 1]
    assert before.strip().startswith("noise_step=999"), "below the label of the setting that is chosen"
    assert any("-2.0" in line for line in lines) and any("-2.1..-1.9" in line for line in lines)
