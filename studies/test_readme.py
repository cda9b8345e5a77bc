"""Tests of the READMEs: everything that they name exists, and their tables are those stored."""

import dataclasses
import importlib
import re
from collections import Counter

import numpy as np
import pytest

import moemos
import train
from corpora import published
from corpora.test_corpora import LISTENING_TESTS, REAL
from studies import lab, questions, tables
from test_moemos import HERE

PARTS = "moemos|train|evaluate|data|corpora|studies|course"
TEXTS = {name: (HERE / name).read_text(encoding="utf-8")
         for name in ("README.md", "corpora/README.md", "studies/README.md", "course/exercises.md",
                      "course/teaching.md")}
README = TEXTS["README.md"]
AUDIT = README.partition("## Audit\n")[2]
ROWS = [[cell.strip() for cell in line.strip("|").split(" | ")]
        for line in AUDIT.splitlines() if re.match(r"\| \d", line)]
STORED = {path.stem for path in (HERE / "studies" / "results").glob("*.json")}


def find(name):
    """The module, class, function or value that a dotted name means. Raises AttributeError."""
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
    for pattern in ("test_*.py", "corpora/test_*.py", "studies/test_*.py", "course/test_*.py"):
        for path in HERE.glob(pattern):
            tests |= set(re.findall(r"^def (test_\w+)", path.read_text("utf-8"), re.MULTILINE))
    for text in TEXTS.values():
        named = set(re.findall(r"`(test_\w+)`", text))
        assert named <= tests, named - tests


def test_every_row_of_the_audit_names_code_and_a_test():
    tests = dict(row for row in ROWS if len(row) == 2)
    rows = [row for row in ROWS if len(row) != 2]
    assert len(rows) > 25
    assert [number for number, *_ in rows] == list(tests)
    for number, section, statement, kind, reason, code in rows:
        assert section
        assert statement
        assert kind in ("stated", "gap", "departs", "extra", "missing")
        assert reason
        assert re.search(r"`\w+\.\w+", code)
        assert "`test_" in tests[number]


def test_the_audit_says_how_many_rows_of_each_kind_it_has():
    kinds = Counter(row[3] for row in ROWS if len(row) > 2)
    (sentence,) = re.findall(rf"Of the {kinds.total()} rows, .*\.", AUDIT)
    counts = re.findall(r"(\d+) (?:are )?\*(\w+)\*", sentence)
    assert {kind: int(number) for number, kind in counts} == kinds


def test_every_setting_is_named_in_the_audit():
    for setting in dataclasses.fields(train.Config):
        assert any(f"`{setting.name}`" in cell for row in ROWS for cell in row), setting.name


def test_every_question_has_a_stored_answer_whose_tables_stand_in_the_readme():
    assert STORED == {*questions.ASKS}
    for name in STORED:
        assert f"<!-- {name} -->" in TEXTS["studies/README.md"], name
        assert questions.read(name)["settings"] == questions.SETTINGS, name
    assert questions.written(TEXTS["studies/README.md"]) == TEXTS["studies/README.md"]


def test_every_stored_answer_has_the_predictors_and_the_columns_that_its_question_asks_for():
    for name, question in questions.QUESTIONS.items():
        stored = questions.read(name)
        predictors = [row["variant"] for row in stored["rows"]
                      if row["metric"] == "utterance LCC"]
        chosen = ["the best on the other tests"] if question.nested else []
        assert predictors == [variant.name for variant in question.variants] + chosen, name
        assert stored["columns"] == list(question.columns), name


