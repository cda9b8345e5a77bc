"""Write the method yourself: arXiv 2507.06116, in the order in which a clip goes through it.

Replace each `raise NotImplementedError` by your code, in any order. If this file is mine.py, run

    python -m course mine.py              as often as you like: what is right, what is wrong and why
    python -m course mine.py --train      when all is right: your code trains, and is compared with
                                          the core, which is this repository's own code

Anything in torch and numpy may be used. Your functions may call each other, and helpers of your
own; while one function is checked, right ones stand in for the others. Letters of dimensions:

    B clips of a batch   n clips in all   F frames   L layers of the backbone   D width of a layer
    E experts            C classes        K = 1 + C numbers an expert gives     P features of a clip

Roman numerals are sections of the paper; what the paper leaves open and we chose is marked "ours".
"""

import math

import numpy as np
import torch
from torch import nn


def pool_statistics(frames):
    """Mean and deviation over time (ours; III.B only speaks of features).

    frames: tensor (L, F, D), what the backbone makes of one clip.
    Returns (L, 2D): in each layer first the D means over the frames, then the D standard
    deviations, sqrt(mean of (frame - mean)^2): divided by F, not by F - 1. A clip of one frame
    therefore has the deviation 0."""
    raise NotImplementedError


def standardise(features, training):
    """Brings every feature to one scale, before anything is learned from them (ours).

    features: tensor (B, L, 2D), the clips of a batch. training: (n, L, 2D), all training clips.
    Returns (B, L, 2D): (feature - mean) / deviation. Each of the L x 2D features has a mean and a
    deviation of its own, taken over the n training clips; the deviation is divided by n, and
    where it is below 0.001, it is taken to be 0.001."""
    raise NotImplementedError


def softmax_gate(scores):
    """The gate: how much of each expert a clip gets (III.B).

    scores: tensor (B, E), any real numbers, perhaps large ones such as 1000.
    Returns g, (B, E): g_i = exp(score_i) / sum_j exp(score_j), the sum over the E experts of the
    same clip, so that each row sums to one. No expert is left out."""
    raise NotImplementedError


def gated_sum(gates, experts):
    """The combination of the experts: y = sum_i g_i E_i (III.B).

    gates: tensor (B, E). experts: (B, E, K), the K numbers that each expert says of each clip.
    Returns y, (B, K): for each clip the sum over its experts, weighted by the clip's gates."""
    raise NotImplementedError


def mos_loss(predicted, mos):
    """Smooth L1 of the MOS, over the clips that have one (III.C).

    predicted: tensor (B, 1), as a layer with one output gives it. mos: (B,), NaN where a clip has
    no MOS. Returns a tensor without dimensions (a scalar): the mean, over those clips that have a
    MOS, of d^2 / 2 where |d| < 1, else |d| - 1/2, with d = predicted - mos (that it turns at 1 is
    ours). Where no clip of the batch has a MOS, it is torch.tensor(0.0), with or without a
    gradient. The gradient must be free of NaN as well."""
    raise NotImplementedError


def diversity_loss(gates):
    """Are all experts used? One of the two regularisers (III.B; its equation is ours).

    gates: tensor (B, E), after the softmax. Returns a tensor without dimensions:
    E sum_j p_j^2, where p_j is the mean of gate j over the B clips. It is 1 where all experts are
    used alike, and E where one does everything."""
    raise NotImplementedError


def sparsity_loss(gates):
    """Does a clip choose? The other regulariser (III.B; its equation is ours).

    gates: tensor (B, E), after the softmax; some may be exactly 0. Returns a tensor without
    dimensions: the mean over the B clips of |g|_1 / |g|_2, where |g|_1 is the sum of the clip's E
    gates and |g|_2 the root of the sum of their squares. It is 1 where a clip uses one expert, and
    sqrt(E) where it uses all alike."""
    raise NotImplementedError


def total_loss(mos_term, class_term, scores, alpha, lambda_1, lambda_2):
    """What training makes small (III.B, III.C; that beta = 1 - alpha is III.E).

    mos_term, class_term: the MOS loss and the cross entropy of the batch, tensors without
    dimensions. scores: (B, E), what the gate says before its softmax. The others are numbers;
    within this function the number alpha hides the function of that name.
    Returns a tensor without dimensions, alpha L_MOS + beta L_class + lambda_1 L_diversity
    + lambda_2 L_sparsity, where the last two are diversity_loss and sparsity_loss of the gates."""
    raise NotImplementedError


