"""WAV files, ratings and features: from what a user has to what the model is given.

    python data.py PATH         checks a corpus, says what it holds, and extracts its features
    torchrun --nproc-per-node N data.py PATH --backbone WAV2VEC2_BASE        on N processes

A corpus is a ratings.csv (see read_manifest) with its WAV files; corpora/ makes one from other data
sets. Whatever comes from outside is checked here, before any work. Letters: see moemos.py.
"""

import argparse
import contextlib
import csv
import glob
import hashlib
import inspect
import io
import math
import os
import socket
import sys
import time
import uuid
import warnings
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from scipy.io import wavfile

import moemos

PAPER_BACKBONE = "WAV2VEC2_BASE"  # wav2vec2 is the paper's (III.B), the size ours: the smallest
STALL_SECONDS = 30.0  # a download that is silent for so long is given up; torch.hub would wait
MAX_BYTES = 2 ** 28   # of a file; a device or a pipe may never end
FULL_SCALE = {"uint8": 128, "int16": 2 ** 15, "int32": 2 ** 31, "float32": 1, "float64": 1}


class InputError(ValueError):
    """Something handed in cannot be used; the text is one sentence: what, and what to do."""


@contextlib.contextmanager
def one_sentence(script):
    """What ends a script early becomes one sentence on standard error, and status 2."""
    sys.stdout.reconfigure(errors="backslashreplace")  # a name may hold what the terminal has not
    try:
        yield
    except (InputError, FloatingPointError, KeyboardInterrupt) as error:
        print(f"{script}: {first_line(error)}", file=sys.stderr)
        sys.exit(2)


def first_line(error):
    return str(error).partition("\n")[0] or type(error).__name__


# -- Audio -----------------------------------------------------------------------------------------

def read_bytes(path):
    """What a file holds, up to MAX_BYTES. Raises InputError."""
    try:
        with open(path, "rb") as file:
            content = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from None
    if len(content) > MAX_BYTES:
        raise InputError(f"{path}: is above {MAX_BYTES >> 20} MiB or never ends; cut it")
    return content


def decode(path, content):
    """The bytes of a WAV file -> (rate, (T,) float64 at that rate). Channels are averaged.

    Raises InputError naming the file.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", wavfile.WavFileWarning)  # of chunks that hold no audio
        warnings.filterwarnings("error", ".*EOF.*", wavfile.WavFileWarning)
        try:
            rate, samples = wavfile.read(io.BytesIO(content))
        except Exception as error:  # noqa: BLE001 - scipy raises nearly anything
            raise InputError(f"{path}: not a whole WAV file of PCM or float ({error})") from None
    kind = samples.dtype.name
    if kind not in FULL_SCALE or not 1 <= rate <= 768000 or samples.size == 0:
        raise InputError(f"{path}: {kind} samples of shape {samples.shape} at {rate} Hz; needed is "
                         "8 to 32-bit PCM or float, at least one, and a rate up to 768 kHz")
    zero = 128.0 if kind == "uint8" else 0.0
    scaled = (samples - zero) / FULL_SCALE[kind]         # (T,) or (T, channels)
    mono = scaled.reshape(len(scaled), -1).mean(axis=1)  # (T,)
    if not (np.abs(mono) < 1e30).all():
        raise InputError(f"{path}: holds NaN, infinite or huge samples")
    if len(mono) / rate < moemos.MIN_SECONDS:
        raise InputError(f"{path}: {1000 * len(mono) / rate:.1f} ms; the backbone needs 25 ms")
    return rate, mono


def read_wav(path, sample_rate, content=None):
    """A WAV file, PCM or float of any rate -> (T,) float32 at sample_rate, mono, as loud as it is.

    content: the file's bytes, where they have been read. Raises InputError naming the file.
    """
    from scipy.signal import resample_poly  # here, so that --help need not wait for it
    rate, mono = decode(path, read_bytes(path) if content is None else content)
    common = math.gcd(rate, sample_rate)
    resampled = resample_poly(mono, sample_rate // common, rate // common)
    return torch.from_numpy(resampled.astype(np.float32))


def check_clip(path, max_seconds, content=None):
    """(rate, seconds) of a clip. Raises InputError for one that cannot be used or is too long."""
    rate, mono = decode(path, read_bytes(path) if content is None else content)
    seconds = len(mono) / rate
    if seconds > max_seconds:
        raise InputError(f"{path}: {seconds:.2f} s long, above --max-seconds {max_seconds:g}; "
                         "cut it, or train with a higher limit")
    if not mono.any():
        print(f"WARNING: {path} is all digital silence; its score says nothing", file=sys.stderr)
    return rate, seconds


def find_wavs(paths):
    """Files as given, folders as all WAV files below them, sorted, links followed -> Paths."""
    found = []
    for path in paths:
        if not str(path):
            raise InputError("an empty name is no file")
        wavs = glob.glob(f"{glob.escape(str(path))}/**/*.[wW][aA][vV]", recursive=True)
        if os.path.isdir(path) and not wavs:
            raise InputError(f"{path}: there is no WAV file in this folder")
        found += sorted(wavs) or [path]
    return [Path(path) for path in found]


# -- Ratings ---------------------------------------------------------------------------------------

HEADER = ("wav", "split", "system", "model", "rater", "score")


@dataclass
class Clip:
    """system: what system-level scores group by. model: what the second task classifies.

    ratings: rater -> score, empty without MOS. rate (Hz) and seconds are set by check_clips.
    """
    wav: str
    path: Path
    split: str
    system: str
    model: str
    ratings: dict = field(default_factory=dict)
    rate: int = 0
    seconds: float = 0.0

    @property
    def mos(self):
        """The plain mean of the clip's ratings, NaN without any."""
        return sum(self.ratings.values()) / len(self.ratings) if self.ratings else math.nan


