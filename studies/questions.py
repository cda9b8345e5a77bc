"""Every question that the studies ask, as data, and the one command that answers them.

    python -m studies.questions NAME ...        answers these questions; without NAME, all of them
    python -m studies.questions --list          lists all questions
    python -m studies.questions --check NAME    predicts a small part anew and compares
    python -m studies.questions --write         puts the tables into studies/README.md

Answers are stored as studies/results/NAME.json. What was predicted before is not predicted again.
studies/lab.py says where the real listening tests are read from.
"""

import argparse
import itertools
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
from studies.lab import LABELS, MEAN, METHOD, RIDGE, TESTS, Cell, Job, Variant
from studies.prosody import with_prosody

HERE = Path(__file__).parent
BACKBONES = {"": "studies.distilled", ", W": "studies.whispered"}  # W: Whisper's
UTTERANCE, MSE = "utterance LCC", "utterance MSE"
WIDEST = 8  # columns that a table may have
SEEDS = 5  # as many as an answer needs to claim something; a star marks what is then shown


class Question(NamedTuple):
    asks: str
    variants: tuple  # the first, as a rule the method, is compared with each of the others
    columns: dict    # name: the cells whose mean the column shows; all columns weigh the same
    seeds: int = 2
    metrics: tuple = (UTTERANCE,)
    gates: bool = False  # whether to show what the gates follow
    stages: tuple = ()   # variants, each of which goes on from the one before
    nested: bool = False  # whether to choose the best variant for each test by the other tests


# -- Cells -----------------------------------------------------------------------------------------

def real(how, names=TESTS, more=""):
    """A column for each listening test and each learned backbone."""
    return {name + more + letter: (Cell(name, backbone, how),)
            for letter, backbone in BACKBONES.items() for name in names}


HEARD = real("groups")
UNHEARD = real("system", more=", unheard")
WITHOUT_W = {name: cells for name, cells in (HEARD | UNHEARD).items() if not name.endswith(", W")}
FAMILIES = real("family", ("Estonian", "codecs", "YourTTS"))
SIMULATED = {f"simulated{letter}": (Cell("training clips of simulated 100", backbone, "model"),)
             for letter, backbone in BACKBONES.items()}
NO_RECORDINGS = {
    heading: tuple(Cell(name + lab.NO_RECORDINGS, backbone, how)
                   for backbone in BACKBONES.values() for name in TESTS)
    for heading, how in (("heard systems", "groups"), ("unheard systems", "system"))}
FIVE = {str(seed): (Cell(f"simulated {seed}", "logmel", "test"),) for seed in range(300, 305)}

