"""Evaluation: the eight numbers of arXiv 2507.06116 section IV on the test clips of a run's corpus.

    python evaluate.py                    of runs/default
    python evaluate.py runs/mine          of another run
    python evaluate.py RUN --data PATH    on another corpus, into RUN/on_<its name>
    python evaluate.py --wav a.wav b/     prints wav,mos lines of one's own clips

Writes metrics.json, predictions.csv and raters.csv into the run's folder, and answer.txt where
test clips have no ratings. The rows to compare with, of the corpus's training clips or test
raters, and the intervals are ours. Letters of dimensions: see moemos.py.
"""

import argparse
import csv
import json
import math
import sys
import time
import zlib
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

import data
import moemos
import train
from data import InputError

PUBLISHED = {  # on the real evaluation set, 400 clips of 20 conditions: other clips than ours
    "the paper": (0.277, 0.811, 0.716, 0.529, 0.056, 0.978, 0.913, 0.758),
    "B03, the organisers' SSL-MOS": (0.273, 0.821, 0.695, 0.508, 0.119, 0.941, 0.749, 0.547),
    "condition's mean training MOS": (0.222, 0.856, 0.702, 0.520, 0.101, 0.945, 0.748, 0.575),
}
RESAMPLES = 1000  # of the bootstrap; ours, as are the next
SPLITS = 20       # of the raters into halves
ALPHAS = np.logspace(-4, 3, 29)  # strengths of ridge regression, a feature
FOLDS = 5         # of the training clips, to choose among them
RIDGE = "ridge on the same features"


# -- A run and its predictions ---------------------------------------------------------------------

class Trained(NamedTuple):
    model: moemos.MoEMOS  # in eval mode
    backbone: moemos.Backbone
    classes: list
    config: train.Config


def load_run(run, device="", build=train.build_model, backbone=None):
    """A folder that train.py wrote -> Trained. build, backbone: as of train.train.

    Raises InputError for one that is not whole, or was trained on other weights.
    """
    try:
        checkpoint = torch.load(Path(run, "model.pt"), map_location="cpu", weights_only=True)
        config = train.Config(**checkpoint["config"], out=str(run))
        name, identity = checkpoint["backbone"]["name"], checkpoint["backbone"]["identity"]
        backbone = backbone or data.open_backbone(name, device)
        model = build(config, backbone, checkpoint["classes"])
        model.load_state_dict(checkpoint["weights"])
        if not all(tensor.isfinite().all() for tensor in checkpoint["weights"].values()):
            raise ValueError("a weight is not finite")
    except InputError:
        raise
    except Exception as error:  # noqa: BLE001 - torch raises nearly anything
        raise InputError(f"{run}/model.pt is missing, damaged or of another version "
                         f"({data.first_line(error)}); train the run again") from None
    if backbone.identity != identity:
        raise InputError(f"{run} was trained on a {backbone.name} with other weights than the one "
                         "here; train it again")
    return Trained(model.to(backbone.device).eval(), backbone, checkpoint["classes"], config)


@torch.no_grad()
def predict(model, features):
    """(clips, L, 2D) -> Output on the CPU. One clip at a time: none depends on its company."""
    device = next(model.parameters()).device
    outputs = [model(clip[None].to(device)) for clip in features]
    return moemos.Output(*(torch.cat(parts).cpu() for parts in zip(*outputs)))


def predict_clips(trained, clips):
    """Clips -> Output, their features from the run's cache."""
    return predict(trained.model, data.extract_features(clips, trained.backbone,
                                                        trained.config.cache))


def read_clip(path, trained):
    """A WAV file, read once -> (T,), (1, L, 2D). Raises InputError."""
    content = data.read_bytes(path)
    data.check_clip(path, trained.config.max_seconds, content)
    waveform = data.read_wav(path, trained.backbone.sample_rate, content)
    return waveform, data.clip_statistics(waveform, trained.backbone, path)[None]


