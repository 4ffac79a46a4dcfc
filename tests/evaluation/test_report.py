import base64
import builtins
import copy
import io
import json
import math
import re
import xml.etree.ElementTree as ElementTree
from html.parser import HTMLParser

import numpy as np
import pytest
from rich.console import Console

from bygrad.evaluation import drawing, figures, level_row
from bygrad.evaluation.report import level_cells, results_table, strict_json, time_line, write_report

FIGURES = ("loss", "seconds", "metatraining", "tuning")
HOSTILE = '<script>alert("&")</script> $x_1$ -->'


def entry(kind, label, final, rate=None, tuning=None):
    curve = [2.0 * (final / 2.0) ** (t / 4) for t in range(5)]
    area = sum(curve[:-1])
    return {
        "kind": kind,
        "label": label,
        "final": {"mean": final, "low": 0.9 * final, "high": 1.1 * final},
        "area": {"mean": area, "low": 0.9 * area, "high": 1.1 * area},
        "curve": curve,
        "curve_low": [0.9 * loss for loss in curve],
        "curve_high": [1.1 * loss for loss in curve],
        "seconds_per_step": 0.00123,
        "learning_rate": rate,
        "area_learning_rate": rate and 2 * rate,
        "area_curve": [1.1 * loss for loss in curve] if rate else None,
        "runs": 8,
        "diverged": 0,
        "note": None,
        "tuning": tuning,
    }


@pytest.fixture
def results():
    tuning = {"learning_rates": [0.01, 0.1, 1.0], "final": [1.0, 0.5, math.inf], "area": [6.0, 5.0, math.nan]}
    return {
        "experiment": "tiny",
        "title": f"Tiny {HOSTILE}",
        "convention": "The loss at t is that after t updates.",
        "horizon": 4,
        "runs": 8,
        "seed": 7,
        "optimizers": {
            "lbfgs": entry("second-order", "L-BFGS (full batch)", 1e-9),
            "adam": entry("hand-designed", HOSTILE, 0.5, rate=0.1, tuning=tuning),
            "lstm": entry("learned", "LSTM", 0.25),
        },
        "paper": {name: {"steps": [1, 2, 3, 4, 5], "losses": [2, 1, 0.6, 0.4, 0.3]} for name in ("LSTM", "NAG", "SGD")},
        "meta_training": {
            "steps": list(range(100)),
            "meta_loss": [10.0 / (1 + i) for i in range(99)] + [math.inf],
            "validation_steps": [0, 50, 100],
            "validation": [20.0, 5.0, 4.0],
            "validation_label": f"area {HOSTILE}",
            "baselines": {"Adam": 6.0, "SGD": math.inf},
            "rollbacks": [{"step": 30, "reason": HOSTILE}],
        },
        "levels": [
            {"what": HOSTILE, "paper": 0.2, "reach": None, "ours": 0.25, "low": 0.2, "high": 0.3, "reached": True},
            {"what": "no interval", "paper": None, "reach": 1, "ours": 2, "low": None, "high": None, "reached": False},
        ],
        "configuration": {"family": {"name": HOSTILE, "hidden": 20}},
        "versions": {"python": "3.11", HOSTILE: "1"},
        "machine": HOSTILE,
        "seconds": {"tuning": 1.0, "meta_training": 4000.0, "evaluation": 600.0},
        "command": f"bygrad reproduce tiny {HOSTILE}",
    }


def shown(results, width=220):
    console = Console(file=io.StringIO(), width=width)
    console.print(results_table(results))
    return console.file.getvalue()


def refuse(constant):
    raise AssertionError(f"{constant} is not JSON")


def test_writes_every_file_and_returns_the_page(results, tmp_path):
    page = write_report(results, tmp_path / "new" / "folder")
    names = {"results.json", "report.html", *(name + ending for name in FIGURES for ending in (".png", ".svg"))}
    assert {path.name for path in page.parent.iterdir()} == names
    assert page.name == "report.html"
    for name in FIGURES:
        assert (page.parent / f"{name}.png").read_bytes().startswith(b"\x89PNG")
        ElementTree.parse(page.parent / f"{name}.svg")


@pytest.mark.usefixtures("unrendered")
def test_json_is_strict_and_reads_back_to_the_same_report(results, tmp_path):
    write_report(results, tmp_path / "first")
    text = (tmp_path / "first" / "results.json").read_text(encoding="utf-8")
    loaded = json.loads(text, parse_constant=refuse)
    assert loaded == strict_json(results)
    assert loaded["optimizers"]["adam"]["tuning"]["final"] == [1.0, 0.5, None]
    write_report(loaded, tmp_path / "second")
    for path in (tmp_path / "first").iterdir():
        assert path.read_bytes() == (tmp_path / "second" / path.name).read_bytes(), path.name


