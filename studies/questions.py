"""Every question that the studies ask, as data, and the one command that answers them.

    python -m studies.questions NAME ...        runs what is missing and prints; without NAME all
    python -m studies.questions --list          what there is
    python -m studies.questions --check NAME    predicts a cell anew, compares with what is stored
    python -m studies.questions --write         puts the tables into README.md, studies/README.md

Answers are stored as studies/results/NAME.json. Real listening tests: see studies/lab.py.
"""

import argparse
import itertools
import json
import platform
import re
from dataclasses import asdict
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

import data
import evaluate
import train
from data import InputError
from studies import lab, raters, tables
from studies import variants as v
from studies.lab import HEAD, MEAN, RIDGE, TESTS, ZERO_SHOT, Cell, Job, Variant
from studies.prosody import ProsodyBackbone

HERE = Path(__file__).parent
LEARNED = "studies.distilled"
UTTERANCE, MSE = "utterance LCC", "utterance MSE"


class Question(NamedTuple):
    asks: str
    variants: tuple  # the others are compared with the first
    columns: dict    # name -> the cells whose mean it shows; all columns weigh the same
    seeds: int = 2
    metrics: tuple = (UTTERANCE,)
    gates: bool = False  # whether to show what they follow


# -- Cells -----------------------------------------------------------------------------------------

def real(how, backbone=LEARNED, names=TESTS):
    return {name: (Cell(name, backbone, how),) for name in names}


def simulated(how, *backbones):
    """Cross-validation on the training clips of two simulated corpora, as one column."""
    names = [f"training clips of simulated {seed}" for seed in (100, 101)]
    return {"simulated": tuple(Cell(name, backbone, how) for name in names
                               for backbone in backbones)}


def five(backbone):
    """The test clips of five simulated corpora on which nothing was chosen; by other raters."""
    return {"five simulated": tuple(Cell(f"simulated {seed}", backbone, "test")
                                    for seed in range(300, 305))}


REAL = real("groups")
HEARD = REAL | simulated("groups", LEARNED, "logmel")
NOT_HEARD = real("system") | simulated("method", LEARNED, "logmel")
BOTH = HEARD | {f"{name}, unheard": cells for name, cells in NOT_HEARD.items()}
FOUR = (UTTERANCE, "system LCC", MSE, "system MSE")

QUESTIONS = {
    "line": Question(
        "Does it beat a straight line, the condition's mean, the encoder's own prediction?",
        (HEAD, v.ONE, RIDGE, MEAN, ZERO_SHOT), REAL | simulated("groups", LEARNED), 3, FOUR),
    "line_logmel": Question(
        "The same with logmel, the stand-in.",
        (HEAD, v.ONE, RIDGE, MEAN), real("groups", "logmel") | five("logmel"), 3, FOUR),
    "unheard": Question(
        "On a system, or of simulated speech a synthesis method, that training never heard?",
        (HEAD, RIDGE), NOT_HEARD, 3, (UTTERANCE, MSE)),
    "rule": Question(
        "What does each part and setting that is ours cost, if it is left out?",
        (HEAD, v.PATH, v.CLASSES, v.ONE, v.NO_TASK, v.NO_SHRINKAGE, v.NO_DROPOUT), BOTH),
    "settings": Question(
        "Are other values of the settings better, where systems are heard?",
        (HEAD, v.SLOWER, v.LESS_DECAY, v.LAYERS, v.STATIC, v.NARROW, v.BROAD), REAL),
    "experts": Question(
        "Do experts help?",
        (HEAD, v.ONE, v.WIDE, v.EIGHT), REAL, gates=True),
    "regularisers": Question(
        "Does L_diversity prevent collapse, and L_sparsity specialise?",
        (HEAD, v.NO_DIVERSITY, v.NO_SPARSITY, v.PLAIN_LAMBDAS, v.STRONG), REAL, gates=True),
    "task": Question(
        "Does the second task help?", (HEAD, v.NO_TASK), REAL),
    "augmentation": Question(
        "Do clips without MOS help?", (HEAD, v.RATED),
        {name: cells for backbone, name in ((LEARNED, "learned"), ("logmel", "logmel"))
         for cells in simulated("groups", backbone).values()}),
    "stages": Question(
        "Three stages, one, reversed, MOS alone?",
        (HEAD, v.ONE_STAGE, v.REVERSED, v.MOS_ALONE), REAL),
    "prosody": Question(
        "Do pitch, energy and duration help?",
        (HEAD, Variant("with prosody", backbone=ProsodyBackbone)), REAL),
    "curves": Question(
        "How many clips a system are enough?",
        (HEAD, RIDGE, MEAN),
        {f"{name}, {k}": (Cell(name, LEARNED, f"groups, {k} a system"),)
         for name, k in itertools.product(("codecs", "YourTTS"), (2, 5))}),
}
RATERS = (("Estonian", "codecs", "YourTTS"), 2)  # corpora, panels


