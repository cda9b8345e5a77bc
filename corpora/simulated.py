"""A simulated AudioMOS 2025 Track 3: WAV files of source-filter speech, scored by simulated raters.

    python -m corpora.simulated DIR --seed K             WAV files and ratings.csv
    python -m corpora.simulated DIR --seed K --panels    and the clips as other panels rate them

The data set of the paper (III.D, IV) cannot be handed on; this has its make-up, so that everything
runs without a download. All of it is ours, but what is marked "published": make-up and condition
MOS. The listeners are calibrated on published figures. Letters of dimensions: see moemos.py.
"""

import argparse
import math
import os
import shutil
import uuid
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
from scipy.fft import irfft, next_fast_len, rfft
from scipy.io import wavfile
from scipy.ndimage import gaussian_filter1d
from scipy.optimize import brentq
from scipy.special import ndtr

import data
from data import InputError

# -- The make-up (published) -----------------------------------------------------------------------

CONDITIONS = {  # sampling rate and method: MOS in the training test, in the evaluation test
    "16k_original": (3.943, 3.563),
    "16k_nv": (3.733, 3.437),
    "16k_tts": (3.270, 2.983),
    "16k_world": (2.197, 1.727),
    "24k_original": (3.863, 4.077),
    "24k_nv": (3.853, 3.960),
    "24k_tts": (3.203, 3.330),
    "24k_world": (2.170, 2.220),
    "24k_originalSR": (3.787, 3.963),
    "24k_nvSR": (3.707, 3.837),
    "24k_ttsSR": (3.143, 3.440),
    "24k_worldSR": (2.003, 1.867),
    "48k_original": (3.920, 4.340),
    "48k_nv": (3.760, 4.260),
    "48k_tts": (3.540, 4.140),
    "48k_world": (2.160, 2.180),
    "48k_originalSR": (3.600, 4.220),
    "48k_nvSR": (3.820, 4.060),
    "48k_ttsSR": (3.640, 3.800),
    "48k_worldSR": (2.160, 2.140),
}
CLIPS = {"16": 30, "24": 30, "48": 5}  # kHz: clips a condition, in training and in test alike
SENTENCES = 30                         # in training, and as many others in test
RATERS = 10                            # 0-9 rate the training clips, 10-19 the test clips
AUGMENTATION_CLIPS = 100               # of each of the paper's four more models (III.D); ours


# -- The raters (calibrated on the figures that corpora/test_corpora.py holds) ---------------------

CLIP_SD = 0.34      # of the quality of a condition's clips, all of it audible as severity
BIAS_SD = 0.55      # of a rater's constant
GAIN_SD = 0.20      # of a rater's slope about the middle of the scale
RESIDUAL_SD = 0.88  # of one rating


class Panel(NamedTuple):
    """Who may rate the test clips."""
    mos: int      # which MOS of CONDITIONS they hear: of the training test (0), the evaluation (1)
    shift: float  # added to it
    raters: int   # whose bias and gain: the training panel's (0), the test panel's (1) or none's


PANELS = {
    "second": Panel(1, 0.0, 1),       # the corpus's own
    "training": Panel(0, 0.0, 0),     # raters 0-9, who hear what they heard in the training test
    "unbiased": Panel(0, 0.0, None),  # others, who hear the same, with no bias and gain 1
    "strict": Panel(1, -0.5, 1),      # the corpus's own, half a point stricter
}


def draw_panel(rng):
    """Bias and gain, (RATERS,) each, of a panel that is the published one on average: 0 and 1."""
    bias = rng.normal(0, BIAS_SD, RATERS)
    gain = rng.normal(1, GAIN_SD, RATERS)
    return bias - bias.mean(), gain - gain.mean() + 1


def rate_clips(rng, mos, severity, bias, gain):
    """A panel rates the clips of a condition -> (clips, RATERS) int, 1-5.

    severity: (clips,), standard normal, high is bad. A rating is 3 + gain (quality - 3) + bias +
    residual, rounded and clipped. The mean quality is solved for, so that the expected MOS is mos.
    """
    def opinions(mean):  # (clips, RATERS), before the residual
        quality = mean - 3 - CLIP_SD * severity[:, None]
        return 3 + gain * quality + bias

    def excess(mean):  # of the expected MOS, which is 1 + the sum over k of P(rating > k)
        above = ndtr((opinions(mean)[..., None] - (1.5, 2.5, 3.5, 4.5)) / RESIDUAL_SD)
        return 1 + above.sum(-1).mean() - mos

    heard = opinions(brentq(excess, -5, 11))
    return np.rint(heard + rng.normal(0, RESIDUAL_SD, heard.shape)).clip(1, 5).astype(int)


