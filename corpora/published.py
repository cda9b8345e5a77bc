"""Makes a ratings.csv, the one table that data.py reads, from a published data set or your own.

    python -m corpora.published PATH --out ratings.csv
    python -m corpora.published PATH --out ratings.csv --fold 1/6
    python -m corpora.published PATH --out ratings.csv --augment FOLDER
    python -m corpora.published EXPORT --columns wav=COLUMN score=COLUMN --out ratings.csv

PATH is a data set of a kind that is listed in LAYOUTS, unpacked or as a clone of its repository;
or a ratings.csv, or the folder of one. EXPORT is what the tool of a listening test gives you;
corpora/exports.py reads it. The WAV files are not copied. The table shows what was understood of
the data set, so look at it. --fold K/N divides the groups of clips into N folds and makes the K-th
fold the test clips, whatever split the data set has; a data set without a split gets 1/5 unless you
say otherwise. Clips without ratings keep their split. --augment adds clips without MOS (III.D);
each subfolder of FOLDER has those of one synthesis model.
"""

import argparse
import ast
import glob
import io
import os
import re
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple
from xml.etree import ElementTree

import data
from corpora import exports
from data import InputError


class Layout(NamedTuple):
    name: str
    tables: dict      # pattern of its tables -> their split, if any; the first tells the layout
    columns: str      # of each table
    header: bool      # whether the first row names them
    wavs: str         # folder of the clips
    fields: Callable  # row, table -> rows of ratings.csv, without their split
    scale: tuple = (1.0, 5.0)
    part: str = ""    # --part, where a data set has several
    sheet: str = ""   # of a table in a workbook, .xlsx


# -- Challenges ------------------------------------------------------------------------------------

def track3(row, table):
    """audiomos-track3-RATE_METHOD_...; a rater's id is unique only within one test."""
    match = re.match(r"audiomos-track3-((?:16|24|48)k_(sys\d+|(?:original|nv|tts|world)(?:SR)?))_",
                     row["uttID"])
    if not match:
        raise InputError(f"{row['uttID']} is not the name of a Track 3 clip "
                         "(audiomos-track3-RATE_METHOD_...)")
    rater = f"{table.stem}:{row['lisID']}" if "lisID" in row else ""
    return [{"wav": row["uttID"].removesuffix(".wav") + ".wav", "system": match[1],
             "model": match[2], "rater": rater, "score": row.get("rating", "")}]


def bvcc(row, table):
    """The system stands before the first "-"; of the listener, {}_AGE_ID_..., the id is taken."""
    rater = ""
    if "listener" in row:
        parts = row["listener"].split("_")
        if len(parts) < 3:
            raise InputError(f"the listener must be {{}}_AGE_ID_..., not {row['listener']!r}")
        rater = parts[2]
    return [{"wav": row["wav"], "system": row["wav"].split("-")[0], "rater": rater,
             "score": row["score"]}]


def somos(row, table):
    return [{"wav": row["utteranceId"].removesuffix(".wav") + ".wav", "system": row["systemId"],
             "rater": row["listenerId"], "score": row["choice"]}]


# -- Listening tests, as they lie in public repositories -------------------------------------------

def estonian(row, table):
    """NUMBER_SYNTHESISER_SENTENCE_CORPUS.wav; a system is a synthesiser trained on a corpus."""
    sentence = row["speaker_wav"].split("_")[2]
    return [{"wav": row["speaker_wav"], "system": row["speaker_name"], "group": sentence,
             "rater": row["rater"], "score": row["score"]}]


def codecs(row, table):
    """One row a clip, with lists of ratings and raters in a cell; the anchor has no file."""
    if not row["file"]:
        return []
    try:
        cells = [ast.literal_eval(row[name]) for name in ("participant_ids", "ratings")]
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):  # of literal_eval
        cells = []
    if [type(cell) for cell in cells] != [list, list] or len(cells[0]) != len(cells[1]):
        raise InputError("ratings and participant_ids must be lists of one length")
    return [{"wav": row["file"], "system": row["condition"], "group": row["file"].split("/")[0],
             "rater": str(rater), "score": str(score)} for rater, score in zip(*cells)]


def p835(row, table):
    """CONDITION_TALKER.wav, and the mean of its overall quality."""
    condition, talker = Path(row["B"]).stem.split("_")
    return [{"wav": row["B"], "system": condition, "group": talker, "rater": "", "score": row["K"]}]


