"""Evaluation: the eight numbers of arXiv 2507.06116 section IV on the test clips of a run's corpus.

    python evaluate.py                    evaluates runs/default
    python evaluate.py runs/mine          evaluates another run
    python evaluate.py RUN --data PATH    evaluates it on another corpus; writes into RUN/on_...
    python evaluate.py RUN --wav a.wav    prints the scores of clips of your own

The first three write metrics.json and predictions.csv about the test clips that have ratings, and
answer.txt about those that have none. The intervals and the predictions that a run is compared with
are ours. The eight numbers are always one dict, with the keys "utterance MSE" to "system KTAU".
Letters of dimensions: see moemos.py.
"""

import argparse
import csv
import io
import json
import math
import os
import sys
import time
import zlib
from dataclasses import asdict, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from scipy.io import wavfile

import data
import moemos
import train
from data import InputError

FEWEST = {"clips": 10, "systems": 5}  # see parts_of(); all constants here are ours
PARTS = 500  # the largest number of parts, if a part is not a system; see parts_of()
RIDGE = "ridge"
SYSTEM_MEAN = "system's mean"
MEANING = {RIDGE: "a linear model (ridge regression) on the same features",
           SYSTEM_MEAN: "a predictor that hears nothing and only knows the system"}
WORDS = {"better": "better than", "worse": "worse than",
         "neither": "not shown to differ from", "-": "not comparable with"}


class Trained(NamedTuple):
    """A run that was loaded, see load_run()."""
    model: moemos.MoEMOS  # in evaluation mode
    backbone: moemos.Backbone
    classes: list
    config: train.Config


# -- From predictions to numbers -------------------------------------------------------------------
#
# Each number has an interval, which interval() computes. How far can one rely on it? In simulations
# with 5 to 20 independent systems, in which predictions and MOS have a correlation of .8, the
# intervals of six of the eight numbers contain the true value in 92 to 98 of 100 cases. Those of
# SRCC and KTAU at system level contain it more often, because they are too wide if there are few
# systems. We also simulated two equally good predictors. In at most 6 of 100 cases the interval of
# their difference in MSE or LCC did not contain 0, so that one of them was wrongly called better.
# We did not simulate systems that are related. Another training would also change the numbers a
# little; the intervals do not include that.

@torch.no_grad()
def predict(model, features):
    """(clips, L, 2D) -> Output on the CPU. It takes one clip at a time, so that not even the last
    bits of a score depend on the other clips."""
    device = next(model.parameters()).device
    outputs = [model(clip[None].to(device)) for clip in features]
    return moemos.Output(*(torch.cat(parts).cpu() for parts in zip(*outputs)))


def leave_one_out(predicted, true, system):
    """Each of the eight numbers, computed again and again, with another part of the clips left out
    each time: {"utterance MSE": (parts,), ...}. parts_of() says what a part is. The numbers are NaN
    if there are too few parts."""
    left_out = {}
    # At system level, moemos.levels() gives one value for each system, in order of name.
    systems = {"utterance": system, "system": np.unique(system)}
    for level, (p, t) in moemos.levels(predicted, true, system).items():
        part, _ = parts_of(systems[level])
        masks = [part != one for one in np.unique(part)]
        for name, metric in moemos.METRICS.items():
            left_out[f"{level} {name}"] = np.array([metric(p[mask], t[mask]) for mask in masks])
    return left_out


def parts_of(system):
    """Divides clips into parts. An interval is found by leaving out one part at a time. A part is a
    whole system, because parts should be independent of each other, and predictions for clips of
    one system tend to be wrong in the same way. With fewer systems than FEWEST says, each clip is a
    part, although such intervals are probably too narrow. (With more than PARTS clips, several
    clips share a part.) If there are also fewer clips than FEWEST says, all of them are one part,
    and there is no interval. (At system level each system counts as one clip. So there is no
    interval with fewer than five systems.)

    system: (n,) the system of each of n clips. Returns the part of each, (n,), and a text that says
    how the intervals are made."""
    if len(set(system)) >= FEWEST["systems"]:
        return np.asarray(system), "estimated by leaving out each system in turn"
    if len(system) >= FEWEST["clips"]:
        return np.arange(len(system)) % PARTS, "estimated from single clips; probably too narrow"
    return np.zeros(len(system)), "none, as clips and systems are too few"


