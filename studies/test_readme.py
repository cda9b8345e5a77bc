"""Tests of what the READMEs say: that everything they name exists, and the audit is complete."""

import dataclasses
import importlib
import itertools
import json
import re

import numpy as np
import pytest

import train
from studies import claims, compare, experiments, straight_line
from test_moemos import HERE

PARTS = "moemos|train|evaluate|data|corpora|studies"
README, STUDIES, EXERCISES = (
    (HERE / name).read_text(encoding="utf-8")
    for name in ("README.md", "studies/README.md", "studies/exercises.md"))
AUDIT = re.search(r"## Audit\n(.*?)\n## ", README, re.DOTALL).group(1)
ROWS = [line for line in AUDIT.splitlines() if line.startswith("| ")][1:]


def find(name):
    """The thing that a dotted name means; raises AttributeError."""
    module, *path = name.split(".")
    thing = importlib.import_module(module)
    for part in path:
        if not hasattr(thing, part):
            importlib.import_module(f"{thing.__name__}.{part}")
        thing = getattr(thing, part)
    return thing


@pytest.mark.parametrize(("text", "least"), [(README, 40), (STUDIES, 2), (EXERCISES, 10)])
def test_everything_that_is_named_exists(text, least):
    named = re.findall(rf"`((?:{PARTS})(?:\.[A-Za-z_]\w*)+)`", text)
    named = [name for name in named if not name.endswith((".py", ".csv", ".md", ".pt"))]
    assert len(named) >= least
    for name in named:
        find(name)


@pytest.mark.parametrize("text", [README, EXERCISES])
def test_every_test_that_is_named_exists(text):
    tests = set()
    for path in HERE.rglob("test_*.py"):
        tests |= set(re.findall(r"^def (test_\w+)", path.read_text(), re.MULTILINE))
    named = set(re.findall(r"`(test_\w+)`", text))
    assert len(named) > 10
    assert named <= tests, named - tests


def test_every_row_of_the_audit_names_code_and_a_test():
    assert len(ROWS) > 25
    for row in ROWS:
        cells = [cell.strip() for cell in row.strip("|").split(" | ")]
        section, statement, code, pinned, *_ = cells
        assert section
        assert statement
        assert re.search(r"`\w+\.\w+", code)
        assert "`test_" in pinned or pinned == "the same"


def test_every_setting_stands_in_the_audit():
    for setting in dataclasses.fields(train.Config):
        assert any(f"`{setting.name}`" in row for row in ROWS), setting.name
    assert "`train.STAGES`" in AUDIT


def test_every_experiment_has_its_question_and_commands():
    for name, experiment in experiments.EXPERIMENTS.items():
        assert f"### {name}\n\n{experiment.question}" in STUDIES
    assert "python -m studies.experiments NAME" in STUDIES


# -- Numbers ---------------------------------------------------------------------------------------

NUMBER = r"([+-]\d*\.\d+)"
INTERVAL = rf"{NUMBER} \[{NUMBER}, {NUMBER}\]"
REAL = "On p835_wb16k"  # the words before the second table of an experiment
REAL_SEEDS = {"baseline": 5, "experts": 5, "collapse": 5, "auxiliary": 5, "stages": 5,
              "prosody": 3, "fusion": 3, "frontend": 3}
