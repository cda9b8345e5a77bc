"""The method of arXiv 2507.06116, "Speech Quality Assessment Model Based on Mixture of Experts".

In the order of the data's way through it: backbone, feature fusion, mixture of experts and the two
heads (section III.B), the losses (III.C), the metrics (IV). The schedule (III.E) is in train.py, the
clips (III.D) are in data.py. What the paper does not state is marked "ours", with the reason.

Letters, here and in the other modules:
    B clips     T samples   L layers   F frames (in code torch.nn.functional)   D feature width
    E experts   H hidden width         C classes   R raters                     P prosody
"""

import contextlib
import hashlib
import inspect
import os
import socket
import sys
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import NamedTuple

try:
    import torch
    import torchaudio
except (ImportError, OSError, RuntimeError) as error:  # the traceback of a mismatched pair speaks of CUDA and helps nobody
    raise SystemExit("torch and torchaudio must be installed as the pair that requirements.txt pins: "
                     f"pip install -r requirements.txt ({type(error).__name__}: {str(error).partition(chr(10))[0]})")

import numpy as np
import torch.nn.functional as F
from torch import nn

SAMPLE_RATE = 16000      # what every wav2vec2 bundle was trained on; clips are resampled to it
MIN_SAMPLES = 400        # 25 ms, the receptive field of one wav2vec2 frame
PAPER_BACKBONE = "WAV2VEC2_BASE"  # "wav2vec2" is the paper's (III.B); the size is ours: the smallest
STALL_SECONDS = 30.0     # ours: a download that is silent for so long is given up


class InputError(ValueError):
    """Something handed in cannot be used; the text is one sentence that says what and what to do."""


class WeightsUnavailable(InputError):
    """The weights of a bundle are neither on this machine nor to be downloaded."""


def first_line(error):
    return str(error).partition("\n")[0] or type(error).__name__


@contextlib.contextmanager
def one_sentence(script):
    """Whatever ends a script early becomes one sentence on standard error and an exit status, 2 for what was handed in."""
    with contextlib.suppress(AttributeError):  # of a closed standard output
        sys.stdout.reconfigure(errors="backslashreplace")  # names of files and systems may be anything
    again = "start again, what is finished stays"
    try:
        yield
        print(end="", flush=True)
        return
    except InputError as error:
        status, why = 2, error
    except FloatingPointError as error:
        status, why = 1, error
    except KeyboardInterrupt:
        status, why = 130, f"interrupted; {again}"
    except BrokenProcessPool:
        status, why = 1, f"a process was killed, perhaps for lack of memory; {again}"
    except OSError as error:  # a reader that stops early, a full disk behind standard output, a name too long
        status, why = 1, f"nobody reads what it prints, so it stopped; {again}" if isinstance(error, BrokenPipeError) else error
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # Python flushes standard output once more at its end
    print(f"{script}: {why}", file=sys.stderr)
    sys.exit(status)


def pick_device(name=""):
    """The device of that name, tried; without a name the accelerator if there is one, else the CPU. Raises InputError."""
    name = name or torch.accelerator.current_accelerator(check_available=True) or "cpu"
    try:
        torch.ones(1, device=name).item()
        return torch.device(name)
    except (RuntimeError, AssertionError, NotImplementedError, ImportError) as error:
        raise InputError(f"--device {name} cannot be used here ({first_line(error)})") from None


# ---------------------------------------------------------------------------------------------------------
# Backbone: waveform -> frames of every layer, frozen (section III.B)

