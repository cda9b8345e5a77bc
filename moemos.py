"""The method of arXiv 2507.06116, "Speech Quality Assessment Model Based on Mixture of Experts".

The file follows a clip through the method: the backbone, feature fusion, the mixture of experts and
the two heads (section III.B of the paper), where training starts (ours), the losses (III.B and
III.C) and the metrics (IV). The stages of training (III.E) are in train.py, clips and ratings in
data.py. What is not the paper's is marked "ours".

Letters of dimensions, the same in all modules:
    B  clips                         E  experts
    T  samples of a waveform         H  hidden width of an expert
    F  frames of a clip              C  classes of the second task
    L  layers of the backbone        P  features of a clip, P = L * 2D
    D  width of a layer              A  axes that the features are projected onto
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

MIN_SECONDS = 0.025  # the length of one frame of a wav2vec2; a frame begins every 0.02 s


# -- Backbone: waveform -> frames, frozen (III.B); that we use every layer is ours -----------------

class Backbone:
    """Holds a frozen network, which turns a waveform into the frames of its layers. A Backbone is
    not an nn.Module, so that PyTorch does not count the network's weights among those of a model,
    and neither stores nor trains them with the model.

    code: the source code of the network, if it comes from a Python module of yours; see
    fingerprint(). Attributes: name; sample_rate, in Hz; layers (L); width (D); and identity, a
    fingerprint(), by which a run recognises its backbone. Raises ValueError if the network gives
    NaN or infinite numbers."""

    def __init__(self, name, network, sample_rate, device="cpu", code=""):
        self.name = name
        self.sample_rate = sample_rate
        self.device = torch.device(device)
        self.network = network.eval().requires_grad_(False).to(device)
        # One second of noise shows what L and D are, and serves for the fingerprint.
        noise = torch.randn(sample_rate, generator=torch.Generator().manual_seed(0))
        frames = self.extract(0.1 * noise)
        if not frames.isfinite().all():
            raise ValueError(f"the frames of backbone {name} are not finite")
        self.layers, _, self.width = frames.shape
        self.identity = fingerprint(network, frames, code)

    @torch.no_grad()
    def extract(self, waveform):
        """(T,) float32 at sample_rate -> (L, F, D). Raises ValueError if the waveform is not (T,)
        or is shorter than 25 ms. Also raises it if the network does not give tensors (1, F, D), all
        of one shape.

        It takes one clip at a time (ours). In a batch all clips would be padded to the length of
        the longest. WAV2VEC2_BASE normalises over all frames, the padding included, so that the
        features of a clip would depend on the other clips."""
        if waveform.dim() != 1 or len(waveform) < MIN_SECONDS * self.sample_rate:
            raise ValueError(f"a waveform is (T,) of 25 ms or more, not {tuple(waveform.shape)}")
        with contextlib.redirect_stdout(sys.stderr):  # standard output is for our own results
            layers = list(self.network.extract_features(waveform[None].to(self.device))[0])
        shapes = sorted({tuple(layer.shape) for layer in layers})
        shapes_fit = len(shapes) == 1 and len(shapes[0]) == 3 and shapes[0][0] == 1
        if not shapes_fit or 0 in shapes[0]:
            raise ValueError(f"backbone {self.name} must give (list of layers, None), all layers "
                             f"of one shape (1, F, D) and none empty; it gave {shapes}")
        return torch.cat(layers).float()                                    # (L, F, D)


def pool_statistics(frames):
    """(L, F, D) -> (L, 2D), the features of a clip: mean and standard deviation over time (ours).
    With WAV2VEC2_BASE they take 74 kB on disk; the frames would take 1.8 MB for each second."""
    return torch.cat([frames.mean(1), frames.std(1, correction=0)], dim=1)


# -- Feature fusion: the features of all layers -> one vector (III.B; how it does that is ours) ----

class FeatureFusion(nn.Module):
    """Puts the features of all layers side by side and projects them onto A axes, the directions in
    which the training clips differ most, each scaled as principal_axes() explains. Before that each
    feature is standardised: its mean over the training clips is subtracted, and the result is
    divided by its standard deviation. Otherwise features with large numbers would outweigh the
    others. start() computes the means, deviations and axes from the training clips, and decides how
    many axes there are; the three stages do not change them."""

    def __init__(self, layers, width, axes):
        super().__init__()
        # Buffers are stored with the weights and not trained.
        self.register_buffer("mean", torch.zeros(layers, 2 * width))
        self.register_buffer("deviation", torch.ones(layers, 2 * width))
        self.register_buffer("axes", torch.zeros(layers * 2 * width, axes))

    def forward(self, features):                                            # (B, L, 2D)
        standardised = ((features - self.mean) / self.deviation).flatten(1)   # (B, P)
        return standardised @ self.axes                                     # (B, A)


# -- Mixture of experts and the two heads (III.B) --------------------------------------------------

class MixtureOfExperts(nn.Module):
    """y = sum_i g_i(x) E_i(x), as in the paper, with a softmax gate g over all experts.

    In the paper the experts are independent small networks, multi-layer perceptrons. Here an expert
    is such a network, MLP_i, plus a linear map V that all experts share (ours):

        E_i(x) = V x + MLP_i(x)

    The gates sum to 1, and so y = V x + sum_i g_i(x) MLP_i(x).

    With few clips a linear model is hard to beat. So start() computes a V that is itself a linear
    model of the training clips. From there V is trained, too, and the perceptrons are there to
    learn what it misses.

    MLP_i has two layers, A -> H -> 1 + C, with GELU between them, a smooth form of max(0, v). The
    second layers start at 0, so that at first the perceptrons add nothing. The first layers start
    at random, each with other numbers, so that the experts do not all learn the same. The gate
    starts at random, too. It acts once for each clip, and not on each frame. All in this paragraph
    is ours."""

    def __init__(self, axes, experts, hidden, outputs):
        super().__init__()
        self.gate = nn.Linear(axes, experts)  # "lightweight" in the paper; one layer is ours
        self.linear = nn.Linear(axes, outputs, bias=False)  # V
        self.mlps = nn.ModuleList(
            nn.Sequential(nn.Linear(axes, hidden), nn.GELU(), nn.Linear(hidden, outputs))
            for _ in range(experts))
        for mlp in self.mlps:
            nn.init.zeros_(mlp[2].weight)
            nn.init.zeros_(mlp[2].bias)

    def forward(self, x):                                                   # (B, A)
        gates = self.gate(x).softmax(1)                                     # (B, E)
        nonlinear = torch.stack([mlp(x) for mlp in self.mlps], 1)           # (B, E, 1 + C)
        experts = self.linear(x)[:, None] + nonlinear                       # (B, E, 1 + C)
        y = (gates[:, :, None] * experts).sum(1)                            # (B, 1 + C)
        return y, gates, experts


class Output(NamedTuple):
    mos: torch.Tensor      # (B,) on the scale of the ratings; not limited to it (ours)
    logits: torch.Tensor   # (B, C) whose softmax is the probability of each class
    gates: torch.Tensor    # (B, E) each row sums to one
    experts: torch.Tensor  # (B, E, 1 + C) E_i(x), the output of each expert
    y: torch.Tensor        # (B, 1 + C) the sum of these, weighted by the gates


class MoEMOS(nn.Module):
    """All that comes after the frozen backbone and the pooling: features of clips -> MOS and
    synthesis models.

    Each head is one linear layer, the plainest there is, and reads all 1 + C numbers of y (ours).
    The MOS head predicts how far a clip is from the mean MOS of the training clips, in standard
    deviations of that MOS, so that the same settings fit every scale of ratings (ours)."""

    def __init__(self, layers, width, axes, classes, experts, hidden):
        super().__init__()
        self.register_buffer("mean", torch.zeros(()))       # of the training MOS
        self.register_buffer("deviation", torch.ones(()))   # of the training MOS
        self.register_buffer("penalty", torch.zeros(()))    # of ridge regression, found by start()
        self.fusion = FeatureFusion(layers, width, axes)
        self.moe = MixtureOfExperts(axes, experts, hidden, 1 + classes)
        self.class_head = nn.Linear(1 + classes, classes)
        self.mos_head = nn.Linear(1 + classes, 1)

    def forward(self, features):                                            # (B, L, 2D)
        y, gates, experts = self.moe(self.fusion(features))                 # y: (B, 1 + C)
        logits = self.class_head(y)                                         # (B, C)
        mos = self.mean + self.deviation * self.mos_head(y).squeeze(1)      # (B,)
        return Output(mos, logits, gates, experts, y)


# -- Where training starts: two linear predictions (ours) ------------------------------------------
#
# Before its first step of training, the network should predict as well as a linear model does. So
# start() computes its first weights from the n training clips, in five steps:
#
# 1. The MOS and the features are standardised.
# 2. Ridge regression, a linear model, learns to predict the MOS.
# 3. The axes of the fusion are computed, the directions in which the clips differ most.
# 4. V is set. From a clip's place on the axes it makes 1 + C guesses. One is about the MOS: by how
#    much is it above the mean? The C others are about the classes: is the clip in this class?
# 5. The heads are set, so that they turn these guesses into logits and a MOS.
#
# The functions ridge() and principal_axes() explain steps 2 and 3, and start() the others. A prime
# means "transposed", as in z'.

PENALTIES = np.logspace(3, -4, 29)  # what best_penalty() tries, from the strongest to the weakest
LEAST_KEPT = 0.01  # see principal_axes()


def ridge(features, target, new, penalties):
    """Ridge regression: a linear model whose weights are kept small by a penalty. features: (n, P)
    and target: (n,) of the clips to learn from. new: (m, P), the features of m clips to predict.
    Returns (penalties, m), a row for each penalty: the predicted targets of the m clips.

    Let z be the standardised features, and t the target minus its mean. The weights w, one for each
    feature, are those for which

        |z w - t|^2 + penalty * P * |w|^2

    is least. The textbooks have

        w = (z'z + penalty * P * identity)^-1 z' t

    The matrix z'z is (P, P), and P may be many thousands. We use the smaller matrix zz', which is
    only (n, n):

        w = z' (zz' + penalty * P * identity)^-1 t

    This is the same w. To see that, let k be any number above 0. Then

        (z'z + k * identity) z' = z' (zz' + k * identity)

    because both sides are z'zz' + k * z'. Multiply both sides by the inverse of the first bracket
    from the left, and by the inverse of the second bracket from the right. (The penalty is
    multiplied by P because the numbers in zz' grow with the number of features. So the same penalty
    fits any number of them.)"""
    mean, deviation = features.mean(0), features.std(0)
    deviation[deviation <= 1e-6 * np.abs(mean)] = math.inf  # so that what never varies becomes 0
    z, z_new = (features - mean) / deviation, (new - mean) / deviation
    products, t = z @ z.T, target - target.mean()                           # (n, n), (n,)
    solved = [np.linalg.solve(products + penalty * z.shape[1] * np.eye(len(z)), t)
              for penalty in penalties]
    return target.mean() + np.array(solved) @ z @ z_new.T                   # (penalties, m)


def best_penalty(features, target, fold):
    """Finds the penalty by cross-validation: the clips are divided into folds, and ridge() predicts
    each fold from the others. Returns the one of PENALTIES with the smallest squared error. If
    several have the same error, it returns the strongest of them. features, target: as for ridge().
    fold: (n,) int, the number of the fold that each clip is in."""
    errors = np.zeros(len(PENALTIES))
    for number in np.unique(fold):
        test = fold == number
        predicted = ridge(features[~test], target[~test], features[test], PENALTIES)
        errors += np.square(predicted - target[test]).sum(1)
    return float(PENALTIES[errors.argmin()])


def principal_axes(z, pivot):
    """The principal axes of n clips, each scaled so that an axis along which clips hardly differ
    gives small numbers.

    The clips are points in a space with a dimension for each feature. The principal axes are
    directions in this space: the clips differ most along the first one, and less along each further
    one. A linear model can be written with a weight for each axis in place of one for each feature.
    Ridge regression gives each axis the weight that it would have without a penalty, times a factor
    between 0 and 1,

        kept = variance / (variance + pivot),        pivot = penalty * P / r

    The variance is that of the clips along the axis, and r is the number of clips from which ridge
    regression learns (the rated ones). Section 3.4.1 of "The Elements of Statistical Learning" by
    Hastie, Tibshirani and Friedman derives the factor. There it is s^2 / (s^2 + lambda), where s^2
    is the sum of the squared coordinates of the r clips along the axis, and lambda is penalty * P.
    If one divides numerator and denominator by r, one gets the formula above.

    So `kept` is near 1 if the clips differ much along the axis, and near 0 if they hardly differ:
    with a pivot of 1 and variances of 9, 1 and .1 it is .9, .5 and .09. We bring the coordinates
    along each axis to the standard deviation 1, and then multiply them by `kept`. So an axis along
    which the clips hardly differ gives small numbers, and training hardly uses it, just as ridge
    regression hardly does. Axes whose `kept` is less than 1 % of the largest are left out.

    z: (n, P), the standardised features. pivot: the variance at which `kept` is one half. Returns
    position: (n, A), the coordinates of the clips, brought to the standard deviation 1 along each
    axis; kept: (A,); and axes: (P, A), for which z @ axes is position * kept."""
    # The directions are the eigenvectors of z'z / n, and the variances its eigenvalues. But this
    # matrix is (P, P), and P may be many thousands. So we take zz' / n, which is only (n, n). If u
    # is an eigenvector of zz' / n, then z'u is one of z'z / n, with the same eigenvalue: to see
    # that, multiply  zz'u / n = variance * u  by z' from the left. The length of z'u is
    # sqrt(n * variance), if u has the length 1. The coordinates of the clips along this direction,
    # divided by their standard deviation, are sqrt(n) * u.
    variance, u = np.linalg.eigh(z @ z.T / len(z))                          # (n,), (n, n)
    variance, u = np.maximum(variance[::-1], 1e-12), u[:, ::-1]             # largest first, no 0
    kept = variance / (variance + pivot)
    large = kept > LEAST_KEPT * kept[0]
    variance, kept = variance[large], kept[large]                           # (A,)
    position = u[:, large] * math.sqrt(len(z))                              # (n, A)
    directions = z.T @ position / (len(z) * np.sqrt(variance))              # (P, A), of length 1
    axes = directions * (kept / np.sqrt(variance))                          # (P, A)
    sign = np.where(axes.sum(0) < 0, -1, 1)  # an axis may point either way; this fixes it
    return position * sign, kept, axes * sign


def start(features, mos, label, classes, fold):
    """Computes from the training clips the weights that a MoEMOS starts with -> {name in its
    state_dict: tensor}. The gate and the perceptrons are not among them; they start as
    MixtureOfExperts makes them.

    features: (n, L, 2D). mos: (n,), NaN where a clip has none. label: (n,) int, the class of each
    clip. classes: how many there are. fold: as for best_penalty(), but only for the clips that
    have a MOS. All are on the CPU."""
    features, mos, label = features.double(), mos.double().numpy(), label.numpy()

    # 1. MOS and features are standardised.
    rated = ~np.isnan(mos)
    mos_mean = mos[rated].mean()
    mos_deviation = mos[rated].std() if np.ptp(mos[rated]) > 0 else 1.0
    mos = (mos - mos_mean) / mos_deviation                                  # (n,)
    deviation, mean = torch.std_mean(features, 0, correction=0)
    deviation = deviation.clamp_min(1e-3)  # so that nothing is divided by nearly 0 (ours)
    z = ((features - mean) / deviation).flatten(1).numpy()                  # (n, P)

    # 2. Ridge regression learns from the rated clips, and predicts the MOS of all clips.
    raw = features.flatten(1).numpy()  # ridge() standardises by itself, over the rated clips
    penalty = best_penalty(raw[rated], mos[rated], fold)
    ridge_mos = ridge(raw[rated], mos[rated], raw, [penalty])[0]            # (n,)

    # 3. The axes are those of all clips, rated or not. In the pivot, penalty * P / r, the number r
    # is that of the rated clips, because ridge regression has learned from these. (If some clips
    # are unrated, `kept` is only roughly the factor of ridge regression, because the axes and the
    # variances are those of all clips.)
    position, kept, axes = principal_axes(z, penalty * z.shape[1] / rated.sum())

    # 4. V makes 1 + C guesses about a clip: y_0 about the MOS and, for each class c, y_c about
    # whether the clip is in this class.
    #
    # Let position_a be the coordinate of a clip along the axis a, with the mean 0 and the standard
    # deviation 1 over the training clips. The coordinates along different axes are uncorrelated.
    # For such coordinates least squares gives a simple result: the weight of position_a is
    # mean(target * position_a), the covariance of target and coordinate.
    #
    # But V reads x_a, which is position_a * kept_a. If V simply takes these weights, every term of
    # the guess is multiplied by kept_a, as in ridge regression (see principal_axes()). We call such
    # a guess shrunk. If V takes the weights divided by kept_a, the guess is not shrunk.
    #
    # The guesses y_c are shrunk, because nothing else keeps their weights small. The target of y_c
    # is one_hot_c, which is 1 for the clips of class c and else 0:
    #
    #     y_c = sum over the axes a of  x_a mean(one_hot_c * position_a)
    #
    # y_c predicts how far one_hot_c is above its mean. This mean is share_c, the share of clips
    # that are in class c. So share_c + y_c is a rough estimate of the probability that a clip is in
    # class c. (It may be below 0 or above 1.)
    #
    # y_0 is not shrunk, because its target is shrunk already: it is ridge_mos, a prediction of
    # ridge regression. (The target is not the MOS, because some clips have none.)
    #
    #     y_0 = sum over the axes a of  (x_a / kept_a) mean(ridge_mos * position_a)
    #
    # This is the prediction of ridge regression minus the mean of these predictions. (It is not
    # quite exact, because x lacks the axes that were left out, and because ridge() standardises
    # slightly differently.)
    one_hot = np.eye(classes)[label]                                        # (n, C)
    of_mos = ridge_mos @ position / len(z) / kept                           # (A,), for y_0
    of_classes = one_hot.T @ position / len(z)                              # (C, A), for y_c

    # 5. The softmax of the logits should give the probabilities. It does if logit_c is log(share_c
    # + y_c), because the estimates share_c + y_c of a clip sum to 1. (The targets one_hot_c of a
    # clip sum to 1, and so do their estimates.) The classification head is linear, and so it starts
    # as the tangent to this logarithm at y_c = 0:
    #
    #     logit_c = log share_c + y_c / share_c
    #
    # The tangent is near the logarithm only if y_c is small beside share_c. If y_c is large, the
    # softmax is too sure of class c. (The predicted MOS does not depend on the softmax, see below.)
    #
    # The MOS head starts as the mean of two predictions:
    #
    #     mean(ridge_mos) + y_0                                        by ridge regression
    #     sum over the classes c of  (share_c + y_c) MOS_c             by the classes
    #
    # MOS_c is the mean MOS of the clips of class c; for clips without MOS, ridge_mos is taken.
    # (If there is only one class, its y_1 is 0, and the MOS head starts as the first of the two.)
    #
    # An example: two classes of the same size have MOS_1 = -1 and MOS_2 = 1 (a standardised MOS may
    # be negative), and ridge_mos has the mean 0. For some clip y is (0.4, 0.1, -0.1). The
    # probabilities are .5 + .1 and .5 - .1, so the classes predict .6 * -1 + .4 * 1 = -.2. Ridge
    # regression predicts .4. The MOS head gives their mean, .1. The logits are log .5 + .2 and log
    # .5 - .2; their softmax is .599 and .401.
    share = one_hot.mean(0)                                                 # (C,)
    class_mos = one_hot.T @ np.where(rated, mos, ridge_mos) / one_hot.sum(0)  # (C,)
    averaged = 2 if classes > 1 else 1  # how many of the two predictions the MOS head averages
    weights = {
        "mean": mos_mean, "deviation": mos_deviation, "penalty": penalty,
        "fusion.mean": mean, "fusion.deviation": deviation, "fusion.axes": axes,
        "moe.linear.weight": np.vstack([of_mos, of_classes]),
        "class_head.weight": np.hstack([np.zeros((classes, 1)), np.diag(1 / share)]),
        "class_head.bias": np.log(share),
        "mos_head.weight": np.hstack([1, class_mos])[None] / averaged,
        "mos_head.bias": np.mean([ridge_mos.mean(), share @ class_mos][:averaged], keepdims=True)}
    return {name: torch.as_tensor(value).float() for name, value in weights.items()}


# -- Losses (III.B, III.C) -------------------------------------------------------------------------
#
# The paper says that its two regularisers keep one expert from doing everything, and gives no
# equations for them. We use two losses of SpeechMoE (arXiv 2105.03036), which is our choice. By
# these definitions, only L_diversity can keep one expert from doing everything. L_sparsity is small
# if each clip uses few experts, even if they are the same for all clips.

def mos_loss(predicted, mos):
    """Smooth L1. With d = predicted - mos it is the mean over the clips of

        d^2 / 2  where |d| < 1,  else  |d| - 1/2

    Ours: the square turns into a line at 1; clips without MOS (NaN) are left out of the mean; and
    if no clip has a MOS, the loss is 0."""
    known = ~mos.isnan()
    total = nn.functional.smooth_l1_loss(predicted[known], mos[known], reduction="sum")
    return total / known.sum().clamp_min(1)


def classification_loss(logits, label):
    """Cross entropy: the mean over the clips of -log softmax(logits)[label]. logits: (B, C).
    label: (B,) int."""
    return nn.functional.cross_entropy(logits, label)


def diversity_loss(gates):
    """(B, E) gates -> E sum_j p_j^2, where p is the mean gate over the clips. It is 1 if all
    experts have equal shares, and E if one has everything. Our choice is SpeechMoE's mean
    importance loss, which its authors use to "improve the diversity of gate values"."""
    return gates.shape[1] * gates.mean(0).square().sum()


def sparsity_loss(gates):
    """(B, E) gates -> the mean over clips of sum_j g_j / sqrt(sum_j g_j^2). It is 1 if each clip
    has one expert, and sqrt(E) if all experts count the same. This is SpeechMoE's sparsity L1 loss
    (our choice). Without the division it would always be 1, as a softmax sums to 1."""
    return (gates.sum(1) / gates.norm(dim=1)).mean()


def losses(output, mos, label, alpha, beta, lambda_1, lambda_2, deviation=1.0):
    """The terms of the loss, and their weighted sum as "total": a dict of scalars.

        total = alpha L_MOS + beta L_classification + lambda_1 L_diversity + lambda_2 L_sparsity

    That all four are added in one sum is how we read the paper (ours).

    mos: (B,), NaN where a clip has none. label: (B,) int. deviation: the standard deviation of the
    training MOS, by which errors of the MOS are divided (ours). Raises ValueError if `mos` and
    output.mos differ in shape, because PyTorch would silently make (B, B) of (B, 1) minus (B,)."""
    if mos.shape != output.mos.shape:
        raise ValueError(f"MOS {tuple(mos.shape)} must be {tuple(output.mos.shape)}")
    terms = {
        "mos": mos_loss(output.mos / deviation, mos / deviation),
        "classification": classification_loss(output.logits, label),
        "diversity": diversity_loss(output.gates),
        "sparsity": sparsity_loss(output.gates)}
    terms["total"] = (alpha * terms["mos"] + beta * terms["classification"]
                      + lambda_1 * terms["diversity"] + lambda_2 * terms["sparsity"])
    return terms


# -- Metrics (IV): in float64, over all clips or systems at once, never means of batches -----------

def mse(predicted, true):
    """The mean of (p - t)^2; NaN without clips."""
    p, t = _pair(predicted, true)
    return float(np.mean((p - t) ** 2)) if len(p) else float("nan")


def lcc(predicted, true):
    """Pearson's correlation: cov(p, t) / (sd(p) sd(t)); NaN if why_undefined() gives a reason."""
    p, t = _pair(predicted, true)
    if why_undefined(p, t):
        return float("nan")
    p, t = p - p.mean(), t - t.mean()
    return float(np.sum(p * t) / np.sqrt(np.sum(p ** 2) * np.sum(t ** 2)))


