"""Training: arXiv 2507.06116 section III.E, three stages over the features of a frozen backbone.

    python train.py                                simulates a corpus if there is none
    python train.py --data PATH --out runs/mine    learns from a ratings.csv or its folder
    python train.py --help                         every setting, and which of them are ours

A section number, such as (III.E), says where the paper speaks of a thing; "ours" says that a thing,
or its value, is not the paper's.

The paper does not say which weights a stage trains. Here each stage trains all weights, except
those of the backbone, which is frozen, and of the fusion, which is computed before (ours). The
optimiser is AdamW (III.E). Each stage has a new one, which remembers nothing of the stage before
(ours). Both regularisers are always on (ours).

The paper does not say, either, what it means by an "adaptive" weighting of the two losses. Here
alpha, the weight of the MOS loss, rises during stage 2 and jumps between stages. This reading of
the word is ours. beta, the weight of the second task, is 1 - alpha, as in all pairs of alpha and
beta that the paper gives.

Letters of dimensions: see moemos.py.
"""

import argparse
import io
import math
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import NamedTuple

import torch

import data
import moemos
from data import InputError

# -- Settings --------------------------------------------------------------------------------------

class Stage(NamedTuple):
    name: str
    steps: int
    lr: float            # at the first step; it falls towards 0, see learning_rate()
    alpha_start: float   # weight of the MOS loss; beta is 1 - alpha
    alpha_end: float


# III.E has these three stages, the lr of the first and the last, and the alpha of the second and
# the last. The rest is ours: the alpha of stage 1, the lr of stage 2, and the 200 steps, which were
# chosen by results on four listening tests. It is also ours that lr falls towards 0 in each stage.
# In stage 1 the gradient of the MOS head is 0, because alpha is 0. Only the weight decay moves this
# head, and makes each of its weights a little smaller in every step. (The predicted MOS changes
# nevertheless, because both heads read y, and stage 1 trains what computes y.)
STAGES = (
    Stage("classification", 200, 1e-4, 0.0, 0.0),
    Stage("joint", 200, 1e-4, 0.3, 0.7),
    Stage("mos", 200, 1e-5, 0.9, 0.9),
)
CLIP_NORM = 1.0  # III.E; a longer gradient is shortened to this length
FOLDS = 5        # of the cross-validation in moemos.best_penalty(); ours
LOG_STEPS = 50   # a row of log.csv has the mean losses and gates of this many steps; ours
RESULTS = ("metrics.json", "predictions.csv", "answer.txt")  # what evaluate.py writes


def option(default, help, **limits):
    """A setting, with its default, its help text and its limits; main() and check() read them."""
    return field(default=default, metadata={"help": help, **limits})


@dataclass(frozen=True)
class Config:
    """The settings. Each is an option of the command line, with - in place of _."""
    data: str = option("corpus", "Train on this ratings.csv or folder. A missing corpus/ is made.")
    scale: tuple = option((1.0, 5.0), "No rating is below LOW or above HIGH.")
    max_seconds: float = option(60.0, "Longer clips are refused (the limit is ours).", least=0)
    backbone: str = option("", "Use this torchaudio bundle, logmel or your own module. The default "
                           "is WAV2VEC2_BASE (ours), or logmel if its weights are missing.")
    out: str = option("runs/default", "The run is written into this folder.")
    cache: str = option("cache", "Features are kept in this folder.")
    device: str = option("", "Compute on cpu, cuda, ...; the default is an accelerator, if any.")
    seed: int = option(0, "The seed of training (ours).", least=0, below=2 ** 63)
    experts: int = option(4, "Use this many experts, E (ours).", least=1, below=100)
    hidden: int = option(32, "Make experts this wide, H (ours).", least=1, below=2000)
    batch_size: int = option(32, "A batch has this many clips (ours).", least=1, below=1e9)
    lambda_1: float = option(0.02, "Give L_diversity of III.B this weight (ours).", least=0)
    lambda_2: float = option(0.02, "Give L_sparsity of III.B this weight (ours).", least=0)
    steps: int = option(0, "A stage has this many steps (ours); 0 means 200.", least=0, below=1e9)


