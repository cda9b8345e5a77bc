"""Evaluation: the eight numbers of arXiv 2507.06116 section IV on the test clips of a run's corpus.

    python evaluate.py                 of runs/default
    python evaluate.py runs/mine       of another run
    python evaluate.py --wav a.wav b/  wav,mos lines of one's own clips

Prints them with 95 % bootstrap intervals beside reference rows of the same clips, then the published rows of
the real Track 3, the use of the experts and the classification accuracy. Writes RUN/metrics.json and
RUN/predictions.csv. The intervals, the reference rows and all seeds are ours. Letters: see moemos.py.
"""

import argparse
import csv
import json
import math
import os
import pickle
import sys
import time
from dataclasses import fields
from pathlib import Path

import moemos  # first: it says what is wrong where torch and torchaudio are no pair

# isort: split
import numpy as np
import torch

import data
import train
from moemos import InputError

PUBLISHED = {  # on the real evaluation set: 400 clips, 20 conditions; another corpus, so no comparison clip by clip
    "the paper": {"utterance": (0.277, 0.811, 0.716, 0.529), "system": (0.056, 0.978, 0.913, 0.758)},
    "B03, the organisers' SSL-MOS": {"utterance": (0.273, 0.821, 0.695, 0.508), "system": (0.119, 0.941, 0.749, 0.547)},
    "condition's mean training MOS": {"utterance": (0.222, 0.856, 0.702, 0.520), "system": (0.101, 0.945, 0.748, 0.575)},
}
RESAMPLES = 1000
SPLITS = 20  # of the raters into halves


def load_run(run, device):
    """A folder that train.py wrote -> (model in eval mode, backbone, classes, Config). Raises InputError."""
    run = Path(run)
    try:
        settings = json.loads((run / "config.json").read_bytes())
        if settings.keys() != {setting.name for setting in fields(train.Config)}:
            raise ValueError("its settings are not those of this train.py")
        config = train.Config(**settings | {"scale": tuple(settings["scale"])})
        train.check(config)
    except Exception as error:
        raise InputError(f"{run}/config.json is missing, damaged or of another version ({moemos.first_line(error)}); "
                         "train the run again, or restore it from a copy") from error
    try:
        checkpoint = torch.load(run / "model.pt", map_location=device, weights_only=True)  # tensors and plain values only
        if any(settings[key] != (list(value) if key == "scale" else value) for key, value in checkpoint["config"].items()):
            raise ValueError("config.json is of another run")
        classes, (name, identity, layers, width) = checkpoint["classes"], checkpoint["backbone"].values()
        model = moemos.MoEMOS(layers, width, len(classes), config.experts, config.hidden, scale=config.scale)
        model.load_state_dict(checkpoint["weights"])
        if not all(tensor.isfinite().all() for tensor in checkpoint["weights"].values()):
            raise ValueError("a weight is not finite")
    except Exception as error:
        why = "more than tensors and plain values" if isinstance(error, pickle.UnpicklingError) else moemos.first_line(error)
        raise InputError(f"{run}/model.pt is missing, damaged or of another run ({why}); "
                         "train the run again, or restore it from a copy") from error
    backbone = moemos.load_backbone(name, device, config.precision)
    if backbone.identity != identity:
        raise InputError(f"{run} was trained on a {name} with other weights than the one here; train it again")
    return model.to(device).eval(), backbone, classes, config


@torch.no_grad()
def predict(model, features):
    """(clips, L, 2D) -> Output on the CPU. One clip at a time, so that no clip's number depends on its company."""
    device = next(model.parameters()).device
    outputs = [model(clip[None].to(device)) for clip in features]
    return moemos.Output(*(torch.cat(parts).cpu() for parts in zip(*outputs)))


def bootstrap(predicted, true, system, seed=0):
    """95 % percentile intervals of the eight numbers: {"utterance": {"MSE": [low, high], ...}, "system": ...}.

    Clips are resampled at utterance level and systems, with their means, at system level; resamples in
    which a metric is undefined are left out, and an interval without any resample is [nan, nan].
    """
    rng = np.random.default_rng(seed)
    intervals = {}
    for level, (p, t) in moemos.levels(predicted, true, system).items():
        draws = rng.integers(len(p), size=(RESAMPLES, len(p)))
        intervals[level] = {}
        for name, metric in moemos.METRICS.items():
            values = [metric(p[rows], t[rows]) for rows in draws]
            intervals[level][name] = np.nanquantile(values, (0.025, 0.975)).tolist() if np.isfinite(values).any() else [float("nan")] * 2
    return intervals


