"""Runs compared: variants over seeds, their differences with intervals (ours; the paper has none).

    python -m studies.compare --experiment NAME ... [--on NAME]    those of studies.experiments
    python -m studies.compare runs/all runs/last    two of one's own: runs/all/0 ... runs/last/4

A variant is a folder whose subfolders are its runs, each named by its seed, or a single run. Where
a run's folder holds runs itself, one a talker, their predictions are joined. Runs of equal names in
two variants make a pair, if they have one corpus and the same test clips. Two tables are printed;
all numbers are in comparison.json, in the folder of the variants, or in runs/experiments/.../
NAME.json.
"""

import argparse
import contextlib
import csv
import io
import json
import math
import os
import zlib
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from scipy.special import ndtr, stdtr, stdtrit

import data
import evaluate
import moemos
from data import InputError
from evaluate import eight, interval, nested, resample
from studies.experiments import EXPERIMENTS, ROOT, SIMULATED, known, worker_pool
from studies.raters import SHOTS, label_noise

MAY_DIFFER = ("seed", "data", "cache", "device")  # between the runs of a variant
COLUMNS = (  # level, metric, and for which systems
    ("utterance", "MSE", "these"), ("utterance", "LCC", "these"), ("system", "MSE", "these"),
    ("system", "LCC", "these"), ("system", "LCC", "others"))


class Run(NamedTuple):
    settings: dict         # what must be the same in all runs of a variant
    corpora: list          # ratings.csv or its folder, of each fold; one where there are none
    results: list          # metrics.json, of each fold
    wav: list              # the rated test clips
    predicted: list
    label_noise: float     # of the test clips, NaN where the ratings do not tell
    adaptation: dict       # adaptation.json, of a run of studies.raters, else None
    within: float          # mean LCC within a system
    numbers: np.ndarray    # the eight
    resampled: np.ndarray  # evaluate.resample()


def read_csv(path):
    """The rows of a table, as dicts."""
    return list(csv.DictReader(io.StringIO(path.read_bytes().decode(), newline="")))


def read_run(folds):
    """A run, or the folds of one, evaluated where it has not been -> Run. Raises InputError."""
    torch.set_num_threads(1)
    settings, corpora, results, rows, clips = {}, [], [], [], []
    for fold in folds:
        corpus, own_settings, result, own_rows, adaptation = read_fold(fold)
        settings = settings or own_settings
        if own_settings != settings:
            raise InputError(f"{fold}: has other settings than {folds[0]}; train it again")
        corpora.append(corpus)
        results.append(result)
        rows += own_rows
        clips += [clip for clip in data.read_manifest(corpora[-1], settings["scale"])
                  if clip.split == "test" and clip.ratings]
    true = np.array([row["mos"] for row in rows], float)
    predicted = np.array([row["predicted"] for row in rows], float)
    system = [row["system"] for row in rows]
    seed = zlib.crc32(folder_of(corpora[0]).name.encode())  # on one corpus all draw the same clips
    return Run(settings, corpora, results, [row["wav"] for row in rows], predicted.tolist(),
               label_noise(clips), adaptation,
               evaluate.lcc_within_systems(predicted, true, system),
               eight(moemos.metrics(predicted, true, system)),
               resample(predicted, true, system, seed))


def read_fold(run):
    """A run's folder -> (its corpus, its settings, metrics.json, the rows of predictions.csv,
    adaptation.json or None). Raises InputError."""
    if not (run / "predictions.csv").exists():
        with contextlib.redirect_stdout(io.StringIO()):
            if evaluate.evaluate(run) is None:
                raise InputError(f"{run}: its corpus has no rated test clips, nothing to compare")
    try:
        checkpoint = torch.load(run / "model.pt", map_location="cpu", weights_only=True)
        result = json.loads((run / "metrics.json").read_bytes())
        rows = read_csv(run / "predictions.csv")
        errors = [float(row["mos"]) - float(row["predicted"]) for row in rows]
        if not abs(np.mean(np.square(errors)) - result["utterance"]["MSE"]) < 1e-9:
            raise ValueError("predictions.csv is not whole")
        adaptation = None
        if (run / "adaptation.json").exists():
            adaptation = json.loads((run / "adaptation.json").read_bytes())
        config = checkpoint["config"]
        settings = {name: value for name, value in config.items() if name not in MAY_DIFFER}
        settings["stages"] = checkpoint["stages"]
    except Exception as error:  # noqa: BLE001 - torch raises nearly anything
        raise InputError(f"{run}: its files are damaged or of another version "
                         f"({data.first_line(error)}); evaluate or train it again") from None
    return Path(config["data"]).resolve(), settings, result, rows, adaptation


