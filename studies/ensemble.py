"""Several seeds as one predictor: the mean of runs, and their spread (ours; off by default).

    python -m studies.ensemble RUN RUN ... --wav PATH ...    wav,mos,spread lines of your clips
    python -m studies.ensemble RUN RUN ...                   does it help, on their test clips

The runs are of one corpus's scale and one backbone, train.py's with other seeds. The spread is the
standard deviation of the runs' scores of a clip.
"""

import argparse
import csv
import sys

import numpy as np

import data
import evaluate
import moemos
from data import InputError


def load(runs, device=""):
    """-> [Trained]. Raises InputError for fewer than two, or where backbone or scale differ."""
    if len(runs) < 2:
        raise InputError("a mean needs two runs or more; evaluate.py scores with one")
    loaded = [evaluate.load_run(run, device) for run in runs]
    first = loaded[0]
    for run, trained in zip(runs, loaded):
        if trained.config.scale != first.config.scale:
            raise InputError(f"{run} has another scale than {runs[0]}; train it on the same")
        if trained.backbone.identity != first.backbone.identity:
            raise InputError(f"{run} has another backbone than {runs[0]}; train it on the same")
    return loaded


def say(loaded, features):
    """(clips, L, 2D) -> (runs, clips): what each run says."""
    return np.array([evaluate.predict(trained.model, features).mos.tolist() for trained in loaded])


def score(runs, paths, device=""):
    """Yields (path, mean, spread) of every WAV file among paths; NaN where it cannot be used."""
    loaded = load(runs, device)
    for path in data.find_wavs(paths):
        try:
            _, features = evaluate.read_clip(path, loaded[0])
            said = say(loaded, features)[:, 0]
            yield str(path), said.mean(), said.std()
        except InputError as error:
            print(f"skipped: {error}", file=sys.stderr)
            yield str(path), np.nan, np.nan


def print_scores(scores):
    """wav,mos,spread lines of what score() yields -> whether a file was skipped."""
    sys.stdout.reconfigure(encoding="utf-8", errors="surrogateescape")  # names may be any bytes
    table = csv.writer(sys.stdout, lineterminator="\n")
    skipped = False
    for i, (path, mos, spread) in enumerate(scores):
        if i == 0:  # so none above the sentence on runs that cannot be used
            table.writerow(["wav", "mos", "spread"])
        if np.isnan(mos):
            skipped = True
        else:
            table.writerow([path, f"{mos:.4f}", f"{spread:.4f}"])
    return skipped


def measure(runs, device=""):
    """Prints the eight numbers of the single runs, on average, and of their mean, and whether the
    spread says how wrong the mean is. Raises InputError where the runs' corpora differ."""
    loaded = load(runs, device)
    corpora = {trained.config.data for trained in loaded}
    if len(corpora) > 1:
        raise InputError(f"the runs are of different corpora: {', '.join(sorted(corpora))}")
    clips = data.read_manifest(loaded[0].config.data, loaded[0].config.scale)
    test = [clip for clip in clips if clip.split == "test" and clip.ratings]
    if not test:
        raise InputError(f"{loaded[0].config.data} has no rated test clips")
    features = data.extract_features(test, loaded[0].backbone, loaded[0].config.cache)
    said = say(loaded, features)  # (runs, clips)
    true, system = np.array([clip.mos for clip in test]), [clip.system for clip in test]
    single = [evaluate.eight(moemos.metrics(own, true, system)) for own in said]
    mean = evaluate.eight(moemos.metrics(said.mean(0), true, system))
    print(evaluate.HEADING)
    print(evaluate.line(f"{len(loaded)} single runs, on average", np.mean(single, axis=0)))
    print(evaluate.line("their mean as one predictor", mean))
    spread, error = said.std(0), np.abs(said.mean(0) - true)
    print(f"spread of a clip: {spread.mean():.3f} on average; its error: {error.mean():.3f}; "
          f"SRCC of the two: {moemos.srcc(spread, error):.3f}")


def main():
    parser = argparse.ArgumentParser(
        allow_abbrev=False, description="The mean of several runs, and their spread.")
    parser.add_argument("runs", nargs="+", metavar="RUN")
    parser.add_argument("--wav", nargs="+", metavar="PATH",
                        help="score these files, and all in these folders")
    parser.add_argument("--device", default="", help="as of train.py")
    options = parser.parse_args()
    skipped = False
    with data.one_sentence("studies.ensemble"):
        if options.wav:
            skipped = print_scores(score(options.runs, options.wav, options.device))
        else:
            measure(options.runs, options.device)
    sys.exit(skipped)


if __name__ == "__main__":
    main()
