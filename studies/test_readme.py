"""Tests of what the READMEs say: that everything they name exists, and the audit is complete."""

import dataclasses
import importlib
import json
import re

import numpy as np
import pytest

import train
from studies import claims, compare, experiments
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


@pytest.mark.parametrize("text", [README, STUDIES, EXERCISES])
def test_every_test_that_is_named_exists(text):
    tests = set()
    for path in HERE.rglob("test_*.py"):
        tests |= set(re.findall(r"^def (test_\w+)", path.read_text(), re.MULTILINE))
    named = set(re.findall(r"`(test_\w+)`", text))
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


def pasted_and_prose(*texts):
    """Indented lines, which are pasted output, and all others."""
    lines = "\n".join(texts).splitlines()
    pasted = [line for line in lines if line.startswith("    ")]
    return "\n".join(pasted), "\n".join(line for line in lines if not line.startswith("    "))


def intervals(text):
    """(n, 3) of all that is written as +.012 [-.003, +.027]."""
    number = r"([+-]\d*\.\d+)"
    return np.array(re.findall(rf"{number} \[{number}, {number}\]", text), float)


def test_every_interval_that_is_quoted_stands_in_a_pasted_table():
    pasted, prose = map(intervals, pasted_and_prose(README, STUDIES))
    assert len(prose) > 20
    for quoted in prose:  # with three digits, where a table may have four
        nearest = np.abs(pasted - quoted).max(1).min()
        assert nearest <= 0.00051, quoted


def test_every_cross_validated_number_of_the_audit_stands_in_its_table():
    table = STUDIES.partition("## Choose")[2].partition("## Plateau")[0]
    quoted = re.findall(r"(?<!\d)(\.\d{4})\b", AUDIT)
    assert len(quoted) > 15
    assert set(quoted) <= set(re.findall(r"0(\.\d{4})$", table, re.MULTILINE))


@pytest.mark.parametrize("on", ["simulated", "p835_wb16k_by_talker"])
def test_pasted_tables_of_experiments_are_those_of_the_stored_results(on, capsys):
    files = sorted((HERE / experiments.ROOT / on).glob("*.json"))
    if not files:
        pytest.skip(f"{experiments.ROOT}/{on} holds no comparison: studies.compare writes them")
    pasted, _ = pasted_and_prose(STUDIES)
    for file in files:
        rows = json.loads(file.read_text())
        for row in rows:
            row["accuracy"] = row["accuracy"] or float("nan")
        compare.show(rows)
        first, _, _ = capsys.readouterr().out.partition("\n\n")
        for line in first.splitlines():
            assert f"    {line}".rstrip() in pasted, file


@pytest.mark.parametrize("on", ["simulated", "p835_wb16k_by_talker"])
def test_pasted_claims_are_those_of_the_stored_results(on, capsys, monkeypatch):
    monkeypatch.chdir(HERE)
    if not list((HERE / experiments.ROOT / on).glob("*.json")):
        pytest.skip(f"{experiments.ROOT}/{on} holds no comparison: studies.compare writes them")
    pasted, _ = pasted_and_prose(STUDIES)
    claims.show_holm(claims.read_comparisons(on))
    for line in capsys.readouterr().out.splitlines():
        assert f"    {line}" in pasted


def test_every_study_has_a_word_in_its_readme():
    for path in (HERE / "studies").glob("[a-z]*.py"):
        if not path.name.startswith("test_"):
            assert f"`{path.stem}.py`" in STUDIES, path.name