def folder_of(corpus):
    return corpus.parent if corpus.is_file() else corpus


# -- Statistics ------------------------------------------------------------------------------------

def student(values):
    """(n, ...) values of n seeds -> (3, ...): mean and its 95 % interval, low and high.

    With n - 1 degrees of freedom; the interval of one value is NaN.
    """
    n = len(values)
    mean = np.mean(values, axis=0)
    half = np.full_like(mean, math.nan)
    if n > 1:
        half = stdtrit(n - 1, 0.975) * np.std(values, axis=0, ddof=1) / math.sqrt(n)
    return np.stack([mean, mean - half, mean + half])


def difference(variant, first):
    """Lists of Runs, the n-th of both a pair -> {"these": ..., "others": ...}, (4, 8) each: mean
    difference of the eight, its 95 % interval's low and high, and p, two-sided, of no difference.

    "these": Student's over the pairs, which says what other seeds and corpora might have shown, and
    so other clips, of these systems. It needs pairs that have corpora of their own; where they have
    one corpus, or there is one pair, it is as "others".

    "others": also what other systems, at system level, might have shown, by the paired bootstrap of
    the mean over the pairs, since all corpora have the same systems: more corpora do not narrow it.
    The two are joined as of joined(). At utterance level it is the bootstrap over clips: where each
    pair has its own, Student's holds that too, and the interval is up to 1.2 times as wide as
    needed with five pairs, and 1.4 times with many.
    """
    pairs = list(zip(variant, first))
    differences = np.array([one.numbers - other.numbers for one, other in pairs])
    resampled = np.mean([one.resampled - other.resampled for one, other in pairs], axis=0)
    mean, low, high = joined(differences, interval(resampled))
    facing_0 = np.where(mean > 0, mean - low, high - mean)  # so p < .05 where 0 is outside
    others = np.stack([mean, low, high, p_value(mean, facing_0 / 1.96, math.inf)])
    these = others
    if corpora_of_their_own(pairs):
        mean, low, high = student(differences)
        error = np.std(differences, axis=0, ddof=1) / math.sqrt(len(pairs))
        these = np.stack([mean, low, high, p_value(mean, error, len(pairs) - 1)])
    return {"these": these, "others": others}


def joined(differences, bounds):
    """(n, ...) differences of n pairs, and low and high of their mean by the bootstrap -> (3, ...):
    mean, low, high. On each side as far from the mean as the root of the sum of the squares of
    Student's distance, of other seeds, and the bootstrap's, of other clips or systems."""
    mean, least, most = student(differences)
    below = np.hypot(mean - bounds[0], np.nan_to_num(mean - least))  # Student's is NaN of one pair
    above = np.hypot(bounds[1] - mean, np.nan_to_num(most - mean))
    return np.stack([mean, mean - below, mean + above])


def corpora_of_their_own(pairs):
    """Whether each of several pairs of Runs has a corpus that no other has."""
    corpora = {folder_of(one.corpora[0]) for one, _ in pairs}
    return len(pairs) > 1 and len(corpora) == len(pairs)


def p_value(mean, error, freedom):
    """Two-sided p of a mean with that standard error, of Student's t or, freedom inf, the normal
    distribution; 1 where nothing differs, or nothing is known. Arrays."""
    t = np.divide(np.abs(mean), error, out=np.zeros_like(mean), where=error > 0)
    t = np.where((error <= 0) & (mean != 0), math.inf, t)
    return 2 * (ndtr(-t) if math.isinf(freedom) else stdtr(freedom, -t))


