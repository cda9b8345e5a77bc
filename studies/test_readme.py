"""Tests of what the READMEs say: that everything they name exists, and the audit is complete."""

import dataclasses
import importlib
import re

import pytest

import train
from studies import experiments
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
    assert "python -m studies.experiments NAME --seeds 5" in STUDIES


def test_every_study_has_a_word_in_its_readme():
    for path in (HERE / "studies").glob("[a-z]*.py"):
        if not path.name.startswith("test_"):
            assert f"`{path.stem}.py`" in STUDIES, path.name
