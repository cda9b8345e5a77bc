"""What the tool of a listening test exports -> clips with their ratings.

    python -m corpora.published EXPORT --columns wav=COLUMN score=COLUMN rater=COLUMN --out TABLE
    python -m corpora.published EXPORT --wide --out TABLE

An export is a table of text whose first row names the columns. As a rule a row is a rating, and
--columns says what stands in which column. With --wide a row is a rater and a column is a clip, as
in a form. What was understood is printed, so look at it before you train.
"""

import codecs
import csv
import io
import itertools
import os
import re
import unicodedata
from collections import defaultdict
from pathlib import Path
from urllib.parse import unquote

import data
from data import InputError, shown

ENCODINGS = {"utf-16": "UTF-16", "utf-8-sig": "UTF-8", "cp1252": "latin-1"}
DELIMITERS = {",": "commas", ";": "semicolons", "\t": "tabs"}
PLACEHOLDER = re.compile(r"\{([^{}]*)\}")  # of a column, in a template of several
SCORE = re.compile(r"(-?\d*[.,]?\d+)(\s*[-–:.(=]\D*)?")  # 4 or 4,5, or as in "4 - good"
NO_SCORE = ("", "-", "na", "n/a", "nan", "none", "null")
REJECTED = ("AssignmentStatus", "Rejected")  # as Mechanical Turk marks answers that were not paid


# -- The table -------------------------------------------------------------------------------------

def named(words, wide):
    """["wav=File", ...] -> {"wav": "File", ...}. Raises InputError."""
    names = ("rater",) if wide else data.HEADER
    columns = {}
    for word in words:
        word = os.fsencode(word).decode(errors="surrogateescape")  # in UTF-8, whatever the locale
        name, _, value = word.partition("=")
        if name not in names or name in columns or not value:
            raise InputError(f"--columns {shown(word)}: must be NAME=COLUMN, where NAME is one of "
                             f"{', '.join(names)} and stands once")
        columns[name] = value
    if not wide and not {"wav", "score"} <= set(columns):
        raise InputError("--columns: needs wav=COLUMN and score=COLUMN; a table with a column for "
                         "each clip is read with --wide")
    return columns


def read_table(path):
    """An export -> its header, [(number of the row, its cells)], and how it was read, in words.
    Raises InputError."""
    text, encoding = read_text(path)
    text = re.sub(r"\Asep=.\r?\n", "", text)  # a line for Excel alone
    try:
        delimiter = delimiter_of(text)
        lines = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
        rows = [(lines.line_num, [cell.strip() for cell in cells]) for cells in lines]
    except csv.Error as error:
        raise InputError(f"{path}: is not a table ({error}); save it as CSV") from None
    rows = [(number, cells) for number, cells in rows if any(cells)]
    if len(rows) < 2:
        raise InputError(f"{path}: there are no rows below the header")
    header = [" ".join(name.split()) for name in rows.pop(0)[1]]  # a form's may have line breaks
    for number, cells in rows:
        if any(cells[len(header):]):
            raise InputError(f"{path}, row {number}: has more cells than the first row")
        cells += [""] * (len(header) - len(cells))
    return header, rows, f"{ENCODINGS[encoding]} with {DELIMITERS[delimiter]} between cells"


def read_text(path):
    """A file's text and its encoding, one of ENCODINGS. Raises InputError."""
    content = data.read_bytes(path)
    marked = content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    for encoding in ("utf-16",) if marked else ("utf-8-sig", "cp1252"):
        try:
            text = content.decode(encoding)
        except UnicodeDecodeError:
            continue
        if "\0" not in text:
            return text, encoding
    raise InputError(f"{path}: is not text in UTF-8, UTF-16 or latin-1; save the table as CSV")


def delimiter_of(text):
    """The one of DELIMITERS that gives most rows as many cells as the header, and most of them.
    csv.Sniffer is no help: it prefers the decimal commas of a table with semicolons."""
    def fit(delimiter):
        rows = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter)
        cells = [len(row) for row in itertools.islice(rows, 1000) if row] or [0]
        return cells[0] > 1, cells.count(cells[0]), cells[0]
    return max(DELIMITERS, key=fit)


def check_columns(path, columns, header):
    """Raises InputError for a column that is not there, or twice."""
    for value in columns.values():
        wanted = [value] if value in header else PLACEHOLDER.findall(value) or [value]
        for name in wanted:
            if header.count(name) != 1:
                raise InputError(f"{path}: has {header.count(name)} columns {shown(name)} where "
                                 f"one is needed; its columns are {', '.join(header)}")