def holm(p):
    """(m,) p-values -> (m,) adjusted by Holm: all below .05 may be claimed, with a chance of at
    most 5 % that even one of these claims is false. The i-th smallest, from 0, counts m - i times,
    and none less than one before it."""
    p = np.asarray(p, float)
    adjusted = np.empty(len(p))
    least = 0.0
    for i, place in enumerate(np.argsort(p, kind="stable")):
        least = max(least, min(1.0, (len(p) - i) * p[place]))
        adjusted[place] = least
    return adjusted


def decompose(variant, first):
    """The utterance MSE as a sum of three parts, each [mean, low, high] over the pairs of runs.

    Both are the same predictions, rated by the training panel (first) and by others (variant).
    Label noise of the others; what is left of the error by the training panel without its noise,
    the model; what the others add to it, the panel.
    """
    errors = np.array([run.numbers[0] - run.label_noise for run in variant])
    by_training_panel = np.array([run.numbers[0] - run.label_noise for run in first])
    return {"model": student(by_training_panel).tolist(),
            "panel": student(errors - by_training_panel).tolist(),
            "label noise": student([run.label_noise for run in variant]).tolist()}


def summary(runs):
    """Means over a variant's runs, and the deviation of the eight numbers, as a dict."""
    results = [result for run in runs for result in run.results]
    numbers = np.array([run.numbers for run in runs])
    accuracies = [math.nan if result["accuracy"] is None else result["accuracy"]
                  for result in results]
    entropies = [list(result["gate_entropy"].values()) for result in results]
    use = [sorted(result["expert_use"], reverse=True) for result in results]
    return {"runs": len(runs), "mean": nested(numbers.mean(0)),
            "sd": nested(numbers.std(0, ddof=1)) if len(runs) > 1 else None,
            "lcc_within_systems": float(np.mean([run.within for run in runs])),
            "accuracy": float(np.mean(accuracies)),  # NaN where a run has none
            "label_noise": float(np.mean([run.label_noise for run in runs])),
            "gate_entropy": np.mean(entropies, axis=0).tolist(),
            "expert_use": np.mean(use, axis=0).tolist(),
            "adaptation": adaptation_summary([run.adaptation for run in runs])}


def adaptation_summary(adaptations):
    """Of runs of studies.raters: the mean error after each k of SHOTS, and the last less the first
    with its interval, of the MOS and of single ratings; None of others."""
    if not all(adaptations):
        return None
    row = {}
    for what in ("MOS", "rating"):
        errors = np.array([[errors[str(k)][what] for k in SHOTS] for errors in adaptations])
        gained = student(errors[:, -1] - errors[:, 0])
        row[what] = [*errors.mean(0).tolist(), *gained.tolist()]
    return row


# -- Variants and their runs -----------------------------------------------------------------------

def is_run(folder):
    return (folder / "model.pt").is_file()


def run_folders(folder):
    """A variant's folder -> {name of a run: folders of its folds}; of a single run the name is
    empty."""
    if is_run(folder):
        return {"": [folder]}
    runs = {}
    for path in sorted(folder.glob("*")):
        below = sorted(path.iterdir()) if path.is_dir() else []
        folds = [path] if is_run(path) else [fold for fold in below if is_run(fold)]
        if folds:
            runs[path.name] = folds
    return runs


def read_variants(paths):
    """{(name of a variant, name of a run): folders of its folds} -> {variant: {run: Run}}. Raises
    InputError."""
    with worker_pool(len(paths)) as pool:
        read = list(pool.map(read_run, paths.values()))
    variants = {}
    for (name, seed), run in zip(paths, read):
        runs = variants.setdefault(name, {})
        first = next(iter(runs.values()), run)
        differing = [key for key in run.settings if run.settings[key] != first.settings[key]]
        if differing:
            raise InputError(f"{paths[name, seed][0]}: is no seed of {name}, as it differs in "
                             f"{', '.join(differing)}; move it")
        runs[seed] = run
    return variants


