"""Runs compared: variants over seeds, their differences with intervals (ours; the paper has none).

    python -m studies.compare runs/experts/*        the variants of an experiment
    python -m studies.compare runs/all runs/last    two of one's own: runs/all/0 ... runs/last/4

A variant is a folder whose subfolders are its runs, each named by its seed, or a single run. Runs
of equal names in two variants make a pair, if they have one corpus and the same test clips. Each
variant is compared with the one that variants.csv names (studies.experiments writes it), else with
the first. Two tables are printed; comparison.json, in the folder of the variants, has all numbers.
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
from scipy.special import stdtrit

import data
import evaluate
import moemos
from data import InputError
from evaluate import eight, interval, nested, resample
from studies.experiments import worker_pool
from studies.raters import SHOTS, label_noise

MAY_DIFFER = ("seed", "data", "cache", "device")  # between the runs of a variant
COLUMNS = (("utterance", "MSE"), ("utterance", "LCC"), ("system", "LCC"), ("system", "SRCC"))


class Run(NamedTuple):
    settings: dict         # what must be the same in all runs of a variant
    corpus: Path           # ratings.csv or its folder
    result: dict           # metrics.json
    wav: list              # the rated test clips
    predicted: list
    label_noise: float     # of the test clips, NaN where the ratings do not tell
    adaptation: dict       # adaptation.json, of a run of studies.raters, else None
    numbers: np.ndarray    # the eight
    resampled: np.ndarray  # evaluate.resample()


def read_csv(path):
    """The rows of a table, as dicts."""
    return list(csv.DictReader(io.StringIO(path.read_bytes().decode(), newline="")))


def read_run(run):
    """A run, evaluated where it has not been -> Run. Raises InputError."""
    torch.set_num_threads(1)
    if not (run / "predictions.csv").exists():
        with contextlib.redirect_stdout(io.StringIO()):
            if evaluate.evaluate(run) is None:
                raise InputError(f"{run}: its corpus has no rated test clips, nothing to compare")
    try:
        checkpoint = torch.load(run / "model.pt", map_location="cpu", weights_only=True)
        result = json.loads((run / "metrics.json").read_bytes())
        rows = read_csv(run / "predictions.csv")
        true = np.array([row["mos"] for row in rows], float)
        predicted = np.array([row["predicted"] for row in rows], float)
        system = [row["system"] for row in rows]
        numbers = eight(moemos.metrics(predicted, true, system))
        if not abs(numbers[0] - result["utterance"]["MSE"]) < 1e-9:
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
    corpus = Path(config["data"]).resolve()
    clips = data.read_manifest(corpus, config["scale"])
    noise = label_noise([clip for clip in clips if clip.split == "test" and clip.ratings])
    folder = corpus.parent if corpus.is_file() else corpus
    seed = zlib.crc32(folder.name.encode())  # all runs on one corpus draw the same clips
    return Run(settings, corpus, result, [row["wav"] for row in rows], predicted.tolist(), noise,
               adaptation, numbers, resample(predicted, true, system, seed))


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
    """Lists of Runs, the n-th of both a pair -> (3, 8): mean difference of the eight, low, high.

    The interval joins two, as the root of the sum of their squares: the paired bootstrap's, of the
    mean over the pairs, which says what other clips, or at system level other systems, might have
    shown, and Student's over the pairs, which says what other seeds and corpora might. Of one pair
    it is the first alone. Where each pair has clips of its own Student's holds those too, and the
    interval is up to 1.2 times as wide as needed with five pairs, and 1.4 times with many.
    """
    pairs = list(zip(variant, first))
    resampled = np.mean([one.resampled - other.resampled for one, other in pairs], axis=0)
    low, high = interval(resampled)
    mean, least, most = student([one.numbers - other.numbers for one, other in pairs])
    below = np.hypot(mean - low, np.nan_to_num(mean - least))  # Student's is NaN of one pair
    above = np.hypot(high - mean, np.nan_to_num(most - mean))
    return np.stack([mean, mean - below, mean + above])


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
    results = [run.result for run in runs]
    numbers = np.array([run.numbers for run in runs])

    def mean(name):  # NaN where a run has none
        return float(np.mean([math.nan if result[name] is None else result[name]
                              for result in results]))

    entropies = [list(result["gate_entropy"].values()) for result in results]
    use = [sorted(result["expert_use"], reverse=True) for result in results]
    return {"runs": len(runs), "mean": nested(numbers.mean(0)),
            "sd": nested(numbers.std(0, ddof=1)) if len(runs) > 1 else None,
            "lcc_within_systems": mean("lcc_within_systems"), "accuracy": mean("accuracy"),
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


def run_folders(folder):
    """A variant's folder -> {name of a run: its folder}; of a single run the name is empty."""
    if (folder / "model.pt").is_file():
        return {"": folder}
    runs = {path.name: path for path in sorted(folder.iterdir()) if (path / "model.pt").is_file()}
    if not runs:
        raise InputError(f"{folder}: is no run and holds none; train.py writes one")
    return runs


