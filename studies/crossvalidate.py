"""Is it good for my ratings? One command that cross-validates the method on any table of ratings.

    python -m studies.crossvalidate RATINGS            a ratings.csv, or the folder that holds it
    python -m studies.crossvalidate RATINGS --scale 1 7 --backbone studies.distilled

Every rated clip, whatever its split, is predicted once, by predictors that learned from clips of
other groups: the method ("the head"), the same with one expert, ridge regression, and the mean MOS
of the clip's system. Predictions are kept under runs/lab/, so that what was interrupted continues.
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
from studies.lab import HEAD, MEAN, RIDGE, Cell, Job
from studies.variants import ONE

VARIANTS = (HEAD, ONE, RIDGE, MEAN)  # the others are compared with the first
HALF = "the head, half the clips"    # of each system it learns from about half
GROUPS = "groups"                    # the split of studies.lab
FEWEST = 5                           # rated clips that there must be to learn from
HALVINGS = 20                        # of the raters, at random


# -- What is there ---------------------------------------------------------------------------------

def check(path, clips):
    """Raises InputError for rated clips that cannot be cross-validated."""
    groups = {clip.group for clip in clips}
    needed = evaluate.FEWEST["utterance"]
    if len(clips) < needed or len(groups) < 2:
        raise InputError(f"{path}: has {len(clips)} rated clips in {len(groups)} groups; to "
                         f"cross-validate takes {needed}, in two")
    left = len(clips) - np.bincount(data.folds_of(clips, lab.FOLDS)).max()
    if left < FEWEST:
        raise InputError(f"{path}: a part of its groups holds all rated clips but {left}; to learn "
                         f"from the others takes {FEWEST}")
    mos = [clip.mos for clip in clips]
    if moemos.undefined(mos, mos):
        raise InputError(f"{path}: all its clips have the same MOS; there is nothing to predict")


def inventory(path, clips):
    """What was found in a table, and what is done with it."""
    rated = [clip for clip in clips if clip.ratings]
    given = [rater for clip in rated for rater in clip.ratings]
    mos = [clip.mos for clip in rated]
    found = (f"{path}: {len(rated)} rated clips, {len(given)} ratings by {len({*given} - {''})} "
             f"raters, {len({clip.system for clip in rated})} systems, "
             f"{len({clip.group for clip in rated})} groups, MOS {min(mos):.2f} to {max(mos):.2f}")
    unrated = f"; {len(clips) - len(rated)} clips without ratings teach the second task"
    return (f"{data.printable(found)}{unrated * (len(rated) < len(clips))}\nEvery rated clip, "
            "whatever its split, is predicted once, from clips of other groups.")


def reliability(ratings):
    """(clips, R) of all raters, NaN where there is none -> the LCC between the MOS of two panels
    like the whole one: 2 r / (1 + r), by Spearman and Brown, with r the mean LCC of two halves of
    the raters. NaN where too few clips are rated by both halves, or the halves contradict."""
    found = []
    for seed in range(HALVINGS):
        one, other = (raters.means(half) for half in raters.halves(ratings, seed))
        both = ~np.isnan(one + other)
        enough = both.sum() >= evaluate.FEWEST["utterance"]
        found.append(moemos.lcc(one[both], other[both]) if enough else math.nan)
    r = float(np.mean(found))
    return 2 * r / (1 + r) if r > 0 else math.nan


# -- Cross-validation ------------------------------------------------------------------------------

def half_of_a_system(corpus):
    """Half of the rated clips of a system that a part learns from, the median of both."""
    systems = np.array([clip.system for clip in corpus.clips])
    counts = [np.unique(systems[learned & corpus.rated], return_counts=True)[1]
              for learned, _ in lab.split(corpus, GROUPS)]
    return int(np.median(np.concatenate(counts))) // 2


def cross_validate(table, backbone, seeds):
    """-> {label: tables.Predicted} of VARIANTS and, where a system has clips enough, of the first
    with HALF of them. table: the absolute path of a ratings.csv."""
    corpus = lab.load(table, backbone)
    asked = [(variant.name, variant, GROUPS) for variant in VARIANTS]
    half = half_of_a_system(corpus)
    if half:
        asked.append((HALF, VARIANTS[0], f"{GROUPS}, {half} a system"))
    jobs = {label: [Job(variant, Cell(table, backbone, how), seed)
                    for seed in range(seeds if variant.drawn else 1)]
            for label, variant, how in asked}
    results = iter(lab.run([job for own in jobs.values() for job in own]))
    return {label: tables.as_predicted(corpus, [next(results)["mos"] for _ in own])
            for label, own in jobs.items()}


def metrics_of(predicted):
    """Those that are shown: none at system level where there are few systems."""
    enough = predicted.systems() >= evaluate.FEWEST["system"]
    return ("utterance LCC", "utterance MSE") + ("system LCC",) * enough


def compare(predicted):
    """{label: {metric: tables.claim}}: each of the others less the head, for other clips or, at
    system level, other systems."""
    head = predicted[HEAD.name]
    over = {metric: "systems" if "system" in metric else "clips" for metric in metrics_of(head)}
    return {label: {metric: tables.claim(tables.difference(one, head, metric, parts))
                    for metric, parts in over.items()}
            for label, one in predicted.items() if one is not head}


# -- The report ------------------------------------------------------------------------------------

def with_bounds(one, metric):
    """A number of a tables.Predicted, and its interval as far as the number can go."""
    least, most = (0, math.inf) if metric.endswith("MSE") else (-1, 1)
    low, high = map(tables.number, np.clip(one.interval(metric), least, most))
    return f"{tables.number(one.numbers()[metric])} [{low}, {high}]"


def show(predicted, claims):
    """Prints what each predictor reaches, and its difference from the head."""
    metrics = metrics_of(predicted[HEAD.name])
    rows = [[label, *(with_bounds(one, metric) for metric in metrics)]
            for label, one in predicted.items()]
    print(f"\n{tables.table([['95 % intervals', *metrics], *rows])}")
    rows = [[label, *map(tables.with_interval, own.values())] for label, own in claims.items()]
    print(f"\n{tables.table([['less the head', *metrics], *rows])}\n")


def verdict(claim):
    """In words what the head is, by a claim on another predictor's utterance LCC less its own."""
    low, high = -claim["high"], -claim["low"]
    return evaluate.WORDS[evaluate.verdict("utterance LCC", -claim["value"], low, high)]


