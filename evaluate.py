"""Evaluation: the eight numbers of arXiv 2507.06116 section IV on the test clips of a run's corpus.

    python evaluate.py                 of runs/default
    python evaluate.py runs/mine       of another run
    python evaluate.py runs/experts/*  several runs compared: variants over seeds, differences with intervals
    python evaluate.py --wav a.wav b/  wav,mos lines of one's own clips

Prints them with 95 % bootstrap intervals beside reference rows of the same clips, then the published rows of
the real Track 3, the use of the experts and the classification accuracy. Writes RUN/metrics.json and
RUN/predictions.csv. The intervals, the reference rows and all seeds are ours. Letters: see moemos.py.
"""

import argparse
import contextlib
import csv
import functools
import io
import itertools
import json
import math
import os
import pickle
import sys
import time
import zlib
from collections import defaultdict
from concurrent.futures.process import BrokenProcessPool
from dataclasses import fields
from pathlib import Path
from typing import NamedTuple

import moemos  # first: it says what is wrong where torch and torchaudio are no pair

# isort: split
import numpy as np
import torch
from scipy.special import stdtrit

import data
import train
from moemos import InputError

PUBLISHED = {  # on the real evaluation set: 400 clips, 20 conditions; another corpus, so no comparison clip by clip
    "the paper": {"utterance": (0.277, 0.811, 0.716, 0.529), "system": (0.056, 0.978, 0.913, 0.758)},
    "B03, the organisers' SSL-MOS": {"utterance": (0.273, 0.821, 0.695, 0.508), "system": (0.119, 0.941, 0.749, 0.547)},
    "condition's mean training MOS": {"utterance": (0.222, 0.856, 0.702, 0.520), "system": (0.101, 0.945, 0.748, 0.575)},
}
RESAMPLES = 1000       # these three are ours
SPLITS = 20            # of raters, or clips, into halves
SHOTS = (0, 1, 5, 20)  # ratings of a new rater
COMPARED = ("lcc_within_systems", "accuracy", "label_noise", "gate_entropy", "expert_use", "adaptation")  # of runs, besides the eight


def load_run(run, device):
    """A folder that train.py wrote -> (model in eval mode, backbone, classes, raters, Config). Raises InputError."""
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
        if checkpoint["config"] != train.recorded(config):
            raise ValueError("config.json is of another run")
        classes, raters = checkpoint["classes"], checkpoint.get("raters", [])
        name, identity, layers, width = checkpoint["backbone"].values()
        model = train.build(config, layers, width, classes, raters)
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
    return model.to(device).eval(), backbone, classes, raters, config


@torch.no_grad()
def predict(model, *inputs):
    """(clips, L, 2D), and (clips, 1, P) with prosody -> Output on the CPU. One clip at a time, so that none depends on its company."""
    device = next(model.parameters()).device
    outputs = [model(*(part[None].to(device) for part in clip)) for clip in zip(*inputs)]
    return moemos.Output(*(torch.cat(parts).cpu() for parts in zip(*outputs)))


def resample(predicted, true, system, seed=0):
    """The eight numbers of RESAMPLES bootstrap resamples: {"utterance": {"MSE": (RESAMPLES,), ...}, "system": ...}.

    Clips are resampled at utterance level, the same ones for the same seed, and systems, with their means, at system level, the
    same ones for the same systems, so that differences of two predictors are paired.
    """
    seeds = {"utterance": seed, "system": zlib.crc32(" ".join(sorted(set(map(str, system)))).encode())}
    values = {}
    for level, (p, t) in moemos.levels(predicted, true, system).items():
        draws = np.random.default_rng(seeds[level]).integers(len(p), size=(RESAMPLES, len(p)))
        values[level] = {name: np.array([metric(p[rows], t[rows]) for rows in draws]) for name, metric in moemos.METRICS.items()}
    return values


def interval(values):
    """95 % percentile interval [low, high]; undefined resamples are left out, without any other it is [nan, nan]."""
    return np.nanquantile(values, (0.025, 0.975)).tolist() if np.isfinite(values).any() else [math.nan] * 2


def bootstrap(predicted, true, system, seed=0):
    """95 % intervals of the eight numbers: {"utterance": {"MSE": [low, high], ...}, "system": ...}."""
    return {level: {name: interval(values) for name, values in numbers.items()}
            for level, numbers in resample(predicted, true, system, seed).items()}


def rating_matrix(clips):
    """-> (sorted raters, (R, clips) of their ratings, NaN where a rater has none)."""
    raters = sorted({rater for clip in clips for rater in clip.ratings})
    return raters, np.array([[clip.ratings.get(rater, math.nan) for clip in clips] for rater in raters])