def srcc(predicted, true):
    """Spearman's: the LCC of the ranks; NaN if why_undefined() gives a reason."""
    return float("nan") if why_undefined(predicted, true) else lcc(ranks(predicted), ranks(true))


def ranks(values):
    """(n,) -> ranks from 1; equal values share their mean rank. Values that agree in float32 count
    as equal (ours), because equal means can differ in their last bits."""
    _, place, ties = np.unique(np.float32(values), return_inverse=True, return_counts=True)
    mean_rank = np.cumsum(ties) - (ties - 1) / 2  # the last rank of a tie, minus (size - 1) / 2
    return mean_rank[place]


def ktau(predicted, true):
    """Kendall's tau-b (the paper does not say which tau; this is ours): pairs in the same order
    minus pairs in opposite order, divided by sqrt(pairs not tied in p * pairs not tied in t). NaN
    if why_undefined() gives a reason."""
    from scipy.stats import kendalltau  # here, so that --help need not wait for it
    if why_undefined(predicted, true):
        return float("nan")
    return float(kendalltau(ranks(predicted), ranks(true)).statistic)


METRICS = {"MSE": mse, "LCC": lcc, "SRCC": srcc, "KTAU": ktau}


def system_means(values, system):
    """(n,) values and the system of each -> the mean of each system, in order of the systems' names
    (IV). All values of a system count the same (ours)."""
    values, system = np.asarray(values, np.float64), np.asarray(system)
    return np.array([values[system == name].mean() for name in np.unique(system)])


