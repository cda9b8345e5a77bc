"""Evaluation: the eight numbers of arXiv 2507.06116 section IV on the test clips of a run's corpus.

    python evaluate.py                    of runs/default
    python evaluate.py runs/mine          of another run
    python evaluate.py RUN --data PATH    on another corpus, into a folder RUN/on_...
    python evaluate.py --wav a.wav b/     prints wav,mos lines of one's own clips

Writes metrics.json and predictions.csv into the run's folder, and answer.txt where test clips have
no ratings. The rows to compare with, and the intervals, are ours. The eight numbers
are a dict everywhere, from "utterance MSE" to "system KTAU". Letters of dimensions: see moemos.py.
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

try:
    import data
    import moemos
    import train
    from data import InputError
except ModuleNotFoundError as error:  # Python's -I and -P leave out the script's own folder
    raise SystemExit(f"evaluate.py: {error}; start Python without -I and -P") from None

FEWEST = {"clips": 10, "systems": 5}  # for an interval; ours, as all of these
PARTS = 500       # at most so many, where clips are left out in turn for it
RIDGE = "ridge on the same features"
CONDITION = "condition's mean training MOS"
MEANING = {RIDGE: "a straight line through the same features",
           CONDITION: "being told each clip's condition and hearing nothing"}
WORDS = {"better": "better than", "worse": "worse than",
         "neither": "not shown to be better or worse than", "-": "not comparable with"}


# -- A run and its predictions ---------------------------------------------------------------------

class Trained(NamedTuple):
    model: moemos.MoEMOS  # in eval mode
    backbone: moemos.Backbone
    classes: list
    config: train.Config


def load_run(run, device="", backbone="", max_seconds=0.0):
    """A folder that train.py wrote -> Trained. backbone: where it is code of one's own, its name
    must be given again, so that no file says what code is run. max_seconds: 0 keeps the run's.
    Raises InputError for a run that is not whole, or was trained on other weights."""
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
        shape = (*model.fusion.center.shape, model.class_head.out_features)
        if shape != (backbone.layers, 2 * backbone.width, len(saved["classes"])):
            raise ValueError
    except Exception:  # noqa: BLE001 - torch raises nearly anything
        raise InputError(f"{run}/model.pt is of another version; train the run again") from None
    return Trained(model.to(backbone.device).eval(), backbone, saved["classes"], config)


def read_checkpoint(run):
    """What train.py wrote into a run's model.pt, a dict. Raises InputError."""
    path = Path(run, "model.pt")
    try:
        content = data.unsealed(path.read_bytes())
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
    except Exception:  # noqa: BLE001 - torch raises nearly anything, and quotes advice not ours
        raise InputError(f"{path} is damaged or of another version; train the run again") from None
    return saved


@torch.no_grad()
def predict(model, features):
    """(clips, L, 2D) -> Output on the CPU. One clip at a time: none depends on its company."""
    device = next(model.parameters()).device
    outputs = [model(clip[None].to(device)) for clip in features]
    return moemos.Output(*(torch.cat(parts).cpu() for parts in zip(*outputs)))


def predict_clips(trained, clips):
    """Clips -> Output, their features from the run's cache. Raises InputError."""
    features = data.extract_features(clips, trained.backbone, trained.config.cache)
    output = predict(trained.model, features)
    if not output.mos.isfinite().all():
        raise InputError(f"{trained.config.out} gives scores that are not finite; train it again")
    return output


def read_clip(path, trained, content=None):
    """A WAV file, read once, or its bytes -> (T,), (1, L, 2D). Raises InputError."""
    content = data.read_bytes(path) if content is None else content
    data.check_clip(path, trained.config.max_seconds, content)
    waveform = data.read_wav(path, trained.backbone.sample_rate, content)
    return waveform, data.clip_statistics(waveform, trained.backbone, path)[None]


def score_waveform(trained, waveform, rate):
    """(T,) floats of full scale 1, a tensor or an array, at any rate in Hz -> MOS, that of a WAV
    file which holds them, as they go the way of one. Raises InputError."""
    waveform = torch.as_tensor(waveform)
    if waveform.dim() != 1 or not waveform.is_floating_point() or not 1 <= rate <= 768000:
        raise InputError(f"a waveform is (T,) floats at a rate up to 768 kHz, not {waveform.dtype} "
                         f"of shape {tuple(waveform.shape)} at {rate} Hz")
    file = io.BytesIO()
    wavfile.write(file, int(rate), waveform.detach().cpu().double().numpy())
    _, features = read_clip("the waveform", trained, file.getvalue())
    return predict(trained.model, features).mos.item()