def compare(variants, path, against=None):
    """Compares variants, as of read_variants, each with that of `against`, {name: name}, or the
    first; prints two tables, writes the file at path and returns its rows."""
    against = against or {}
    names = list(variants)
    rows = []
    for i, (name, runs) in enumerate(variants.items()):
        rows.append({"variant": f"{i + 1}: {name}", **summary(list(runs.values()))})
        first = against.get(name, names[0])
        if i > 0:
            rows[-1] |= {"first": names.index(first) + 1, **paired(runs, variants[first])}
    show(rows)
    data.write_atomically(path, evaluate.as_json(rows))
    print(f"wrote {path}")
    return rows


def finished_runs(root, name):
    """-> {variant: {name of a run: folders of its folds}} of an experiment, of the runs that were
    evaluated, all folds of them, in all variants; empty without any. A backbone that was not at
    hand, which has none, is left out."""
    folds = max(len(list(root.glob("folds/*"))), 1)
    found = {}
    for variant in EXPERIMENTS[name].variants:
        runs = run_folders(root / variant.name)
        finished = {run: paths for run, paths in runs.items()
                    if sum((path / "metrics.json").is_file() for path in paths) == folds}
        if finished or not variant.name.startswith("backbone="):
            found[variant.name] = finished
    common = sorted(set.intersection(*map(set, found.values())), key=int)
    if not common or len(found) < 2:
        return {}
    return {variant: {run: runs[run] for run in common} for variant, runs in found.items()}


def compare_experiments(names, on=SIMULATED):
    """compare() of each experiment, of its finished runs. Without names: of all that have such.
    Raises InputError."""
    root = Path(ROOT, on)
    chosen = {name: finished_runs(root, name) for name in names or EXPERIMENTS}
    missing = [name for name in names if not chosen[name]]
    if missing:
        raise InputError(f"{root}: no seed is finished in all variants of {missing[0]}; finish "
                         f"python -m studies.experiments {missing[0]}")
    if not any(chosen.values()):
        raise InputError(f"{root} holds no finished experiment; run python -m studies.experiments")
    paths = {}
    for variants in chosen.values():
        for variant, runs in variants.items():
            paths |= {(variant, run): folds for run, folds in runs.items()}
    read = read_variants(paths)
    for name, variants in chosen.items():
        if not variants:
            continue
        print(f"{name}: {EXPERIMENTS[name].question}")
        against = {variant.name: variant.against
                   for variant in EXPERIMENTS[name].variants if variant.against}
        compare({variant: {run: read[variant][run] for run in runs}
                 for variant, runs in variants.items()}, root / f"{name}.json", against)
        print()


def paired(runs, others):
    """Two variants -> the parts of a row that pairs of their runs give; none without a pair."""
    pairs = []
    for name, run in runs.items():
        if name in others and same_clips(run, others[name]):
            pairs.append((run, others[name]))
    if not pairs:
        return {}
    one, other = zip(*pairs)
    found = difference(one, other)
    deviation = np.full(8, math.nan)
    if len(pairs) > 1:
        deviation = np.std([a.numbers - b.numbers for a, b in pairs], axis=0, ddof=1)
    row = {"pairs": len(pairs), "own_corpora": corpora_of_their_own(pairs),
           "sd_of_pairs": nested(deviation),
           "difference": {systems: nested(found[systems].T) for systems in found}}
    if rated_anew(pairs):
        row["parts"] = decompose(one, other)
    return row


def same_clips(one, other):
    folders = [[folder_of(corpus) for corpus in run.corpora] for run in (one, other)]
    return folders[0] == folders[1] and one.wav == other.wav


def rated_anew(pairs):
    """Whether pairs are one model's predictions, the second's rated by the training panel."""
    return all(one.predicted == other.predicted
               and other.corpora[0].name == "ratings_training.csv"
               and math.isfinite(one.label_noise) for one, other in pairs)


def short(number):
    """+.123: three digits, without the zero before the point."""
    return f"{number:+.3f}".replace("0.", ".", 1) if abs(number) < 1 else f"{number:+.3f}"