def test_the_answers_in_the_readme_have_the_numbers_of_the_stored_answers():
    def mean(name, predictor):
        rows = questions.as_rows(name, "utterance LCC")
        return dict(row[:2] for row in rows)[predictor]

    def lead(name, predictor):
        return questions.read(name)["compared"][predictor]["all"]["value"]

    def recordings(predictor, column):
        rows = questions.read("no_recordings")["rows"]
        return next(tables.number(row["numbers"][column]) for row in rows
                    if row["variant"] == predictor)

    assert abs(lead("plainer", "one expert")) < 0.001
    assert abs(lead("experts", "no perceptrons, V alone")) < 0.001
    for sentence, value in (
            ("Its LCC, {}, is", mean("plainer", "the method")),
            ("is {} higher.", tables.number(lead("plainer", "ridge"))),
            ("Its LCC is {} lower.", tables.number(-lead("plainer", "system's mean"))),
            ("Its LCC is {}.", mean("unheard", "the method")),
            ("Before training the LCC is {} higher.",
             tables.number(-lead("plainer", "the method before training"))),
            ("With a random start the LCC is {} lower.",
             tables.number(lead("start", "random start"))),
            ("the mean LCC is {}, and on", mean("both_new", "the method")),
            ("is .715. (It is {} if recordings", recordings("the method", 1)),
            ("left out, and {} if the sentences", mean("both_new", "the method")),
            ("the LCC of the method is {} for heard", recordings("the method", 0)),
            ("for heard systems and {} for unheard ones; that", recordings("the method", 1)),
            ("that of ridge is {} and", recordings("ridge", 0)),
            ("and {}. The codecs lose most", recordings("ridge", 1)),
            ("there its mean LCC is {} (on three", mean("families", "the method"))):
        assert sentence.format(value) in " ".join(README.split()), sentence


def test_the_readmes_say_how_the_lcc_of_the_codecs_falls_without_the_recordings():
    falls = []
    for name, corpus in (("plainer", "codecs"), ("no_recordings", "codecs" + lab.NO_RECORDINGS)):
        falls += [tables.number(row["utterance LCC"]) for row in questions.read(name)["numbers"]
                  if row["variant"] == "the method" and row["cell"][0] == corpus
                  and row["cell"][2] == "groups"]
    sentence = "from {} and {} (with the two backbones) to {} and {}".format(*falls)
    for text in (README, TEXTS["studies/README.md"]):
        assert sentence in " ".join(text.split())


@REAL
def test_the_readmes_say_what_systems_mean_has_on_the_codecs_with_and_without_the_recordings():
    clips = published.read(LISTENING_TESTS / lab.TESTS["codecs"])[2]
    corpus = lab.Corpus(clips, None, None)
    predicted = np.empty(len(clips))
    for learned, left_out in lab.split(corpus, "groups"):
        predicted[left_out], _ = lab.by_mean(lab.MEAN, corpus, learned, left_out, 0, "groups")
    coded = np.array([clip.system not in lab.RECORDINGS["codecs"] for clip in clips])
    whole = tables.number(round(moemos.lcc(predicted, corpus.mos), 2))[:-1]
    without = tables.number(round(moemos.lcc(predicted[coded], corpus.mos[coded]), 2))[:-1]
    said, studies = (" ".join(text.split()) for text in (README, TEXTS["studies/README.md"]))
    assert f"although its LCC is {whole}." in said
    assert f"without that system it would be {without}." in said
    assert f"(Without it the LCC of *system's mean*, {whole}, would be {without}.)" in studies


def test_the_studies_name_the_means_of_the_metrics_that_have_no_table():
    stored = questions.read("plainer")["numbers"]
    means = [tables.number(np.mean([row[metric] for row in stored if row["variant"] == variant]))
             for metric in ("system KTAU", "utterance SRCC", "utterance KTAU")
             for variant in ("the method", "ridge")]
    sentences = ("The mean system KTAU is {} and {}. For single clips the mean SRCC is {} and {}, "
                 "and the mean KTAU {} and {}.").format(*means)
    assert sentences in " ".join(TEXTS["studies/README.md"].split())


def test_the_studies_name_the_intervals_of_the_method_for_unheard_systems():
    intervals = [row["interval_95"] for row in questions.read("unheard")["numbers"]
                 if row["variant"] == "the method"]
    for name, ends in zip(("from", "to"), zip(*intervals)):
        assert f"| {name} | {' | '.join(map(tables.number, ends))} |" in TEXTS["studies/README.md"]


def test_the_studies_name_the_comparisons_that_are_shown():
    studies = " ".join(TEXTS["studies/README.md"].split())
    named = studies.partition("They compare the method with these rows: ")[2].partition(" The ")[0]
    found = re.findall(r"\*(.+?)\* in `(\w+)`", named)
    assert {(name, row) for row, name in found} == {
        key for key, p in questions.corrected().items() if p < 0.05}


