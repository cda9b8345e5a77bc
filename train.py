"""Training: arXiv 2507.06116 section III.E, three stages over the features of a frozen backbone.

    python train.py                                simulates a corpus if there is none
    python train.py --data DIR --out runs/mine     learns from your ratings.csv
    python train.py --help                         every setting and where it comes from

Letters of dimensions: see moemos.py. III.x: where the paper speaks of it. A value is the paper's
unless it is called ours; "chosen": studies.choose, with logmel, found none better. What each stage
trains the paper does not say: here all, but the MOS head only where alpha is above 0, by an AdamW
of its own, and the regularisers are always on.
"""

import argparse
import io
import json
import math
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import NamedTuple

import torch

import data
import moemos
from data import InputError


class Stage(NamedTuple):
    name: str
    steps: int
    lr: float            # at the first step; annealed to 0 within the stage (which is ours)
    alpha_start: float   # weight of the MOS loss; that of the second task, beta, is 1 - alpha
    alpha_end: float


STAGES = (  # III.E
    Stage("classification", 1000, 1e-4, 0.0, 0.0),  # steps: ours, chosen
    Stage("joint", 1400, 3e-3, 0.3, 0.7),           # steps, lr: ours, chosen
    Stage("mos", 300, 1e-5, 0.9, 0.9),              # steps: ours, few, as at this lr little moves
)
CLIP_NORM = 1.0  # III.E, gradient clipping
LOG_STEPS = 50   # of training in a row of log.csv; ours
RESULTS = ("metrics.json", "predictions.csv", "raters.csv", "answer.txt")  # evaluate.py's


def option(default, help, **limits):
    return field(default=default, metadata={"help": help, **limits})


@dataclass(frozen=True)
class Config:
    """Every setting besides STAGES; each is an option of the command line, with - for _."""
    data: str = option("corpus", "ratings.csv or its folder; corpus is simulated if missing")
    scale: tuple = option((1.0, 5.0), "lowest and highest rating")
    max_seconds: float = option(60.0, "longer clips are refused", least=0)
    backbone: str = option("", "a torchaudio bundle, logmel or logmel48; not given: WAV2VEC2_BASE "
                               "(III.B; the size is ours), or logmel where it cannot be had")
    out: str = option("runs/default", "folder of the run")
    cache: str = option("cache", "folder of the features")
    device: str = option("", "cpu, cuda, ...; not given: the accelerator if there is one")
    seed: int = option(0, "of everything that is random in training", least=0, below=2 ** 63)
    experts: int = option(4, "N of III.B; ours, not shown to be better than 1", least=1, below=100)
    hidden: int = option(32, "width H of an expert; ours: chosen", least=1, below=2000)
    dropout: float = option(0.7, "of fused features, in experts; ours: chosen", least=0, below=1)
    auxiliary: str = option("model", "second task: the synthesis model (III.C), or none",
                            choices=("model", "none"))
    augmentation: str = option("yes", "train on clips without MOS too (III.D)",
                               choices=("yes", "no"))
    batch_size: int = option(32, "ours: the usual", least=1)
    weight_decay: float = option(1.0, "of AdamW; ours: chosen", least=0)
    lambda_1: float = option(0.02, "weight of diversity (III.B); ours: chosen", least=0)
    lambda_2: float = option(0.02, "weight of sparsity (III.B); ours: chosen", least=0)
    smooth_l1_beta: float = option(1.0, "in quarters of the scale; ours: the usual", least=0)
    steps: int = option(0, "of each stage, for quick trials; 0: those of STAGES", least=0)


def flag(setting):
    return "--" + setting.name.replace("_", "-")


def check(config):
    """Raises InputError for a setting that cannot work."""
    for setting in fields(Config):
        value, limits = getattr(config, setting.name), setting.metadata
        if "choices" in limits and value not in limits["choices"]:
            choices = ", ".join(limits["choices"])
            raise InputError(f"{flag(setting)} {value}: must be one of {choices}")
        below = limits.get("below", math.inf)
        if "least" in limits and not limits["least"] <= value < below:
            raise InputError(f"{flag(setting)} {value}: must be at least {limits['least']} "
                             f"and below {below}")
    low, high = config.scale
    if not -1e6 <= low < high <= 1e6:
        raise InputError(f"--scale {low} {high}: the lower first, and no more than a million")
    if not (config.data and config.out and config.cache):
        raise InputError("--data, --out and --cache must not be empty")


def learning_rate(step, steps, peak):
    """Cosine annealing (III.E): peak at step 0, 0 at step == steps; of the step alone."""
    return 0.5 * peak * (1 + math.cos(math.pi * step / steps))


def alpha(step, steps, start, end):
    """Weight of the MOS loss: start at step 0, end at the last of several; linear: ours."""
    return start + (end - start) * (step / max(steps - 1, 1))


class Clips(NamedTuple):
    features: torch.Tensor  # (clips, L, 2D)
    mos: torch.Tensor       # (clips,), NaN without
    model: torch.Tensor     # (clips,) index of the class in the second task

    def take(self, rows):
        """The same of some clips: a slice, or their indices."""
        return Clips(*(tensor[rows] for tensor in self))