def score(run, paths, device="", build=train.build_model):
    """Yields (path, MOS) of every WAV file among paths, files or folders.

    `dict(score("runs/default", ["a.wav"]))["a.wav"]` is the same alone, in any company and on every
    call. A file that cannot be used is reported on standard error and has NaN. build: as of
    train.train. Raises InputError for a run that cannot be used or a folder without a WAV file.
    """
    trained = load_run(run, device, build)
    files = data.find_wavs(paths)
    start = time.monotonic()
    for i, path in enumerate(files):
        mos = math.nan
        try:
            _, features = read_clip(path, trained)
            mos = predict(trained.model, features).mos.item()
        except InputError as error:
            print(f"skipped: {error}", file=sys.stderr)
        yield str(path), mos
        data.show_progress("scored", i + 1, len(files), start)


def print_scores(scores):
    """wav,mos lines of what score() yields -> whether a file was skipped."""
    sys.stdout.reconfigure(encoding="utf-8", errors="surrogateescape")  # names may be any bytes
    table = csv.writer(sys.stdout, lineterminator="\n")
    skipped = False
    for i, (path, mos) in enumerate(scores):
        if i == 0:  # so none above the sentence on a run that cannot be used
            table.writerow(["wav", "mos"])
        if math.isnan(mos):
            skipped = True
        else:
            table.writerow([path, f"{mos:.4f}"])
    return skipped


# -- Numbers of test clips -------------------------------------------------------------------------

def eight(numbers):
    """{"utterance": {"MSE": ..., ...}, "system": ...}, of numbers or lists -> (8,) or (8, n)."""
    return np.array([value for level in ("utterance", "system")
                     for value in numbers[level].values()], float)


def nested(values):
    """(8,) or (8, n) -> the nested dict that eight() flattens."""
    utterance, system = np.split(np.asarray(values), 2)
    return {"utterance": dict(zip(moemos.METRICS, utterance.tolist())),
            "system": dict(zip(moemos.METRICS, system.tolist()))}


def resample(predicted, true, system, seed=0):
    """The eight numbers of RESAMPLES bootstrap resamples: (RESAMPLES, 8).

    Clips are resampled at utterance level, the same ones for the same seed; at system level systems
    with their means, the same ones for the same names: differences of two predictors are paired.
    """
    names = " ".join(sorted({str(name) for name in system}))
    seeds = {"utterance": seed, "system": zlib.crc32(names.encode())}
    columns = []
    for level, (p, t) in moemos.levels(predicted, true, system).items():
        rng = np.random.default_rng(seeds[level])
        draws = rng.integers(len(p), size=(RESAMPLES, len(p)))
        for metric in moemos.METRICS.values():
            columns.append([metric(p[rows], t[rows]) for rows in draws])
    return np.array(columns).T


def interval(resampled):
    """(RESAMPLES, n) -> (2, n): low and high of 95 %; NaN are left out, all NaN give NaN."""
    bounds = np.full((2, resampled.shape[1]), math.nan)
    for i, column in enumerate(resampled.T):
        if np.isfinite(column).any():
            bounds[:, i] = np.nanquantile(column, (0.025, 0.975))
    return bounds


def lcc_within_systems(predicted, true, system):
    """Mean over systems of the LCC among a system's clips; NaN if every one is undefined."""
    predicted, true, system = np.asarray(predicted), np.asarray(true), np.asarray(system)
    values = np.array([moemos.lcc(predicted[system == name], true[system == name])
                       for name in np.unique(system)])
    return float(np.nanmean(values)) if np.isfinite(values).any() else math.nan


def rating_matrix(clips):
    """-> (sorted raters, (R, clips) of their ratings, NaN where a rater has none)."""
    raters = sorted({rater for clip in clips for rater in clip.ratings})
    return raters, np.array([[clip.ratings.get(rater, math.nan) for clip in clips]
                             for rater in raters])


