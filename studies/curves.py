"""Learning curves: what training on k clips a system gives (ours).

    python -m studies.curves

Of each system of ten simulated corpora k rated training clips are kept, drawn anew for each corpus
(all, where it has fewer), and all clips without MOS. Head, ridge and the condition's mean learn
from these and are scored on all test clips. Means over corpora, and Student's 95 % interval of the
head less each of the others, for these systems. Writes runs/curves.json too, which studies.figures
--curves draws.
"""

import argparse
import functools

import numpy as np

import data
import evaluate
from studies.choose import fold_of, prepare
from studies.experiments import followed, worker_pool
from studies.straight_line import (
    by_head,
    by_ridge,
    condition_means,
    correlations,
    load,
    over_corpora,
    report,
)
from studies.unheard import CORPORA, splits_of

K = (2, 5, 10, 20)
PREDICTORS = ("the head", "ridge", "condition's mean")
METRICS = {"utterance LCC": 0, "system LCC": 1}  # place in correlations()
PATH = "runs/curves.json"


def keep(clips, rows, k, seed):
    """(clips,) bool: of rows those without MOS, and k of each system's with one, drawn."""
    rng = np.random.default_rng([seed, 7])
    kept = np.array([not clip.ratings for clip in clips])
    systems = np.array([clip.system for clip in clips])
    for system in np.unique(systems):
        own = np.flatnonzero(rows & ~kept & (systems == system))
        kept[rng.permutation(own)[:k]] = True
    return kept & rows


def one_job(cache, job):
    """(seed of a corpus, k) -> (3, 2): METRICS of each of PREDICTORS."""
    seed, k = job
    corpus = load(prepare(seed), cache)
    training, tested = splits_of(corpus, False)
    rows = keep(corpus.clips, training, k, seed)
    known = [clip for clip, row in zip(corpus.clips, rows) if row and clip.ratings]
    new = [clip for clip, row in zip(corpus.clips, tested) if row]
    fold = fold_of(corpus.clips, evaluate.FOLDS)  # by sentence
    said = [by_head(corpus, rows, tested), by_ridge(corpus, rows, tested, fold),
            condition_means(known, new)]
    places = list(METRICS.values())
    return np.array([correlations(own, new)[places] for own in said])


def curves(cache):
    jobs = [(seed, k) for k in K for seed in CORPORA]
    with worker_pool(len(jobs)) as pool:
        list(pool.map(prepare, CORPORA))
        results = pool.map(functools.partial(one_job, cache), jobs)
        found = np.array(list(followed(results, len(jobs))))
    found = found.reshape(len(K), len(CORPORA), len(PREDICTORS), len(METRICS))
    tables = {}
    for i, metric in enumerate(METRICS):
        own = found[..., i]                                                 # (K, corpora, 3)
        means = {name: over_corpora(own[:, :, j]) for j, name in enumerate(PREDICTORS)}
        differences = {f"head less {name}": over_corpora(own[:, :, 0] - own[:, :, j])
                       for j, name in enumerate(PREDICTORS) if j > 0}
        tables[metric] = {"means": means, "differences": differences}
    report({"columns": [f"k = {k}" for k in K], "tables": tables}, PATH)


def main():
    parser = argparse.ArgumentParser(
        allow_abbrev=False, description="Trains on few clips a system, and on more.")
    parser.add_argument("--cache", default="cache", help="folder of the features")
    options = parser.parse_args()
    with data.one_sentence("studies.curves"):
        curves(options.cache)


if __name__ == "__main__":
    main()
