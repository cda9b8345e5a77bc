"""Scores WAV files with the linear model that a run is compared with: ridge regression.

    python -m studies.ridge runs/mine --backbone studies.distilled --wav a_folder/ > scores.csv

It learns from the rated training clips of the run's table, with the penalty that training found,
and prints a line wav,mos for each WAV file, as evaluate.py --wav does for the run itself.
"""

import argparse
from pathlib import Path

import data
import evaluate


def score(run, paths, device="", backbone="", max_seconds=0.0):
    """[(path, MOS)] of every WAV file in paths, a list of files and folders. device, backbone,
    max_seconds: as for evaluate.load_run(). Raises InputError for a run, or a file, that cannot be
    used."""
    trained = evaluate.load_run(run, device, backbone, max_seconds)
    config = trained.config
    table = data.read_ratings(config.data, config.scale)
    files = [file for path in paths for file in data.find_wavs(path) or [Path(path)]]
    clips = [data.Clip(str(file), file, "test", "", "", "") for file in files]
    data.check_clips(clips, config.max_seconds)
    predicted = evaluate.reference_predictions(trained, table, clips)
    if not predicted:
        raise data.InputError(f"{config.data}: has lost its ratings of training clips; fewer than "
                              "two are left, so train again")
    return list(zip(map(str, files), predicted[evaluate.RIDGE].tolist()))


def main():
    parser = argparse.ArgumentParser(
        allow_abbrev=False, description="Scores WAV files with ridge regression.")
    parser.add_argument("run", help="Name a folder that train.py wrote.")
    parser.add_argument("--wav", nargs="+", metavar="PATH", required=True,
                        help="Print wav,mos for these WAV files, and for all in these folders.")
    parser.add_argument("--max-seconds", type=float, default=0.0,
                        help="Longer clips are refused (default: the setting of the run).")
    parser.add_argument("--backbone", default="", help="Name it if it is a Python module.")
    parser.add_argument("--device", default="", help="Compute on cpu, cuda, ..., as in train.py.")
    options = parser.parse_args()
    with data.errors_in_one_sentence("studies.ridge"):
        scores = score(options.run, options.wav, options.device, options.backbone,
                       options.max_seconds)
        evaluate.print_scores(scores)


if __name__ == "__main__":
    main()