# -- Three stages ----------------------------------------------------------------------------------

def learning_rate(step, steps, peak):
    """Cosine annealing (III.E): `peak` at step 0, and 0 one step after the last. That it falls
    to 0 in each stage, and starts anew in the next, is ours."""
    return 0.5 * peak * (1 + math.cos(math.pi * step / steps))


def alpha_at(step, steps, start, end):
    """The weight of the MOS loss: `start` at step 0, `end` at the last step, and a straight line
    between them (that it is straight is ours)."""
    return start + (end - start) * (step / max(steps - 1, 1))


class Tensors(NamedTuple):
    features: torch.Tensor  # (clips, L, 2D)
    mos: torch.Tensor       # (clips,), NaN where a clip has none
    label: torch.Tensor     # (clips,) the index of the synthesis model, the second task's class

    def take(self, rows):
        """Only the clips of these rows, which are indices or a mask."""
        return Tensors(*(tensor[rows] for tensor in self))


def as_tensors(clips, backbone, cache):
    """Takes a list of data.Clip. Returns their Tensors, on the backbone's device, and the list of
    the classes of the second task. A class is a synthesis model (III.C). The paper leaves open what
    counts as one; here it is what stands in the column `model`, or else in `system` (ours)."""
    features = data.extract_features(clips, backbone, cache).to(backbone.device)
    mos = torch.tensor([clip.mos for clip in clips], device=backbone.device)
    classes = sorted({clip.model for clip in clips})
    label = torch.tensor([classes.index(clip.model) for clip in clips], device=backbone.device)
    return Tensors(features, mos, label), classes


def run_stage(model, stage, config, training, dev=None):
    """Trains a model for one stage. training: the Tensors of the training clips. dev: those of the
    dev clips, if there are any; they are not trained on, but only predicted for the log. Every
    LOG_STEPS steps, and at the end, it yields a row of log.csv, a dict. (Because of `yield`,
    calling this function only makes an iterator. It trains while a loop takes rows from it, as in
    run_stages().)

    There are no epochs: each step draws its batch anew from all clips, and a small corpus gets as
    many steps as a large one (ours). Raises FloatingPointError if a loss or a gradient is not
    finite."""
    parameters = list(model.parameters())
    # AdamW (III.E) is a gradient descent that scales its steps: in one step each weight moves by
    # about `lr`, or by a few times that at most, however large its gradient is. (The rates of all
    # 600 steps sum to .021. So in the whole training no weight moves far.) The weight decay is
    # torch's default (ours). `lr` is set anew in each step, below. `fused` is only for speed.
    optimiser = torch.optim.AdamW(parameters, weight_decay=0.01, fused=True)
    logged, gates = [], []
    for step in range(stage.steps):
        lr = learning_rate(step, stage.steps, stage.lr)
        alpha = alpha_at(step, stage.steps, stage.alpha_start, stage.alpha_end)
        optimiser.param_groups[0]["lr"] = lr

        drawn = torch.randperm(len(training.mos))[:config.batch_size]
        batch = training.take(drawn.to(training.mos.device))
        model.train()  # validate() switches to evaluation mode
        output = model(batch.features)
        terms = moemos.losses(output, batch.mos, batch.label, alpha, 1 - alpha,
                              config.lambda_1, config.lambda_2, model.deviation)
        optimiser.zero_grad()
        terms["total"].backward()
        # The gradient of all weights together, taken as one vector (ours), is shortened if it is
        # longer than CLIP_NORM. The function returns the length that it had before.
        terms["grad_norm"] = torch.nn.utils.clip_grad_norm_(parameters, CLIP_NORM)
        numbers = {name: term.item() for name, term in terms.items()}
        if not math.isfinite(numbers["total"] + numbers["grad_norm"]):
            raise FloatingPointError(f"the loss or its gradient is not finite in stage "
                                     f"{stage.name}, step {step + 1}: {numbers}")
        optimiser.step()

        logged.append(numbers)
        gates.append(output.gates.detach())
        if (step + 1) % LOG_STEPS == 0 or step + 1 == stage.steps:
            means = {name: sum(row[name] for row in logged) / len(logged) for name in numbers}
            yield {"stage": stage.name, "step": step + 1, "lr": lr, "alpha": alpha, **means,
                   **gate_columns(torch.cat(gates)), **(validate(model, dev) if dev else {})}
            logged, gates = [], []


