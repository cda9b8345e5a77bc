"""Clips, ratings and features: the manifest, the WAV reader, the feature cache, and a simulated Track 3.

The paper (III.D, IV) used AudioMOS Challenge 2025 Track 3, which cannot be handed on. So that everything
runs without a download, `python data.py --out DIR --seed K` writes a corpus of the same make-up: real WAV
files of source-filter speech with each method's artefacts, scored by simulated raters who are calibrated on
the published figures. All of the simulation is ours. Letters of dimensions: see moemos.py.
"""

import argparse
import csv
import hashlib
import inspect
import io
import os
import shutil
import sys
import time
import warnings
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from scipy.fft import irfft, next_fast_len, rfft
from scipy.io import wavfile
from scipy.optimize import brentq
from scipy.signal import fftconvolve, resample_poly
from scipy.special import ndtr

import moemos
from moemos import InputError

# ---------------------------------------------------------------------------------------------------------
# The manifest: ratings.csv, one row a rating

HEADER = ["wav", "split", "system", "model", "rater", "score"]


@dataclass
class Clip:
    """One clip. system: what system-level scores group by. model: what the auxiliary task classifies.
    ratings: rater -> score, empty for a clip without MOS."""
    wav: str
    path: Path
    split: str
    system: str
    model: str
    ratings: dict = field(default_factory=dict)

    @property
    def mos(self):
        """The plain mean of the clip's ratings, NaN without any."""
        return sum(self.ratings.values()) / len(self.ratings) if self.ratings else float("nan")


def read_manifest(path):
    """ratings.csv, or the folder that holds it -> clips in order of first appearance.

    Columns as in HEADER; wav is relative to the file; rater and score are empty for a clip without MOS;
    the column model may be left out, then it is the system. Raises InputError naming file and row.
    """
    path = Path(path)
    path = path / "ratings.csv" if path.is_dir() else path
    if not path.is_file():
        raise InputError(f"{path}: there is no such manifest; `python data.py --out DIR` writes a simulated one")
    with open(path, newline="", encoding="utf-8-sig") as file:
        rows = csv.DictReader(file)
        header = rows.fieldnames or []
        if sorted({*header, "model"}) != sorted(HEADER):
            raise InputError(f"{path}: the first row must be {','.join(HEADER)} (model may be left out), not {','.join(header)}")
        clips = {}
        for row in rows:
            try:
                _add_rating(clips, row, path.parent)
            except InputError as error:
                raise InputError(f"{path}, row {rows.line_num}: {error}") from None
    if not clips:
        raise InputError(f"{path}: there are no rows below the header")
    return list(clips.values())


def _add_rating(clips, row, folder):
    """Adds one row to clips, a dict wav -> Clip."""
    if None in row or None in row.values() or not (row["wav"] and row["system"]):
        raise InputError("a row needs one value for each column, and a wav and a system that are not empty")
    if row["split"] not in ("train", "test"):
        raise InputError(f"the split must be train or test, not {row['split']!r}")
    new = Clip(row["wav"], folder / row["wav"], row["split"], row["system"], row.get("model") or row["system"])
    clip = clips.setdefault(new.wav, new)
    if clip is new and not clip.path.is_file():
        raise InputError(f"{clip.path} is not there")
    if (clip.split, clip.system, clip.model) != (new.split, new.system, new.model):
        raise InputError(f"{clip.wav} stood in another split, system or model above")
    if not row["score"] and not row["rater"]:
        return
    if row["rater"] in clip.ratings:
        raise InputError(f"rater {row['rater']!r} has rated {clip.wav} above")
    try:
        score = float(row["score"])
    except ValueError:
        raise InputError(f"the score {row['score']!r} is no number") from None
    if not 1 <= score <= 5:
        raise InputError(f"the score {row['score']} is off the scale of 1 to 5")
    clip.ratings[row["rater"]] = score


# ---------------------------------------------------------------------------------------------------------
# Audio

FULL_SCALE = {"uint8": 128, "int16": 2 ** 15, "int32": 2 ** 31, "float32": 1, "float64": 1}  # 24 bits arrive in int32


def read_wav(path):
    """A WAV file of 8, 16, 24 or 32-bit PCM or float, any rate and channels -> (T,) float32 at 16 kHz.

    Channels are averaged, the level is untouched. Raises InputError, a ValueError, naming the file.
    """
    try:
        return _decode(Path(path).read_bytes())
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from None
    except InputError as error:
        raise InputError(f"{path}: {error}") from None


