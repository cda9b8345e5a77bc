"""A synthesiser that training never saw: leave one out (ours). The case that users have.

    python -m studies.unheard                on ten simulated corpora
    python -m studies.unheard --data PATH    on another corpus

Each method in turn, with and without super-resolution (SR), is left out of the training clips, and
its test clips are predicted; then likewise each synthesis model, whose sound the model with or
without SR may have taught; then each system, whose model may be known at another sampling rate; and
then nothing. The predictions of a corpus are scored together; they are of several heads, each with
an intercept of its own, so their LCC is lower than of one. Beside the head: the head without class
probabilities, studies.fusion's "MOS head reads y alone"; ridge, with its strength from folds by
what is left out, or by sentence; the condition's mean, which of a condition that was not heard is
the mean of all. "Of it the methods' level": the part of the MSE that is the mean error of each
method, squared. Intervals are Student's over corpora, for these methods and systems, as all corpora
have the same.

Of another corpus all rated clips but those of split dev are predicted, its split ignored otherwise;
numbers are means of SEEDS seeds. Intervals are the paired bootstrap's over what was left out, drawn
whole, joined with Student's over the seeds: for others like these; where these are few they are too
narrow. Tables go to runs/unheard/ too, for studies.figures --curves.
"""

import argparse
import functools
import math
from dataclasses import replace

import numpy as np

import data
import evaluate
from data import InputError
from studies import fusion
from studies.choose import fold_of, numbers, prepare
from studies.experiments import followed, name_of, worker_pool
from studies.straight_line import (
    by_head,
    by_ridge,
    condition_means,
    load,
    no_interval,
    over_corpora,
    over_resamples,
    report,
)

CORPORA = range(210, 220)  # seeds; no other study but curves uses these
SEEDS = 3                  # of another corpus
COLUMNS = ("utterance MSE", "of it the methods' level", "utterance LCC", "system LCC")
PREDICTORS = ("the head", "head without classes", "ridge", "condition's mean")
HEAD, WITHOUT, RIDGE, MEAN = range(4)
DIFFERENCES = {"head less ridge": (HEAD, RIDGE), "without classes less ridge": (WITHOUT, RIDGE),
               "head less without classes": (HEAD, WITHOUT)}
NONE = [math.nan] * 3      # in a table of predictors
LEFT_OUT = {  # what: the group of a clip
    "method": lambda clip: clip.model.removesuffix("SR"),
    "synthesis model": lambda clip: clip.model,
    "system": lambda clip: clip.system,
    "nothing": lambda clip: "",
}


# -- Leave one out ---------------------------------------------------------------------------------

def splits_of(corpus, whole):
    """-> (clips,) bool each: those to train on, those to predict. whole: all rated clips are both,
    whatever their split; those without ratings are trained on where they are of split train."""
    rated = np.array([bool(clip.ratings) for clip in corpus.clips])
    training = np.array([clip.split == "train" for clip in corpus.clips])
    if whole:
        return training | rated, rated
    return training, ~training & rated


def groups_left_out(clips, what):
    """(clips,) str."""
    return np.array([LEFT_OUT[what](clip) for clip in clips])


def leave_out(corpus, what, seed, training, tested):
    """Each group in turn; of "nothing" the only one, which is learned from too -> (4, clips):
    PREDICTORS, NaN where not tested."""
    clips, groups = corpus.clips, groups_left_out(corpus.clips, what)
    said = np.full((4, len(clips)), np.nan)
    for name in np.unique(groups[tested]):
        rows, new = training & (groups != name), tested & (groups == name)
        fold = groups
        if what == "nothing":
            rows, fold = training, fold_of(clips, evaluate.FOLDS)
        known = [clip for clip, row in zip(clips, rows) if row and clip.ratings]
        said[HEAD, new] = by_head(corpus, rows, new, seed)
        said[WITHOUT, new] = by_head(corpus, rows, new, seed, fusion.build_separate_heads)
        said[RIDGE, new] = by_ridge(corpus, rows, new, fold)
        said[MEAN, new] = condition_means(known, [clip for clip, row in zip(clips, new) if row])
    return said


def score(predicted, clips):
    """-> (4,): COLUMNS."""
    mse, lcc, _, system_lcc = numbers(predicted, clips)
    method = groups_left_out(clips, "method")
    errors = predicted - np.array([clip.mos for clip in clips])
    level = 0.0
    for name in np.unique(method):
        own = method == name
        level += own.mean() * errors[own].mean() ** 2  # its share of the clips
    return np.array([mse, level, lcc, system_lcc])


def of_others(said, clips, groups):
    """(RESAMPLES, 3, 4): DIFFERENCES of COLUMNS between rows of said, of groups drawn whole, with
    replacement. A system of a group that is drawn twice counts twice."""
    members = [np.flatnonzero(groups == name) for name in np.unique(groups)]
    rng = np.random.default_rng(0)
    found = []
    for _ in range(evaluate.RESAMPLES):
        rows, drawn = [], []
        for time, group in enumerate(rng.integers(len(members), size=len(members))):
            rows += members[group].tolist()
            drawn += [replace(clips[i], system=f"{time} {clips[i].system}")
                      for i in members[group]]
        scores = [score(own[rows], drawn) for own in said[:MEAN]]
        found.append([scores[one] - scores[other] for one, other in DIFFERENCES.values()])
    return np.array(found)