def interval(value, left_out, name=""):
    """[low, high], the 95 % interval of a number, by the jackknife and Student's t.

    value: the number. left_out: (k,), the same number with each of k parts left out. name: which of
    the eight numbers it is; "" for a difference of two. Let

        reach = t(.975, k - 1) sqrt((k - 1) * variance of left_out)

    The variance is the mean squared distance from the mean. The k numbers are computed from nearly
    the same clips, and so they differ little; the factor k - 1 makes up for that. (If the number is
    the mean of k values, the square root above is exactly its standard error.)

    t(.975, k - 1) is a quantile of Student's t distribution with k - 1 degrees of freedom: of all
    numbers drawn from this distribution, 97.5 % are below it. It is about 2 if k is large. For a
    difference of two numbers the interval is

        value - reach  to  value + reach

    An example: the difference is .02, and with each of five systems left out it is .02, .01, .03,
    .02 and .02. The variance of these five is .00004, and t(.975, 4) is 2.78. So reach is
    2.78 * sqrt(4 * .00004) = .035, and the interval is [-.015, .055].

    A correlation cannot exceed 1, nor an MSE fall below 0. Near these limits an interval should not
    be symmetric. So a correlation r is replaced by atanh(r) (Fisher's scale), and an MSE by
    log(MSE); neither of these two has such a limit. We compute a symmetric interval on this new
    scale, and turn its two ends back to the old scale. But `reach` is on the old scale, and must be
    converted to the new one. If r changes by a small amount d, atanh(r) changes by about d times
    the derivative of atanh at r. So `reach` is multiplied by this derivative. It is 1 / (1 - r^2)
    for atanh(r), and 1 / MSE for log(MSE). The interval is

        of a correlation    tanh(atanh(value) ± reach / (1 - value^2))
        of an MSE           exp(log(value) ± (1 + 2 / k) reach / value)

    An example: a correlation is .9, and its reach is .05. On Fisher's scale .9 becomes 1.47, and
    .05 becomes .05 / (1 - .81) = .26. So the interval goes from tanh(1.21) to tanh(1.73), which is
    [.84, .94].

    In the interval of an MSE the factor 1 + 2 / k is ours, and from no textbook: in our
    simulations, intervals from few parts were too narrow without it. The term after ± is limited
    to 7, so that each bound is between about MSE / 1,100 and MSE * 1,100.

    The interval is NaN if the number stays the same, up to rounding, whichever part is left out.
    With few systems that can happen to SRCC and KTAU, for instance if all systems are in the right
    order."""
    from scipy.special import stdtrit  # here, so that --help need not wait for it
    k = len(left_out)
    reach = float(stdtrit(k - 1, 0.975)) * math.sqrt((k - 1) * np.var(left_out))
    if not reach > 1e-9 * np.abs(left_out).max():  # also if reach is NaN
        return [math.nan, math.nan]
    if name.endswith("MSE"):
        factor = math.exp(min((1 + 2 / k) * reach / value, 7))  # 1,100 at most
        return [value / factor, value * factor]
    if name:
        inside = (1 - 1e-12) * value  # because 1 itself has no atanh
        center, reach = math.atanh(inside), reach / (1 - inside ** 2)
        return [math.tanh(center - reach), math.tanh(center + reach)]
    return [value - reach, value + reach]


def verdict(name, difference, low, high, unit=1.0):
    """Is one predictor shown to be better than another? name: which of the eight numbers is
    compared. difference: the first predictor's number minus the second's. low, high: its interval.
    unit: what the difference is divided by when it is printed. Returns "better" or "worse",
    "neither" if nothing is shown or the difference is printed as 0, and "-" if there is no
    interval."""
    if math.isnan(low):
        return "-"
    if name.endswith("MSE"):  # here less is better
        low, high = -high, -low
    if round(difference / unit, 3) == 0 or low <= 0 <= high:
        return "neither"
    return "better" if low > 0 else "worse"