def in_words(clips, ratings, predicted, claims, scale):
    """Sentences on what that says; clips: the rated ones; ratings: as of reliability()."""
    head = predicted[HEAD.name]
    lcc, low = head.numbers()["utterance LCC"], head.interval("utterance LCC")[0]
    against = {label: own["utterance LCC"] for label, own in claims.items()}
    yield (f"By the utterance LCC of {len(clips)} clips the head is {verdict(against[RIDGE.name])} "
           f"{evaluate.MEANING[evaluate.RIDGE]}; it is {verdict(against[MEAN.name])} "
           f"{evaluate.MEANING[evaluate.CONDITION]}.")
    if not low > 0:
        yield "It is not even shown that its scores have to do with the ratings."
    ceiling = reliability(ratings)
    if math.isnan(ceiling):
        yield ("What the ratings allow cannot be told: there are too few raters a clip, or two "
               "halves of them do not agree.")
    else:
        yield (f"What the ratings allow: another panel of as many raters would agree with this one "
               f"by an LCC of {tables.number(ceiling)} (split halves, Spearman-Brown), and a "
               f"predictor without any error by {tables.number(math.sqrt(ceiling))}, its square "
               f"root; the head has {tables.number(lcc)}.")
    error = math.sqrt(head.numbers()["utterance MSE"])
    right = 50 * (1 + head.numbers()["utterance KTAU"])
    yield (f"What a score means: on the scale of {scale[0]:g} to {scale[1]:g} it is off by "
           f"{error:.2f} (root mean square); the mean MOS of all clips, said of each, would be by "
           f"{np.std(head.true):.2f}. Of two clips, the better rated one gets the higher score in "
           f"{right:.0f} % of all pairs.")
    reach = against[RIDGE.name]["high"] - against[RIDGE.name]["value"]
    yield (f"Are they enough clips? A difference from ridge is shown from {tables.number(reach)} "
           "on; to see half of that takes four times as many.")
    if HALF in against:
        grows = "more clips should help" if against[HALF]["high"] < 0 else (
            "it is not shown that more clips would help")
        yield (f"With half of them the LCC is "
               f"{tables.number(predicted[HALF].numbers()['utterance LCC'])}: {grows}.")
    yield ("All this is for other clips of the same systems: of a system without ratings a score "
           "is worth less.")
    if len({clip.group for clip in clips}) == len(clips):
        yield ("Each clip is a group of its own: where two clips share a talker or a sentence, the "
               "predictors may have known it, which flatters them and cannot be seen here. A "
               "column `group` would tell.")


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
        print(inventory(options.ratings, clips))
        data.extract_features(clips, backbone)  # on the device; lab.load finds them in the cache
        table = os.path.abspath(data.table_of(options.ratings))
        predicted = cross_validate(table, backbone.name, options.seeds)
        claims = compare(predicted)
        show(predicted, claims)
        ratings = raters.ratings_of(lab.load(table, backbone.name))
        for sentence in in_words(rated, ratings, predicted, claims, options.scale):
            print(textwrap.fill(sentence, 92, initial_indent="- ", subsequent_indent="  "))


if __name__ == "__main__":
    main()
