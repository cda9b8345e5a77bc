"""The method of arXiv 2507.06116, "Speech Quality Assessment Model Based on Mixture of Experts".

In the order in which a clip goes through it: backbone, feature fusion, mixture of experts and the
two heads (section III.B), the losses (III.C), the metrics (IV). Stages and training (III.E) are in
train.py, clips and ratings (III.D) in data.py. What the paper leaves open is marked "ours".

Letters of dimensions, the same in all modules:
    B clips     T samples     F frames      L layers of the backbone     D width of a layer
    E experts   H hidden width              C classes of the second task
"""

import contextlib
import hashlib
import importlib
import inspect
import math
import sys
from typing import NamedTuple

import numpy as np
import torch
import torchaudio
from torch import nn

MIN_SECONDS = 0.025  # what one frame of a wav2vec2 sees


# -- Backbone: waveform -> frames of every layer, frozen (III.B) -----------------------------------

class LogMel(nn.Module):
    """A stand-in where the weights of a wav2vec2 are missing (ours): it hears spectra, no speech.

    Its two "layers" are the log-mel spectrum at 16 kHz, with the usual 80 bands and a window of 25
    ms every 10 ms, and how fast that changes. Every clip is brought to the same level first, as a
    wav2vec2 does not hear the level either."""

    def __init__(self):
        super().__init__()
        self.mel = torchaudio.transforms.MelSpectrogram(
            16000, n_fft=512, win_length=400, hop_length=160, n_mels=80)
        # Computed, and so no weights: their last bits are not the same on every machine.
        for part, name in ((self.mel.spectrogram, "window"), (self.mel.mel_scale, "fb")):
            part.register_buffer(name, getattr(part, name), persistent=False)

    def extract_features(self, waveforms):
        """(1, T) -> (two tensors (1, F, D), None), as torchaudio's networks do; 100 frames/s."""
        level = waveforms.square().mean().sqrt().clamp_min(1e-6)  # root mean square, not 0
        log = (self.mel(waveforms / level) + 1e-3).log()  # 1e-3: no log of 0, nor rounding noise
        change = torchaudio.functional.compute_deltas(log).abs()
        return [layer.transpose(1, 2) for layer in (log, change)], None


class Backbone:
    """A frozen network. It is no nn.Module: no .train() or .parameters() of a parent can reach it.

    name; sample_rate (Hz); layers (L); width (D); identity: hex digest of its weights, of the code
    of a module of one's own, and of what it makes of noise, so that other code behind it shows: a
    weighted sum of the statistics, to two digits. Another machine gives the same, unless its errors
    of rounding carry the sum over an edge. Raises ValueError for features that are not finite."""

    def __init__(self, name, network, sample_rate, device="cpu", code=""):
        self.name = name
        self.sample_rate = sample_rate
        self.device = torch.device(device)
        self.network = network.eval().requires_grad_(False).to(device)
        noise = torch.randn(sample_rate, generator=torch.Generator().manual_seed(0))  # 1 s to try
        frames = self.extract(0.1 * noise)
        if not frames.isfinite().all():
            raise ValueError(f"the features of backbone {name} are not finite")
        self.layers, _, self.width = frames.shape
        heard = pool_statistics(frames).flatten().cpu().double()
        ramp = torch.linspace(1, 2, len(heard), dtype=torch.float64)  # so that their order counts
        digest = hashlib.sha256(f"{code} {tuple(frames.shape)} {heard @ ramp:.1e}".encode())
        for key, tensor in network.state_dict().items():
            content = tensor.cpu().flatten().view(torch.uint8)  # bytes: numpy has no bfloat16
            digest.update(key.encode() + content.numpy().tobytes())
        self.identity = digest.hexdigest()

    @torch.no_grad()
    def extract(self, waveform):
        """(T,) float32 at sample_rate -> (L, F, D). Raises ValueError for another shape or below
        25 ms, and for a network that gives anything but L tensors (1, F, D).

        One clip, unpadded: group norm over time, and normalisation of the waveform, would make the
        features of a padded or batched clip depend on its neighbours."""
        if waveform.dim() != 1 or len(waveform) < MIN_SECONDS * self.sample_rate:
            raise ValueError(f"a waveform is (T,) of 25 ms or more, not {tuple(waveform.shape)}")
        with contextlib.redirect_stdout(sys.stderr):  # what a network prints is no score
            layers = list(self.network.extract_features(waveform[None].to(self.device))[0])
        shapes = {tuple(layer.shape) for layer in layers}
        usable = [layer.layout == torch.strided and not layer.is_complex() and layer.dim() == 3
                  and len(layer) == 1 and layer.numel() > 0 for layer in layers]
        if len(shapes) != 1 or not all(usable):
            raise ValueError(f"the layers of backbone {self.name} must be (1, F, D), real, dense, "
                             f"not empty and all alike, in a list before None, not {shapes}")
        return torch.cat(layers).float()  # L x (1, F, D) -> (L, F, D)


