"""Evaluation: the eight numbers of arXiv 2507.06116 section IV on the test clips of a run's corpus.

    python evaluate.py                 of runs/default
    python evaluate.py runs/mine       of another run
    python evaluate.py runs/experts/*  several runs compared: variants over seeds, differences with intervals
    python evaluate.py --wav a.wav b/  wav,mos lines of one's own clips

Prints the use of the experts, the classification accuracy, the raters, the published rows of the real Track 3,
and last reference rows of the same clips beside the run's eight numbers with 95 % bootstrap intervals. Writes
RUN/metrics.json, RUN/predictions.csv and RUN/raters.csv. The intervals, the reference rows and all seeds are ours.
Letters: see moemos.py.
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
import re
import sys
import time
import zlib
from collections import defaultdict
from dataclasses import fields
from pathlib import Path
from typing import NamedTuple

import moemos  # first: it says what is wrong where torch and torchaudio are no pair

# isort: split
import numpy as np
import torch
from scipy.sparse.csgraph import connected_components
from scipy.special import stdtrit

import data
import train
from moemos import InputError

PUBLISHED = {  # on the real evaluation set: 400 clips, 20 conditions; another corpus, so no comparison clip by clip
    "the paper": (0.277, 0.811, 0.716, 0.529, 0.056, 0.978, 0.913, 0.758),
    "B03, the organisers' SSL-MOS": (0.273, 0.821, 0.695, 0.508, 0.119, 0.941, 0.749, 0.547),
    "condition's mean training MOS": (0.222, 0.856, 0.702, 0.520, 0.101, 0.945, 0.748, 0.575),
}
RESAMPLES = 1000       # these three are ours
SPLITS = 20            # of raters, or clips, into halves
SHOTS = (0, 1, 5, 20)  # ratings of a new rater
MAY_DIFFER = {"seed", "data", "out", "cache", "device"}  # settings that may differ between the runs of a variant


# ---------------------------------------------------------------------------------------------------------
# A run and its predictions

class Trained(NamedTuple):
    model: moemos.MoEMOS  # in eval mode
    extractors: list      # the backbone, and prosody where it is used
    classes: list
    raters: list
    config: train.Config


def load_run(run, device=""):
    """A folder that train.py wrote -> Trained. Raises InputError."""
    device = moemos.pick_device(device)
    remedy = "train the run again, or restore it from a copy"
    try:
        settings = json.loads(Path(run, "config.json").read_bytes())
        if settings.keys() != {setting.name for setting in fields(train.Config)}:
            raise ValueError("its settings are not those of this train.py")
        config = train.Config(**settings | {"scale": tuple(settings["scale"])})
        train.check(config)
    except Exception as error:
        why = moemos.first_line(error)
        raise InputError(f"{run}/config.json is missing, damaged or of another version ({why}); {remedy}") from error
    try:
        checkpoint = torch.load(Path(run, "model.pt"), map_location="cpu", weights_only=True)  # tensors and plain values only
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
        raise InputError(f"{run}/model.pt is missing, damaged or of another run ({why}); {remedy}") from error
    backbone = moemos.load_backbone(name, device, config.precision)
    if backbone.identity != identity:
        raise InputError(f"{run} was trained on a {name} with other weights than the one here; train it again")
    return Trained(model.to(device).eval(), train.extractors(backbone, config), classes, raters, config)


@torch.no_grad()
def predict(model, *inputs):
    """(clips, L, 2D), and (clips, 1, P) with prosody -> Output on the CPU. One clip at a time: none depends on its company."""
    device = next(model.parameters()).device
    outputs = [model(*(part[None].to(device) for part in clip)) for clip in zip(*inputs)]
    return moemos.Output(*(torch.cat(parts).cpu() for parts in zip(*outputs)))


def read_inputs(path, trained):
    """A WAV file, read once -> its rate, its seconds, (T,), the model's inputs [(1, L, 2D), with prosody (1, 1, P)].

    Raises InputError.
    """
    content = data.read_bytes(path)
    rate, seconds = data.check_clip(path, trained.config.max_seconds, content)
    waveform = data.read_wav(path, content)
    return rate, seconds, waveform, [data.statistics_of(waveform, extractor, path)[None] for extractor in trained.extractors]


def score(run, paths, device=""):
    """Yields (path, MOS) of every WAV file among paths, files or folders: `dict(score("runs/default", ["a.wav"]))["a.wav"]`.

    A clip's number is the same alone, in any company and on every call. A file that cannot be used is reported on
    standard error and has NaN. Raises InputError, at once, for a run that cannot be used or a folder without a WAV file.
    """
    trained, files = load_run(run, device), data.find_wavs(paths)

    def scores():
        seconds, start = 0.0, time.monotonic()
        for i, path in enumerate(files):
            try:
                _, more, _, inputs = read_inputs(path, trained)
                seconds += more
                yield str(path), predict(trained.model, *inputs).mos.item()
            except InputError as error:
                print(f"skipped: {error}", file=sys.stderr)
                yield str(path), math.nan
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
    trained = load_run(run, device)
    model, (backbone, *_), classes, raters, config = trained
    rate, _, waveform, inputs = read_inputs(path, trained)
    inputs = [part.to(backbone.device) for part in inputs]
    output = model(*inputs)
    print(f"{path} by {run}, backbone {backbone.name}\n{'what':26}{'letters':11}{'shape':16}first values")
    for name, letters, tensor in (
            ("waveform", "(T,)", waveform), ("layers of the backbone", "(L, F, D)", backbone.extract(waveform)),
            ("mean, deviation over F", "(L, 2D)", inputs[0][0]),
            ("fusion's layer weights", "(L,)", model.fusion.weights()), ("fused features", "(B, 2D)", model.fusion(inputs[0])),
            *([("prosody, standardised", "(B, 1, P)", model.prosody(inputs[1]))] if model.prosody else []),
            ("gates g", "(B, E)", output.gates), ("experts E_1 ... E_N", "(B, E, H)", output.experts),
            ("y = sum g_i E_i", "(B, H)", output.y),
            ("MOS", "(B,)", output.mos), ("logits of the classes", "(B, C)", output.logits)):
        values = " ".join(f"{value:8.4f}" for value in tensor.flatten()[:4].tolist()) + " ..." * (tensor.numel() > 4)
        print(f"{name:26}{letters:11}{tuple(tensor.shape)!s:16}{values}")
    probabilities = sorted(zip(output.logits[0].softmax(0).tolist(), classes), reverse=True)
    print("class probabilities: " + ", ".join(f"{name:.18} {p:.2f}" for p, name in probabilities[:4]))
    try:
        clips = {clip.path.resolve(): clip for clip in data.read_manifest(config.data, config.scale)}
        clip = clips.get(Path(path).resolve())
    except InputError as error:
        print(f"no loss: {error}")
        return
    if clip and clip.ratings:
        clip.rate = rate
        label, stage = train.LABELS[config.auxiliary](clip), train.stages_of(config)[-1]
        ratings = torch.tensor([[clip.ratings.get(rater, math.nan) for rater in raters]] if raters else [clip.mos])
        known_class = torch.tensor([classes.index(label) if label in classes else -1])
        terms = train.weighted_losses(config, stage.alpha_end, output, ratings.to(backbone.device),
                                      known_class.to(backbone.device), model.unit)
        unknown = ", by none of the training raters" * bool(ratings.isnan().all())
        print(f"rated MOS {clip.mos:.2f}{unknown}, class {label}; a batch of it alone has at the end of stage {stage.name}:\n"
              + ", ".join(f"{name} {term.item():.4f}" for name, term in terms.items()))


# ---------------------------------------------------------------------------------------------------------
# Numbers of test clips

def eight(numbers):
    """{"utterance": {"MSE": ..., "LCC", "SRCC", "KTAU"}, "system": {the same}}, of numbers or of lists -> (8,) or (8, n)."""
    return np.array([value for level in ("utterance", "system") for value in numbers[level].values()], float)


def nested(values):
    """What eight() undoes."""
    values = iter(np.asarray(values).tolist())
    return {level: {name: next(values) for name in moemos.METRICS} for level in ("utterance", "system")}


def resample(predicted, true, system, seed=0):
    """The eight numbers of RESAMPLES bootstrap resamples: (RESAMPLES, 8).

    Clips are resampled at utterance level, the same ones for the same seed, and systems, with their means, at system level,
    the same ones for the same systems, so that differences of two predictors are paired.
    """
    seeds = {"utterance": seed, "system": zlib.crc32(" ".join(sorted(set(map(str, system)))).encode())}
    columns = []
    for level, (p, t) in moemos.levels(predicted, true, system).items():
        draws = np.random.default_rng(seeds[level]).integers(len(p), size=(RESAMPLES, len(p)))
        columns += [[metric(p[rows], t[rows]) for rows in draws] for metric in moemos.METRICS.values()]
    return np.array(columns).T


def interval(values):
    """95 % percentile interval of each column: (RESAMPLES, 8) -> (2, 8); NaN are left out, without any other it is NaN."""
    return np.array([np.nanquantile(column, (0.025, 0.975)) if np.isfinite(column).any() else (math.nan, math.nan)
                     for column in values.T]).T


def bootstrap(predicted, true, system):
    """95 % intervals of the eight numbers: {"utterance": {"MSE": [low, high], ...}, "system": ...}.

    Over clips they speak for other clips of these systems, sentences and talkers; such clips err alike, so for others they are
    too narrow.
    """
    return nested(interval(resample(predicted, true, system)).T)


def rating_matrix(clips):
    """-> (sorted raters, (R, clips) of their ratings, NaN where a rater has none)."""
    raters = sorted({rater for clip in clips for rater in clip.ratings})
    return raters, np.array([[clip.ratings.get(rater, math.nan) for clip in clips] for rater in raters])


def half_against_half(clips, seed=0):
    """The eight numbers of one half of the raters as predictor of the other: noise of both halves, and how their bias differs.

    Mean over SPLITS random splits, of the clips rated by both halves; None where no rater shares clips with another.
    """
    raters, ratings = rating_matrix(clips)
    rng, system, results = np.random.default_rng(seed), np.array([clip.system for clip in clips]), []
    for _ in range(SPLITS):
        half = np.isin(np.arange(len(raters)), rng.permutation(len(raters))[:len(raters) // 2])
        both = ~np.isnan(ratings[half]).all(0) & ~np.isnan(ratings[~half]).all(0)
        if both.any():
            one, other = (np.nanmean(ratings[side][:, both], axis=0) for side in (half, ~half))
            results.append(eight(moemos.metrics(one, other, system[both])))
    return nested(np.mean(results, axis=0)) if results else None


def reference_rows(training, test):
    """Predictors of the test clips without a model: label -> the eight numbers, or None where not to be had."""
    true, system = [clip.mos for clip in test], [clip.system for clip in test]
    rows = {}
    if training:
        overall = float(np.mean([clip.mos for clip in training]))
        by_system = {name: np.mean([clip.mos for clip in training if clip.system == name])
                     for name in {clip.system for clip in training}}
        rows = {"mean of training MOS": moemos.metrics([overall] * len(test), true, system),
                "condition's mean training MOS": moemos.metrics([by_system.get(name, overall) for name in system], true, system)}
    return rows | {"half of the raters, by the others": half_against_half(test)}


def lcc_within_systems(predicted, true, system):
    """Mean of the LCCs inside each system, NaN where none is defined: does it hear more than which system it is?

    Each system counts once, whatever its number of clips.
    """
    predicted, true, system = np.asarray(predicted), np.asarray(true), np.asarray(system)
    values = [moemos.lcc(predicted[system == name], true[system == name]) for name in np.unique(system)]
    return float(np.nanmean(values)) if np.isfinite(values).any() else math.nan


def label_noise(clips):
    """Variance of a clip's MOS if the same raters rated it again, mean over clips; None where the ratings do not tell.

    From the residuals of the additive model rating = clip + rater, each clip's variance over its number of ratings. Raters' gains
    count as noise in it: in the simulation it comes out 3 % high.
    """
    raters, residuals = rating_matrix(clips)
    rated = ~np.isnan(residuals)                                # (R, clips)
    for _ in range(100):  # once is exact where all rate all; where few do, the two means settle in turns
        residuals = residuals - np.nanmean(residuals, axis=0)
        residuals = residuals - np.nanmean(residuals, axis=1, keepdims=True)
    groups, _ = connected_components(rated.astype(float) @ rated.T)  # of raters joined by clips; each has a mean of its own
    degrees_of_freedom = rated.sum() - len(clips) - len(raters) + groups
    return float(np.nansum(residuals ** 2) / degrees_of_freedom * np.mean(1 / rated.sum(0))) if degrees_of_freedom > 0 else None


def rater_table(clips):
    """Rows (split, rater, ratings, their mean, their variance) of every rater."""
    rows = []
    for split in ("train", "test"):
        for rater, own in zip(*rating_matrix([clip for clip in clips if clip.split == split])):
            own = own[~np.isnan(own)]
            rows.append((split, rater, len(own), float(own.mean()), float(own.var())))
    return rows


def adaptation(raters, predicted, clips, seed=0):
    """Utterance MSE once each new rater has given k ratings: {k: {"MOS": of clips, "rating": of single ratings}}.

    Mean over SPLITS: a half of the clips, drawn anew in each, is scored after calibration on the other, each rater on k clips of
    his own (all that he has, where fewer), and the other way round. A rater's bias and gain are the posterior mean given the k
    ratings (ridge regression): beforehand as spread as those of the training raters, a moemos.Raters, and with its noise. A
    clip's MOS is the mean of what its raters would give. With p predicted, c the middle of the scale, x = (1, p - c):

        rating - p = bias + (gain - 1) (p - c) + noise
        (bias, gain - 1) = (x'x / noise + diag(1 / variances of bias and gain))^-1  x'(rating - p) / noise
    """
    bias, gain = (part.detach().cpu().numpy() for part in raters.bias_and_gain())
    precision, noise = np.diag(1 / np.maximum([bias.var(), gain.var()], 1e-6)), raters.noise.item()
    predicted, mos = np.asarray(predicted), np.array([clip.mos for clip in clips])
    rng, errors = np.random.default_rng(seed), defaultdict(list)
    x = np.stack([np.ones(len(clips)), predicted - raters.middle], axis=1)  # (clips, 2): a gain turns about the middle
    _, ratings = rating_matrix(clips)
    for _ in range(SPLITS):
        half = rng.permutation(len(clips)) < len(clips) // 2                # (clips,)
        said = {k: np.full(ratings.shape, math.nan) for k in SHOTS}
        for scored, (r, own) in itertools.product((half, ~half), enumerate(ratings)):
            rated = ~np.isnan(own)
            pool = rng.permutation(np.flatnonzero(~scored & rated))
            for k in SHOTS:
                known = x[pool[:k]]
                coefficients = np.linalg.solve(known.T @ known / noise + precision, known.T @ (own - predicted)[pool[:k]] / noise)
                said[k][r, scored & rated] = (predicted + x @ coefficients)[scored & rated]
        for k in SHOTS:
            errors[k, "MOS"].append(np.mean((np.nanmean(said[k], axis=0) - mos) ** 2))
            errors[k, "rating"].append(np.nanmean((said[k] - ratings) ** 2))
    return {k: {what: float(np.mean(errors[k, what])) for what in ("MOS", "rating")} for k in SHOTS}


def gate_use(gates, models):
    """(clips, E), each clip's synthesis model -> parts of metrics.json: mean gates by model and of all, and the entropies of a
    clip's gates, of the mean gate of its model, of the mean gate."""
    of_model = {name: gates[models == name] for name in np.unique(models).tolist()}
    clip, mean = moemos.gate_entropies(gates)
    own = sum(len(part) * moemos.gate_entropies(part)[1] for part in of_model.values()) / len(gates)
    return {"experts": {name: part.mean(0).tolist() for name, part in of_model.items()}, "expert_use": gates.mean(0).tolist(),
            "gate_entropy": {"clip": clip.item(), "model": own.item(), "mean": mean.item()}}


def evaluate(run, device="", corpus="", figures=False):
    """Evaluates a run on the test clips of its corpus, or of another (then into RUN/on_<its name>); prints and writes
    everything, figures too if wanted, and returns the dict of metrics.json.

    Clips without ratings are predicted and written to answer.txt, in the challenge's form; with no others that is
    all, and None is returned. Raises InputError for whatever cannot be used, a backbone other than the run's among it.
    """
    model, extractors, classes, _, config = load_run(run, device)
    corpus, out = str(corpus or config.data), Path(run)
    if corpus != config.data:
        out = out / f"on_{Path(corpus).resolve().name}"  # the run's own results stay
    data.check_writable(out)
    clips = data.read_corpus(corpus, scale=config.scale, max_seconds=config.max_seconds)
    test = [clip for clip in clips if clip.split == "test"]
    if not test:
        raise InputError(f"{corpus} has no test clips")
    test.sort(key=lambda clip: not clip.ratings)  # rated ones first, else in their order
    output = predict(model, *(data.extract_features(test, extractor, config.cache) for extractor in extractors))
    unrated = [(Path(clip.wav).with_suffix(""), mos) for clip, mos in zip(test, output.mos.tolist()) if not clip.ratings]
    if unrated:
        data.write_csv(out / "answer.txt", unrated)
        print(f"{len(unrated)} test clips without ratings: predicted in {out}/answer.txt, not scored")
    test = [clip for clip in test if clip.ratings]
    if not test:
        return None

    training = [clip for clip in clips if clip.split == "train" and clip.ratings]
    predicted, gates = output.mos[:len(test)].tolist(), output.gates[:len(test)]
    true, system, models = [clip.mos for clip in test], [clip.system for clip in test], np.array([clip.model for clip in test])
    label, taught = train.LABELS[config.auxiliary], any(train.teaches(stage, config)[1] for stage in train.stages_of(config))
    hits = [classes[logits.argmax()] == label(clip) for logits, clip in zip(output.logits, test) if label(clip) in classes]
    result = {**moemos.metrics(predicted, true, system), "interval_95": bootstrap(predicted, true, system),
              "lcc_within_systems": lcc_within_systems(predicted, true, system),
              "reference": reference_rows(training, test),
              "accuracy": float(np.mean(hits)) if hits and taught else None,
              "undefined": {level: moemos.undefined(*pair) for level, pair in moemos.levels(predicted, true, system).items()},
              **gate_use(gates, models), "label_noise": label_noise(test),
              "adaptation": adaptation(model.raters, predicted, test) if config.raters == "yes" and len(test) > 1 else None,
              "backbone": {"name": extractors[0].name, "identity": extractors[0].identity, "precision": config.precision},
              "data": corpus, "scale": config.scale, "clips": len(test), "systems": len(set(system)), "seed": config.seed}
    rows, of_raters = zip((clip.wav for clip in test), system, models, true, predicted), rater_table(training + test)
    data.write_csv(out / "predictions.csv", [("wav", "system", "model", "mos", "predicted"), *rows])
    data.write_csv(out / "raters.csv", [("split", "rater", "ratings", "mean", "variance"), *of_raters])
    data.write_atomically(out / "metrics.json", plain_json(result))
    show(run, result, of_raters)
    if figures:
        plot(run, out)
    return result


def plain_json(value):
    """As bytes; numbers that are not finite are null."""
    return (json.dumps(json.loads(json.dumps(value), parse_constant=lambda _: None), indent=2) + "\n").encode()


def read_csv(path):
    """The rows of a table that data.write_csv wrote, as dicts."""
    return list(csv.DictReader(io.StringIO(path.read_bytes().decode(), newline="")))


HEADING = (" " * 34 + "---------- utterance ---------- ----------- system -----------\n"
           + " " * 34 + "     MSE     LCC    SRCC    KTAU" * 2)


def line(label, numbers):
    """A row below HEADING."""
    return f"{label:34}" + "".join(f" {number:7.3f}" for number in numbers)


def show(run, result, of_raters):
    """Prints what evaluate() found; of_raters: rows of rater_table."""
    print("\nuse of the experts (mean gate, %): who serves whom")
    for model, gates in result["experts"].items():
        print(f"  {model:24}" + "".join(f"{100 * gate:6.1f}" for gate in gates))
    if result["accuracy"] is not None:
        print(f"classification accuracy {result['accuracy']:.3f}")
    for split in ("train", "test"):
        _, names, _, *numbers = zip(*own) if (own := [row for row in of_raters if row[0] == split]) else ((), (), ())
        if 1 < len(names) <= 10:
            print(f"\n{f'raters of {split} clips':20}" + "".join(f"{name:>7.6}" for name in names))
            for what, values in zip(("mean", "variance"), numbers):
                print(f"  {what:18}" + "".join(f"{value:7.2f}" for value in values))
        elif names:
            means, variances = (f"{min(values):.2f} to {max(values):.2f}" for values in numbers)
            print(f"{len(names)} raters of {split} clips: means {means}, variances {variances}; each is in raters.csv")
    if result["scale"] == (1.0, 5.0):
        print(f"\nthe real Track 3, published: other clips, not to be compared with the rows below\n{HEADING}")
        for label, numbers in PUBLISHED.items():
            print(line(label, numbers))
    name = result["backbone"]["name"]
    print(f"\n{run} on {result['data']}: {result['clips']} test clips, {result['systems']} systems; {name}"
          + (", a STAND-IN, not the paper's wav2vec2" if name == "logmel" else "") + f"\n{HEADING}")
    for label, numbers in result["reference"].items():
        print(line(label, eight(numbers)) if numbers else f"{label:37}no two raters share clips")
    print(line("this run", eight(result)))
    for label, bounds in zip(("  95 % interval from", "  to"), eight(result["interval_95"]).T):
        print(line(label, bounds))
    print(f"mean LCC within a system: {result['lcc_within_systems']:.3f}")
    for level, why in result["undefined"].items():
        if why:
            print(f"LCC, SRCC and KTAU are undefined (nan) at {level} level: {why}")


# ---------------------------------------------------------------------------------------------------------
# Comparison of runs: variants over seeds

class Run(NamedTuple):
    settings: dict   # what must be the same in all seeds of a variant
    stages: list     # this too; in no comparison of variants
    corpus: Path     # its folder
    result: dict     # metrics.json
    wav: list        # the rated test clips
    predicted: list
    numbers: np.ndarray    # the eight
    resampled: np.ndarray  # resample()


def read_run(run, device=""):
    """A run, evaluated where it has not been -> Run. Raises InputError."""
    torch.set_num_threads(1)
    run = Path(run)
    if not (run / "model.pt").is_file():
        raise InputError(f"{run}: is no folder of a run; compare folders that train.py wrote")
    if not ((run / "metrics.json").exists() and (run / "predictions.csv").exists()):
        with contextlib.redirect_stdout(io.StringIO()):
            if evaluate(run, device) is None:
                raise InputError(f"{run}: its corpus has no test clips with ratings, so there is nothing to compare")
    try:
        config, result = (json.loads((run / name).read_bytes()) for name in ("config.json", "metrics.json"))
        rows, corpus = read_csv(run / "predictions.csv"), Path(config["data"])
        settings = {name: value for name, value in config.items() if name not in MAY_DIFFER}
        if corpus.suffix == ".csv":
            settings["ratings"], corpus = corpus.name, corpus.parent
        true, predicted = (np.array([row[column] for row in rows], float) for column in ("mos", "predicted"))
        system = [row["system"] for row in rows]
        stages = torch.load(run / "model.pt", map_location="cpu", weights_only=True)["stages"]
        numbers = eight(moemos.metrics(predicted, true, system))
        if not abs(numbers[0] - result["utterance"]["MSE"]) < 1e-9:
            raise ValueError("predictions.csv is not whole")
        seed = zlib.crc32(corpus.name.encode())  # all runs on one corpus draw the same clips
        return Run(settings, stages, corpus.resolve(), result, [row["wav"] for row in rows], predicted.tolist(),
                   numbers, resample(predicted, true, system, seed))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, csv.Error) as error:
        raise InputError(f"{run}: its files are damaged or of another version ({moemos.first_line(error)}); "
                         "delete its metrics.json, or train it again") from None