QUESTIONS = {
    "plainer": Question(
        "Does the method predict better than plainer predictors?",
        (METHOD, v.ONE, RIDGE, LABELS, v.START, MEAN), HEARD, SEEDS,
        (UTTERANCE, MSE, "system LCC", "system SRCC", tables.WITHIN)),
    "unheard": Question(
        "Does it predict better than a linear model for a system that training never heard?",
        (METHOD, RIDGE, LABELS, v.START), real("system"), SEEDS,
        (UTTERANCE, MSE, "system LCC", "system SRCC")),
    "both_new": Question(
        "Does it beat ridge for new systems with new sentences or talkers?",
        (METHOD, RIDGE), real("system and groups"),
        metrics=(UTTERANCE, tables.WITHIN)),
    "families": Question(
        "Does it predict better than a linear model for a whole family of systems?",
        (METHOD, RIDGE, LABELS, v.START), FAMILIES, SEEDS),
    "ready_made": Question(
        "Is it better than DistillMOS itself, without training on the ratings of the test?",
        (METHOD, v.DISTILLED), WITHOUT_W, SEEDS, (UTTERANCE, "system SRCC")),
    "overall": Question(
        "On the mean of all columns, does it predict better than a linear model?",
        (METHOD, RIDGE), HEARD | UNHEARD, SEEDS),
    "no_recordings": Question(
        "How good is it if the systems that are recordings are left out?",
        (METHOD, RIDGE), NO_RECORDINGS, SEEDS),
    "logmel": Question(
        "Does it predict better than plainer predictors with logmel, on simulated corpora?",
        (METHOD, v.ONE, RIDGE, v.START, MEAN), FIVE, SEEDS, (UTTERANCE, MSE)),
    "settings": Question(
        "Would other values of the settings that we chose be better?",
        (METHOD, v.LINE_ALONE, v.FEWER, v.MORE, v.FASTER_JOINT), HEARD | UNHEARD, nested=True),
    "ours": Question(
        "What does it cost to leave out a part that is ours?",
        (METHOD, v.PAPER, v.UNSHRUNK), HEARD, SEEDS),
    "head_start": Question(
        "What is it worth that the MOS head starts as the mean of two predictions?",
        (METHOD, v.LINE_ALONE), HEARD, SEEDS),
    "paper": Question(
        "Is the form nearest to the paper better than a linear model, and do experts help?",
        (v.PAPER, v.PAPER_ONE, RIDGE), HEARD, SEEDS),
    "start": Question(
        "What is it worth that training starts from linear predictions?",
        (METHOD, v.RANDOM_SHORT, v.LONGER_JOINT, v.RANDOM), HEARD, SEEDS),
    "other_parts": Question(
        "What does it cost to leave out or exchange other parts?",
        (METHOD, v.MEANS_ONLY, v.ONE, v.NO_TASK, v.LAYER_WEIGHTS, v.NARROW), HEARD),
    "stages": Question(
        "What does each stage change, and would other stages be better?",
        (METHOD, v.START, v.AFTER_1, v.AFTER_2, v.ONE_STAGE, v.REVERSED, v.MOS_ALONE), HEARD,
        stages=(v.START, v.AFTER_1, v.AFTER_2, METHOD)),
    "width": Question(
        "Does the method do as well with as many features as WAV2VEC2_BASE gives?",
        (METHOD, v.FULL_WIDTH), HEARD),
    "plainest": Question(
        "Is the whole method better than its plainest form?",
        (METHOD, v.PLAIN), HEARD, SEEDS),
    "experts": Question(
        "Do experts help, and what do the gates depend on?",
        (METHOD, v.ONE, v.NO_MLPS, v.EIGHT), HEARD, gates=True),
    "regularisers": Question(
        "Do the two regularisers change anything?",
        (METHOD, v.NO_DIVERSITY, v.NO_SPARSITY), HEARD, gates=True),
    "unrated": Question(
        "How much do parts of the method help for an unheard synthesis model?",
        (METHOD, v.NO_TASK, v.RATED, v.RATED_NO_TASK, v.MEANS_ONLY, RIDGE, v.START),
        SIMULATED, SEEDS),
    "prosody": Question(
        "Do pitch, energy and duration help?",
        (METHOD, Variant("with prosody", features=with_prosody)), HEARD),
    "few_clips": Question(
        "How many clips of each system are enough?",
        (METHOD, RIDGE, LABELS, v.LINE_ALONE, v.START, MEAN),
        {f"{name}, {k}{letter}": (Cell(name, backbone, f"groups, {k} a system"),)
         for letter, backbone in BACKBONES.items()
         for name, k in itertools.product(("codecs", "YourTTS"), (2, 5))}, SEEDS),
}
RATERS = {name: cells[0] for name, cells in HEARD.items() if not name.startswith("P.835")}
PANELS = 5


# -- Answers ---------------------------------------------------------------------------------------

def jobs_of(question):
    cells = dict.fromkeys(cell for cells in question.columns.values() for cell in cells)
    return [Job(variant, cell, seed) for cell in cells for variant in question.variants
            for seed in range(question.seeds if variant.drawn or draws_clips(cell) else 1)]


def draws_clips(cell):
    """Whether a seed draws the clips of a cell that are learned from."""
    return cell.how.endswith(" a system")