def load_backbone(name, device="cpu"):
    """A torchaudio bundle, its weights from torch.hub's folder or downloaded into it; or "logmel";
    or your own: the name of a Python module whose load() gives (network, sample_rate), with the
    network's extract_features as LogMel has it.
    Raises ValueError for what is none of these, and what get_model raises without weights."""
    bundle, code = torchaudio_bundle(name), ""
    with contextlib.redirect_stdout(sys.stderr):  # torch.hub says that it downloads
        if name == "logmel":
            network, sample_rate = LogMel(), 16000
        elif bundle is not None:
            sample_rate = int(bundle.sample_rate)
            network = bundle.get_model(dl_kwargs={"weights_only": True})  # else it may run code
        else:
            network, sample_rate, code = load_module(name)
    return Backbone(name, network, sample_rate, device, code)


def load_module(name):
    """A module of one's own -> (network, sample_rate, source of it and of the network's module)."""
    try:
        module = importlib.import_module(name)
        load = module.load
    except (ImportError, AttributeError, TypeError) as error:
        raise ValueError(f"there is no backbone {name!r:.80} ({error!s:.80}); choose logmel, a "
                         "Wav2Vec2Bundle of torchaudio or a module that has load(), beside "
                         "train.py or on PYTHONPATH") from None
    with torch.random.fork_rng([]):
        torch.manual_seed(0)  # weights that are drawn are the same ones every time
        found = load()
    if not (isinstance(found, tuple) and len(found) == 2 and isinstance(found[0], nn.Module)
            and isinstance(found[1], (int, np.integer)) and found[1] > 0):
        raise ValueError(f"load() of {name} must give a torch module and its rate in whole Hz")
    try:
        code = inspect.getsource(module) + inspect.getsource(inspect.getmodule(type(found[0])))
    except (OSError, TypeError):
        raise ValueError(f"the source of {name} is missing; put its .py file there") from None
    return *found, code


def torchaudio_bundle(name):
    """The bundle of that name, or None."""
    bundle = getattr(torchaudio.pipelines, name, None)
    return bundle if isinstance(bundle, torchaudio.pipelines.Wav2Vec2Bundle) else None


def pool_statistics(frames):
    """(L, F, D) -> (L, 2D): mean and standard deviation over time (ours). A clip then takes 74 kB
    on disk with WAV2VEC2_BASE; its frames would take 1.8 MB for each second."""
    return torch.cat([frames.mean(1), frames.std(1, correction=0)], dim=1)


# -- Feature fusion: statistics of every layer -> one vector a clip (III.B; its inside is ours) ----

class FeatureFusion(nn.Module):
    """All layers side by side, each number standardised by its mean and deviation over the training
    clips, as features and layers differ in scale; then turned to A axes, on which start() decides.
    """

    def __init__(self, layers, width, axes):
        super().__init__()
        self.register_buffer("center", torch.zeros(layers, 2 * width))
        self.register_buffer("scale", torch.ones(layers, 2 * width))
        self.register_buffer("axes", torch.zeros(layers * 2 * width, axes))

    def forward(self, features):                                            # (B, L, 2D)
        standardised = ((features - self.center) / self.scale).flatten(1)   # (B, L 2D)
        return standardised @ self.axes                                     # (B, A)


# -- Mixture of experts and the two heads (III.B) --------------------------------------------------