def student(values):
    """(n, ...) values of n seeds -> (3, ...): their mean and its 95 % interval, low and high, NaN for one value."""
    mean, n = np.mean(values, axis=0), len(values)
    half = stdtrit(n - 1, 0.975) * np.std(values, axis=0, ddof=1) / math.sqrt(n) if n > 1 else np.full_like(mean, math.nan)
    return np.stack([mean, mean - half, mean + half])


def difference(variant, first):
    """Two lists of Runs, the n-th of both on the same clips -> (3, 8): mean difference of the eight numbers, low, high.

    The interval joins two, as the root of the sum of their squares: the paired bootstrap's of the mean over the pairs, which
    says what other clips, or at system level other systems, might have shown, and Student's over the pairs, which says what
    other seeds and corpora might; of one pair it is the first alone. Where each pair has clips of its own, Student's holds those
    too, and the interval is up to 1.2 times as wide as needed with five pairs, and 1.4 times with many.
    """
    low, high = interval(np.mean([one.resampled - other.resampled for one, other in zip(variant, first)], axis=0))
    mean, least, most = student([one.numbers - other.numbers for one, other in zip(variant, first)])
    return np.stack([mean, mean - np.hypot(mean - low, np.nan_to_num(mean - least)),  # Student's is NaN for one pair
                     mean + np.hypot(high - mean, np.nan_to_num(most - mean))])