# -- Answers ---------------------------------------------------------------------------------------

def jobs_of(question):
    cells = dict.fromkeys(cell for cells in question.columns.values() for cell in cells)
    return [Job(variant, cell, seed) for cell in cells for variant in question.variants
            for seed in range(question.seeds if variant.drawn else 1)]


def answer(question):
    """Runs what is missing -> what is stored: tables, as they are printed, and numbers."""
    jobs = jobs_of(question)
    results = lab.run(jobs)
    predicted, gates = {}, {}
    for (variant, cell), group in itertools.groupby(zip(jobs, results), lambda pair: pair[0][:2]):
        group = [result for _, result in group]  # of all seeds
        corpus = lab.load(cell.corpus, cell.backbone)
        mos = np.array([result["mos"] for result in group])
        rows = ~np.isnan(mos[0])
        systems = np.array([clip.system for clip in corpus.clips])[rows]
        one = tables.Predicted(mos[:, rows], corpus.mos[rows], systems)
        predicted[variant.name, cell] = one
        if question.gates and "gates" in group[0] and cell.how == "groups":
            several = [tables.gate_use(result["gates"][rows], one.true, systems)
                       for result in group]
            gates.setdefault(variant.name, []).extend(several)
    compared = compare(question, predicted)
    shown = {metric: value_table(question, metric, predicted, compared)
             for metric in question.metrics}
    if question.gates:
        shown["gates"] = tables.gate_table(gates)
    numbers = [{"variant": name, "cell": cell, "clips": len(one.true), "systems": one.systems(),
                "seeds": one.value(UTTERANCE).tolist(), **one.numbers()}
               for (name, cell), one in predicted.items()]
    return {"tables": shown, "compared": compared, "numbers": numbers}


def compare(question, predicted):
    """{variant: {column or "all": claim, "other systems": claim}}: the variant less the first, in
    utterance LCC; corrected by Holm over the variants."""
    first, *others = question.variants
    found = {}
    for variant in others:
        of_columns, of_systems = [], []
        claims = {}
        for name, cells in question.columns.items():
            pairs = [(predicted[variant.name, cell], predicted[first.name, cell])
                     for cell in cells]
            column, systems = (
                tables.pooled([tables.difference(*pair, UTTERANCE, over) for pair in pairs])
                for over in ("clips", "systems"))
            of_columns.append(column)
            of_systems.append(systems)
            claims[name] = tables.claim(column)
        claims["all"] = tables.claim(tables.pooled(of_columns))
        claims["other systems"] = tables.claim(tables.pooled(of_systems))
        found[variant.name] = claims
    corrected = tables.holm([claims["all"]["p"] for claims in found.values()])
    for claims, p in zip(found.values(), corrected):
        claims["all"]["holm"] = p
    return found


def value_table(question, metric, predicted, compared):
    """Rows of a table: a variant each, its mean over the cells of each column; in utterance LCC
    also its difference from the first."""
    rows = [[metric, *question.columns]]
    for variant in question.variants:
        values = [np.mean([predicted[variant.name, cell].numbers()[metric] for cell in cells])
                  for cells in question.columns.values()]
        rows.append([variant.name, *map(tables.number, values)])
    if metric == UTTERANCE:
        rows[0] += ["less the first", "other systems"]
        rows[1] += ["", ""]
        for row, claims in zip(rows[2:], compared.values()):
            row.append(tables.with_interval(claims["all"]))
            row.append(tables.with_interval(claims["other systems"]))
    return rows


