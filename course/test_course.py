"""Tests of the course: what the checker says about a file that a student has filled in."""

import ast
import contextlib
import inspect
import math
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import stats

import course.__main__ as program
import data
import evaluate
import moemos
import train
from course import check, mistakes, template, train_mine
from test_moemos import call, no_network, quick, small_corpus  # noqa: F401 - fixture

SOLVED = '''
import math

import numpy as np
import torch
from torch import nn


def pool_statistics(frames):
    mean = frames.mean(dim=1)
    variance = ((frames - mean[:, None, :]) ** 2).mean(dim=1)
    return torch.cat([mean, variance.sqrt()], dim=1)


def standardise(features, training):
    mean = training.mean(dim=0)
    deviation = training.std(dim=0, correction=0)
    deviation = torch.clamp(deviation, min=0.001)
    return (features - mean) / deviation


def softmax_gate(scores):
    scores = scores - scores.max(dim=1, keepdim=True).values
    e = torch.exp(scores)
    return e / e.sum(dim=1, keepdim=True)


def gated_sum(gates, experts):
    y = 0
    for i in range(gates.shape[1]):
        y = y + gates[:, i:i + 1] * experts[:, i]
    return y


def mos_loss(predicted, mos):
    predicted = predicted.squeeze(1)
    rated = ~torch.isnan(mos)
    if rated.sum() == 0:
        return 0 * predicted.sum()
    return nn.functional.smooth_l1_loss(predicted[rated], mos[rated])


def diversity_loss(gates):
    p = gates.mean(dim=0)
    return gates.shape[1] * (p ** 2).sum()


def sparsity_loss(gates):
    l1 = gates.sum(dim=1)
    l2 = (gates ** 2).sum(dim=1).sqrt()
    return (l1 / l2).mean()


def total_loss(mos_term, class_term, scores, alpha, lambda_1, lambda_2):
    gates = softmax_gate(scores)
    beta = 1 - alpha
    return (alpha * mos_term + beta * class_term
            + lambda_1 * diversity_loss(gates) + lambda_2 * sparsity_loss(gates))


def learning_rate(step, steps, peak):
    return peak / 2 * (1 + math.cos(math.pi * step / steps))


def alpha(step, steps, start, end):
    if steps == 1:
        return start
    return start + (end - start) * step / (steps - 1)


def run_stage(model, features, loss_of, steps, peak, alpha_start, alpha_end, batch_size):
    model.train()
    optimiser = torch.optim.AdamW(model.parameters())
    for step in range(steps):
        optimiser.param_groups[0]["lr"] = learning_rate(step, steps, peak)
        rows = torch.randperm(len(features))[:batch_size]
        output = model(features[rows])
        weight = alpha(step, steps, alpha_start, alpha_end)
        loss = loss_of(output, rows, weight)
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()


def predict(model, features):
    model.eval()
    with torch.no_grad():
        mos = model(features).mos
    return mos


def lcc(predicted, true):
    if len(predicted) < 2 or np.ptp(predicted) == 0 or np.ptp(true) == 0:
        return math.nan
    p = predicted - predicted.mean()
    t = true - true.mean()
    return (p * t).sum() / np.sqrt((p ** 2).sum() * (t ** 2).sum())


def ranks(values):
    values = np.float32(values)
    result = np.zeros(len(values))
    for i, value in enumerate(values):
        below = (values < value).sum()
        equal = (values == value).sum()
        result[i] = below + (equal + 1) / 2
    return result


def srcc(predicted, true):
    return lcc(ranks(predicted), ranks(true))


def system_means(values, system):
    means = []
    for name in sorted(set(system)):
        means.append(values[system == name].mean())
    return np.array(means)


def ridge(x, y, new, penalty):
    mean = x.mean(axis=0)
    deviation = x.std(axis=0)
    deviation[deviation <= 1e-6 * np.abs(mean)] = np.inf
    x = (x - mean) / deviation
    new = (new - mean) / deviation
    features = x.shape[1]
    left = x.T @ x + penalty * features * np.eye(features)
    w = np.linalg.solve(left, x.T @ (y - y.mean()))
    return y.mean() + new @ w
'''