def answer(question):
    """Answers a question. Returns what is to be stored."""
    jobs = jobs_of(question)
    results = lab.run(jobs)
    predicted, gates = {}, {}
    for (variant, cell), group in itertools.groupby(zip(jobs, results), lambda pair: pair[0][:2]):
        found = [result for _, result in group]  # one for each seed
        corpus = lab.load(cell.corpus, cell.backbone)
        predicted[variant.name, cell] = tables.as_predicted(corpus, [one["mos"] for one in found])
        if question.gates and "gates" in found[0] and found[0]["gates"].shape[1] > 1:
            several = [tables.gate_use_in(corpus, one["gates"]) for one in found]
            gates.setdefault(variant.name, []).extend(several)
    rows = [{"metric": metric, "variant": variant.name,
             "numbers": [np.mean([predicted[variant.name, cell].numbers()[metric]
                                  for cell in cells]) for cells in question.columns.values()]}
            for metric in question.metrics for variant in question.variants]
    best = {}
    if question.nested:
        found, best = chosen(question, predicted)
        rows.append({"metric": UTTERANCE, "variant": "the best on the other tests",
                     "numbers": found})
    rows += moves(question, predicted)
    numbers = [{"variant": name, "cell": cell, "clips": len(one.true), "systems": one.systems(),
                "seeds": one.value(UTTERANCE).tolist(), "interval_95": one.interval(UTTERANCE),
                **one.numbers()}
               for (name, cell), one in predicted.items()]
    return {"columns": list(question.columns), "rows": rows,
            "gates": {name: tables.mean_use(several) for name, several in gates.items()},
            "chosen": best, "compared": compare(question, predicted), "numbers": numbers}


def compare(question, predicted):
    """{variant: {column or "all": claim}}: the method minus the variant, in utterance LCC; "all" is
    the mean over all columns."""
    method, *others = question.variants
    weights = {name: dict.fromkeys(cells, 1 / len(cells))
               for name, cells in question.columns.items()}
    columns = len(weights)
    weights["all"] = {cell: weight / columns for own in list(weights.values())
                      for cell, weight in own.items()}
    return {variant.name: {name: claim_of(method, variant, own, predicted)
                           for name, own in weights.items()} for variant in others}


def claim_of(method, variant, weights, predicted):
    """The claim on the method minus a variant, in a weighted mean over cells. weights: {cell: its
    weight}. Cells of one corpus have the same clips, and so their errors are taken together."""
    by_corpus = {}
    for cell, weight in weights.items():
        term = (weight, predicted[method.name, cell], predicted[variant.name, cell])
        by_corpus.setdefault(cell.corpus, []).append(term)
    same_draws = all(map(draws_clips, weights))
    differences = [tables.difference(terms, UTTERANCE, same_draws) for terms in by_corpus.values()]
    return tables.claim(tables.added(differences))


def chosen(question, predicted):
    """Chooses for each test the variant that has the best utterance LCC on the other tests. Returns
    (what the chosen variant has in each column, {test: the chosen variant's name}). So a choice of
    settings is judged by a test that had no part in it. Every column has one cell."""
    cells = [cell for cell, in question.columns.values()]
    number = {key: one.value(UTTERANCE).mean() for key, one in predicted.items()}
    names = [variant.name for variant in question.variants]
    best = {}
    for test in dict.fromkeys(cell.corpus for cell in cells):
        others = [cell for cell in cells if cell.corpus != test]
        best[test] = max(names, key=lambda name: sum(number[name, cell] for cell in others))
    return [number[best[cell.corpus], cell] for cell in cells], best


def moves(question, predicted):
    """A row for each stage: how far it moves the prediction of a clip, as a root mean square, in
    standard deviations of the test's MOS."""
    rows = []
    for stage, (before, after) in enumerate(itertools.pairwise(question.stages), start=1):
        numbers = []
        for cell, in question.columns.values():
            one, other = predicted[before.name, cell], predicted[after.name, cell]
            change = np.asarray(other.predictions) - np.asarray(one.predictions)
            numbers.append(np.sqrt(np.mean(change ** 2)) / np.std(one.true))
        rows.append({"metric": "moved", "variant": f"stage {stage}", "numbers": numbers})
    return rows