def read_variants(folders, common):
    """Folders below common -> {name of a variant: {name of a run: Run}}."""
    paths = {}  # (variant, run) -> folder
    for folder in folders:
        name = os.path.relpath(folder.resolve(), common.resolve())
        paths |= {(name, run): path for run, path in run_folders(folder).items()}
    with worker_pool(len(paths)) as pool:
        read = list(pool.map(read_run, paths.values()))
    variants = {}
    for (name, seed), run in zip(paths, read):
        runs = variants.setdefault(name, {})
        first = next(iter(runs.values()), run)
        differing = [key for key in run.settings if run.settings[key] != first.settings[key]]
        if differing:
            raise InputError(f"{paths[name, seed]}: is no seed of {name}, as it differs in "
                             f"{', '.join(differing)}; move it")
        runs[seed] = run
    return variants


def compare(folders):
    """Compares variants; prints two tables, writes comparison.json and returns its rows.

    Raises InputError for a run that cannot be used, or runs of a variant that differ in more than
    seed and corpus.
    """
    folders = [Path(folder) for folder in folders]
    parents = {folder.resolve().parent for folder in folders}
    common = Path(os.path.relpath(os.path.commonpath(parents)))
    variants = read_variants(folders, common)
    named = {}
    if (common / "variants.csv").exists():
        named = {row["folder"]: row for row in read_csv(common / "variants.csv")}
    names = [named.get(folder, {}).get("variant", folder) for folder in variants]
    rows = []
    for i, (folder, runs) in enumerate(variants.items()):
        rows.append({"variant": f"{i + 1}: {names[i]}", **summary(list(runs.values()))})
        against = named.get(folder, {}).get("against")
        first = names.index(against) if against in names[:i] else 0
        if i > 0:
            others = list(variants.values())[first]
            rows[-1] |= {"first": first + 1, **paired(runs, others)}
    show(rows)
    data.write_atomically(common / "comparison.json", evaluate.as_json(rows))
    print(f"wrote {common}/comparison.json")
    return rows


def paired(runs, others):
    """Two variants -> the parts of a row that pairs of their runs give; none without a pair."""
    pairs = []
    for name, run in runs.items():
        if name in others and same_clips(run, others[name]):
            pairs.append((run, others[name]))
    if not pairs:
        return {}
    one, other = zip(*pairs)
    row = {"pairs": len(pairs), "difference": nested(difference(one, other).T)}
    if rated_anew(pairs):
        row["parts"] = decompose(one, other)
    return row


def same_clips(one, other):
    folders = [run.corpus.parent if run.corpus.is_file() else run.corpus for run in (one, other)]
    return folders[0] == folders[1] and one.wav == other.wav


def rated_anew(pairs):
    """Whether pairs are one model's predictions, the second's rated by the training panel."""
    return all(one.predicted == other.predicted and other.corpus.name == "ratings_training.csv"
               and math.isfinite(one.label_noise) for one, other in pairs)


def short(number):
    """+.123: three digits, without the zero before the point."""
    return f"{number:+.3f}".replace("0.", ".", 1) if abs(number) < 1 else f"{number:+.3f}"


def cell(row, level, name):
    """A number of a variant that is compared with none, else its difference and interval."""
    if "difference" not in row:
        return short(row["mean"][level][name]).lstrip("+")
    mean, low, high = map(short, row["difference"][level][name])
    return f"{mean} [{low}, {high}]"


def show(rows):
    """Prints the tables of compare(): the first has a line a variant."""
    print(f"{'':32}" + "".join(f"{f'{level} {name}':22}" for level, name in COLUMNS).rstrip())
    for row in rows:
        label = row["variant"]
        if "difference" in row:
            label = f"{label:.26} - {row['first']}"
        cells = [f"{cell(row, level, name):22}" for level, name in COLUMNS]
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
    parser.add_argument("variants", nargs="+", help="folders of runs, or runs")
    options = parser.parse_args()
    with data.one_sentence("studies.compare"):
        folders = [path for path in options.variants if not Path(path).is_file()]  # of a shell's *
        missing = [path for path in folders if not Path(path).is_dir()]
        if missing or not folders:
            raise InputError(f"{missing[0] if missing else options.variants[0]}: is no folder")
        compare(folders)


if __name__ == "__main__":
    main()