# {function: [(a text in the solved file, what a student wrote instead, how the checker's sentence
# begins), ...]}. They are written as by somebody who has not seen mistakes.md.
PLANTED = {
    "pool_statistics": [
        ("    return torch.cat([mean, variance.sqrt()], dim=1)",
         "    return torch.cat([mean, frames.std(dim=1)], dim=1)",
         "The deviation is divided by F - 1"),
        ("variance.sqrt()", "variance", "The second half is the variance."),
        ("[mean, variance.sqrt()]", "[variance.sqrt(), mean]", "The deviations stand before"),
        ("variance.sqrt()], dim=1", "variance.sqrt()], dim=0", "Means and deviations are joined"),
        ("""    mean = frames.mean(dim=1)
    variance = ((frames - mean[:, None, :]) ** 2).mean(dim=1)""",
         """    mean = frames.mean(dim=0)
    variance = ((frames - mean) ** 2).mean(dim=0)""",
         "Mean and deviation are taken over the layers"),
        ("torch.cat([mean, variance.sqrt()], dim=1)",
         "torch.stack([mean, variance.sqrt()], 2).reshape(len(frames), -1)",
         "Means and deviations take turns."),
    ],
    "standardise": [
        ("deviation = training.std(dim=0, correction=0)", "deviation = training.std(dim=0)",
         "The deviation is divided by n - 1"),
        ("""    mean = training.mean(dim=0)
    deviation = training.std""", """    mean = features.mean(dim=0)
    deviation = features.std""", "The mean and deviation are those of the batch"),
        ("deviation = torch.clamp(deviation, min=0.001)", "deviation = deviation",
         "A feature that hardly varies"),
        ("deviation = torch.clamp(deviation, min=0.001)", "deviation = deviation + 0.001",
         "0.001 is added to every deviation"),
        ("""training.mean(dim=0)
    deviation = training.std(dim=0, correction=0)""", """training.mean()
    deviation = training.std(correction=0)""", "There is one mean and one deviation"),
        ("    mean = training",
         "    training = torch.cat([features, training])\n    mean = training",
         "The mean and deviation are those of the training clips and the batch"),
        ("""training.mean(dim=0)
    deviation = training.std(dim=0, correction=0)""", """training.mean(dim=(0, 1))
    deviation = training.std(dim=(0, 1), correction=0)""", "The layers share their means"),
    ],
    "softmax_gate": [
        ("e.sum(dim=1, keepdim=True)", "e.sum(dim=0, keepdim=True)",
         "The softmax runs over the wrong axis"),
        ("e.sum(dim=1, keepdim=True)", "e.sum()", "The sum runs over all clips and experts"),
        ("e.sum(dim=1, keepdim=True)", "e.sum(dim=1)", "The sums over the experts have lost"),
        ("scores = scores - scores.max(dim=1, keepdim=True).values", "pass",
         "exp of a large score is infinite"),
        ("    scores = scores -", "    return 1 / (1 + torch.exp(-scores))\n    scores -",
         "This is a sigmoid"),
        ("torch.exp(scores)", "torch.exp(scores).detach()", "The value is right, but no gradient"),
        ("scores.max(dim=1, keepdim=True).values", "scores.max()",
         "The largest score of the whole batch is subtracted"),
        ("scores - scores.max(dim=1, keepdim=True).values", "scores.clamp(max=80)",
         "Large scores are cut"),
        ("    return e /", """    kept = torch.zeros_like(e).scatter(1, e.topk(2, dim=1).indices, 1)
    e = e * kept
    return e /""", "Only the two experts with the largest scores"),
        ("    scores = scores -",
         "    return scores / scores.sum(dim=1, keepdim=True)\n    scores = scores -",
         "The scores themselves are divided by their sum"),
    ],
    "gated_sum": [
        ("    return y", "    return y / gates.shape[1]", "This is the mean over the experts and"),
        ("    return y", "    return (gates[:, None, :] * experts).sum(1)",
         "The gates are laid along the K numbers"),
        ("    return y", "    return y.sum(0)", "The clips are added up as well."),
        ("gates[:, i:i + 1] * experts[:, i]", "experts[:, i] / gates.shape[1]",
         "This is the plain mean of the experts"),
        ("    return y", "    return torch.matmul(gates, experts)", "The gates of every clip are"),
        ("    return y", "    return (gates.unsqueeze(-1) * experts).sum(-1)",
         "The sum runs over the K numbers"),
    ],
    "mos_loss": [
        ("    predicted = predicted.squeeze(1)\n", "", "(B, 1) minus (B,) is (B, B)"),
        ("    rated = ~torch.isnan(mos)", "    rated = torch.ones(len(mos), dtype=torch.bool)",
         "The NaN of the clips without MOS"),
        ("    rated = ~torch.isnan(mos)",
         "    mos = torch.nan_to_num(mos, 0.0)\n    rated = mos > -math.inf",
         "Clips without MOS are counted as if"),
        ("    if rated.sum() == 0:\n        return 0 * predicted.sum()\n", "",
         "The mean over no clips is NaN."),
        ("smooth_l1_loss", "mse_loss", "This is the squared error."),
        ("smooth_l1_loss", "l1_loss", "This is the absolute error"),
        ("    return nn.functional.smooth_l1_loss(predicted[rated], mos[rated])",
         """    each = nn.functional.smooth_l1_loss(predicted, mos, reduction='none')
    return torch.where(rated, each, 0.0).sum() / rated.sum()""",
         "The value is right, but its gradient is NaN."),
        ("mos[rated])", "mos[rated], reduction='sum') / len(mos)",
         "The sum over the rated clips is divided by the number of all clips."),
        ("mos[rated])", "mos[rated], reduction='sum')", "This is the sum over the rated clips."),
        ("    return nn.functional.smooth_l1_loss(predicted[rated], mos[rated])",
         """    d = predicted[rated] - mos[rated]
    return torch.where(d < 1, 0.5 * d * d, abs(d) - 0.5).mean()""",
         "The square is taken wherever d is below 1"),
    ],
    "diversity_loss": [
        ("    return gates.shape[1] * (p", "    return (p", "The factor E is missing"),
        ("gates.mean(dim=0)", "gates.mean(dim=1)", "The mean is taken over the experts"),
        ("gates.mean(dim=0)", "gates.sum(dim=0)", "The gates are added up over the clips"),
        ("gates.mean(dim=0)", "torch.softmax(gates, dim=1).mean(dim=0)", "The gates are sent"),
        ("    p = gates.mean(dim=0)", "    p = (gates ** 2).mean(dim=0).sqrt()",
         "The gates are squared before the mean"),
        ("(p ** 2).sum()", "(p ** 2).sum().detach()", "The value is right, but no gradient flows"),
        ("gates.shape[1]", "gates.shape[0]", "The factor is B"),
        ("(p ** 2).sum()", "p.norm()", "A root is taken"),
        ("(p ** 2).sum()", "p.sum() ** 2", "The mean gates are added up before"),
    ],
    "sparsity_loss": [
        ("l1 / l2", "l1", "This is |g|_1 alone."),
        ("l1 / l2", "l2 / l1", "The fraction is upside down"),
        ("(l1 / l2).mean()", "(l1 / l2).sum()", "This is the sum over the clips"),
        ("""sum(dim=1)
    l2 = (gates ** 2).sum(dim=1)""", """sum(dim=0)
    l2 = (gates ** 2).sum(dim=0)""", "The norms are taken over the clips."),
        ("    return (l1 / l2).mean()", "    return -(gates * torch.log(gates)).sum(dim=1).mean()",
         "This is the entropy of the gates."),
        ("    l1 =", "    gates = gates.mean(dim=0, keepdim=True)\n    l1 =",
         "The mean over the clips is taken first."),
        (".sum(dim=1).sqrt()", ".sum(dim=1)", "The root is missing"),
        ("(gates ** 2).sum(dim=1)", "(gates ** 2).mean(dim=1)", "|g|_2 is computed with the mean"),
        ("gates.sum(dim=1)\n", "gates.mean(dim=1)\n", "|g|_1 is computed as the mean"),
        ("(l1 / l2).mean()", "l1.mean() / l2.mean()", "This is the mean of |g|_1 divided"),
    ],
    "total_loss": [
        ("diversity_loss(gates) + lambda_2 * sparsity_loss(gates)",
         "diversity_loss(scores) + lambda_2 * sparsity_loss(scores)",
         "The regularisers were given the scores"),
        ("alpha * mos_term + beta * class_term", "beta * mos_term + alpha * class_term",
         "alpha and beta are exchanged"),
        ("beta = 1 - alpha", "beta = 1", "The cross entropy has the weight 1."),
        ("lambda_1 * diversity_loss(gates) + lambda_2",
         "lambda_2 * diversity_loss(gates) + lambda_1",
         "lambda_1 and lambda_2 are exchanged"),
        ("+ lambda_1 * diversity_loss(gates) + lambda_2",
         "- lambda_1 * diversity_loss(gates) - lambda_2", "The regularisers are subtracted."),
        ("softmax_gate(scores)", "softmax_gate(softmax_gate(scores))",
         "The scores are sent through the softmax twice."),
        ("softmax_gate(scores)", "softmax_gate(scores).detach()",
         "The value is right, but no gradient of the regularisers"),
    ],
    "learning_rate": [
        ("peak / 2", "peak", "The factor 1/2 is missing"),
        ("peak / 2 * (1 + math.cos(math.pi * step / steps))", "peak * (steps - step) / steps",
         "The rate falls along a straight line"),
        ("peak / 2 * (1 + math.cos(math.pi * step / steps))",
         "peak * math.cos(math.pi * step / steps)", "The rate is negative in the second half"),
        ("math.pi", "180", "The angle is in degrees"),
        ("step / steps", "step / (steps - 1)", "The rate is 0 one step too early"),
        ("1 + math", "1 - math", "The rate rises from 0"),
        ("math.pi * ", "", "The factor pi is missing"),
        ("step / steps", "(step + 1) / steps", "It is the rate of the next step."),
        ("peak / 2 * (1 + math.cos(math.pi * step / steps))",
         "peak * (1 + math.cos(math.pi * step / steps) / 2)", "Only the cosine is halved."),
    ],
    "alpha": [
        ("step / (steps - 1)", "step / steps", "It does not arrive at the end."),
        ("    if steps == 1:\n        return start\n", "", "A stage of one step divides by 0"),
        ("start + (end - start)", "end + (start - end)", "It moves from end to start."),
        ("    return start + (end - start) * step / (steps - 1)", "    return start",
         "It does not move"),
        ("        return start\n", "        return end\n", "A stage of one step has end."),
        ("(end - start) * step / (steps - 1)", "(end - start) * (step // (steps - 1))",
         "It stays at start and jumps to end"),
        ("step / (steps - 1)", "(step + 1) / steps", "It has moved already at step 0"),
    ],
    "run_stage": [
        ("        optimiser.zero_grad()\n", "", "The gradients of earlier steps are still there"),
        ("""        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
""", """        optimiser.step()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
""",
         "The gradient is not clipped where it counts"),
        ("""        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
""", """        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        loss.backward()
""",
         "The gradient is not clipped where it counts"),
        ("clip_grad_norm_", "clip_grad_value_", "Each number of the gradient is clipped by itself"),
        ('optimiser.param_groups[0]["lr"]', "lr", "The rate is never set"),
        ("learning_rate(step, steps, peak)", "peak", "The rate stays at the peak."),
        ("alpha(step, steps, alpha_start, alpha_end)", "alpha_start", "alpha stays what it is"),
        ("    model.train()\n", "", "The model is in evaluation mode"),
        ("""    for step in range(steps):
        optimiser.param_groups[0]["lr"] = learning_rate(step, steps, peak)
        rows = torch.randperm(len(features))[:batch_size]
""", """    rows = torch.randperm(len(features))[:batch_size]
    for step in range(steps):
        optimiser.param_groups[0]["lr"] = learning_rate(step, steps, peak)
""", "Every step has the same batch."),
        ("AdamW", "Adam", "The optimiser is Adam and not AdamW"),
        ("        optimiser.step()\n", "", "The weights do not change at all."),
        ("    optimiser = torch.optim.AdamW(model.parameters())\n",
         """    global optimiser
    if "optimiser" not in globals():
        optimiser = torch.optim.AdamW(model.parameters())
""",
         "The second stage uses the optimiser of the first"),
        ("""    optimiser = torch.optim.AdamW(model.parameters())
    for step in range(steps):
""", """    for step in range(steps):
        optimiser = torch.optim.AdamW(model.parameters())
""",
         "Each step makes a new optimiser"),
        ("""        rows = torch.randperm(len(features))[:batch_size]
        output = model(features[rows])
        weight = alpha(step, steps, alpha_start, alpha_end)
        loss = loss_of(output, rows, weight)
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
""", """        for rows in torch.randperm(len(features)).split(batch_size):
            output = model(features[rows])
            weight = alpha(step, steps, alpha_start, alpha_end)
            loss = loss_of(output, rows, weight)
            optimiser.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimiser.step()
""", "Each step goes through all clips"),
        ("range(steps)", "range(steps + 1)", "There is one step too many."),
        ("range(steps)", "range(steps - 1)", "There is one step too few."),
        ("range(steps)", "range(1, steps + 1)", "The steps are counted from 1."),
        ("torch.randperm(len(features))[:batch_size]",
         "torch.randint(0, len(features), (batch_size,))", "The batches are drawn by torch.ran"),
        ("torch.randperm(len(features))[:batch_size]",
         "torch.tensor([(step * batch_size + i) % len(features) for i in range(batch_size)])",
         "The batches follow the order of the clips."),
        ("        loss.backward()\n", "        loss.backward()\n        optimiser.zero_grad()\n",
         "The weights do not change at all."),
    ],
    "predict": [
        ("    model.eval()\n", "", "The model is still in training mode."),
        ("    with torch.no_grad():\n        mos = model(features).mos",
         "    mos = model(features).mos", "The MOS is right, but a gradient is still attached"),
        ("    return mos", "    return mos.clamp(1, 5)", "The MOS is cut to the range from 1 to"),
        ("    return mos", "    return torch.round(mos)", "The MOS is rounded"),
        ("    return mos", "    return mos.round(decimals=2)", "The MOS is rounded"),
    ],
    "lcc": [
        ("    p = predicted - predicted.mean()\n    t = true - true.mean()",
         "    p = predicted\n    t = true", "The means are not subtracted."),
        ("(p * t).sum() / np", "(p * t).mean()\n    np", "This is the covariance."),
        ("    return (p * t).sum() / np.sqrt((p ** 2).sum() * (t ** 2).sum())",
         "    return (p * t).sum() / (len(p) - 1) / (p.std() * t.std())", "n and n - 1 are mixed"),
        ("(p * t).sum() / np.sqrt((p ** 2).sum() * (t ** 2).sum())",
         "(p * t).sum() ** 2 / ((p ** 2).sum() * (t ** 2).sum())", "This is the square of the"),
        ("return math.nan", "return 0", "Where all predictions are equal there is no correlation"),
        ("    p = predicted -", """    if len(predicted) > 32:
        batches = zip(np.split(predicted, [32, 64]), np.split(true, [32, 64]))
        return np.mean([lcc(p, t) for p, t in batches])
    p = predicted -""", "This is the mean of the correlations of batches"),
        ("return (p * t).sum() / np.sqrt((p ** 2).sum() * (t ** 2).sum())",
         "return (p * t).sum() / (np.std(predicted) * np.std(true))", "It is n times too large."),
        (" or np.ptp(predicted) == 0 or np.ptp(true) == 0", "",
         "Where all predictions are 3.3 the result is about 0"),
        ("""    if len(predicted) < 2 or np.ptp(predicted) == 0 or np.ptp(true) == 0:
        return math.nan
    p = predicted - predicted.mean()
""", """    if predicted.std() * true.std() == 0:
        return math.nan
    p = predicted - predicted.mean()
""", "Where all predictions are 3.3 the result is about 0"),
        (" or np.ptp(true) == 0", "", "Where all true values are 3.3 the result is about 0"),
    ],
    "srcc": [
        ("lcc(ranks(predicted), ranks(true))", "lcc(predicted.argsort(), true.argsort())",
         "argsort was taken for the ranks."),
        ("lcc(ranks(predicted), ranks(true))", "lcc(predicted, true)",
         "This is the correlation of the values themselves."),
        ("lcc(ranks(predicted), ranks(true))",
         "lcc(predicted.argsort(kind='stable').argsort(), true.argsort().argsort())",
         "Equal values get different ranks, by their order"),
        ("    return lcc", """    def ranks(values):
        return np.array([(values < value).sum() for value in values])
    return lcc""", "Equal values get the lowest of the places"),
        ("    return lcc", """    def ranks(values):
        return np.unique(values, return_inverse=True)[1]
    return lcc""", "Equal values count as one place"),
        ("    return lcc", """    def ranks(values):
        return np.array([(values < v).sum() + (values <= v).sum() for v in values])
    return lcc""", "Values that are equal but for rounding"),
        ("    return lcc(ranks(predicted), ranks(true))", """    n = len(true)
    d = ranks(predicted) - ranks(true)
    return 1 - 6 * (d ** 2).sum() / (n * (n ** 2 - 1))""",
         "1 - 6 sum d^2 / (n (n^2 - 1)) is right only"),
        ("    return lcc", """    def ranks(values):
        return np.unique(np.float32(values), return_inverse=True)[1]
    return lcc""", "Equal values count as one place, and the places after them"),
    ],
    "system_means": [
        ("sorted(set(system))", "dict.fromkeys(system)", "The means are right, but not in the"),
        (".mean()", ".sum()", "This is the sum of each system's clips"),
        ("values[system == name].mean()", "np.median(values[system == name])",
         "This is the median of each system's clips."),
        ("sorted(set(system))", "system", "Each clip has got the mean of its system."),
        ("np.array(means)", "np.mean(values)", "This is one mean over all systems."),
        (".mean()", ".sum() / len(values)", "The sum of a system's clips is divided by"),
        ("sorted(set(system))", "'acb'", "The means are right, but not in the order"),
        ("sorted(set(system))", "'bca'", "The means are right, but not in the order"),
        ("sorted(set(system))", "'cba'", "The means are right, but not in the order"),
        ("    means = []", """    blocks = np.array_split(values, len(np.unique(system)))
    return np.array([np.mean(block) for block in blocks])
    means = []""", "The clips are cut into blocks of equal size"),
    ],
    "ridge": [
        ("penalty * features", "penalty", "The factor I beside the penalty is missing."),
        ("return y.mean() + new @ w", "return new @ w", "mean y is not added"),
        ("(new - mean) / deviation", "(new - new.mean(0)) / new.std(0)",
         "The other clips are standardised by their own"),
        ("x.std(axis=0)", "x.std(axis=0, ddof=1)", "The deviations are divided by n - 1"),
        ("    deviation[deviation <= 1e-6 * np.abs(mean)] = np.inf\n", "",
         "A feature that never varies is divided"),
        ("penalty * features * np.eye(features)", "1e-9 * np.eye(features)",
         "The penalty has no part in it"),
        ("    return y.mean() + new @ w", """    x = np.hstack([x, np.ones((len(x), 1))])
    new = np.hstack([new, np.ones((len(new), 1))])
    left = x.T @ x + penalty * features * np.eye(features + 1)
    return new @ np.linalg.solve(left, x.T @ y)""", "The intercept is penalised like a weight"),
        ("""    features = x.shape[1]
    left = x.T @ x + penalty * features * np.eye(features)
    w = np.linalg.solve(left, x.T @ (y - y.mean()))
    return y.mean() + new @ w""", """    x = np.hstack([x, np.ones((len(x), 1))])
    new = np.hstack([new, np.ones((len(new), 1))])
    features = x.shape[1]
    left = x.T @ x + penalty * features * np.eye(features)
    return new @ np.linalg.solve(left, x.T @ y)""", "The intercept is penalised like a weight"),
    ],
}