class MixtureOfExperts(nn.Module):
    """y = sum_i g_i(x) E_i(x), the paper's combination; a softmax gate over all experts, no top-k.

    Each expert is a small MLP of its own, A -> H -> 1 + C, beside a linear path V that all share:

        E_i(x) = V x + MLP_i(x)

    The widths, GELU and the path are ours. On few clips a straight line is hard to beat: the path
    starts as one, and the experts learn what it misses. At first they add nothing, as their second
    layers are 0, but their first layers are random. Copies would stay alike, and the gate would
    have nothing to choose from."""

    def __init__(self, axes, experts, hidden, outputs):
        super().__init__()
        self.gate = nn.Linear(axes, experts)  # "lightweight" is the paper's, one layer is ours
        self.path = nn.Linear(axes, outputs, bias=False)
        self.experts = nn.ModuleList(
            nn.Sequential(nn.Linear(axes, hidden), nn.GELU(), nn.Linear(hidden, outputs))
            for _ in range(experts))
        for expert in self.experts:
            nn.init.zeros_(expert[2].weight)
            nn.init.zeros_(expert[2].bias)

    def forward(self, x):                                                   # (B, A)
        gates = self.gate(x).softmax(1)                                     # (B, E)
        experts = torch.stack([expert(x) for expert in self.experts], 1)    # (B, E, 1 + C)
        experts = experts + self.path(x)[:, None]                           # (B, E, 1 + C)
        y = (gates[:, :, None] * experts).sum(1)                            # (B, 1 + C)
        return y, gates, experts


class Output(NamedTuple):
    mos: torch.Tensor      # (B,) on the scale of the ratings, never clamped
    logits: torch.Tensor   # (B, C) of the second task's classes
    gates: torch.Tensor    # (B, E) each row sums to one
    experts: torch.Tensor  # (B, E, 1 + C) what each expert says
    y: torch.Tensor        # (B, 1 + C) their sum, weighted by the gates


class MoEMOS(nn.Module):
    """Statistics of a frozen backbone -> MOS and synthesis model: all that is trained.

    Both heads are one layer on y. The MOS head predicts how far a clip is from the mean MOS of the
    training clips, in their standard deviations, so that one setting fits every scale (ours)."""

    def __init__(self, layers, width, axes, classes, experts, hidden):
        super().__init__()
        self.register_buffer("mean", torch.zeros(()))
        self.register_buffer("deviation", torch.ones(()))
        self.register_buffer("strength", torch.zeros(()))  # as start() found it
        self.fusion = FeatureFusion(layers, width, axes)
        self.moe = MixtureOfExperts(axes, experts, hidden, 1 + classes)
        self.class_head = nn.Linear(1 + classes, classes)
        self.mos_head = nn.Linear(1 + classes, 1)

    def forward(self, features):                                            # (B, L, 2D)
        y, gates, experts = self.moe(self.fusion(features))                 # (B, 1 + C), as above
        logits = self.class_head(y)                                         # (B, C)
        mos = self.mean + self.deviation * self.mos_head(y).squeeze(1)      # (B,)
        return Output(mos, logits, gates, experts, y)


# -- Where training starts: two straight lines, in closed form (ours) ------------------------------
#
# The fused features lie along the principal axes of the clips. Along each they have variance 1,
# times the share that ridge regression keeps of an axis of variance v, so that what varies little
# is hardly heard:   kept = v / (v + alpha I / rated clips),   alpha from strength()
#
# y_0 starts as what ridge regression says of the MOS, and y_c as what it says of being of class c,
# each less its mean. The class head makes logits of that, log P_c to first order, and the MOS head
# the mean of y_0 and of the MOS that the classes let expect; share_c: of the clips.
#
#     logit_c = log share_c + y_c / share_c
#     MOS     = y_0 / 2 + sum_c (share_c + y_c) MOS_c / 2      in deviations from the mean
#
# Where there is one class only, nothing is expected of it, and the MOS head starts as y_0.

ALPHAS = np.logspace(3, -4, 29)  # penalties of ridge regression, a feature; strongest first
LEAST_KEPT = 0.01  # of what it keeps of the first axis: axes with less are left out


def ridge(x, y, new, alphas):
    """Ridge regression: (n, I) features and (n,) MOS of training clips, (m, I) features of others
    -> what it predicts for these with each of the alphas, (alphas, m).

    The weights w of the least |x w - y|^2 + alpha I |w|^2, of standardised x and of y less its
    mean, by the eigenvalues v of x x' = U diag(v) U':   w = x' U diag(1 / (v + alpha I)) U' y"""
    center, scale = x.mean(0), x.std(0)
    scale[scale <= 1e-6 * np.abs(center)] = math.inf  # what varies by rounding says nothing
    x, new = (x - center) / scale, (new - center) / scale
    v, u = np.linalg.eigh(x @ x.T)
    penalties = np.array(alphas)[:, None] * x.shape[1]            # (alphas, 1)
    along = (y - y.mean()) @ u / (v + penalties)                  # (alphas, n)
    return y.mean() + along @ (u.T @ x) @ new.T                   # (alphas, m)


