"""Does the head beat a straight line on its own features, and the condition's mean (ours)?

    python -m studies.straight_line                on ten simulated corpora, test clips
    python -m studies.straight_line --data PATH    on another corpus, folds by talker

The ten were looked at after all settings were fixed. Ridge has its strength from folds by sentence,
which is better for it than evaluate.py's folds by clip. The folds of --data are of all its rated
clips but those of split dev, its split ignored otherwise; each talker, what stands behind the last
_ of a file's name, is predicted from all, half and a quarter of the others' clips, less a tenth
that is held out as in a run.
Intervals are the paired bootstrap's, over clips and at system level over systems, joined with
Student's over the repeats; so they are for these talkers. Tables go to runs/straight_line/ too, for
studies.figures --curves.
"""

import argparse
import contextlib
import functools
import math
from typing import NamedTuple

import numpy as np
import torch

import data
import evaluate
import moemos
import train
from studies.choose import fold_of, learn, prepare
from studies.compare import joined, student, with_interval
from studies.experiments import followed, group_of, groups_of, name_of, worker_pool

SEEDS = range(200, 210)  # of the corpora; no other study uses these
COLUMNS = ("utterance LCC", "system LCC", "system SRCC", "LCC within a system")
THINNED = (1, 2, 4)      # all, half and a quarter of the training clips
REPEATS = 3              # of each, other seeds and other clips
PREDICTORS = ("the head", "ridge on all statistics", "ridge on the static ones",
              "condition's mean")  # of one_talker


def correlations(predicted, clips):
    """(4,): COLUMNS."""
    true, system = [clip.mos for clip in clips], [clip.system for clip in clips]
    result = moemos.metrics(predicted, true, system)
    return np.array([result["utterance"]["LCC"], result["system"]["LCC"], result["system"]["SRCC"],
                     evaluate.lcc_within_systems(predicted, true, system)])


def condition_means(training, clips):
    """Of each clip the mean MOS of its condition's training clips, or of all."""
    overall = np.mean([clip.mos for clip in training])
    by_system = {}
    for clip in training:
        by_system.setdefault(clip.system, []).append(clip.mos)
    return np.array([np.mean(by_system.get(clip.system, [overall])) for clip in clips])


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


def by_head(corpus, rows, new, seed=0, build=train.build_model):
    """MOS of clips `new`, said by the default head, or build's, trained on clips `rows`: (clips,)
    bool each."""
    config = train.Config(backbone="logmel", seed=seed)
    torch.manual_seed(seed)
    model = build(config, corpus.backbone, corpus.classes)
    return learn(corpus.tensors, rows, new, model, config)


def by_ridge(corpus, rows, new, fold):
    """The same of evaluate.ridge, which learns from those that have ratings; fold: (clips,) names
    of the folds for its strength."""
    x = corpus.tensors.features.flatten(1).double().numpy()
    mos = corpus.tensors.mos.double().numpy()
    rows = rows & ~np.isnan(mos)
    _, fold = np.unique(fold[rows], return_inverse=True)
    return evaluate.ridge(x[rows], mos[rows], x[new], fold)


# -- Ten corpora -----------------------------------------------------------------------------------

def one_corpus(cache, seed):
    """Trains on a simulated corpus -> correlations() of the run, ridge, the condition's mean on the
    test clips, and the least mean gate of an expert."""
    torch.set_num_threads(1)
    corpus = prepare(seed)
    config = train.Config(data=corpus, backbone="logmel", cache=cache,
                          out=f"runs/straight_line/{seed}")
    with contextlib.redirect_stdout(None):
        train.train(config)
    trained = evaluate.load_run(config.out)
    clips = data.read_manifest(corpus)
    test = [clip for clip in clips if clip.split == "test"]
    rated = [clip for clip in clips if clip.split == "train" and clip.ratings]
    learned = [clip for clip in train.split_training(clips, config)[0] if clip.ratings]
    output = evaluate.predict_clips(trained, test)
    x, new = (data.extract_features(some, trained.backbone, cache).flatten(1)
              .double().numpy() for some in (learned, test))
    mos = np.array([clip.mos for clip in learned])
    straight = evaluate.ridge(x, mos, new, fold_of(learned, evaluate.FOLDS))
    rows = [output.mos.tolist(), straight, condition_means(rated, test)]
    return np.array([correlations(row, test) for row in rows]), output.gates.mean(0).min().item()


def ten_corpora(cache):
    with worker_pool(len(SEEDS)) as pool:
        results = pool.map(functools.partial(one_corpus, cache), SEEDS)
        results = list(followed(results, len(SEEDS)))
    rows = np.array([own for own, _ in results])  # (corpora, 3, 4)
    rows[:, 2, 3] = np.nan  # within a condition its mean says nothing
    print("run / ridge / condition's mean")
    print("corpus  " + "".join(f"{column:24}" for column in COLUMNS) + "least gate")
    for seed, own, (_, least) in zip(SEEDS, rows, results):
        print(f"{seed:6}  " + cells(own) + f"{least:.2f}")
    print("  mean  " + cells(rows.mean(0)))
    for other, name in ((1, "ridge"), (2, "the condition's mean")):
        mean, low, high = student(rows[:, 0] - rows[:, other])  # (4,) each
        print(f"less {name}, 95 % over corpora:")
        for column, value, least, most in zip(COLUMNS, mean, low, high):
            if np.isfinite(value):
                print(f"  {column:20} {value:+.4f} [{least:+.4f}, {most:+.4f}]")


def cells(own):
    """own: (3, 4), NaN where there is nothing to say."""
    columns = [" / ".join(f"{value:.3f}" for value in column if np.isfinite(value))
               for column in own.T]
    return "".join(f"{column:24}" for column in columns)