class LogMel(nn.Module):
    """A stand-in for a wav2vec2 network on machines without its weights (ours): it hears spectra, no speech.

    Its three "layers" are the log-mel spectrum, 80 bands of 25 ms each 10 ms as is usual, and its first and second differences
    over time.
    """

    def __init__(self):
        super().__init__()
        self.mel = torchaudio.transforms.MelSpectrogram(SAMPLE_RATE, n_fft=512, win_length=400, hop_length=160, n_mels=80)

    def extract_features(self, waveforms):
        """(1, T) -> (three tensors (1, F, D), None), as torchaudio's networks do; 100 frames a second."""
        log = (self.mel(waveforms) + 1e-8).log()  # floor: about the power in a band of the rounding noise of 16 bits
        delta = torchaudio.functional.compute_deltas(log)
        layers = (log, delta, torchaudio.functional.compute_deltas(delta))
        return [layer.transpose(1, 2) for layer in layers], None


class Prosody(nn.Module):
    """Pitch, energy and duration, which section IV names as future work; --prosody yes joins them to the fused features.

    The form is ours: one "layer" of three tracks, which are octaves above 100 Hz (of voiced and unvoiced frames alike), dB, and
    log2 of the clip's seconds, the same in all frames.
    """

    tracks = 3

    def extract_features(self, waveforms):
        """(1, T) -> ([(1, F, tracks)], None); 100 frames a second."""
        padded = F.pad(waveforms, (0, max(SAMPLE_RATE - waveforms.shape[1], 0)))  # to 1 s: the detector's median takes 0.3 s
        pitch = (torchaudio.functional.detect_pitch_frequency(padded, SAMPLE_RATE) / 100).log2()
        energy = 10 * (waveforms.unfold(1, MIN_SAMPLES, 160).square().mean(2) + 1e-8).log10()  # floor: -80 dB
        frames = min(pitch.shape[1], energy.shape[1])
        duration = torch.full_like(pitch, waveforms.shape[1] / SAMPLE_RATE).log2()
        return [torch.stack([track[:, :frames] for track in (pitch, energy, duration)], dim=2)], None


WITHOUT_WEIGHTS = {"logmel": LogMel, "prosody": Prosody}


class Backbone:
    """A frozen network, not an nn.Module: no parent's .train() or .parameters() can reach into it.

    name, layers (L), width (D); identity: hex digest of its weights, precision (and the code of one written here).
    """

    def __init__(self, name, network, device="cpu", precision="float32"):
        self.name, self.device, self.precision = name, torch.device(device), precision
        self.network = network.eval().requires_grad_(False).to(device)
        digest = hashlib.sha256(precision.encode() + (inspect.getsource(type(network)).encode() if name in WITHOUT_WEIGHTS else b""))
        for key, tensor in network.state_dict().items():
            digest.update(key.encode() + tensor.cpu().numpy().tobytes())
        self.identity = digest.hexdigest()
        self.layers, _, self.width = self.extract(torch.zeros(SAMPLE_RATE)).shape

    @torch.no_grad()
    def extract(self, waveform):
        """(T,) float32 at 16 kHz -> (L, F, D). One clip, unpadded: group norm over time and waveform
        normalisation make the features of a padded or batched clip depend on its neighbours."""
        if waveform.dim() != 1 or len(waveform) < MIN_SAMPLES:
            raise InputError(f"a waveform must be (T,) with T >= {MIN_SAMPLES} (25 ms), not {tuple(waveform.shape)}")
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bfloat16"):
            layers, _ = self.network.extract_features(waveform[None].to(self.device))
        return torch.cat(layers).float()  # L x (1, F, D) -> (L, F, D)


def bundles():
    """Name -> torchaudio bundle, of all self-supervised ones (those fine-tuned to recognise speech are left out)."""
    pipelines = torchaudio.pipelines
    return {name: bundle for name, bundle in vars(pipelines).items()
            if isinstance(bundle, pipelines.Wav2Vec2Bundle) and not isinstance(bundle, pipelines.Wav2Vec2ASRBundle)}


def check_backbone(name):
    """Raises InputError for a name that load_backbone does not know."""
    if name not in WITHOUT_WEIGHTS and name not in bundles():
        raise InputError(f"there is no backbone {name!r}; choose one of {', '.join([*WITHOUT_WEIGHTS, *bundles()])}")


