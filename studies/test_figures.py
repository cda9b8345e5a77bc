"""Tests of studies/figures.py: what is drawn is what the tables hold."""

import json
import shutil

import numpy as np
import pytest
import scipy.stats

import evaluate
import moemos
from studies import figures
from test_moemos import call, no_network, small_run, table  # noqa: F401 - fixture

FIGURES = {"predictions.png", "experts.png", "training.png", "raters.png"}
needs_matplotlib = pytest.mark.skipif(
    figures.Figure is None, reason="matplotlib is no requirement and not installed")


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory):
    """A run that has been evaluated; it is not to be changed."""
    run = shutil.copytree(small_run(), tmp_path_factory.mktemp("evaluated") / "run")
    evaluate.evaluate(run, "cpu")
    return run


@pytest.fixture
def drawn(monkeypatch):
    """{path: drawing} of what would have been written."""
    drawings = {}
    monkeypatch.setattr(figures, "save", lambda drawing, path: drawings.update({path: drawing}))
    return drawings


def marked(axis):
    """(n, 2) of all points drawn with a marker and no line, of error bars too."""
    lines = [line for line in axis.get_lines()
             if line.get_linestyle() == "None" and line.get_marker() != "|"]
    return np.concatenate([line.get_xydata() for line in lines])


