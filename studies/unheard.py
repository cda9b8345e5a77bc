"""A synthesiser that training never saw: leave one out (ours). The case that users have.

    python -m studies.unheard                on ten simulated corpora
    python -m studies.unheard --data PATH    on another corpus

Each method in turn, with and without super-resolution (SR), is left out of the training clips, and
its test clips are predicted; then likewise each synthesis model, whose sound the model with or
without SR may have taught; then each system, whose model may be known at another sampling rate. The
predictions of all that were left out, of one corpus, are scored together, so each has an intercept
of its own, and their LCC is lower than within one model's. Beside the head: ridge, with its
strength from folds by what is left out; the mean training MOS, which is all that the condition's
mean has to say here; and head, ridge (folds by sentence) and the condition's mean where nothing was
left out. Intervals are Student's over corpora, which all have the same methods.

Of another corpus all rated clips but those of split dev are predicted, its split ignored otherwise;
numbers are means of SEEDS seeds, and the interval is the paired bootstrap's: other clips, or at
system level other systems.
"""

import argparse
import functools

import numpy as np

import data
import evaluate
from data import InputError
from studies.choose import fold_of, numbers, prepare
from studies.compare import student, with_interval
from studies.experiments import worker_pool
from studies.straight_line import by_head, by_ridge, condition_means, load

CORPORA = range(210, 220)  # seeds; no other study but curves uses these
SEEDS = 3                  # of another corpus
COLUMNS = ("utterance MSE", "utterance LCC", "LCC within a system", "system LCC")  # of numbers()
ROWS = ("the head", "ridge", "mean of training MOS")
LEFT_OUT = {  # what: the group of a clip
    "method": lambda clip: clip.model.removesuffix("SR"),
    "synthesis model": lambda clip: clip.model,
    "system": lambda clip: clip.system,
}
PLACES = ((0, 0), (1, 1), (3, 5))  # of a column, and of the same among the eight numbers


# -- Leave one out ---------------------------------------------------------------------------------

def splits_of(corpus, whole):
    """-> (clips,) bool each: those to train on, those to predict. whole: all rated clips are both,
    whatever their split."""
    rated = np.array([bool(clip.ratings) for clip in corpus.clips])
    training = np.array([clip.split == "train" for clip in corpus.clips])
    if whole:
        return training | rated, rated
    return training, ~training & rated


def leave_out(corpus, what, seed, training, tested):
    """Each group of LEFT_OUT in turn -> (3, clips): ROWS, NaN where not tested."""
    groups = np.array([LEFT_OUT[what](clip) for clip in corpus.clips])
    mos = corpus.tensors.mos.double().numpy()
    said = np.full((3, len(groups)), np.nan)
    for name in np.unique(groups[tested]):
        rows, new = training & (groups != name), tested & (groups == name)
        said[0, new] = by_head(corpus, rows, new, seed)
        said[1, new] = by_ridge(corpus, rows, new, groups)
        said[2, new] = np.nanmean(mos[rows])
    return said


def nothing_left_out(corpus, seed, training, tested):
    """The same of all training clips: head, ridge, the condition's mean."""
    known = [clip for clip, row in zip(corpus.clips, training) if row and clip.ratings]
    new = [clip for clip, row in zip(corpus.clips, tested) if row]
    said = np.full((3, len(corpus.clips)), np.nan)
    said[0, tested] = by_head(corpus, training, tested, seed)
    said[1, tested] = by_ridge(corpus, training, tested, fold_of(corpus.clips, evaluate.FOLDS))
    said[2, tested] = condition_means(known, new)
    return said