def test_json_takes_arrays_and_says_where_it_cannot():
    assert strict_json({"a": np.array([1.0, np.inf]), "b": np.float32(2)}) == {"a": [1.0, None], "b": 2.0}
    with pytest.raises(TypeError, match=r"results\['a'\]\[1\] is .* of type set"):
        strict_json({"a": [0, {1}]})
    with pytest.raises(TypeError, match="keys must be strings"):
        strict_json({1: 2})


def test_the_page_refers_to_nothing_outside_and_escapes_every_string(results, tmp_path):
    page = write_report(results, tmp_path).read_text(encoding="utf-8")
    assert not re.findall(r"http", re.sub(r'xmlns(:xlink)?="http://www\.w3\.org/[^"]*"', "", page))
    assert "<script" not in page and "-->" not in page and page.count("&lt;script&gt;") >= 8

    class Balanced(HTMLParser):
        def __init__(self):
            super().__init__()
            self.open, self.ids = [], []

        def handle_starttag(self, tag, attributes):
            self.ids += [value for key, value in attributes if key == "id"]
            if tag != "meta":
                self.open.append(tag)

        def handle_endtag(self, tag):
            assert self.open.pop() == tag

    parser = Balanced()
    parser.feed(page)
    assert not parser.open
    assert len(parser.ids) == len(set(parser.ids)) > 0
    references = re.findall(r'href="#([^"]+)"|url\(#([^)]+)\)', page)
    assert {name for pair in references for name in pair if name} <= set(parser.ids)


@pytest.mark.usefixtures("unrendered")
def test_the_time_is_told_by_parts_and_in_all_where_each_is_known(results, tmp_path):
    line = "tuning 1 s, meta-training 1 h 7 min, evaluation 10 min"
    assert f"<dd>{line}, in all 1 h 17 min</dd>" in write_report(results, tmp_path).read_text()
    results["seconds"]["tuning"] = None
    assert time_line(results) == line.replace("1 s", "–", 1)
    results["seconds"] = {"meta_training": 60.0}
    assert time_line(results) == "meta-training 60 s"
    assert time_line({}) == ""


def test_levels_show_their_interval_or_say_that_there_is_none(results):
    assert [level_cells(level)[3] for level in results["levels"]] == ["0.250 [0.200, 0.300]", "2.00 (no interval)"]


@pytest.mark.usefixtures("unrendered")
def test_what_is_lost_is_infinite_in_the_terminal_and_on_the_page(tmp_path, results):
    lost = [level_row("lost", 0.5, math.inf, *ends) for ends in ((), (math.inf, math.inf), (math.nan, math.nan))]
    some = level_row("some lost", 0.5, math.inf, 0.4, math.inf)
    against = level_row("held against what is lost", math.inf, 0.5, 0.4, 0.6)
    rows = [*[("0.500", "∞", "no")] * 3, ("0.500", "∞ [0.400, ∞]", "no"), ("∞", "0.500 [0.400, 0.600]", "yes")]
    levels = [*lost, some, against]
    assert [level_cells(level)[2:5] for level in levels] == rows
    page = write_report(results | {"levels": levels}, tmp_path).read_text(encoding="utf-8")
    for level, row in zip(levels, rows, strict=True):
        assert f'<td class="text">{level["what"]}</td>' + "".join(f"<td>{cell}</td>" for cell in row) in page
    # What was not measured, as its rival is not installed, is missing.
    assert level_cells(level_row("ratio", 2.0, None, at_least=True))[2:5] == ("2.00", "–", "no")


@pytest.mark.usefixtures("unrendered")
def test_the_median_of_lost_runs_is_infinite_on_the_page_too(results, tmp_path):
    results["optimizers"]["adam"].update(diverged=5, final=dict.fromkeys(("mean", "low", "high", "median"), math.inf))
    results["optimizers"]["lstm"]["final"]["median"] = 0.125
    page = write_report(results, tmp_path).read_text(encoding="utf-8")
    assert "<td>∞ [∞, ∞]</td><td>∞</td>" in page
    assert "</td><td>0.125</td>" in page and "<td>–</td>" in page  # L-BFGS is as in older records


def test_a_level_is_written_as_finely_as_what_is_held_against_it():
    def reach(level: float, ours: float, low: float, high: float) -> str:
        return level_cells({"what": "", "reach": level, "ours": ours, "low": low, "high": high})[2]

    assert reach(-14.234, -14.22, -14.23, -14.21) == "-14.234"
    assert reach(0.9, 0.932, 0.925, 0.939) == "0.900"
    assert reach(0.0001234, 1.0, 0.9, 1.1) == "0.000123"  # never with fewer digits than by itself
    assert reach(1.2e-6, 3e-6, 2e-6, 4e-6) == "1.20e-06"