QUOTED = [  # in README.md, in its order: the words before an interval, and its table's section,
    # words before the table, row and place in it
    ("level in common. Without:", "fusion", "", "MOS head reads y alone - 1", 1),
    ("softmax weight. Summed:", "fusion", "", "summed - 1", 1),
    ("a clip's own statistics:", "fusion", "", "layer norm - 1", 1),
    ("weights all equal:", "fusion", "", "equal weights - 1", 1),
    ("One expert for four:", "experts", "", "experts=1 - 1", 1),
    ("one as wide as four:", "experts", "", "one wide expert - 1", 1),
    ("hard to beat. Without:", "fusion", "", "no linear path - 1", 1),
    ("(SpeechMoE has 0.15); 0:", "collapse", "", "lambda_1=0.0 - 1", 1),
    ("(and so without stage 1):", "auxiliary", "", "default - 1", 1),
    ("with it, for no:", "augmentation", "", "default - 1", 1),
    ("at that lr for three:", "stages", "", "one joint stage - 1", 1),
    ("alternatives.SCHEDULES`):", "stages", "", "stages reversed - 1", 1),
    ("off by default. With them:", "adaptation", "", "raters=yes,second - 1", 1),
    ("in utterance MSE", "adaptation", "", "raters=yes,second - 1", 0),
    ("ratings without them: MSE", "adaptation", "", "raters=single,second - 1", 0),
    ("off by default. With them:", "prosody", "", "prosody - 1", 1),
    ("probabilities above ridge,", "Unheard", "utterance LCC", "without classes less ridge", 0),
    ("same features? | by little:", "", "less ridge, 95 %", "utterance LCC", 0),
    ("| yes:", "", "utterance LCC   ", "less ridge on all statistics", 0),
    ("static statistics alone,", "", "utterance LCC   ", "less ridge on the static ones", 0),
    ("one expert less four", "experts", "", "experts=1 - 1", 1),
    ("one as wide as four", "experts", "", "one wide expert - 1", 1),
    ("| not shown:", "experts", REAL, "experts=1 - 1", 1),
    (",", "experts", REAL, "one wide expert - 1", 1),
    ("yes: with it", "auxiliary", "", "default - 1", 1),
    ("not shown: with it", "auxiliary", REAL, "default - 1", 1),
    ("not shown: with them", "augmentation", "", "default - 1", 1),
    ("one stage less three", "stages", "", "one joint stage - 1", 1),
    ("| not shown:", "stages", REAL, "one joint stage - 1", 1),
    ("error is larger, by", "Unheard", "utterance MSE", "head less ridge", 0),
    ("the head is above ridge, by", "Unheard", "utterance LCC", "without classes less ridge", 0),
    ("layers summed: LCC", "fusion", "", "summed - 1", 1),
    ("a clip's own statistics:", "fusion", "", "layer norm - 1", 1),
    ("no class probabilities:", "fusion", "", "MOS head reads y alone - 1", 1),
    ("no linear path:", "fusion", "", "no linear path - 1", 1),
    ("layer norm", "fusion", REAL, "layer norm - 1", 1),
    ("L_diversity | LCC", "experts", "", "one wide expert - 1", 1),
    ("new raters | MSE", "adaptation", "", "raters=yes,second - 1", 0),
    ("duration | not shown: LCC", "prosody", "", "prosody - 1", 1),
    ("the full band | LCC", "frontend", "", "backbone=logmel48 - 1", 1),
]


def section(name):
    """A section of studies/README.md."""
    return re.search(rf"\n##+ {name}\n(.*?)(?=\n##|$)", STUDIES, re.DOTALL).group(1)


def intervals(text):
    """(n, 3) of all that is written as +.012 [-.003, +.027]."""
    return np.array(re.findall(INTERVAL, text), float)


def pasted_and_prose(text):
    """Indented lines, which are commands and output, and the words of all others."""
    lines = text.splitlines()
    indented = [line for line in lines if line.startswith("    ")]
    words = [line.split() for line in lines if not line.startswith("    ")]
    return "\n".join(indented), " ".join(itertools.chain(*words))


def table_cell(name, start, row, column):
    """An interval of a pasted table: of a section, the first line with `row` after `start`."""
    text = section(name) if name else README
    lines = text[text.index(start):].splitlines()
    line = next(line for line in lines if line.startswith("    ") and row in line)
    return intervals(line)[column]


