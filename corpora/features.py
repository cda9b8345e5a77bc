"""Checks a corpus and extracts its features into the cache, before train.py needs them.

    python -m corpora.features PATH
    torchrun --nproc-per-node N -m corpora.features PATH --backbone WAV2VEC2_BASE

With torchrun each of N processes takes its share of the clips.
"""

import argparse
import os

import data
from data import InputError


def place_among_processes():
    """(rank, number of processes), as torchrun sets them, else (0, 1). Raises InputError."""
    given = [os.environ.get("RANK", ""), os.environ.get("WORLD_SIZE", "")]
    if given == ["", ""]:
        return 0, 1
    if all(text.isdecimal() for text in given) and int(given[0]) < int(given[1]):
        return int(given[0]), int(given[1])
    raise InputError(f"RANK and WORLD_SIZE are {data.shown(given)}, no place among processes; "
                     "start with torchrun, or unset both")


def main():
    parser = argparse.ArgumentParser(
        allow_abbrev=False, description="Checks a corpus and extracts its features into the cache.")
    parser.add_argument("path", help="Name a ratings.csv or its folder.")
    parser.add_argument("--backbone", default="", help="Choose it as in train.py.")
    parser.add_argument("--device", default="", help="Choose it as in train.py.")
    parser.add_argument("--cache", default="cache", help="Features are kept in this folder.")
    parser.add_argument("--scale", type=float, nargs=2, default=(1.0, 5.0))
    parser.add_argument("--max-seconds", type=float, default=60.0)
    options = parser.parse_args()
    with data.errors_in_one_sentence("corpora.features"):
        data.check_scale(options.scale)
        rank, processes = place_among_processes()
        clips = data.read_ratings(options.path, options.scale)
        share = clips[rank::processes]
        print(f"{options.path}: {data.check_clips(share, options.max_seconds)}")
        backbone = data.open_backbone(options.backbone, options.device)
        data.extract_features(share, backbone, options.cache)
        print(f"{backbone.name} features of {len(share)} of {len(clips)} clips in {options.cache}")


if __name__ == "__main__":
    main()