def test_without_matplotlib_it_says_so_before_any_work(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(figures, "Figure", None)
    assert call(monkeypatch, figures, tmp_path / "no_run") == 2
    assert "pip install matplotlib" in capsys.readouterr().err


@needs_matplotlib
def test_figures_of_a_run_show_the_numbers_of_its_tables(evaluated, drawn):
    run = evaluated
    result = json.loads((run / "metrics.json").read_bytes())
    figures.plot_run(run)
    assert drawn.keys() == {run / name for name in FIGURES}

    utterance, system = drawn[run / "predictions.png"].axes
    low, high = result["interval_95"]["utterance"]["LCC"]
    assert utterance.get_title() == (f"utterance level: LCC {result['utterance']['LCC']:.3f}, 95 % "
                                     f"from {low:.3f} to {high:.3f}")
    rows = table(run / "predictions.csv")
    points = [(float(row["mos"]), float(row["predicted"])) for row in rows]
    np.testing.assert_allclose(sorted(marked(utterance).tolist()), sorted(points))
    assert len(marked(system)) == len({row["system"] for row in rows})

    (heat_map, _) = drawn[run / "experts.png"].axes
    gates = np.array(list(result["experts"].values()))
    np.testing.assert_allclose(heat_map.images[0].get_array(), 100 * gates)
    loss, held_out, gate = drawn[run / "training.png"].axes
    starts = [line.get_xdata()[0] for line in loss.get_lines() if line.get_color() == "0.7"]
    assert [text.get_text() for text in loss.texts] == ["classification", "joint", "mos"]
    log = table(run / "log.csv")
    own = int(log[-1]["step"])  # the last stage has as many as each
    assert starts == [0, own, 2 * own]
    np.testing.assert_allclose(loss.get_lines()[0].get_ydata(), [float(row["mos"]) for row in log])
    np.testing.assert_allclose(held_out.get_lines()[0].get_ydata(),
                               [float(row["val_mse"]) for row in log])
    shares = np.array([line.get_ydata() for line in gate.get_lines()[:4]])
    np.testing.assert_allclose(shares.sum(0), 100, rtol=1e-5)
    (raters,) = drawn[run / "raters.png"].axes
    names = [row["rater"] for row in table(run / "raters.csv")]
    assert [text.get_text() for text in raters.get_xticklabels()] == names


@needs_matplotlib
def test_steps_are_counted_through_all_stages():
    steps = (("classification", 50), ("classification", 70), ("joint", 50), ("joint", 60),
             ("mos", 5))
    log = [{"stage": stage, "step": str(step)} for stage, step in steps]
    counted, starts = figures.steps_of_all(log)
    assert counted == [50, 70, 120, 130, 135]
    assert starts == {"classification": 0, "joint": 70, "mos": 130}


@needs_matplotlib
def test_bars_of_systems_are_students_intervals_of_their_means():
    numbers = {"LCC": 0.5}
    result = {"scale": (1, 5), "utterance": numbers, "system": numbers,
              "interval_95": {level: {"LCC": (0.4, 0.6)} for level in ("utterance", "system")}}
    rated, predicted = [2.0, 3.0, 4.0, 3.5], [2.5, 2.0, 4.0, 5.0]
    rows = [{"model": "m", "system": system, "mos": mos, "predicted": said}
            for system, mos, said in zip("aaab", rated, predicted)]
    _, axis = figures.plot_predictions(result, rows).axes
    np.testing.assert_allclose(marked(axis), [(3, 8.5 / 3), (3.5, 5)])
    across, upright = axis.containers[0].lines[2]  # collections of bars
    for bars, values, along in ((across, rated[:3], 0), (upright, predicted[:3], 1)):
        expected = scipy.stats.t.interval(
            0.95, 2, loc=np.mean(values), scale=scipy.stats.sem(values))
        segment = bars.get_segments()[0]
        np.testing.assert_allclose(segment[:, along], expected)


@needs_matplotlib
def test_a_correlation_that_does_not_exist_is_said_to_be_undefined():
    result = {"utterance": {"LCC": None}, "interval_95": {"utterance": {"LCC": [None, None]}}}
    assert figures.lcc_title(result, "utterance") == "utterance level: LCC undefined"


@needs_matplotlib
def test_names_are_shown_as_they_are():
    assert figures.short("a$b$") == r"a\$b\$"       # no formula
    assert figures.short("_hidden") == " _hidden"   # which a legend would leave out
    assert figures.short("x" * 30) == "x" * 20


@needs_matplotlib
def test_results_on_another_corpus_are_drawn_beside_them(evaluated, tmp_path, monkeypatch):
    run = tmp_path / "run"
    results = run / "on_other"
    results.mkdir(parents=True)
    for name in ("metrics.json", "predictions.csv", "raters.csv"):
        shutil.copy(evaluated / name, results)
    shutil.copy(evaluated / "log.csv", run)
    assert call(monkeypatch, figures, run, "--on", "other") == 0
    for name in FIGURES:
        assert (results / name).read_bytes().startswith(b"\x89PNG")
    assert not list(run.glob("*.png"))


@needs_matplotlib
def test_a_run_not_evaluated_or_damaged_gets_one_sentence(evaluated, tmp_path, monkeypatch, capsys):
    run = tmp_path / "run"
    shutil.copytree(evaluated, run)
    assert call(monkeypatch, figures, run, "--on", "x") == 2
    why = f"on_x holds no results; run evaluate.py {run} with --data first"
    assert why in capsys.readouterr().err
    (run / "log.csv").write_text("step\n")
    assert call(monkeypatch, figures, run) == 2
    assert "damaged or of another version (list index out of range)" in capsys.readouterr().err
    assert not list(run.glob("*.png"))  # nothing half done
    (run / "metrics.json").unlink()
    assert call(monkeypatch, figures, run) == 2
    assert f"{run} holds no results; run evaluate.py {run} first" in capsys.readouterr().err


def comparison(path, difference):
    """A comparison.json of two variants as studies.compare writes it."""
    found = {}
    for systems, wider in (("these", 1), ("others", 2)):
        numbers = [number and wider * number for number in difference]
        levels = {name: [*numbers, 0.5] for name in moemos.METRICS}
        found[systems] = {"utterance": levels, "system": levels}
    last = {"variant": "2: last", "first": 1, "difference": found}
    path.write_text(json.dumps([{"variant": "1: all"}, last]))


@needs_matplotlib
@pytest.mark.parametrize("difference", [(0.1, -0.1, 0.4), (None, None, None)])
def test_a_comparison_has_a_panel_for_each_of_the_eight_numbers(tmp_path, drawn, difference):
    comparison(tmp_path / "comparison.json", difference)
    figures.plot_comparison(tmp_path / "comparison.json")
    drawing = drawn[tmp_path / "comparison.png"]
    assert [axis.get_title() for axis in drawing.axes] == [
        f"{level} {metric}" for level in ("utterance", "system")
        for metric in ("MSE", "LCC", "SRCC", "KTAU")]
    assert [text.get_text() for text in drawing.axes[0].get_yticklabels()] == ["2: last [1]"]
    for axis in drawing.axes:
        mean, low, high = difference
        if mean is None:  # of an interval that is NaN
            assert np.isnan(marked(axis)[:, 0]).all()
            continue
        np.testing.assert_allclose(marked(axis), [(2 * mean, 0), (mean, 0)])
        for wider, container in zip((2, 1), axis.containers):
            (bars,) = container.lines[2]
            segment = bars.get_segments()[0][:, 0]
            np.testing.assert_allclose(segment, (wider * low, wider * high))


@needs_matplotlib
def test_what_is_no_comparison_gets_one_sentence(tmp_path, monkeypatch, capsys):
    path = tmp_path / "comparison.json"
    for content, why in (("[", "is damaged or no comparison"), ("[{}]", "no two variants"),
                         ('[{"difference": 1}]', "is damaged or no comparison")):
        path.write_text(content)
        assert call(monkeypatch, figures, "--comparison", path) == 2
        assert why in capsys.readouterr().err
    for words in ([], ["run", "--comparison", path], ["--comparison", path, "--on", "x"]):
        assert call(monkeypatch, figures, *words) == 2
        why = "give a RUN, with --on or without, or --comparison or --curves alone"
        assert why in capsys.readouterr().err
    assert call(monkeypatch, figures, "run", "--plot") == 2


@needs_matplotlib
def test_curves_have_a_line_a_predictor_with_its_intervals(tmp_path, monkeypatch, drawn, capsys):
    lines = {"the head": [[0.5, 0.4, 0.6], [0.8, 0.75, 0.85]], "ridge": [[0.3, 0.2, 0.4]] * 2}
    path = tmp_path / "curves.json"
    table = {"means": lines, "differences": {"head less ridge": lines["ridge"]}}
    path.write_text(json.dumps({"columns": ["k = 2", "k = 5"],
                                "tables": {"utterance LCC": table, "system LCC": table}}))
    assert call(monkeypatch, figures, "--curves", path) == 0
    drawing = drawn[tmp_path / "curves.png"]
    assert [axis.get_ylabel() for axis in drawing.axes] == ["utterance LCC", "system LCC"]
    for axis in drawing.axes:
        assert [label.get_text() for label in axis.get_xticklabels()] == ["k = 2", "k = 5"]
        handles, labels = axis.get_legend_handles_labels()
        assert labels == list(lines)
        for i, (handle, values) in enumerate(zip(handles, lines.values())):
            (bars,) = handle.lines[2]
            places = (0.05 * i, 1 + 0.05 * i)
            for k, segment, (mean, low, high) in zip(places, bars.get_segments(), values):
                np.testing.assert_allclose(segment, [(k, low), (k, high)])
                assert (k, mean) in [tuple(point) for point in handle.lines[0].get_xydata()]
    path.write_text("{}")
    assert call(monkeypatch, figures, "--curves", path) == 2
    assert "is damaged or holds no curves" in capsys.readouterr().err