def run_stages(model, stages, config, training, dev=None):
    """Trains a model through all stages; prints and returns the rows of log.csv. training, dev: as
    for run_stage(). HEADING and LINE, below train(), say how a row is printed."""
    model.to(training.features.device)
    rows = []
    for stage in stages:
        print(f"stage {stage.name}\n{HEADING}")
        for row in run_stage(model, stage, config, training, dev):
            percent = [f"{100 * row[f'gate_{e + 1}']:2.0f}" for e in range(config.experts)]
            print(LINE.format(**row), *percent)
            rows.append(row)
    return rows


def build_model(config, weights):
    """A model with these weights, which moemos.start() or a stored run gives. Weights that are not
    among them stay as MoEMOS makes them."""
    layers, twice_width = weights["fusion.mean"].shape
    axes, classes = weights["fusion.axes"].shape[1], len(weights["class_head.bias"])
    model = moemos.MoEMOS(layers, twice_width // 2, axes, classes, config.experts, config.hidden)
    model.load_state_dict(weights, strict=False)
    return model


def train(config):
    """Trains a model and returns it; writes model.pt and log.csv into config.out. Raises InputError
    for input that cannot be used, and FloatingPointError as run_stage() does."""
    check(config)
    device = data.pick_device(config.device)
    data.check_writable(config.out)
    clips, dev_clips = read_clips(config)
    backbone = data.open_backbone(config.backbone, device)
    config = replace(config, backbone=backbone.name)
    training, classes = as_tensors(clips, backbone, config.cache)
    # Of the dev clips only the features and the MOS are used, and not the labels: as_tensors()
    # numbers the classes anew for these clips, and a label may then mean another class than in
    # training.
    dev = as_tensors(dev_clips, backbone, config.cache)[0] if dev_clips else None
    rated = int((~training.mos.isnan()).sum())
    print(f"{len(clips)} clips to train on, {rated} with MOS; {len(classes)} classes; backbone "
          f"{backbone.name} on {backbone.device}")

    torch.manual_seed(config.seed)
    fold = data.folds_of([clip for clip in clips if clip.ratings], FOLDS)
    on_cpu = [tensor.cpu() for tensor in training]  # start() computes with numpy
    model = build_model(config, moemos.start(*on_cpu, len(classes), fold))
    print("training starts from linear predictions; the penalty of ridge regression is {:.2g} "
          "times the number of features (by cross-validation); {} features become {} axes".format(
              model.penalty, *model.fusion.axes.shape))
    stages = [stage._replace(steps=config.steps or stage.steps) for stage in STAGES]
    rows = run_stages(model, stages, config, training, dev)
    write_run(config, model, stages, classes, backbone, rows)
    return model


# -- What follows is not part of the method: the log, files and the command line -------------------

# In the heading, mos, class, div and spar are the terms of the loss, and total is their weighted
# sum. H(g) is the mean entropy of a clip's gates, and H(p) is the entropy of the mean gate; both
# are explained in moemos.gate_entropies(). "norm" is that of the gradient, before it is clipped.
HEADING = " step      lr alpha total   mos class  div spar norm H(g) H(p)  gates %"
LINE = ("{step:5d} {lr:7.1e} {alpha:5.2f} {total:5.2f} {mos:5.3f} {classification:5.2f} "
        "{diversity:4.2f} {sparsity:4.2f} {grad_norm:4.1f} {gate_entropy:4.2f} "
        "{mean_gate_entropy:4.2f} ")


def gate_columns(gates):
    """The columns of log.csv about the gates; gates: (clips, E), all since the last row."""
    of_a_clip, of_the_mean = moemos.gate_entropies(gates)
    use = {f"gate_{e + 1}": share for e, share in enumerate(gates.mean(0).tolist())}
    return {"gate_entropy": of_a_clip.item(), "mean_gate_entropy": of_the_mean.item(), **use}


@torch.no_grad()
def validate(model, dev):
    """The columns of log.csv about the dev clips, which are rated and not trained on."""
    predicted = torch.cat([model.eval()(part).mos for part in dev.features.split(256)]).cpu()
    mos = dev.mos.cpu()
    return {"dev_mse": moemos.mse(predicted, mos), "dev_lcc": moemos.lcc(predicted, mos)}


def read_clips(config):
    """The corpus of a Config, simulated if it is missing -> (training clips, rated dev clips)."""
    if config.data == Config.data and not Path(config.data).exists():
        from corpora import simulated  # the core's one import of corpora/
        print(f"{config.data}/ is missing: simulating it (python -m corpora.simulated corpus)")
        simulated.simulate(config.data, 0)
    clips = data.read_corpus(config.data, config.scale, config.max_seconds)
    training = [clip for clip in clips if clip.split == "train"]
    if sum(bool(clip.ratings) for clip in training) < 2:
        raise InputError(f"{config.data}: fewer than two training clips with ratings")
    return training, [clip for clip in clips if clip.split == "dev" and clip.ratings]


def flag(setting):
    return "--" + setting.name.replace("_", "-")


def check(config):
    """Raises InputError for a setting that cannot work."""
    for setting in fields(Config):
        value, limits = getattr(config, setting.name), setting.metadata
        kind = (int, float) if setting.type is float else setting.type
        if not isinstance(value, kind):
            raise InputError(f"{flag(setting)} {data.shown(value)}: is no {setting.type.__name__}")
        below = limits.get("below", math.inf)
        if "least" in limits and not limits["least"] <= value < below:
            raise InputError(f"{flag(setting)} {value}: must be at least {limits['least']} "
                             f"and below {below}")
    data.check_scale(config.scale)
    if not (config.data and config.out and config.cache):
        raise InputError("--data, --out and --cache must not be empty")


def write_run(config, model, stages, classes, backbone, rows):
    """Writes log.csv and model.pt, which holds plain tensors and values. If the folder has results
    that evaluate.py wrote about an older model.pt, it deletes them."""
    out = Path(config.out)
    settings = asdict(config)
    del settings["out"]  # so that a run has the same bytes in every folder
    checkpoint = io.BytesIO()
    torch.save({"weights": {name: tensor.cpu() for name, tensor in model.state_dict().items()},
                "config": settings, "stages": [stage._asdict() for stage in stages],
                "classes": classes,
                "backbone": {"name": backbone.name, "identity": backbone.identity}}, checkpoint)
    log = [rows[0].keys(), *(row.values() for row in rows)]
    content = {out / "log.csv": log, out / "model.pt": data.with_digest(checkpoint.getvalue())}
    data.write_files(content, outdated=results_in(out) if (out / "model.pt").exists() else ())
    print(data.printable(f"wrote {out}/model.pt, log.csv"))


def results_in(run):
    """The Paths of what evaluate.py has written into a run's folder, and into its subfolders on_*,
    which hold results on other corpora."""
    return [path for name in RESULTS for folder in ("", "on_*/")
            for path in run.glob(f"{folder}{name}")]


def main():
    parser = argparse.ArgumentParser(
        allow_abbrev=False, description="Trains the speech quality predictor of arXiv 2507.06116.")
    for setting in fields(Config):
        value = {"type": setting.type}
        if setting.name == "scale":
            value = {"type": float, "nargs": 2, "metavar": ("LOW", "HIGH")}
        parser.add_argument(flag(setting), **value, default=setting.default,
                            help=f"{setting.metadata['help']} (default: {setting.default!r})")
    settings = vars(parser.parse_args())
    settings["scale"] = tuple(settings["scale"])
    with data.errors_in_one_sentence("train.py"):
        train(Config(**settings))


if __name__ == "__main__":
    main()