# -- Folds by talker -------------------------------------------------------------------------------

def one_talker(path, cache, talker, thinned, repeat):
    """Predictions of a talker's clips, from a thinned-out part of the others' -> (4, clips): of
    PREDICTORS. The static statistics are the first layer's."""
    corpus = load(path, cache)
    rated = np.array([bool(clip.ratings) for clip in corpus.clips])
    talkers = np.array([group_of(clip) for clip in corpus.clips])
    own = talkers == talker
    order = np.random.default_rng([repeat, 5]).permutation(np.flatnonzero(rated & ~own))
    kept = order[len(order) // 10:]
    rows, new = np.zeros(len(rated), bool), rated & own
    rows[kept[:len(kept) // thinned]] = True
    known, tested = ([clip for clip, row in zip(corpus.clips, some) if row]
                     for some in (rows, new))
    static = corpus._replace(tensors=corpus.tensors._replace(
        features=corpus.tensors.features[:, :1]))
    return np.array([by_head(corpus, rows, new, repeat), by_ridge(corpus, rows, new, talkers),
                     by_ridge(static, rows, new, talkers), condition_means(known, tested)])


def folds_by_talker(corpus, cache):
    clips = [clip for clip in data.read_manifest(corpus) if clip.ratings and clip.split != "dev"]
    talkers = groups_of(clips, corpus)
    tested = [clip for talker in talkers for clip in clips if group_of(clip) == talker]
    jobs = [(talker, thinned, repeat) for thinned in THINNED for repeat in range(REPEATS)
            for talker in talkers]
    with worker_pool(len(jobs)) as pool:
        results = pool.map(functools.partial(one_talker, corpus, cache), *zip(*jobs))
        results = list(followed(results, len(jobs)))
    whole = [np.concatenate(results[i:i + len(talkers)], axis=1)
             for i in range(0, len(results), len(talkers))]
    print(f"{corpus}: {len(tested)} clips, {len(talkers)} folds by talker, mean of {REPEATS}")
    tables = tables_of_talkers(whole, tested)
    report({"columns": ["all", "half", "a quarter"], "tables": tables},
           f"runs/straight_line/on_{name_of(corpus)}.json")


def tables_of_talkers(whole, clips):
    """whole: for each of THINNED, REPEATS times (4, clips) of PREDICTORS -> tables of report()."""
    true, system = [clip.mos for clip in clips], [clip.system for clip in clips]
    shape = (len(THINNED), REPEATS, len(PREDICTORS))
    found = [evaluate.eight(moemos.metrics(row, true, system)) for part in whole for row in part]
    found = np.reshape(found, (*shape, 8))
    drawn = [evaluate.resample(row, true, system) for part in whole for row in part]
    drawn = np.reshape(drawn, (*shape, -1, 8)).mean(1)  # of the mean over the repeats
    tables = {}
    for metric, place in (("utterance LCC", 1), ("system LCC", 5)):
        means, differences = {}, {}
        for j, name in enumerate(PREDICTORS):
            means[name] = no_interval(found[:, :, j, place])
        for j, name in enumerate(PREDICTORS[1:], 1):
            less = found[:, :, 0, place] - found[:, :, j, place]            # (thinned, repeats)
            resampled = drawn[:, 0, :, place] - drawn[:, j, :, place]       # (thinned, R)
            differences[f"head less {name}"] = over_resamples(less, resampled)
        tables[metric] = {"means": means, "differences": differences}
    return tables


# -- Tables of predictors: K columns of mean, low, high --------------------------------------------

def over_corpora(values):
    """(K, corpora) -> (K, 3) with Student's interval."""
    return [student(own).tolist() for own in values]


def over_resamples(less, drawn):
    """(K, repeats) differences, and (K, R) of their mean, resampled -> (K, 3), as of joined()."""
    bounds = [evaluate.interval(own[:, None])[:, 0] for own in drawn]
    return [joined(*own).tolist() for own in zip(less, bounds)]


def no_interval(values):
    """(K, repeats) -> (K, 3) without one."""
    return [[mean, math.nan, math.nan] for mean in values.mean(1)]


def report(result, path):
    """Prints and writes tables. result: {"columns": (K,) str, "tables": {metric: {"means":
    {predictor: (K, 3)}, "differences": {name: (K, 3)}}}}; NaN: none."""
    show(result)
    data.write_atomically(path, evaluate.as_json(result))
    print(f"wrote {path}")


def show(result):
    """Prints tables, as of report() or read back: a line a predictor, and a line a difference."""
    for metric, table in result["tables"].items():
        print(f"{metric:38}" + "".join(f"{name:24}" for name in result["columns"]).rstrip())
        for name, values in table["means"].items():
            show_line(name, [f"{mean:.3f}" for mean, _, _ in np.array(values, float)])
        for name, values in table["differences"].items():
            show_line(name, [with_interval(*own) for own in np.array(values, float)])


def show_line(name, columns):
    columns = ["-" if "nan" in column else column for column in columns]
    print(f"  {name:36}" + "".join(f"{column:24}" for column in columns).rstrip())


def main():
    parser = argparse.ArgumentParser(
        allow_abbrev=False, description="Compares the head with ridge and the condition's mean.")
    parser.add_argument("--data", metavar="PATH", help="on the scale of 1 to 5")
    parser.add_argument("--cache", default="cache", help="folder of the features")
    options = parser.parse_args()
    with data.one_sentence("studies.straight_line"):
        if options.data is not None:
            folds_by_talker(options.data, options.cache)
        else:
            ten_corpora(options.cache)


if __name__ == "__main__":
    main()