def _decode(content):
    """The bytes of a WAV file -> (T,) float32 at 16 kHz."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", wavfile.WavFileWarning)  # of chunks that hold no audio
        warnings.filterwarnings("error", ".*EOF.*", wavfile.WavFileWarning)
        try:
            rate, samples = wavfile.read(io.BytesIO(content))
        except Exception as error:  # noqa: BLE001 - scipy raises nearly anything for a malformed file
            raise InputError(f"not a whole WAV file of PCM or float samples ({error})") from None
    if samples.dtype.name not in FULL_SCALE or not 1 <= rate <= 768000 or samples.size == 0:
        raise InputError(f"{samples.dtype.name} samples of shape {samples.shape} at {rate} Hz; needed are 8, 16, 24 or "
                         "32-bit PCM or float, at least one sample, and a rate up to 768 kHz")
    scaled = (samples - 128.0 if samples.dtype == np.uint8 else samples) / FULL_SCALE[samples.dtype.name]
    mono = scaled if scaled.ndim == 1 else scaled.mean(axis=1)  # (T, channels) -> (T,)
    if not np.isfinite(mono).all():
        raise InputError("holds NaN or infinite samples")
    common = np.gcd(rate, moemos.SAMPLE_RATE)
    mono = resample_poly(mono, moemos.SAMPLE_RATE // common, rate // common)
    if len(mono) < moemos.MIN_SAMPLES:
        raise InputError(f"{len(mono) / 16:.1f} ms long; the backbone needs 25 ms")
    return torch.from_numpy(mono.astype(np.float32))


# ---------------------------------------------------------------------------------------------------------
# Features: each clip goes through the frozen backbone once, alone and unpadded; its statistics are kept

def features(clips, backbone, cache="cache"):
    """Clips -> (clips, L, 2D) float32, from the folder `cache` where they are there.

    An entry's name is a digest of the file's content, the backbone's weights and the code between them,
    so nothing stale is ever used. Raises InputError for a file that read_wav refuses.
    """
    code = "".join(inspect.getsource(function) for function in (_decode, moemos.pool_statistics))
    shape = (backbone.layers, 2 * backbone.width)
    result = torch.empty(len(clips), *shape)
    progress = Progress(len(clips), f"{backbone.name} features")
    for i, clip in enumerate(clips):
        try:
            content = clip.path.read_bytes()
            entry = Path(cache) / hashlib.sha256(f"{backbone.identity}{code}".encode() + content).hexdigest()
            statistics, samples = _read_entry(entry, shape), 0
            if statistics is None:
                waveform = _decode(content)
                statistics, samples = moemos.pool_statistics(backbone.extract(waveform)).cpu(), len(waveform)
                body = statistics.numpy().tobytes()
                write_atomically(entry, body + hashlib.sha256(body).digest())
        except (InputError, OSError) as error:
            raise InputError(f"{clip.path}: {error}") from None
        result[i] = statistics
        progress.update(samples / moemos.SAMPLE_RATE)
    progress.close()
    return result


def _read_entry(entry, shape):
    """A cache entry is its float32 numbers and their SHA-256; None where it is missing or damaged."""
    try:
        content = entry.read_bytes()
    except FileNotFoundError:
        return None
    body, digest = content[:-32], content[-32:]
    if hashlib.sha256(body).digest() != digest:
        return None
    return torch.frombuffer(bytearray(body), dtype=torch.float32).view(shape)


def write_atomically(path, content):
    """Writes bytes so that a reader, or an interrupted run's next start, sees the whole file or none."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    partial.write_bytes(content)
    os.replace(partial, path)


class Progress:
    """One line on a terminal: clips, seconds of audio, speed, time left. Silent in a pipe."""

    def __init__(self, clips, what):
        self.clips, self.what, self.done, self.audio, self.start = clips, what, 0, 0.0, time.monotonic()

    def update(self, audio):
        self.done, self.audio = self.done + 1, self.audio + audio
        if sys.stderr.isatty():
            spent = time.monotonic() - self.start
            print(f"\r{self.what}: {self.done}/{self.clips} clips, {self.audio:.0f} s of audio at {self.audio / spent:.0f} x "
                  f"real time, {spent / self.done * (self.clips - self.done):.0f} s left ", end="", file=sys.stderr)

    def close(self):
        if sys.stderr.isatty():
            print(file=sys.stderr)


# ---------------------------------------------------------------------------------------------------------
# A simulated Track 3: the make-up (published) and the listeners (calibrated on published figures)

