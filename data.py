"""WAV files, ratings and features: from the files of a user to the input of the model.

A corpus is a ratings.csv, which read_ratings describes, with its WAV files. corpora/ makes one from
exports and from published data sets, or simulates it. What comes from outside is checked here,
before any work. If it is wrong, an InputError says what is wrong with it. Letters of dimensions:
see moemos.py.
"""

import contextlib
import csv
import hashlib
import inspect
import io
import math
import os
import socket
import struct
import sys
import time
import uuid
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path

import numpy as np
import torch

import moemos

DEFAULT_BACKBONE = "WAV2VEC2_BASE"  # III.B; the paper does not say which wav2vec2, this is ours
STALL_SECONDS = 30.0  # a download that sends nothing for this long is given up
MAX_BYTES = 2 ** 28   # a larger file is refused; without a limit, reading a pipe might never end
SILENCE = 45.0        # dB below the loudest 10 ms of a clip; quieter ends are cut (ours)
OTHER_AUDIO = (".flac", ".mp3", ".ogg", ".opus", ".m4a", ".aac", ".wma", ".aif", ".aiff", ".au")


# -- Audio -----------------------------------------------------------------------------------------

def read_wav(path, sample_rate, content=None):
    """A WAV file, PCM or float at a rate up to 768 kHz -> (T,) float32 at sample_rate, mono, not
    normalised, without the silence at its ends. The paper does not say what is done with clips of
    24 and 48 kHz; all of this is ours.

    content: the bytes of the file, if they have been read. Raises InputError, which names the
    file."""
    from scipy.signal import resample_poly  # here, so that --help need not wait for it
    # decode() averages the channels, and cuts the silence by cut_silence().
    rate, mono = decode(path, read_bytes(path) if content is None else content)
    # The ratio of the rates is rounded to a fraction with a denominator of 100,000 at most, because
    # a larger one would make the resampling filter very long.
    ratio = Fraction(sample_rate, rate).limit_denominator(100_000)
    resampled = resample_poly(mono, ratio.numerator, ratio.denominator)
    return torch.from_numpy(resampled.astype(np.float32))