def yourtts(row, table):
    """Portuguese TTS and voice conversion; the group is the talker whose voice is aimed at.

    The names of Exp.4 do not match its files.
    """
    parts = row["audio_path"].split("/")
    experiment, name = parts[0], parts[-1]
    if experiment == "Exp.4":
        return []
    depth = 2 if experiment in ("GT", "Exp.6") else 3  # of what makes a system
    talker = re.split(r"[_.]", name.partition("_to_")[2] or name)[0]
    return [{"wav": row["audio_path"], "system": "/".join(parts[:depth]).removesuffix("_SECS"),
             "group": talker, "rater": row["evaluator_id"], "score": row["score"]}]


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
    Layout("Estonian synthesisers", {"3synt_listening_test_results/all.csv": ""},
           "speaker_wav,speaker_name,rater,score", True, "3synt_listening_test_results_resources",
           estonian, (1.0, 7.0)),
    Layout("neural codecs (MUSHRA)",
           {"mushra_results_dataset/ratings_formated_filtered.csv": ""},
           "condition,ratings,participant_ids,file", True, "mushra_results_dataset/audio", codecs,
           (0.0, 100.0)),
    Layout("P.835 reference conditions, wide band",
           {"p835_reference_conditions/CSP835_Ref_Conditions.xlsx": ""}, "B,K", True,
           "p835_reference_conditions/degraded_WB_16KHz", p835, sheet="16KHzWB-results per file"),
    Layout("P.835 reference conditions, full band",
           {"p835_reference_conditions/CSP835_Ref_Conditions.xlsx": ""}, "B,K", True,
           "p835_reference_conditions/degraded", p835, part="fullband",
           sheet="Fullband-results per file"),
    Layout("YourTTS, Portuguese", {"metrics/MOS/PT/naturalness-MOS.csv": ""},
           "audio_path,score,evaluator_id", True, "audios_demo", yourtts),
)
SHEET_LINK = "{http://schemas.openxmlformats.org/officeDocument/2006/relationships}id"
MAX_INFLATED = 2 ** 24  # bytes of a workbook's parts together; that of P.835 has half a million
FOLDERS = ("", "DATA", "track3_obf/DATA", "audiomos2025-track3-eval-phase/DATA", "post_eval_distro")


# -- Reading them ----------------------------------------------------------------------------------

def recognise(path, part):
    """[(Layout, its folder)] of what lies at a path, two where a data set comes in two archives."""
    found = []
    for layout in LAYOUTS:
        first = next(iter(layout.tables))
        folders = [Path(path, folder) for folder in FOLDERS]
        real = Path(os.path.realpath(path))
        if first.startswith(f"{real.name}/"):  # it is itself what holds the table
            folders.append(real.parent)
        found += [(layout, folder) for folder in folders
                  if layout.part == part and glob.glob(first, root_dir=folder)]
    return [(layout, folder) for layout, folder in found if layout.name == found[0][0].name]


def read(path, scale=None, part=""):
    """What lies at a path -> (its name, its scale, its clips in order of first appearance).

    scale: else the data set's own. Raises InputError naming file and row.
    """
    if not os.path.exists(path):
        raise InputError(f"{path}: there is no such file or folder")
    parts = recognise(path, part)
    if not parts and (os.path.isfile(path) or os.path.isfile(Path(path, "ratings.csv"))):
        scale = scale or (1.0, 5.0)
        return "ratings.csv", scale, data.read_ratings(path, scale)
    if not parts:
        names = ", ".join(next(iter(layout.tables)) for layout in LAYOUTS)
        raise InputError(f"{path}: there is no data set that is known; looked for {names}, "
                         "ratings.csv; name the folder that holds one of these")
    layout, folder = parts[0]
    scale = scale or layout.scale
    clips, silent = {}, set()
    for layout, folder in parts:
        for table, own_split in tables_of(layout, folder):
            read_table(table, layout, own_split, folder / layout.wavs, scale, clips, silent)
    if not clips:
        raise InputError(f"{path}: none of the clips in the tables of this data set is there"
                         if silent else f"{path}: there are no rows in the tables of this data set")
    if silent:
        print(f"{path}: {len(silent)} rated clips are left out, their audio is not there")
    clips = list(clips.values())
    if "" in layout.tables.values():
        split(clips, "1/5")
    return layout.name, scale, clips


def tables_of(layout, folder):
    """Yields (path, split) of each table that a data set has in a folder."""
    for pattern, own_split in layout.tables.items():
        for table in sorted(glob.glob(pattern, root_dir=folder)):
            yield folder / table, own_split