def score(run, paths, device="", backbone="", max_seconds=0.0):
    """Yields (path, MOS) of every WAV file among paths: a file, a folder, or several of them.

    `dict(score("runs/default", "a.wav"))["a.wav"]` is the same alone, in any company and on every
    call. What cannot be used is reported on standard error and has NaN. Raises InputError for a
    run that cannot be used, as of load_run."""
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


def print_scores(scores):
    """wav,mos lines of what score() yields -> whether a file was skipped."""
    sys.stdout.reconfigure(encoding="utf-8", errors="surrogateescape")  # names may be any bytes
    table = csv.writer(sys.stdout, lineterminator="\n")
    shown = data.printable if sys.stdout.isatty() else str  # a terminal obeys what it is told
    skipped = False
    for i, (path, mos) in enumerate(scores):
        if i == 0:  # so none above the sentence on a run that cannot be used
            table.writerow(["wav", "mos"])
        if math.isnan(mos):
            skipped = True
        else:
            table.writerow([shown(path), f"{mos:.4f}"])
    return skipped


# -- Numbers of test clips -------------------------------------------------------------------------

def parts_of(system):
    """(n,) the systems of n clips -> (n,) the part of each, one of which is left out at a time for
    an interval, and what that is for. Clips of a system share its errors, so a part is a system; a
    clip, where systems are fewer than FEWEST; and where clips are too, all are one part."""
    if len(set(system)) >= FEWEST["systems"]:
        return np.asarray(system), "other systems: each is left out in turn"
    if len(system) >= FEWEST["clips"]:
        return np.arange(len(system)) % PARTS, "other clips of these systems, left out in turn"
    return np.zeros(len(system)), "nothing: clips and systems are too few"


def leave_one_out(predicted, true, system):
    """The eight numbers with one of parts_of() left out in turn: {"utterance MSE": (parts,), ...}.
    At system level a system counts as a clip of its own; of too few there all are NaN."""
    left_out, rows = {}, {"utterance": system, "system": np.unique(system)}
    for level, (p, t) in moemos.levels(predicted, true, system).items():
        part, _ = parts_of(rows[level])
        kept = [part != one for one in np.unique(part)]
        for name, metric in moemos.METRICS.items():
            left_out[f"{level} {name}"] = np.array([metric(p[some], t[some]) for some in kept])
    return left_out


def interval(value, left_out, name=""):
    """[low, high], the 95 % interval of one of the eight numbers, by name, or of a difference of
    two, from what it is with each of n parts left out, (n,): the jackknife, with Student's t.

        reach         t(.975, n - 1) sqrt((n - 1) / n sum_i (left_out_i - their mean)^2)
        difference    value -+ reach
        correlation   tanh(atanh(value) -+ reach / (1 - value^2))        on Fisher's scale
        MSE           exp(log(value) -+ (1 + 2 / n) reach / value)       on that of the logarithm

    Near an end of its range a number strays further inwards than outwards, but not on these scales,
    whose slopes take the reach there. 1 + 2 / n is from a simulation: few parts vary too little.
    NaN where none moves the value by more than rounding, as ranks of few systems: no certainty."""
    from scipy.special import stdtrit  # here, so that --help need not wait for it
    n = len(left_out)
    reach = float(stdtrit(n - 1, 0.975)) * math.sqrt((n - 1) * np.var(left_out))
    if not reach > 1e-9 * np.abs(left_out).max():
        return [math.nan, math.nan]
    if name.endswith("MSE"):
        factor = math.exp(min((1 + 2 / n) * reach / value, 7))  # a thousandfold says nothing
        return [value / factor, value * factor]
    if name:
        inside = (1 - 1e-12) * value  # as 1 itself has no atanh
        center, reach = math.atanh(inside), reach / (1 - inside ** 2)
        return [math.tanh(center - reach), math.tanh(center + reach)]
    return [value - reach, value + reach]


def verdict(name, difference, low, high):
    """What a difference, first less second, in one of the eight numbers says of the first by its
    interval: "better", "worse", "neither", also where it rounds to 0, or "-" without one."""
    if math.isnan(low):
        return "-"
    if name.endswith("MSE"):  # the lower the better
        low, high = -high, -low
    if round(difference, 3) == 0 or low <= 0 <= high:
        return "neither"
    return "better" if low > 0 else "worse"