def source_of(name):
    """The text of a function in the solved file."""
    tree = ast.parse(SOLVED)
    node = next(node for node in tree.body if getattr(node, "name", None) == name)
    return ast.get_source_segment(SOLVED, node) + "\n"


def solved_but_for(name, old, new):
    function = source_of(name)
    assert old in function
    return SOLVED.replace(function, function.replace(old, new))


def verdict(tmp_path, text, name):
    path = str(tmp_path / "mine.py")
    Path(path).write_text(text, encoding="utf-8")
    return check.check(check.load(path), name, path)


# -- The checker -----------------------------------------------------------------------------------

def test_in_a_solved_file_every_function_is_right_and_the_status_is_0(
        tmp_path, monkeypatch, capsys):
    path = tmp_path / "mine.py"
    path.write_text(SOLVED, encoding="utf-8")
    assert call(monkeypatch, program, path) == 0
    out = capsys.readouterr().out
    assert re.findall(r"^(\w+): right$", out, re.MULTILINE) == list(mistakes.ANSWERS)
    assert "Of 16 functions 16 are right, 0 wrong, and 0 still to be written." in out


def test_in_a_new_file_every_function_is_still_to_be_written_and_the_status_is_1(
        tmp_path, monkeypatch, capsys):
    path = tmp_path / "mine.py"
    assert call(monkeypatch, program, "--new", path) == 0
    assert path.read_bytes() == Path(template.__file__).read_bytes()
    assert call(monkeypatch, program, path) == 1
    out = capsys.readouterr().out
    assert re.findall(r"^(\w+): not yet$", out, re.MULTILINE) == list(mistakes.ANSWERS)