def decompose(variant, first):
    """Where two variants are the same predictions, rated by the training panel (first) and by others (variant): the utterance MSE
    as a sum of three parts, each [mean, low, high] over the pairs of runs. Label noise of the others; what is left of the error
    by the training panel's ratings without their noise, the model; what the others' add to it, the panel."""
    def error(run):
        return run.numbers[0] - run.result["label_noise"]

    return {"model": student([error(other) for other in first]).tolist(),
            "panel": student([error(one) - error(other) for one, other in zip(variant, first)]).tolist(),
            "label noise": student([one.result["label_noise"] for one in variant]).tolist()}


def compare(runs, device="", figures=False):
    """Compares variants: runs whose names differ in the number at their end alone are the seeds of one. Each variant is compared
    with the first that has one setting other, else with the first of all.

    Prints, and writes comparison.json into the folder that they share. Returns its rows. Raises InputError for a run that
    cannot be used, or for seeds of a variant that differ in more.
    """
    runs = list({Path(run).resolve(): Path(run) for run in runs}.values())
    with train.worker_pool(len(runs)) as pool:
        read = list(pool.map(functools.partial(read_run, device=device), runs))
    folder = Path(os.path.relpath(os.path.commonpath([run.resolve().parent for run in runs])))
    variants = defaultdict(dict)  # name -> seed -> Run
    for path, run in zip(runs, read):
        name, seed = re.fullmatch(r"(.*?)(?:_seed|/)?(\d*)", os.path.relpath(path, folder), re.DOTALL).groups()
        name = name or folder.resolve().name
        if seed in variants[name]:
            raise InputError(f"{path}: has the name and the number of another run; rename it")
        first = next(iter(variants[name].values()), run)
        if what := differing(run, first) + ["STAGES"] * (run.stages != first.stages):
            raise InputError(f"{path}: by its name a seed of {name}, but it differs in {', '.join(what)}; rename it")
        variants[name][seed] = run
    rows, of_variant = [], [list(by_seed.values()) for by_seed in variants.values()]
    for i, (name, by_seed) in enumerate(variants.items()):
        j = next((j for j in range(i) if len(differing(of_variant[i][0], of_variant[j][0])) == 1), 0)
        reference = list(variants.values())[j]
        pairs = [(run, reference[seed]) for seed, run in by_seed.items() if i and seed in reference
                 and (run.corpus, run.wav) == (reference[seed].corpus, reference[seed].wav)]
        rows.append({"variant": f"{i + 1}: " + re.sub(r"^\d+_", "", name), **summary(of_variant[i])})
        if i:
            rows[-1]["first"] = j + 1
        if pairs:
            rows[-1] |= {"pairs": len(pairs), "difference": nested(difference(*zip(*pairs)).T)}
            of_one_model = all(one.predicted == other.predicted for one, other in pairs)
            by_training_panel = of_variant[j][0].settings.get("ratings") == "ratings_training.csv"
            if of_one_model and by_training_panel and not math.isnan(rows[-1]["label_noise"]):
                rows[-1]["parts"] = decompose(*zip(*pairs))
    show_comparison(rows)
    data.write_atomically(folder / "comparison.json", plain_json(rows))
    print(f"wrote {folder}/comparison.json")
    if figures:
        plot_comparison(rows, folder / "comparison.png")
    return rows