def reference_predictions(trained, clips, test):
    """Plain predictions to compare a run with: {label: MOS (test clips,)}. There are three:

        mean of training MOS   the mean MOS of all rated training clips
        system's mean          the mean MOS of the rated training clips by the same system; if there
                               are none, that of all rated training clips
        ridge                  ridge regression from the rated training clips, with the penalty
                               that training found

    clips: the run's corpus. Returns {} if fewer than two training clips have ratings."""
    training = [clip for clip in clips if clip.split == "train" and clip.ratings]
    if len(training) < 2:
        return {}
    mos = np.array([clip.mos for clip in training])
    systems = [clip.system for clip in training]
    by_system = dict(zip(np.unique(systems).tolist(), moemos.system_means(mos, systems)))
    x, new = (data.extract_features(some, trained.backbone, trained.config.cache).flatten(1)
              .double().numpy() for some in (training, test))
    return {"mean of training MOS": np.full(len(test), mos.mean()),
            SYSTEM_MEAN: np.array([by_system.get(clip.system, mos.mean()) for clip in test]),
            RIDGE: moemos.ridge(x, mos, new, [trained.model.penalty.item()])[0]}


def summary(trained, test, output, references, scale):
    """What metrics.json says about the predictions. references: what reference_predictions() gives.
    scale: the scale of the ratings; if the run was trained on another scale, an MSE has no meaning
    and is NaN. "unit" says what each number is divided by before it is printed: 1, except that an
    MSE is converted to a scale of 1 to 5."""
    predicted, true = output.mos.tolist(), [clip.mos for clip in test]
    system, models = [clip.system for clip in test], [clip.model for clip in test]
    # The eight numbers.
    numbers = moemos.metrics(predicted, true, system)
    if scale != trained.config.scale:
        numbers |= {name: math.nan for name in numbers if name.endswith("MSE")}
    of_mse = ((scale[1] - scale[0]) / 4) ** 2  # so that an MSE is printed as on a scale of 1 to 5
    unit = {name: of_mse if name.endswith("MSE") else 1.0 for name in numbers}
    # Their intervals.
    left_out = leave_one_out(predicted, true, system)
    bounds = {name: interval(value, left_out[name], name) for name, value in numbers.items()}
    # The same numbers for the plain predictions, and the differences.
    reference = {label: moemos.metrics(mos, true, system) for label, mos in references.items()}
    minus = {label: minus_reference(numbers, left_out, references[label], true, system, unit)
             for label in MEANING} if references else {}
    # What else is printed.
    undefined = {level: moemos.why_undefined(*pair)
                 for level, pair in moemos.levels(predicted, true, system).items()}
    gates = {name: output.gates[[model == name for model in models]].mean(0).tolist()
             for name in sorted(set(models))}
    return {"metrics": numbers, "unit": unit, "interval_95": bounds, "reference": reference,
            "minus": minus, "intervals": parts_of(system)[1], "undefined": undefined,
            "gates": gates, "clips": len(test), "systems": len(set(system)),
            "accuracy": accuracy(output.logits, models, trained.classes),
            "backbone": {"name": trained.backbone.name, "identity": trained.backbone.identity}}


def minus_reference(numbers, left_out, reference, true, system, unit):
    """{"utterance MSE": [this run minus a reference, low, high, verdict], ...}. When a part is left
    out, its clips are left out of the predictions of both, the run and the reference. So an error
    that both of them make cancels out in the difference.

    numbers, left_out: the run's eight numbers, and the same with each part left out. reference:
    (n,) MOS. unit: what each number is divided by when it is printed."""
    reference_left_out = leave_one_out(reference, true, system)
    compared = {}
    for name, number in moemos.metrics(reference, true, system).items():
        difference = numbers[name] - number
        low, high = interval(difference, left_out[name] - reference_left_out[name])
        word = verdict(name, difference, low, high, unit[name])
        compared[name] = [difference, low, high, word]
    return compared


def accuracy(logits, labels, classes):
    """The share of clips whose class is predicted correctly, among those whose class occurs in
    training; None if there are no such clips."""
    hits = [classes[row.argmax()] == label
            for row, label in zip(logits, labels) if label in classes]
    return float(np.mean(hits)) if hits else None


# -- The report ------------------------------------------------------------------------------------

