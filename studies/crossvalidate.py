"""Is it good for my ratings? One command that cross-validates the method on any table of ratings.

    python -m studies.crossvalidate RATINGS            a ratings.csv, or the folder that holds it
    python -m studies.crossvalidate RATINGS --scale 1 7 --backbone studies.distilled

Every rated clip, whatever its split, is predicted once, by predictors that learned from clips of
other groups: the method, the same with one expert, ridge regression, and the mean MOS of the
clip's system. Predictions are kept under runs/lab/, so that what was interrupted continues.
"""

import argparse
import math
import os
import textwrap

import numpy as np

import data
import evaluate
import moemos
import train
from data import InputError
from studies import lab, raters, tables
from studies.lab import MEAN, METHOD, RIDGE, Cell, Job
from studies.variants import ONE

VARIANTS = (METHOD, ONE, RIDGE, MEAN)  # the others are compared with the first
HALF = "the method, half the clips"    # it learns from about half of each system's
FEWEST = 5                           # rated clips outside each part, which are learned from
HALVINGS = 20                        # of the raters, at random


def check(path, clips):
    """Raises InputError for rated clips that cannot be cross-validated."""
    needed = evaluate.FEWEST["clips"]
    groups = len({clip.group for clip in clips})
    mos = [clip.mos for clip in clips]
    if len(clips) < needed or groups < 2 or moemos.why_undefined(mos, mos):
        raise InputError(f"{path}: has {len(clips)} rated clips in {groups} groups, with "
                         f"{len(set(mos))} different MOS; to cross-validate takes {needed} clips, "
                         "two groups and two MOS")
    largest = np.bincount(data.folds_of(clips, lab.FOLDS)).max()
    if len(clips) - largest < FEWEST:
        raise InputError(f"{path}: one part of its groups holds {largest} of {len(clips)} rated "
                         f"clips; to learn from the others takes {FEWEST}")


def inventory(path, clips):
    """Yields lines on what was found in a table, and what is done with it."""
    rated = [clip for clip in clips if clip.ratings]
    given = [rater for clip in rated for rater in clip.ratings]
    mos = [clip.mos for clip in rated]
    yield f"{path}: {len(rated)} rated clips, {len(clips) - len(rated)} without ratings"
    yield (f"{len(given)} ratings or means by {len({*given} - {''})} named raters, "
           f"{len({clip.system for clip in rated})} systems, "
           f"{len({clip.group for clip in rated})} groups, MOS {min(mos):.2f} to {max(mos):.2f}")
    yield "Every rated clip, whatever its split, is predicted once, from clips of other groups."


def reliability(ratings):
    """(clips, R) of all raters, NaN where there is none -> the LCC between the MOS of two panels
    like the whole one: 2 r / (1 + r), by Spearman and Brown, where r is the mean LCC between two
    halves of the raters. NaN where both halves have rated too few clips, or r is not above 0."""
    found = []
    for seed in range(HALVINGS):
        one, other = (lab.means(half) for half in raters.halves(ratings, seed))
        both = ~np.isnan(one + other)
        enough = both.sum() >= evaluate.FEWEST["clips"]
        found.append(moemos.lcc(one[both], other[both]) if enough else math.nan)
    r = float(np.mean(found))
    return 2 * r / (1 + r) if r > 0 else math.nan


# -- Cross-validation ------------------------------------------------------------------------------

def half_of_a_system(corpus):
    """Half of the rated clips of a system that are learned from, the median of systems and folds.
    """
    systems = np.array([clip.system for clip in corpus.clips])
    counts = [np.unique(systems[learned & corpus.rated], return_counts=True)[1]
              for learned, _ in lab.split(corpus, "groups")]
    return int(np.median(np.concatenate(counts))) // 2


def cross_validate(table, backbone, seeds):
    """-> {label: tables.Predicted} of VARIANTS and, where a system has clips enough, of the first
    with HALF of them. table: the absolute path of a ratings.csv."""
    corpus = lab.load(table, backbone)
    asked = [(variant.name, variant, "groups") for variant in VARIANTS]
    half = half_of_a_system(corpus)
    if half:
        asked.append((HALF, VARIANTS[0], f"groups, {half} a system"))
    jobs = {label: [Job(variant, Cell(table, backbone, how), seed)
                    for seed in range(seeds if variant.drawn else 1)]
            for label, variant, how in asked}
    results = iter(lab.run([job for own in jobs.values() for job in own]))
    return {label: tables.as_predicted(corpus, [next(results)["mos"] for _ in own])
            for label, own in jobs.items()}


def compare(predicted):
    """{label: {metric: tables.claim}}: each of the others minus the method; at system level where
    there are enough systems."""
    head = predicted[METHOD.name]
    metrics = ["utterance LCC", "utterance MSE", "system LCC"]
    if head.systems() < evaluate.FEWEST["systems"]:
        metrics.remove("system LCC")
    return {label: {metric: tables.claim(tables.difference([(1, one, head)], metric))
                    for metric in metrics}
            for label, one in predicted.items() if one is not head}


# -- The report ------------------------------------------------------------------------------------

def with_bounds(one, metric):
    """A number of a tables.Predicted, and its interval."""
    low, high = map(tables.number, one.interval(metric))
    return f"{tables.number(one.numbers()[metric])} [{low}, {high}]"