def read_rows(path, columns, optional=(), header=True):
    """Yields (place, row as a dict) of a CSV table in UTF-8, whose first row, the header, names the
    columns in any order. Raises InputError naming file and row."""
    try:
        text = io.StringIO(read_bytes(path).decode("utf-8-sig"), newline="")
        rows = csv.DictReader(text, None if header else columns, strict=True)
        names = rows.fieldnames or []
        if sorted({*names, *optional}) != sorted(columns) or len(set(names)) < len(names):
            raise InputError(f"{path}: the first row must be {','.join(columns)}, "
                             f"not {','.join(names)!r}")
        for row in rows:
            place = f"{path}, row {rows.line_num}"
            if None in row or None in row.values():
                raise InputError(f"{place}: a row needs one value for each of {','.join(names)}")
            yield place, row
    except (UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{path}: is no CSV table in UTF-8 ({error}); save it as one") from None


def read_manifest(path, scale=(1.0, 5.0)):
    """A ratings.csv, or the folder that holds it -> clips, in order of first appearance.

    A row is a rating, or a clip's mean with `rater` empty; a clip without MOS has one row with both
    `rater` and `score` empty. `wav` is relative to the table, `split` is train, dev (used for
    nothing) or test, and `model`, which may be left out, is the synthesis model, else the system.
    Raises InputError naming file and row.
    """
    path = Path(path, "ratings.csv") if os.path.isdir(path) else Path(path)
    clips = {}
    for place, row in read_rows(path, HEADER, optional=["model"]):
        add_row(clips, row, path.parent, scale, place)
    if not clips:
        raise InputError(f"{path}: there are no rows below the header")
    return list(clips.values())


def add_row(clips, row, folder, scale, place):
    """Adds a row of a table, its clip and its rating, to clips: absolute path -> Clip."""
    if not row["wav"] or not row["system"]:
        raise InputError(f"{place}: wav and system must not be empty")
    if row["split"] not in ("train", "dev", "test"):
        raise InputError(f"{place}: the split must be train, dev or test, not {row['split']!r}")
    model = row.get("model") or row["system"]
    new = Clip(row["wav"], folder / row["wav"], row["split"], row["system"], model)
    path = os.path.abspath(new.path)  # ./a.wav is a.wav
    if path not in clips:
        if not os.path.isfile(new.path):
            raise InputError(f"{place}: {new.path} is not there, or no file")
        clips[path] = new
    clip = clips[path]
    if (clip.split, clip.system, clip.model) != (new.split, new.system, new.model):
        raise InputError(f"{place}: {clip.wav} stood in another split, system or model above")
    if not row["score"] and not row["rater"]:
        return
    rater = row["rater"] or "mean"
    if rater in clip.ratings:
        raise InputError(f"{place}: rater {rater!r} has rated {clip.wav} above")
    try:
        score = float(row["score"])
    except ValueError:
        raise InputError(f"{place}: the score {row['score']!r} is no number") from None
    if not scale[0] <= score <= scale[1]:
        raise InputError(f"{place}: the score {row['score']} is off the scale of {scale[0]:g} to "
                         f"{scale[1]:g}; train.py's --scale LOW HIGH sets another")
    clip.ratings[rater] = score


def check_clips(clips, max_seconds=math.inf):
    """Decodes every clip, so that a bad one is refused before any work, and sets its rate and
    seconds -> a line on what they are.

    Raises InputError naming the file.
    """
    for clip in clips:
        clip.rate, clip.seconds = check_clip(clip.path, max_seconds)
    parts = []
    for split in ("train", "dev", "test"):
        these = [clip for clip in clips if clip.split == split]
        raters = [rater for clip in these for rater in clip.ratings]
        systems = {clip.system for clip in these}
        seconds = sum(clip.seconds for clip in these)
        if these:
            parts.append(f"{split} {len(these)} clips, {len(raters)} ratings, {len(systems)} "
                         f"systems, {len(set(raters))} raters, {seconds:.0f} s")
    return "; ".join(parts)


def read_corpus(path, scale=(1.0, 5.0), max_seconds=60.0):
    """read_manifest and check_clips; prints what was found."""
    clips = read_manifest(path, scale)
    print(f"{path}: {check_clips(clips, max_seconds)}")
    return clips


# -- Features: each clip goes through the frozen backbone once; its statistics are kept ------------

def pick_device(name=""):
    """The device of that name, tried; without one the accelerator, or else the CPU."""
    name = name or torch.accelerator.current_accelerator(check_available=True) or "cpu"
    try:
        torch.ones(1, device=name).item()
    except Exception as error:  # noqa: BLE001 - torch raises nearly anything
        raise InputError(f"--device {name} cannot be used here ({first_line(error)})") from None
    return torch.device(name)


def open_backbone(name="", device=""):
    """moemos.load_backbone, with a sentence for what can go wrong. Raises InputError.

    Without a name it is the paper's, or, with a warning that cannot be missed, logmel where its
    weights cannot be had. device: as of pick_device.
    """
    device = pick_device(device)
    socket.setdefaulttimeout(STALL_SECONDS)
    try:
        return moemos.load_backbone(name or PAPER_BACKBONE, device)
    except ValueError as error:
        raise InputError(str(error)) from None
    except Exception as error:  # noqa: BLE001 - torch raises nearly anything
        problem = (f"the weights of {name or PAPER_BACKBONE} in {torch.hub.get_dir()}/checkpoints "
                   f"are missing or damaged, and were not downloaded ({first_line(error)})")
        if name or not isinstance(error, OSError):
            raise InputError(f"{problem}; put them there, or use --backbone logmel") from None
        line = "!" * 100
        print(f"{line}\nWARNING: {problem}.\nUsing logmel, a stand-in that hears spectra only: "
              f"the results are NOT those of the paper's method.\n{line}", file=sys.stderr)
        return moemos.load_backbone("logmel", device)
    finally:
        socket.setdefaulttimeout(None)


def extract_features(clips, backbone, cache="cache"):
    """Clips -> (clips, L, 2D) float32, from the folder `cache` where they are there.

    An entry's name is a digest of the file's content, the backbone's weights and the code between
    them: after a change of any of these, even of a comment, features are extracted anew (not after
    one of the libraries). Raises InputError for a file that read_wav refuses.
    """
    classes = [*type(backbone).__mro__[:-1], type(backbone.network)]  # without object
    code = [decode, read_wav, *classes, moemos.pool_statistics, clip_statistics]
    key = f"{backbone.identity} {FULL_SCALE} " + "".join(map(inspect.getsource, code))
    shape = (backbone.layers, 2 * backbone.width)
    result = torch.empty(len(clips), *shape)
    start = time.monotonic()
    for i, clip in enumerate(clips):
        content = read_bytes(clip.path)
        entry = Path(cache, hashlib.sha256(key.encode() + content).hexdigest())
        statistics = read_entry(entry, shape)
        if statistics is None:
            waveform = read_wav(clip.path, backbone.sample_rate, content)
            statistics = clip_statistics(waveform, backbone, clip.path)
            numbers = statistics.numpy().tobytes()
            write_atomically(entry, numbers + hashlib.sha256(numbers).digest())
        result[i] = statistics
        show_progress(f"{backbone.name} features", i + 1, len(clips), start)
    return result


def clip_statistics(waveform, backbone, path):
    """(T,) -> (L, 2D) on the CPU. Raises InputError where they are not finite."""
    statistics = moemos.pool_statistics(backbone.extract(waveform)).cpu()
    if not statistics.isfinite().all():
        raise InputError(f"{path}: too loud for {backbone.name}, its features are not finite; "
                         "scale it to full scale 1")
    return statistics


def read_entry(entry, shape):
    """A cache entry is its float32 numbers and their SHA-256; None if missing or damaged."""
    if not entry.is_file():
        return None
    content = entry.read_bytes()
    numbers, digest = content[:-32], content[-32:]
    if hashlib.sha256(numbers).digest() != digest or len(numbers) != 4 * math.prod(shape):
        return None
    return torch.frombuffer(bytearray(numbers), dtype=torch.float32).view(shape)


def show_progress(what, done, clips, start):
    """A line on a terminal, none in a pipe. start: time.monotonic() then."""
    if sys.stderr.isatty():
        left = (time.monotonic() - start) / done * (clips - done)
        print(f"\r{what}: {done}/{clips} clips, {left:.0f} s left ",
              end="\n" * (done == clips), file=sys.stderr)


# -- Output ----------------------------------------------------------------------------------------

def write_atomically(path, content):
    """Writes bytes so that a reader, or the next start of a killed run, sees all of them or none.

    Raises InputError where it cannot.
    """
    path = Path(path)
    partial = path.with_name(f"{path.name}.{uuid.uuid4().hex}.partial")
    try:
        partial.parent.mkdir(parents=True, exist_ok=True)
        partial.write_bytes(content)
        os.replace(partial, path)
    except OSError as error:
        with contextlib.suppress(OSError):
            partial.unlink()
        raise InputError(f"{path}: cannot be written ({error.strerror}); "
                         "make room or name another folder") from None


def write_csv(path, rows):
    """write_atomically of a table."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    write_atomically(path, text.getvalue().encode())


def check_writable(folder):
    """Raises InputError for a folder in which no file can be made."""
    write_atomically(Path(folder, ".writable"), b"")
    Path(folder, ".writable").unlink(missing_ok=True)


def main():
    parser = argparse.ArgumentParser(
        allow_abbrev=False, description="Checks a corpus and extracts its features into the cache.")
    parser.add_argument("path", help="ratings.csv or its folder")
    parser.add_argument("--backbone", default="", help="as of train.py")
    parser.add_argument("--device", default="", help="as of train.py")
    parser.add_argument("--cache", default="cache", help="folder of the features")
    parser.add_argument("--scale", type=float, nargs=2, default=(1.0, 5.0))
    parser.add_argument("--max-seconds", type=float, default=60.0)
    options = parser.parse_args()
    rank = int(os.environ.get("RANK", "0"))  # torchrun sets these two
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    with one_sentence("data.py"):
        clips = read_manifest(options.path, options.scale)
        share = clips[rank::processes]
        print(f"{options.path}: {check_clips(share, options.max_seconds)}")
        backbone = open_backbone(options.backbone, options.device)
        extract_features(share, backbone, options.cache)
        print(f"{backbone.name} features of {len(share)} of {len(clips)} clips in {options.cache}")


if __name__ == "__main__":
    main()