def test_the_studies_set_the_path_v_and_the_start_beside_the_two_stages_2():
    means = {row[0]: row[1] for name in ("start", "ours")
             for row in questions.as_rows(name, "utterance LCC")}
    for label, usual, longer in (
            ("V, start from linear predictions", "the method", "the method, 500 steps at 1e-3"),
            ("V, random start", "random start", "random start, 500 steps at 1e-3"),
            ("no V, random start", "", "the form nearest to the paper")):
        row = f"| {label} | {means.get(usual, 'not measured')} | {means[longer]} |"
        assert row in TEXTS["studies/README.md"]


def test_the_table_of_changes_in_the_studies_has_the_leads_of_the_stored_answers():
    table = TEXTS["studies/README.md"].partition("| change | the LCC is then")[2].partition("\n\n")
    rows = [re.split(r" *\| *", line)[1:5] for line in table[0].splitlines()[2:]]
    changed = ["random start", "the form nearest to the paper", "axes not shrunk",
               "no second task", "MOS head starts as ridge", "means only, no deviations",
               "one expert", "no perceptrons, V alone"]
    for variant, (_, lower, answer, name) in zip(changed, rows, strict=True):
        stored = questions.read(name.strip("`"))
        claim = stored["compared"][variant]["all"]
        assert lower == tables.number(claim["value"]).replace("-.000", ".000"), variant
        seeds = len(stored["numbers"][0]["seeds"])
        assert ("two seeds" in answer) == (seeds == 2), variant


def test_the_readmes_say_how_many_comparisons_there_are_and_how_many_are_shown():
    p = questions.corrected()
    simulated = sum(name in ("logmel", "unrated") for name, _ in p)
    intervals = [questions.read(name)["compared"][variant]["all"] for name, variant in p]
    miss = sum(not one["low"] <= 0 <= one["high"] for one in intervals)
    shown = sum(value < 0.05 for value in p.values())
    said = " ".join(README.split())
    assert f"We made {len(p)} comparisons with five seeds ({len(p) - simulated} on the four" in said
    assert f"and {simulated} on simulated corpora). {miss} of the {len(p)} intervals" in said
    assert f"With it, {shown} of the {len(p)} differences are shown" in said
    studies = " ".join(TEXTS["studies/README.md"].split())
    assert f"there are {len(p)} comparisons that were made with five seeds" in studies
    assert f"must be below .05 / {len(p)}, the next smallest below .05 / {len(p) - 1}," in studies


def test_no_line_of_the_texts_is_longer_than_100_characters():
    for text in TEXTS.values():
        lines = [line for line in text.splitlines() if not line.startswith("|")]
        assert max(map(len, lines)) <= 100


def test_the_readmes_show_all_pictures_which_are_few_and_small():
    shown = set(re.findall(r"\]\((?:studies/)?(pictures/\w+\.png)\)", "".join(TEXTS.values())))
    there = {f"pictures/{path.name}" for path in (HERE / "studies" / "pictures").iterdir()}
    assert shown == there
    assert 0 < len(there) <= 5
    assert all((HERE / "studies" / name).stat().st_size <= 60_000 for name in there)


def test_the_readme_has_the_right_number_of_lines_for_each_file_of_the_core():
    counts = {name: len((HERE / f"{name}.py").read_text().splitlines())
              for name in ("moemos", "train", "data", "evaluate")}
    for name, lines in counts.items():
        assert f"| `{name}.py` | {lines} |" in README
    assert f"has {sum(counts.values()):,} lines" in README


@pytest.mark.parametrize("folder", ["corpora", "studies", "course"])
def test_the_readme_has_the_right_number_of_lines_for_each_folder_without_tests(folder):
    files = [path for path in (HERE / folder).glob("*.py") if not path.name.startswith("test_")]
    lines = sum(len(path.read_text("utf-8").splitlines()) for path in files)
    assert f"| `{folder}/` | {lines} |" in README