def strength(x, y, fold):
    """The one of ALPHAS whose squared error in cross-validation is least, of equals the strongest.
    x, y: as of ridge(); fold: (n,) int, two folds or more."""
    errors = np.zeros(len(ALPHAS))
    for number in np.unique(fold):
        held_out = fold == number
        predicted = ridge(x[~held_out], y[~held_out], x[held_out], ALPHAS)
        errors += np.square(predicted - y[held_out]).sum(1)
    return float(ALPHAS[errors.argmin()])


def start(features, mos, model, classes, fold):
    """What a MoEMOS holds before it is trained, from its training clips -> {name in its state_dict:
    tensor}; the gate and the first layers of the experts are not among them, and start random.

    features: (n, L, 2D). mos: (n,), NaN: none. model: (n,) int; each class has a clip. fold: as of
    strength(), of the clips that have a MOS. All are on the CPU."""
    features, mos, model = features.double(), mos.double().numpy(), model.numpy()
    spread, center = torch.std_mean(features, 0, correction=0)
    scale = spread.clamp_min(1e-3)  # a feature may never vary
    x = ((features - center) / scale).flatten(1).numpy()                    # (n, I)
    n, inputs = x.shape
    rated = ~np.isnan(mos)
    mean = mos[rated].mean()
    deviation = mos[rated].std() if np.ptp(mos[rated]) > 0 else 1.0
    y = (mos[rated] - mean) / deviation
    raw = features.flatten(1).numpy()
    alpha = strength(raw[rated], y, fold)
    line = ridge(raw[rated], y, raw, [alpha])[0]                            # (n,)

    variance, u = np.linalg.eigh(x @ x.T / n)                               # (n,), (n, n)
    variance, u = np.maximum(variance[::-1], 1e-12), u[:, ::-1]             # largest first, no 0
    kept = variance / (variance + alpha * inputs / rated.sum())
    large = kept > LEAST_KEPT * kept[0]
    white, variance, kept = u[:, large] * math.sqrt(n), variance[large], kept[large]
    axes = x.T @ (white * kept / variance) / n                              # (I, A)
    sign = np.where(axes.sum(0) < 0, -1, 1)  # it is free, and so not everywhere the same
    white, axes = white * sign, axes * sign

    one_hot = np.eye(classes)[model]                                        # (n, C)
    share = one_hot.mean(0)
    class_mos = one_hot[rated].T @ y / np.maximum(one_hot[rated].sum(0), 1)  # (C,)
    weights = {
        "mean": mean, "deviation": deviation, "strength": alpha,
        "fusion.center": center, "fusion.scale": scale, "fusion.axes": axes,
        "moe.path.weight": np.vstack([line @ white / kept, one_hot.T @ white]) / n,
        "class_head.weight": np.hstack([np.zeros((classes, 1)), np.diag(1 / share)]),
        "class_head.bias": np.log(share),
        "mos_head.weight": np.hstack([1, class_mos])[None] / min(classes, 2),
        "mos_head.bias": (line.mean() + share @ class_mos)[None] / min(classes, 2)}
    return {name: torch.as_tensor(value).float() for name, value in weights.items()}


# -- Losses (III.B, III.C; the regularisers' equations, not given, are SpeechMoE's, 2105.03036) ----

def mos_loss(predicted, mos):
    """Smooth L1, the mean over the clips that have a MOS (NaN: none); 0 if no clip has one.

    d^2 / 2 where |d| < 1, else |d| - 1/2, with d = predicted - mos. That it turns at 1 is ours."""
    known = ~mos.isnan()
    total = nn.functional.smooth_l1_loss(predicted[known], mos[known], reduction="sum")
    return total / known.sum().clamp_min(1)


def classification_loss(logits, model):
    """Cross entropy of (B, C) logits with (B,) indices; -1, no known class, is left out."""
    total = nn.functional.cross_entropy(logits, model, ignore_index=-1, reduction="sum")
    return total / (model >= 0).sum().clamp_min(1)


def diversity_loss(gates):
    """E sum_j p_j^2, with p = mean_b g_b of (B, E) gates: 1 at equal shares, E if one does all.
    SpeechMoE's mean importance loss, there "to improve the diversity of gate values"."""
    return gates.shape[1] * gates.mean(0).square().sum()


