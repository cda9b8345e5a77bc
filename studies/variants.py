"""The parts of the method left out, put back or exchanged: what studies/questions.py compares."""

import functools
from types import SimpleNamespace

import torch
from torch import nn

import moemos
import train
from studies.lab import Corpus, Variant


def without_path(config, backbone, classes):
    """E_i(x) = MLP_i(x), as the paper has it."""
    model = train.build_model(config, backbone, classes)
    nn.init.zeros_(model.moe.path.weight)
    model.moe.path.requires_grad_(False)
    return model


class WithClasses(moemos.MoEMOS):
    """The MOS head reads the class probabilities too."""

    def __init__(self, *sizes):
        super().__init__(*sizes)
        self.by_class = nn.Linear(self.class_head.out_features, 1, bias=False)

    def forward(self, features):
        output = super().forward(features)
        more = self.by_class(output.logits.softmax(1)).squeeze(1)
        return output._replace(mos=output.mos + self.deviation * more)


def with_classes(config, backbone, classes):
    return WithClasses(backbone.layers, backbone.width, len(classes), config.experts,
                       config.hidden, config.shrinkage)


def with_dropout(config, backbone, classes):
    model = train.build_model(config, backbone, classes)
    for expert in model.moe.experts:
        expert[1] = nn.Sequential(expert[1], nn.Dropout(0.7))
    return model


class LayerWeights(moemos.FeatureFusion):
    """Each layer times L its softmax weight, 1 at the start."""

    def __init__(self, layers, width):
        super().__init__(layers, width)
        self.logits = nn.Parameter(torch.zeros(layers))

    def forward(self, features):
        layers = len(self.logits)
        fused = super().forward(features).view(len(features), layers, -1)
        return (layers * self.logits.softmax(0)[:, None] * fused).flatten(1)


def with_layer_weights(config, backbone, classes):
    model = train.build_model(config, backbone, classes)
    model.fusion = LayerWeights(backbone.layers, backbone.width)
    return model


class MeansOnly(moemos.FeatureFusion):
    """The deviations over time are left out: they become 0."""

    def forward(self, features):
        fused = super().forward(features).view(len(features), *self.center.shape)
        fused[:, :, self.center.shape[1] // 2:] = 0
        return fused.flatten(1)


def means_only(config, backbone, classes):
    model = train.build_model(config, backbone, classes)
    model.fusion = MeansOnly(backbone.layers, backbone.width)
    return model


WIDTH = SimpleNamespace(layers=12, width=768)  # of WAV2VEC2_BASE


@functools.lru_cache(maxsize=1)
def orthogonal(inputs):
    """A fixed random map (inputs, L 2D) of that width that keeps all lengths and angles."""
    outputs = WIDTH.layers * 2 * WIDTH.width
    drawn = torch.randn(outputs, inputs, generator=torch.Generator().manual_seed(0))
    return torch.linalg.qr(drawn)[0].T


def at_full_width(corpus):
    """A Corpus with its features, standardised, taken to the width of WAV2VEC2_BASE: other and more
    numbers, which hold the same."""
    flat = corpus.features.flatten(1)
    deviation, mean = torch.std_mean(flat, 0, correction=0)
    wide = (flat - mean) / deviation.clamp_min(1e-3) @ orthogonal(flat.shape[1])
    return Corpus(corpus.clips, wide.view(-1, WIDTH.layers, 2 * WIDTH.width), WIDTH)


def nothing(clip):
    return "a clip"


def condition(clip):
    return clip.system


def sampling_rate(clip):
    """Of a simulated clip, whose system is named by it, such as 24k_tts; "other" without MOS."""
    return clip.system.partition("_")[0] if clip.ratings else "other"


CLASSIFICATION, JOINT, MOS = train.STAGES
ALL = sum(stage.steps for stage in train.STAGES)

PATH = Variant("no linear path", build=without_path)
CLASSES = Variant("class probabilities for the MOS head", build=with_classes)
LAYERS = Variant("softmax weights of layers", build=with_layer_weights)
STATIC = Variant("means only, no deviations", build=means_only)
ONE = Variant("one expert", {"experts": 1})
TWO = Variant("two experts", {"experts": 2})
EIGHT = Variant("eight experts", {"experts": 8})
WIDE = Variant("one as wide as four", {"experts": 1, "hidden": 128})
NARROW = Variant("hidden width 16", {"hidden": 16})
DROPOUT = Variant("dropout of .7 within experts", build=with_dropout)
NO_SHRINKAGE = Variant("no dropout of features", {"shrinkage": 0.0})
LESS_DECAY = Variant("weight decay 0.01, AdamW's own", {"weight_decay": 0.01})
PLAIN_LAMBDAS = Variant("no regularisers", {"lambda_1": 0.0, "lambda_2": 0.0})
NO_DIVERSITY = Variant("no L_diversity", {"lambda_1": 0.0})
NO_SPARSITY = Variant("no L_sparsity", {"lambda_2": 0.0})
STRONG = Variant("both ten times as strong", {"lambda_1": 0.2, "lambda_2": 0.2})
NO_TASK = Variant("no second task", label=nothing)
BY_CONDITION = Variant("second task: the condition", label=condition)
BY_RATE = Variant("second task: the sampling rate", label=sampling_rate)
FULL_WIDTH = Variant("the same at 18,432 features", features=at_full_width)
FULL_WIDTH_UNDROPPED = Variant("there, no dropout of features", {"shrinkage": 0.0},
                               features=at_full_width)
RATED = Variant("rated clips only", unrated=False)
SLOWER = Variant("lr of stage 2 at stage 1's 1e-4", stages=(
    CLASSIFICATION, JOINT._replace(lr=1e-4), MOS))
FEWER_STEPS = Variant("half the steps of stage 2", stages=(
    CLASSIFICATION, JOINT._replace(steps=JOINT.steps // 2), MOS))
ONE_STAGE = Variant("one stage, joint", stages=(JOINT._replace(steps=ALL),))
REVERSED = Variant("the stages reversed", stages=(MOS, JOINT, CLASSIFICATION))
MOS_ALONE = Variant("MOS alone", stages=(
    JOINT._replace(steps=ALL, alpha_start=1.0, alpha_end=1.0),))