def cut_silence(mono, rate):
    """(T,) -> the part from the first loud piece of 10 ms to the last one. A piece is loud if it is
    within SILENCE dB of the loudest piece."""
    hop = max(rate // 100, 1)
    power = np.add.reduceat(np.square(mono), np.arange(0, len(mono), hop))
    loud = np.flatnonzero(power > 10 ** (-SILENCE / 10) * power.max())
    return mono[loud[0] * hop:(loud[-1] + 1) * hop] if len(loud) else mono


# -- Ratings ---------------------------------------------------------------------------------------

@dataclass
class Clip:
    """A clip and its ratings. system: what made the clip; numbers at system level compare the means
    of systems. model: the synthesis model, the class that the second task names. group: what the
    clip has in common with others, such as its talker or its sentence; see folds_of(). ratings:
    {rater: score}, or {"": mean} if only the clip's mean is known, or {} if it has no MOS."""
    wav: str
    path: Path
    split: str
    system: str
    model: str
    group: str
    ratings: dict = field(default_factory=dict)

    @property
    def mos(self):
        """The plain mean of the clip's ratings; NaN if it has none."""
        return sum(self.ratings.values()) / len(self.ratings) if self.ratings else math.nan


HEADER = ("wav", "split", "system", "model", "group", "rater", "score")


def read_ratings(path, scale=(1.0, 5.0)):
    """A ratings.csv, or the folder that holds it -> clips, in order of first appearance.

    Each row is one rating, or a clip's mean if `rater` is empty. A clip without MOS has one row in
    which `rater` and `score` are empty. `wav` is a path, starting from the table's folder. `split`
    is train, test or dev. (Nothing is learned from dev clips; they show how training goes.) The
    columns `model` and `group` may be missing or empty: then the synthesis model is the system, and
    each clip is a group of its own. Raises InputError, which names the row."""
    path = table_of(path)
    clips = {}
    for place, row in read_rows(path, HEADER, optional=("model", "group")):
        add_row(clips, row, path.parent, scale, place)
    if not clips:
        raise InputError(f"{path}: there are no rows below the header")
    return list(clips.values())


def add_row(clips, row, folder, scale, place):
    """Adds a row of a table to clips, {real path: Clip}. place: where the row is, for messages."""
    if not row["wav"] or not row["system"] or {"\0", "\r"} & set("".join(row.values())):
        raise InputError(f"{place}: wav and system need a value; no cell may hold a NUL or a CR")
    if row["split"] not in ("train", "dev", "test"):
        raise InputError(f"{place}: a split is train, dev or test, not {shown(row['split'])}")
    # The table is UTF-8; the file system may use another encoding.
    wav = folder / os.fsdecode(row["wav"].encode(errors="surrogateescape"))
    path = os.path.realpath(wav)  # ./a.wav, or a link to it, is a.wav
    new = Clip(row["wav"], wav, row["split"], row["system"],
               row.get("model") or row["system"], row.get("group") or path)
    if path not in clips and not os.path.isfile(path):
        raise InputError(f"{place}: {shown(row['wav'])} is missing, or is not a file, in {folder}")
    clip = clips.setdefault(path, new)
    if any(getattr(clip, name) != getattr(new, name)
           for name in ("split", "system", "model", "group")):
        raise InputError(f"{place}: {clip.wav} has another split, system, model or group in an "
                         "earlier row; make them the same")
    rater = row["rater"]
    if not row["score"] and not rater:
        return
    if rater in clip.ratings:
        raise InputError(f"{place}: rater {shown(rater)} has rated {clip.wav} above; keep one")
    if clip.ratings and (not rater or "" in clip.ratings):
        raise InputError(f"{place}: {clip.wav} has both a mean (a row without rater) and single "
                         "ratings; keep one of the two")
    try:
        score = float(row["score"])
    except ValueError:
        raise InputError(f"{place}: the score {shown(row['score'])} is not a number") from None
    if not scale[0] <= score <= scale[1]:
        raise InputError(f"{place}: the score {score:g} is off the scale of {scale[0]:g} to "
                         f"{scale[1]:g}; --scale LOW HIGH sets another")
    clip.ratings[rater] = score


def folds_of(clips, folds):
    """Deals clips out into folds -> (clips,) int, the number of each clip's fold. Whole groups are
    dealt out, in order of name, so that no group is split. If all clips are of one group, single
    clips are dealt out."""
    names, number = np.unique([clip.group for clip in clips], return_inverse=True)
    if len(names) < 2:
        return np.arange(len(clips)) % folds
    return number % folds


def read_corpus(path, scale=(1.0, 5.0), max_seconds=60.0):
    """read_ratings() and check_clips(); prints what was found."""
    clips = read_ratings(path, scale)
    print(printable(f"{path}: {check_clips(clips, max_seconds)}"))
    return clips


# -- Features: each clip goes through the frozen backbone once; its features are kept ------------

def extract_features(clips, backbone, cache="cache"):
    """Clips -> (clips, L, 2D) float32. What has been extracted before is read from the folder
    `cache`; there the name of a file is a digest (SHA-256) of the clip's content and of
    cache_key(). Raises InputError for a clip that read_wav() or clip_features() refuses."""
    key = cache_key(backbone)
    shape = (backbone.layers, 2 * backbone.width)
    result = torch.empty(len(clips), *shape)
    start = time.monotonic()
    for i, clip in enumerate(clips):
        content = read_bytes(clip.path)
        entry = Path(cache, hashlib.sha256(key + content).hexdigest())
        features = read_entry(entry, shape)
        if features is None:
            waveform = read_wav(clip.path, backbone.sample_rate, content)
            features = clip_features(waveform, backbone, clip.path)
            write_files({entry: with_digest(features.numpy().tobytes())})
        result[i] = features
        show_progress(f"{backbone.name} features", i + 1, len(clips), start)
    return result


def clip_features(waveform, backbone, path):
    """(T,) -> (L, 2D) on the CPU. Raises InputError if the backbone refuses the waveform, or if the
    features are not finite."""
    try:
        features = moemos.pool_statistics(backbone.extract(waveform)).cpu()
    except ValueError as error:
        raise InputError(f"{path}: {error}") from None
    if not features.isfinite().all():
        raise InputError(f"{path}: too loud for {backbone.name}, its features are not finite; "
                         "scale it to full scale 1")
    return features


def cache_key(backbone):
    """What features depend on besides the file: the identity and rate of the backbone, and the
    source code that computes them. After any change of that code, even of a comment, the features
    are extracted anew."""
    code = [decode, find_samples, cut_silence, read_wav, moemos.Backbone, type(backbone),
            inspect.getmodule(type(backbone.network)), moemos.pool_statistics, clip_features]
    numbers = f"{backbone.sample_rate} {TYPES} {SILENCE}"
    sources = [inspect.getsource(part) for part in code]
    return "\n".join([backbone.identity, numbers, *sources]).encode()


def read_entry(entry, shape):
    """A file of the cache -> its features, or None if it is missing, damaged or unreadable."""
    numbers = b""
    with contextlib.suppress(OSError):
        numbers = without_digest(entry.read_bytes())
    if len(numbers) != 4 * math.prod(shape):
        return None
    return torch.frombuffer(bytearray(numbers), dtype=torch.float32).view(shape)


# -- What follows is not part of the method: errors, checks, the bytes of WAV files, folders -------

class InputError(ValueError):
    """Something that was handed in cannot be used. The text is one sentence, which says what is
    wrong, and also what to do, if that is not plain."""

    def __init__(self, text):
        super().__init__(printable(text)[:1000])  # a path may have any length


def printable(text):
    """The text with its control characters escaped, because the name of a file may hold any."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def shown(value):
    """How a value from outside is quoted in an error message: escaped, and cut after 80 characters.
    """
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


@contextlib.contextmanager
def errors_in_one_sentence(script):
    """For the body of a script's main(): an error that a user can cause becomes one sentence on
    standard error, and the exit status is 2. Other errors are faults of the program, and are
    raised again."""
    os.environ.setdefault("USERNAME", "nobody")  # torch asks for one, and a container may have none
    nowhere = io.TextIOWrapper(io.BytesIO())
    sys.stdout = sys.stdout or nowhere  # None if it was closed
    sys.stderr = sys.stderr or nowhere
    sys.stdout.reconfigure(errors="backslashreplace")  # a terminal may not have all characters
    try:
        yield
        sys.stdout.flush()  # here, where a full disk is noticed
        return
    except (InputError, FloatingPointError, KeyboardInterrupt, OSError) as error:
        problem = first_line(error)
        if isinstance(error, OSError):
            sys.stdout = nowhere  # so that Python does not try again to write what is left
        if isinstance(error, BrokenPipeError):  # the reader of a pipe, such as head, has left
            sys.exit(2)
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and "memory" not in str(error):
            raise  # a RuntimeError that is not about memory is a fault of the program
        problem = "memory ran out; fewer or shorter clips need less"
    print(f"{script}: {problem}", file=sys.stderr)
    sys.exit(2)


def first_line(error):
    return str(error).partition("\n")[0] or type(error).__name__


def read_bytes(path):
    """The bytes of a file, MAX_BYTES at most. Raises InputError."""
    try:
        with open(path, "rb") as file:
            content = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from None
    if len(content) > MAX_BYTES:
        raise InputError(f"{path}: is above {MAX_BYTES >> 20} MiB or never ends; cut it")
    return content


# How a WAV file of each kind is read. The key is the format (1 is PCM, whole numbers; 3 is floating
# point) and the bytes that a sample takes. The value is (numpy's type, zero, full_scale); (sample -
# zero) / full_scale is between -1 and 1. The key (1, 2), for instance, is PCM of 16 bits. (1, 3) is
# read as 4 bytes, because numpy has no integers of 3 bytes; decode() first adds a byte to each
# sample.
TYPES = {(1, 1): ("u1", 128.0, 2 ** 7), (1, 2): ("i2", 0.0, 2 ** 15), (1, 3): ("i4", 0.0, 2 ** 31),
         (1, 4): ("i4", 0.0, 2 ** 31), (3, 4): ("f4", 0.0, 1), (3, 8): ("f8", 0.0, 1)}


def decode(path, content):
    """The bytes of a WAV file -> (rate, (T,) floats at that rate). Channels are averaged, and
    silence at both ends is cut. Raises InputError, which names the file."""
    order = ">" if content[:4] == b"RIFX" else "<"
    header, samples = find_samples(path, content, order)
    # The header says: the format; how many channels there are; the rate; how many bytes one sample
    # takes in all channels together (block); how many bits a sample has. 4x and 8x skip what is not
    # needed.
    kind, channels, rate, block, bits, subkind = struct.unpack_from(f"{order}HHI4xHH8xI", header)
    kind = subkind if kind == 0xFFFE else kind  # 0xFFFE says that the format is `subkind`
    # A sample takes as many bytes as its bits need. But samples of 24 bits may take four bytes
    # each; `block` shows that.
    width = 4 if 16 < bits < 32 and block == 4 * channels else (bits + 7) // 8
    count = len(samples) // max(channels * width, 1) * channels
    if (kind, width) not in TYPES or count == 0 or not 1 <= rate <= 768000:
        raise InputError(f"{path}: {count} samples of {bits} bits in format {kind} at {rate} Hz; "
                         "save it as PCM of 8 to 32 bits or as float, at a rate up to 768 kHz")
    samples = np.frombuffer(samples, np.uint8, count * width)
    if width == 3:  # a byte of 0 makes them four bytes long
        samples = np.insert(samples.reshape(-1, 3), 0 if order == "<" else 3, 0, axis=1).ravel()
    name, zero, full_scale = TYPES[kind, width]
    scaled = (samples.view(order + name).astype(float) - zero) / full_scale
    mono = scaled.reshape(-1, channels).mean(axis=1)  # (T,)
    if not (np.abs(mono) < 1e6).all():  # no sound is so far above full scale, which is 1
        raise InputError(f"{path}: holds NaN, infinite or huge samples")
    sound = cut_silence(mono, rate)
    if len(sound) / rate < moemos.MIN_SECONDS:
        raise InputError(f"{path}: {1000 * len(sound) / rate:.1f} ms long, silence at its ends "
                         "not counted; the backbone needs 25 ms")
    return rate, sound


def find_samples(path, content, order):
    """The bytes of a WAV file -> (header, samples). After 12 bytes, such a file is a row of
    chunks, each with a name of four letters, a length and a content. The chunk "fmt " is the
    header, which says how the samples are written; it is padded with zeros here. The chunk
    "data" has the samples. Raises InputError."""
    header, start, name, size = b"", 12, b"", 0
    while name != b"data" and start + 8 <= len(content):
        name, size = struct.unpack_from(f"{order}4sI", content, start)
        start += 8
        if name == b"fmt ":
            header = content[start:start + size]
        if name != b"data":
            start += size + size % 2
    riff, = struct.unpack_from(f"{order}I", content.ljust(8), 4)
    if content[:4] in (b"RF64", b"BW64"):  # here the length has 64 bits and stands near the start
        size = int.from_bytes(content[28:36], "little")
    left = len(content) - start
    # `size` is the length of the samples, and `riff` that of the whole file. A program that writes
    # to a pipe does not know them yet, and gives 0 or a huge number for both. Then all bytes that
    # are left are samples. (If riff is neither 0 nor huge, a size of 0 is right: there are none.)
    if size > MAX_BYTES or (size == 0 and not start < riff <= MAX_BYTES):
        size = left
    if content[8:12] != b"WAVE" or name != b"data" or size > left:
        raise InputError(f"{path}: not a whole WAV file; save it again, as PCM or float")
    return header.ljust(28, b"\0"), content[start:start + size]


def check_clip(path, max_seconds, content=None):
    """The seconds of a clip, without the silence at its ends. Raises InputError if it cannot be
    used or is too long."""
    rate, mono = decode(path, read_bytes(path) if content is None else content)
    seconds = len(mono) / rate
    if seconds > max_seconds:
        raise InputError(f"{path}: {seconds:.2f} s long, above --max-seconds {max_seconds:g}; "
                         "cut it, or raise --max-seconds")
    if not mono.astype(np.float32).any():
        silence = f"WARNING: {path} is all digital silence; its score says nothing"
        print(printable(silence), file=sys.stderr)
    return seconds


def check_clips(clips, max_seconds=math.inf):
    """Decodes every clip, so that a bad one is refused before any work. Returns a line that counts
    the clips. Raises InputError, which names the file."""
    parts = []
    for split in ("train", "dev", "test"):
        these = [clip for clip in clips if clip.split == split]
        raters = [rater for clip in these for rater in clip.ratings]
        systems = {clip.system for clip in these}
        seconds = sum(check_clip(clip.path, max_seconds) for clip in these)
        if these:
            parts.append(f"{split} {len(these)} clips, {len(raters)} ratings, {len(systems)} "
                         f"systems, {len({*raters} - {''})} raters, {seconds:.0f} s")
    scores = [score for clip in clips for score in clip.ratings.values()]
    lowest_and_highest = [f"ratings from {min(scores):g} to {max(scores):g}"] if scores else []
    return "; ".join(parts + lowest_and_highest)


def find_wavs(folder):
    """All WAV files in a folder and below it -> sorted Paths; [] if there are none, or if it is a
    file. Hidden files, hidden folders and links to folders are left out. Prints how many files of
    other audio formats there are."""
    files = []
    for here, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        files += [Path(here, name) for name in names if not name.startswith(".")]
    others = sum(file.suffix.lower() in OTHER_AUDIO for file in files)
    if others:
        print(printable(f"{folder}: {others} audio files that are not WAV are passed over"),
              file=sys.stderr)
    return sorted(file for file in files if file.suffix.lower() == ".wav")


def read_rows(path, columns, optional=(), header=True):
    """Yields (place, row as a dict) for each row of a CSV table in UTF-8. Its first row names the
    columns, in any order; if header is False, there is no such row. Columns that are not asked for
    are ignored, and those in `optional` may be missing. Raises InputError, which names the row."""
    try:
        text = io.StringIO(read_bytes(path).decode("utf-8-sig"), newline="")
        rows = csv.DictReader(text, None if header else columns, strict=True)
        rows.fieldnames = names = [name.strip() for name in rows.fieldnames or []]
        needed = [name for name in columns if name not in optional]
        if not {*names} >= {*needed} or len(set(names)) < len(names):
            raise InputError(f"{path}: the first row must name {','.join(needed)}, each once, with "
                             f"commas between, not {shown(','.join(names))}; corpora.published "
                             "--help says how to read another table")
        ignored = [name for name in names if name not in columns]
        if ignored:
            note = f"{path}: columns that are ignored: {shown(','.join(ignored))}"
            print(printable(note), file=sys.stderr)
        for row in rows:
            place = f"{path}, row {rows.line_num}"
            if None in row or None in row.values():
                raise InputError(f"{place}: a row needs one value for each of {','.join(names)}")
            yield place, {name: cell.strip() for name, cell in row.items()}
    except (UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{path}: is not a CSV table in UTF-8 ({error}); save it as one") from None


def table_of(corpus):
    """The path of a corpus's ratings.csv. corpus: that path, or the folder of the table."""
    return Path(corpus, "ratings.csv") if os.path.isdir(corpus) else Path(corpus)


def check_scale(scale):
    """Raises InputError for an impossible scale."""
    low, high = scale
    if not -1e6 <= low < high <= 1e6:
        raise InputError(f"--scale {low:g} {high:g}: the lower first; no number beyond a million")


def pick_device(name=""):
    """The device of that name, after a small computation on it as a test. Without a name it is an
    accelerator or else the CPU."""
    name = name or torch.accelerator.current_accelerator(check_available=True) or "cpu"
    try:
        torch.ones(1, device=name).item()
    except Exception as error:  # noqa: BLE001 - torch raises nearly anything
        raise InputError(f"--device {name} cannot be used here ({first_line(error)})") from None
    return torch.device(name)


def open_backbone(name="", device=""):
    """Loads a backbone as moemos.load_backbone does. If a backbone that was named cannot be loaded,
    it raises an InputError of one sentence. If no name is given, it loads DEFAULT_BACKBONE; if the
    weights of that are missing, it loads logmel, with a warning that cannot be missed. device: as
    for pick_device."""
    device = pick_device(device)
    socket.setdefaulttimeout(STALL_SECONDS)
    try:
        return moemos.load_backbone(name or DEFAULT_BACKBONE, device)
    except ValueError as error:
        raise InputError(str(error)) from None
    except SystemExit:
        raise InputError(f"the module {name} ends the program; it must not") from None
    except Exception as error:
        bundle = moemos.torchaudio_bundle(name or DEFAULT_BACKBONE)
        if bundle is None or "memory" in str(error):
            raise  # a fault in a module of your own is shown whole
        file = Path(torch.hub.get_dir(), "checkpoints", Path(bundle._path).name)
        if file.exists():
            raise InputError(f"{file}: holds no weights; delete it and start again") from None
        problem = f"{file}: these weights are missing ({first_line(error)}); put them there"
        if name:
            raise InputError(problem) from None
        line = "!" * 100
        print(f"{line}\nWARNING: {problem}.\nUsing logmel, a stand-in that hears spectra only: "
              f"the results are NOT those of the paper's method.\n{line}", file=sys.stderr)
        return moemos.load_backbone("logmel", device)
    finally:
        socket.setdefaulttimeout(None)


def show_progress(what, done, clips, start):
    """Prints a line of progress, if it goes to a terminal. start: time.monotonic() at the start."""
    if sys.stderr.isatty():
        left = (time.monotonic() - start) / done * (clips - done)
        print(f"\r{what}: {done}/{clips} clips, {left:.0f} s left ",
              end="\n" * (done == clips), file=sys.stderr)


def with_digest(content):
    """Bytes, followed by their SHA-256, so that damage can be noticed."""
    return content + hashlib.sha256(content).digest()


def without_digest(content):
    """The bytes that with_digest() got, or b"" if they are damaged."""
    content, digest = content[:-32], content[-32:]
    return content if hashlib.sha256(content).digest() == digest else b""


def write_files(files, outdated=()):
    """Writes {path: bytes, or the rows of a CSV table} and deletes the files that are then
    outdated. Each file is written under another name first and then renamed, so that nobody ever
    reads half a file, even if the program is killed. Raises InputError if that fails."""
    partial = {path: Path(f"{path}.{uuid.uuid4().hex}.partial") for path in files}
    for path in (*files, *outdated):
        if os.path.isdir(path):
            raise InputError(f"{path}: is a folder where a file is to be; rename it")
    try:
        for path, content in files.items():
            partial[path].parent.mkdir(parents=True, exist_ok=True)
            partial[path].write_bytes(content if isinstance(content, bytes) else as_csv(content))
        for path in outdated:
            Path(path).unlink(missing_ok=True)  # another process may have removed it
        for path in files:
            os.replace(partial[path], path)
    except OSError as error:
        for written in partial.values():
            with contextlib.suppress(OSError):
                written.unlink()
        raise InputError(f"{path}: cannot be written ({error.strerror}); "
                         "make room or name another folder") from None


def as_csv(rows):
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue().encode()


def check_writable(folder):
    """Raises InputError if no file can be made in a folder. Leaves nothing behind."""
    existing = Path(os.path.abspath(folder))
    while not existing.exists():  # the nearest one that exists
        existing = existing.parent
    path = existing / f".{uuid.uuid4().hex}"
    write_files({path: b""})
    path.unlink(missing_ok=True)