def test_one_wrong_function_gives_status_1_and_a_sentence_within_100_columns(
        tmp_path, monkeypatch, capsys):
    path = tmp_path / "mine.py"
    path.write_text(solved_but_for("alpha", "step / (steps - 1)", "step / steps"), encoding="utf-8")
    assert call(monkeypatch, program, path) == 1
    out = capsys.readouterr().out
    assert "\nalpha: wrong\n    It looks like this mistake: It does not arrive at the end." in out
    assert "Of 16 functions 15 are right, 1 wrong, and 0 still to be written." in out
    assert max(len(line) for line in out.splitlines()) <= 100


def test_the_option_new_never_overwrites_a_file(tmp_path, monkeypatch, capsys):
    path = tmp_path / "mine.py"
    path.write_text("an hour's work")
    assert call(monkeypatch, program, "--new", path) == 2
    assert path.read_text() == "an hour's work"
    problem = capsys.readouterr().err
    assert problem == (f"course: {path} is there already, and is left as it is; choose another "
                       "name\n")


@pytest.mark.parametrize("name", mistakes.ANSWERS)
def test_each_planted_mistake_is_recognised_and_every_function_has_at_least_three(name, tmp_path):
    assert len({sentence for _, _, sentence in PLANTED[name]}) >= 3
    for old, new, sentence in PLANTED[name]:
        found = verdict(tmp_path, solved_but_for(name, old, new), name)
        assert found[0] == "wrong"
        assert found[1].startswith(f"It looks like this mistake: {sentence}"), (new, found[1])