def at_hand(name):
    """Whether a backbone can be loaded without a download."""
    return name in WITHOUT_WEIGHTS or Path(torch.hub.get_dir(), "checkpoints", bundles()[name]._path).is_file()


def load_backbone(name, device="cpu", precision="float32"):
    """A torchaudio bundle by name, or one of WITHOUT_WEIGHTS. Weights come from torch.hub's folder or are downloaded into it.

    precision bfloat16: matrix products in 16 bits, for processors that have them. Raises InputError for a name
    that does not exist or a damaged file of weights, WeightsUnavailable where they can be neither found nor downloaded.
    """
    if precision == "bfloat16" and torch.device(device).type == "cpu" and not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        raise InputError("--precision bfloat16: this processor does not have it; use float32")
    check_backbone(name)
    if name in WITHOUT_WEIGHTS:
        return Backbone(name, WITHOUT_WEIGHTS[name](), device, precision)
    timeout = socket.getdefaulttimeout()
    socket.setdefaulttimeout(STALL_SECONDS)  # torch.hub sets none
    try:
        network = bundles()[name].get_model(dl_kwargs={"progress": sys.stderr.isatty()})
    except OSError as error:
        raise WeightsUnavailable(f"the weights of {name} are not in {torch.hub.get_dir()}/checkpoints and could not be "
                                 f"downloaded ({error}); put them there or use --backbone logmel") from error
    except Exception as error:
        raise InputError(f"the weights of {name} in {torch.hub.get_dir()}/checkpoints are damaged or of another network "
                         f"({first_line(error)}); delete the file to have it downloaded again") from error
    finally:
        socket.setdefaulttimeout(timeout)
    return Backbone(name, network, device, precision)


def pool_statistics(frames):
    """(L, F, D) -> (L, 2D): mean and standard deviation over time. Ours: it makes 74 kB a clip of 1.8 MB of frames a
    second (WAV2VEC2_BASE), which can be kept on disk."""
    return torch.cat([frames.mean(1), frames.std(1, correction=0)], dim=1)


# ---------------------------------------------------------------------------------------------------------
# Feature fusion: statistics of every layer -> one vector a clip (III.B; its inside is ours)

class Standardise(nn.Module):
    """Subtracts the mean of the training clips and divides by their deviation, or by `least` where that is more; fixed once set."""

    def __init__(self, shape, least):
        super().__init__()
        self.register_buffer("center", torch.zeros(shape))
        self.register_buffer("scale", torch.ones(shape))
        self.least = least

    def set_statistics(self, parts):
        """parts: (clips, *shape) tensors of all training clips, one after the other, so that no copy of them all is made."""
        clips, total, squares = 0, 0.0, 0.0
        for part in parts:
            clips, total, squares = clips + len(part), total + part.double().sum(0), squares + part.double().square().sum(0)
        self.center.copy_(total / clips)
        self.scale.copy_((squares / clips - (total / clips).square()).clamp_min(self.least ** 2).sqrt())

    def forward(self, values):
        return (values - self.center) / self.scale


class FeatureFusion(nn.Module):
    """Each layer normalised, then summed with learned softmax weights.

    Normalised twice, because layers differ in scale and so do the features within one: layer norm of
    the clip's own statistics, then Standardise.
    """

    def __init__(self, layers, width):
        super().__init__()
        self.layer_logits = nn.Parameter(torch.zeros(layers))
        self.standardise = Standardise((layers, 2 * width), least=1e-3)

    def set_statistics(self, features):
        """features: (clips, L, 2D) of the training clips."""
        self.standardise.set_statistics(F.layer_norm(part, part.shape[-1:]) for part in features.split(256))

    def weights(self):
        """(L,), positive, sums to one."""
        return self.layer_logits.softmax(0)

    def forward(self, features):                                      # (B, L, 2D)
        normal = self.standardise(F.layer_norm(features, features.shape[-1:]))
        return torch.einsum("l,bld->bd", self.weights(), normal)      # (B, 2D)