def levels(predicted, true, system):
    """(n,) each -> {"utterance": (predicted, true), "system": (mean predicted, mean true)}."""
    return {"utterance": _pair(predicted, true),
            "system": (system_means(predicted, system), system_means(true, system))}


def metrics(predicted, true, system):
    """The eight numbers: {"utterance MSE": ..., "utterance LCC": ..., ..., "system KTAU": ...}."""
    return {f"{level} {name}": metric(*pair)
            for level, pair in levels(predicted, true, system).items()
            for name, metric in METRICS.items()}


def why_undefined(predicted, true):
    """Why LCC, SRCC and KTAU cannot be computed, as text; "" if they can."""
    p, t = _pair(predicted, true)
    if len(p) < 2:
        return f"{len(p)} values, two are needed"
    if not (np.isfinite(p).all() and np.isfinite(t).all()):
        return "a value is not finite"
    for values, name in ((p, "predictions"), (t, "true scores")):
        if np.ptp(np.float32(values)) == 0:  # equal in float32, as in ranks()
            return f"the {name} are all equal"
    return ""


def _pair(predicted, true):
    p, t = np.asarray(predicted, np.float64), np.asarray(true, np.float64)
    if p.shape != t.shape or p.ndim != 1:
        raise ValueError("predicted and true must both be (n,), with the same n, not "
                         f"{p.shape} and {t.shape}")
    return p, t


