"""What the checker knows: for each function of template.py a right answer, the cases on which it is
tried, and the mistakes, both from mistakes.md. The answers are the core's, or, where the core has
the step inside of a larger function, plain lines that a test compares with it."""

import inspect
import math
import re
from pathlib import Path

import numpy as np
import torch
from scipy.stats import rankdata  # noqa: F401 - the page uses it
from torch import nn

import moemos
import train


def draw(*shape, seed=0, gradient=False):
    drawn = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    return drawn.requires_grad_(gradient)


def gates_of(*shape):
    return draw(*shape).mul(2).softmax(1).requires_grad_()


# -- Right answers ---------------------------------------------------------------------------------

def standardise(features, training):
    spread, center = torch.std_mean(training, 0, correction=0)
    return (features - center) / spread.clamp_min(1e-3)


def mos_loss(predicted, mos):
    return moemos.mos_loss(predicted.squeeze(1), mos)


def total_loss(mos_term, class_term, scores, alpha, lambda_1, lambda_2):
    return weighted(mos_term, class_term, scores.softmax(1), alpha, lambda_1, lambda_2)


def weighted(mos_term, class_term, gates, alpha, lambda_1, lambda_2):
    return (alpha * mos_term + (1 - alpha) * class_term
            + lambda_1 * moemos.diversity_loss(gates) + lambda_2 * moemos.sparsity_loss(gates))


def run_stage(model, features, loss_of, steps, peak, alpha_start, alpha_end, batch_size):
    optimiser = torch.optim.AdamW(model.parameters())
    for step in range(steps):
        optimiser.param_groups[0]["lr"] = train.learning_rate(step, steps, peak)
        rows = torch.randperm(len(features))[:batch_size]
        output = model.train()(features[rows])
        loss = loss_of(output, rows, train.alpha_at(step, steps, alpha_start, alpha_end))
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()


def predict(model, features):
    with torch.no_grad():
        return model.eval()(features).mos


def ridge(x, y, new, penalty):
    return moemos.ridge(x, y, new, [penalty])[0]


ANSWERS = {
    "pool_statistics": moemos.pool_statistics,
    "standardise": standardise,
    "softmax_gate": lambda scores: scores.softmax(1),
    "gated_sum": lambda gates, experts: (gates[:, :, None] * experts).sum(1),
    "mos_loss": mos_loss,
    "diversity_loss": moemos.diversity_loss,
    "sparsity_loss": moemos.sparsity_loss,
    "total_loss": total_loss,
    "learning_rate": train.learning_rate,
    "alpha": train.alpha_at,
    "run_stage": run_stage,
    "predict": predict,
    "lcc": moemos.lcc,
    "srcc": moemos.srcc,
    "system_means": moemos.system_means,
    "ridge": ridge,
}


# -- Cases -----------------------------------------------------------------------------------------

class Tiny(moemos.MoEMOS):
    """A model of (B, 1, 4) features whose weights are all random, with dropout before them."""

    def __init__(self):
        super().__init__(layers=1, width=2, axes=4, classes=2, experts=2, hidden=3)
        self.fusion.axes.copy_(torch.eye(4))
        self.dropout = 0.3
        for i, parameter in enumerate(self.parameters()):
            parameter.data = draw(*parameter.shape, seed=i)

    def forward(self, features):
        return super().forward(nn.functional.dropout(features, self.dropout, self.training))


STAGES = {  # what a stage shows: its settings and the dropout
    "one step with all clips (see rules 1, 3 and 6)": ((1, 0.2, 0.3, 0.6, 24), 0.0),
    "nine more with all clips (see rules 1, 3, 4, 5, a new optimiser)": ((9, 0.2, 0, 0.6, 24), 0.0),
    "nine more in batches (see rule 2 and training mode)": ((9, 0.1, 0.9, 0.9, 6), 0.3)}