def store(name):
    """Answers a question and writes it into results/."""
    found = raters.answer(RATERS, PANELS) if name == "raters" else answer(QUESTIONS[name])
    versions = {"python": platform.python_version(), "torch": torch.__version__}
    content = {"asks": ASKS[name], "versions": versions, "settings": SETTINGS, **found}
    path = HERE / "results" / f"{name}.json"
    data.write_files({path: evaluate.as_json(content)})
    print(as_text(name))


ROW = {"variant": str, "cell": [str, str, str], "clips": float, "seeds": [float]}
CLAIM = {"value": float, "low": float, "high": float, "p": float}
FORM = {  # the form of what is stored, as tables.fits() describes it
    "asks": str, "settings": {}, "columns": [str],
    "rows": [{"metric": str, "variant": str, "numbers": [(float, None, [float, float])]}],
    "gates": {str: [(float, None)] * len(tables.FOLLOWED)},
    "compared": {str: {"all": CLAIM}},
    "numbers": [ROW | {UTTERANCE: float, "interval_95": [float, float]}]}


def read(name):
    """The stored answer to a question. Raises InputError."""
    path = HERE / "results" / f"{name}.json"
    remedy = f"run python -m studies.questions {name}"
    form = FORM | {"numbers": [ROW]} if name == "raters" else FORM
    stored = tables.read_json(path, form, remedy)
    if any(len(row["numbers"]) != len(stored["columns"]) for row in stored["rows"]):
        raise InputError(f"{path}: has rows of another length than its heading; {remedy}")
    return stored


def corrected():
    """{(question, variant): p} of all claims in all stored answers, after Holm's correction. An
    answer with fewer than SEEDS seeds claims nothing."""
    claims = {}
    for path in sorted((HERE / "results").glob("*.json")):
        stored = read(path.stem)
        if len(stored["numbers"][0]["seeds"]) >= SEEDS:  # of the first variant
            for variant, claim in stored["compared"].items():
                claims[path.stem, variant] = claim["all"]["p"]
    return dict(zip(claims, tables.holm(list(claims.values()))))


def as_rows(name, metric):
    """The rows of an answer's table of one metric. If it is a correlation, a row has the mean over
    all columns; if an answer has more than WIDEST columns, it has only that. In utterance LCC a row
    begins with the lead of the first variant, as a rule of the method: this minus the row, in the
    mean over all columns."""
    stored, p = read(name), corrected()
    claims = stored["compared"] if metric == UTTERANCE else {}
    columns = stored["columns"]
    narrow = len(columns) <= WIDEST
    # MSEs have no mean, because the tests have different scales.
    has_mean = metric.endswith(("LCC", "SRCC")) or metric == tables.WITHIN
    heading = [metric]
    if has_mean:
        heading.append("mean" if narrow else f"mean of {len(columns)} columns")
    if claims:
        heading.append(f"lead of {stored['rows'][0]['variant']}")
    rows = [heading + (columns if narrow else [])]
    for row in stored["rows"]:
        if row["metric"] != metric:
            continue
        label, numbers = row["variant"], row["numbers"]
        cells = [label]
        if has_mean:
            known = all(isinstance(value, float) for value in numbers)
            cells.append(tables.number(np.mean(numbers) if known else None))
        if label in claims:
            cells.append(tables.with_interval(claims[label]["all"], p.get((name, label), 1.0)))
        elif claims:
            cells.append("")
        if narrow:
            cells += map(tables.number, numbers)
        rows.append(cells)
    return rows


def as_text(name, apart=()):
    """The question and its tables, except those of the metrics in `apart`."""
    stored = read(name)
    seeds = len(stored["numbers"][0]["seeds"])
    few = f", only {seeds} seeds" if seeds < SEEDS else ""
    shown = [f"**{data.printable(stored['asks'])}** (`{name}`{few})"]
    metrics = dict.fromkeys(row["metric"] for row in stored["rows"])
    shown += [tables.table(as_rows(name, metric)) for metric in metrics if metric not in apart]
    if stored["gates"]:
        rows = [[gates, *map(tables.number, use)] for gates, use in stored["gates"].items()]
        shown.append(tables.table([["gates", *tables.FOLLOWED], *rows]))
    return "\n\n".join(shown)