def differing(one, other):
    """Names of the settings in which two Runs differ."""
    names = one.settings.keys() | other.settings.keys()
    return sorted(name for name in names if one.settings.get(name) != other.settings.get(name))


def summary(runs):
    """Means over a variant's runs, and the deviation of the eight numbers, as a dict; NaN where a run has none."""
    def mean(key):
        return float(np.mean([math.nan if result[key] is None else result[key] for result in results]))

    results, numbers = [run.result for run in runs], np.array([run.numbers for run in runs])
    row = {"runs": len(runs), "mean": nested(numbers.mean(0)), "sd": nested(numbers.std(0, ddof=1)) if len(runs) > 1 else None,
           **{key: mean(key) for key in ("lcc_within_systems", "accuracy", "label_noise")},
           "gate_entropy": np.mean([list(result["gate_entropy"].values()) for result in results], axis=0).tolist(),
           "expert_use": np.mean([sorted(result["expert_use"], reverse=True) for result in results], axis=0).tolist(),
           "adaptation": None}
    if all(result["adaptation"] for result in results):
        row["adaptation"] = {}
        for what in ("MOS", "rating"):  # mean error after each k, and the last less the first, low, high
            errors = np.array([[result["adaptation"][str(k)][what] for k in SHOTS] for result in results])
            row["adaptation"][what] = [*errors.mean(0).tolist(), *student(errors[:, -1] - errors[:, 0]).tolist()]
    return row


