"""Tests of what the READMEs say: that all they name exists, and that tables are those stored."""

import dataclasses
import importlib
import re

import pytest

import train
from studies import questions, tables
from test_moemos import HERE

PARTS = "moemos|train|evaluate|data|corpora|studies"
TEXTS = {name: (HERE / name).read_text(encoding="utf-8")
         for name in ("README.md", "studies/README.md", "studies/exercises.md")}
README = TEXTS["README.md"]
AUDIT = re.search(r"## Audit\n(.*?)\n## ", README, re.DOTALL).group(1)
ROWS = [line for line in AUDIT.splitlines() if line.startswith("| ")][1:]
STORED = {path.stem for path in (HERE / "studies" / "results").glob("*.json")}


def find(name):
    """The thing that a dotted name means; raises AttributeError."""
    module, *path = name.split(".")
    thing = importlib.import_module(module)
    for part in path:
        if not hasattr(thing, part):
            importlib.import_module(f"{thing.__name__}.{part}")
        thing = getattr(thing, part)
    return thing


@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS)
def test_everything_that_is_named_exists(text):
    named = re.findall(rf"`((?:{PARTS})(?:\.[A-Za-z_]\w*)+)`", text)
    named = [name for name in named if not name.endswith((".py", ".csv", ".md", ".pt"))]
    assert named
    for name in named:
        find(name)


def test_every_test_that_is_named_exists():
    tests = set()
    for pattern in ("test_*.py", "corpora/test_*.py", "studies/test_*.py"):
        for path in HERE.glob(pattern):
            tests |= set(re.findall(r"^def (test_\w+)", path.read_text("utf-8"), re.MULTILINE))
    for text in TEXTS.values():
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


def test_every_question_is_answered_and_its_tables_are_in_the_readme():
    assert STORED == {*questions.ASKS}
    for name in STORED:
        assert f"<!-- {name} -->" in TEXTS["studies/README.md"], name
        assert questions.read(name)["settings"] == questions.SETTINGS, name
    for text in (README, TEXTS["studies/README.md"]):
        assert questions.written(text) == text


COSTS = {  # (question, variant) -> what only its row of the audit says
    ("rule", "no linear path, 500 steps at 1e-3"): "share a linear path",
    ("rule", "random start, 500 steps at 1e-3"): "where training starts",
    ("rule", "axes not shrunk"): "axes that are not shrunk",
    ("rule", "means only, no deviations"): "without the deviations",
    ("rule", "one expert"): "one expert costs",
    ("rule", "no second task"): "second task: the synthesis model",
    ("regularisers", "no L_diversity"): "| L_diversity",
    ("regularisers", "no L_sparsity"): "| L_sparsity",
    ("settings", "MOS head starts as ridge"): "where the MOS head starts",
    ("settings", "lr of stage 2 at 1e-3"): "AdamW's own 1e-3"}


def test_what_the_audit_says_that_a_part_costs_is_what_the_questions_found():
    p = questions.corrected()
    for (question, variant), words in COSTS.items():
        (row,) = [row for row in ROWS if words in row]
        cost = -questions.read(question)["compared"][variant]["all"]["value"]
        shown = "" if p[question, variant] < 0.05 else ", not shown"
        said = re.findall(r"costs (-?\.\d{3}(?:, not shown)?)", row)
        assert said == [tables.number(cost) + shown], variant
    assert AUDIT.count("costs ") == len(COSTS)


def test_the_texts_are_not_wide():
    for text in TEXTS.values():
        lines = [line for line in text.splitlines() if not line.startswith("|")]
        assert max(map(len, lines)) <= 100


def test_pictures_are_there_few_and_small():
    shown = set(re.findall(r"\]\((?:studies/)?(pictures/\w+\.png)\)", "".join(TEXTS.values())))
    there = {f"pictures/{path.name}" for path in (HERE / "studies" / "pictures").iterdir()}
    assert shown == there
    assert 0 < len(there) <= 5
    assert all((HERE / "studies" / name).stat().st_size <= 60_000 for name in there)


def test_the_counts_of_lines_are_right():
    counts = {name: len((HERE / f"{name}.py").read_text().splitlines())
              for name in ("moemos", "train", "data", "evaluate")}
    for name, lines in counts.items():
        assert f"| `{name}.py` | {lines} |" in README
    assert f"has {sum(counts.values()):,} lines" in README
