"""Published data sets of rated speech -> ratings.csv, the one table that data.py reads.

    python -m corpora.published PATH --out ratings.csv
    python -m corpora.published PATH --out ratings.csv --augment FOLDER

PATH is an unpacked data set, one of LAYOUTS, or a ratings.csv or its folder. The WAV files stay
where they are; the table says what was understood of the data set, so look at it. --augment appends
clips without MOS (III.D), each subfolder of FOLDER being one synthesis model.
"""

import argparse
import glob
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import data
from data import InputError


class Layout(NamedTuple):
    name: str
    tables: dict      # pattern of its tables -> their split; the layout is known by the first
    columns: str      # of each table
    header: bool      # whether the first row names them
    wavs: str         # folder of the clips
    fields: Callable  # row, table -> the row of ratings.csv, without its split


def track3(row, table):
    """audiomos-track3-RATE_METHOD_...; a rater's id is unique only within one test."""
    match = re.match(r"audiomos-track3-((?:16|24|48)k_(sys\d+|(?:original|nv|tts|world)(?:SR)?))_",
                     row["uttID"])
    if not match:
        raise InputError(f"{row['uttID']} is no name of a Track 3 clip "
                         "(audiomos-track3-RATE_METHOD_...)")
    rater = f"{table.stem}:{row['lisID']}" if "lisID" in row else ""
    return {"wav": row["uttID"].removesuffix(".wav") + ".wav", "system": match[1],
            "model": match[2], "rater": rater, "score": row.get("rating", "")}


def bvcc(row, table):
    """The system stands before the first "-"; of the listener, {}_AGE_ID_..., the id is taken."""
    rater = "mean"
    if "listener" in row:
        parts = row["listener"].split("_")
        if len(parts) < 3:
            raise InputError(f"the listener must be {{}}_AGE_ID_..., not {row['listener']!r}")
        rater = parts[2]
    return {"wav": row["wav"], "system": row["wav"].split("-")[0], "rater": rater,
            "score": row["score"]}


def somos(row, table):
    return {"wav": row["utteranceId"].removesuffix(".wav") + ".wav", "system": row["systemId"],
            "rater": row["listenerId"], "score": row["choice"]}


LAYOUTS = (  # as their distributors lay them out; the first that is there is taken
    Layout("AudioMOS 2025 Track 3, post-evaluation archive",
           {"train/utt_*.csv": "train", "test/utt_mix_test.csv": "test"},  # without val/ (IV)
           "uttID,lisID,rating", True, "wav", track3),
    Layout("AudioMOS 2025 Track 3, phase archives", {"utt_*k.csv": "train"},
           "uttID,lisID,rating", True, "wav", track3),
    Layout("AudioMOS 2025 Track 3, phase archives", {"sets/eval_list.txt": "test"},
           "uttID", False, "wav", track3),
    Layout("BVCC, single ratings",
           {"sets/TRAINSET": "train", "sets/DEVSET": "dev", "sets/TESTSET": "test"},
           "system,wav,score,ignored,listener", False, "wav", bvcc),
    Layout("BVCC, mean ratings",
           {"sets/train_mos_list.txt": "train", "sets/val_mos_list.txt": "dev",
            "sets/test_mos_list.txt": "test"}, "wav,score", False, "wav", bvcc),
    Layout("SOMOS, clean split",
           {"training_files/split1/clean/TRAINSET": "train",
            "training_files/split1/clean/VALIDSET": "dev",
            "training_files/split1/clean/TESTSET": "test"},
           "systemId,utteranceId,choice,listenerId", True, "audios", somos),
)
FOLDERS = ("", "DATA", "track3_obf/DATA", "audiomos2025-track3-eval-phase/DATA", "post_eval_distro")


def recognise(path):
    """[(Layout, its folder)] of what lies at a path, two where a data set comes in two archives."""
    found = []
    for layout in LAYOUTS:
        first = next(iter(layout.tables))
        folders = [Path(path, folder) for folder in FOLDERS]
        found += [(layout, folder) for folder in folders if glob.glob(first, root_dir=folder)]
    return [(layout, folder) for layout, folder in found if layout.name == found[0][0].name]