def fill(template, row):
    """The cell of a column, or a template of several. row: {column: cell}."""
    if template in row:
        return row[template]
    return PLACEHOLDER.sub(lambda column: row[column[1]], template)


def nameless(path, number):
    """The name of a rater who has none. It names the export, so that several can be joined."""
    return f"row {number} of {Path(path).name}"


def long_ratings(path, header, rows, columns):
    """Yields {column of ratings.csv: text} of each row, with its "place" for messages."""
    for number, cells in rows:
        row = dict(zip(header, cells))
        fields = {name: fill(template, row) for name, template in columns.items()}
        nobody = nameless(path, number) if "rater" in columns else ""
        rater = fields.get("rater") or nobody
        yield fields | {"rater": rater, "place": f"{path}, row {number}"}


def wide_ratings(path, header, rows, columns):
    """Yields the same of each cell; wav is the heading of its column."""
    for number, cells in rows:
        row = dict(zip(header, cells))
        rater = fill(columns["rater"], row) if "rater" in columns else ""
        for column, (heading, cell) in enumerate(zip(header, cells), 1):
            if heading != columns.get("rater"):
                yield {"wav": heading, "rater": rater or nameless(path, number), "score": cell,
                       "place": f"{path}, row {number}, column {column}"}


# -- Its clips -------------------------------------------------------------------------------------

def plain(name):
    """A clip's name without what tools change in it: case, how accents are stored, slashes."""
    return unicodedata.normalize("NFC", name).casefold().replace("\\", "/")


def wavs_by_name(folder):
    """{name: WAV files below the folder}. A file's names are its path and each end of the path:
    x/a.wav is "x/a" and "a"."""
    wavs = defaultdict(list)
    for wav in data.find_wavs(folder):
        parts = plain(wav.relative_to(folder).as_posix()).removesuffix(".wav").split("/")
        for start in range(len(parts)):
            wavs["/".join(parts[start:])].append(wav)
    return dict(wavs)


def find_clips(names, folder):
    """{name in a cell: its WAV file, or None}. A name is the path of a file that is there, or of
    one in a subfolder. Of URLs, and of paths of another machine, only the ends must be those of
    files; as many parts of the path count for all of them, so that none finds another one's file.
    Raises InputError for several files of a name, or names of a file."""
    wavs, files, meant, away = wavs_by_name(folder), {}, {}, {}
    depths = {1}  # at which the end of a path from elsewhere is that of a file
    for name in names:
        path = unquote(re.sub(r"[?#].*", "", name)) if "://" in name else name
        parts = plain(path).removesuffix(".wav").split("/")
        elsewhere = re.match(r"\w+:|[/\\]", name)
        if os.path.isfile(folder / name):
            files[name] = folder / name
            meant[os.path.realpath(folder / name)] = parts
        else:
            away[name] = parts, elsewhere
        if elsewhere:
            depths |= {depth for depth in range(1, len(parts) + 1)
                       if name in files or "/".join(parts[-depth:]) in wavs}
    for name, (parts, elsewhere) in away.items():
        counted = parts[-max(depths):] if elsewhere else parts
        found = wavs.get("/".join(counted), [])
        if len(found) > 1:
            raise InputError(f"{shown(name)} may be {found[0]} or {found[1]}; say which by a "
                             "template, as wav={system}/{wav}")
        files[name] = found[0] if found else None
        if found and meant.setdefault(os.path.realpath(found[0]), parts) != parts:
            other = "/".join(meant[os.path.realpath(found[0])])
            raise InputError(f"{found[0]}: may be {shown(other)} or {shown('/'.join(parts))}; lay "
                             "the clips in folders as there")
    return files


def find_in_headings(headings, folder):
    """{heading of a column: the WAV file whose name is in it, or None}, as a_01.wav in "How natural
    is a_01?". Raises InputError where there are several, or several questions about a clip."""
    wavs = wavs_by_name(folder)
    names = "|".join(map(re.escape, sorted(wavs, key=len, reverse=True))) or "(?!)"  # or nothing
    pattern = re.compile(rf"(?<![\w-])({names})(\.wav)?(?![\w-]|\.\w)")
    matches = {heading: pattern.findall(plain(heading)) for heading in headings}
    # Where headings have ".wav", a bare number in one is that of the question, and no clip.
    with_ending = any(ending for pairs in matches.values() for _, ending in pairs)
    files, meant = {}, {}
    for heading, pairs in matches.items():
        sure = [name for name, ending in pairs if ending] or [
            name for name, _ in pairs if not (with_ending and name.isdigit())]
        found = sorted({wav for name in sure for wav in wavs[name]})
        if len(found) > 1:
            raise InputError(f"the column {shown(heading)} may be {found[0]} or {found[1]}; rename "
                             "it so that it names one clip")
        files[heading] = found[0] if found else None
        if found and meant.setdefault(found[0], heading) != heading:
            raise InputError(f"{found[0]}: is in two columns, {shown(meant[found[0]])} and "
                             f"{shown(heading)}; delete the one that is not to count")
    return files


