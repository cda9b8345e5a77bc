"""The method of arXiv 2507.06116, "Speech Quality Assessment Model Based on Mixture of Experts".

In the order in which a clip goes through it: backbone, feature fusion, mixture of experts and the
two heads (section III.B), the losses (III.C), the metrics (IV). Stages and training (III.E) are in
train.py, clips and ratings (III.D) in data.py. What the paper leaves open is marked "ours".

Letters of dimensions, the same in all modules:
    B clips     T samples     F frames      L layers of the backbone     D width of a layer
    E experts   H hidden width              C classes of the second task
"""

import hashlib
from typing import NamedTuple

import numpy as np
import torch
import torchaudio
from torch import nn

MIN_SECONDS = 0.025  # what one frame of a wav2vec2 sees


# -- Backbone: waveform -> frames of every layer, frozen (III.B) -----------------------------------

class LogMel(nn.Module):
    """A stand-in where the weights of a wav2vec2 are missing (ours): it hears spectra, no speech.

    Its three "layers" are the log-mel spectrum, in windows of 25 ms each 10 ms as is usual, and its
    first and second differences over time. Bands: the usual 80 up to 8 kHz; for the full band 33
    more of the same width in mel, so that a clip's missing band shows as missing.
    """

    def __init__(self, sample_rate=16000, bands=80, highest=8000.0):
        super().__init__()
        window, hop = sample_rate // 40, sample_rate // 100
        self.mel = torchaudio.transforms.MelSpectrogram(
            sample_rate, n_fft=512 * sample_rate // 16000, win_length=window, hop_length=hop,
            n_mels=bands, f_max=highest)

    def extract_features(self, waveforms):
        """(1, T) -> (three tensors (1, F, D), None), as torchaudio's networks do; 100 frames/s."""
        log = (self.mel(waveforms) + 1e-8).log()  # floor: the rounding noise of 16 bits in a band
        delta = torchaudio.functional.compute_deltas(log)
        layers = (log, delta, torchaudio.functional.compute_deltas(delta))
        return [layer.transpose(1, 2) for layer in layers], None


class Backbone:
    """A frozen network. It is no nn.Module: no .train() or .parameters() of a parent can reach it.

    name; sample_rate (Hz); layers (L); width (D); identity: hex digest of its weights.
    """

    def __init__(self, name, network, sample_rate, device="cpu"):
        self.name = name
        self.sample_rate = sample_rate
        self.device = torch.device(device)
        self.network = network.eval().requires_grad_(False).to(device)
        digest = hashlib.sha256()
        for key, tensor in network.state_dict().items():
            digest.update(key.encode() + tensor.cpu().numpy().tobytes())
        self.identity = digest.hexdigest()
        self.layers, _, self.width = self.extract(torch.zeros(sample_rate)).shape  # of 1 s

    @torch.no_grad()
    def extract(self, waveform):
        """(T,) float32 at sample_rate -> (L, F, D). Raises ValueError for another shape or below
        25 ms.

        One clip, unpadded: group norm over time, and normalisation of the waveform, would make the
        features of a padded or batched clip depend on its neighbours.
        """
        if waveform.dim() != 1 or len(waveform) < MIN_SECONDS * self.sample_rate:
            raise ValueError(f"a waveform is (T,) of 25 ms or more, not {tuple(waveform.shape)}")
        layers, _ = self.network.extract_features(waveform[None].to(self.device))
        return torch.cat(layers)  # L x (1, F, D) -> (L, F, D)


def load_backbone(name, device="cpu"):
    """A torchaudio bundle, its weights from torch.hub's folder or downloaded into it; or LogMel:
    "logmel" at 16 kHz, as the bundles, or "logmel48", which hears up to 23.6 kHz.

    Raises ValueError for a name that does not exist, and what get_model raises without weights.
    """
    if name == "logmel":
        return Backbone(name, LogMel(), 16000, device)
    if name == "logmel48":
        return Backbone(name, LogMel(48000, 113, 23588.157), 48000, device)
    bundle = getattr(torchaudio.pipelines, name, None)
    if not isinstance(bundle, torchaudio.pipelines.Wav2Vec2Bundle):
        raise ValueError(  # noqa: TRY004 - of a name, not of a type
            f"there is no backbone {name!r}; choose logmel, logmel48, WAV2VEC2_BASE or another "
            "Wav2Vec2Bundle of torchaudio.pipelines")
    return Backbone(name, bundle.get_model(), int(bundle.sample_rate), device)


def pool_statistics(frames):
    """(L, F, D) -> (L, 2D): mean and standard deviation over time. Ours: of
    WAV2VEC2_BASE 74 kB a clip are kept on disk, where frames would be 1.8 MB a second."""
    return torch.cat([frames.mean(1), frames.std(1, correction=0)], dim=1)