@pytest.mark.usefixtures("unrendered")
def test_optional_parts_may_be_missing_and_old_figures_go(results, tmp_path):
    write_report(results, tmp_path)
    for key in ("paper", "levels", "machine", "versions", "seconds", "command", "configuration"):
        del results[key]
    results["meta_training"] = None
    for entry in results["optimizers"].values():
        entry["seconds_per_step"] = None
    results["optimizers"]["adam"].update(tuning=None, area_curve=None, learning_rate=None, area_learning_rate=None)
    page = write_report(results, tmp_path).read_text(encoding="utf-8")
    assert {path.name for path in tmp_path.iterdir()} == {"results.json", "report.html", "loss.png", "loss.svg"}
    assert "Meta-training" not in page and "Levels" not in page


@pytest.mark.usefixtures("unrendered")
def test_pictures_are_shown_as_they_were_painted(results, tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (4, 6, 3), dtype=np.uint8)
    image = {"shape": [4, 6, 3], "data": base64.b64encode(pixels.tobytes()).decode()}
    rows = [{"label": HOSTILE, "images": [image, image]}, {"label": "LSTM", "images": [image, image]}]
    results["pictures"] = {"caption": HOSTILE, "columns": ["photograph", "0"], "rows": rows}
    page = write_report(results, tmp_path).read_text()
    assert (tmp_path / "pictures.png").is_file() and "<h2>Pictures</h2>" in page and "<script>" not in page
    drawn = [axes.images[0].get_array() for axes in figures.pictures(results).axes]
    assert len(drawn) == 4
    for array in drawn:
        np.testing.assert_array_equal(array, pixels)


def test_without_matplotlib_the_data_are_written_and_the_error_says_what_to_install(results, tmp_path, monkeypatch):
    real = builtins.__import__

    def missing(name, *rest, **named):
        if name.partition(".")[0] == "matplotlib":
            raise ImportError(name)
        return real(name, *rest, **named)

    monkeypatch.setattr(builtins, "__import__", missing)
    with pytest.raises(ImportError, match=r"pip install matplotlib") as error:
        write_report(results, tmp_path)
    assert str(tmp_path / "results.json") in str(error.value)
    assert [path.name for path in tmp_path.iterdir()] == ["results.json"]


@pytest.mark.usefixtures("unrendered")
def test_the_best_first_order_mean_is_bold_and_second_order_comes_last(results, tmp_path):
    page = write_report(results, tmp_path).read_text(encoding="utf-8")
    assert re.findall(r"<b>(.*?)</b>", page) == ["0.250 [0.225, 0.275]", "4.32 [3.89, 4.75]"]
    rows = re.findall(r'<tr class="(\S*)"', page)
    assert rows[:3] == ["learned", "hand-designed", "second-order"]
    text = shown(results)
    assert text.index("LSTM") < text.index("L-BFGS (full batch)*")
    assert "* Second-order" in text and "0.1 " in text and "0.2 " in text and "1.23" in text


@pytest.mark.usefixtures("unrendered")
@pytest.mark.parametrize("missing", [math.inf, *(pytest.param(it, marks=pytest.mark.slow) for it in (math.nan, None))])
def test_a_diverged_optimizer_is_shown_and_never_best(results, tmp_path, missing):
    adam = results["optimizers"]["adam"]
    adam.update(diverged=2, final={"mean": missing, "low": 0.4, "high": missing})
    for key in ("curve", "curve_low", "curve_high"):
        adam[key] = [*adam[key][:3], missing, missing]
    assert "∞ " in shown(results) and "[0.400, ∞]" in shown(results)
    assert "is not dropped" in shown(results)
    assert "<b>∞" not in write_report(results, tmp_path).read_text(encoding="utf-8")


def test_it_is_said_how_many_losses_make_the_final_one(results):
    assert "Final: mean loss after 4 updates" in shown(results)
    results["configuration"]["protocol"] = {"final_window": 2}
    assert "Final: mean loss of the last 2 of 4 updates" in shown(results)


def test_one_run_shows_no_interval(results):
    for optimizer in results["optimizers"].values():
        optimizer["runs"] = 1
    assert "[0.225" not in shown(results)