CONDITIONS = {  # sampling rate and method: MOS in the training test, in the evaluation test (published)
    "16k_original": (3.943, 3.563), "16k_nv": (3.733, 3.437), "16k_tts": (3.270, 2.983), "16k_world": (2.197, 1.727),
    "24k_original": (3.863, 4.077), "24k_nv": (3.853, 3.960), "24k_tts": (3.203, 3.330), "24k_world": (2.170, 2.220),
    "24k_originalSR": (3.787, 3.963), "24k_nvSR": (3.707, 3.837), "24k_ttsSR": (3.143, 3.440), "24k_worldSR": (2.003, 1.867),
    "48k_original": (3.920, 4.340), "48k_nv": (3.760, 4.260), "48k_tts": (3.540, 4.140), "48k_world": (2.160, 2.180),
    "48k_originalSR": (3.600, 4.220), "48k_nvSR": (3.820, 4.060), "48k_ttsSR": (3.640, 3.800), "48k_worldSR": (2.160, 2.140),
}
CLIPS = {"16k": 30, "24k": 30, "48k": 5}  # clips a condition, in training and in test alike (published)
SENTENCES = 30                            # in training, and as many others in test (published)
RATERS = 10                               # 0-9 rate the training clips, 10-19 the test clips (paper, IV)
AUGMENTATION_CLIPS = 100                  # from each of the paper's four more synthesis models (III.D)

# Calibrated (see test_moemos.py) so that reliability and condition-mean row come out as published and an additive
# model finds bias, gain and residual in the range measured in public naturalness tests.
CLIP_SD = 0.34      # of the quality of a condition's clips, all of it audible as severity
BIAS_SD = 0.55      # of a rater's constant
GAIN_SD = 0.20      # of a rater's slope about the middle of the scale
RESIDUAL_SD = 0.88  # of one rating


def rate_clips(rng, target, severity):
    """Ten raters score the clips of each condition.

    target: condition -> its published MOS; severity: condition -> (clips,) standard normal, audible.
    A rating is 3 + gain (quality - 3) + bias + residual, rounded and clipped to 1-5. The panel's bias is
    centred and each condition's level solved for, so that the expected condition MOS is the published one.
    Returns condition -> (clips, RATERS) integers.
    """
    bias, gain = rng.normal(0, BIAS_SD, RATERS), rng.normal(1, GAIN_SD, RATERS)
    bias, gain = bias - bias.mean(), gain - gain.mean() + 1
    scores = {}
    for condition, mos in target.items():
        def opinion(level, quality=-CLIP_SD * severity[condition][:, None]):  # (clips, RATERS), before the residual
            return 3 + gain * (level + quality - 3) + bias

        def error(level, mos=mos, opinion=opinion):  # expected score: 1 + sum over k of P(rating > k)
            return 1 + sum(ndtr((opinion(level) - k) / RESIDUAL_SD).mean() for k in (1.5, 2.5, 3.5, 4.5)) - mos

        heard = opinion(brentq(error, -5, 11))
        scores[condition] = np.rint(heard + rng.normal(0, RESIDUAL_SD, heard.shape)).clip(1, 5).astype(int)
    return scores


# ---------------------------------------------------------------------------------------------------------
# The sound: source-filter speech, and the trace that each method leaves in it

FRAME_RATE = 100  # control frames a second

# name: F1 F2 F3 (Hz), voicing, centre (Hz) and level of frication, loudness (dB), duration (ms)
VOWELS = {
    "i": (280, 2250, 2900, 1, 3000, 0, 0, 100), "e": (530, 1850, 2500, 1, 3000, 0, 0, 100), "a": (730, 1090, 2450, 1, 3000, 0, 0, 110),
    "o": (570, 840, 2400, 1, 3000, 0, 0, 105), "u": (310, 870, 2250, 1, 3000, 0, 0, 95), "ae": (680, 1720, 2400, 1, 3000, 0, 0, 115),
    "I": (400, 1950, 2550, 1, 3000, 0, 0, 80), "U": (440, 1020, 2250, 1, 3000, 0, 0, 80), "er": (480, 1350, 1700, 1, 3000, 0, 0, 95),
}
CONSONANTS = {
    "m": (280, 1000, 2200, 0.5, 3000, 0, -3, 70), "n": (280, 1600, 2500, 0.5, 3000, 0, -3, 65), "l": (360, 1200, 2700, 0.7, 3000, 0, -2, 65),
    "s": (320, 1700, 2600, 0, 6500, 1.0, -4, 110), "sh": (320, 1800, 2500, 0, 3600, 1.0, -4, 110), "z": (320, 1700, 2600, 0.4, 6300, 0.5, -4, 80),
    "f": (300, 1200, 2300, 0, 5000, 0.3, -5, 90), "t": (320, 1800, 2600, 0, 5000, 0.7, -8, 60), "k": (320, 1500, 2200, 0, 2500, 0.7, -8, 65),
    "p": (320, 900, 2200, 0, 1200, 0.4, -9, 60),
}
PAUSE = (450, 1500, 2500, 0, 3000, 0, -60, 150)
COLUMNS = ("F1", "F2", "F3", "voicing", "centre", "frication", "loudness", "duration", "pitch")

