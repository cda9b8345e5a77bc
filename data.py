"""Clips, ratings and features: the manifest, the WAV reader, the feature cache, and a simulated Track 3.

The paper (III.D, IV) used AudioMOS Challenge 2025 Track 3, which cannot be handed on. So that everything
runs without a download, `python data.py --out DIR --seed K` writes a corpus of the same make-up: real WAV
files of source-filter speech with each method's artefacts, scored by simulated raters who are calibrated on
the published figures. All of the simulation is ours. Letters of dimensions: see moemos.py.
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
import re
import shutil
import sys
import time
import uuid
import warnings
from collections import defaultdict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import moemos  # first: it says what is wrong where torch and torchaudio are no pair

# isort: split
import numpy as np
import torch
from scipy.fft import irfft, next_fast_len, rfft
from scipy.io import wavfile
from scipy.ndimage import gaussian_filter1d
from scipy.special import ndtr

from moemos import InputError

# ---------------------------------------------------------------------------------------------------------
# Audio

FULL_SCALE = {"uint8": 128, "int16": 2 ** 15, "int32": 2 ** 31, "float32": 1, "float64": 1}  # 24 bits arrive in int32


def read_bytes(path):
    """What a file holds. Raises InputError."""
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from None


def decode(path, content):
    """The bytes of a WAV file -> (rate, (T,) float64 at that rate, mean of the channels). Raises InputError naming the file."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", wavfile.WavFileWarning)  # of chunks that hold no audio
        warnings.filterwarnings("error", ".*EOF.*", wavfile.WavFileWarning)
        try:
            rate, samples = wavfile.read(io.BytesIO(content))
        except Exception as error:  # noqa: BLE001 - scipy raises nearly anything for a malformed file
            raise InputError(f"{path}: not a whole WAV file of PCM or float samples ({error})") from None
    if samples.dtype.name not in FULL_SCALE or not 1 <= rate <= 768000 or samples.size == 0:
        raise InputError(f"{path}: {samples.dtype.name} samples of shape {samples.shape} at {rate} Hz; needed are 8, 16, 24 or "
                         "32-bit PCM or float, at least one sample, and a rate up to 768 kHz")
    scaled = (samples - 128.0 if samples.dtype == np.uint8 else samples) / FULL_SCALE[samples.dtype.name]
    mono = scaled if scaled.ndim == 1 else scaled.mean(axis=1)  # (T, channels) -> (T,)
    if not (np.abs(mono) < 1e30).all():
        raise InputError(f"{path}: holds NaN, infinite or huge samples")
    if len(mono) * moemos.SAMPLE_RATE < moemos.MIN_SAMPLES * rate:
        raise InputError(f"{path}: {1000 * len(mono) / rate:.1f} ms long; the backbone needs 25 ms")
    return rate, mono