# ---------------------------------------------------------------------------------------------------------
# Mixture of experts and the two heads (section III.B)

class Output(NamedTuple):
    mos: torch.Tensor      # (B,) on the scale of the ratings, never clamped
    ratings: torch.Tensor  # (B, R) of each training rater where raters are modelled; else the MOS
    logits: torch.Tensor   # (B, C) of the synthesis model
    gates: torch.Tensor    # (B, E) rows sum to one
    experts: torch.Tensor  # (B, E, H) what each expert says
    y: torch.Tensor        # (B, H) their sum, weighted by the gates


class MixtureOfExperts(nn.Module):
    """y = sum_i g_i(x) E_i(x), the paper's combination, with a softmax gate over all experts: no top-k.

    Each expert is a small MLP of its own (2D -> H -> H); widths, GELU and initial weights are ours. All experts are one
    batched product. Each is drawn independently: copies of one another would never become different.
    """

    def __init__(self, inputs, experts, hidden, dropout):
        super().__init__()
        self.gate = nn.Linear(inputs, experts)  # "lightweight": one layer, ours
        self.w1, self.b1 = nn.Parameter(torch.empty(experts, inputs, hidden)), nn.Parameter(torch.zeros(experts, hidden))
        self.w2, self.b2 = nn.Parameter(torch.empty(experts, hidden, hidden)), nn.Parameter(torch.zeros(experts, hidden))
        for w in (self.w1, self.w2):
            nn.init.normal_(w, std=w.shape[1] ** -0.5)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x):                                                       # (B, 2D)
        gates = self.gate(x).softmax(1)                                         # (B, E)
        hidden = F.gelu(torch.einsum("bi,eih->beh", x, self.w1) + self.b1)      # (B, E, H)
        experts = torch.einsum("beh,ehk->bek", self.dropout(hidden), self.w2) + self.b2
        y = torch.einsum("be,beh->bh", gates, experts)                          # (B, H)
        return y, gates, experts


class Raters(nn.Module):
    """(B,) MOS of the mean rater -> (B, R) what each training rater would give: middle + gain (MOS - middle) + bias.

    Section IV names rater adaptation as future work; this form is ours. Biases average 0 and gains 1, so that
    the MOS head speaks for the mean rater. noise: variance of a rating around its prediction, set after training.
    """

    def __init__(self, raters, middle, unit):
        super().__init__()
        self.raw_bias, self.raw_gain = nn.Parameter(torch.zeros(raters)), nn.Parameter(torch.zeros(raters))
        self.register_buffer("noise", torch.zeros(()))
        self.middle, self.unit = middle, unit

    def bias_and_gain(self):
        """(R,) on the scale of the ratings, (R,)."""
        return self.unit * (self.raw_bias - self.raw_bias.mean()), 1 + self.raw_gain - self.raw_gain.mean()

    def forward(self, mos):
        bias, gain = self.bias_and_gain()
        return self.middle + gain * (mos[:, None] - self.middle) + bias


