"""Tests of studies/figures.py: what is drawn is what the tables hold."""

import json
import shutil

import numpy as np
import pytest

import data
import evaluate
import moemos
from studies import figures, questions
from studies.test_lab import a_stored_answer, damages
from test_moemos import call, no_network, small_run, table  # noqa: F401 - fixture

FIGURES = {"predictions.png", "experts.png", "training.png"}
needs_matplotlib = pytest.mark.skipif(
    figures.Figure is None, reason="matplotlib is not a requirement and not installed")


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory):
    """A run that has been evaluated. Tests must not change it."""
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
    """All points (x, y) that are drawn with a marker and without a line, sorted."""
    lines = [line for line in axis.get_lines() if line.get_linestyle() == "None"]
    return sorted(np.concatenate([line.get_xydata() for line in lines]).tolist())


def test_if_matplotlib_is_missing_that_is_said_before_any_work(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(figures, "Figure", None)
    assert call(monkeypatch, figures, tmp_path / "no_run") == 2
    assert "pip install matplotlib" in capsys.readouterr().err


@needs_matplotlib
def test_figures_of_a_run_show_the_numbers_in_its_tables(evaluated, drawn):
    result = json.loads((evaluated / "metrics.json").read_bytes())
    figures.plot_run(evaluated)
    assert drawn.keys() == {evaluated / name for name in FIGURES}

    utterance, system = drawn[evaluated / "predictions.png"].axes
    low, high = result["interval_95"]["utterance LCC"]
    assert utterance.get_title() == (f"utterance level: LCC "
                                     f"{result['metrics']['utterance LCC']:.3f}, 95 % from "
                                     f"{low:.3f} to {high:.3f}")
    rows = table(evaluated / "predictions.csv")
    mos, predicted = np.array([(row["mos"], row["predicted"]) for row in rows], float).T
    np.testing.assert_allclose(marked(utterance), sorted(zip(mos, predicted)))
    names = [row["system"] for row in rows]
    means = (moemos.system_means(values, names) for values in (mos, predicted))
    np.testing.assert_allclose(marked(system), sorted(zip(*means)))

    heat_map, _ = drawn[evaluated / "experts.png"].axes
    gates = np.array(list(result["gates"].values()))
    np.testing.assert_allclose(heat_map.images[0].get_array(), 100 * gates)

    loss, gate = drawn[evaluated / "training.png"].axes
    starts = [line.get_xdata()[0] for line in loss.get_lines() if line.get_color() == "0.7"]
    assert [text.get_text() for text in loss.texts] == ["classification", "joint", "mos"]
    log = table(evaluated / "log.csv")
    own = int(log[-1]["step"])  # every stage has as many steps as the last
    assert starts == [0, own, 2 * own]
    np.testing.assert_allclose(loss.get_lines()[0].get_ydata(), [float(row["mos"]) for row in log])
    shares = np.array([line.get_ydata() for line in gate.get_lines()[:4]])
    np.testing.assert_allclose(shares.sum(0), 100, rtol=1e-5)


@needs_matplotlib
def test_the_numbers_of_dev_clips_are_drawn_if_the_log_has_them(evaluated, tmp_path):
    log = table(evaluated / "log.csv")
    log = [row | {"dev_mse": str(i), "dev_lcc": "nan"} for i, row in enumerate(log)]
    data.write_files({tmp_path / "log.csv": [log[0].keys(), *(row.values() for row in log)]})
    *_, dev = figures.plot_training(figures.read_table(tmp_path / "log.csv", figures.LOG)).axes
    assert dev.get_ylabel() == "dev clips"
    assert dev.get_lines()[0].get_ydata().tolist() == [0, 1, 2]


@needs_matplotlib
def test_steps_are_counted_through_all_stages():
    steps = (("classification", 50), ("classification", 70), ("joint", 50), ("joint", 60),
             ("mos", 5))
    log = [{"stage": stage, "step": str(step)} for stage, step in steps]
    counted, starts = figures.steps_of_all(log)
    assert counted == [50, 70, 120, 130, 135]
    assert starts == {"classification": 0, "joint": 70, "mos": 130}


@needs_matplotlib
@pytest.mark.parametrize(("lcc", "interval", "title"), [
    (0.5, [0.4, 0.6], "system level: LCC 0.500, 95 % from 0.400 to 0.600"),
    (0.5, [None, None], "system level: LCC 0.500"),
    (None, [None, None], "system level: LCC undefined")])
def test_the_title_names_an_lcc_and_an_interval_only_if_they_are_defined(lcc, interval, title):
    result = {"metrics": {"system LCC": lcc}, "interval_95": {"system LCC": interval}}
    assert figures.lcc_title(result, "system") == title


@needs_matplotlib
def test_the_numbers_of_the_stored_answer_are_drawn_with_their_intervals(
        drawn, monkeypatch, tmp_path):
    assert call(monkeypatch, figures, "--answers", "--out", tmp_path) == 0
    (axis,) = drawn[tmp_path / "answers.png"].axes
    stored = questions.read("plainer")["numbers"]
    assert [tick.get_text() for tick in axis.get_xticklabels()] == list(questions.HEARD)
    variants = ["the method", "one expert", "ridge", "system's mean"]
    assert [container.get_label() for container in axis.containers] == variants
    for variant, (points, _, (bars,)) in zip(variants, axis.containers):
        rows = [row for row in stored if row["variant"] == variant]
        np.testing.assert_allclose(points.get_ydata(), [row["utterance LCC"] for row in rows])
        low, high = np.array([segment[:, 1] for segment in bars.get_segments()]).T
        intervals = np.array([row["interval_95"] for row in rows])
        np.testing.assert_allclose(low, intervals[:, 0])
        np.testing.assert_allclose(high, np.minimum(intervals[:, 1], 1))


@needs_matplotlib
def test_names_are_drawn_without_formulas_or_control_characters_and_are_not_hidden():
    assert figures.short("a$b$") == r"a\$b\$"       # no formula
    assert figures.short("_hidden") == " _hidden"   # which a legend would leave out
    assert figures.short("x" * 30) == "x" * 28
    assert figures.short("a\x1b[2J\nb") == r"a\x1b[2J\nb"


@needs_matplotlib
def test_results_on_another_corpus_have_no_log_and_are_drawn_into_their_folder(
        evaluated, tmp_path, monkeypatch):
    results = shutil.copytree(evaluated, tmp_path / "on_other")
    (results / "log.csv").unlink()
    assert call(monkeypatch, figures, results, "--out", tmp_path / "there") == 0
    assert not list(results.glob("*.png"))
    assert call(monkeypatch, figures, results) == 0
    assert {path.name for path in results.glob("*.png")} == FIGURES - {"training.png"}
    for path in (*results.glob("*.png"), *(tmp_path / "there").glob("*.png")):
        assert path.read_bytes().startswith(b"\x89PNG")


@needs_matplotlib
@pytest.mark.parametrize(("name", "content", "why"), [
    ("log.csv", "", "log.csv: the first row must name stage,step,"),
    ("log.csv", "step\n1\n", "log.csv: the first row must name stage,step,"),
    ("log.csv", f"{','.join(figures.LOG)}\n", "log.csv: has no rows"),
    ("log.csv", f"{','.join(figures.LOG)}\nmos,1,.5\n", "log.csv, row 2: a row needs one value"),
    ("log.csv", f"{','.join(figures.LOG)}\nmos,x,1,1,1,1,1\n", "row 2: is damaged (could not "),
    ("log.csv", f"{','.join(figures.LOG)}\nmos,1,nan,1,1,1,1\n", "row 2: is damaged (mos nan)"),
    ("log.csv", f"{','.join(figures.LOG)}\nmos,1e30,1,1,1,1,1\n", "is damaged (step 1e+30)"),
    ("log.csv", "\0", "log.csv: "),
    ("predictions.csv", "mos\n1\n", "predictions.csv: the first row must name wav,system,"),
    ("predictions.csv", "wav,system,model,mos,predicted\na,b,c,1,inf\n", "(predicted inf)"),
    ("predictions.csv", "wav,system,model,mos,predicted\na,b,c,1,1\n",
     "metrics.json has other synthesis models than predictions.csv"),
    ("metrics.json", "[", "metrics.json: is damaged or of another version; evaluate the run")])
def test_a_run_with_a_damaged_table_is_refused_with_one_sentence(
        evaluated, tmp_path, monkeypatch, capsys, name, content, why):
    run = shutil.copytree(evaluated, tmp_path / "run")
    (run / name).write_text(content)
    assert call(monkeypatch, figures, run) == 2
    said = capsys.readouterr().err
    assert why in said
    assert said.count("\n") == 1
    assert not list(run.glob("*.png"))  # no figure is written


@needs_matplotlib
def test_results_that_are_damaged_anywhere_are_drawn_or_refused_with_the_name_of_the_file(
        evaluated, tmp_path, drawn, capsys):
    run = shutil.copytree(evaluated, tmp_path / "run")
    path = run / "metrics.json"
    whole = json.loads(path.read_bytes())
    used = {name: whole[name] for name in figures.RESULT} | {"settings": {"scale": [1, 5]}}
    levels = ("utterance LCC", "system LCC")
    for name in ("metrics", "interval_95"):
        used[name] = {level: whole[name][level] for level in levels}
    refused = 0
    for damaged in list(damages(used))[::3]:
        path.write_text(json.dumps(damaged))
        try:
            figures.plot_run(run)
        except data.InputError as error:
            refused += "metrics.json" in str(error)
    assert refused > 40
    path.write_text(json.dumps(used))
    for name in ("log.csv", "predictions.csv"):
        table = (evaluated / name).read_bytes()
        for end in range(0, len(table), 97):
            (run / name).write_bytes(table[:end])
            try:
                figures.plot_run(run)
            except data.InputError as error:
                assert name in str(error)
        (run / name).write_bytes(table)
    figures.plot_run(run)


@needs_matplotlib
def test_a_stored_answer_that_is_damaged_anywhere_is_drawn_or_refused_with_one_sentence(
        tmp_path, monkeypatch, drawn, capsys):
    monkeypatch.setattr(questions, "HERE", tmp_path)
    path = tmp_path / "results" / "plainer.json"
    path.parent.mkdir()
    for damaged in list(damages(a_stored_answer()))[::5]:
        path.write_text(json.dumps(damaged))
        assert call(monkeypatch, figures, "--answers", "--out", tmp_path) in (0, 2)


@needs_matplotlib
def test_a_run_that_was_not_evaluated_is_refused_with_one_sentence(tmp_path, monkeypatch, capsys):
    assert call(monkeypatch, figures, tmp_path) == 2
    assert "metrics.json: is not there; evaluate the run" in capsys.readouterr().err


@needs_matplotlib
def test_of_many_synthesis_models_only_those_with_the_most_clips_are_told_apart(
        tmp_path, drawn, capsys):
    names = [f"m{i:04}" for i in range(3000)]
    frequent = names[1::90][:figures.MOST]
    rows = [(name, name, name, 1 + i % 40 / 10, 3) for i, name in enumerate(names)]
    rows += [(name, name, name, 2, 4) for name in frequent]
    columns = ("wav", "system", "model", "mos", "predicted")
    none = {level: [None, None] for level in ("utterance LCC", "system LCC")}
    result = {"settings": {"scale": [1, 5]}, "gates": {name: [0.3, 0.7] for name in names},
              "metrics": dict.fromkeys(none), "interval_95": none}
    data.write_files({tmp_path / "predictions.csv": [columns, *rows],
                      tmp_path / "metrics.json": json.dumps(result).encode()})
    figures.plot_run(tmp_path)
    assert "of 3000 synthesis models the 24 with the most clips are told apart" in (
        capsys.readouterr().out)
    picture = drawn[tmp_path / "predictions.png"]
    (legend,) = picture.legends
    assert [text.get_text() for text in legend.texts] == ["others", *frequent]
    assert len(marked(picture.axes[0])) == len(rows)  # no clip is left out
    heat_map, _ = drawn[tmp_path / "experts.png"].axes
    assert [label.get_text() for label in heat_map.get_yticklabels()] == frequent