def read_wav(path, content=None):
    """A WAV file of 8, 16, 24 or 32-bit PCM or float, any rate and channels -> (T,) float32 at 16 kHz.

    Channels are averaged, the level is untouched. content: the file's bytes, where they have been read.
    Raises InputError, a ValueError, naming the file.
    """
    from scipy.signal import resample_poly  # here, as --help need not wait for it
    rate, mono = decode(path, content or read_bytes(path))
    common = math.gcd(rate, moemos.SAMPLE_RATE)
    return torch.from_numpy(resample_poly(mono, moemos.SAMPLE_RATE // common, rate // common).astype(np.float32))


def check_clip(path, max_seconds, content=None):
    """Rate and seconds of a clip; a silent one is warned of. Raises InputError for one that cannot be used or is too long."""
    rate, mono = decode(path, content or read_bytes(path))
    seconds = len(mono) / rate
    if seconds > max_seconds:
        raise InputError(f"{path}: {seconds:.2f} s long, above train.py's --max-seconds {max_seconds:g}; the backbone's memory "
                         "grows with the square of the length, so cut the clip or train with a higher limit")
    if not mono.any():
        print(f"WARNING: {path} is all digital silence; its score says nothing", file=sys.stderr)
    return rate, seconds


def find_wavs(paths):
    """Files as they are given, folders as all WAV files below them, sorted, links followed. Raises InputError for one without any."""
    found = []
    for path in paths:
        if not str(path):
            raise InputError("an empty name is no file")
        path, wavs, seen = Path(path), [], set()
        for folder, below, names in os.walk(path, followlinks=True):
            if os.path.realpath(folder) in seen:
                below.clear()  # links in a circle
                continue
            seen.add(os.path.realpath(folder))
            wavs += [Path(folder, name) for name in names if name.lower().endswith(".wav")]
        if not wavs and os.path.isdir(path):
            raise InputError(f"{path}: there is no WAV file in this folder")
        found += sorted(wavs) or [path]
    return found


def check_writable(*folders):
    """Raises InputError for a folder in which no file can be made."""
    for folder in map(Path, folders):
        if folder.exists() and not folder.is_dir():
            raise InputError(f"{folder}: is no folder")
        write_atomically(folder / ".writable", b"")
        (folder / ".writable").unlink(missing_ok=True)


# ---------------------------------------------------------------------------------------------------------
# Tables of ratings: each layout's reader yields its rows as one kind of tuple, and one function makes clips of them

HEADER = ("wav", "split", "system", "model", "rater", "score")


@dataclass
class Clip:
    """One clip. system: what system-level scores group by. model: what the auxiliary task classifies.
    ratings: rater -> score, empty for a clip without MOS. rate and seconds are set by read_corpus."""
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
        return sum(self.ratings.values()) / len(self.ratings) if self.ratings else float("nan")


class Layout(NamedTuple):
    name: str
    tables: dict      # pattern of tables below the corpus's folder -> split; the layout is known by the first
    columns: str      # of each table
    header: bool      # whether its first row names them
    wavs: str         # folder of the clips
    fields: Callable  # row, table -> wav, system, model, rater, score; empty rater and score = a clip without MOS


def _manifest(row, table):
    return row["wav"], row["system"], row.get("model") or row["system"], row["rater"], row["score"]


def _track3(row, table):
    """audiomos-track3-<rate>_<method>_...: the system is rate and method; a rater's id is unique within a test only."""
    match = re.match(r"audiomos-track3-((?:16|24|48)k_(sys\d+|(?:original|nv|tts|world)(?:SR)?))_", row["uttID"])
    if not match:
        raise InputError(f"{row['uttID']} is no name of a Track 3 clip (audiomos-track3-<rate>_<method>_...)")
    rater = f"{table.stem}:{row['lisID']}" if "lisID" in row else ""
    return row["uttID"].removesuffix(".wav") + ".wav", *match.groups(), rater, row.get("rating", "")


def _bvcc(row, table):
    system = row["wav"].split("-")[0]
    rater = (row["listener"].split("_") + [""] * 3)[2] if "listener" in row else "mean"  # {}_30-39_ID_Female_Valid_1_No
    return row["wav"], system, system, rater, row["score"]


def _somos(row, table):
    return row["utteranceId"].removesuffix(".wav") + ".wav", row["systemId"], row["systemId"], row["listenerId"], row["choice"]


TRACK3, RATINGS = "AudioMOS 2025 Track 3, ", "uttID,lisID,rating"
BVCC = (("train", "TRAINSET", "train_mos_list.txt"), ("dev", "DEVSET", "val_mos_list.txt"), ("test", "TESTSET", "test_mos_list.txt"))
SOMOS = (("train", "TRAINSET"), ("dev", "VALIDSET"), ("test", "TESTSET"))
LAYOUTS = (  # the first that is there is taken; val/ of Track 3, a second test of the training clips, is not used (paper, IV)
    Layout("manifest", {"ratings.csv": ""}, ",".join(HEADER), True, "", _manifest),
    Layout(TRACK3 + "post-evaluation archive", {"train/utt_*.csv": "train", "test/utt_mix_test.csv": "test"},
           RATINGS, True, "wav", _track3),
    Layout(TRACK3 + "phase archives", {"utt_*k.csv": "train"}, RATINGS, True, "wav", _track3),
    Layout(TRACK3 + "phase archives", {"sets/eval_list.txt": "test"}, "uttID", False, "wav", _track3),
    Layout("BVCC, single ratings", {f"sets/{table}": split for split, table, _ in BVCC},
           "system,wav,score,ignored,listener", False, "wav", _bvcc),
    Layout("BVCC, mean ratings", {f"sets/{means}": split for split, _, means in BVCC}, "wav,score", False, "wav", _bvcc),
    Layout("SOMOS, clean split", {f"training_files/split1/clean/{table}": split for split, table in SOMOS},
           "systemId,utteranceId,choice,listenerId", True, "audios", _somos),
)
FOLDERS = ("", "DATA", "track3_obf/DATA", "audiomos2025-track3-eval-phase/DATA", "post_eval_distro")  # below PATH


def recognise(path):
    """What lies at a path -> [(folder, Layout)], more than one where a corpus comes in parts. Raises InputError."""
    path = Path(path)
    if path.is_file():
        return [(path.parent, LAYOUTS[0]._replace(tables={glob.escape(path.name): ""}))]
    known = [(layout, next(iter(layout.tables))) for layout in LAYOUTS]
    found = [(path / folder, layout) for layout, table in known for folder in FOLDERS if any((path / folder).glob(table))]
    if not found:
        looked_for = ", ".join(f"{table} ({layout.name})" for layout, table in known)
        raise InputError(f"{path}: holds nothing that is known; looked for {looked_for}; "
                         "`python data.py --out DIR` simulates a corpus")
    return [(folder, layout) for folder, layout in found if layout.name == found[0][1].name]


def _rows(table, layout):
    """Yields (place, row as a dict) of a table; a header may name the columns in any order, and leave out model."""
    columns = layout.columns.split(",")
    try:
        text = io.StringIO(read_bytes(table).decode("utf-8-sig"), newline="")
        rows = csv.DictReader(text, None if layout.header else columns, strict=True)
        names = rows.fieldnames or []
        if {*names, "model"} != {*columns, "model"} or len({*names}) < len(names):
            raise InputError(f"{table}: the first row must be {layout.columns}, not {','.join(names)!r}")
        for row in rows:
            place = f"{table}, row {rows.line_num}"
            if None in row or None in row.values():
                raise InputError(f"{place}: a row needs one value for each of {','.join(names)}")
            yield place, row
    except (UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{table}: is no CSV table in UTF-8 ({error}); save it as one") from None


def read_manifest(path, scale=(1.0, 5.0)):
    """A corpus in any of LAYOUTS, a ratings.csv or its folder first of all -> clips in order of first appearance.

    A split is train, dev (read, but used for nothing) or test. Raises InputError naming file and row.
    """
    clips = {}
    for folder, layout in recognise(path):
        tables = [(table, split) for pattern, split in layout.tables.items() for table in sorted(folder.glob(pattern))]
        for table, split in tables:
            for place, row in _rows(table, layout):
                try:
                    wav, system, model, rater, score = layout.fields(row, table)
                    clip = Clip(wav, folder / layout.wavs / wav, split or row["split"], system, model)
                    _add_rating(clips, clip, rater, score, scale)
                except InputError as error:
                    raise InputError(f"{place}: {error}") from None
    if not clips:
        raise InputError(f"{path}: there are no rows below the header")
    return list(clips.values())


def _add_rating(clips, new, rater, score, scale):
    """Adds one row, its clip and its rating, to clips, a dict absolute path -> Clip."""
    if not new.wav or not new.system:
        raise InputError("wav and system must not be empty")
    if new.split not in ("train", "dev", "test"):
        raise InputError(f"the split must be train, dev or test, not {new.split!r}")
    clip = clips.setdefault(os.path.abspath(new.path), new)  # ./a.wav is a.wav
    if clip is new and not os.path.isfile(clip.path):
        raise InputError(f"{clip.path} is not there, or no file")
    if (clip.split, clip.system, clip.model) != (new.split, new.system, new.model):
        raise InputError(f"{clip.wav} stood in another split, system or model above")
    if not score and not rater:
        return
    rater = rater or "mean"
    if rater in clip.ratings:
        raise InputError(f"rater {rater!r} has rated {clip.wav} above")
    try:
        value = float(score)
    except ValueError:
        raise InputError(f"the score {score!r} is no number") from None
    if not scale[0] <= value <= scale[1]:
        raise InputError(f"the score {score} is off the scale of {scale[0]:g} to {scale[1]:g} (train.py's --scale LOW HIGH "
                         "sets another)")
    clip.ratings[rater] = value


def read_corpus(path, augment="", scale=(1.0, 5.0), max_seconds=60.0, say=True):
    """read_manifest, with the clips of the folder `augment` (a subfolder a synthesis model, no MOS) joined to training.

    Every clip is decoded once, so that a bad one is refused before any work, and one line says what was found.
    """
    clips = read_manifest(path, scale)
    if augment and not Path(augment).is_dir():
        raise InputError(f"--augment {augment}: is no folder")
    rated = {os.path.realpath(clip.path) for clip in clips}
    for wav in find_wavs([augment]) if augment else []:
        model = wav.relative_to(augment).parts[0]
        if os.path.realpath(wav) in rated:
            raise InputError(f"{wav}: is a clip of {path} too; take it out of {augment}")
        if model == wav.name:
            raise InputError(f"{wav}: must lie in a subfolder of {augment} that bears its synthesis model's name")
        clips.append(Clip(str(wav), wav, "train", model, model))
    for clip in clips:
        clip.rate, clip.seconds = check_clip(clip.path, max_seconds)
    parts = []
    for split in ("train", "dev", "test"):
        these = [clip for clip in clips if clip.split == split]
        raters = [rater for clip in these for rater in clip.ratings]
        parts.append(f"{split} {len(these)} clips, {len(raters)} ratings, {len({clip.system for clip in these})} systems, "
                     f"{len(set(raters))} raters, {sum(clip.seconds for clip in these):.0f} s")
    if say:
        print(f"{path}: {recognise(path)[0][1].name}; " + "; ".join(part for part in parts if not part.startswith("dev 0")))
    return clips


# ---------------------------------------------------------------------------------------------------------
# Features: each clip goes through the frozen backbone once, alone and unpadded; its statistics are kept

def extract_features(clips, backbone, cache="cache"):
    """Clips -> (clips, L, 2D) float32, from the folder `cache` where they are there.

    An entry's name is a digest of the file's content, the backbone's weights and the code between them,
    so nothing stale is used as long as the libraries are the same. Raises InputError for a file that read_wav refuses.
    """
    code = "".join(map(inspect.getsource, (decode, read_wav, moemos.Backbone.extract, moemos.pool_statistics)))
    shape = (backbone.layers, 2 * backbone.width)
    result = torch.empty(len(clips), *shape)
    seconds, start = 0.0, time.monotonic()
    for i, clip in enumerate(clips):
        content = read_bytes(clip.path)
        entry = Path(cache) / hashlib.sha256(f"{backbone.identity}{code}".encode() + content).hexdigest()
        statistics = _read_entry(entry, shape)
        if statistics is None:
            waveform = read_wav(clip.path, content)
            statistics = statistics_of(waveform, backbone, clip.path)
            body = statistics.numpy().tobytes()
            write_atomically(entry, body + hashlib.sha256(body).digest())
            seconds += len(waveform) / moemos.SAMPLE_RATE
        result[i] = statistics
        show_progress(f"{backbone.name} features", i + 1, len(clips), seconds, start)
    return result


def statistics_of(waveform, backbone, path):
    """(T,) -> (L, 2D) on the CPU. Raises InputError where they are not finite."""
    statistics = moemos.pool_statistics(backbone.extract(waveform)).cpu()
    if not statistics.isfinite().all():
        raise InputError(f"{path}: too loud for {backbone.name}, its features are not finite; scale it to full scale 1")
    return statistics


def show_progress(what, done, clips, seconds, start):
    """One line on a terminal, none of it in a pipe. seconds: of audio so far; start: time.monotonic() then."""
    if sys.stderr.isatty():
        spent = time.monotonic() - start
        print(f"\r{what}: {done}/{clips} clips, {seconds:.0f} s of audio at {seconds / spent:.0f} x real time, "
              f"{spent / done * (clips - done):.0f} s left ", end="\n" * (done == clips), file=sys.stderr)


def _read_entry(entry, shape):
    """A cache entry is its float32 numbers and their SHA-256; None where it is missing or damaged."""
    try:
        content = entry.read_bytes()
    except OSError:
        return None
    body, digest = content[:-32], content[-32:]
    if hashlib.sha256(body).digest() != digest or len(body) != 4 * math.prod(shape):
        return None
    return torch.frombuffer(bytearray(body), dtype=torch.float32).view(shape)


def write_csv(path, rows):
    """write_atomically of a table."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    write_atomically(path, text.getvalue().encode())


def write_atomically(path, content):
    """Writes bytes so that a reader, another process or an interrupted run's next start sees the whole file or none.

    Raises InputError where it cannot be written.
    """
    partial = Path(path).with_name(f"{Path(path).name}.{uuid.uuid4().hex}.partial")
    try:
        partial.parent.mkdir(parents=True, exist_ok=True)
        partial.write_bytes(content)
        os.replace(partial, path)
    except OSError as error:
        with contextlib.suppress(OSError):
            partial.unlink()
        raise InputError(f"{path}: cannot be written ({error.strerror}); make room or name another folder") from None


# ---------------------------------------------------------------------------------------------------------
# A simulated Track 3: the make-up (published) and the listeners (calibrated on published figures)

CONDITIONS = {  # sampling rate and method: MOS in the training test, in the evaluation test (of the archive's labels)
    "16k_original": (3.943, 3.563), "16k_nv": (3.733, 3.437), "16k_tts": (3.270, 2.983), "16k_world": (2.197, 1.727),
    "24k_original": (3.863, 4.077), "24k_nv": (3.853, 3.960), "24k_tts": (3.203, 3.330), "24k_world": (2.170, 2.220),
    "24k_originalSR": (3.787, 3.963), "24k_nvSR": (3.707, 3.837), "24k_ttsSR": (3.143, 3.440), "24k_worldSR": (2.003, 1.867),
    "48k_original": (3.920, 4.340), "48k_nv": (3.760, 4.260), "48k_tts": (3.540, 4.140), "48k_world": (2.160, 2.180),
    "48k_originalSR": (3.600, 4.220), "48k_nvSR": (3.820, 4.060), "48k_ttsSR": (3.640, 3.800), "48k_worldSR": (2.160, 2.140),
}
CLIPS = {"16": 30, "24": 30, "48": 5}  # kHz: clips a condition, in training and in test alike (published)
SENTENCES = 30                         # in training, and as many others in test (published)
RATERS = 10                            # 0-9 rate the training clips, 10-19 the test clips (paper, IV)
AUGMENTATION_CLIPS = 100               # from each of the paper's four more synthesis models (III.D)

# Calibrated (see test_moemos.py) so that reliability and condition-mean row come out near the published ones (README: how
# near) and an additive model finds bias, gain and residual in the range measured in public naturalness tests.
CLIP_SD = 0.34      # of the quality of a condition's clips, all of it audible as severity
BIAS_SD = 0.55      # of a rater's constant
GAIN_SD = 0.20      # of a rater's slope about the middle of the scale
RESIDUAL_SD = 0.88  # of one rating


def draw_panel(rng):
    """Bias and gain, (RATERS,) each, of raters whose mean is the published panel's: no bias, gain 1."""
    bias, gain = rng.normal(0, BIAS_SD, RATERS), rng.normal(1, GAIN_SD, RATERS)
    return bias - bias.mean(), gain - gain.mean() + 1


def rate_clips(rng, mos, severity, bias, gain):
    """A panel rates the clips of one condition: severity (clips,), standard normal, high is bad -> (clips, RATERS) integers 1-5.

    A rating is 3 + gain (quality - 3) + bias + residual, rounded and clipped; the condition's mean quality is
    solved for, so that its expected MOS is `mos`.
    """
    def opinions(mean):  # before the residual
        return 3 + gain * (mean - 3 - CLIP_SD * severity[:, None]) + bias

    def expected(mean):  # 1 + sum over k of P(rating > k)
        return 1 + ndtr((opinions(mean)[..., None] - (1.5, 2.5, 3.5, 4.5)) / RESIDUAL_SD).sum(-1).mean()

    from scipy.optimize import brentq  # here, as --help need not wait for it
    heard = opinions(brentq(lambda mean: expected(mean) - mos, -5, 11))
    return np.rint(heard + rng.normal(0, RESIDUAL_SD, heard.shape)).clip(1, 5).astype(int)


# ---------------------------------------------------------------------------------------------------------
# The sound: source-filter speech, and the trace that each method leaves in it

FRAME_RATE = 100  # control frames a second

VOWELS = (  # F1 F2 F3 (Hz), near the men of Peterson and Barney (1952); duration (ms), ours, as is what follows
    (280, 2250, 2900, 100), (530, 1850, 2500, 100), (730, 1090, 2450, 110), (570, 840, 2400, 105), (310, 870, 2250, 95),
    (680, 1720, 2400, 115), (400, 1950, 2550, 80), (440, 1020, 2250, 80), (480, 1350, 1700, 95),
)
CONSONANTS = (  # m n l s sh z f t k p; also voicing, centre (Hz) and level of frication, loudness (dB)
    (280, 1000, 2200, 70, 0.5, 3000, 0, -3), (280, 1600, 2500, 65, 0.5, 3000, 0, -3), (360, 1200, 2700, 65, 0.7, 3000, 0, -2),
    (320, 1700, 2600, 110, 0, 6500, 1, -4), (320, 1800, 2500, 110, 0, 3600, 1, -4), (320, 1700, 2600, 80, 0.4, 6300, 0.5, -4),
    (300, 1200, 2300, 90, 0, 5000, 0.3, -5), (320, 1800, 2600, 60, 0, 5000, 0.7, -8), (320, 1500, 2200, 65, 0, 2500, 0.7, -8),
    (320, 900, 2200, 60, 0, 1200, 0.4, -9),
)
PAUSE = (450, 1500, 2500, 90, 0, 3000, 0, -60)

# What a method leaves behind, as the strength of each trace; a clip's severity, standard normal, scales them all.
#   room    the recording's own noise and reverberation: all that can be wrong with an original
#   phase   a neural vocoder's phases wander, more towards high frequencies: roughness
#   hiss    and its noise follows the spectrum of the speech
#   whine   and its upsampling layers leave steady tones
#   flat    a TTS voice levels pitch, loudness and timing
#   smooth  a parametric vocoder's tracks are blurred in time, its formants widened: muffled
#   buzz    and its voicing is strictly periodic, without breath or jitter
#   image   super-resolution fills the band above its input's with a mirror of the band below
RECORDING = {"room": 0.4}
METHODS = {
    "original": {},
    "nv": {"phase": 0.4, "hiss": 0.2, "whine": 1.0},
    "tts": {"phase": 0.3, "hiss": 0.1, "whine": 0.5, "flat": 0.8, "smooth": 0.2},
    "world": {"buzz": 0.8, "smooth": 3.0},
}
SUPER_RESOLUTION = {"image": 0.5}  # joins the traces of a method whose name ends in SR
SR_BAND = 6000                     # Hz; its input was sampled at 12 kHz
SEVERITY = 0.6                     # a standard deviation more makes traces e^0.6 = 1.8 times as strong
AUGMENTATION = {  # the paper's four models (III.D); their traces are ours: TTS with more or less of each
    "CosyVoice-300M": {"phase": 0.5, "hiss": 0.3, "flat": 0.3},
    "CosyVoice2-0.5B": {"phase": 0.2, "hiss": 0.1, "flat": 0.3},
    "FireRedTTS": {"phase": 0.3, "hiss": 0.4, "flat": 0.7, "smooth": 0.3},
    "F5-TTS": {"phase": 0.7, "hiss": 0.1, "flat": 0.1, "room": 0.2},
}


def speak(rng):
    """A sentence as it is to be read: {name of a control: (phones,)}."""
    rows = [PAUSE]
    for _ in range(rng.integers(8, 17)):
        vowel = VOWELS[rng.integers(len(VOWELS))]
        rows += [CONSONANTS[rng.integers(len(CONSONANTS))], (*vowel, 1, 3000, 0, 0)]
        if rng.random() < 0.12:
            rows.append(PAUSE)
    rows.append(PAUSE)
    names = ("F1", "F2", "F3", "duration", "voicing", "centre", "frication", "loudness")
    phones = dict(zip(names, np.array(rows, float).T))
    stress = rng.normal(size=len(rows))
    phones["duration"] *= np.exp(0.25 * stress)
    phones["duration"] *= phones["duration"].sum().clip(1400, 3800) / phones["duration"].sum()
    phones["loudness"] += 2 * stress
    phones["pitch"] = np.linspace(3, -4, len(rows)) + 1.5 * stress  # semitones about the talker's own
    return phones


def talk(rng, studio):
    """Who reads it (pitch in Hz, tract: length over the mean's, tilt: corner of the glottis in Hz), and into which microphone
    (noise in dB re the speech, room: share of the reverberation). Track 3 has two sources; the one at 48 kHz is a studio."""
    return {"pitch": 95 * 2 ** rng.uniform(0, 1.2), "tract": rng.uniform(0.9, 1.1), "tilt": rng.uniform(130, 250),
            "breath": rng.uniform(0.08, 0.12), "jitter": rng.uniform(0.005, 0.015),
            "noise": rng.uniform(-56, -52), "room": 0.4 if studio else 1.0}


def synthesize(phones, talker, traces, rate, rng):
    """One clip as a method renders it, (T,) int16 at `rate` Hz. traces: name -> strength, 0 where absent.

    Its numbers are ours, set so that spectra look like speech and no trace is inaudible or a give-away.
    """
    trace = defaultdict(float, traces)
    room = trace["room"] * talker["room"]
    natural = 1 - min(trace["buzz"], 1)
    track = control_tracks(phones, min(trace["flat"], 0.9), min(trace["smooth"], 5))   # {name: (F, 1)}
    hop = rate // FRAME_RATE
    hz = np.fft.rfftfreq(4 * hop, 1 / rate).astype(np.float32)                        # (bins,); single precision: half the time

    pitch = talker["pitch"] * 2 ** (track["pitch"] / 12)
    pitch *= 1 + natural * talker["jitter"] * rng.standard_normal(pitch.shape)
    pulses = spectra(pulse_train(np.repeat(pitch[1:, 0], hop), rate), hop)             # (F, bins)
    noise = spectra(rng.standard_normal((len(pitch) - 1) * hop), hop)                  # (F, bins)
    breath = talker["breath"] * (natural ** 0.5 * noise + (1 - natural) ** 0.5 * pulses)
    tilt = 1 / np.hypot(1, hz / talker["tilt"])                                        # -6 dB an octave: glottis and lips
    voice = track["voicing"] * (8 * tilt * pulses + breath)
    hiss = np.exp(-0.5 * ((hz - track["centre"] / talker["tract"]) / (300 + 0.2 * track["centre"])) ** 2)
    spectrum = vocal_tract(track, talker["tract"], 1 + trace["smooth"], hz, rate) * voice
    spectrum = spectrum + 0.3 * track["frication"] * hiss * noise
    spectrum *= 10 ** (track["loudness"] / 20)                                         # (F, bins)

    if trace["phase"]:
        wander = np.minimum(hz / 4000, 1.5) * rng.standard_normal((2, *spectrum.shape), np.float32)
        spectrum *= np.exp(1j * trace["phase"] * wander[0]) + trace["hiss"] * wander[1]
    if trace["image"]:
        edge = np.searchsorted(hz, SR_BAND)
        width = min(edge, len(hz) - edge)
        spectrum[:, edge:edge + width] = 0.3 * trace["image"] * spectrum[:, edge - width:edge][:, ::-1]
        spectrum[:, edge + width:] = 0

    speech = overlap_add(irfft(spectrum, axis=1), hop)                                 # (T,)
    decay = np.exp(-np.arange(0.25 * rate) / (0.04 * rate)) * rng.standard_normal(rate // 4)
    length = next_fast_len(len(speech) + len(decay))
    echo = irfft(rfft(speech, length) * rfft(decay / np.linalg.norm(decay), length))
    speech += 0.3 * room * echo[:len(speech)]
    speech /= np.sqrt(np.mean(speech ** 2))
    speech += 10 ** (talker["noise"] / 20 + room) * np.sqrt(rate / 16000) * rng.standard_normal(len(speech))
    tones = np.sin(2 * np.pi * np.outer((2000, 4000, 6000), np.arange(rate // 2000) / rate)).sum(0)  # one period
    speech += 10 ** (-50 / 20) * trace["whine"] * np.resize(tones, len(speech))
    level = 10 ** (rng.uniform(-29, -23) / 20)  # dB below full scale; says nothing about the score
    return np.rint(32768 * level * speech).clip(-32768, 32767).astype(np.int16)


def control_tracks(phones, flat, smooth):
    """{name: (phones,)} -> {name: (F, 1)} at FRAME_RATE."""
    duration, loudness = phones["duration"], phones["loudness"]
    even = duration ** (1 - flat) * duration.mean() ** flat
    frames = np.maximum(np.rint(even * duration.sum() / even.sum() * FRAME_RATE / 1000), 1).astype(int)
    level = np.where(loudness > -30, (1 - flat) * loudness - 4 * flat, loudness)  # pauses stay silent
    phones = phones | {"loudness": level, "pitch": (1 - flat) * phones["pitch"]}
    return {name: gaussian_filter1d(np.repeat(values, frames), 1.2 + 2.2 * smooth, mode="nearest")[:, None].astype(np.float32)
            for name, values in phones.items()}


def pulse_train(pitch, rate):
    """(T,) Hz -> (T,): one pulse of unit power a period, placed between two samples in proportion."""
    step = pitch / rate
    phase = np.cumsum(step)
    at = np.flatnonzero(np.diff(np.floor(phase))) + 1
    late = (phase[at] - np.floor(phase[at])) / step[at]
    train = np.zeros(len(phase))
    train[at] += (1 - late) / np.sqrt(step[at])
    train[at - 1] += late / np.sqrt(step[at])
    return train


def spectra(signal, hop):
    """(T,) -> (F, bins): Hann windows of 2 hops, zero-padded to 4 so that the filters' ringing fits."""
    windows = np.lib.stride_tricks.sliding_window_view(np.pad(signal, hop), 2 * hop)[::hop]
    return rfft((windows * np.hanning(2 * hop + 1)[:-1]).astype(np.float32), 4 * hop, axis=1)


def overlap_add(frames, hop):
    """(F, 4 hops) -> (T,), the inverse of spectra where nothing was changed."""
    signal = np.zeros((len(frames) + 3) * hop)
    for part in range(4):
        signal[part * hop:(part + len(frames)) * hop] += frames[:, part * hop:(part + 1) * hop].ravel()
    return signal[hop:len(frames) * hop]


def vocal_tract(track, tract, widening, hz, rate):
    """(F, bins): three moving formants, and fixed ones 1 kHz apart up to the top of the band."""
    z = np.exp(-2j * np.pi * hz / rate).astype(np.complex64)

    def formant(centre, bandwidth):  # resonance with gain 1 at 0 Hz
        radius = math.exp(-math.pi * bandwidth / rate)
        a, b = -2 * radius * np.cos(2 * np.pi * centre / (tract * rate)), radius ** 2
        return (1 + a * z + b * z ** 2) / (1 + a + b)

    fixed = [formant(centre, 0.06 * centre) for centre in np.arange(3500, tract * (rate / 2 - 300), 1000)]
    inverse = np.prod(fixed, axis=0).astype(np.complex64)
    for name, bandwidth in (("F1", 70), ("F2", 100), ("F3", 160)):
        inverse = inverse * formant(track[name], widening * bandwidth)
    return 1 / inverse


# Who may rate the test clips, for experiments: the condition MOS of which test (0 training, 1 evaluation), shifted by how much,
# and the bias and gain of which panel
PANELS = {
    "second": (1, 0.0, 1),       # the corpus's own
    "training": (0, 0.0, 0),     # raters 0-9, who hear each condition as in the training test
    "unbiased": (0, 0.0, None),  # others, who agree with those on each condition and have no bias, and gain 1
    "strict": (1, -0.5, 1),      # the corpus's own, half a point stricter
}


def plan_corpus(seed, panel="second"):
    """Every clip of the corpus as a dict: its name and labels, its scores by rater, and what it is to sound like.

    Random numbers come from streams: [seed, 0] for the plan, 1 a sentence, 2 a talker, 3 a clip, 4 a panel by its place in PANELS.
    """
    rng, again = np.random.default_rng([seed, 0]), np.random.default_rng([seed, 4, list(PANELS).index(panel)])
    plan, panels = [], []
    for half, split in enumerate(("train", "test")):
        panels.append(draw_panel(rng))
        for condition, mos in CONDITIONS.items():
            khz, method = condition.split("k_")
            traces = METHODS[method.removesuffix("SR")] | (SUPER_RESOLUTION if method.endswith("SR") else {})
            severity = rng.normal(size=CLIPS[khz]).clip(-2.5, 2.5)
            scores, who = rate_clips(rng, mos[half], severity, *panels[half]), half  # (clips, RATERS)
            if half and panel != "second":  # those were drawn all the same, so that the clips stay the corpus's
                test, shift, who = PANELS[panel]
                raters = (np.zeros(RATERS), np.ones(RATERS)) if who is None else panels[who]
                scores = rate_clips(again, mos[test] + shift, severity, *raters)
            first = 0 if who == 0 else RATERS
            sentences = half * SENTENCES + np.sort(rng.permutation(SENTENCES)[:CLIPS[khz]])
            for sentence, strength, ratings in zip(sentences, severity, scores):
                talker = sentence % 2 if khz == "48" else 2 + sentence  # HiFi-CAPTAIN, the source at 48 kHz, has two
                plan.append({"name": f"{condition}_s{sentence + 1:02d}", "split": split, "system": condition, "model": method,
                             "scores": dict(enumerate(ratings, first)), "sentence": sentence, "talker": talker,
                             "rate": 1000 * int(khz), "traces": traces, "severity": strength})
    for model, traces in AUGMENTATION.items():
        for i in range(AUGMENTATION_CLIPS):
            plan.append({"name": f"{model}_{i + 1:03d}", "split": "train", "system": model, "model": model,
                         "scores": {"": ""},  # one row, no rating
                         "sentence": i % SENTENCES, "talker": len(plan), "rate": 24000, "traces": traces, "severity": rng.normal()})
    return plan


def render(directory, plan, seed):
    """Writes the clips of a plan into the directory."""
    def write(i):
        clip = plan[i]
        phones = speak(np.random.default_rng([seed, 1, clip["sentence"]]))
        talker = talk(np.random.default_rng([seed, 2, clip["talker"]]), studio=clip["rate"] == 48000)
        louder = math.exp(SEVERITY * clip["severity"])
        traces = {name: louder * strength for name, strength in (RECORDING | clip["traces"]).items()}
        samples = synthesize(phones, talker, traces, clip["rate"], np.random.default_rng([seed, 3, i]))
        wavfile.write(directory / "wav" / f"{clip['name']}.wav", clip["rate"], samples)

    with ThreadPoolExecutor() as pool:  # numpy and scipy let go of the interpreter lock
        list(pool.map(write, range(len(plan))))


def write_ratings(path, plan):
    """The table of a plan's clips and scores."""
    write_csv(path, [HEADER, *((f"wav/{clip['name']}.wav", clip["split"], clip["system"], clip["model"], rater, score)
                               for clip in plan for rater, score in clip["scores"].items())])


def simulate(directory, seed):
    """Writes a simulated Track 3, WAV files and ratings.csv, deterministic to the byte for a seed.

    Raises InputError where the directory holds something. A killed run leaves a folder *.partial, which may be deleted.
    """
    if seed < 0:
        raise InputError(f"--seed {seed}: must be at least 0")
    directory = Path(directory).resolve()
    partial = directory.with_name(f"{directory.name}.{uuid.uuid4().hex}.partial")
    try:
        if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
            raise InputError(f"{directory} is there and no empty folder; delete it or name another")
        (partial / "wav").mkdir(parents=True)
        plan = plan_corpus(seed)
        render(partial, plan, seed)
        write_ratings(partial / "ratings.csv", plan)
        if directory.exists():
            directory.rmdir()
        os.replace(partial, directory)
    except OSError as error:
        shutil.rmtree(partial, ignore_errors=True)
        raise InputError(f"{directory}: cannot be written ({error.strerror}); make room or name another folder") from None


def prepare(corpus, seed):
    """simulate(), unless it is there, with a table ratings_PANEL.csv of each of PANELS beside ratings.csv."""
    try:
        simulate(corpus, seed)
    except InputError:
        if not Path(corpus, "ratings.csv").exists():  # else it was there, or another process has made it meanwhile
            raise
    for panel in PANELS:
        write_ratings(f"{corpus}/ratings_{panel}.csv", plan_corpus(seed, panel))


def main():
    parser = argparse.ArgumentParser(allow_abbrev=False, description="Writes a simulated Track 3: WAV files and ratings.csv.")
    parser.add_argument("--out", default="corpus", metavar="DIR", help="a folder that is not there yet (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="(default: %(default)s)")
    arguments = parser.parse_args()
    with moemos.one_sentence("data.py"):
        simulate(arguments.out, arguments.seed)
        print(f"wrote {arguments.out}: {len(read_manifest(arguments.out))} clips")


if __name__ == "__main__":
    main()