def read_table(table, layout, split, wavs, scale, clips, silent):
    """Adds the clips of a table to clips, as data.add_row does, and the names of those without
    audio to silent. Raises InputError."""
    columns = layout.columns.split(",")
    rows = (read_sheet(table, layout.sheet, columns) if layout.sheet
            else data.read_rows(table, columns, header=layout.header))
    for place, row in rows:
        try:
            found = layout.fields(row, table)
        except (InputError, IndexError, ValueError) as error:
            raise InputError(f"{place}: {data.shown(row)} is not a row of {layout.name} "
                             f"({error})") from None
        for fields in found:
            if fields["wav"] and fields["score"] and not os.path.isfile(wavs / fields["wav"]):
                silent.add(fields["wav"])
            else:
                data.add_row(clips, {"split": split or "train", **fields}, wavs, scale, place)


def read_sheet(path, name, columns):
    """Yields (place, row) of a sheet of a workbook, .xlsx, which is XML in a ZIP archive: a row is
    {letter of a column: text}, the first one, and those without these columns, left out.

    Raises InputError.
    """
    content = io.BytesIO(data.read_bytes(path))
    try:
        with zipfile.ZipFile(content) as book:
            inflated = sum(part.file_size for part in book.infolist())
            if inflated > MAX_INFLATED:
                raise InputError(f"it inflates to {inflated} bytes, above {MAX_INFLATED}")

            def parse(part):
                return ElementTree.fromstring(book.read(f"xl/{part}"))
            texts = {str(number): "".join(text.itertext())
                     for number, text in enumerate(parse("sharedStrings.xml"))}
            links = {link.get("Id"): link.get("Target")
                     for link in parse("_rels/workbook.xml.rels")}
            sheets = {sheet.get("name"): links[sheet.get(SHEET_LINK)]
                      for sheet in parse("workbook.xml").findall(".//{*}sheet")}
            rows = [(row.get("r"), cells_of(row, texts))
                    for row in parse(sheets[name]).findall(".//{*}row")]
    except Exception as error:  # noqa: BLE001 - a damaged archive raises nearly anything
        raise InputError(f"{path}: is not a workbook with a sheet {name} ({error})") from None
    for number, cells in rows[1:]:
        if all(cells.get(column) for column in columns):
            yield f"{path}, {name}, row {number}", cells


def cells_of(row, texts):
    """A row's {letter of a column: text}. texts: {number: text}, which cells refer to."""
    cells = {}
    for cell in row.findall("{*}c"):
        text = cell.findtext("{*}v", "")
        kind = cell.get("t", "n")
        if kind == "s" and text not in texts:
            raise InputError(f"the cell {cell.get('r')} shows a text {text!r}, which is not there")
        if kind == "s":
            text = texts[text]
        elif kind not in ("n", "str"):  # a Boolean or an error, which is not a number
            text = f"{kind} {text}"
        cells[cell.get("r").rstrip("0123456789")] = text
    return cells


def read_augmentation(folder, path, clips, scale):
    """The clips without MOS of a folder, a subfolder a synthesis model (III.D).

    path, clips: the corpus that they join. Raises InputError.
    """
    if not os.path.isdir(folder):
        raise InputError(f"--augment {folder}: is not a folder")
    known = {os.path.realpath(clip.path) for clip in clips}
    added = {}
    wavs = data.find_wavs(folder)
    if not wavs:
        raise InputError(f"{folder}: there is no WAV file in this folder")
    for wav in wavs:
        name = wav.relative_to(folder)
        if os.path.realpath(wav) in known:
            raise InputError(f"{wav}: is a clip of {path} too; take it out of {folder}")
        if len(name.parts) == 1:
            raise InputError(f"{wav}: must lie in a subfolder of {folder} that bears its synthesis "
                             "model's name")
        labels = {"split": "train", "system": name.parts[0], "rater": "", "score": ""}
        data.add_row(added, {"wav": str(name), **labels}, Path(folder), scale, folder)
    return list(added.values())


def split(clips, fold):
    """Sets the split of each clip that has ratings; fold: "K/N". Raises InputError."""
    match = re.fullmatch(r"(\d{1,4})/(\d{1,4})", fold)
    if not match or not 1 <= int(match[1]) <= int(match[2]) or int(match[2]) < 2:
        raise InputError(f"--fold {data.shown(fold)}: must be K/N, as 1/5 is the first of five")
    part, parts = map(int, match.groups())
    rated = [clip for clip in clips if clip.ratings]
    for clip, number in zip(rated, data.folds_of(rated, parts)):
        clip.split = "test" if number == part - 1 else "train"
    if len({clip.split for clip in rated}) < 2:
        raise InputError(f"--fold {fold}: leaves no rated clip for training or for test; there are "
                         f"{len({clip.group for clip in rated})} groups")