# What a method leaves behind, as the strength of each trace; a clip's severity scales all of its method's traces.
#   room    the recording's own noise and reverberation: all that can be wrong with an original
#   phase   a neural vocoder's phases wander, more towards high frequencies: roughness
#   hiss    and its noise follows the spectrum of the speech
#   flat    a TTS voice levels pitch, loudness and timing
#   smooth  a parametric vocoder's envelope is blurred in time, its formants widened: muffled
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
AUGMENTATION = {  # the paper's four models (III.D); their traces are ours: TTS with more or less of each
    "CosyVoice-300M": {"phase": 0.5, "hiss": 0.3, "flat": 0.3},
    "CosyVoice2-0.5B": {"phase": 0.2, "hiss": 0.1, "flat": 0.3},
    "FireRedTTS": {"phase": 0.3, "hiss": 0.4, "flat": 0.7, "smooth": 0.3},
    "F5-TTS": {"phase": 0.7, "hiss": 0.1, "flat": 0.1, "room": 0.2},
}
SR_BAND = 6000  # Hz; the super-resolution's input was sampled at 12 kHz


def speak(rng):
    """A sentence as it is to be read: {column of COLUMNS: (phones,)}."""
    rows = []
    for _ in range(rng.integers(8, 17)):
        for phones in (CONSONANTS, VOWELS):
            rows.append(list(phones.values())[rng.integers(len(phones))])
        if rng.random() < 0.12:
            rows.append(PAUSE)
    stress = rng.normal(size=len(rows))
    phones = dict(zip(COLUMNS, np.array(rows).T))
    phones["duration"] *= np.exp(0.25 * stress)
    phones["duration"] *= np.clip(phones["duration"].sum(), 1300, 3500) / phones["duration"].sum()
    phones["loudness"] += 2 * stress
    phones["pitch"] = np.linspace(3, -4, len(rows)) + 1.5 * stress  # semitones about the talker's own
    return phones


def talk(rng, studio):
    """Who reads it, and into which microphone. Track 3 drew on two sources; the one recorded at 48 kHz is a studio."""
    return {"pitch": 95 * 2 ** rng.uniform(0, 1.2), "tract": rng.uniform(0.9, 1.1), "tilt": rng.uniform(130, 250), "breath": rng.uniform(0.08, 0.12),
            "jitter": rng.uniform(0.005, 0.015), "noise": rng.uniform(-56, -52) - 10 * studio, "room": 0.4 if studio else 1.0}