# -- A diagnosis (ours) ----------------------------------------------------------------------------

def gate_entropies(gates):
    """The entropy of gates g is -sum_j g_j log g_j, with the natural logarithm.
    (B, E) gates -> two numbers: the entropy of each clip's gates, averaged over the clips; and the
    entropy of the averaged gates.

        mean entropy of a clip    entropy of the mean gate
        low                       low           collapse: one expert does everything
        low                       high          specialised: each clip has its expert
        high                      high          all experts count for every clip

    (The second entropy is never less than the first.)
    """
    entr = torch.special.entr  # entr(g) = -g log g, and 0 where g is 0
    return entr(gates).sum(1).mean(), entr(gates.mean(0)).sum()


# -- What follows is not part of the method: where a backbone comes from ---------------------------

def load_backbone(name, device="cpu"):
    """Loads a Backbone. Three kinds of name are possible. (1) The name of a torchaudio bundle, a
    network whose weights are in torch.hub's folder or are downloaded into it. (2) "logmel". (3) The
    name of a Python module of your own; its load() gives (network, sample_rate), and the network
    has an extract_features() like that of LogMel. Raises ValueError for any other name, and
    whatever torchaudio raises if it cannot get the weights."""
    bundle, code = torchaudio_bundle(name), ""
    with contextlib.redirect_stdout(sys.stderr):  # torch.hub prints that it downloads
        if name == "logmel":
            network, sample_rate = LogMel(), 16000
        elif bundle is not None:
            sample_rate = int(bundle.sample_rate)
            # To load a file of weights could run code in it; weights_only prevents that.
            network = bundle.get_model(dl_kwargs={"weights_only": True})
        else:
            network, sample_rate, code = load_module(name)
    return Backbone(name, network, sample_rate, device, code)