def show_comparison(rows):
    """Prints the tables of compare()."""
    print(HEADING)
    for row in rows:
        print(f"\n{row['variant']}, {row['runs']} run{'s' * (row['runs'] > 1)}")
        print(line("   mean", eight(row["mean"])))
        if row["sd"]:
            print(line("   sd over runs", eight(row["sd"])))
        if "difference" in row:
            mean, low, high = eight(row["difference"]).T
            for name, numbers in ((f"   difference from {row['first']}, {row['pairs']} pair{'s' * (row['pairs'] > 1)}", mean),
                                  ("   95 % interval from", low), ("   to", high)):
                print(line(name, numbers))
            shown = np.select([low > 0, high < 0, low <= high], ["higher", "lower", "none"], "nan")
            words = f"{'   difference shown':34}" + "".join(f"{word:>8}" for word in shown)
            print("   one pair: the interval knows nothing of other seeds" if row["pairs"] == 1
                  else "   no difference shown" if (shown == "none").all() else words)
        elif row is not rows[0]:
            print(f"   no difference: {row['first']} has no run of the same number and clips")
    print("\n     LCC, system mean LCC in accuracy of label noise  gate entropy, nats  mean gates, most used\n"
          "     - utterance    a system second task      in MSE  clip  model   mean  first, %")
    for i, row in enumerate(rows):
        gap = row["mean"]["system"]["LCC"] - row["mean"]["utterance"]["LCC"]
        values = gap, row["lcc_within_systems"], row["accuracy"], row["label_noise"]
        print(f"{f'{i + 1}:':4}" + "".join(f"{value:12.3f}" for value in values) + "  "
              + "".join(f"{value:6.2f}" for value in row["gate_entropy"]) + "  "
              + " ".join(f"{100 * share:.0f}" for share in row["expert_use"]))
    if any("parts" in row for row in rows):
        print("\nutterance MSE in parts")
    for i, row in enumerate(rows):
        if "parts" in row:
            model, panel, noise = row["parts"].values()
            print(f"{i + 1}: {row['mean']['utterance']['MSE']:.3f} = {model[0]:.3f} model, {panel[0]:+.3f} panel "
                  f"(95 %: {panel[1]:.3f} to {panel[2]:.3f}), {noise[0]:+.3f} label noise")
    if any(row["adaptation"] for row in rows):
        shots = "".join(f"{f'k = {k}':>8}" for k in SHOTS)
        print(f"\n{'after k ratings of each new rater':34}{shots} last less first, from, to")
    for i, row in enumerate(rows):
        if row["adaptation"]:
            print(line(f"{i + 1}: utterance MSE", row["adaptation"]["MOS"]))
            print(line("   MSE of a single rating", row["adaptation"]["rating"]))


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