# -- The plan: every clip, before any sound --------------------------------------------------------

# What a method leaves behind, as the strength of each trace; a clip's severity scales them all.
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
SEVERITY = 0.6                     # one more makes traces e^0.6 = 1.8 times as strong
AUGMENTATION = {  # the paper's four models (III.D); their traces are ours, TTS with more or less
    "CosyVoice-300M": {"phase": 0.5, "hiss": 0.3, "flat": 0.3},
    "CosyVoice2-0.5B": {"phase": 0.2, "hiss": 0.1, "flat": 0.3},
    "FireRedTTS": {"phase": 0.3, "hiss": 0.4, "flat": 0.7, "smooth": 0.3},
    "F5-TTS": {"phase": 0.7, "hiss": 0.1, "flat": 0.1, "room": 0.2},
}


class Planned(NamedTuple):
    name: str        # of the file, without .wav
    split: str
    system: str
    model: str
    scores: dict     # rater -> 1-5, empty without MOS
    sentence: int
    talker: int
    rate: int        # Hz
    traces: dict     # name -> strength at severity 0
    severity: float  # standard normal


def plan_corpus(seed, panel="second"):
    """Every clip of the corpus, a list of Planned; the test clips as one of PANELS rates them.

    Random numbers come from streams: [seed, 0] is the plan's; [seed, 1, sentence],
    [seed, 2, talker] and [seed, 3, clip] are the sound's; [seed, 4, place in PANELS] is that of the
    ratings of another panel than the own.
    """
    rng = np.random.default_rng([seed, 0])
    again = np.random.default_rng([seed, 4, list(PANELS).index(panel)])
    plan, panels = [], []
    for half in (0, 1):
        panels.append(draw_panel(rng))
        for condition in CONDITIONS:
            clips = plan_condition(rng, condition, half, panels[half])
            if half == 1 and panel != "second":
                clips = rate_again(again, clips, PANELS[panel], panels)
            plan += clips
    for model, traces in AUGMENTATION.items():
        for i in range(AUGMENTATION_CLIPS):
            name = f"{model}_{i + 1:03d}"
            plan.append(Planned(name, "train", model, model, {}, i % SENTENCES, len(plan), 24000,
                                traces, rng.normal()))
    return plan


def plan_condition(rng, condition, half, raters):
    """The clips of a condition in a half, training (0) or test (1), as its panel rates them."""
    split = ("train", "test")[half]
    khz, method = condition.split("k_")
    traces = METHODS[method.removesuffix("SR")]
    if method.endswith("SR"):
        traces = traces | SUPER_RESOLUTION
    severity = rng.normal(size=CLIPS[khz]).clip(-2.5, 2.5)
    scores = rate_clips(rng, CONDITIONS[condition][half], severity, *raters)  # (clips, RATERS)
    sentences = half * SENTENCES + np.sort(rng.permutation(SENTENCES)[:CLIPS[khz]])
    clips = []
    for i, sentence in enumerate(sentences):
        talker = 2 + sentence
        if khz == "48":  # their source has two talkers (published)
            talker = sentence % 2
        name = f"{condition}_s{sentence + 1:02d}"
        ratings = dict(enumerate(scores[i], half * RATERS))
        clips.append(Planned(name, split, condition, method, ratings, sentence, talker,
                             1000 * int(khz), traces, severity[i]))
    return clips


def rate_again(rng, clips, panel, panels):
    """The test clips of a condition with the scores of another Panel; panels: bias and gain of two.

    The own panel's were drawn all the same, so that the clips stay the corpus's.
    """
    severity = np.array([clip.severity for clip in clips])
    raters = (np.zeros(RATERS), np.ones(RATERS))
    if panel.raters is not None:
        raters = panels[panel.raters]
    mos = CONDITIONS[clips[0].system][panel.mos] + panel.shift
    scores = rate_clips(rng, mos, severity, *raters)
    first = 0 if panel.raters == 0 else RATERS
    return [clip._replace(scores=dict(enumerate(own, first))) for clip, own in zip(clips, scores)]


# -- The speech: what is said, and by whom ---------------------------------------------------------