def weights_after(run_stage):
    """The weights of a Tiny model after each of STAGES, (stages, weights)."""
    model, features, config = Tiny(), 2 * draw(24, 1, 4), train.Config()
    mos, classes = 3 * draw(24, seed=1), (draw(24, seed=2) > 0).long()

    def loss_of(output, rows, weight):
        return moemos.losses(output, mos[rows], classes[rows], weight, 1 - weight,
                             config.lambda_1, config.lambda_2)["total"]

    weights = []
    for settings, dropout in STAGES.values():
        model.dropout = dropout
        run_stage(model.eval(), features, loss_of, *settings)
        weights.append(nn.utils.parameters_to_vector(model.parameters()).detach())
    return torch.stack(weights)


nan, numbers = math.nan, draw(70, 2).double().numpy()
equal = np.full(7, 3.3)  # its mean is not quite 3.3
varied = draw(9, 2, 6, seed=1) * draw(2, 6, seed=2) + draw(2, 6, seed=3)
constant = varied.clone()
constant[:, 0, 0] = 1.5
inputs = numbers[:48].reshape(12, 8)[:, :4] * [1, 2, 5, 0.5] + 3
mos_of_12, new = numbers[50:62, 0] + 3, numbers[62:67].repeat(2, axis=1) + [3, 4, 5, 6]
ones, tenths = (np.hstack([inputs, np.full((12, 1), value)]) for value in (1, 0.1))
terms = draw(gradient=True), draw(seed=1, gradient=True)
new_5 = np.hstack([new, new[:, :1]])


# -- The page mistakes.md, and what stands there for more than one line ----------------------------

def scaled(features, values, axes=0, correction=0, least=1e-3, added=0.0):
    spread, center = torch.std_mean(values, axes, correction=correction, keepdim=True)
    return (features - center) / (spread.clamp_min(least) + added)


def exponentials(scores):
    return (scores - scores.amax(1, keepdim=True)).exp()


def smooth_l1(d):
    return nn.functional.smooth_l1_loss(d, torch.zeros_like(d), reduction="none")


def changed(*texts):
    """run_stage with other text in its lines: old, new, old, new, ..."""
    source, namespace = inspect.getsource(run_stage), dict(globals())
    for old, new in zip(texts[::2], texts[1::2]):
        assert old in source, old
        source = source.replace(old, new, 1)
    exec(source, namespace)  # noqa: S102 - it is the text of this file
    return namespace["run_stage"]


def only_once(model, *settings):
    if not vars(model).get("trained"):
        run_stage(model, *settings)
    model.trained = True


def line(x, y, new, weight, own=False, scaled=True, ddof=0):
    """Ridge regression by its equation; weight: what is beside the squared weights."""
    center, scale = x.mean(0), x.std(0, ddof=ddof) if scaled else np.ones(x.shape[1])
    scale = np.where(scale == 0, math.inf, scale)
    z = (x - center) / scale
    others = (new - new.mean(0)) / new.std(0) if own else (new - center) / scale
    square = z.T @ z + weight * np.eye(x.shape[1])
    return y.mean() + others @ np.linalg.pinv(square) @ z.T @ (y - y.mean())


def read_page():
    """The page -> {function: {case: arguments}} and, for each function, its mistakes:
    {function: [(what makes a mistake, the sentence on it), ...]}."""
    cases, found = {}, {}
    page = Path(__file__).with_name("mistakes.md").read_text(encoding="utf-8")
    for section in page.split("\n## ")[1:]:
        heading, *items = section.split("\n- `")
        name, parameters = re.match(r"(\w+)\((.*)\)", heading).groups()
        rows = re.findall(r"^    (.+): (\(.*\))$", heading, re.MULTILINE)
        cases[name] = {case: eval(arguments, globals()) for case, arguments in rows}
        found[name] = []
        for item in items:
            *codes, text = item.split("`")
            sentence = " ".join(text.split())
            for code in codes[::2]:  # between them are spaces
                wrong = eval(f"lambda {parameters}: ({code})", globals())
                found[name].append((wrong, sentence))
    return cases, found


CASES, MISTAKES = read_page()
DETACHED = ("The value is right, but no gradient flows back through it, so that nothing would be "
            "learned. Let it stay a tensor, without item(), detach() or numpy.")