def one_job(cache, job):
    """(path, what is left out, seed, whole) -> (4, 4) COLUMNS of each of PREDICTORS; and where
    whole, of_others(), else None."""
    path, what, seed, whole = job
    corpus = load(path, cache)
    training, tested = splits_of(corpus, whole)
    said = leave_out(corpus, what, seed, training, tested)[:, tested]
    clips = [clip for clip, row in zip(corpus.clips, tested) if row]
    found = np.array([score(own, clips) for own in said])
    if what != "nothing":
        found[MEAN, 2:] = np.nan  # it is lower where what is left out is better: no LCC to compare
    if not whole:
        return found, None
    return found, of_others(said, clips, groups_left_out(clips, what))


# -- Tables ----------------------------------------------------------------------------------------

def simulated(cache):
    paths = [f"runs/corpora/{seed}" for seed in CORPORA]
    columns = list(LEFT_OUT)
    jobs = [(path, what, 0, False) for what in columns for path in paths]
    with worker_pool(len(jobs)) as pool:
        list(pool.map(prepare, CORPORA))
        results = pool.map(functools.partial(one_job, cache), jobs)
        found = np.array([own for own, _ in followed(results, len(jobs))])
    found = found.reshape(len(columns), len(paths), len(PREDICTORS), len(COLUMNS))
    tables = {}
    for i, column in enumerate(COLUMNS):
        own = found[..., i]                                                 # (what, corpora, 4)
        less_heard = own[:-1, :, HEAD] - own[-1, :, HEAD]                   # (what - 1, corpora)
        means = {name: over_corpora(own[:, :, j]) for j, name in enumerate(PREDICTORS)}
        differences = {name: over_corpora(own[:, :, one] - own[:, :, other])
                       for name, (one, other) in DIFFERENCES.items()}
        differences["head less nothing left out"] = [*over_corpora(less_heard), NONE]
        tables[column] = {"means": means, "differences": differences}
    print(f"simulated corpora {CORPORA[0]} to {CORPORA[-1]}, means; left out:")
    report({"columns": columns, "tables": tables}, "runs/unheard/simulated.json")


def levels_of(clips):
    """Those of LEFT_OUT of which three or more are rated; of two that are the same, one."""
    used = [clip for clip in clips if clip.ratings or clip.split == "train"]
    levels = {}  # groups, numbered as they appear: what
    for what in LEFT_OUT:
        names = groups_left_out(used, what).tolist()
        number = {}
        groups = tuple(number.setdefault(name, len(number)) for name in names)
        if len({name for name, clip in zip(names, used) if clip.ratings}) >= 3:
            levels[groups] = what
    return list(levels.values())


def of_corpus(path, cache):
    levels = levels_of([clip for clip in data.read_manifest(path) if clip.split != "dev"])
    if not levels:
        raise InputError(f"{path}: has rated clips of fewer than three systems; one is predicted "
                         "from the others, and ridge needs two of those")
    jobs = [(path, what, seed, True) for what in levels for seed in range(SEEDS)]
    with worker_pool(len(jobs)) as pool:
        results = pool.map(functools.partial(one_job, cache), jobs)
        found, resampled = zip(*followed(results, len(jobs)))
    found = np.reshape(found, (len(levels), SEEDS, len(PREDICTORS), len(COLUMNS)))
    resampled = np.reshape(resampled, (len(levels), SEEDS, -1, len(DIFFERENCES), len(COLUMNS)))
    resampled = resampled.mean(1)                                           # (what, R, 3, 4)
    tables = {}
    for i, column in enumerate(COLUMNS):
        means = {name: no_interval(found[:, :, j, i]) for j, name in enumerate(PREDICTORS)}
        differences = {}
        for j, (name, (one, other)) in enumerate(DIFFERENCES.items()):
            less = found[:, :, one, i] - found[:, :, other, i]              # (what, seeds)
            differences[name] = over_resamples(less, resampled[:, :, j, i])
        tables[column] = {"means": means, "differences": differences}
    print(f"{path}: each predicted from the others, means of {SEEDS} seeds; left out:")
    report({"columns": levels, "tables": tables}, f"runs/unheard/on_{name_of(path)}.json")


def main():
    parser = argparse.ArgumentParser(
        allow_abbrev=False, description="Predicts synthesisers that training never saw.")
    parser.add_argument("--data", metavar="PATH", help="on the scale of 1 to 5")
    parser.add_argument("--cache", default="cache", help="folder of the features")
    options = parser.parse_args()
    with data.one_sentence("studies.unheard"):
        if options.data is not None:
            of_corpus(options.data, options.cache)
        else:
            simulated(options.cache)


if __name__ == "__main__":
    main()