@pytest.mark.parametrize("name", mistakes.MISTAKES)
def test_every_known_mistake_is_found_wrong_and_distinguished_from_all_others(name):
    expected = check.outcomes(name, mistakes.ANSWERS[name])
    for wrong, sentence in mistakes.MISTAKES[name]:
        given = check.outcomes(name, wrong)
        differs = [i for i in range(len(given)) if not check.same(given[i], expected[i])]
        assert differs, sentence
        assert check.known_mistake(name, given, expected, differs) == sentence


def test_template_answers_cases_and_mistakes_have_the_same_functions_and_parameters():
    functions = [name for name, value in vars(template).items() if inspect.isfunction(value)]
    assert functions == list(mistakes.ANSWERS) == list(mistakes.CASES) == list(mistakes.MISTAKES)
    for name in functions:
        written = list(inspect.signature(getattr(template, name)).parameters)
        assert list(inspect.signature(mistakes.ANSWERS[name]).parameters) == written


@pytest.mark.parametrize(("name", "answer"), [
    (None, "compared with the core, which is this repository's own code"),
    ("mos_loss", "a tensor without dimensions (a scalar)"),
    ("mos_loss", "it is torch.tensor(0.0), with or without a gradient"),
    ("total_loss", "hides the function of that name"),
    ("predict", "Returns a tensor (B,)"),
    ("lcc", "their smallest is equal to their largest"),
    ("ridge", "penalty * P * |w|^2"),
    ("ridge", "is at most 1e-6 |mean|"),
])
def test_the_template_answers_what_readers_have_asked(name, answer):
    text = inspect.getdoc(template if name is None else getattr(template, name))
    assert answer in " ".join(text.split())


@pytest.mark.parametrize("name", ["learning_rate", "alpha"])
def test_the_template_never_uses_n_for_the_number_of_steps(name):
    assert not re.search(r"\bn\b", inspect.getdoc(getattr(template, name)))


