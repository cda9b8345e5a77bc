"""Variants of the method, in which a part is left out or exchanged, for studies/questions.py."""

import functools

import numpy as np
import torch
from torch import nn

import data
import moemos
import train
from studies.distilled import zero_shot
from studies.lab import Variant


def at_random(config, weights, clips):
    """Everything that is trained starts random, in torch's usual way."""
    model = train.build_model(config, weights)
    for module in (*model.moe.modules(), model.class_head, model.mos_head):
        if isinstance(module, nn.Linear):
            module.reset_parameters()
    return model


def without_v(config, weights, clips):
    """No linear map V, E_i(x) = MLP_i(x), as in the paper. Everything starts random."""
    model = at_random(config, weights, clips)
    nn.init.zeros_(model.moe.linear.weight)
    model.moe.linear.requires_grad_(False)
    return model


def without_mlps(config, weights, clips):
    """No perceptrons, so that y = V x. Their last layers start at 0, and are not trained."""
    model = train.build_model(config, weights)
    model.moe.mlps.requires_grad_(False)
    return model


def line_alone(config, weights, clips):
    """The MOS head starts as ridge regression of the MOS alone, without what the classes say."""
    head = torch.zeros_like(weights["mos_head.weight"])
    head[0, 0] = 1
    return train.build_model(config, weights | {"mos_head.weight": head})


def unshrunk(config, weights, clips):
    """Every axis has variance 1; training starts from the same linear model."""
    kept = train.build_model(config, weights).fusion(clips.features).std(0, correction=0)
    return train.build_model(config, weights | {
        "fusion.axes": weights["fusion.axes"] / kept,
        "moe.linear.weight": weights["moe.linear.weight"] * kept})


class LayerWeights(moemos.FeatureFusion):
    """Multiplies each layer by L times its softmax weight, which makes 1 at the start."""

    def __init__(self, fusion):
        layers, statistics = fusion.mean.shape
        super().__init__(layers, statistics // 2, fusion.axes.shape[1])
        self.load_state_dict(fusion.state_dict())
        self.logits = nn.Parameter(torch.zeros(layers))

    def forward(self, features):
        weights = len(self.logits) * self.logits.softmax(0)[:, None]
        return super().forward(self.mean + weights * (features - self.mean))


def with_layer_weights(config, weights, clips):
    model = train.build_model(config, weights)
    model.fusion = LayerWeights(model.fusion)
    return model


def means_only(corpus):
    """A Corpus without the deviations over time."""
    return corpus._replace(features=corpus.features[:, :, :corpus.features.shape[2] // 2])


LAYERS, WIDTH = 12, 768  # of WAV2VEC2_BASE


@functools.lru_cache(maxsize=1)
def orthogonal(inputs):
    """A fixed random map, (inputs, LAYERS * 2 * WIDTH), that keeps all lengths and angles."""
    outputs = LAYERS * 2 * WIDTH
    drawn = torch.randn(outputs, inputs, generator=torch.Generator().manual_seed(0))
    return torch.linalg.qr(drawn)[0].T


def at_full_width(corpus):
    """A Corpus with as many features as WAV2VEC2_BASE gives. They are the features of the corpus,
    standardised and spread by a random map: more numbers that hold the same information."""
    flat = corpus.features.flatten(1)
    deviation, mean = torch.std_mean(flat, 0, correction=0)
    wide = (flat - mean) / deviation.clamp_min(1e-3) @ orthogonal(flat.shape[1])
    return corpus._replace(features=wide.view(-1, LAYERS, 2 * WIDTH))


def nothing(clip):
    return "a clip"


def by_distilled(variant, corpus, learned, predicted, seed, how):
    """What DistillMOS itself predicts. It learns nothing from the clips of the test."""
    paths = [clip.path for clip, row in zip(corpus.clips, predicted) if row]
    rate = corpus.backbone.sample_rate
    mos = [zero_shot(corpus.backbone, data.read_wav(path, rate)) for path in paths]
    return np.array(mos), None


CLASSIFICATION, JOINT, MOS = train.STAGES
ALL = sum(stage.steps for stage in train.STAGES)


def with_steps(number):
    return tuple(stage._replace(steps=number) for stage in train.STAGES)


FASTER = (CLASSIFICATION, JOINT._replace(lr=1e-3, steps=500), MOS)  # for what starts random

DISTILLED = Variant("DistillMOS itself", predict=by_distilled, drawn=False)
START = Variant("the method before training", stages=(), drawn=False)
RANDOM = Variant("random start, 500 steps at 1e-3", stages=FASTER, build=at_random)
PAPER = Variant("the form nearest to the paper", stages=FASTER, build=without_v)
PAPER_ONE = Variant("with one expert", {"experts": 1}, stages=FASTER, build=without_v)
LINE_ALONE = Variant("MOS head starts as ridge", build=line_alone)
UNSHRUNK = Variant("axes not shrunk", build=unshrunk)
MEANS_ONLY = Variant("means only, no deviations", features=means_only)
LAYER_WEIGHTS = Variant("layers weighted by a softmax", build=with_layer_weights)
ONE = Variant("one expert", {"experts": 1})
EIGHT = Variant("eight experts", {"experts": 8})
NO_MLPS = Variant("no perceptrons, V alone", {"experts": 1}, build=without_mlps)
NARROW = Variant("hidden width 16", {"hidden": 16})
NO_DIVERSITY = Variant("no L_diversity", {"lambda_1": 0.0})
NO_SPARSITY = Variant("no L_sparsity", {"lambda_2": 0.0})
NO_TASK = Variant("no second task", label=nothing)
PLAIN = Variant("one expert, no second task, rated clips only", {"experts": 1}, label=nothing,
                unrated=False)
FULL_WIDTH = Variant("with 18,432 features", features=at_full_width)
RATED = Variant("rated clips only", unrated=False)
RATED_NO_TASK = Variant("rated clips only, no second task", label=nothing, unrated=False)
FASTER_JOINT = Variant("stage 2 at a rate of 1e-3", stages=(
    CLASSIFICATION, JOINT._replace(lr=1e-3), MOS))
LONGER_JOINT = Variant("the method, 500 steps at 1e-3", stages=FASTER)
RANDOM_SHORT = Variant("random start", build=at_random)
FEWER = Variant("100 steps a stage", stages=with_steps(100))
MORE = Variant("300 steps a stage", stages=with_steps(300))
ONE_STAGE = Variant("one stage, joint", stages=(JOINT._replace(steps=ALL),))
REVERSED = Variant("stages in reverse order", stages=(MOS, JOINT, CLASSIFICATION))
MOS_ALONE = Variant("MOS loss alone", stages=(
    JOINT._replace(steps=ALL, alpha_start=1.0, alpha_end=1.0),))
AFTER_1 = Variant("after stage 1", stages=train.STAGES[:1])
AFTER_2 = Variant("after stages 1 and 2", stages=train.STAGES[:2])