@pytest.mark.parametrize(
    "loss", [-1.0, 1e-300, 1e300, *(pytest.param(it, marks=pytest.mark.slow) for it in (0.0, math.inf))]
)
def test_loss_figures_take_any_loss(results, loss, tmp_path):
    for optimizer in results["optimizers"].values():
        optimizer["curve"] = [2.0, 1.0, loss, loss, loss]
    drawing.save(figures.loss_curves(results), tmp_path / "loss")
    nothing = copy.deepcopy(results)
    for optimizer in nothing["optimizers"].values():
        optimizer.update(curve=[None] * 5, area_curve=None, curve_low=None, curve_high=None)
    drawing.save(figures.loss_curves(nothing), tmp_path / "nothing")


def test_figures_leave_matplotlib_as_it_was(results):
    import matplotlib

    before = dict(matplotlib.rcParams)
    for draw in (figures.loss_curves, figures.meta_training_curve, figures.tuning_curves):
        draw(results)
    assert dict(matplotlib.rcParams) == before


def test_figures_without_their_data_say_so(results):
    results["meta_training"] = None
    results["optimizers"]["adam"]["tuning"] = None
    with pytest.raises(ValueError, match="no meta-training record"):
        figures.meta_training_curve(results)
    with pytest.raises(ValueError, match="tuning record"):
        figures.tuning_curves(results)


def test_all_curves_of_the_paper_are_drawn_up_to_the_horizon_and_named(results):
    curve = {"steps": [1, 2, 3, 4, 5], "losses": [2, 1, 0.6, 0.01, 1e-6]}
    results["paper"] = {name: curve for name in ("LSTM", "LSTM-sub", "Adam", "Unknown")}
    for scale, said in ((None, "digitised"), (8.0, "digitised;\nwithout a unit, x 8: its best baseline ends")):
        figure = figures.loss_curves(results | {"paper_scale": scale})
        (legend,) = figure.legends
        figure.draw_without_rendering()
        room, taken = figure.bbox, legend.get_window_extent()
        assert room.x0 <= taken.x0 < taken.x1 <= room.x1 and room.y0 <= taken.y0
        assert taken.y1 <= figure.axes[0].xaxis.label.get_window_extent().y0
        assert [text.get_text() for text in legend.get_texts()] == list(results["paper"])
        assert f"the paper's, {said}" in legend.get_title().get_text()
        lines = {line.get_label(): line for line in figure.axes[0].lines}
        for name in results["paper"]:
            assert lines[name].get_xdata().tolist() == [1, 2, 3, 4]
            assert lines[name].get_ydata().tolist() == [(scale or 1) * loss for loss in (2, 1, 0.6, 0.01)]
        assert 1e-5 < figure.axes[0].get_ylim()[0] <= 0.01 * (scale or 1)  # and not hidden below ours
    palette = [lines[name].get_color() for name in results["paper"]]
    assert palette == [drawing.COLOURS["lstm"], drawing.COLOURS["lstm"], drawing.COLOURS["adam"], drawing.GREY]
    assert lines["LSTM-sub"].get_linestyle() != "-" and not figures.loss_curves(results | {"paper": None}).legends


def test_colours_are_fixed_per_optimizer_and_distinct():
    names = ["zeta", "adam", "alpha", "lstm"]
    palette = drawing.colours(names)
    assert len(set(palette.values())) == 4
    assert palette["adam"] == drawing.colours(["adam"])["adam"]
    assert palette == drawing.colours(names[::-1])


@pytest.mark.parametrize("count", [1, 3, 8])
def test_labels_keep_their_order_their_distance_and_the_axes(count):
    generator = np.random.default_rng(count)
    for _ in range(50):
        wanted = np.sort(generator.uniform(0, 1, count) ** 3)
        sizes = generator.uniform(0.02, 0.12, count)
        centres = np.array(drawing.spread(wanted.tolist(), sizes.tolist()))
        assert (centres - sizes / 2 >= -1e-12).all() and (centres + sizes / 2 <= 1 + 1e-12).all()
        assert (np.diff(centres) >= (sizes[1:] + sizes[:-1]) / 2 - 1e-12).all()
    assert drawing.spread([0.2, 0.8], [0.1, 0.1]) == pytest.approx([0.2, 0.8])
    assert drawing.spread([0.5, 0.5], [0.1, 0.1]) == pytest.approx([0.45, 0.55])
    assert drawing.spread([0.5, 0.5], [1.0, 1.0]) == pytest.approx([0.0, 1.0])


@pytest.mark.usefixtures("unrendered")
@pytest.mark.parametrize("paper", [0.2, None])
def test_levels_speak_of_the_paper_only_where_it_has_one(paper, results, tmp_path):
    levels = [level | {"paper": paper} for level in results["levels"]]
    page = write_report(results | {"levels": levels, "title": "tiny"}, tmp_path).read_text(encoding="utf-8")
    assert ("than the paper" in page) == (paper is not None)