def read(path, scale):
    """What lies at a path -> (its name, its clips in order of first appearance).

    Raises InputError naming file and row.
    """
    parts = recognise(path)
    if not parts and (os.path.isfile(path) or os.path.isfile(Path(path, "ratings.csv"))):
        return "ratings.csv", data.read_manifest(path, scale)
    if not parts:
        names = ", ".join(next(iter(layout.tables)) for layout in LAYOUTS)
        raise InputError(f"{path}: there is no data set that is known; looked for {names}, "
                         "ratings.csv; name the folder that holds one of these")
    clips = {}
    for layout, folder in parts:
        for pattern, split in layout.tables.items():
            for table in sorted(glob.glob(pattern, root_dir=folder)):
                read_table(folder / table, layout, split, folder / layout.wavs, scale, clips)
    if not clips:
        raise InputError(f"{path}: there are no rows in the tables of this data set")
    return parts[0][0].name, list(clips.values())


def read_table(table, layout, split, wavs, scale, clips):
    """Adds the clips of a table to clips, as data.add_row does. Raises InputError."""
    for place, row in data.read_rows(table, layout.columns.split(","), header=layout.header):
        try:
            fields = layout.fields(row, table)
        except InputError as error:
            raise InputError(f"{place}: {error}") from None
        data.add_row(clips, {"split": split, **fields}, wavs, scale, place)


def read_augmentation(folder, path, clips, scale):
    """The clips without MOS of a folder, a subfolder a synthesis model (III.D).

    path, clips: the corpus that they join. Raises InputError.
    """
    if not os.path.isdir(folder):
        raise InputError(f"--augment {folder}: is no folder")
    known = {os.path.realpath(clip.path) for clip in clips}
    added = {}
    for wav in data.find_wavs([folder]):
        name = wav.relative_to(folder)
        if os.path.realpath(wav) in known:
            raise InputError(f"{wav}: is a clip of {path} too; take it out of {folder}")
        if len(name.parts) == 1:
            raise InputError(f"{wav}: must lie in a subfolder of {folder} that bears its synthesis "
                             "model's name")
        labels = {"split": "train", "system": name.parts[0], "rater": "", "score": ""}
        data.add_row(added, {"wav": str(name), **labels}, Path(folder), scale, folder)
    return list(added.values())


def write(out, clips):
    """Writes the table of the clips, all or nothing. Raises InputError."""
    rows, names = [data.HEADER], set()
    for clip in clips:
        wav = name_from(out.parent, clip.path)
        if wav in names:
            raise InputError(f"{clip.path}: is there under two names; take one of them out")
        names.add(wav)
        labels = (wav, clip.split, clip.system, clip.model)
        ratings = clip.ratings or {"": ""}
        for rater, score in ratings.items():
            rows.append((*labels, rater, str(score).removesuffix(".0")))
    data.write_csv(out, rows)


def name_from(folder, wav):
    """A WAV file relative to a folder; both without links to folders, else ".." leads elsewhere."""
    real = Path(os.path.realpath(wav.parent), wav.name)
    name = Path(os.path.relpath(real, os.path.realpath(folder))).as_posix()
    try:
        name.encode()
    except UnicodeEncodeError:
        raise InputError(f"{str(wav)!a}: its name is not in UTF-8; rename it") from None
    return name


def main():
    parser = argparse.ArgumentParser(
        allow_abbrev=False, description="Writes the ratings.csv of a published data set.")
    parser.add_argument("path", metavar="PATH", help="the unpacked data set, or a ratings.csv")
    parser.add_argument("--out", required=True, metavar="TABLE", help="the ratings.csv to write")
    parser.add_argument("--augment", default="", metavar="FOLDER",
                        help="also list its clips, without MOS; a subfolder a synthesis model")
    parser.add_argument("--scale", type=float, nargs=2, default=(1.0, 5.0),
                        metavar=("LOW", "HIGH"), help="lowest and highest rating (default: 1 5)")
    options = parser.parse_args()
    out = Path(options.out)
    with data.one_sentence("corpora.published"):
        if os.path.isdir(out):
            raise InputError(f"--out {out}: is a folder; name a table in it")
        name, clips = read(options.path, options.scale)
        if options.augment:
            clips += read_augmentation(options.augment, options.path, clips, options.scale)
        found = data.check_clips(clips)
        write(out, clips)
        data.read_manifest(out, options.scale)  # as train.py will
        print(f"{out}: {name}; {found}")


if __name__ == "__main__":
    main()