def reference_predictions(trained, clips, test):
    """Plain predictions that the model is to beat: {label: MOS (test clips,)}. The mean training
    MOS, of all clips or of the clip's system, hears nothing; ridge is the straight line to beat:
    it learns from the same clips as the head, at the strength that training found. clips: the
    run's corpus; {} with fewer than two rated training clips."""
    training = [clip for clip in clips if clip.split == "train" and clip.ratings]
    if len(training) < 2:
        return {}
    mos = np.array([clip.mos for clip in training])
    systems = [clip.system for clip in training]
    by_system = dict(zip(np.unique(systems).tolist(), moemos.system_means(mos, systems)))
    x, new = (data.extract_features(some, trained.backbone, trained.config.cache).flatten(1)
              .double().numpy() for some in (training, test))
    return {"mean of training MOS": np.full(len(test), mos.mean()),
            CONDITION: np.array([by_system.get(clip.system, mos.mean()) for clip in test]),
            RIDGE: moemos.ridge(x, mos, new, [trained.model.strength.item()])[0]}


# -- The report ------------------------------------------------------------------------------------

def evaluate(run, device="", corpus="", backbone="", scale=(), max_seconds=0.0):
    """Evaluates a run on the test clips of its corpus, or of another -> the dict of metrics.json.

    Prints the report, writes its files. Test clips without ratings are predicted into answer.txt;
    where there are no others, None is returned. Another corpus gets no reference rows, as they
    would learn from its training clips, and the head did not. scale, max_seconds: of the corpus;
    () and 0 stand for the run's. Raises InputError."""
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
        said = reference_predictions(trained, clips if out == Path(run) else [], test)
        result = summary(trained, test, output, said, scale)
        result |= {"data": corpus, "scale": scale, "settings": asdict(config)}
        rows = [(clip.wav, clip.system, clip.model, clip.mos, mos)
                for clip, mos in zip(test, output.mos.tolist())]
        files[out / "predictions.csv"] = [("wav", "system", "model", "mos", "predicted"), *rows]
        files[out / "metrics.json"] = as_json(result)
    now = read_checkpoint(run)["weights"]["mos_head.weight"]
    if not torch.equal(now, trained.model.mos_head.weight.cpu()):
        raise InputError(f"{run} was trained anew meanwhile; evaluate it again")
    data.write_files(files, outdated=() if unrated else [answer])
    if unrated:
        print(data.printable(f"{len(unrated)} test clips without ratings: predicted in {answer}"))
    if result:
        show(run, result)
    return result


def folder_for(run, corpus, run_corpus):
    """Where results go: into the run's folder, or one below it for each other corpus."""
    table, own = (os.path.realpath(data.table_of(path)) for path in (corpus, run_corpus))
    name = f"on_{Path(table).parent.name}_{zlib.crc32(table.encode(errors='replace')):08x}"
    return Path(run) if table == own else Path(run, name)


def answer_rows(trained, clips):
    """Predicts clips without ratings, in the challenge's form: id,score. A clip's id is its file's
    name without .wav, or, where two would be the same, what the table has."""
    ids = [Path(clip.wav).stem for clip in clips]
    if len(set(ids)) < len(ids):
        ids = [clip.wav for clip in clips]
    return list(zip(ids, predict_clips(trained, clips).mos.tolist()))


def accuracy(logits, labels, classes):
    """Share of right classes among the clips whose class is known; None without any."""
    hits = [classes[row.argmax()] == label
            for row, label in zip(logits, labels) if label in classes]
    return float(np.mean(hits)) if hits else None


def summary(trained, test, output, said, scale):
    """What metrics.json says of the predictions. said: as of reference_predictions. scale: of the
    ratings; where it is not that of the run, an MSE has no meaning and is NaN."""
    predicted, true = output.mos.tolist(), [clip.mos for clip in test]
    system, model = [clip.system for clip in test], [clip.model for clip in test]
    own = moemos.metrics(predicted, true, system)
    if scale != trained.config.scale:
        own |= {name: math.nan for name in own if name.endswith("MSE")}
    of_mse = ((scale[1] - scale[0]) / 4) ** 2  # so that an MSE is printed as on a scale of 1 to 5
    unit = {name: of_mse if name.endswith("MSE") else 1.0 for name in own}
    left_out = leave_one_out(predicted, true, system)
    bounds = {name: interval(value, left_out[name], name) for name, value in own.items()}
    reference = {label: moemos.metrics(values, true, system) for label, values in said.items()}
    less = {label: less_reference(own, left_out, said[label], true, system, unit)
            for label in MEANING if said}
    undefined = {level: moemos.undefined(*pair)
                 for level, pair in moemos.levels(predicted, true, system).items()}
    experts = {name: output.gates[[other == name for other in model]].mean(0).tolist()
               for name in sorted(set(model))}  # who serves whom
    return {"metrics": own, "unit": unit, "interval_95": bounds, "reference": reference,
            "less": less, "intervals_for": parts_of(system)[1], "undefined": undefined,
            "experts": experts, "clips": len(test), "systems": len(set(system)),
            "accuracy": accuracy(output.logits, model, trained.classes),
            "backbone": {"name": trained.backbone.name, "identity": trained.backbone.identity}}