VOWELS = (  # F1 F2 F3 (Hz), near the men of Peterson and Barney (1952); duration (ms), ours
    (280, 2250, 2900, 100), (530, 1850, 2500, 100), (730, 1090, 2450, 110),
    (570, 840, 2400, 105), (310, 870, 2250, 95), (680, 1720, 2400, 115),
    (400, 1950, 2550, 80), (440, 1020, 2250, 80), (480, 1350, 1700, 95),
)
CONSONANTS = (  # as vowels; voicing; centre (Hz) and level of frication; loudness (dB); all ours
    (280, 1000, 2200, 70, 0.5, 3000, 0, -3),    # m
    (280, 1600, 2500, 65, 0.5, 3000, 0, -3),    # n
    (360, 1200, 2700, 65, 0.7, 3000, 0, -2),    # l
    (320, 1700, 2600, 110, 0, 6500, 1, -4),     # s
    (320, 1800, 2500, 110, 0, 3600, 1, -4),     # sh
    (320, 1700, 2600, 80, 0.4, 6300, 0.5, -4),  # z
    (300, 1200, 2300, 90, 0, 5000, 0.3, -5),    # f
    (320, 1800, 2600, 60, 0, 5000, 0.7, -8),    # t
    (320, 1500, 2200, 65, 0, 2500, 0.7, -8),    # k
    (320, 900, 2200, 60, 0, 1200, 0.4, -9),     # p
)
PAUSE = (450, 1500, 2500, 90, 0, 3000, 0, -60)
CONTROLS = ("F1", "F2", "F3", "duration", "voicing", "centre", "frication", "loudness")


def speak(rng):
    """A sentence as it is to be read: {name of a control: (phones,)}, CONTROLS and the pitch."""
    rows = [PAUSE]
    for _ in range(rng.integers(8, 17)):
        vowel = VOWELS[rng.integers(len(VOWELS))]
        rows.append(CONSONANTS[rng.integers(len(CONSONANTS))])
        rows.append((*vowel, 1, 3000, 0, 0))
        if rng.random() < 0.12:
            rows.append(PAUSE)
    rows.append(PAUSE)
    phones = dict(zip(CONTROLS, np.array(rows, float).T))
    stress = rng.normal(size=len(rows))
    phones["duration"] *= np.exp(0.25 * stress)
    total = phones["duration"].sum()
    phones["duration"] *= total.clip(1400, 3800) / total
    phones["loudness"] += 2 * stress
    phones["pitch"] = np.linspace(3, -4, len(rows)) + 1.5 * stress  # semitones re the talker's own
    return phones


def talk(rng, studio):
    """Who reads it, and into which microphone; the source of the 48 kHz clips is a studio."""
    return {
        "pitch": 95 * 2 ** rng.uniform(0, 1.2),  # Hz
        "tract": rng.uniform(0.9, 1.1),          # its length over the mean's
        "tilt": rng.uniform(130, 250),           # corner of the glottis in Hz
        "breath": rng.uniform(0.08, 0.12),       # its level
        "jitter": rng.uniform(0.005, 0.015),     # of the pitch, as a share
        "noise": rng.uniform(-56, -52),          # dB re the speech
        "room": 0.4 if studio else 1.0,          # share of the reverberation
    }


# -- The sound: source-filter speech, and the traces in it (all numbers are ours) ------------------

FRAME_RATE = 100  # control frames a second
SR_BAND = 6000    # Hz; the input of the super-resolution was sampled at 12 kHz