def evaluate(run, device="", corpus="", backbone="", scale=(), max_seconds=0.0):
    """Evaluates a run on the test clips of its corpus, or of another -> the dict of metrics.json.

    Prints the report and writes its files. Test clips without ratings are predicted into
    answer.txt; if no test clip has ratings, it returns None. On another corpus the run is not
    compared with plain predictors: they would learn from the training clips of that corpus, which
    the run has never heard.

    scale, max_seconds: those of the corpus; () and 0 stand for those of the run. Raises
    InputError."""
    trained = load_run(run, device, backbone, max_seconds)
    config = trained.config
    corpus, scale = str(corpus or config.data), tuple(scale) or config.scale
    train.check(replace(config, scale=scale))
    out = folder_for(run, corpus, config.data)
    clips = data.read_corpus(corpus, scale, config.max_seconds)
    data.check_writable(out)
    test = [clip for clip in clips if clip.split == "test" and clip.ratings]
    unrated = [clip for clip in clips if clip.split == "test" and not clip.ratings]
    if not test and not unrated:
        raise InputError(f"{corpus} has no test clips; corpora.published --fold makes some")
    answer, files, result = out / "answer.txt", {}, None
    if unrated:
        files[answer] = answer_rows(trained, unrated)
    if test:
        output = predict_clips(trained, test)
        same_corpus = out == Path(run)
        references = reference_predictions(trained, clips, test) if same_corpus else {}
        result = summary(trained, test, output, references, scale)
        result |= {"data": corpus, "scale": scale, "settings": asdict(config)}
        rows = [(clip.wav, clip.system, clip.model, clip.mos, mos)
                for clip, mos in zip(test, output.mos.tolist())]
        files[out / "predictions.csv"] = [("wav", "system", "model", "mos", "predicted"), *rows]
        files[out / "metrics.json"] = as_json(result)
    # Another process may have trained the run meanwhile.
    now = read_checkpoint(run)["weights"]["mos_head.weight"]
    if not torch.equal(now, trained.model.mos_head.weight.cpu()):
        raise InputError(f"{run} was trained anew meanwhile; evaluate it again")
    data.write_files(files, outdated=() if unrated else [answer])
    if unrated:
        print(data.printable(f"{len(unrated)} test clips without ratings: predicted in {answer}"))
    if result:
        show(run, result)
    return result


def show(run, result):
    """Prints the report of evaluate()."""
    print("\nmean gate of each expert, in %, over the clips of each class")
    for name, gates in result["gates"].items():
        print(f"  {data.printable(name):24}" + "".join(f"{100 * gate:6.1f}" for gate in gates))
    if result["accuracy"] is not None:
        print(f"known classes are recognised for {100 * result['accuracy']:.1f} % of their clips")
    backbone = result["backbone"]["name"]
    stand_in = ", a stand-in and NOT the paper's wav2vec2" if backbone == "logmel" else ""
    what = (f"{run} on {result['data']}: {result['clips']} test clips, {result['systems']} "
            f"systems; {backbone}{stand_in}")
    print(f"\n{data.printable(what)}")
    print(" " * 32 + "---------- utterance ---------- ----------- system -----------")
    print(" " * 32 + "     MSE     LCC    SRCC    KTAU" * 2)
    rows = [(label, row.values()) for label, row in result["reference"].items()]
    numbers, (low, high) = result["metrics"].values(), zip(*result["interval_95"].values())
    rows += [("this run", numbers), ("  95 % interval from", low), ("  to", high)]
    if RIDGE in result["minus"]:
        minus, low, high, words = zip(*result["minus"][RIDGE].values())
        rows += [("this run minus ridge", minus), ("  95 % interval from", low), ("  to", high)]
    units = list(result["unit"].values())
    for label, row in rows:
        print(f"{label:32}" + "".join(f" {n / unit:7.3f}" for n, unit in zip(row, units)))
    if RIDGE in result["minus"]:
        print(f"{'  shown to be':32}" + "".join(f" {word:>7}" for word in words))
    if result["scale"] != result["settings"]["scale"]:
        print("MSE is undefined (nan): the ratings are on another scale than the run's")
    elif units[0] != 1:
        print(f"MSE is as on a scale of 1 to 5; on your scale it is {units[0]:g} times as large")
    for level, why in result["undefined"].items():
        if why:
            print(f"LCC, SRCC and KTAU are undefined (nan) at {level} level: {why}")
    print(f"intervals: {result['intervals']}")
    if result["minus"]:
        print(f"\nby its utterance LCC on {result['clips']} clips, this run is")
    for label, compared in result["minus"].items():
        *_, word = compared["utterance LCC"]
        print(f"  {WORDS[word]} {MEANING[label]}")


# -- Scores of your own clips ----------------------------------------------------------------------

