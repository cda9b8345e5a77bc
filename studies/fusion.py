"""What each part of fusion and heads buys: the model with one part replaced (ours).

    python -m studies.fusion --part summed [train.py's options]
    python -m studies.fusion --part summed --wav PATH ...

The first trains and evaluates into --out, runs/fusion_part; the second scores clips by that run, as
evaluate.py cannot, which knows the method alone. Letters of dimensions: see moemos.py.
"""

import argparse
import sys
from dataclasses import replace

import torch
from torch import nn

import data
import evaluate
import moemos
import train

# -- The parts -------------------------------------------------------------------------------------

class SummedFusion(moemos.FeatureFusion):
    """FeatureFusion whose weighted layers are summed, not side by side."""

    def forward(self, features):                                            # (B, L, 2D)
        weighted = super().forward(features).view(features.shape)           # (B, L, 2D)
        return weighted.sum(1)                                              # (B, 2D)


class LayerNormFusion(moemos.FeatureFusion):
    """FeatureFusion of layers that are first normalised, each by its own mean and deviation in
    that clip, so that their level is lost."""

    def __init__(self, layers, width):
        super().__init__(layers, width)
        self.register_buffer("normed", torch.ones(()))  # so that evaluate.py refuses such a run

    def set_statistics(self, features):
        super().set_statistics(layer_norm(features))

    def forward(self, features):                                            # (B, L, 2D)
        return super().forward(layer_norm(features))                        # (B, L 2D)


def layer_norm(features):
    """(B, L, 2D) -> the same, each layer of each clip with mean 0 and deviation 1."""
    return nn.functional.layer_norm(features, features.shape[2:])


class EqualFusion(moemos.FeatureFusion):
    """FeatureFusion whose layers have equal weights, which are not learned."""

    def __init__(self, layers, width):
        super().__init__(layers, width)
        self.layer_logits.requires_grad_(False)  # all 0


class ExpertsAlone(moemos.MixtureOfExperts):
    """MixtureOfExperts without the linear path: its weights are 0 and not learned."""

    def __init__(self, inputs, experts, hidden, dropout):
        super().__init__(inputs, experts, hidden, dropout)
        nn.init.zeros_(self.v)
        self.v.requires_grad_(False)


class WideExpert(nn.Module):
    """One expert in the place of E, without gate: E_1(x) = V x + W2 gelu(W1 x + b1) + b2, whose
    inner width is that of all E together, so that W1 and W2 have as many weights as theirs."""

    def __init__(self, inputs, experts, hidden, dropout):
        super().__init__()
        wide = experts * hidden
        self.v = nn.Parameter(torch.empty(inputs, hidden))
        self.w1 = nn.Parameter(torch.empty(inputs, wide))
        self.b1 = nn.Parameter(torch.zeros(wide))
        self.w2 = nn.Parameter(torch.empty(wide, hidden))
        self.b2 = nn.Parameter(torch.zeros(hidden))
        for weight in (self.v, self.w1, self.w2):
            nn.init.normal_(weight, std=len(weight) ** -0.5)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x):                                                   # (B, L 2D)
        inner = self.dropout(nn.functional.gelu(x @ self.w1 + self.b1))     # (B, E H)
        y = inner @ self.w2 + self.b2 + x @ self.v                          # (B, H)
        return y, torch.ones(len(x), 1, device=x.device), y[:, None]        # and (B, 1), (B, 1, H)


class SeparateHeads(moemos.MoEMOS):
    """MoEMOS whose MOS head reads y alone, no classes."""

    def __init__(self, layers, width, classes, experts, hidden, dropout, scale):
        super().__init__(layers, width, classes, experts, hidden, dropout, scale)
        self.mos_head = nn.Linear(hidden, 1)

    def forward(self, features):                                            # (B, L, 2D)
        fused = self.dropout(self.fusion(features))                         # (B, L 2D)
        y, gates, experts = self.moe(fused)                                 # (B, H), ...
        logits = self.class_head(y)                                         # (B, C)
        mos = self.middle + self.unit * self.mos_head(y).squeeze(1)         # (B,)
        return moemos.Output(mos, logits, gates, experts, y)


# -- Models with one of them: build, as of train.train ---------------------------------------------

def build_summed(config, backbone, classes):
    model = train.build_model(config, backbone, classes)
    model.fusion = SummedFusion(backbone.layers, backbone.width)
    model.moe = moemos.MixtureOfExperts(2 * backbone.width, config.experts, config.hidden,
                                        config.dropout)
    return model


def build_separate_heads(config, backbone, classes):
    return SeparateHeads(backbone.layers, backbone.width, len(classes), config.experts,
                         config.hidden, config.dropout, config.scale)


def with_fusion(kind):
    def build(config, backbone, classes):
        model = train.build_model(config, backbone, classes)
        model.fusion = kind(backbone.layers, backbone.width)
        return model
    return build


def with_experts(kind, experts=0):
    """experts: their number, where it is not the configuration's."""
    def build(config, backbone, classes):
        model = train.build_model(config, backbone, classes)
        inputs = backbone.layers * 2 * backbone.width
        model.moe = kind(inputs, experts or config.experts, config.hidden, config.dropout)
        return model
    return build


PARTS = {
    "summed": build_summed,
    "layer norm": with_fusion(LayerNormFusion),
    "no linear path": with_experts(ExpertsAlone),
    "MOS head reads y alone": build_separate_heads,
    "equal weights": with_fusion(EqualFusion),
    "wide": with_experts(WideExpert, train.Config.experts),  # as wide as the default's together
}


def run(config, part):
    """Trains and evaluates the model of one of PARTS."""
    if part == "wide":
        config = replace(config, experts=1)
    train.train(config, build=PARTS[part])
    trained = evaluate.load_run(config.out, config.device, build=PARTS[part])
    evaluate.evaluate(config.out, trained=trained)


def main():
    parser = argparse.ArgumentParser(
        allow_abbrev=False, description="Trains with a part of fusion or heads replaced.")
    parser.add_argument("--part", choices=tuple(PARTS), default="summed",
                        help="what is replaced, or by what (default: 'summed')")
    parser.add_argument("--wav", nargs="+", metavar="PATH",
                        help="score these files, and all in these folders, by the run in --out")
    config, options = train.parse(parser, out="runs/fusion_part")
    part, paths = options["part"], options["wav"]
    skipped = False
    with data.one_sentence("studies.fusion"):
        if paths:
            scores = evaluate.score(config.out, paths, config.device, PARTS[part])
            skipped = evaluate.print_scores(scores)
        else:
            run(config, part)
    sys.exit(skipped)


if __name__ == "__main__":
    main()