class MoEMOS(nn.Module):
    """Statistics of a frozen backbone -> MOS and synthesis model; all that is trained.

    layers, width: the backbone's L and D. classes: C. prosody, raters: P and R, 0 without. scale: lowest and highest
    rating; the MOS head's output counts in quarters of it from its middle (ours: a unit is 1 on the 1-5 scale; from 0 a learning
    rate of 1e-4 would spend a stage on climbing).
    """

    def __init__(self, layers, width, classes, experts=4, hidden=64, dropout=0.5, scale=(1.0, 5.0), prosody=0, raters=0):
        super().__init__()
        self.middle, self.unit = (scale[0] + scale[1]) / 2, (scale[1] - scale[0]) / 4
        self.fusion = FeatureFusion(layers, width)
        self.prosody = Standardise((1, prosody), least=0.1) if prosody else None  # the length has deviation 0 where all are alike
        self.dropout = nn.Dropout(dropout)
        self.moe = MixtureOfExperts(2 * width + prosody, experts, hidden, dropout)
        self.mos_head = nn.Linear(hidden, 1)
        self.class_head = nn.Linear(hidden, classes)
        self.raters = Raters(raters, self.middle, self.unit) if raters else nn.Identity()  # without: the ratings are the MOS

    def forward(self, features, prosody=None):             # (B, L, 2D), (B, 1, P)
        x = self.fusion(features)                          # (B, 2D)
        if self.prosody:
            x = torch.cat([x, self.prosody(prosody).flatten(1)], 1)  # (B, 2D + P)
        x = self.dropout(x)
        y, gates, experts = self.moe(x)                    # (B, H), (B, E), (B, E, H)
        mos = self.middle + self.unit * self.mos_head(y).squeeze(1)  # (B,)
        return Output(mos, self.raters(mos), self.class_head(y), gates, experts, y)


# ---------------------------------------------------------------------------------------------------------
# Losses (section III.C; the equations of the two regularisers are ours, after SpeechMoE, arXiv 2105.03036)

def mos_loss(predicted, mos, smooth_l1_beta=1.0):
    """Smooth L1 over the clips that have a MOS, all (B,), or over single ratings, all (B, R); NaN = none. 0 without any.

    d^2 / (2 b) where |d| < b, else |d| - b / 2, with b = smooth_l1_beta.
    """
    known = ~mos.isnan()
    return F.smooth_l1_loss(predicted[known], mos[known], beta=smooth_l1_beta, reduction="sum") / known.sum().clamp_min(1)


def classification_loss(logits, model):
    """Cross entropy of (B, C) against (B,) int; -1 = of no known class. 0 where no clip has one."""
    return F.cross_entropy(logits, model, ignore_index=-1, reduction="sum") / (model >= 0).sum().clamp_min(1)


def diversity_loss(gates):
    """E sum_j p_j^2 with p = mean_b g_b of (B, E) gates: 1 when the experts share the work, E when one does all.

    SpeechMoE's mean importance loss, there "to improve the diversity of gate values".
    """
    return gates.shape[1] * gates.mean(0).square().sum()


def sparsity_loss(gates):
    """1/B sum_b || g_b / ||g_b||_2 ||_1 of (B, E) gates: 1 when a clip has one expert, sqrt(E) when it has all alike.

    SpeechMoE's sparsity L1 loss. Without the L2 norm it would be constant: a softmax sums to one.
    """
    return (gates.sum(1) / gates.norm(dim=1)).mean()


def losses(output, ratings, model, alpha, beta, lambda_1=0.02, lambda_2=0.02, smooth_l1_beta=1.0, unit=1.0):
    """Every term and their weighted "total", as a dict of scalars.

    ratings: MOS (B,), or single ratings (B, R) where raters are modelled, NaN = none; model (B,) int, -1 = none.
    alpha and beta come from the stage. unit: a quarter of the scale, so that a loss on any scale is that of 1-5.
    """
    if ratings.shape != output.ratings.shape or model.shape != output.mos.shape:  # (B, 1) against (B,) would broadcast to (B, B)
        raise ValueError(f"ratings {tuple(ratings.shape)} must be {tuple(output.ratings.shape)}, "
                         f"model {tuple(model.shape)} {tuple(output.mos.shape)}")
    terms = {
        "mos": mos_loss(output.ratings / unit, ratings / unit, smooth_l1_beta),
        "classification": classification_loss(output.logits, model),
        "diversity": diversity_loss(output.gates),
        "sparsity": sparsity_loss(output.gates),
    }
    terms["total"] = (alpha * terms["mos"] + beta * terms["classification"]
                      + lambda_1 * terms["diversity"] + lambda_2 * terms["sparsity"])
    return terms