def store(name):
    """Answers a question and writes it into results/."""
    if name == "raters":
        found = {"tables": {"MSE": raters.answer(*RATERS)}}
    else:
        found = answer(QUESTIONS[name])
    versions = {"python": platform.python_version(), "torch": torch.__version__}
    content = {"asks": ASKS[name], "versions": versions, "settings": SETTINGS, **found}
    path = HERE / "results" / f"{name}.json"
    data.write_files({path: evaluate.as_json(content)})
    print(as_text(name))


def read(name):
    """What is stored. Raises InputError."""
    path = HERE / "results" / f"{name}.json"
    if not path.exists():
        raise InputError(f"{path}: is not there; run python -m studies.questions {name}")
    return json.loads(path.read_bytes())


def as_text(name):
    stored = read(name)
    shown = "\n\n".join(tables.table(rows) for rows in stored["tables"].values())
    return f"**{stored['asks']}**\n\n{shown}"


def written(text):
    """A README with the stored tables between its marks <!-- NAME --> and <!-- end -->; of a mark
    NAME METRIC one table alone."""
    def filled(mark):
        name, _, metric = mark[1].partition(" ")
        shown = tables.table(read(name)["tables"][metric]) if metric else as_text(name)
        return f"<!-- {mark[1]} -->\n{shown}\n<!-- end -->"
    return re.sub(r"<!-- (?!end)(.*?) -->\n.*?<!-- end -->", filled, text, flags=re.DOTALL)


def check(name):
    """Predicts the smallest cell of a question anew, with the first variant and seed. Raises
    InputError where utterance LCC is not what is stored."""
    stored = [row for row in read(name)["numbers"] if row["variant"] == HEAD.name]
    row = min(stored, key=lambda row: row["clips"])
    cell = Cell(*row["cell"])
    corpus = lab.load(cell.corpus, cell.backbone)
    mos = lab.predict(Job(HEAD, cell, 0), corpus)["mos"]
    rows = ~np.isnan(mos)
    systems = np.array([clip.system for clip in corpus.clips])[rows]
    found = tables.Predicted(mos[None, rows], corpus.mos[rows], systems).value(UTTERANCE)[0]
    same = abs(found - row["seeds"][0]) < 5e-4  # the last digit that is printed
    line = f"{name}: {', '.join(cell)}: {found:.4f}, stored {row['seeds'][0]:.4f}"
    if not same:
        raise InputError(f"{line}: differs; run the question again")
    print(line)


ASKS = {name: question.asks for name, question in QUESTIONS.items()} | {
    "raters": "How much of the error is the panel of raters, and how much is noise?"}
SETTINGS = {name: value for name, value in asdict(train.Config()).items()
            if isinstance(value, (int, float))}


def main():
    parser = argparse.ArgumentParser(allow_abbrev=False, description="Answers questions.")
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(ASKS)}")
    parser.add_argument("--list", action="store_true", help="what is asked")
    parser.add_argument("--check", action="store_true", help="predict a small part anew")
    parser.add_argument("--write", action="store_true", help="put the tables into the READMEs")
    options = parser.parse_args()
    with data.one_sentence("studies.questions"):
        unknown = set(options.names) - set(ASKS)
        if unknown:
            raise InputError(f"there is no question {data.shown(min(unknown))}; --list names all")
        for name in () if options.write else options.names or ASKS:
            if options.list:
                trained = len(jobs_of(QUESTIONS[name])) if name in QUESTIONS else "some"
                print(f"{name}: {ASKS[name]} ({trained} predictions)")
            else:
                (check if options.check else store)(name)
        for path in (HERE / "README.md", HERE.parent / "README.md") if options.write else ():
            data.write_files({path: written(path.read_text(encoding="utf-8")).encode()})


if __name__ == "__main__":
    main()