def score(run, paths, device="", backbone="", max_seconds=0.0):
    """Yields (path, MOS) of every WAV file in paths, which is a file, a folder, or a list of them.

    Each file is scored by itself; for one file, `dict(score("runs/default", "a.wav"))["a.wav"]` is
    its score. A file that cannot be used is reported on standard error, and its MOS is NaN.
    Raises InputError if the run cannot be used, as load_run() does."""
    trained = load_run(run, device, backbone, max_seconds)
    paths = [paths] if isinstance(paths, (str, os.PathLike)) else paths
    files = [file for path in paths for file in data.find_wavs(path) or [path]]
    start = time.monotonic()
    for i, path in enumerate(files):
        try:
            if os.path.isdir(path):
                raise InputError(f"{path}: there is no WAV file in this folder")
            _, features = read_clip(path, trained)
            mos = predict(trained.model, features).mos.item()
            if not math.isfinite(mos):
                raise InputError(f"{path}: {run} gives it no finite score; train the run again")
        except InputError as error:
            print(f"skipped: {error}", file=sys.stderr)
            mos = math.nan
        yield str(path), mos
        data.show_progress("scored", i + 1, len(files), start)


def score_waveform(trained, waveform, rate):
    """(T,) floats between -1 and 1, a tensor or an array, at a rate up to 768 kHz -> MOS. The score
    is that of a WAV file with these samples: one is made in memory. Raises InputError."""
    waveform = torch.as_tensor(waveform)
    if waveform.dim() != 1 or not waveform.is_floating_point() or not 1 <= rate <= 768000:
        raise InputError(f"a waveform is (T,) floats at a rate up to 768 kHz, not {waveform.dtype} "
                         f"of shape {tuple(waveform.shape)} at {rate} Hz")
    file = io.BytesIO()
    wavfile.write(file, int(rate), waveform.detach().cpu().double().numpy())
    _, features = read_clip("the waveform", trained, file.getvalue())
    return predict(trained.model, features).mos.item()


def read_clip(path, trained, content=None):
    """A WAV file -> its waveform (T,), its features (1, L, 2D). content: the bytes of the file,
    if they have been read. Raises InputError."""
    content = data.read_bytes(path) if content is None else content
    data.check_clip(path, trained.config.max_seconds, content)
    waveform = data.read_wav(path, trained.backbone.sample_rate, content)
    return waveform, data.clip_features(waveform, trained.backbone, path)[None]


# -- What follows is not part of the method: runs, files and the command line ----------------------

def load_run(run, device="", backbone="", max_seconds=0.0):
    """A folder that train.py wrote -> Trained. backbone: if it is a module of your own, its name
    must be given again, so that a model.pt from elsewhere cannot choose which code is run.
    max_seconds: 0 means the run's. Raises InputError for a run that is not whole, or that was
    trained on another backbone."""
    saved = read_checkpoint(run)
    name, identity = saved["backbone"]["name"], saved["backbone"]["identity"]
    known = name == "logmel" or moemos.torchaudio_bundle(name) is not None
    if backbone != name and (backbone or not known):
        raise InputError(f"{run} was trained on backbone {data.shown(name)}: give it as --backbone")
    device = data.pick_device(device)
    try:
        backbone = data.open_backbone(name, device)
    except InputError as error:
        raise InputError(f"{run} needs its backbone: {error}") from None
    if backbone.identity != identity:
        raise InputError(f"{run} was trained on a {name} with other weights or code than the one "
                         "here; train it again")
    config = train.Config(**saved["config"], out=str(run))
    config = replace(config, max_seconds=max_seconds or config.max_seconds)
    try:
        model = train.build_model(config, saved["weights"])
        model.load_state_dict(saved["weights"])  # all of them, or it raises
        shape = (*model.fusion.mean.shape, model.class_head.out_features)
        if shape != (backbone.layers, 2 * backbone.width, len(saved["classes"])):
            raise ValueError
    except Exception:  # noqa: BLE001 - torch raises nearly anything
        raise InputError(f"{run}/model.pt is of another version; train the run again") from None
    return Trained(model.to(backbone.device).eval(), backbone, saved["classes"], config)