def half_against_half(clips):
    """The eight numbers of one half of the raters as predictor of the other.

    Mean over SPLITS random splits, of the clips rated by both halves; None without any. Both
    halves are noisy and their biases differ, so it is no upper bound.
    """
    raters, ratings = rating_matrix(clips)
    system = np.array([clip.system for clip in clips])
    rng = np.random.default_rng(0)
    results = []
    for _ in range(SPLITS):
        half = np.isin(np.arange(len(raters)), rng.permutation(len(raters))[:len(raters) // 2])
        both = ~np.isnan(ratings[half]).all(0) & ~np.isnan(ratings[~half]).all(0)
        if both.any():
            one = np.nanmean(ratings[half][:, both], axis=0)
            other = np.nanmean(ratings[~half][:, both], axis=0)
            results.append(eight(moemos.metrics(one, other, system[both])))
    return nested(np.mean(results, axis=0)) if results else None


def ridge(x, y, new, fold=None):
    """The straight line to beat: ridge regression, (n, I) features and (n,) MOS of training clips,
    n >= 2, (m, I) features of others -> (m,). Its strength, of ALPHAS, is that of the least squared
    error in cross-validation; fold: (n,) int, two or more, else every fifth clip is in a fold."""
    if fold is None:
        fold = np.arange(len(y)) % FOLDS
    errors = np.zeros(len(ALPHAS))
    for number in np.unique(fold):
        own = fold == number
        predicted = ridge_by_alpha(x[~own], y[~own], x[own])
        errors += np.square(predicted - y[own]).sum(1)
    return ridge_by_alpha(x, y, new)[errors.argmin()]


def ridge_by_alpha(x, y, new):
    """As ridge(), with each of ALPHAS: (alphas, m). Of standardised x, and y less its mean,

        new (x'x + alpha I)^-1 x' y  =  new x' (xx' + alpha I)^-1 y

    the first where there are more clips than features, else the second, the dual form.
    """
    center, scale = x.mean(0), np.maximum(x.std(0), 1e-3)
    x, new = (x - center) / scale, (new - center) / scale
    mean, y = y.mean(), y - y.mean()
    clips, features = x.shape
    if clips > features:
        gram, target = x.T @ x, x.T @ y
    else:
        gram, target, new = x @ x.T, y, new @ x.T
    eigenvalues, vectors = np.linalg.eigh(gram)
    new, target = new @ vectors, vectors.T @ target
    shrunk = target / (eigenvalues + features * ALPHAS[:, None])  # (alphas, clips or features)
    return mean + shrunk @ new.T


def reference_rows(training, test):
    """Predictors that hear nothing: the mean of the training MOS, of all or of the condition, and
    one half of the test raters: label -> the eight numbers on the test clips, or None."""
    true = [clip.mos for clip in test]
    system = [clip.system for clip in test]
    rows = {}
    if training:
        overall = np.mean([clip.mos for clip in training])
        mean = {name: np.mean([clip.mos for clip in training if clip.system == name])
                for name in {clip.system for clip in training}}
        told = [mean.get(name, overall) for name in system]
        rows["mean of training MOS"] = moemos.metrics([overall] * len(test), true, system)
        rows["condition's mean training MOS"] = moemos.metrics(told, true, system)
    rows["half of the raters, by the others"] = half_against_half(test)
    return rows


def rater_table(clips):
    """Rows (split, rater, ratings, their mean, their variance) of every rater."""
    rows = []
    for split in ("train", "test"):
        raters, ratings = rating_matrix([clip for clip in clips if clip.split == split])
        for rater, own in zip(raters, ratings):
            own = own[~np.isnan(own)]
            rows.append((split, rater, len(own), float(own.mean()), float(own.var())))
    return rows


def gate_use(gates, models):
    """(clips, E) and each clip's synthesis model -> the parts of metrics.json about the gates.

    Mean gates by model and of all; entropies of a clip's gates, of a model's mean, of the mean.
    """
    by_model = {name: gates[models == name] for name in np.unique(models).tolist()}
    of_a_clip, of_the_mean = moemos.gate_entropies(gates)
    of_a_model = sum(len(own) * moemos.gate_entropies(own)[1] for own in by_model.values())
    return {"experts": {name: own.mean(0).tolist() for name, own in by_model.items()},
            "expert_use": gates.mean(0).tolist(),
            "gate_entropy": {"clip": of_a_clip.item(), "model": of_a_model.item() / len(gates),
                             "mean": of_the_mean.item()}}


# -- The report ------------------------------------------------------------------------------------

def evaluate(run, device="", corpus="", label=train.synthesis_model, trained=None):
    """Evaluates a run on the test clips of its corpus, or of another -> the dict of metrics.json.

    Prints, and writes its files. Clips without ratings are predicted into answer.txt, in the
    challenge's form; with no others that is all, and None is returned. label and trained are for
    studies. Raises InputError.
    """
    trained = trained or load_run(run, device)
    config, backbone = trained.config, trained.backbone
    corpus = str(corpus or config.data)
    out = Path(run)
    if corpus != config.data:
        out = out / f"on_{Path(corpus).resolve().name}"  # the run's own results stay
    data.check_writable(out)
    clips = data.read_corpus(corpus, config.scale, config.max_seconds)
    training = [clip for clip in clips if clip.split == "train" and clip.ratings]
    test = [clip for clip in clips if clip.split == "test" and clip.ratings]
    unrated = [clip for clip in clips if clip.split == "test" and not clip.ratings]
    if not test and not unrated:
        raise InputError(f"{corpus} has no test clips")
    if unrated:
        write_answer(trained, unrated, out / "answer.txt")
    if not test:
        return None

    output = predict_clips(trained, test)
    result = summary(training, test, output, ridge_predictions(trained, clips, test))
    if config.auxiliary != "none":
        labels = [label(clip) for clip in test]
        result["accuracy"] = accuracy(output.logits, labels, trained.classes)
    result |= {"backbone": {"name": backbone.name, "identity": backbone.identity},
               "data": corpus, "scale": config.scale, "seed": config.seed}
    rows = [(clip.wav, clip.system, clip.model, clip.mos, mos)
            for clip, mos in zip(test, output.mos.tolist())]
    data.write_csv(out / "predictions.csv", [("wav", "system", "model", "mos", "predicted"), *rows])
    rows = rater_table(training + test)
    data.write_csv(out / "raters.csv", [("split", "rater", "ratings", "mean", "variance"), *rows])
    data.write_atomically(out / "metrics.json", as_json(result))
    show(run, result, rows)
    return result


def ridge_predictions(trained, clips, test):
    """ridge() of the rated clips of a corpus that are not held out -> (test clips,), or None where
    they are fewer than two."""
    learned, _ = train.split_training(clips, trained.config)
    learned = [clip for clip in learned if clip.ratings]
    if len(learned) < 2:
        return None
    x, new = (data.extract_features(some, trained.backbone, trained.config.cache).flatten(1)
              for some in (learned, test))
    return ridge(x.double().numpy(), np.array([clip.mos for clip in learned]),
                 new.double().numpy())


def write_answer(trained, clips, path):
    """Predicts clips without ratings, in the challenge's form."""
    names = [Path(clip.wav).stem for clip in clips]
    data.write_csv(path, zip(names, predict_clips(trained, clips).mos.tolist()))
    print(f"{len(clips)} test clips without ratings: predicted in {path}, not scored")


def accuracy(logits, labels, classes):
    """Share of right classes among the clips whose class is known; None without any."""
    hits = [classes[row.argmax()] == label
            for row, label in zip(logits, labels) if label in classes]
    return float(np.mean(hits)) if hits else None


def summary(training, test, output, by_ridge):
    """What metrics.json says of the predictions. by_ridge: as of ridge_predictions."""
    predicted, true = output.mos.tolist(), [clip.mos for clip in test]
    system = [clip.system for clip in test]
    levels = moemos.levels(predicted, true, system)
    own = resample(predicted, true, system)
    reference = reference_rows(training, test)
    less_ridge = None
    if by_ridge is not None:
        reference[RIDGE] = moemos.metrics(by_ridge, true, system)
        reference[RIDGE]["lcc_within_systems"] = lcc_within_systems(by_ridge, true, system)
        less_ridge = nested(interval(own - resample(by_ridge, true, system)).T)
    return {**moemos.metrics(predicted, true, system),
            "interval_95": nested(interval(own).T),
            "lcc_within_systems": lcc_within_systems(predicted, true, system),
            "reference": reference,
            "less_ridge_interval_95": less_ridge,  # of the difference, paired
            "accuracy": None,  # of the second task, where there is one
            "undefined": {level: moemos.undefined(*pair) for level, pair in levels.items()},
            **gate_use(output.gates, np.array([clip.model for clip in test])),
            "clips": len(test), "systems": len(set(system))}


def as_json(value):
    """As bytes; numbers that are not finite are null."""
    finite = json.loads(json.dumps(value), parse_constant=lambda _: None)
    return (json.dumps(finite, indent=2) + "\n").encode()


HEADING = (" " * 34 + "---------- utterance ---------- ----------- system -----------\n"
           + " " * 34 + "     MSE     LCC    SRCC    KTAU" * 2)


def line(label, numbers):
    """A row below HEADING."""
    return f"{label:34}" + "".join(f" {number:7.3f}" for number in numbers)


def show(run, result, raters):
    """Prints what evaluate() found."""
    print("\nuse of the experts (mean gate, %): who serves whom")
    for model, gates in result["experts"].items():
        print(f"  {model:24}" + "".join(f"{100 * gate:6.1f}" for gate in gates))
    if result["accuracy"] is not None:
        print(f"classification accuracy {result['accuracy']:.3f}")
    show_raters(raters)
    if result["scale"] == (1.0, 5.0):
        print("\nthe real Track 3, published: other clips, not to be compared with the rows below")
        print(HEADING)
        for label, numbers in PUBLISHED.items():
            print(line(label, numbers))
    backbone = result["backbone"]["name"]
    stand_in = ", a STAND-IN, not the paper's wav2vec2" if backbone.startswith("logmel") else ""
    print(f"\n{run} on {result['data']}: {result['clips']} test clips, {result['systems']} "
          f"systems; {backbone}{stand_in}\n{HEADING}")
    for label, numbers in result["reference"].items():
        print(line(label, eight(numbers)) if numbers else f"{label:37}no two raters share clips")
    print(line("this run", eight(result)))
    low, high = eight(result["interval_95"]).T
    print(line("  95 % interval from", low))
    print(line("  to", high))
    within = f"mean LCC within a system: {result['lcc_within_systems']:.3f}"
    if result["less_ridge_interval_95"]:
        show_difference(eight(result), eight(result["reference"][RIDGE]),
                        eight(result["less_ridge_interval_95"]))
        within += f", of ridge {result['reference'][RIDGE]['lcc_within_systems']:.3f}"
    print(within)
    for level, why in result["undefined"].items():
        if why:
            print(f"LCC, SRCC and KTAU are undefined (nan) at {level} level: {why}")


def show_difference(own, of_ridge, bounds):
    """Prints how the run's numbers differ from ridge's, (8,) each; bounds: (8, 2), 95 %."""
    print(line("this run less ridge", own - of_ridge))
    print(line("  95 % interval from", bounds[:, 0]))
    print(line("  to", bounds[:, 1]))
    words = []
    for name, (low, high) in zip([*moemos.METRICS] * 2, bounds):
        if name == "MSE":  # the lower the better
            low, high = -high, -low
        words.append("better" if low > 0 else "worse" if high < 0 else "neither")
    print(f"{'  shown to be':34}" + "".join(f" {word:>7}" for word in words))


def show_raters(raters):
    """Prints rows of rater_table, or their ranges where they are many."""
    for split in ("train", "test"):
        own = [row for row in raters if row[0] == split]
        if not own:
            continue
        _, names, _, means, variances = zip(*own)
        if 1 < len(own) <= 10:
            print(f"\n{f'raters of {split} clips':20}" + "".join(f"{name:>7.6}" for name in names))
            print(f"  {'mean':18}" + "".join(f"{value:7.2f}" for value in means))
            print(f"  {'variance':18}" + "".join(f"{value:7.2f}" for value in variances))
        else:
            print(f"{len(own)} raters of {split} clips: means {min(means):.2f} to "
                  f"{max(means):.2f}, variances {min(variances):.2f} to {max(variances):.2f}; "
                  "each is in raters.csv")


def main():
    parser = argparse.ArgumentParser(
        allow_abbrev=False, description="Evaluates a run of train.py, or scores WAV files with it.")
    parser.add_argument("run", nargs="?", default="runs/default", help="(default: runs/default)")
    parser.add_argument("--data", default="", help="another corpus than the run's")
    parser.add_argument("--wav", nargs="+", metavar="PATH",
                        help="score these files, and all in these folders: wav,mos lines in CSV")
    parser.add_argument("--device", default="", help="as of train.py")
    options = parser.parse_args()
    skipped = False
    with data.one_sentence("evaluate.py"):
        if options.wav and options.data:
            raise InputError("--wav and --data are two different things to do; give one")
        if options.wav:
            skipped = print_scores(score(options.run, options.wav, options.device))
        else:
            evaluate(options.run, options.device, options.data)
    sys.exit(skipped)


if __name__ == "__main__":
    main()