def gate_entropies(gates):
    """(B, E) -> mean entropy of a clip's gates, entropy of the mean gate; in nats, at most log E.

    Both low: collapse, one expert does all. Low and high: specialised. Both high: the gate does not choose.
    """
    return torch.special.entr(gates).sum(1).mean(), torch.special.entr(gates.mean(0)).sum()


# ---------------------------------------------------------------------------------------------------------
# Metrics (section IV): in float64, over all clips or all systems at once, never averaged over batches

def mse(predicted, true):
    """mean (p - t)^2"""
    p, t = _pair(predicted, true)
    return float(np.mean((p - t) ** 2)) if len(p) else float("nan")


def lcc(predicted, true):
    """Pearson: cov(p, t) / (sd(p) sd(t)); NaN where undefined() gives a reason."""
    p, t = _pair(predicted, true)
    if undefined(p, t):
        return float("nan")
    p, t = p - p.mean(), t - t.mean()
    return float(np.sum(p * t) / np.sqrt(np.sum(p ** 2) * np.sum(t ** 2)))


def srcc(predicted, true):
    """Spearman: Pearson of the ranks; NaN where undefined() gives a reason."""
    return float("nan") if undefined(predicted, true) else lcc(ranks(predicted), ranks(true))


def ranks(values):
    """(n,) -> ranks from 1; ties share their mean rank."""
    _, place, ties = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(ties) - (ties - 1) / 2)[place]  # last rank of each tie, less half of the others in it


def ktau(predicted, true):
    """Kendall's tau-b: (concordant - discordant pairs) / sqrt(pairs untied in p * pairs untied in t)."""
    p, t = _pair(predicted, true)
    if undefined(p, t):
        return float("nan")
    higher_p, higher_t = p[:, None] > p, t[:, None] > t  # (n, n): each untied pair is True once
    concordant, discordant = np.count_nonzero(higher_p & higher_t), np.count_nonzero(higher_p & higher_t.T)
    return (concordant - discordant) / float(np.count_nonzero(higher_p) * np.count_nonzero(higher_t)) ** 0.5


def undefined(predicted, true):
    """Why LCC, SRCC and KTAU do not exist, or "" where they do."""
    p, t = _pair(predicted, true)
    if len(p) < 2:
        return f"{len(p)} values, two are needed"
    if not (np.isfinite(p).all() and np.isfinite(t).all()):
        return "a value is not finite"
    for values, name in ((p, "predictions"), (t, "true scores")):
        if np.ptp(values) <= 1e-9 * np.abs(values).max():  # equal means differ in their last bits
            return f"the {name} are all equal"
    return ""


def _pair(predicted, true):
    p, t = np.asarray(predicted, np.float64), np.asarray(true, np.float64)
    if p.shape != t.shape or p.ndim != 1:
        raise ValueError(f"predicted and true must be two (n,) of one length, not {p.shape} and {t.shape}")
    return p, t


METRICS = {"MSE": mse, "LCC": lcc, "SRCC": srcc, "KTAU": ktau}


def system_means(values, system):
    """(n,) values and their systems -> one plain mean a system, in the order of the systems' names (IV)."""
    values, system = np.asarray(values, np.float64), np.asarray(system)
    return np.array([values[system == name].mean() for name in np.unique(system)])


def levels(predicted, true, system):
    """(n,) each -> {"utterance": (predicted, true), "system": (their means a system)}, what the metrics compare."""
    return {"utterance": (np.asarray(predicted, np.float64), np.asarray(true, np.float64)),
            "system": (system_means(predicted, system), system_means(true, system))}


def metrics(predicted, true, system):
    """The eight numbers: {"utterance": {"MSE": ..., "LCC", "SRCC", "KTAU"}, "system": {the same}}."""
    return {level: {name: metric(*pair) for name, metric in METRICS.items()}
            for level, pair in levels(predicted, true, system).items()}