def read_checkpoint(run):
    """What train.py wrote into a run's model.pt, a dict. Raises InputError."""
    path = Path(run, "model.pt")
    try:
        content = data.without_digest(path.read_bytes())
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}); train the run") from None
    try:
        saved = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
        train.check(train.Config(**saved["config"], out=str(run)))
        finite = all(tensor.isfinite().all() for tensor in saved["weights"].values())
        name, identity = saved["backbone"]["name"], saved["backbone"]["identity"]
        named = all(isinstance(text, str) for text in (name, identity, *saved["classes"]))
        if not (finite and named and name and isinstance(saved["classes"], list)):
            raise ValueError
    except Exception:  # noqa: BLE001 - torch raises nearly anything
        raise InputError(f"{path} is damaged or of another version; train the run again") from None
    return saved


def predict_clips(trained, clips):
    """Clips -> Output, their features from the run's cache. Raises InputError."""
    features = data.extract_features(clips, trained.backbone, trained.config.cache)
    output = predict(trained.model, features)
    if not output.mos.isfinite().all():
        raise InputError(f"{trained.config.out} gives scores that are not finite; train it again")
    return output


def folder_for(run, corpus, run_corpus):
    """Where results go: into the run's folder or, for another corpus, into a folder below it."""
    table, run_table = (os.path.realpath(data.table_of(path)) for path in (corpus, run_corpus))
    name = f"on_{Path(table).parent.name}_{zlib.crc32(table.encode(errors='replace')):08x}"
    return Path(run) if table == run_table else Path(run, name)


def answer_rows(trained, clips):
    """Predicts clips without ratings -> rows (id, score), as the AudioMOS challenge has them. The
    id of a clip is the name of its file without .wav. If two clips would have the same id, the ids
    of all clips are their paths in the table."""
    ids = [Path(clip.wav).stem for clip in clips]
    if len(set(ids)) < len(ids):
        ids = [clip.wav for clip in clips]
    return list(zip(ids, predict_clips(trained, clips).mos.tolist()))


def as_json(value):
    """As bytes; numbers that are not finite are null."""
    finite = json.loads(json.dumps(value), parse_constant=lambda _: None)
    return (json.dumps(finite, indent=2) + "\n").encode()


def print_scores(scores):
    """Prints a line wav,mos for each file that score() could score -> whether one was skipped."""
    sys.stdout.reconfigure(encoding="utf-8", errors="surrogateescape")  # names may be any bytes
    table = csv.writer(sys.stdout, lineterminator="\n")
    shown = data.printable if sys.stdout.isatty() else str  # a terminal obeys control characters
    skipped = False
    for i, (path, mos) in enumerate(scores):
        if i == 0:  # score() loads the run at its first step, which may fail
            table.writerow(["wav", "mos"])
        skipped = skipped or math.isnan(mos)
        if not math.isnan(mos):
            table.writerow([shown(path), f"{mos:.4f}"])
    return skipped


def main():
    parser = argparse.ArgumentParser(
        allow_abbrev=False, description="Evaluates a run of train.py, or scores WAV files with it.")
    parser.add_argument("run", nargs="?", default="runs/default",
                        help="Name a folder that train.py wrote (default: runs/default).")
    parser.add_argument("--data", default="", help="Evaluate on this corpus, not on the run's.")
    parser.add_argument("--scale", type=float, nargs=2, default=(), metavar=("LOW", "HIGH"),
                        help="No rating of --data is below LOW or above HIGH (default: the run's).")
    parser.add_argument("--wav", nargs="+", metavar="PATH",
                        help="Print wav,mos for these WAV files, and for all in these folders.")
    parser.add_argument("--max-seconds", type=float, default=0.0,
                        help="Longer clips are refused (default: the setting of the run).")
    parser.add_argument("--device", default="", help="Compute on cpu, cuda, ..., as in train.py.")
    parser.add_argument("--backbone", default="", help="Name it if it is a Python module.")
    options = parser.parse_args()
    skipped = False
    with data.errors_in_one_sentence("evaluate.py"):
        if options.wav and options.data:
            raise InputError("--wav and --data are two different things to do; give one")
        if options.scale and not options.data:
            raise InputError("--scale needs --data, as it is the scale of another corpus")
        for path in options.wav or ():
            if os.path.exists(Path(path, "model.pt")):
                raise InputError(f"{path} is a run; write it before --wav")
        if options.wav:
            scores = score(options.run, options.wav, options.device, options.backbone,
                           options.max_seconds)
            skipped = print_scores(scores)
        else:
            evaluate(options.run, options.device, options.data, options.backbone, options.scale,
                     options.max_seconds)
    sys.exit(skipped)


if __name__ == "__main__":
    main()