@pytest.mark.parametrize("name", mistakes.ANSWERS)
def test_each_function_of_the_template_states_its_shapes_and_its_section_of_the_paper_or_ours(name):
    text = inspect.getdoc(getattr(template, name))
    assert re.search(r"\b(III\.[A-E]|IV|ours)\b", text)
    assert re.search(r"\([BLnmE],|\(B, 1\)|`steps`", text)
    with pytest.raises(NotImplementedError):
        getattr(template, name)(*[None] * len(inspect.signature(
            getattr(template, name)).parameters))


@pytest.mark.parametrize(("name", "old", "new", "expected"), [
    ("softmax_gate", "return e /", "return 0.5 * e /",
     "With 3 clips and 5 experts the result[0, 0] should be"),
    ("learning_rate", "peak / 2 *", "0.06 + 0 *",
     "With step 60 of 200 and the peak 0.1 the result should be 0.0793893, and is 0.06."),
    ("lcc", "return (p * t).sum()", "return p * t",
     "With 70 clips the result should have the shape (), and has (70,)."),
    ("diversity_loss", "(p ** 2).sum()", "(p.detach() * p).sum()",
     "With 5 clips and 4 experts the gradient with respect to gates[0, 0] should be"),
    ("gated_sum", "    return y", "    return y[:, None]",
     "With B = 5, E = 3, K = 2 the result should have the shape (5, 2), and has (5, 1, 2)."),
    ("total_loss", "alpha * mos_term", "alpha * mos_term.detach()",
     "With 5 clips and 4 experts the gradient with respect to mos_term should be 0.3, and is 0. I"),
    ("predict", """    with torch.no_grad():
        mos = model(features).mos
""", """    mos = model(features).mos
    mos = 2 * mos - mos.detach()
""", "With a model in training mode the gradient["),
    ("ridge", "<= 1e-6 * np.abs(mean)", "== 0",
     "With a feature that is always 0.1 (np.std gives 1.4e-17) the result[0] should be"),
    ("run_stage", "parameters(), 1.0)", "parameters(), 3.0)",
     "After nine more with all clips (see rules 1, 3, 4, 5, a new optimiser) the weights[0]"),
    ("run_stage", "steps, peak)", "steps, peak / 2)",
     "After one step with all clips (see rules 1, 3 and 6) the weights[0] should be"),
])
def test_an_unknown_mistake_is_described_by_the_first_value_or_shape_that_differs(
        name, old, new, expected, tmp_path):
    assert verdict(tmp_path, solved_but_for(name, old, new), name)[1].startswith(expected)


@pytest.mark.parametrize(("name", "old", "new", "expected"), [
    ("gated_sum", "    return y", "    return y + gates.missing",
     "With B = 5, E = 3, K = 2 it stops with an error: line {}: AttributeError: 'Tensor' object"),
    ("ridge", "    return y", "    raise KeyError('a\\nb')\n    return y",
     "With 12 training clips it stops with an error: line {}: KeyError: 'a\\nb'"),
    ("run_stage", "    model.train()", "    raise RuntimeError('no')",
     f"With {next(iter(mistakes.CASES['run_stage']))} it stops with an error: line {{}}: Runtime"),
])
def test_an_exception_is_reported_in_one_line_with_its_line_number_in_the_file(
        name, old, new, expected, tmp_path):
    text = solved_but_for(name, old, new)
    marked = [i + 1 for i, line in enumerate(text.splitlines()) if new.split("\n")[0] in line]
    found = verdict(tmp_path, text, name)
    assert found[0] == "wrong"
    assert found[1].startswith(expected.format(marked[0]))
    assert "\n" not in found[1]


@pytest.mark.parametrize(("name", "old", "new", "expected", "returned"), [
    ("lcc", "    p = predicted -", "    return 'high'\n    p = predicted -", "a number", "str"),
    ("system_means", "np.array(means)", "dict.fromkeys(system, 3.0)", "a numpy array", "dict"),
    ("system_means", "np.array(means)", "means", "a numpy array", "list"),
    ("ridge", "y.mean() + new @ w", "torch.tensor(new @ w)", "a numpy array", "Tensor"),
    ("predict", "return mos", "return mos.numpy().tolist()", "a tensor", "list"),
    ("predict", "return mos", "return mos.numpy()", "a tensor", "ndarray"),
    ("predict", "    with torch.no_grad():\n        mos = model(features).mos",
     "    mos = list(model(features).mos)", "a tensor", "list"),
    ("mos_loss", "return 0 * predicted.sum()", "return 0", "a tensor", "int"),
    ("diversity_loss", "(p ** 2).sum()", "(p ** 2).sum().item()", "a tensor", "float"),
])
def test_a_result_of_the_wrong_type_is_reported_with_the_type_that_is_expected(
        name, old, new, expected, returned, tmp_path):
    found = verdict(tmp_path, solved_but_for(name, old, new), name)
    sentence = f"{expected} is expected, and what is returned is of the type {returned}."
    assert found in [("wrong", f"With {case} {sentence}") for case in mistakes.CASES[name]]


def test_a_missing_return_is_reported(tmp_path):
    text = solved_but_for("alpha", "    return start + (end - start) * step / (steps - 1)",
                          "    pass")
    found = verdict(tmp_path, text, "alpha")[1]
    assert found == ("With step 60 of 200, from 0.3 to 0.7, a number is expected, and nothing is "
                     "returned; a return is missing.")


@pytest.mark.parametrize(("name", "old", "new", "sentence"), [
    ("alpha", "        return start", "        return end", "It moves from end"),
    ("srcc", "lcc(ranks(predicted), ranks(true))",
     "lcc(ranks(predicted), ranks(true)) if len(true) == 9 else lcc(predicted, true)",
     "This is the correlation of the values"),
])
def test_a_mistake_is_not_named_if_an_earlier_case_contradicts_it(
        name, old, new, sentence, tmp_path):
    found = verdict(tmp_path, solved_but_for(name, old, new), name)
    assert found[0] == "wrong"
    assert sentence not in found[1]