def show(predicted, claims):
    """Prints what each predictor reaches, and its difference from the method."""
    metrics = list(claims[MEAN.name])
    rows = [[label, *(with_bounds(one, metric) for metric in metrics)]
            for label, one in predicted.items()]
    print(f"\n{tables.table([['95 % intervals', *metrics], *rows])}")
    rows = [[label, *map(tables.with_interval, own.values())] for label, own in claims.items()]
    print(f"\n{tables.table([['minus the method', *metrics], *rows])}\n")


def verdict(claim):
    """In words what the method is, by a claim on another's utterance LCC minus its own."""
    low, high = -claim["high"], -claim["low"]
    return evaluate.WORDS[evaluate.verdict("utterance LCC", -claim["value"], low, high)]


def in_words(clips, predicted, claims, ceiling, scale):
    """Yields sentences on what that says; clips: the rated ones; ceiling: of reliability()."""
    head = predicted[METHOD.name]
    lcc, mse, tau = (head.numbers()[f"utterance {name}"] for name in ("LCC", "MSE", "KTAU"))
    other = {label: own["utterance LCC"] for label, own in claims.items()}
    yield (f"Is it good? By the utterance LCC of {len(clips)} clips the method is "
           f"{verdict(other[RIDGE.name])} {evaluate.MEANING[evaluate.RIDGE]}, and it is "
           f"{verdict(other[MEAN.name])} {evaluate.MEANING[evaluate.TOLD]}.")
    if not head.interval("utterance LCC")[0] > 0:
        yield "It is not even shown that its scores follow the ratings at all."
    if math.isnan(ceiling):
        yield ("How good can it be? That is not known: it takes clips with several raters, halves "
               "of whom agree.")
    else:
        yield (f"How good can it be? Another panel of as many raters would agree with this one by "
               f"an LCC of {tables.number(ceiling)} (from split halves, by Spearman-Brown), and a "
               f"predictor without error by {tables.number(math.sqrt(ceiling))}, the square root. "
               f"The method has {tables.number(lcc)}.")
    yield (f"What does a score mean? On the scale from {scale[0]:g} to {scale[1]:g} it is off by "
           f"{tables.number(math.sqrt(mse))} (root mean square). To give every clip the mean MOS "
           f"would be off by {tables.number(np.std(head.true))}. Of two clips, the one with the "
           f"higher MOS gets the higher score in about {50 * (1 + tau):.0f} % of cases.")
    if math.sqrt(mse) > np.std(head.true):
        yield "So a score alone says less than the mean MOS does; at most its rank says something."
    reach = other[RIDGE.name]["high"] - other[RIDGE.name]["value"]
    left_out = "systems" if head.systems() >= evaluate.FEWEST["systems"] else "clips"
    yield (f"Are there enough {left_out} to compare? A difference from ridge is shown if it is "
           f"above {tables.number(reach)}. To show half of that takes about four times as many.")
    if HALF in other:
        helps = "more clips should help" if other[HALF]["high"] < 0 else (
            "it is not shown that more clips help")
        half = predicted[HALF].numbers()["utterance LCC"]
        yield (f"Are there enough to learn from? With half of each system's clips the LCC is "
               f"{tables.number(half)}, with all {tables.number(lcc)}: {helps}.")
    yield f"The intervals are for {evaluate.parts_of(head.system)[1]}."
    if head.systems() < len(clips):
        yield ("Other clips of each system were learned from. Expect less for a system that nobody "
               "has rated.")
    if len(head.predictions) == 1:
        yield "All was trained once. Other trainings may differ more than that: --seeds 5 tells."
    if len({clip.group for clip in clips}) == len(clips):
        yield ("Each clip is a group of its own. If clips share a talker or a sentence, that may "
               "flatter all predictors, and it cannot be seen here: add a column `group`.")


def main():
    parser = argparse.ArgumentParser(
        allow_abbrev=False, description="Cross-validates the method on your own ratings.")
    parser.add_argument("ratings", metavar="RATINGS", help="a ratings.csv or its folder")
    parser.add_argument("--backbone", default="", help="as of train.py")
    parser.add_argument("--scale", type=float, nargs=2, default=(1.0, 5.0),
                        metavar=("LOW", "HIGH"), help="lowest and highest rating (default: 1 5)")
    parser.add_argument("--max-seconds", type=float, default=60.0, help="as of train.py")
    parser.add_argument("--device", default="", help="as of train.py, for the features")
    parser.add_argument("--seeds", type=int, default=2, help="trainings of each kind (default: 2)")
    options = parser.parse_args()
    with data.one_sentence("studies.crossvalidate"):
        if not 1 <= options.seeds <= 100:
            raise InputError(f"--seeds {options.seeds}: must be at least 1 and at most 100")
        train.check(train.Config(data=options.ratings, scale=tuple(options.scale),
                                 max_seconds=options.max_seconds))
        clips = data.read_manifest(options.ratings, options.scale)
        data.check_clips(clips, options.max_seconds)
        rated = [clip for clip in clips if clip.ratings]
        check(options.ratings, rated)
        backbone = data.open_backbone(options.backbone, options.device)
        print(*map(data.printable, inventory(options.ratings, clips)), sep="\n")
        data.extract_features(clips, backbone)  # on the device; lab.load finds them in the cache
        table = os.path.abspath(data.table_of(options.ratings))
        predicted = cross_validate(table, backbone.name, options.seeds)
        claims = compare(predicted)
        show(predicted, claims)
        ceiling = reliability(raters.ratings_of(lab.load(table, backbone.name)))
        for sentence in in_words(rated, predicted, claims, ceiling, options.scale):
            print(textwrap.fill(sentence, 92, initial_indent="- ", subsequent_indent="  "))


if __name__ == "__main__":
    main()