def clips_of(ratings, files, scale):
    """The clips of the ratings, with the mean of what each rater gave. Raises InputError."""
    clips = {}
    for rating in ratings:
        file = files[rating["wav"]]
        row = {"split": "train", "system": Path(os.path.abspath(file)).parent.name} | rating
        row |= {"wav": str(file), "rater": rating["place"]}  # as add_row takes one from each
        data.add_row(clips, row, Path(), scale, rating["place"])
    raters = {rating["place"]: rating["rater"] for rating in ratings}
    for clip in clips.values():
        scores = defaultdict(list)
        for place, score in clip.ratings.items():
            scores[raters[place]].append(score)
        clip.ratings = {rater: sum(own) / len(own) for rater, own in scores.items()}
    return list(clips.values())


def read(path, columns, wavs="", wide=False, scale=(1.0, 5.0)):
    """An export -> its clips in order of first appearance, all for training unless a column says
    their split. Prints what was understood.

    columns: {column of ratings.csv: column of the export, or a template of several}. wavs: the
    folder of the clips, else that of the export. Without a column of systems, the name of a clip's
    folder is its system. If a rater rates a clip again, the mean is taken, as listening tests
    repeat clips on purpose; without a column of raters, all ratings of a clip are so averaged.
    Raises InputError.
    """
    folder = Path(wavs or Path(path).parent)
    if not os.path.isdir(folder):
        raise InputError(f"--wavs {folder}: is not a folder")
    header, rows, form = read_table(path)
    check_columns(path, columns, header)
    kept = [(number, cells) for number, cells in rows if REJECTED not in zip(header, cells)]
    cells = list((wide_ratings if wide else long_ratings)(path, header, kept, columns))
    scored = [cell for cell in cells if SCORE.fullmatch(cell["score"])]
    if not scored:
        first = next((cell["score"] for cell in cells if cell["score"]), "")
        raise InputError(f"{path}: has no score that is a number; the first is {shown(first)}, "
                         "where 4 or \"4 - good\" is needed")
    numbers = [SCORE.fullmatch(cell["score"])[1] for cell in scored]
    for cell, number in zip(scored, numbers):
        cell["score"] = number.replace(",", ".")
    commas = " and decimal commas" if "," in "".join(numbers) else ""
    print(f"{path}: {form}{commas}")

    names = dict.fromkeys(cell["wav"] for cell in scored)
    files = (find_in_headings if wide else find_clips)(names, folder)
    missing = [name for name in names if files[name] is None]
    if 2 * len(missing) > len(names):
        raise InputError(f"{path}: only {len(names) - len(missing)} of its {len(names)} clips are "
                         f"in {folder}; there is none for {shown(missing)}; --wavs FOLDER says "
                         "where the clips are, and a column that is about no clip can be deleted")
    found = [cell for cell in cells if files.get(cell["wav"])]
    ratings = [cell for cell in found if cell["score"].lower() not in NO_SCORE]
    clips = clips_of(ratings, files, scale)

    scores = [float(rating["score"]) for rating in ratings]
    raters = {rating["rater"] for rating in ratings} - {""}
    others = {cell["wav"] for cell in cells} - set(names)
    print(f"{path}: {len(clips)} clips found, {len(missing)} missing; {len(scores)} ratings from "
          f"{min(scores):g} to {max(scores):g}; {len(raters) or 'no'} raters, "
          f"{len({clip.system for clip in clips})} systems")
    notes = {"missing": missing,
             f"{'columns' if wide else 'clips'} left out, as they have no numbers": sorted(others),
             "rejected answers, left out": len(rows) - len(kept),
             "empty scores, left out": len(found) - len(ratings),
             "ratings averaged with others of the same clip and rater":
                 len(ratings) - sum(len(clip.ratings) for clip in clips)}
    for note, what in notes.items():
        if what:
            print(f"{path}: {note}: {shown(what)}")
    return clips