def half_against_half(clips, seed=0):
    """The eight numbers of one half of the raters as predictor of the other: the noise of the labels.

    Mean over SPLITS random splits, of the clips rated by both halves; None where no rater shares clips with another.
    """
    raters, ratings = rating_matrix(clips)
    rng, system, results = np.random.default_rng(seed), np.array([clip.system for clip in clips]), []
    for _ in range(SPLITS):
        half = np.isin(np.arange(len(raters)), rng.permutation(len(raters))[:len(raters) // 2])
        both = ~np.isnan(ratings[half]).all(0) & ~np.isnan(ratings[~half]).all(0)
        if both.any():
            results.append(moemos.metrics(*(np.nanmean(ratings[side][:, both], axis=0) for side in (half, ~half)), system[both]))
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


def label_noise(clips):
    """Variance of a clip's MOS that other ratings by the same raters would show, mean over clips; None where it is not to be told.

    From the residuals of the additive model rating = clip + rater, each clip's variance over its number of ratings. Raters' gains
    count as noise in it: in the simulation it comes out 3 % high.
    """
    raters, ratings = rating_matrix(clips)
    residuals = ratings - np.nanmean(ratings, axis=0)
    residuals -= np.nanmean(residuals, axis=1, keepdims=True)
    number = (~np.isnan(ratings)).sum(0)                        # (clips,)
    free = number.sum() - len(clips) - len(raters) + 1
    return float(np.nansum(residuals ** 2) / free * np.mean(1 / number)) if free > 0 else None


def rater_table(clips):
    """Rows (split, rater, ratings, their mean, their variance) of every rater."""
    rows = []
    for split in ("train", "test"):
        for rater, own in zip(*rating_matrix([clip for clip in clips if clip.split == split])):
            own = own[~np.isnan(own)]
            rows.append((split, rater, len(own), float(own.mean()), float(own.var())))
    return rows


def adaptation(raters, predicted, clips, seed=0):
    """Utterance MSE once each new rater has given k ratings: {k: {"MOS": of clips, "rating": of single ratings}}; mean over SPLITS.

    A half of the clips, drawn anew in each split, is scored after calibration on the other, each rater on k clips of his own (all
    that he has, where fewer), and the other way round. A rater's bias and gain are the posterior mean given the k ratings (ridge
    regression): beforehand as spread as those of the training raters, a moemos.Raters, and with its noise. A clip's MOS is the mean
    of what its raters would give.
    """
    bias, gain = (part.detach().cpu().numpy() for part in raters.bias_and_gain())
    precision, noise = np.diag(1 / np.maximum([bias.var(), gain.var()], 1e-6)), raters.noise.item()
    predicted, mos = np.asarray(predicted), np.array([clip.mos for clip in clips])
    rng, errors = np.random.default_rng(seed), defaultdict(list)
    x = np.stack([np.ones(len(clips)), predicted - raters.middle], axis=1)                   # (clips, 2): a gain turns about the middle
    _, ratings = rating_matrix(clips)
    for _ in range(SPLITS):
        half = rng.permutation(len(clips)) < len(clips) // 2                                 # (clips,)
        said = {k: np.full(ratings.shape, math.nan) for k in SHOTS}
        for scored, (r, own) in itertools.product((half, ~half), enumerate(ratings)):
            rated = ~np.isnan(own)
            pool = rng.permutation(np.flatnonzero(~scored & rated))
            for k in SHOTS:
                known = pool[:k]
                coefficients = np.linalg.solve(x[known].T @ x[known] / noise + precision, x[known].T @ (own - predicted)[known] / noise)
                said[k][r, scored & rated] = (predicted + x @ coefficients)[scored & rated]
        for k in SHOTS:
            errors[k, "MOS"].append(np.mean((np.nanmean(said[k], axis=0) - mos) ** 2))
            errors[k, "rating"].append(np.nanmean((said[k] - ratings) ** 2))
    return {k: {what: float(np.mean(errors[k, what])) for what in ("MOS", "rating")} for k in SHOTS}


def evaluate(run, device="", corpus="", figures=False):
    """Evaluates a run on the test clips of its corpus, or of another (then into RUN/on_<its name>); prints and writes
    everything, figures too if wanted, and returns the dict of metrics.json.

    Clips without ratings are predicted and written to answer.txt, in the challenge's form; with no others that is
    all, and None is returned. Raises InputError for whatever cannot be used, a backbone other than the run's among it.
    """
    model, backbone, classes, raters, config = load_run(run, moemos.pick_device(device))
    corpus, out = str(corpus or config.data), Path(run)
    if corpus != config.data:
        out = out / f"on_{Path(corpus).resolve().name}"  # the run's own results stay
    clips = data.read_corpus(corpus, scale=config.scale, max_seconds=config.max_seconds)
    training, test = ([clip for clip in clips if clip.split == split] for split in ("train", "test"))
    if not test:
        raise InputError(f"{corpus} has no test clips")
    test.sort(key=lambda clip: not clip.ratings)  # rated ones first, else in their order
    output = predict(model, *(data.extract_features(test, extractor, config.cache) for extractor in train.extractors(backbone, config)))
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
    label = train.LABELS[config.auxiliary]
    hits = [classes[logits.argmax()] == label(clip) for logits, clip in zip(output.logits, test) if label(clip) in classes]
    models = np.array([clip.model for clip in test])
    gates = {name: output.gates[:len(test)][models == name] for name in np.unique(models).tolist()}
    per_clip, over_all = moemos.gate_entropies(output.gates[:len(test)])
    per_model = sum(len(part) / len(test) * moemos.gate_entropies(part)[1] for part in gates.values())
    result = {**eight, "interval_95": intervals, "lcc_within_systems": lcc_within_systems(predicted, true, system),
              "reference": reference_rows(training, test),
              "accuracy": float(np.mean(hits)) if hits and train.has_second_task(config) else None,
              "undefined": {level: moemos.undefined(*pair) for level, pair in moemos.levels(predicted, true, system).items()},
              "experts": {model: part.mean(0).tolist() for model, part in gates.items()},
              "expert_use": output.gates[:len(test)].mean(0).tolist(),
              "gate_entropy": {"clip": per_clip.item(), "model": per_model.item(), "all": over_all.item()},
              "label_noise": label_noise(test),
              "adaptation": adaptation(model.raters, predicted, test) if raters and len(test) > 1 else None,
              "backbone": {"name": backbone.name, "identity": backbone.identity, "precision": backbone.precision},
              "data": corpus, "scale": config.scale, "clips": len(test), "systems": len(set(system)), "seed": config.seed}
    rows = [(clip.wav, clip.system, clip.model, *values) for clip, *values in zip(test, true, predicted)]
    data.write_csv(out / "predictions.csv", [("wav", "system", "model", "mos", "predicted"), *rows])
    data.write_csv(out / "raters.csv", [("split", "rater", "ratings", "mean", "variance"), *rater_table(training + test)])
    data.write_atomically(out / "metrics.json", plain_json(result))
    show(run, result, rater_table(training + test))
    if figures:
        plot(run, out)
    return result


def plain_json(value):
    """As bytes; numbers that are not finite are null."""
    return (json.dumps(json.loads(json.dumps(value), parse_constant=lambda _: None), indent=2) + "\n").encode()


def score(run, paths, device=""):
    """Yields (path, MOS) of every WAV file among paths, files or folders: `dict(score("runs/default", ["a.wav"]))["a.wav"]`.

    A clip's number is the same alone, in any company and on every call. A file that cannot be used is reported on
    standard error and has NaN. Raises InputError, at once, for a run that cannot be used or a folder without a WAV file.
    """
    model, backbone, _, _, config = load_run(run, moemos.pick_device(device))
    extractors, files = train.extractors(backbone, config), data.find_wavs(paths)

    def scores():
        seconds, start = 0.0, time.monotonic()
        for i, path in enumerate(files):
            try:
                seconds += data.check_clip(path, config.max_seconds)[1]
                waveform = data.read_wav(path)
                inputs = [data.statistics_of(waveform, extractor, path)[None] for extractor in extractors]
                yield str(path), predict(model, *inputs).mos.item()
            except InputError as error:
                print(f"skipped: {error}", file=sys.stderr)
                yield str(path), float("nan")
            data.show_progress("scored", i + 1, len(files), seconds, start)

    return scores()


def print_scores(scores):
    """wav,mos lines of what score() yields; returns whether a file was skipped."""
    sys.stdout.reconfigure(encoding="utf-8", errors="surrogateescape")  # names of files may be anything
    table, skipped = csv.writer(sys.stdout, lineterminator="\n"), False
    table.writerow(["wav", "mos"])
    for path, mos in scores:
        if math.isnan(mos):
            skipped = True
        else:
            table.writerow([path, f"{mos:.4f}"])
    return skipped


@torch.no_grad()
def explain(run, path, device=""):
    """Prints every tensor on the way from one WAV file to its MOS, and each term of its loss where the run's corpus has the clip.

    Raises InputError for a run or a file that cannot be used.
    """
    model, backbone, classes, raters, config = load_run(run, moemos.pick_device(device))
    waveform = data.read_wav(path)
    frames = backbone.extract(waveform)
    inputs = [data.statistics_of(waveform, extractor, path)[None].to(backbone.device) for extractor in train.extractors(backbone, config)]
    output = model(*inputs)
    print(f"{path} by {run}, backbone {backbone.name}\n{'what':26}{'letters':11}{'shape':16}first values")
    for name, letters, tensor in (
            ("waveform", "(T,)", waveform), ("layers of the backbone", "(L, F, D)", frames),
            ("mean, deviation over F", "(L, 2D)", inputs[0][0]),
            ("fusion's layer weights", "(L,)", model.fusion.weights()), ("fused features", "(B, 2D)", model.fusion(inputs[0])),
            *([("prosody, standardised", "(B, P)", model.prosody(inputs[1]))] if model.prosody else []),
            ("gates g", "(B, E)", output.gates), ("experts E_1 ... E_N", "(B, E, H)", output.experts),
            ("y = sum g_i E_i", "(B, H)", output.y),
            ("MOS", "(B,)", output.mos), ("logits of the classes", "(B, C)", output.logits)):
        values = " ".join(f"{value:8.4f}" for value in tensor.flatten()[:4].tolist()) + " ..." * (tensor.numel() > 4)
        print(f"{name:26}{letters:11}{tuple(tensor.shape)!s:16}{values}")
    probabilities = sorted(zip(output.logits[0].softmax(0).tolist(), classes), reverse=True)
    print("class probabilities: " + ", ".join(f"{name:.18} {p:.2f}" for p, name in probabilities[:4]))
    try:
        clip = next((clip for clip in data.read_manifest(config.data, config.scale) if clip.path.resolve() == Path(path).resolve()), None)
    except InputError:
        print(f"no loss: the run's corpus {config.data} is not there")
        return
    if clip and clip.ratings:
        clip.rate = data.check_clip(path, config.max_seconds)[0]
        label, stage = train.LABELS[config.auxiliary](clip), train.stages_of(config)[-1]
        ratings = torch.tensor([[clip.ratings.get(rater, math.nan) for rater in raters]] if raters else [clip.mos], device=backbone.device)
        terms = train.weighted_losses(config, stage.alpha_end, output, ratings,
                                      torch.tensor([classes.index(label) if label in classes else -1], device=backbone.device), model.unit)
        unknown = ", by none of the training raters" * bool(ratings.isnan().all())
        print(f"rated MOS {clip.mos:.2f}{unknown}, class {label}; a batch of it alone has at the end of stage {stage.name}:\n"
              + ", ".join(f"{name} {term.item():.4f}" for name, term in terms.items()))


HEADING = f"{'':34}---------- utterance ---------- ----------- system -----------\n{'':34}" + "     MSE     LCC    SRCC    KTAU" * 2


def line(label, numbers):
    """A row below HEADING."""
    return f"{label:34}" + "".join(f" {number:7.3f}" for number in numbers)


def eight(numbers):
    """{"utterance": {"MSE": ..., ...}, "system": ...} -> the eight in HEADING's order."""
    return [numbers[level][name] for level in ("utterance", "system") for name in moemos.METRICS]


def show(run, result, raters):
    """Prints what evaluate() found; raters: rows of rater_table."""
    print("\nuse of the experts (mean gate, %): who serves whom")
    for model, gates in result["experts"].items():
        print(f"  {model:24}" + "".join(f"{100 * gate:6.1f}" for gate in gates))
    if result["accuracy"] is not None:
        print(f"classification accuracy {result['accuracy']:.3f}")
    for split in ("train", "test"):
        _, names, _, *numbers = zip(*own) if (own := [row for row in raters if row[0] == split]) else ((), (), ())
        if 1 < len(names) <= 10:
            print(f"\n{f'raters of {split} clips':20}" + "".join(f"{name:>7.6}" for name in names))
            for what, values in zip(("mean", "variance"), numbers):
                print(f"  {what:18}" + "".join(f"{value:7.2f}" for value in values))
        elif names:
            means, variances = (f"{min(values):.2f} to {max(values):.2f}" for values in numbers)
            print(f"{len(names)} raters of {split} clips: means {means}, variances {variances}; each is in raters.csv")
    if result["scale"] == (1.0, 5.0):
        print(f"\nthe real Track 3, published: other clips, not to be compared with the rows below\n{HEADING}")
        for label, levels in PUBLISHED.items():
            print(line(label, levels["utterance"] + levels["system"]))
    name = result["backbone"]["name"]
    print(f"\n{run} on {result['data']}: {result['clips']} test clips, {result['systems']} systems; {name}"
          + (", a STAND-IN, not the paper's wav2vec2" if name == "logmel" else "") + f"\n{HEADING}")
    for label, numbers in result["reference"].items():
        print(line(label, eight(numbers)) if numbers else f"{label:37}no two raters share clips")
    print(line("this run", eight(result)))
    for side, label in enumerate(("  95 % interval from", "  to")):
        print(line(label, [bounds[side] for bounds in eight(result["interval_95"])]))
    print(f"mean LCC within a system: {result['lcc_within_systems']:.3f}")
    for level, why in result["undefined"].items():
        if why:
            print(f"LCC, SRCC and KTAU are undefined (nan) at {level} level: {why}")


# ---------------------------------------------------------------------------------------------------------
# Comparison of runs: variants over seeds

def read_csv(path):
    """The rows of a table that write_csv wrote, as dicts."""
    return list(csv.DictReader(io.StringIO(path.read_bytes().decode(), newline="")))


class Run(NamedTuple):
    config: dict
    result: dict            # of metrics.json
    wav: list               # the rated test clips, as in predictions.csv
    numbers: dict           # the eight
    resampled: dict         # resample()


def read_run(run, device=""):
    """A run, evaluated where it has not been -> Run. Raises InputError."""
    torch.set_num_threads(1)
    run = Path(run)
    if not ((run / "metrics.json").exists() and (run / "predictions.csv").exists()):
        with contextlib.redirect_stdout(io.StringIO()):
            if evaluate(run, device) is None:
                raise InputError(f"{run}: its corpus has no test clips with ratings, so there is nothing to compare")
    try:
        config, result = (json.loads((run / name).read_bytes()) for name in ("config.json", "metrics.json"))
        rows = read_csv(run / "predictions.csv")
        wav, system = ([row[column] for row in rows] for column in ("wav", "system"))
        true, predicted = (np.array([row[column] for row in rows], float) for column in ("mos", "predicted"))
        if len(wav) != result["clips"]:
            raise ValueError("predictions.csv is not whole")
        seed = zlib.crc32(corpus_and_panel(config)[0].name.encode())  # all runs on one corpus draw the same clips
        return Run({setting.name: config[setting.name] for setting in fields(train.Config)}, {name: result[name] for name in COMPARED},
                   wav, moemos.metrics(predicted, true, system), resample(predicted, true, system, seed))
    except (OSError, ValueError, KeyError, TypeError, csv.Error) as error:
        raise InputError(f"{run}: its files are damaged or of another version ({moemos.first_line(error)}); delete its metrics.json, "
                         "or train it again") from None


def corpus_and_panel(config):
    """A simulated corpus's ratings_<panel>.csv -> (its folder, the panel); any other data -> (itself, "")."""
    path = Path(config["data"])
    return (path.parent, path.stem.removeprefix("ratings_")) if path.stem.startswith("ratings_") else (path, "")


def student(values):
    """Mean of values of several seeds and its 95 % interval: (mean, low, high), NaN for one value."""
    mean, n = float(np.mean(values)), len(values)
    half = float(stdtrit(n - 1, 0.975) * np.std(values, ddof=1) / math.sqrt(n)) if n > 1 else math.nan
    return mean, mean - half, mean + half


def difference(variant, first):
    """Two lists of Runs, the n-th of both on the same clips -> {"utterance": {"MSE": (mean difference, low, high), ...}, "system": ...}.

    The interval joins two: the paired bootstrap's of the mean over the pairs, which says what other clips of these systems, or
    other systems, might have shown, and Student's over the pairs, which says what other seeds and corpora might.
    """
    result = {}
    for level in ("utterance", "system"):
        result[level] = {}
        for name in moemos.METRICS:
            resampled = [one.resampled[level][name] - other.resampled[level][name] for one, other in zip(variant, first)]
            low, high = interval(np.mean(resampled, axis=0))         # over (RESAMPLES,), each the mean of the pairs
            mean, least, most = student([one.numbers[level][name] - other.numbers[level][name] for one, other in zip(variant, first)])
            result[level][name] = mean, np.fmin(low, least).item(), np.fmax(high, most).item()
    return result


def decompose(variant, first):
    """The utterance MSE as a sum of three parts, each (mean, low, high) over the pairs of runs: label noise; what is left of it against
    the training panel's ratings, those of `first` ("model"); and what the variant's ratings of the same clips add ("panel")."""
    def error(run):
        return run.numbers["utterance"]["MSE"] - run.result["label_noise"]

    return {"model": student([error(other) for other in first]),
            "panel": student([error(one) - error(other) for one, other in zip(variant, first)]),
            "label noise": student([one.result["label_noise"] for one in variant])}


def compare(runs, device="", figures=False):
    """Compares variants: runs of one folder whose settings differ by seed and corpus alone. Prints each one's mean and deviation and how
    it differs from the first that has one setting other, or from the first; writes comparison.json into the folder that they share.

    Returns its rows. Raises InputError for a run that cannot be used.
    """
    runs = list(dict.fromkeys(map(Path, runs)))
    for run in runs:
        if not (run / "model.pt").is_file():
            raise InputError(f"{run}: is no folder of a run; compare folders that train.py wrote")
    with train.worker_pool(len(runs)) as pool:
        read = list(pool.map(functools.partial(read_run, device=device), runs))
    variants = defaultdict(dict)  # settings -> (seed, corpus) -> Run
    for path, run in zip(runs, read):
        corpus, panel = corpus_and_panel(run.config)
        corpus = corpus.resolve()
        settings = {name: value for name, value in run.config.items() if name not in ("seed", "out", "cache", "device", "data")}
        settings |= {"ratings": panel, "folder": str(path.parent), "run": ""}
        if (run.config["seed"], corpus) in variants[json.dumps(settings)]:  # the same settings, so the code was another
            settings["run"] = path.name
        variants[json.dumps(settings)][run.config["seed"], corpus] = run
    variants = [(json.loads(settings), members) for settings, members in variants.items() if members]
    rows = []
    print(HEADING)
    for i, (own, members) in enumerate(variants):
        j = next((j for j in range(i) if sum(own[name] != variants[j][0][name] for name in own) == 1), 0)
        reference, first = variants[j]
        shared = [key for key in members if i and key in first and members[key].wav == first[key].wav]
        others = [settings for settings, _ in (variants[:1] if i else variants[1:])]
        differing = [f"{name} {value}" for name, value in own.items() if any(value != other[name] for other in others) and value != ""]
        rows.append(summary(f"{i + 1}: {', '.join(differing) or own['backbone']}", list(members.values())))
        if shared:
            pairs = [members[key] for key in shared], [first[key] for key in shared]
            rows[-1] |= {"first": j + 1, "pairs": len(shared), "difference": difference(*pairs)}
            if reference | {"ratings": own["ratings"]} == own and reference["ratings"] == "training" and not math.isnan(rows[-1]["label_noise"]):
                rows[-1]["parts"] = decompose(*pairs)
        show_row(rows[-1])
    print("\nlower, higher: the interval of the difference does not hold zero; none: it does, no difference shown")
    folder = Path(os.path.commonpath([run.resolve().parent for run in runs]))
    folder = Path(os.path.relpath(folder)) if folder.is_relative_to(Path.cwd()) else folder
    data.write_atomically(folder / "comparison.json", plain_json(rows))
    print(f"wrote {folder}/comparison.json")
    if figures:
        plot_comparison(rows, folder / "comparison.png")
    return rows


def summary(label, runs):
    """Means over a variant's runs, and the deviation of the eight numbers, as a dict."""
    def mean(*path):
        """Of a number in metrics.json, NaN where a run has none."""
        values = [functools.reduce(lambda part, key: part[key], path, run.result) for run in runs]
        return math.nan if None in values else float(np.mean(values))

    def after_ratings(what):
        """{k: mean error, "gain": (the last k's less the first's, low, high)}"""
        errors = np.array([[run.result["adaptation"][str(k)][what] for k in SHOTS] for run in runs])
        return dict(zip(map(str, SHOTS), errors.mean(0).tolist())) | {"gain": student(errors[:, -1] - errors[:, 0])}

    values, all_adapt = np.array([eight(run.numbers) for run in runs]), all(run.result["adaptation"] for run in runs)
    return {"variant": label, "runs": len(runs), "mean": nested(values.mean(0)),
            "sd": nested(values.std(0, ddof=1)) if len(runs) > 1 else None,
            "lcc_within_systems": mean("lcc_within_systems"), "accuracy": mean("accuracy"), "label_noise": mean("label_noise"),
            "gate_entropy": {which: mean("gate_entropy", which) for which in ("clip", "model", "all")},
            "expert_use": np.mean([sorted(run.result["expert_use"], reverse=True) for run in runs], 0).tolist(),
            "adaptation": {what: after_ratings(what) for what in ("MOS", "rating")} if all_adapt else None}


def nested(values):
    """Eight values -> {"utterance": {"MSE": ..., ...}, "system": ...}, what eight() undoes."""
    values = iter(np.asarray(values).tolist())
    return {level: {name: next(values) for name in moemos.METRICS} for level in ("utterance", "system")}


def show_row(row):
    """Prints a variant's part of the table of compare()."""
    print(f"\n{row['variant']}: {row['runs']} run{'s' * (row['runs'] > 1)}\n{line('  mean', eight(row['mean']))}")
    if row["sd"]:
        print(line("  sd over runs", eight(row["sd"])))
    if "difference" in row:
        numbers = eight(row["difference"])
        shown = ["higher" if low > 0 else "lower" if high < 0 else "none" if low <= 0 <= high else "nan" for _, low, high in numbers]
        pairs = f", {row['pairs']} pairs" * (row["pairs"] < row["runs"])
        for side, name in enumerate((f"  difference from {row['first']}{pairs}", "  95 % interval from", "  to")):
            print(line(name, [number[side] for number in numbers]))
        print("  no difference shown" if set(shown) == {"none"} else f"{'  difference shown':34}" + "".join(f"{word:>8}" for word in shown))
    elif not row["variant"].startswith("1:"):
        print("  shares no clips and seed with the first variant")
    print(f"  system LCC less utterance LCC {row['mean']['system']['LCC'] - row['mean']['utterance']['LCC']:.3f}; "
          f"LCC within systems {row['lcc_within_systems']:.3f}"
          + ("" if math.isnan(row["accuracy"]) else f"; accuracy of the second task {row['accuracy']:.3f}"))
    entropy = row["gate_entropy"]
    print(f"  gate entropies: clip {entropy['clip']:.2f}, model's mean {entropy['model']:.2f}, mean {entropy['all']:.2f}; experts, most used first "
          + " ".join(f"{100 * share:.0f}" for share in row["expert_use"]) + " %")
    mse = row["mean"]["utterance"]["MSE"]
    if "parts" in row:
        model, (panel, low, high), noise = row["parts"].values()
        print(f"  utterance MSE {mse:.3f} = {model[0]:.3f} model + {panel:.3f} panel (from {low:.3f} to {high:.3f}) "
              f"+ {noise[0]:.3f} label noise")
    elif not math.isnan(row["label_noise"]):
        print(f"  utterance MSE {mse:.3f} = {mse - row['label_noise']:.3f} + {row['label_noise']:.3f} label noise")
    if row["adaptation"]:
        print("  after k ratings of each new rater" + "".join(f"{f'k = {k}':>8}" for k in SHOTS) + " last less first, from, to")
        for what, name in (("MOS", "  utterance MSE"), ("rating", "  MSE of a single rating")):
            *errors, gain = row["adaptation"][what].values()
            print(line(name, [*errors, *gain]))


# ---------------------------------------------------------------------------------------------------------
# Figures, of the numbers in a run's files; matplotlib is no requirement

# Okabe and Ito's colours, which the colour-blind tell apart; the n-th model has the n-th, and a marker of its own
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#999999")
MARKERS = "osD^vPX*"


def figure(columns, rows=1, width=4.5, height=4.0):
    """(a matplotlib Figure, its axes as a flat list). Raises InputError where matplotlib is missing."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise InputError("--plot needs matplotlib, which is no requirement of this project: pip install matplotlib") from None
    drawing = Figure(figsize=(width * columns, height * rows), layout="constrained")
    return drawing, drawing.subplots(rows, columns, squeeze=False).ravel().tolist()


def label(name):
    """A name as matplotlib shows it: short, without formulas, and not hidden."""
    return " " * name.startswith("_") + f"{name:.20}".replace("$", r"\$")


def save(drawing, path):
    """Writes a figure as PNG."""
    content = io.BytesIO()
    drawing.savefig(content, dpi=150)
    data.write_atomically(path, content.getvalue())
    print(f"wrote {path}")


def plot(run, out):
    """predictions.png, experts.png, training.png and raters.png of a run, evaluated into the folder out, into that folder."""
    run, out = Path(run), Path(out)
    result = json.loads((out / "metrics.json").read_bytes())
    predictions, log, raters = map(read_csv, (out / "predictions.csv", run / "log.csv", out / "raters.csv"))
    drawing, axes = figure(2, width=5.5, height=5.2)
    for axis, level, size in zip(axes, ("utterance", "system"), (4, 7)):
        for i, model in enumerate(sorted({row["model"] for row in predictions})):
            groups = defaultdict(list)  # a system's points at system level, one point each at utterance level
            for j, row in enumerate(row for row in predictions if row["model"] == model):
                groups[j if level == "utterance" else row["system"]].append((float(row["mos"]), float(row["predicted"])))
            points = np.array([[student(values) for values in zip(*group)] for group in groups.values()])  # (points, 2, mean low high)
            x_error, y_error = (points[:, :, 0] - points[:, :, 1]).T if level == "system" else (None, None)
            axis.errorbar(*points[:, :, 0].T, y_error, x_error, color=COLOURS[i % 8], marker=MARKERS[(i + i // 8) % 8], markersize=size,
                          linestyle="none", elinewidth=0.8, alpha=0.8, label=label(model))
        axis.axline((result["scale"][0],) * 2, slope=1, color="0.6", linewidth=0.8)
        lcc, (low, high) = result[level]["LCC"], result["interval_95"][level]["LCC"]
        axis.set(xlabel="rated MOS", ylabel="predicted MOS", xlim=result["scale"], aspect="equal", adjustable="datalim",
                 title=f"{level} level: LCC " + ("undefined" if None in (lcc, low) else f"{lcc:.3f}, 95 % from {low:.3f} to {high:.3f}"))
    drawing.legend(*axes[1].get_legend_handles_labels(), loc="outside right upper", fontsize="small",
                   title="synthesis model;\nbars: 95 % of\nthe mean")
    save(drawing, out / "predictions.png")

    gates = np.array(list(result["experts"].values()))
    drawing, (axis,) = figure(1, width=2.5 + 0.8 * gates.shape[1], height=1.5 + 0.4 * len(gates))
    image = axis.imshow(100 * gates, cmap="cividis", vmin=0, vmax=100, aspect="auto")
    axis.set(xticks=range(gates.shape[1]), xticklabels=range(1, gates.shape[1] + 1), xlabel="expert", title="use of the experts",
             yticks=range(len(gates)), yticklabels=map(label, result["experts"]), ylabel="synthesis model")
    for (y, x), gate in np.ndenumerate(gates):
        axis.text(x, y, f"{100 * gate:.0f}", ha="center", va="center", color="black" if gate > 0.5 else "white")
    drawing.colorbar(image, label="mean gate, %")
    save(drawing, out / "experts.png")

    drawing, axes = figure(1, 3, width=9, height=2.8)
    gates = {name: f"expert {name[5:]}" for name in log[0] if name.startswith("gate_") and name != "gate_entropy"}
    panels = (("loss terms", {"mos": "MOS", "classification": "classification", "diversity": "diversity", "sparsity": "sparsity"}, 1),
              ("held-out clips", {"val_mse": "MSE", "val_lcc": "LCC", "val_accuracy": "accuracy"}, 1), ("mean gate, %", gates, 100))
    for axis, (title, columns, times) in zip(axes, panels):
        for i, (column, name) in enumerate(columns.items()):
            axis.plot(range(1, len(log) + 1), [times * float(row[column]) for row in log], color=COLOURS[i % 8],
                      linestyle=("-", "--", ":", "-.")[i // 2 % 4], label=name)
        for epoch, row in enumerate(log, 1):
            if row["epoch"] == "1":
                axis.axvline(epoch, color="0.7", linewidth=0.8)
                axis.annotate(row["stage"] if axis is axes[0] else "", (epoch, 1.02), xycoords=("data", "axes fraction"))
        axis.set(ylabel=title)
        axis.legend(fontsize="small", loc="center left", bbox_to_anchor=(1, 0.5))
    axes[-1].set_xlabel("epoch")
    save(drawing, out / "training.png")

    drawing, (axis,) = figure(1, width=9)
    for i, split in enumerate(("train", "test")):
        rows = [(j, float(row["mean"]), math.sqrt(float(row["variance"]))) for j, row in enumerate(raters) if row["split"] == split]
        if rows:
            place, mean, spread = np.array(rows).T
            axis.errorbar(place, mean, spread, color=COLOURS[i], marker=MARKERS[i], linestyle="none", capsize=3,
                          label=f"{split} clips: mean and standard deviation of a rater's ratings")
            axis.hlines(mean.mean(), place[0] - 0.5, place[-1] + 0.5, color=COLOURS[i], linestyle=":", linewidth=1)
    few = len(raters) <= 40
    axis.set(xlabel="rater; dotted: mean of the panel's raters", ylabel="rating",
             xticks=range(len(raters)) if few else [], xticklabels=[label(row["rater"]) for row in raters] if few else [])
    axis.legend(fontsize="small", loc="lower center", bbox_to_anchor=(0.5, 1))
    save(drawing, out / "raters.png")


def plot_comparison(rows, path):
    """comparison.png: of what compare() returns, each variant's difference from the first, with its interval, in all eight numbers."""
    variants = [row for row in rows if "difference" in row]
    if not variants:
        print("no two variants share clips: no figure")
        return
    drawing, axes = figure(4, 2, width=3.4, height=1.4 + 0.35 * len(variants))
    for axis, (level, name) in zip(axes, ((level, name) for level in ("utterance", "system") for name in moemos.METRICS)):
        numbers = np.array([row["difference"][level][name] for row in variants], float)
        axis.errorbar(numbers[:, 0], range(len(variants)), xerr=np.abs(numbers[:, 1:] - numbers[:, :1]).T, color=COLOURS[0],
                      marker="o", linestyle="none", capsize=3)
        axis.axvline(0, color="0.6", linewidth=0.8)
        axis.set(title=f"{level} {name}", ylim=(len(variants) - 0.5, -0.5), yticks=range(len(variants)),
                 yticklabels=[f"{row['variant']} [{row['first']}]".replace("$", r"\$") for row in variants] if name == "MSE" else [])
    drawing.suptitle("difference from the variant whose number is in brackets, with 95 % intervals")
    save(drawing, path)


def main():
    parser = argparse.ArgumentParser(allow_abbrev=False, description="Evaluates runs of train.py: eight numbers, intervals, references.")
    parser.add_argument("run", nargs="*", default=["runs/default"], help="folder of the run (default: runs/default); several are compared")
    parser.add_argument("--data", default="", help="another corpus than the run's, in any form that train.py reads")
    parser.add_argument("--wav", nargs="+", metavar="PATH", help="score these files, and all in these folders: wav,mos lines in CSV")
    parser.add_argument("--explain", metavar="WAV", help="print every tensor between this file and its MOS")
    parser.add_argument("--plot", action="store_true", help="write figures of a run, or of several compared, too (needs matplotlib)")
    parser.add_argument("--device", default="", help="cpu, cuda, ...; not given: the accelerator if there is one")
    arguments, skipped = parser.parse_args(), False
    try:
        run, *others = [run for run in arguments.run if not Path(run).is_file()] or arguments.run[:1]  # not runs/experts/comparison.json
        if sum(map(bool, (others, arguments.wav, arguments.explain, arguments.data))) > 1 or (arguments.wav or arguments.explain) and arguments.plot:
            raise InputError("only one of several runs, --data, --wav and --explain can be had at once, and --plot not with the last two")
        if arguments.plot:
            figure(1)  # before any work
        if others:
            compare([run, *others], arguments.device, arguments.plot)
        elif arguments.explain:
            explain(run, arguments.explain, arguments.device)
        elif arguments.wav:
            skipped = print_scores(score(run, arguments.wav, arguments.device))
        else:
            evaluate(run, arguments.device, arguments.data, arguments.plot)
        sys.stdout.flush()
    except BrokenPipeError:  # the reader, head for one, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except InputError as error:
        parser.exit(2, f"evaluate.py: {error}\n")
    except (BrokenProcessPool, KeyboardInterrupt):
        parser.exit(1, "evaluate.py: interrupted; start again\n")
    sys.exit(skipped)


if __name__ == "__main__":
    main()