def sparsity_loss(gates):
    """mean_b || g_b / ||g_b||_2 ||_1 of (B, E) gates: 1 at one expert a clip, sqrt(E) if all equal.
    SpeechMoE's sparsity L1 loss. Without the L2 norm it is constant, as a softmax sums to one."""
    return (gates.sum(1) / gates.norm(dim=1)).mean()


def losses(output, mos, model, alpha, beta, lambda_1, lambda_2, unit=1.0):
    """Every term and their weighted "total", as a dict of scalars.

    mos: (B,), NaN: none. model: (B,) int, -1: none. alpha, beta: the stage's. unit: what errors of
    the MOS are divided by (ours: the deviation of the training MOS). Raises ValueError where the
    shapes of MOS differ: (B, 1) minus (B,) would silently be (B, B)."""
    if mos.shape != output.mos.shape:
        raise ValueError(f"MOS {tuple(mos.shape)} must be {tuple(output.mos.shape)}")
    terms = {
        "mos": mos_loss(output.mos / unit, mos / unit),
        "classification": classification_loss(output.logits, model),
        "diversity": diversity_loss(output.gates),
        "sparsity": sparsity_loss(output.gates)}
    terms["total"] = (alpha * terms["mos"] + beta * terms["classification"]
                      + lambda_1 * terms["diversity"] + lambda_2 * terms["sparsity"])
    return terms


def gate_entropies(gates):
    """A diagnosis, ours: (B, E) -> mean entropy of a clip's gates, entropy of the mean gate; nats.
    Both low: collapse, one expert does all. Low, high: specialised. Both high: no choice."""
    return torch.special.entr(gates).sum(1).mean(), torch.special.entr(gates.mean(0)).sum()


# -- Metrics (IV): in float64, over all clips or systems at once, never means of batches -----------

def mse(predicted, true):
    """mean (p - t)^2; NaN of no clips."""
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
    """(n,) -> ranks from 1; ties share their mean rank. Values that agree in float32 are ties, as
    means that are equal differ in their last bits, with the order in which they were added up."""
    _, place, ties = np.unique(np.float32(values), return_inverse=True, return_counts=True)
    mean_rank = np.cumsum(ties) - (ties - 1) / 2  # of a tie: its last rank - (its size - 1) / 2
    return mean_rank[place]


def ktau(predicted, true):
    """Kendall's tau-b: (concordant - discordant pairs) / sqrt(untied in p * untied in t)."""
    from scipy.stats import kendalltau  # here, so that --help need not wait for it
    if undefined(predicted, true):
        return float("nan")
    return float(kendalltau(ranks(predicted), ranks(true)).statistic)


def undefined(predicted, true):
    """Why LCC, SRCC and KTAU do not exist, or "" where they do."""
    p, t = _pair(predicted, true)
    if len(p) < 2:
        return f"{len(p)} values, two are needed"
    if not (np.isfinite(p).all() and np.isfinite(t).all()):
        return "a value is not finite"
    for values, name in ((p, "predictions"), (t, "true scores")):
        if np.ptp(np.float32(values)) == 0:  # as ranks() has it
            return f"the {name} are all equal"
    return ""


def _pair(predicted, true):
    p, t = np.asarray(predicted, np.float64), np.asarray(true, np.float64)
    if p.shape != t.shape or p.ndim != 1:
        raise ValueError(f"predicted and true must be (n,) of one n, not {p.shape} and {t.shape}")
    return p, t


METRICS = {"MSE": mse, "LCC": lcc, "SRCC": srcc, "KTAU": ktau}


def system_means(values, system):
    """(n,) values, each of a system -> the plain mean of each system, in order of name (IV)."""
    values, system = np.asarray(values, np.float64), np.asarray(system)
    return np.array([values[system == name].mean() for name in np.unique(system)])


def levels(predicted, true, system):
    """(n,) each -> {"utterance": (predicted, true), "system": (their means, their means)}."""
    return {"utterance": _pair(predicted, true),
            "system": (system_means(predicted, system), system_means(true, system))}


def metrics(predicted, true, system):
    """The eight numbers: {"utterance MSE": ..., "utterance LCC": ..., to "system KTAU"}."""
    return {f"{level} {name}": metric(*pair)
            for level, pair in levels(predicted, true, system).items()
            for name, metric in METRICS.items()}