def test_every_interval_that_readme_quotes_is_the_cell_of_the_table_that_it_is_from():
    _, prose = pasted_and_prose(README)
    found = list(re.finditer(INTERVAL, prose))
    assert len(QUOTED) > 30
    for match, (words, *place) in zip(found, QUOTED, strict=True):
        before = prose[:match.start()].rstrip()
        assert before.endswith(words), (before[-60:], words)
        own = np.array(match.groups(), float)
        cell = table_cell(*place)
        assert np.abs(own - cell).max() <= 0.00051, (words, own, cell)  # a table may have 4 digits


def test_every_interval_of_the_studies_prose_stands_in_a_table_of_its_section():
    sections = re.split(r"\n##+ ", STUDIES)
    count = 0
    for text in sections:
        indented, prose = pasted_and_prose(text)
        for quoted in intervals(prose):
            count += 1
            assert np.abs(intervals(indented) - quoted).max(1).min() <= 0.00051, quoted
    assert count > 2


def test_every_cross_validated_number_of_the_audit_stands_in_its_table():
    table = STUDIES.partition("## Choose")[2].partition("## Plateau")[0]
    quoted = re.findall(r"(?<!\d)(\.\d{4})\b", AUDIT)
    assert len(quoted) > 15
    assert set(quoted) <= set(re.findall(r"0(\.\d{4})$", table, re.MULTILINE))


def blocks(text):
    """The indented paragraphs of a text, as they were printed."""
    found = re.findall(r"(?:^    .*\n)+", text + "\n", re.MULTILINE)
    return [re.sub("^    ", "", block, flags=re.MULTILINE).rstrip() for block in found]


def stored(path):
    """What a study has written, which is no part of the repository."""
    if not (HERE / path).exists():
        pytest.skip(f"{path} is not there, the study writes it")
    return json.loads((HERE / path).read_text())


def comparison(on, name):
    """The rows of an experiment, where as many seeds as in the README were run."""
    rows = stored(f"{experiments.ROOT}/{on}/{name}.json")
    seeds = experiments.EXPERIMENTS[name].seeds if on == "simulated" else REAL_SEEDS[name]
    if rows[0]["runs"] != seeds:
        pytest.skip(f"{name} has {rows[0]['runs']} seeds there, for {seeds} in studies/README.md")
    for row in rows:
        row["accuracy"] = row["accuracy"] or float("nan")
    return rows


@pytest.mark.parametrize("name", experiments.EXPERIMENTS)
def test_pasted_tables_of_an_experiment_are_those_of_the_stored_results(name, capsys):
    pasted = blocks(section(name))
    for on in ["simulated"] + ["p835_wb16k_by_talker"] * (name in REAL_SEEDS):
        compare.show(comparison(on, name))
        first, _, *others = capsys.readouterr().out.rstrip().split("\n\n")  # less use of experts
        for block in (first, *others):
            assert pasted.pop(0) == block.rstrip()
    assert not pasted


@pytest.mark.parametrize("on", ["simulated", "p835_wb16k_by_talker"])
def test_pasted_claims_are_those_of_the_stored_results(on, capsys, monkeypatch):
    for name in experiments.EXPERIMENTS if on == "simulated" else REAL_SEEDS:
        comparison(on, name)
    monkeypatch.chdir(HERE)
    claims.show_holm(claims.read_comparisons(on))
    assert capsys.readouterr().out.rstrip() in blocks(section("What may be claimed"))


@pytest.mark.parametrize(("name", "path"), [
    ("Unheard", "unheard/simulated"), ("Unheard", "unheard/on_p835_wb16k"), ("Curves", "curves"),
    ("", "straight_line/on_p835_wb16k")])
def test_pasted_tables_of_predictors_are_those_of_the_stored_results(name, path, capsys):
    straight_line.show(stored(f"runs/{path}.json"))
    printed = capsys.readouterr().out.rstrip()
    assert any(printed in block for block in blocks(section(name) if name else README))


def test_every_study_has_a_word_in_its_readme():
    for path in (HERE / "studies").glob("[a-z]*.py"):
        if not path.name.startswith("test_"):
            assert f"`{path.stem}.py`" in STUDIES, path.name