# -- Writing ---------------------------------------------------------------------------------------

def check_out(out, path, part, clips):
    """Raises InputError where --out is a file that was read: a table at the path, or a clip."""
    tables = [table for layout, folder in recognise(path, part)
              for table, _ in tables_of(layout, folder)]
    sources = tables or [data.table_of(path)]
    sources += [clip.path for clip in clips]
    if os.path.exists(out) and any(os.path.samefile(out, source) for source in sources):
        raise InputError(f"--out {out}: is what was read; name another file, so that it stays")


def write(out, clips, scale):
    """Writes the table of the clips, all or nothing, and only if it can be read as it would stand
    there. Raises InputError."""
    rows, checked = [data.HEADER], {}
    for clip in clips:
        wav = name_from(out.parent, clip.path)
        group = "" if clip.group == os.path.realpath(clip.path) else clip.group
        labels = (wav, clip.split, clip.system, clip.model, group)
        ratings = clip.ratings or {"": ""}
        for rater, score in ratings.items():
            row = (*labels, rater, str(score).removesuffix(".0"))
            cells = dict(zip(data.HEADER, map(str.strip, row)))
            data.add_row(checked, cells, out.parent, scale, clip.path)
            rows.append(row)
    data.write_files({out: rows})


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
        allow_abbrev=False, description="Writes a ratings.csv, the table that train.py learns "
        "from, and says what it found. It reads a published data set, another ratings.csv, or, "
        "with --columns or --wide, what the tool of your listening test exports.")
    parser.add_argument("path", metavar="PATH", help="The folder of the unpacked data set, a "
                        "ratings.csv, or the exported table.")
    parser.add_argument("--out", required=True, metavar="TABLE",
                        help="The ratings.csv to write. It may not be a file that is read.")
    parser.add_argument("--columns", nargs="+", default=[], metavar="NAME=COLUMN",
                        help="Says which column of an export holds what: wav= is the clip and "
                        "score= its rating; rater=, system=, group=, model= and split= may follow. "
                        "A template such as wav=audio/{trial}/{stimulus}.wav joins columns.")
    parser.add_argument("--wide", action="store_true",
                        help="The export has a row for each rater and a column for each clip, as "
                        "a form exports it. The heading of a column has the clip's name in it.")
    parser.add_argument("--wavs", default="", metavar="FOLDER",
                        help="The folder of an export's clips (default: that of the export).")
    parser.add_argument("--fold", metavar="K/N",
                        help="Deals the groups of clips out to N folds; the K-th is for testing "
                        "and the others are for training. Without it the split stays as it "
                        "is; a data set or an export that has none gets 1/5.")
    parser.add_argument("--part", default="", choices=("", "fullband"),
                        help="Only for the data set P.835, which comes in wide band and in full "
                        "band; reads the latter.")
    parser.add_argument("--augment", default="", metavar="FOLDER",
                        help="Adds clips without ratings for training. Each subfolder holds the "
                        "clips of one synthesis model and is named after it.")
    parser.add_argument("--scale", type=float, nargs=2, metavar=("LOW", "HIGH"),
                        help="The lowest and the highest rating that are possible (default: those "
                        "of the data set, or 1 5).")
    options = parser.parse_args()
    out = Path(options.out)
    with data.errors_in_one_sentence("corpora.published"):
        if out.suffix != ".csv" or os.path.isdir(out):
            raise InputError(f"--out {out}: name a table, which ends in .csv")
        data.check_scale(options.scale or (1, 5))
        if options.wavs and not options.columns and not options.wide:
            raise InputError("--wavs: is for an export, with --columns or --wide")
        if options.columns or options.wide:
            columns = exports.named(options.columns, options.wide)
            name, scale = "listening test", options.scale or (1.0, 5.0)
            clips = exports.read(options.path, columns, options.wavs, options.wide, scale)
            if "split" not in columns:
                split(clips, "1/5")
        else:
            name, scale, clips = read(options.path, options.scale, options.part)
        if options.fold:
            split(clips, options.fold)
        if options.augment:
            clips += read_augmentation(options.augment, options.path, clips, scale)
        check_out(out, options.path, options.part, clips)
        found = data.check_clips(clips)
        write(out, clips, scale)
        print(f"{out}: {name}; {found}")
        if tuple(scale) != (1.0, 5.0):
            print(f"the scale is {scale[0]:g} to {scale[1]:g}: train.py needs --scale "
                  f"{scale[0]:g} {scale[1]:g}")


if __name__ == "__main__":
    main()
