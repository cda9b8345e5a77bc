"""A synthesiser that training never saw: leave one out (ours). The case that users have.

    python -m studies.unheard                on ten simulated corpora
    python -m studies.unheard --data PATH    on another corpus

Each synthesis model in turn, with all its clips, is left out of the training clips, and its test
clips are predicted; then likewise each system, so that a model may be known at another sampling
rate. The predictions of all that were left out, of one corpus, are scored together. Beside the
head: ridge, with its strength from folds by what is left out; the mean training MOS, which is all
that the condition's mean has to say here; and head, ridge (folds by sentence) and the condition's
mean where nothing was left out. Of another corpus all rated clips are predicted, its split ignored,
with SEEDS seeds; where each system is a model of its own there is one table.
"""

import argparse
import functools
from typing import NamedTuple

import numpy as np
import torch

import data
import evaluate
import moemos
import train
from data import InputError
from studies.choose import fold_of, learn, prepare
from studies.compare import student
from studies.experiments import worker_pool
from studies.straight_line import condition_means, numbers

CORPORA = range(210, 220)  # seeds; no other study but curves uses these
SEEDS = 3                  # of another corpus
COLUMNS = ("utterance LCC", "system LCC", "LCC within a system", "utterance MSE")
ROWS = ("the head", "ridge", "mean of training MOS")
LEFT_OUT = {"model": "synthesis model", "system": "system"}


# -- Head and ridge, of some clips for others ------------------------------------------------------

class Corpus(NamedTuple):
    clips: list             # without those of split dev
    tensors: train.Clips    # of them
    backbone: moemos.Backbone
    classes: list


def load(path, cache):
    torch.set_num_threads(1)
    clips = [clip for clip in data.read_manifest(path) if clip.split != "dev"]
    backbone = data.open_backbone("logmel", "cpu")
    tensors, classes = train.as_tensors(clips, backbone, cache, train.synthesis_model)
    return Corpus(clips, tensors, backbone, classes)


def by_head(corpus, rows, new, seed=0):
    """MOS that the default head, trained on some clips, says of others. rows, new: (clips,) bool.
    """
    config = train.Config(backbone="logmel", seed=seed)
    torch.manual_seed(seed)
    model = train.build_model(config, corpus.backbone, corpus.classes)
    return learn(corpus.tensors, rows, new, model, config)


def by_ridge(corpus, rows, new, fold):
    """The same of evaluate.ridge, which learns from those that have ratings; fold: (clips,) names
    of the folds for its strength."""
    x = corpus.tensors.features.flatten(1).double().numpy()
    mos = corpus.tensors.mos.double().numpy()
    rows = rows & ~np.isnan(mos)
    _, fold = np.unique(fold[rows], return_inverse=True)
    return evaluate.ridge(x[rows], mos[rows], x[new], fold)


# -- Leave one out ---------------------------------------------------------------------------------

def splits_of(corpus, whole):
    """-> (clips,) bool each: those to train on, those to predict. whole: all rated clips are both,
    whatever their split."""
    rated = np.array([bool(clip.ratings) for clip in corpus.clips])
    training = np.array([clip.split == "train" for clip in corpus.clips])
    if whole:
        return training | rated, rated
    return training, ~training & rated


def leave_out(corpus, level, seed, training, tested):
    """Each model, or system, left out in turn -> (3, clips): ROWS, NaN where not tested."""
    groups = np.array([getattr(clip, level) for clip in corpus.clips])
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
    fold = fold_of(corpus.clips, evaluate.FOLDS)
    said[1, tested] = by_ridge(corpus, training, tested, fold)
    said[2, tested] = condition_means(known, new)
    return said


def one_job(cache, job):
    """(path, level or "", seed, whole) -> (3, 4): COLUMNS of each predictor."""
    path, level, seed, whole = job
    corpus = load(path, cache)
    training, tested = splits_of(corpus, whole)
    if level:
        said = leave_out(corpus, level, seed, training, tested)
    else:
        said = nothing_left_out(corpus, seed, training, tested)
    clips = [clip for clip, row in zip(corpus.clips, tested) if row]
    true = [clip.mos for clip in clips]
    found = []
    for own in said[:, tested]:
        utterance, system, _, within = numbers(own, clips)
        found.append((utterance, system, within, moemos.mse(own, true)))
    return np.array(found)


def show(title, found, rows):
    """found: (repeats, 3, 4)."""
    print(f"{title:25}" + "".join(f"{column:24}" for column in COLUMNS).rstrip())
    for name, values in zip(rows, found.mean(0)):
        cells = "".join(f"{value:<24.3f}" if np.isfinite(value) else f"{'-':24}"
                        for value in values)
        print(f"  {name:23}{cells}".rstrip())
    cells = "".join(f"{f'{mean:+.3f} [{low:+.3f}, {high:+.3f}]':24}"
                    for mean, low, high in student(found[:, 0] - found[:, 1]).T)
    print(f"  {'head less ridge, 95 %':23}{cells}".rstrip())


def simulated(cache):
    paths = {seed: f"runs/corpora/{seed}" for seed in CORPORA}
    jobs = [(path, level, 0, False) for level in (*LEFT_OUT, "") for path in paths.values()]
    with worker_pool(len(jobs)) as pool:
        list(pool.map(prepare, CORPORA))
        found = np.array(list(pool.map(functools.partial(one_job, cache), jobs)))
    found = found.reshape(3, len(paths), 3, 4)
    print(f"simulated corpora {CORPORA[0]} to {CORPORA[-1]}, means")
    for (level, name), own in zip(LEFT_OUT.items(), found):
        show(f"{name} left out", own, ROWS)
    show("nothing left out", found[2], (*ROWS[:2], "condition's mean"))


def of_corpus(path, cache):
    corpus = load(path, cache)
    alike = all(clip.model == clip.system for clip in corpus.clips)
    levels = ("system",) if alike else tuple(LEFT_OUT)
    for level in levels:
        if len({getattr(clip, level) for clip in corpus.clips if clip.ratings}) < 3:
            raise InputError(f"{path}: fewer than three of its {LEFT_OUT[level]}s are rated; one "
                             "is predicted from the others, and ridge needs two of those")
    jobs = [(path, level, seed, True) for level in levels for seed in range(SEEDS)]
    with worker_pool(len(jobs)) as pool:
        found = np.array(list(pool.map(functools.partial(one_job, cache), jobs)))
    for level, own in zip(levels, found.reshape(len(levels), SEEDS, 3, 4)):
        print(f"{path}: each {level} predicted from the others, mean of {SEEDS} seeds")
        show(f"{LEFT_OUT[level]} left out", own, ROWS)


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