def short(name):
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
    result = json.loads(Path(out, "metrics.json").read_bytes())
    save(plot_predictions(result, read_csv(Path(out, "predictions.csv"))), Path(out, "predictions.png"))
    save(plot_experts(result["experts"]), Path(out, "experts.png"))
    save(plot_raters(read_csv(Path(out, "raters.csv"))), Path(out, "raters.png"))
    try:
        drawing = plot_training(read_csv(Path(run, "log.csv")))
    except (OSError, ValueError, KeyError, TypeError, IndexError) as error:
        raise InputError(f"{run}/log.csv is missing or damaged ({moemos.first_line(error)}), so training.png is not drawn; "
                         "train again") from None
    save(drawing, Path(out, "training.png"))


def plot_predictions(result, rows):
    """Predicted against rated MOS at both levels, coloured by synthesis model, with the intervals of systems' means."""
    drawing, axes = figure(2, width=5.5, height=5.2)
    values = [*result["scale"], *(float(row["predicted"]) for row in rows)]
    span = min(values) - 0.1, max(values) + 0.1
    for axis, level, size in zip(axes, ("utterance", "system"), (4, 7)):
        for i, model in enumerate(sorted({row["model"] for row in rows})):
            groups = defaultdict(list)  # a system's points at system level, one point each at utterance level
            for j, row in enumerate(row for row in rows if row["model"] == model):
                groups[j if level == "utterance" else row["system"]].append((float(row["mos"]), float(row["predicted"])))
            points = np.array([student(group) for group in groups.values()])  # (points, mean low high, rated predicted)
            errors = (points[:, 0] - points[:, 1]).T if level == "system" else (None, None)
            axis.errorbar(*points[:, 0].T, yerr=errors[1], xerr=errors[0], color=COLOURS[i % 8], marker=MARKERS[(i + i // 8) % 8],
                          markersize=size, linestyle="none", elinewidth=0.8, alpha=0.8, label=short(model))
        axis.axline((result["scale"][0],) * 2, slope=1, color="0.6", linewidth=0.8)
        lcc, (low, high) = result[level]["LCC"], result["interval_95"][level]["LCC"]
        axis.set(xlabel="rated MOS", ylabel="predicted MOS", xlim=span, ylim=span, aspect="equal",
                 title=f"{level} level: LCC undefined" if None in (lcc, low) else
                 f"{level} level: LCC {lcc:.3f}, 95 % from {low:.3f} to {high:.3f}")
    drawing.legend(*axes[1].get_legend_handles_labels(), loc="outside right upper", fontsize="small",
                   title="synthesis model;\nbars: 95 % of\nthe mean")
    return drawing


def plot_experts(experts):
    """Use of the experts by each synthesis model, as a heat map."""
    gates = 100 * np.array(list(experts.values()))
    drawing, (axis,) = figure(1, width=2.5 + 0.8 * gates.shape[1], height=1.5 + 0.4 * len(gates))
    image = axis.imshow(gates, cmap="cividis", vmin=0, vmax=100, aspect="auto")
    axis.set(xticks=range(gates.shape[1]), xticklabels=range(1, gates.shape[1] + 1), xlabel="expert", title="use of the experts",
             yticks=range(len(gates)), yticklabels=map(short, experts), ylabel="synthesis model")
    for (y, x), gate in np.ndenumerate(gates):
        axis.text(x, y, f"{gate:.0f}", ha="center", va="center", color="black" if gate > 50 else "white")
    drawing.colorbar(image, label="mean gate, %")
    return drawing


def plot_training(log):
    """Loss terms, held-out numbers and gates by epoch, with the borders of the stages."""
    drawing, axes = figure(1, 3, width=9, height=2.8)
    gates = {name: f"expert {name[5:]}" for name in log[0] if name.startswith("gate_") and name != "gate_entropy"}
    terms = {"mos": "MOS", **{name: name for name in ("classification", "diversity", "sparsity")}}
    panels = (("loss terms", terms, 1),
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
    return drawing


def plot_raters(raters):
    """Each rater's mean and spread, both panels."""
    drawing, (axis,) = figure(1, width=9)
    for split, colour, marker in zip(("train", "test"), COLOURS, MARKERS):
        rows = [(j, float(row["mean"]), math.sqrt(float(row["variance"])))
                for j, row in enumerate(raters) if row["split"] == split]
        if rows:
            place, mean, spread = np.array(rows).T
            axis.errorbar(place, mean, spread, color=colour, marker=marker, linestyle="none", capsize=3,
                          label=f"{split} clips: mean and standard deviation of a rater's ratings")
            axis.hlines(mean.mean(), place[0] - 0.5, place[-1] + 0.5, color=colour, linestyle=":", linewidth=1)
    few = len(raters) <= 40
    axis.set(xlabel="rater; dotted: mean of the panel's raters", ylabel="rating",
             xticks=range(len(raters)) if few else [], xticklabels=[short(row["rater"]) for row in raters] if few else [])
    axis.legend(fontsize="small", loc="lower center", bbox_to_anchor=(0.5, 1))
    return drawing


def plot_comparison(rows, path):
    """comparison.png, of what compare() returns: each variant's difference, with its interval, in all eight numbers."""
    variants = [row for row in rows if "difference" in row]
    if not variants:
        print("no two variants share clips: no figure")
        return
    drawing, axes = figure(4, 2, width=3.4, height=1.4 + 0.35 * len(variants))
    differences = np.array([eight(row["difference"]) for row in variants])  # (variants, 8, mean low high)
    for i, (axis, (level, name)) in enumerate(zip(axes, itertools.product(("utterance", "system"), moemos.METRICS))):
        numbers = differences[:, i]
        axis.errorbar(numbers[:, 0], range(len(variants)), xerr=np.abs(numbers[:, 1:] - numbers[:, :1]).T, color=COLOURS[0],
                      marker="o", linestyle="none", capsize=3)
        axis.axvline(0, color="0.6", linewidth=0.8)
        names = [f"{row['variant']} [{row['first']}]".replace("$", r"\$") for row in variants] if name == "MSE" else []
        axis.set(title=f"{level} {name}", ylim=(len(variants) - 0.5, -0.5), yticks=range(len(variants)), yticklabels=names)
    drawing.suptitle("difference from the variant whose number is in brackets, with 95 % intervals")
    save(drawing, path)


def main():
    parser = argparse.ArgumentParser(allow_abbrev=False, description="Evaluates runs of train.py, compares them, scores WAV files.")
    parser.add_argument("run", nargs="*", default=["runs/default"], help="folder of a run (default: runs/default); several are compared")
    parser.add_argument("--data", default="", help="another corpus than the run's, in any form that train.py reads")
    parser.add_argument("--wav", nargs="+", metavar="PATH", help="score these files, and all in these folders: wav,mos lines in CSV")
    parser.add_argument("--explain", metavar="WAV", help="print every tensor between this file and its MOS")
    parser.add_argument("--plot", action="store_true", help="write figures of a run, or of several compared, too (needs matplotlib)")
    parser.add_argument("--device", default="", help="cpu, cuda, ...; not given: the accelerator if there is one")
    arguments, skipped = parser.parse_args(), False
    with moemos.one_sentence("evaluate.py"):
        folders = [run for run in arguments.run if not os.path.isfile(run)]  # without runs/experts/comparison.json
        if not folders:
            raise InputError(f"{arguments.run[0]}: is a file and no folder of a run; WAV files are scored with --wav")
        run, *others = folders
        one_clip = bool(arguments.wav or arguments.explain)
        if sum(map(bool, (others, arguments.wav, arguments.explain, arguments.data))) > 1 or one_clip and arguments.plot:
            raise InputError("only one of several runs, --data, --wav and --explain can be had at once, "
                             "and --plot not with the last two")
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
    sys.exit(skipped)


if __name__ == "__main__":
    main()