def less_reference(own, left_out, values, true, system, unit):
    """Paired: {"utterance MSE": [this run less the reference, low, high, verdict], ...}."""
    without = leave_one_out(values, true, system)
    found = {}
    for name, other in moemos.metrics(values, true, system).items():
        difference = own[name] - other
        low, high = interval(difference, left_out[name] - without[name])
        found[name] = [difference, low, high, verdict(name, difference / unit[name], low, high)]
    return found


def as_json(value):
    """As bytes; numbers that are not finite are null."""
    finite = json.loads(json.dumps(value), parse_constant=lambda _: None)
    return (json.dumps(finite, indent=2) + "\n").encode()


def show(run, result):
    """Prints what evaluate() found."""
    print("\nuse of the experts (mean gate, %): who serves whom")
    for model, gates in result["experts"].items():
        print(f"  {data.printable(model):24}" + "".join(f"{100 * gate:6.1f}" for gate in gates))
    if result["accuracy"] is not None:
        print(f"classification accuracy {result['accuracy']:.3f}")
    backbone = result["backbone"]["name"]
    stand_in = ", a STAND-IN, not the paper's wav2vec2" if backbone == "logmel" else ""
    what = (f"{run} on {result['data']}: {result['clips']} test clips, {result['systems']} "
            f"systems; {backbone}{stand_in}")
    print(f"\n{data.printable(what)}")
    print(" " * 32 + "---------- utterance ---------- ----------- system -----------")
    print(" " * 32 + "     MSE     LCC    SRCC    KTAU" * 2)
    rows = [(label, numbers.values()) for label, numbers in result["reference"].items()]
    own, (low, high) = result["metrics"].values(), zip(*result["interval_95"].values())
    rows += [("this run", own), ("  95 % interval from", low), ("  to", high)]
    if RIDGE in result["less"]:
        less, low, high, words = zip(*result["less"][RIDGE].values())
        rows += [("this run less ridge", less), ("  95 % interval from", low), ("  to", high)]
    units = list(result["unit"].values())
    for label, numbers in rows:
        print(f"{label:32}" + "".join(f" {n / unit:7.3f}" for n, unit in zip(numbers, units)))
    if RIDGE in result["less"]:
        print(f"{'  shown to be':32}" + "".join(f" {word:>7}" for word in words))
    if result["scale"] != result["settings"]["scale"]:
        print("MSE is undefined (nan): the ratings are on another scale than the run's")
    elif units[0] != 1:
        print(f"MSE is as on a scale of 1 to 5; metrics.json has {units[0]:g} times as much")
    for level, why in result["undefined"].items():
        if why:
            print(f"LCC, SRCC and KTAU are undefined (nan) at {level} level: {why}")
    print(f"intervals are for {result['intervals_for']}")
    if result["less"]:
        print(f"\nin words, by the utterance LCC of {result['clips']} clips, this run is")
    for label, compared in result["less"].items():
        *_, word = compared["utterance LCC"]
        print(f"  {WORDS[word]} {MEANING[label]}")


def main():
    parser = argparse.ArgumentParser(
        allow_abbrev=False, description="Evaluates a run of train.py, or scores WAV files with it.")
    parser.add_argument("run", nargs="?", default="runs/default", help="(default: runs/default)")
    parser.add_argument("--data", default="", help="another corpus than the run's")
    parser.add_argument("--scale", type=float, nargs=2, default=(), metavar=("LOW", "HIGH"),
                        help="lowest and highest rating there, if other than the run's")
    parser.add_argument("--wav", nargs="+", metavar="PATH",
                        help="score these files, and all in these folders: wav,mos lines in CSV")
    parser.add_argument("--max-seconds", type=float, default=0.0, help="(default: the run's)")
    parser.add_argument("--device", default="", help="as of train.py")
    parser.add_argument("--backbone", default="", help="of the run, where it is your own module")
    options = parser.parse_args()
    skipped = False
    with data.one_sentence("evaluate.py"):
        if options.wav and options.data:
            raise InputError("--wav and --data are two different things to do; give one")
        if options.scale and not options.data:
            raise InputError("--scale is that of another corpus; name it by --data")
        for path in options.wav or ():
            if os.path.exists(Path(path, "model.pt")):
                raise InputError(f"{path} is a run, and comes before --wav")
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