def has_mos(stage):
    return max(stage.alpha_start, stage.alpha_end) > 0


def has_second_task(stage, config):
    return config.auxiliary != "none" and min(stage.alpha_start, stage.alpha_end) < 1


def stages_to_run(stages, config):
    """Those with something to learn: without second task, stage 1 has nothing."""
    return [stage._replace(steps=config.steps or stage.steps) for stage in stages
            if has_mos(stage) or has_second_task(stage, config)]


def weighted_losses(output, batch, mos_weight, config, unit):
    """moemos.losses with the weights of a configuration; beta is 1 - alpha (III.E)."""
    beta = 0.0 if config.auxiliary == "none" else 1 - mos_weight
    return moemos.losses(output, batch.mos, batch.model, mos_weight, beta, config.lambda_1,
                         config.lambda_2, config.smooth_l1_beta, unit)


def gate_columns(gates):
    """What log.csv says of the (clips, E) gates of the steps of a row."""
    of_a_clip, of_the_mean = moemos.gate_entropies(gates)
    use = {f"gate_{e + 1}": share for e, share in enumerate(gates.mean(0).tolist())}
    return {"gate_entropy": of_a_clip.item(), "mean_gate_entropy": of_the_mean.item(), **use}


@torch.no_grad()
def validate(model, clips):
    """What log.csv says of the held-out clips."""
    model.eval()
    outputs = [model(part) for part in clips.features.split(256)]
    predicted, mos = torch.cat([output.mos for output in outputs]).cpu(), clips.mos.cpu()
    classes = torch.cat([output.logits.argmax(1) for output in outputs])
    rated = ~mos.isnan()
    pair = predicted[rated], mos[rated]
    return {"val_mse": moemos.mse(*pair), "val_lcc": moemos.lcc(*pair),
            "val_srcc": moemos.srcc(*pair),
            "val_accuracy": (classes == clips.model).float().mean().item()}


def run_stage(model, stage, config, training, validation):
    """Trains model on Clips for one stage; yields a row of log.csv, a dict, every LOG_STEPS steps.

    Each step draws a batch from all clips, so that few clips get as many steps as many. Raises
    FloatingPointError, saying where, for a loss or a gradient that is not finite.
    """
    model.mos_head.requires_grad_(has_mos(stage))  # without a loss weight decay would move it
    learned = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimiser = torch.optim.AdamW(learned, weight_decay=config.weight_decay)  # lr: at each step
    logged, gates = [], []
    for step in range(stage.steps):
        lr = learning_rate(step, stage.steps, stage.lr)
        mos_weight = alpha(step, stage.steps, stage.alpha_start, stage.alpha_end)
        optimiser.param_groups[0]["lr"] = lr

        rows = torch.randperm(len(training.mos))[:config.batch_size]
        batch = training.take(rows.to(training.mos.device))
        output = model.train()(batch.features)
        terms = weighted_losses(output, batch, mos_weight, config, model.unit)
        model.zero_grad()
        terms["total"].backward()
        terms["grad_norm"] = torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP_NORM)
        terms = {name: term.item() for name, term in terms.items()}
        if not math.isfinite(terms["total"] + terms["grad_norm"]):
            raise FloatingPointError(f"the loss or its gradient is not finite in stage "
                                     f"{stage.name}, step {step + 1}: {terms}")
        optimiser.step()

        logged.append(terms)
        gates.append(output.gates.detach())
        if (step + 1) % LOG_STEPS == 0 or step + 1 == stage.steps:
            means = {name: sum(row[name] for row in logged) / len(logged) for name in terms}
            yield {"stage": stage.name, "step": step + 1, "lr": lr, "alpha": mos_weight, **means,
                   **gate_columns(torch.cat(gates)), **validate(model, validation)}
            logged, gates = [], []


HEADING = (" step      lr alpha total   mos class  div spar norm H(g) H(p)  "
           "vMSE  vLCC vSRCC vacc  gates %")
LINE = ("{step:5d} {lr:7.1e} {alpha:5.2f} {total:5.2f} {mos:5.3f} {classification:5.2f} "
        "{diversity:4.2f} {sparsity:4.2f} {grad_norm:4.1f} {gate_entropy:4.2f} "
        "{mean_gate_entropy:4.2f} {val_mse:5.3f} {val_lcc:5.3f} {val_srcc:5.3f} "
        "{val_accuracy:4.2f}")


def run_stages(model, stages, config, training, validation):
    """Trains a new model on Clips through all stages; prints and returns the rows of log.csv."""
    model.fusion.set_statistics(training.features.cpu())  # in float64, which some devices lack
    model.to(training.features.device)
    rows = []
    for stage in stages:
        print(f"stage {stage.name}\n{HEADING}")
        for row in run_stage(model, stage, config, training, validation):
            gates = [f"{100 * row[f'gate_{e + 1}']:2.0f}" for e in range(config.experts)]
            print(LINE.format(**row), "", *gates)
            rows.append(row)
    return rows