def synthesize(phones, talker, traces, rate, rng):
    """One clip as a method renders it, (T,) int16 at `rate` Hz. traces: name -> strength, 0 where absent."""
    trace = {name: 0.0 for name in ("room", "phase", "hiss", "whine", "flat", "smooth", "buzz", "image")} | traces
    trace["room"] *= talker["room"]
    track = control_tracks(phones, min(trace["flat"], 0.9), trace["smooth"])           # {column: (F, 1)}
    natural = 1 - min(trace["buzz"], 1.0)
    hop = rate // FRAME_RATE
    hz = np.fft.rfftfreq(next_fast_len(4 * hop), 1 / rate)

    jitter = natural * talker["jitter"] * rng.standard_normal(track["pitch"].shape)
    pitch = talker["pitch"] * 2 ** (track["pitch"] / 12) * (1 + jitter)
    pulses = spectra(pulse_train(np.repeat(pitch[1:, 0], hop), rate), hop, hz)         # (F, bins)
    noise = spectra(rng.standard_normal((len(pitch) - 1) * hop), hop, hz)              # (F, bins)
    breath = talker["breath"] * (np.sqrt(natural) * noise + np.sqrt(1 - natural) * pulses)
    source = track["voicing"] * (glottal_tilt(hz, talker["tilt"], rate) * pulses + breath)
    hiss = track["frication"] * np.exp(-0.5 * ((hz - track["centre"] / talker["tract"]) / (300 + 0.2 * track["centre"])) ** 2)
    spectrum = vocal_tract(track, talker["tract"], 1 + trace["smooth"], hz, rate) * source + 0.3 * hiss * noise
    spectrum *= 10 ** (track["loudness"] / 20)                                         # (F, bins)

    if trace["phase"] or trace["hiss"]:
        wander = np.minimum(hz / 4000, 1.5) * rng.standard_normal((2, *spectrum.shape))
        spectrum *= np.exp(1j * trace["phase"] * wander[0]) + trace["hiss"] * wander[1]
    if trace["image"]:
        edge = np.searchsorted(hz, SR_BAND)
        width = min(edge, len(hz) - edge)
        spectrum[:, edge:] = 0
        spectrum[:, edge:edge + width] = 0.3 * trace["image"] * spectrum[:, edge - width:edge][:, ::-1]

    speech = overlap_add(irfft(spectrum, axis=1), hop)                                 # (T,)
    if trace["room"]:
        decay = np.exp(-np.arange(0.25 * rate) / (0.04 * rate)) * rng.standard_normal(int(0.25 * rate))
        speech = speech + fftconvolve(speech, 0.3 * trace["room"] * decay / np.linalg.norm(decay))[:len(speech)]
    speech /= np.sqrt(np.mean(speech ** 2))
    speech += 10 ** (talker["noise"] / 20 + trace["room"]) * np.sqrt(rate / 16000) * rng.standard_normal(len(speech))
    if trace["whine"]:
        tones = np.sin(2 * np.pi * np.outer((2000, 4000, 6000), np.arange(len(speech)) / rate)).sum(0)
        speech += 10 ** (-50 / 20) * trace["whine"] * tones
    level = 10 ** (rng.uniform(-29, -23) / 20)  # dB below full scale; says nothing about the score
    return np.rint(32768 * level * speech).clip(-32768, 32767).astype(np.int16)


def control_tracks(phones, flat, smooth):
    """{column: (phones,)} -> {column: (F, 1)} at FRAME_RATE, 80 ms of silence at both ends."""
    duration, loudness = phones["duration"], phones["loudness"]
    even = duration ** (1 - flat) * duration.mean() ** flat
    frames = np.maximum(np.rint(even * duration.sum() / even.sum() * FRAME_RATE / 1000), 1).astype(int)
    level = np.where(loudness > -30, (1 - flat) * loudness - 4 * flat, loudness)  # pauses stay silent
    phones = phones | {"loudness": level, "pitch": (1 - flat) * phones["pitch"]}
    blur = np.hanning(2 * round(3 + 6 * min(smooth, 5)) + 1)[1:-1]
    margin = len(blur) // 2

    def track(column):
        values = np.repeat(phones[column], frames)
        if column == "loudness":
            values = np.concatenate([np.full(8, -60.0), values, np.full(8, -60.0)])
        else:
            values = np.pad(values, 8, mode="edge")
        return np.convolve(np.pad(values, margin, mode="edge"), blur / blur.sum(), mode="valid")[:, None]

    return {column: track(column) for column in COLUMNS if column != "duration"}


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


def spectra(signal, hop, hz):
    """(T,) -> (F, bins): Hann windows of 2 hops, zero-padded so that the filters' ringing fits."""
    padded = np.pad(signal, hop)
    windows = np.lib.stride_tricks.sliding_window_view(padded, 2 * hop)[::hop]
    return rfft(windows * np.hanning(2 * hop + 1)[:-1], 2 * (len(hz) - 1), axis=1)


def overlap_add(frames, hop):
    """(F, 4 hops) -> (T,), the inverse of spectra where nothing was changed."""
    signal = np.zeros((len(frames) + 3) * hop)
    for part in range(4):
        signal[part * hop:(part + len(frames)) * hop] += frames[:, part * hop:(part + 1) * hop].ravel()
    return signal[hop:len(frames) * hop]


def glottal_tilt(hz, corner, rate):
    """(bins,): -6 dB an octave above the corner, glottis and lips together."""
    pole = np.exp(-2 * np.pi * corner / rate)
    return 8 * (1 - pole) / (1 - pole * np.exp(-2j * np.pi * hz / rate))