def half_against_half(clips, seed=0):
    """The eight numbers of one half of the raters as predictor of the other: the noise of the labels.

    Mean over SPLITS random splits, of the clips rated by both halves; None where no rater shares clips with another.
    """
    raters = sorted({rater for clip in clips for rater in clip.ratings})
    rng, results = np.random.default_rng(seed), []
    for _ in range(SPLITS):
        half = set(rng.permutation(raters)[:len(raters) // 2].tolist())
        sides = [([score for rater, score in clip.ratings.items() if rater in half],
                  [score for rater, score in clip.ratings.items() if rater not in half], clip.system) for clip in clips]
        sides = [(np.mean(one), np.mean(other), system) for one, other, system in sides if one and other]
        if sides:
            results.append(moemos.metrics(*zip(*sides)))
    return {level: {name: float(np.mean([result[level][name] for result in results])) for name in moemos.METRICS}
            for level in ("utterance", "system")} if results else None


def reference_rows(training, test):
    """Predictors of the test clips that hear nothing: label -> the eight numbers, or None where not to be had."""
    true, system = [clip.mos for clip in test], [clip.system for clip in test]
    if not training:
        return {"half of the raters, by the others": half_against_half(test)}
    overall = float(np.mean([clip.mos for clip in training]))
    by_system = {name: np.mean([clip.mos for clip in training if clip.system == name]) for name in {clip.system for clip in training}}
    return {
        "mean of training MOS": moemos.metrics([overall] * len(test), true, system),
        "condition's mean training MOS": moemos.metrics([by_system.get(name, overall) for name in system], true, system),
        "half of the raters, by the others": half_against_half(test),
    }


def lcc_within_systems(predicted, true, system):
    """Mean of the LCCs inside each system, NaN where none is defined: does it hear more than which system it is?"""
    predicted, true, system = np.asarray(predicted), np.asarray(true), np.asarray(system)
    values = [moemos.lcc(predicted[system == name], true[system == name]) for name in np.unique(system)]
    return float(np.nanmean(values)) if np.isfinite(values).any() else float("nan")


def evaluate(run, device="", corpus=""):
    """Evaluates a run on the test clips of its corpus, or of another (then into RUN/on_<its name>); prints and writes
    everything, returns the dict of metrics.json.

    Clips without ratings are predicted and written to answer.txt, in the challenge's form; with no others that is
    all, and None is returned. Raises InputError for whatever cannot be used, a backbone other than the run's among it.
    """
    model, backbone, classes, config = load_run(run, moemos.pick_device(device))
    corpus, out = str(corpus or config.data), Path(run)
    if corpus != config.data:
        out = out / f"on_{Path(corpus).resolve().name}"  # the run's own results stay
    clips = data.read_corpus(corpus, scale=config.scale, max_seconds=config.max_seconds)
    training, test = ([clip for clip in clips if clip.split == split] for split in ("train", "test"))
    if not test:
        raise InputError(f"{corpus} has no test clips")
    test.sort(key=lambda clip: not clip.ratings)  # rated ones first, else in their order
    output = predict(model, data.extract_features(test, backbone, config.cache))
    unrated = [(Path(clip.wav).stem, mos) for clip, mos in zip(test, output.mos.tolist()) if not clip.ratings]
    if unrated:
        data.write_csv(out / "answer.txt", unrated)
        print(f"{len(unrated)} test clips without ratings: predicted in {out}/answer.txt, not scored")
    test = [clip for clip in test if clip.ratings]
    if not test:
        return None

    training = [clip for clip in training if clip.ratings]
    predicted, true, system = output.mos[:len(test)].tolist(), [clip.mos for clip in test], [clip.system for clip in test]
    eight, intervals = moemos.metrics(predicted, true, system), bootstrap(predicted, true, system)
    hits = [classes[logits.argmax()] == clip.model for logits, clip in zip(output.logits, test) if clip.model in classes]
    result = {**eight, "interval_95": intervals, "lcc_within_systems": lcc_within_systems(predicted, true, system),
              "reference": reference_rows(training, test),
              "accuracy": float(np.mean(hits)) if hits and config.auxiliary == "model" else None,
              "undefined": {level: moemos.undefined(*pair) for level, pair in moemos.levels(predicted, true, system).items()},
              "experts": {model: output.gates[[i for i, clip in enumerate(test) if clip.model == model]].mean(0).tolist()
                          for model in sorted({clip.model for clip in test})},
              "backbone": {"name": backbone.name, "identity": backbone.identity, "precision": backbone.precision},
              "data": corpus, "scale": config.scale, "clips": len(test), "systems": len(set(system)), "seed": config.seed}
    rows = [(clip.wav, clip.system, clip.model, *values) for clip, *values in zip(test, true, predicted)]
    data.write_csv(out / "predictions.csv", [("wav", "system", "model", "mos", "predicted"), *rows])
    plain = json.loads(json.dumps(result), parse_constant=lambda _: None)  # undefined numbers are null
    data.write_atomically(out / "metrics.json", (json.dumps(plain, indent=2) + "\n").encode())
    show(run, result)
    return result


def score(run, paths, device=""):
    """Yields (path, MOS) of every WAV file among paths, files or folders: `dict(score("runs/default", ["a.wav"]))["a.wav"]`.

    A clip's number is the same alone, in any company and on every call. A file that cannot be used is reported on
    standard error and has NaN. Raises InputError, at once, for a run that cannot be used or a folder without a WAV file.
    """
    model, backbone, _, config = load_run(run, moemos.pick_device(device))
    files = data.find_wavs(paths)

    def scores():
        seconds, start = 0.0, time.monotonic()
        for i, path in enumerate(files):
            try:
                seconds += data.check_clip(path, config.max_seconds)
                statistics = data.statistics_of(data.read_wav(path), backbone, path)
                yield str(path), predict(model, statistics[None]).mos.item()
            except InputError as error:
                print(f"skipped: {error}", file=sys.stderr)
                yield str(path), float("nan")
            data.show_progress("scored", i + 1, len(files), seconds, start)

    return scores()


def show(run, result):
    def line(label, numbers):
        return f"{label:34}" + ("".join(f" {number:7.3f}" for number in numbers) if numbers else "   no two raters share clips")

    def eight(numbers):
        return numbers and [numbers[level][name] for level in ("utterance", "system") for name in moemos.METRICS]

    print("\nuse of the experts (mean gate, %): who serves whom")
    for model, gates in result["experts"].items():
        print(f"  {model:24}" + "".join(f"{100 * gate:6.1f}" for gate in gates))
    if result["accuracy"] is not None:
        print(f"classification accuracy {result['accuracy']:.3f}")
    heading = f"{'':34}---------- utterance ---------- ----------- system -----------\n{'':34}" + "     MSE     LCC    SRCC    KTAU" * 2
    if result["scale"] == (1.0, 5.0):
        print(f"\nthe real Track 3, published: other clips, not to be compared with the rows below\n{heading}")
        for label, levels in PUBLISHED.items():
            print(line(label, levels["utterance"] + levels["system"]))
    name = result["backbone"]["name"]
    print(f"\n{run} on {result['data']}: {result['clips']} test clips, {result['systems']} systems, backbone {name}"
          + (" - a STAND-IN, not the paper's wav2vec2" if name == "logmel" else "") + f"\n{heading}")
    for label, numbers in result["reference"].items():
        print(line(label, eight(numbers)))
    print(line("this run", eight(result)))
    for side, label in enumerate(("  95 % interval from", "  to")):
        print(line(label, [interval[side] for interval in eight(result["interval_95"])]))
    print(f"mean LCC within a system: {result['lcc_within_systems']:.3f}")
    for level, why in result["undefined"].items():
        if why:
            print(f"LCC, SRCC and KTAU are undefined (nan) at {level} level: {why}")


def main():
    parser = argparse.ArgumentParser(allow_abbrev=False, description="Evaluates a run of train.py: the eight numbers, with intervals and references.")
    parser.add_argument("run", nargs="?", default="runs/default", help="folder of the run (default: %(default)s)")
    parser.add_argument("--data", default="", help="another corpus than the run's, in any form that train.py reads")
    parser.add_argument("--wav", nargs="+", metavar="PATH", help="score these files, and all in these folders: wav,mos lines in CSV")
    parser.add_argument("--device", default="", help="cpu, cuda, ...; not given: the accelerator if there is one")
    arguments = parser.parse_args()
    try:
        if not arguments.wav:
            evaluate(arguments.run, arguments.device, arguments.data)
            return
        sys.stdout.reconfigure(encoding="utf-8", errors="surrogateescape")  # names of files may be anything
        table, skipped = csv.writer(sys.stdout, lineterminator="\n"), False
        scores = score(arguments.run, arguments.wav, arguments.device)
        table.writerow(["wav", "mos"])
        for path, mos in scores:
            if math.isnan(mos):
                skipped = True
            else:
                table.writerow([path, f"{mos:.4f}"])
        sys.stdout.flush()
    except BrokenPipeError:  # the reader, head for one, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except InputError as error:
        parser.exit(2, f"evaluate.py: {error}\n")
    sys.exit(skipped)


if __name__ == "__main__":
    main()