def synthesize(phones, talker, traces, rate, rng):
    """One clip as a method renders it -> (T,) int16 at `rate` Hz. traces: name -> strength, else 0.

    The numbers are set so that spectra look like speech and no trace is inaudible or a give-away.
    """
    trace = defaultdict(float, traces)
    hop = rate // FRAME_RATE
    hz = np.fft.rfftfreq(4 * hop, 1 / rate).astype(np.float32)  # (bins,); in float32: half the time
    track = control_tracks(phones, min(trace["flat"], 0.9), min(trace["smooth"], 5))
    spectrum = articulate(track, talker, trace, hz, rate, rng)  # (F, bins)
    if trace["phase"]:
        wander = rng.standard_normal((2, *spectrum.shape), np.float32)
        wander = np.minimum(hz / 4000, 1.5) * wander
        spectrum *= np.exp(1j * trace["phase"] * wander[0]) + trace["hiss"] * wander[1]
    if trace["image"]:
        edge = np.searchsorted(hz, SR_BAND)
        width = min(edge, len(hz) - edge)
        mirrored = spectrum[:, edge - width:edge][:, ::-1]
        spectrum[:, edge:edge + width] = 0.3 * trace["image"] * mirrored
        spectrum[:, edge + width:] = 0

    speech = overlap_add(irfft(spectrum, axis=1), hop)          # (T,)
    speech = record(speech, talker, trace["room"] * talker["room"], rate, rng)
    period = np.arange(rate // 2000) / rate
    tones = np.sin(2 * np.pi * np.outer((2000, 4000, 6000), period)).sum(0)
    speech += 10 ** (-50 / 20) * trace["whine"] * np.resize(tones, len(speech))
    level = 10 ** (rng.uniform(-29, -23) / 20)  # re full scale; says nothing about the score
    return np.rint(32768 * level * speech).clip(-32768, 32767).astype(np.int16)


def control_tracks(phones, flat, smooth):
    """{name: (phones,)} -> {name: (F, 1) float32} at FRAME_RATE."""
    duration = phones["duration"]
    even = duration ** (1 - flat) * duration.mean() ** flat
    even = even * duration.sum() / even.sum()
    frames = np.maximum(np.rint(even * FRAME_RATE / 1000), 1).astype(int)
    loudness = phones["loudness"]
    level = (1 - flat) * loudness - 4 * flat
    level = np.where(loudness > -30, level, loudness)  # pauses stay silent
    phones = phones | {"loudness": level, "pitch": (1 - flat) * phones["pitch"]}
    tracks = {}
    for name, values in phones.items():
        steps = np.repeat(values, frames)
        blurred = gaussian_filter1d(steps, 1.2 + 2.2 * smooth, mode="nearest")
        tracks[name] = blurred[:, None].astype(np.float32)
    return tracks


def articulate(track, talker, trace, hz, rate, rng):
    """(F, bins) spectra of the speech: glottis, breath and frication through the vocal tract."""
    hop = rate // FRAME_RATE
    natural = 1 - min(trace["buzz"], 1)
    pitch = talker["pitch"] * 2 ** (track["pitch"] / 12)        # (F, 1)
    pitch *= 1 + natural * talker["jitter"] * rng.standard_normal(pitch.shape)
    pulses = spectra(pulse_train(np.repeat(pitch[1:, 0], hop), rate), hop)  # (F, bins)
    noise = spectra(rng.standard_normal((len(pitch) - 1) * hop), hop)       # (F, bins)

    breath = talker["breath"] * (natural ** 0.5 * noise + (1 - natural) ** 0.5 * pulses)
    tilt = 1 / np.hypot(1, hz / talker["tilt"])                 # -6 dB an octave: glottis and lips
    voice = track["voicing"] * (8 * tilt * pulses + breath)
    offset = hz - track["centre"] / talker["tract"]             # (F, bins), Hz
    hiss = np.exp(-0.5 * (offset / (300 + 0.2 * track["centre"])) ** 2)
    tract = vocal_tract(track, talker["tract"], 1 + trace["smooth"], hz, rate)
    spectrum = tract * voice
    spectrum = spectrum + 0.3 * track["frication"] * hiss * noise
    spectrum *= 10 ** (track["loudness"] / 20)
    return spectrum


def pulse_train(pitch, rate):
    """(T,) Hz -> (T,): a pulse of unit power a period, shared out between two samples."""
    step = pitch / rate
    phase = np.cumsum(step)
    at = np.flatnonzero(np.diff(np.floor(phase))) + 1
    late = (phase[at] - np.floor(phase[at])) / step[at]
    train = np.zeros(len(phase))
    train[at] += (1 - late) / np.sqrt(step[at])
    train[at - 1] += late / np.sqrt(step[at])
    return train


def spectra(signal, hop):
    """(T,) -> (F, bins): Hann windows of 2 hops, zero-padded to 4, for the filters' ringing."""
    padded = np.pad(signal, hop)
    windows = np.lib.stride_tricks.sliding_window_view(padded, 2 * hop)[::hop]
    windows = windows * np.hanning(2 * hop + 1)[:-1]
    return rfft(windows.astype(np.float32), 4 * hop, axis=1)


def overlap_add(frames, hop):
    """(F, 4 hops) -> (T,), the inverse of spectra where nothing was changed."""
    signal = np.zeros((len(frames) + 3) * hop)
    for part in range(4):
        quarter = frames[:, part * hop:(part + 1) * hop].ravel()
        signal[part * hop:(part + len(frames)) * hop] += quarter
    return signal[hop:len(frames) * hop]


def vocal_tract(track, tract, widening, hz, rate):
    """(F, bins): three moving formants, and fixed ones 1 kHz apart up to the top of the band."""
    z = np.exp(-2j * np.pi * hz / rate).astype(np.complex64)

    def formant(centre, bandwidth):  # 1 / a resonance with gain 1 at 0 Hz
        radius = math.exp(-math.pi * bandwidth / rate)
        a = -2 * radius * np.cos(2 * np.pi * centre / (tract * rate))
        b = radius ** 2
        return (1 + a * z + b * z ** 2) / (1 + a + b)

    centres = np.arange(3500, tract * (rate / 2 - 300), 1000)
    fixed = [formant(centre, 0.06 * centre) for centre in centres]
    inverse = np.prod(fixed, axis=0).astype(np.complex64)
    for name, bandwidth in (("F1", 70), ("F2", 100), ("F3", 160)):
        inverse = inverse * formant(track[name], widening * bandwidth)
    return 1 / inverse


def record(speech, talker, room, rate, rng):
    """(T,) -> (T,) with an echo, of unit power, and with noise. room: strength of both."""
    decay = np.exp(-np.arange(0.25 * rate) / (0.04 * rate)) * rng.standard_normal(rate // 4)
    decay /= np.linalg.norm(decay)
    length = next_fast_len(len(speech) + len(decay))
    echo = irfft(rfft(speech, length) * rfft(decay, length))
    speech = speech + 0.3 * room * echo[:len(speech)]
    speech /= np.sqrt(np.mean(speech ** 2))
    amplitude = 10 ** (talker["noise"] / 20 + room) * np.sqrt(rate / 16000)
    return speech + amplitude * rng.standard_normal(len(speech))


# -- The files -------------------------------------------------------------------------------------

def render(directory, plan, seed):
    """Writes the clips of a plan into the folder wav of the directory."""
    def write(i):
        clip = plan[i]
        phones = speak(np.random.default_rng([seed, 1, clip.sentence]))
        talker = talk(np.random.default_rng([seed, 2, clip.talker]), studio=clip.rate == 48000)
        louder = math.exp(SEVERITY * clip.severity)
        traces = RECORDING | clip.traces
        traces = {name: louder * strength for name, strength in traces.items()}
        rng = np.random.default_rng([seed, 3, i])
        samples = synthesize(phones, talker, traces, clip.rate, rng)
        wavfile.write(directory / "wav" / f"{clip.name}.wav", clip.rate, samples)

    with ThreadPoolExecutor() as pool:  # numpy and scipy let go of the interpreter lock
        list(pool.map(write, range(len(plan))))


def write_ratings(path, plan):
    """The table of a plan's clips and scores, as data.read_ratings reads it."""
    rows = [data.HEADER]
    for clip in plan:
        labels = (f"wav/{clip.name}.wav", clip.split, clip.system, clip.model, clip.sentence)
        scores = clip.scores or {"": ""}  # one row without a rating
        rows += [(*labels, rater, score) for rater, score in scores.items()]
    data.write_files({path: rows})


def simulate(directory, seed):
    """Writes a simulated Track 3, WAV files and ratings.csv; the same bytes for the same seed.

    Raises InputError where the directory holds something, or cannot be written. A killed run leaves
    only a folder *.partial, which may be deleted.
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
        raise InputError(f"{directory}: cannot be written ({error.strerror}); "
                         "make room or name another folder") from None
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def prepare(corpus, seed):
    """simulate(), unless it is there, and a table ratings_PANEL.csv of each of PANELS beside it.

    Raises InputError as simulate(), and where another corpus is there.
    """
    try:
        simulate(corpus, seed)
    except InputError:
        if not Path(corpus, "ratings.csv").exists():  # else it was there, or is there by now
            raise
    names = [f"wav/{clip.name}.wav" for clip in plan_corpus(seed)]
    if names != [clip.wav for clip in data.read_ratings(corpus)]:
        raise InputError(f"{corpus} was not simulated with --seed {seed}; name another folder")
    for panel in PANELS:
        write_ratings(Path(corpus, f"ratings_{panel}.csv"), plan_corpus(seed, panel))


def main():
    parser = argparse.ArgumentParser(
        allow_abbrev=False, description="Simulates a Track 3: WAV files and ratings.csv.")
    parser.add_argument("directory", metavar="DIR", help="Name a folder that is not there yet.")
    parser.add_argument("--seed", type=int, default=0,
                        help="Another seed gives another corpus (default: %(default)s).")
    parser.add_argument("--panels", action="store_true",
                        help=f"Also write ratings_PANEL.csv of {', '.join(PANELS)}. A corpus that "
                             "is there is kept.")
    options = parser.parse_args()
    make = prepare if options.panels else simulate
    with data.errors_in_one_sentence("corpora.simulated"):
        make(options.directory, options.seed)
        print(f"{options.directory}: {len(data.read_ratings(options.directory))} clips")


if __name__ == "__main__":
    main()