def written(text):
    """The text of a README, into which the stored tables are put. A question and its tables go
    between <!-- NAME --> and <!-- end -->. If the text has a place for one of its metrics, between
    <!-- NAME METRIC --> and <!-- end -->, the table of this metric goes there instead."""
    places = re.findall(r"<!-- (?!end)(.*?) -->", text)

    def filled(mark):
        name, _, metric = mark[1].partition(" ")
        apart = [place.partition(" ")[2] for place in places if place.startswith(f"{name} ")]
        shown = tables.table(as_rows(name, metric)) if metric else as_text(name, apart)
        return f"<!-- {mark[1]} -->\n{shown}\n<!-- end -->"
    return re.sub(r"<!-- (?!end)(.*?) -->\n.*?<!-- end -->", filled, text, flags=re.DOTALL)


def jobs_asked(name):
    """The jobs of the question with that name."""
    return raters.jobs_of(RATERS, PANELS) if name == "raters" else jobs_of(QUESTIONS[name])


def check(name):
    """Predicts the smallest cell of a question anew, with its first and with its last variant, by
    the first seed. Raises InputError if the utterance LCC differs from the stored one."""
    stored = read(name)["numbers"]
    smallest = min(stored, key=lambda row: row["clips"])["cell"]
    seeds = {row["variant"]: row["seeds"] for row in stored if row["cell"] == smallest}
    jobs = [job for job in jobs_asked(name) if job.cell == Cell(*smallest) and job.seed == 0]
    if not jobs or any(job.variant.name not in seeds for job in jobs):
        raise InputError(f"{name}: the stored answer is to another question; run it again")
    corpus = lab.load(*smallest[:2])
    for job in (jobs[0], jobs[-1]):
        mos = lab.predict(job, lab.features_for(job, corpus))["mos"]
        found = tables.as_predicted(corpus, [mos]).value(UTTERANCE)[0]
        before = seeds[job.variant.name][0]
        line = (f"{name}: {job.variant.name}, {', '.join(smallest)}: {found:.4f}, "
                f"stored {before:.4f}")
        if abs(found - before) > 5e-4:  # half of the last digit in the tables
            raise InputError(f"{line}: differs; run the question again")
        print(line)


def listed(name):
    """A line on a question: what it asks, how many predictions it takes, and how large a difference
    must be to be shown."""
    number = len(jobs_asked(name))
    reach = [claims["all"]["high"] - claims["all"]["value"]
             for claims in read(name)["compared"].values()]
    sees = f"; a difference of {tables.number(np.median(reach))} shows" if reach else ""
    return f"{name}: {ASKS[name]} ({number} predictions{sees})"


ASKS = {name: question.asks for name, question in QUESTIONS.items()} | {
    "raters": "How much of the error comes from the panel of raters, and how much is noise?"}
SETTINGS = {name: value for name, value in asdict(train.Config()).items()
            if isinstance(value, (int, float))}


def main():
    parser = argparse.ArgumentParser(allow_abbrev=False, description="Answers questions.")
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"Name any of {', '.join(ASKS)}.")
    parser.add_argument("--list", action="store_true", help="List the questions.")
    parser.add_argument("--check", action="store_true", help="Predict a part anew and compare.")
    parser.add_argument("--write", action="store_true", help="Put the tables into the READMEs.")
    options = parser.parse_args()
    with data.errors_in_one_sentence("studies.questions"):
        unknown = set(options.names) - set(ASKS)
        if unknown:
            raise InputError(f"there is no question {data.shown(min(unknown))}; --list names all")
        for name in () if options.write else options.names or ASKS:
            if options.list:
                print(listed(name))
            else:
                (check if options.check else store)(name)
        if options.write:
            path = HERE / "README.md"
            data.write_files({path: written(path.read_text(encoding="utf-8")).encode()})


if __name__ == "__main__":
    main()