# -- Feature fusion: statistics of every layer -> one vector a clip (III.B; its inside is ours) ----

class FeatureFusion(nn.Module):
    """Every layer standardised and weighted, side by side; the learned weights add up to one.

    Standardised by mean and deviation over the training clips, as features and layers differ in
    scale; a clip's own level and spread stay. Side by side, not summed: layers may hold different
    things. The softmax weights may say which count; weight decay pulls them towards equal ones.
    """

    def __init__(self, layers, width):
        super().__init__()
        self.layer_logits = nn.Parameter(torch.zeros(layers))
        self.register_buffer("center", torch.zeros(layers, 2 * width))
        self.register_buffer("scale", torch.ones(layers, 2 * width))

    def set_statistics(self, features):
        """features: (clips, L, 2D) of the training clips; called once, before training."""
        total = 0.0
        squares = 0.0
        for part in features.split(256):  # part by part, so that no copy of them all is made
            total = total + part.double().sum(0)
            squares = squares + part.double().square().sum(0)
        mean = total / len(features)
        variance = squares / len(features) - mean.square()
        self.center.copy_(mean)
        self.scale.copy_(variance.clamp_min(1e-6).sqrt())  # 1e-6: of a feature that never varies

    def forward(self, features):                                            # (B, L, 2D)
        normal = (features - self.center) / self.scale                      # (B, L, 2D)
        weighted = self.layer_logits.softmax(0)[:, None] * normal           # (B, L, 2D)
        return weighted.flatten(1)                                          # (B, L 2D)


# -- Mixture of experts and the two heads (III.B) --------------------------------------------------

class MixtureOfExperts(nn.Module):
    """y = sum_i g_i(x) E_i(x), the paper's combination; a softmax gate over all experts, no top-k.

    Each expert is a small MLP of its own, L 2D -> H -> H, beside a linear path V that all share:

        E_i(x) = V x + W2_i gelu(W1_i x + b1_i) + b2_i

    Widths, GELU, path and initial weights are ours. On few clips a straight line is hard to beat:
    the path is one, and the experts learn what it misses. Each is drawn independently: copies would
    start as one expert, and teach the gate nothing.
    """

    def __init__(self, inputs, experts, hidden, dropout):
        super().__init__()
        self.gate = nn.Linear(inputs, experts)  # "lightweight" is the paper's, one layer is ours
        self.v = nn.Parameter(torch.empty(inputs, hidden))
        self.w1 = nn.Parameter(torch.empty(experts, inputs, hidden))
        self.b1 = nn.Parameter(torch.zeros(experts, hidden))
        self.w2 = nn.Parameter(torch.empty(experts, hidden, hidden))
        self.b2 = nn.Parameter(torch.zeros(experts, hidden))
        nn.init.normal_(self.v, std=inputs ** -0.5)
        nn.init.normal_(self.w1, std=inputs ** -0.5)
        nn.init.normal_(self.w2, std=hidden ** -0.5)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x):                                                   # (B, L 2D)
        gates = self.gate(x).softmax(1)                                     # (B, E)
        hidden = torch.einsum("bi,eih->beh", x, self.w1) + self.b1          # (B, E, H)
        hidden = self.dropout(nn.functional.gelu(hidden))                   # (B, E, H)
        experts = torch.einsum("beh,ehk->bek", hidden, self.w2) + self.b2   # (B, E, H)
        experts = experts + (x @ self.v)[:, None]                           # (B, E, H)
        y = torch.einsum("be,beh->bh", gates, experts)                      # (B, H)
        return y, gates, experts


class Output(NamedTuple):
    mos: torch.Tensor      # (B,) on the scale of the ratings, never clamped
    logits: torch.Tensor   # (B, C) of the second task's classes
    gates: torch.Tensor    # (B, E) each row sums to one
    experts: torch.Tensor  # (B, E, H) what each expert says
    y: torch.Tensor        # (B, H) their sum, weighted by the gates