def training_clips(config):
    """-> (clips to train on, held-out clips) of a configuration's corpus, simulated if need be."""
    if config.data == Config.data and not Path(config.data).exists():
        from corpora import simulated  # the core's one import of corpora/
        print(f"{config.data}/ is missing: simulating it (python -m corpora.simulated corpus)")
        simulated.simulate(config.data, 0)
    clips = data.read_corpus(config.data, config.scale, config.max_seconds)
    training, held_out = split_training(clips, config)
    if sum(bool(clip.ratings) for clip in training) < 2:
        raise InputError(f"{config.data}: fewer than two training clips with ratings, "
                         "a tenth being held out")
    return training, held_out


def split_training(clips, config):
    """A corpus -> (clips to train on, clips held out), each in an order drawn by the seed."""
    clips = [clip for clip in clips
             if clip.split == "train" and (clip.ratings or config.augmentation == "yes")]
    order = torch.randperm(len(clips), generator=torch.Generator().manual_seed(config.seed))
    clips = [clips[i] for i in order.tolist()]
    held_out = max(len(clips) // 10, 1)  # a tenth: ours
    return clips[held_out:], clips[:held_out]


def as_tensors(clips, backbone, cache, label):
    """Clips with features -> (Clips on the backbone's device, the classes of the second task)."""
    features = data.extract_features(clips, backbone, cache).to(backbone.device)
    mos = torch.tensor([clip.mos for clip in clips], device=backbone.device)
    classes = sorted({label(clip) for clip in clips})
    model = torch.tensor([classes.index(label(clip)) for clip in clips], device=backbone.device)
    return Clips(features, mos, model), classes


def synthesis_model(clip):
    """What the second task classifies (III.C)."""
    return clip.model


def build_model(config, backbone, classes):
    """The untrained model of a configuration."""
    return moemos.MoEMOS(backbone.layers, backbone.width, len(classes), config.experts,
                         config.hidden, config.dropout, config.scale)


def train(config, stages=STAGES, label=synthesis_model, build=build_model, backbone=None):
    """Trains, and writes model.pt, config.json and log.csv into config.out; returns the model.

    What follows config is for studies. Raises InputError for whatever cannot be used, before any
    work that it would spoil.
    """
    check(config)
    device = data.pick_device(config.device)
    data.check_writable(config.out)
    data.check_writable(config.cache)
    clips, held_out = training_clips(config)
    backbone = backbone or data.open_backbone(config.backbone, device)
    config = replace(config, backbone=backbone.name)
    everything, classes = as_tensors(clips + held_out, backbone, config.cache, label)
    training = everything.take(slice(len(clips)))
    validation = everything.take(slice(len(clips), None))
    rated = [int((~part.mos.isnan()).sum()) for part in (training, validation)]
    print(f"{len(clips)} clips to train on, {rated[0]} with MOS; {len(held_out)} held out, "
          f"{rated[1]} with MOS; {len(classes)} classes; backbone {backbone.name} "
          f"on {backbone.device}")

    torch.manual_seed(config.seed)
    model = build(config, backbone, classes)
    stages = stages_to_run(stages, config)
    rows = run_stages(model, stages, config, training, validation)
    write_run(config, model, stages, classes, backbone, rows)
    return model


def write_run(config, model, stages, classes, backbone, rows):
    """Writes log.csv, config.json and, last, model.pt: the head, as plain tensors and values."""
    out = Path(config.out)
    if (out / "model.pt").exists():
        for name in RESULTS:  # of the model that was there
            (out / name).unlink(missing_ok=True)
    data.write_csv(out / "log.csv", [rows[0].keys(), *(row.values() for row in rows)])
    settings = asdict(config)
    data.write_atomically(out / "config.json", (json.dumps(settings, indent=2) + "\n").encode())
    del settings["out"]  # so that a run has the same bytes wherever it is written
    checkpoint = io.BytesIO()
    torch.save({"weights": {name: tensor.cpu() for name, tensor in model.state_dict().items()},
                "config": settings, "stages": [stage._asdict() for stage in stages],
                "classes": classes,
                "backbone": {"name": backbone.name, "identity": backbone.identity}}, checkpoint)
    data.write_atomically(out / "model.pt", checkpoint.getvalue())
    print(f"wrote {out}/model.pt, config.json, log.csv")


def parse(parser, **defaults):
    """Adds every setting to a parser, parses the command line -> (Config, its other options)."""
    for setting in fields(Config):
        form = {"type": setting.type}
        if setting.name == "scale":
            form = {"type": float, "nargs": 2, "metavar": ("LOW", "HIGH")}
        default = defaults.get(setting.name, setting.default)
        parser.add_argument(flag(setting), **form, default=default,
                            choices=setting.metadata.get("choices"),
                            help=f"{setting.metadata['help']} (default: {default!r})")
    options = vars(parser.parse_args())
    settings = {setting.name: options.pop(setting.name) for setting in fields(Config)}
    settings["scale"] = tuple(settings["scale"])
    return Config(**settings), options


def main():
    config, _ = parse(argparse.ArgumentParser(
        allow_abbrev=False, description="Trains the speech quality predictor of arXiv 2507.06116."))
    with data.one_sentence("train.py"):
        train(config)


if __name__ == "__main__":
    main()