def one_job(cache, job):
    """(path, what is left out or "", seed, whole) -> (3, 4) COLUMNS of each predictor; and where
    whole, (RESAMPLES, 8) of the eight numbers of head less ridge, else None."""
    path, what, seed, whole = job
    corpus = load(path, cache)
    training, tested = splits_of(corpus, whole)
    if what:
        said = leave_out(corpus, what, seed, training, tested)[:, tested]
    else:
        said = nothing_left_out(corpus, seed, training, tested)[:, tested]
    clips = [clip for clip, row in zip(corpus.clips, tested) if row]
    found = np.array([numbers(own, clips) for own in said])
    if what:
        found[2, 1:] = np.nan  # of a constant a group, which is lower where the group is better
    if not whole:
        return found, None
    true, system = [clip.mos for clip in clips], [clip.system for clip in clips]
    head, ridge = (evaluate.resample(own, true, system) for own in said[:2])
    return found, head - ridge


# -- Tables ----------------------------------------------------------------------------------------

def show(title, found, rows, bounds):
    """found: (repeats, 3, 4). bounds: (2, 4), of the mean of head less ridge."""
    print(f"{title + ' left out':26}" + "".join(f"{column:24}" for column in COLUMNS).rstrip())
    for name, values in zip(rows, found.mean(0)):
        cells = [f"{value:<24.3f}" if np.isfinite(value) else f"{'-':24}" for value in values]
        print(f"  {name:24}{''.join(cells)}".rstrip())
    less = (found[:, 0] - found[:, 1]).mean(0)
    cells = [with_interval(*values) if np.isfinite(values).all() else "-"
             for values in zip(less, *bounds)]
    cells = "".join(f"{cell:24}" for cell in cells)
    print(f"  {'head less ridge, 95 %':24}{cells}".rstrip())


def simulated(cache):
    paths = [f"runs/corpora/{seed}" for seed in CORPORA]
    jobs = [(path, what, 0, False) for what in (*LEFT_OUT, "") for path in paths]
    with worker_pool(len(jobs)) as pool:
        list(pool.map(prepare, CORPORA))
        found = np.array([own for own, _ in pool.map(functools.partial(one_job, cache), jobs)])
    found = found.reshape(len(LEFT_OUT) + 1, len(paths), 3, 4)
    print(f"simulated corpora {CORPORA[0]} to {CORPORA[-1]}, means")
    for what, own in zip((*LEFT_OUT, ""), found):
        _, low, high = student(own[:, 0] - own[:, 1])
        rows = ROWS if what else (*ROWS[:2], "condition's mean")
        show(what or "nothing", own, rows, (low, high))


def of_corpus(path, cache):
    rated = [clip for clip in data.read_manifest(path) if clip.ratings and clip.split != "dev"]
    levels = {}  # groups: what, without what has the groups of another
    for what, group in LEFT_OUT.items():
        _, groups = np.unique([group(clip) for clip in rated], return_inverse=True)
        levels[tuple(groups.tolist())] = what
    for groups, what in levels.items():
        if len(set(groups)) < 3:
            raise InputError(f"{path}: fewer than three of a {what} are rated; one is predicted "
                             "from the others, and ridge needs two of those")
    jobs = [(path, what, seed, True) for what in levels.values() for seed in range(SEEDS)]
    with worker_pool(len(jobs)) as pool:
        found = list(pool.map(functools.partial(one_job, cache), jobs))
    print(f"{path}: each predicted from the others, means of {SEEDS} seeds")
    for i, what in enumerate(levels.values()):
        own, resampled = zip(*found[i * SEEDS:(i + 1) * SEEDS])
        bounds = np.full((2, 4), np.nan)  # none of LCC within a system
        for column, place in PLACES:
            bounds[:, column] = evaluate.interval(np.mean(resampled, axis=0))[:, place]
        show(what, np.array(own), ROWS, bounds)


def main():
    parser = argparse.ArgumentParser(
        allow_abbrev=False, description="Predicts synthesisers that training never saw.")
    parser.add_argument("--data", default="", metavar="PATH", help="on the scale of 1 to 5")
    parser.add_argument("--cache", default="cache", help="folder of the features")
    options = parser.parse_args()
    with data.one_sentence("studies.unheard"):
        if options.data:
            of_corpus(options.data, options.cache)
        else:
            simulated(options.cache)


if __name__ == "__main__":
    main()