def cell(row, level, name, systems):
    """A number of a variant that is compared with none, else its difference and interval."""
    if "difference" not in row:
        return short(row["mean"][level][name]).lstrip("+") if systems == "these" else ""
    mean, low, high, _ = row["difference"][systems][level][name]
    return with_interval(mean, low, high)


def with_interval(mean, low, high):
    """+.123 [+.012, +.234]"""
    return f"{short(mean)} [{short(low)}, {short(high)}]"


def heading(level, name, systems):
    return f"{level} {name}" if systems == "these" else "for other systems"


def show(rows):
    """Prints the tables of compare(): the first has a line a variant."""
    print(f"{'':32}" + "".join(f"{heading(*column):21}" for column in COLUMNS).rstrip())
    for row in rows:
        label = row["variant"]
        if "difference" in row:
            label = f"{label:.26} - {row['first']}"
        cells = [f"{cell(row, *column):21}" for column in COLUMNS]
        print((f"{label:32.32}" + "".join(cells)).rstrip())
    print("\n     runs  LCC within  accuracy of  gate entropy, nats  mean gates, most used first, %"
          "\n           a system    second task  clip  model   mean")
    for i, row in enumerate(rows):
        entropies = "".join(f"{entropy:6.2f}" for entropy in row["gate_entropy"])
        use = " ".join(f"{100 * share:.0f}" for share in row["expert_use"])
        print(f"{f'{i + 1}:':4}{row['runs']:5}{row['lcc_within_systems']:12.3f}"
              f"{row['accuracy']:13.3f}{entropies}   {use}")
    print(end="\n" * any("parts" in row for row in rows))
    for i, row in enumerate(rows):
        if "parts" in row:
            model, panel, noise = row["parts"].values()
            error = row["mean"]["utterance"]["MSE"]
            print(f"{i + 1}: utterance MSE {error:.3f} = {model[0]:.3f} model {panel[0]:+.3f} "
                  f"panel [{short(panel[1])}, {short(panel[2])}] {noise[0]:+.3f} label noise")
    if any(row["adaptation"] for row in rows):
        shots = "".join(f"{f'k = {k}':>8}" for k in SHOTS)
        print(f"\n{'after k ratings of each new rater':34}{shots} last less first, from, to")
    for i, row in enumerate(rows):
        if row["adaptation"]:
            print(evaluate.line(f"{i + 1}: utterance MSE", row["adaptation"]["MOS"]))
            print(evaluate.line("   MSE of a single rating", row["adaptation"]["rating"]))


def main():
    parser = argparse.ArgumentParser(allow_abbrev=False, description="Compares runs of train.py.")
    parser.add_argument("variants", nargs="*", help="folders of runs, or runs")
    parser.add_argument("--experiment", nargs="*", metavar="NAME",
                        help="of studies.experiments; none: all that are finished")
    parser.add_argument("--on", default=SIMULATED, metavar="NAME",
                        help="the folder of runs/experiments that its runs are in")
    options = parser.parse_args()
    with data.one_sentence("studies.compare"):
        if options.experiment is not None and not options.variants:
            compare_experiments(known(options.experiment), options.on)
        else:
            compare_folders(options.variants)


def compare_folders(words):
    """compare() of folders, into the one that holds them all."""
    folders = [Path(word) for word in words if not Path(word).is_file()]  # those of a shell's *
    missing = [folder for folder in folders if not folder.is_dir()]
    if missing or not folders:
        what = f"{[*missing, *words][0]}: is no folder" if words else "nothing to compare"
        raise InputError(f"{what}; give folders of runs, or --experiment NAME")
    parents = {folder.resolve().parent for folder in folders}
    common = Path(os.path.relpath(os.path.commonpath(parents)))
    paths = {}
    for folder in folders:
        name = os.path.relpath(folder.resolve(), common.resolve())
        runs = run_folders(folder)
        if not runs:
            raise InputError(f"{folder}: is no run and holds none; train.py writes one")
        paths |= {(name, run): folds for run, folds in runs.items()}
    return compare(read_variants(paths), common / "comparison.json")


if __name__ == "__main__":
    main()