def fingerprint(network, frames, code):
    """A text by which a network is recognised. It depends on three things: the weights; `code`, the
    source code from load_module(), or "" if there is none; and the frames (L, F, D) that the
    network gives for a second of noise. The frames enter as one number, rounded to two digits,
    because machines differ slightly. A change in any other source code is noticed only if it
    clearly changes the frames."""
    statistics = pool_statistics(frames).flatten().cpu().double()
    # The features are summed with factors from 1 to 2, so that their order matters, too.
    ramp = torch.linspace(1, 2, len(statistics), dtype=torch.float64)
    digest = hashlib.sha256(f"{code} {tuple(frames.shape)} {statistics @ ramp:.1e}".encode())
    for key, tensor in network.state_dict().items():
        content = tensor.cpu().flatten().view(torch.uint8)  # as bytes; numpy lacks some types
        digest.update(key.encode() + content.numpy().tobytes())
    return digest.hexdigest()


def torchaudio_bundle(name):
    """The bundle of that name, or None."""
    bundle = getattr(torchaudio.pipelines, name, None)
    return bundle if isinstance(bundle, torchaudio.pipelines.Wav2Vec2Bundle) else None


def load_module(name):
    """A module of your own -> (network, sample_rate, the source code of this module and of the
    module that defines the network's class)."""
    try:
        module = importlib.import_module(name)
        load = module.load
    except (ImportError, AttributeError, TypeError) as error:
        raise ValueError(f"there is no backbone {name!r:.80} ({error!s:.80}); choose logmel, a "
                         "Wav2Vec2Bundle of torchaudio or a module that has load(), beside "
                         "train.py or on PYTHONPATH") from None
    with torch.random.fork_rng([]):
        torch.manual_seed(0)  # so that weights drawn at random are the same every time
        found = load()
    if not (isinstance(found, tuple) and len(found) == 2 and isinstance(found[0], nn.Module)
            and isinstance(found[1], (int, np.integer)) and found[1] > 0):
        raise ValueError(f"load() of {name} must give a torch module and its rate in whole Hz")
    try:
        code = inspect.getsource(module) + inspect.getsource(inspect.getmodule(type(found[0])))
    except (OSError, TypeError):
        raise ValueError(f"the .py file of {name} is missing; put it where the module is") from None
    return *found, code