def test_an_exception_in_a_helper_function_is_reported_with_the_line_of_the_helper(tmp_path):
    text = solved_but_for("ranks", "    result =", "    result = np.nowhere\n    result =")
    line = text.splitlines().index("    result = np.nowhere") + 1
    assert f"it stops with an error: line {line}: " in verdict(tmp_path, text, "srcc")[1]


def test_a_mistake_in_one_function_is_not_reported_again_in_functions_that_call_it(tmp_path):
    text = solved_but_for("lcc", "p = predicted - predicted.mean()", "p = predicted")
    assert verdict(tmp_path, text, "lcc")[0] == "wrong"
    assert verdict(tmp_path, text, "srcc")[0] == "right"


def test_a_function_that_changes_its_arguments_does_not_disturb_later_checks(tmp_path):
    text = solved_but_for("ridge", "x = (x - mean) / deviation", "x -= mean\n    x /= deviation")
    for _ in range(2):
        assert verdict(tmp_path, text, "ridge") == ("right", "")


@pytest.mark.parametrize(("text", "problem"), [
    ("def alpha(:\n", ", line 1: Python cannot read it (invalid syntax)"),
    ("\0", ""),  # Versions of Python say this in different words.
    ("\nimport nowhere_to_be_found\n", " cannot be loaded: line 2: ModuleNotFoundError: No module"),
    ("raise SystemExit(3)\n", " cannot be loaded: line 1: SystemExit: 3"),
    (None, ": cannot be read (No such file or directory)"),
])
def test_a_file_that_cannot_be_used_gets_one_sentence_and_status_2(
        text, problem, tmp_path, monkeypatch, capsys):
    path = tmp_path / "mine.py"
    if text is not None:
        path.write_text(text)
    assert call(monkeypatch, program, path) == 2
    message = capsys.readouterr().err
    assert message.startswith(f"course: {path}{problem}")
    assert message.count("\n") == 1


def test_a_function_that_is_missing_from_the_file_counts_as_not_yet_written(tmp_path):
    text = SOLVED.replace(source_of("ridge"), "")
    assert verdict(tmp_path, text, "ridge") == ("not yet", "The file has no function of this name.")


@pytest.mark.parametrize(("name", "body"), [
    ("pool_statistics", "torch.hstack(torch.std_mean(frames, 1, unbiased=False)[::-1])"),
    ("softmax_gate", "nn.functional.softmax(scores, dim=-1)"),
    ("gated_sum", "torch.bmm(gates.unsqueeze(1), experts).squeeze(1)"),
    ("mos_loss",
     ("nn.HuberLoss()(predicted[mos > 0, 0], mos[mos > 0]) if (mos > 0).any() else "
       "torch.tensor(0.0)")),
    ("diversity_loss", "len(gates.T) * torch.dot(gates.mean(0), gates.mean(0))"),
    ("sparsity_loss", "sum(g.abs().sum() / torch.linalg.norm(g) for g in gates) / len(gates)"),
    ("alpha", "np.linspace(start, end, steps)[step]"),
    ("predict", "torch.stack([model.eval()(clip[None]).mos[0] for clip in features]).detach()"),
    ("lcc", ("math.nan if len(true) < 2 or min(map(np.ptp, (predicted, true))) == 0 else "
             "np.corrcoef(predicted, true)[0, 1]")),
    ("srcc", "lcc(*(stats.rankdata(np.float32(values)) for values in (predicted, true)))"),
])
def test_a_correct_function_that_is_written_differently_is_right(name, body, tmp_path):
    signature = source_of(name).splitlines()[0]
    text = f"{SOLVED}\nfrom scipy import stats\n\n\n{signature}\n    return {body}\n"
    assert verdict(tmp_path, text, name) == ("right", "")


@pytest.mark.parametrize("how", ["foreach=False", "fused=True"])
def test_the_training_loop_may_use_another_implementation_of_adamw(how, tmp_path):
    text = solved_but_for("run_stage", "model.parameters())\n    for",
                          f"list(model.parameters()), {how})\n    for")
    assert verdict(tmp_path, text, "run_stage") == ("right", "")


def test_the_training_loop_may_use_torchs_cosine_schedule(tmp_path):
    text = solved_but_for("run_stage", "AdamW(model.parameters())", """AdamW(model.parameters())
    optimiser.param_groups[0]["lr"] = peak
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)""")
    text = text.replace('optimiser.param_groups[0]["lr"] = learning_rate(step, steps, peak)', "")
    text = text.replace("optimiser.step()", "optimiser.step(), schedule.step()")
    assert verdict(tmp_path, text, "run_stage") == ("right", "")


# -- The answers are the core's --------------------------------------------------------------------

def test_the_answer_to_run_stage_ends_with_the_same_weights_as_the_cores_loop():
    def of_the_core(model, features, loss_of, steps, peak, alpha_start, alpha_end, batch_size):
        mos, classes = (inspect.getclosurevars(loss_of).nonlocals[name]
                        for name in ("mos", "classes"))
        stage = train.Stage("", steps, peak, alpha_start, alpha_end)
        config = train.Config(batch_size=batch_size)
        list(train.run_stage(model, stage, config, train.Tensors(features, mos, classes)))

    # In float64, because AdamW magnifies the last bits of float32, which differ between processors.
    torch.set_default_dtype(torch.float64)
    try:
        torch.manual_seed(0)
        expected = mistakes.weights_after(of_the_core)
        torch.manual_seed(0)
        found = mistakes.weights_after(mistakes.run_stage)
    finally:
        torch.set_default_dtype(torch.float32)
    assert found.dtype == torch.float64
    assert torch.allclose(found, expected, rtol=0, atol=1e-12)