def vocal_tract(track, tract, widening, hz, rate):
    """(F, bins): three moving formants, and fixed ones 1 kHz apart up to the top of the band."""
    def coefficients(centre, bandwidth):  # of the resonator (1 + a + b) / (1 + a z^-1 + b z^-2)
        radius = np.exp(-np.pi * bandwidth / rate)
        return -2 * radius * np.cos(2 * np.pi * centre / rate), radius ** 2

    z = np.exp(-2j * np.pi * hz / rate)
    fixed = np.ones_like(z)
    for centre in np.arange(3500, tract * (rate / 2 - 300), 1000) / tract:
        a, b = coefficients(centre, 0.06 * centre)
        fixed *= (1 + a + b) / (1 + a * z + b * z ** 2)
    gain, polynomial = 1.0, np.ones((len(track["F1"]), 1))
    for column, bandwidth in (("F1", 70), ("F2", 100), ("F3", 160)):
        a, b = coefficients(track[column] / tract, widening * bandwidth)
        gain = gain * (1 + a + b)
        polynomial = (np.pad(polynomial, ((0, 0), (0, 2))) + a * np.pad(polynomial, ((0, 0), (1, 1)))
                      + b * np.pad(polynomial, ((0, 0), (2, 0))))                      # (F, 7) in the end
    return gain * fixed / rfft(polynomial, 2 * (len(hz) - 1), axis=1)


def simulate(directory, seed):
    """Writes a simulated Track 3, WAV files and ratings.csv, deterministic to the byte for a seed.

    Raises InputError where the directory holds something. An interrupted run leaves no half corpus.
    """
    directory = Path(directory)
    if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
        raise InputError(f"{directory} is there and not empty; delete it or name another")
    partial = directory.with_name(f"{directory.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    (partial / "wav").mkdir(parents=True)

    jobs, rows = [], []

    def clip(name, sentence, talker, traces, severity, rate, split, system, model, scores):
        jobs.append((partial / "wav" / f"{name}.wav", sentence, talker, traces, severity, rate, [seed, 2, len(jobs)]))
        for rater, score in scores or [("", "")]:
            rows.append((f"wav/{name}.wav", split, system, model, rater, score))

    rng = np.random.default_rng([seed, 0])
    for half, split in enumerate(("train", "test")):
        severity = {condition: rng.normal(size=CLIPS[condition[:3]]).clip(-2.5, 2.5) for condition in CONDITIONS}
        scores = rate_clips(rng, {condition: mos[half] for condition, mos in CONDITIONS.items()}, severity)
        for condition in CONDITIONS:
            khz, method = condition.split("k_")
            traces = METHODS[method.removesuffix("SR")] | (SUPER_RESOLUTION if method.endswith("SR") else {})
            sentences = half * SENTENCES + np.sort(rng.permutation(SENTENCES)[:len(severity[condition])])
            for i, sentence in enumerate(sentences):
                clip(f"{condition}_s{sentence + 1:02d}", sentence, -1 - sentence % 2 if khz == "48" else sentence, traces, severity[condition][i], 1000 * int(khz), split,
                     condition, method, list(enumerate(scores[condition][i], half * RATERS)))
    for model, traces in AUGMENTATION.items():
        for i in range(AUGMENTATION_CLIPS):
            sentence = i % SENTENCES
            clip(f"{model}_{i + 1:03d}", sentence, len(jobs), traces, rng.normal(), 24000, "train", model, model, [])

    def write(job):
        path, sentence, talker, traces, severity, rate, seeds = job
        phones, talker = speak(np.random.default_rng([seed, 1, sentence])), talk(np.random.default_rng([seed, 3, talker + 2]), rate == 48000)
        traces = {name: strength * np.exp(0.6 * severity) for name, strength in (RECORDING | traces).items()}
        wavfile.write(path, rate, synthesize(phones, talker, traces, rate, np.random.default_rng(seeds)))

    with ThreadPoolExecutor() as pool:  # numpy and scipy let go of the interpreter lock
        list(pool.map(write, jobs))
    with open(partial / "ratings.csv", "w", newline="", encoding="utf-8") as file:
        csv.writer(file, lineterminator="\n").writerows([HEADER, *rows])
    if directory.exists():
        directory.rmdir()
    os.replace(partial, directory)


def main():
    parser = argparse.ArgumentParser(description="Writes a simulated AudioMOS 2025 Track 3: WAV files and ratings.csv.")
    parser.add_argument("--out", default="corpus", metavar="DIR", help="a folder that is not there yet (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="(default: %(default)s)")
    arguments = parser.parse_args()
    simulate(arguments.out, arguments.seed)
    print(f"wrote {arguments.out}: {len(read_manifest(arguments.out))} clips")


if __name__ == "__main__":
    main()