class LogMel(nn.Module):
    """A stand-in for a wav2vec2 whose weights are missing (ours). It computes spectra, and has
    learned nothing about speech.

    It has two "layers". One is the log-mel spectrum: every 10 ms it takes a window of 25 ms, and
    computes the logarithm of the energy in 80 bands of frequency. These are narrow at low
    frequencies and wide at high ones. The other layer is how fast this spectrum changes. Every clip
    is first brought to the same level, so that how loud it is does not count. The wav2vec2 networks
    of torchaudio hardly hear how loud a clip is, either."""

    def __init__(self):
        super().__init__()
        self.mel = torchaudio.transforms.MelSpectrogram(
            16000, n_fft=512, win_length=400, hop_length=160, n_mels=80)
        # The last bits of the window and the filters differ between machines. So they are not
        # stored among the weights, from which the fingerprint is computed.
        for part, name in ((self.mel.spectrogram, "window"), (self.mel.mel_scale, "fb")):
            part.register_buffer(name, getattr(part, name), persistent=False)

    def extract_features(self, waveforms):
        """(1, T) -> (two tensors (1, F, D), None), as torchaudio's networks do; 100 frames/s."""
        level = waveforms.square().mean().sqrt().clamp_min(1e-6)  # root mean square, not 0
        log = (self.mel(waveforms / level) + 1e-3).log()  # a log of nearly 0 would be noise
        change = torchaudio.functional.compute_deltas(log).abs()
        return [layer.transpose(1, 2) for layer in (log, change)], None