def test_the_answers_to_gate_sum_and_standardise_agree_with_the_cores_model():
    torch.manual_seed(0)
    moe = moemos.MixtureOfExperts(axes=5, experts=4, hidden=3, outputs=2)
    for parameter in moe.parameters():
        torch.nn.init.normal_(parameter)
    x = torch.randn(6, 5)
    y, gates, experts = moe(x)
    assert torch.allclose(mistakes.ANSWERS["softmax_gate"](moe.gate(x)), gates)
    assert torch.allclose(mistakes.ANSWERS["gated_sum"](gates, experts), y, atol=1e-6)

    training, features = torch.randn(30, 2, 6) * 3 + 1, torch.randn(4, 2, 6)
    training[:, 1, 2] = 0.25
    weights = moemos.start(training, torch.randn(30), torch.arange(30) % 2, 2, np.arange(30) % 3)
    fusion = moemos.FeatureFusion(2, 3, 12)
    fusion.load_state_dict({"mean": weights["fusion.mean"], "axes": torch.eye(12),
                            "deviation": weights["fusion.deviation"]})
    found = mistakes.ANSWERS["standardise"](features, training)
    assert torch.allclose(found.flatten(1), fusion(features), rtol=1e-4)


def test_the_answers_to_the_losses_agree_with_the_core_and_that_to_srcc_with_scipy():
    scores, mos = torch.randn(6, 4), torch.tensor([1, 2, math.nan, 4, 5, 3])
    output = moemos.Output(torch.randn(6), torch.randn(6, 3), scores.softmax(1), None, None)
    terms = moemos.losses(output, mos, torch.arange(6) % 3, 0.3, 0.7, 0.2, 0.5)
    assert mistakes.mos_loss(output.mos[:, None], mos) == terms["mos"]
    total = mistakes.total_loss(terms["mos"], terms["classification"], scores, 0.3, 0.2, 0.5)
    assert torch.allclose(total, terms["total"])
    for predicted, true in mistakes.CASES["srcc"].values():
        rounded = np.float32(predicted)
        expected = stats.spearmanr(rounded, true).statistic if np.ptp(rounded) else math.nan
        assert mistakes.ANSWERS["srcc"](predicted, true) == pytest.approx(expected, nan_ok=True)


# -- Training with the student's functions ---------------------------------------------------------

def loaded(tmp_path, text):
    path = tmp_path / "mine.py"
    path.write_text(text, encoding="utf-8")
    return check.load(str(path))


def test_the_option_train_is_refused_unless_every_function_is_right(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(train_mine, "compare", lambda module: pytest.fail("it trains"))
    path = tmp_path / "mine.py"
    path.write_text(solved_but_for("alpha", "step / (steps - 1)", "step / steps"), encoding="utf-8")
    assert call(monkeypatch, program, path, "--train") == 1
    assert capsys.readouterr().out.endswith(
        "--train can use your code as soon as all of them are right.\n")


@pytest.mark.parametrize("agree", [True, False])
def test_the_option_train_has_status_0_if_the_numbers_agree_and_else_1(
        agree, tmp_path, monkeypatch):
    monkeypatch.setattr(train_mine, "compare", lambda module: agree)
    path = tmp_path / "mine.py"
    path.write_text(SOLVED, encoding="utf-8")
    assert call(monkeypatch, program, path, "--train") == (0 if agree else 1)


def test_training_with_the_solved_file_calls_every_function_and_gives_the_cores_numbers(
        tmp_path, monkeypatch, capsys):
    mine, called = loaded(tmp_path, SOLVED), set()

    def counted(name, function):
        def count(*args):
            called.add(name)
            return function(*args)
        return count

    for name in mistakes.ANSWERS:
        setattr(mine, name, counted(name, getattr(mine, name)))
    settings = replace(quick(small_corpus(), tmp_path), steps=3)
    train_mine.numbers(settings)
    of_the_core = sorted(Path(settings.cache).iterdir())
    assert train_mine.compare(mine, settings)
    assert called == set(mistakes.ANSWERS)
    out = capsys.readouterr().out
    rows = re.findall(r"^(\w+ [A-Z]+) +(\S+) +(\S+)$", out, re.MULTILINE)
    assert len(rows) == 8
    assert "this repository's own code" in out and train_mine.LEGEND in out
    assert all(core == students for _, core, students in rows)
    assert train_mine.AGREE in out
    assert sorted(Path(settings.cache).iterdir()) == of_the_core
    assert len(list((tmp_path / "run_mine" / "features").iterdir())) == 48


def test_training_with_a_wrong_function_gives_other_numbers_and_leaves_the_core_as_it_was(
        tmp_path, capsys):
    owners = [moemos, train, evaluate, moemos.FeatureFusion, moemos.MixtureOfExperts]
    before = [dict(vars(owner)) for owner in owners], dict(moemos.METRICS)
    mine = loaded(tmp_path, solved_but_for("lcc", "(p * t).sum()", "0.99 * (p * t).sum()"))
    settings = replace(quick(small_corpus(), tmp_path), steps=3)
    assert not train_mine.compare(mine, settings)
    assert train_mine.DIFFER in capsys.readouterr().out
    assert ([dict(vars(owner)) for owner in owners], moemos.METRICS) == before


def test_an_error_of_the_students_code_in_training_is_reported_in_one_line(tmp_path):
    text = solved_but_for("gated_sum", "    y = 0", "    y = [0][len(gates) > 9]")
    line = text.splitlines().index("    y = [0][len(gates) > 9]") + 1
    with pytest.raises(data.InputError) as caught:
        train_mine.compare(loaded(tmp_path, text), quick(small_corpus(), tmp_path))
    assert str(caught.value) == (f"your code stops in training with an error: line {line}: "
                                 "IndexError: list index out of range")


def test_the_features_of_an_earlier_version_of_the_students_code_are_not_used_again(tmp_path):
    settings = replace(quick(small_corpus(), tmp_path), steps=1)
    old = tmp_path / "run_mine" / "features" / ("0" * 64)
    old.parent.mkdir(parents=True)
    old.write_bytes(b"from before")
    with contextlib.redirect_stdout(None):
        train_mine.compare(loaded(tmp_path, SOLVED), settings)
    assert not old.exists()