def learning_rate(step, steps, peak):
    """Cosine annealing (III.E), of single numbers, not tensors.

    step: 0, 1, ..., steps - 1, where `steps` is the number of steps of a stage. peak: the rate at
    step 0. Returns peak / 2 (1 + cos(pi step / steps)): half of the peak in the middle of
    the stage, and 0 when step equals steps."""
    raise NotImplementedError


def alpha(step, steps, start, end):
    """The weight of the MOS loss, which moves within a stage (III.E; that it is linear is ours).

    Single numbers: step is one of 0, 1, ..., steps - 1, where `steps` is the number of steps of a
    stage. Returns start at step 0, and end at the last step, which is steps - 1; on a straight line
    between. If `steps` is 1, it returns start."""
    raise NotImplementedError


def run_stage(model, features, loss_of, steps, peak, alpha_start, alpha_end, batch_size):
    """One stage of training: changes the weights of the model (III.E). Returns nothing.

    model: a torch module, model(features of B clips) gives its output. features: tensor
    (n, L, 2D) of all training clips. loss_of(output, rows, weight): the total loss, where output
    is the model's, rows are the (B,) indices of its clips, and weight is alpha of this step.

    Before the first step make a new torch.optim.AdamW of the model's parameters (nothing else set).
    In each step, counted from 0, with the model in training mode:
    1. set the optimiser's rate, optimiser.param_groups[0]["lr"], to learning_rate of this step;
    2. draw the batch: the first batch_size of torch.randperm(n), a new draw each step (ours);
    3. run the model on the batch, once, and compute the loss, with alpha of this step;
    4. compute the gradient of this loss alone, nothing left from earlier steps;
    5. clip the gradient's norm over all parameters to 1.0 (torch.nn.utils.clip_grad_norm_);
    6. let the optimiser step."""
    raise NotImplementedError


def predict(model, features):
    """The MOS of clips that are to be judged (IV; how it is computed is ours).

    model: a torch module as training left it, perhaps in training mode, where dropout is random;
    model(features).mos is (B,). features: tensor (B, L, 2D).
    Returns a tensor (B,): what the model says, neither cut nor rounded, the same on every call,
    and with no gradient attached."""
    raise NotImplementedError


def lcc(predicted, true):
    """The linear correlation coefficient of Pearson (IV), over all n clips at once.

    predicted, true: numpy arrays (n,). Returns a number:
    sum (p - mean p)(t - mean t) / sqrt(sum (p - mean p)^2 sum (t - mean t)^2), and NaN
    (math.nan) where all of p or all of t are equal, or n is below 2. Numbers are all equal where
    their smallest is equal to their largest. Their deviation does not tell, as it may differ from 0
    by rounding."""
    raise NotImplementedError


def srcc(predicted, true):
    """The rank correlation of Spearman (IV): Pearson's correlation of the ranks.

    predicted, true: numpy arrays (n,). A value's rank is its place, from 1, when the values are
    sorted; equal values all get the mean of the places that they take: 3, 5, 5, 9 have the ranks 1,
    2.5, 2.5, 4. Two means that should be equal may differ in their last digits by rounding, and so
    two values count as equal if they are equal as np.float32 (ours). Returns a number, NaN where
    lcc of the ranks is."""
    raise NotImplementedError


def system_means(values, system):
    """System level: the plain mean of the clips of each system (IV).

    values: numpy array (n,). system: numpy array (n,) of the names of the systems, in any order;
    systems may have different numbers of clips.
    Returns a numpy array with a mean for each different name, in the order of sorted names."""
    raise NotImplementedError


def ridge(x, y, new, penalty):
    """Ridge regression: the linear model that the network has to beat (ours).

    Numpy arrays: x (n, P) features and y (n,) MOS of the training clips, new (m, P) features of m
    other clips. penalty: a number. Returns a numpy array (m,), the MOS that it predicts for them.
    Standardise each feature of x by its mean and deviation over the n training clips (divided by
    n), and new by the same ones. Where a deviation is at most 1e-6 |mean|, the feature differs only
    by rounding, and counts as 0 everywhere. Then find w, a weight for each feature, for which
    |x w - (y - mean y)|^2 + penalty * P * |w|^2 is least, where P is the number of features. It
    solves (x'x + penalty * P * identity) w = x' (y - mean y), with x' for x transposed and the
    (P, P) identity matrix. The prediction is mean y + new w."""
    raise NotImplementedError