class MoEMOS(nn.Module):
    """Statistics of a frozen backbone -> MOS and synthesis model: all that is trained.

    Both heads are one layer on y, and the MOS head also reads the probabilities of the classes, as
    the clips of a synthesis model have a level in common; scaled so that a sure class has mean
    square 1. scale: lowest and highest rating. The MOS head counts from its middle, in quarters of
    it, so that one setting fits every scale. All of it ours.
    """

    def __init__(self, layers, width, classes, experts=4, hidden=32, dropout=0.7, scale=(1.0, 5.0)):
        super().__init__()
        self.middle = (scale[0] + scale[1]) / 2
        self.unit = (scale[1] - scale[0]) / 4
        self.fusion = FeatureFusion(layers, width)
        self.dropout = nn.Dropout(dropout)
        self.moe = MixtureOfExperts(layers * 2 * width, experts, hidden, dropout)
        self.class_head = nn.Linear(hidden, classes)
        self.mos_head = nn.Linear(hidden + classes, 1)

    def forward(self, features):                                            # (B, L, 2D)
        fused = self.dropout(self.fusion(features))                         # (B, L 2D)
        y, gates, experts = self.moe(fused)                                 # (B, H) and as above
        logits = self.class_head(y)                                         # (B, C)
        probabilities = logits.shape[1] ** 0.5 * logits.softmax(1)          # (B, C), scaled
        heard = torch.cat([y, probabilities], dim=1)                        # (B, H + C)
        mos = self.middle + self.unit * self.mos_head(heard).squeeze(1)     # (B,)
        return Output(mos, logits, gates, experts, y)


# -- Losses (III.B, III.C; the regularisers' equations, not given, are SpeechMoE's, 2105.03036) ----

def mos_loss(predicted, mos, smooth_l1_beta=1.0):
    """Smooth L1, the mean over the clips that have a MOS (NaN: none); 0 if no clip has one.

    d^2 / (2 beta) where |d| < beta, else |d| - beta / 2, with d = predicted - mos.
    """
    known = ~mos.isnan()
    total = nn.functional.smooth_l1_loss(
        predicted[known], mos[known], beta=smooth_l1_beta, reduction="sum")
    return total / known.sum().clamp_min(1)


def classification_loss(logits, model):
    """Cross entropy of (B, C) against (B,) int, -1: of no known class; 0 if no clip has one."""
    total = nn.functional.cross_entropy(logits, model, ignore_index=-1, reduction="sum")
    return total / (model >= 0).sum().clamp_min(1)


def diversity_loss(gates):
    """E sum_j p_j^2, with p = mean_b g_b of (B, E) gates: 1 at equal shares, E if one does all.
    SpeechMoE's mean importance loss, there "to improve the diversity of gate values"."""
    return gates.shape[1] * gates.mean(0).square().sum()


def sparsity_loss(gates):
    """mean_b || g_b / ||g_b||_2 ||_1 of (B, E) gates: 1 at one expert a clip, sqrt(E) at all alike.
    SpeechMoE's sparsity L1 loss. Without the L2 norm it is constant, as a softmax sums to one."""
    return (gates.sum(1) / gates.norm(dim=1)).mean()


def losses(output, mos, model, alpha, beta,
           lambda_1=0.02, lambda_2=0.02, smooth_l1_beta=1.0, unit=1.0):
    """Every term and their weighted "total", as a dict of scalars.

    mos: (B,), NaN: none. model: (B,) int, -1: none. alpha, beta: the stage's. unit: what errors are
    divided by, a quarter of the ratings' scale, so that a loss on 0-100 equals that on 1-5. Raises
    ValueError where the shapes of MOS differ: (B, 1) against (B,) is no pair of clips.
    """
    if mos.shape != output.mos.shape:
        raise ValueError(f"MOS {tuple(mos.shape)} must be {tuple(output.mos.shape)}")
    terms = {
        "mos": mos_loss(output.mos / unit, mos / unit, smooth_l1_beta),
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
    """(n,) -> ranks from 1; ties share their mean rank."""
    _, place, ties = np.unique(values, return_inverse=True, return_counts=True)
    mean_rank = np.cumsum(ties) - (ties - 1) / 2  # of each tie: its last, less half its others
    return mean_rank[place]


def ktau(predicted, true):
    """Kendall's tau-b, as ktau_by_pairs() has it, which for 5,000 clips takes 700 times as long."""
    from scipy.stats import kendalltau  # here, so that --help need not wait for it
    p, t = _pair(predicted, true)
    return float("nan") if undefined(p, t) else float(kendalltau(p, t).statistic)


def ktau_by_pairs(predicted, true):
    """Its definition: (concordant - discordant) / sqrt(pairs untied in p * pairs untied in t)."""
    p, t = _pair(predicted, true)
    higher_p = p[:, None] > p  # (n, n): each untied pair is True once
    higher_t = t[:, None] > t
    concordant = np.count_nonzero(higher_p & higher_t)
    discordant = np.count_nonzero(higher_p & higher_t.T)
    untied = float(np.count_nonzero(higher_p) * np.count_nonzero(higher_t))
    return (concordant - discordant) / untied ** 0.5


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
    """The eight numbers: {"utterance": {"MSE": ..., "LCC", "SRCC", "KTAU"}, "system": ...}."""
    return {level: {name: metric(*pair) for name, metric in METRICS.items()}
            for level, pair in levels(predicted, true, system).items()}
