"""Pitch, energy and duration, which section IV names as future work; the form is ours.

    python -m studies.prosody [train.py's options]

joins them to the fused features, trains and evaluates into runs/with_prosody. They come as one more
layer of the backbone, so that they are cached and batched as the others are: three tracks, which
are octaves above 100 Hz (of voiced and unvoiced frames alike), dB, and log2 of the clip's seconds,
the same in all frames.
"""

import argparse

import torch
import torchaudio
from torch import nn

import data
import evaluate
import moemos
import train

TRACKS = 3


class ProsodyBackbone(moemos.Backbone):
    """A backbone whose last layer is prosody: (L + 1, F, D), zeros behind the three tracks."""

    def __init__(self, backbone):
        super().__init__(backbone.name, backbone.network, backbone.sample_rate, backbone.device)
        self.identity = f"prosody-{self.identity}"

    @torch.no_grad()
    def extract(self, waveform):
        layers = super().extract(waveform)                                  # (L, F, D)
        tracks = self.prosody(waveform.cpu(), layers.shape[1])              # (F, TRACKS)
        tracks = tracks.to(layers.device)
        last = nn.functional.pad(tracks, (0, layers.shape[2] - TRACKS))     # (F, D)
        return torch.cat([layers, last[None]])                              # (L + 1, F, D)

    def prosody(self, waveform, frames):
        """(T,) -> (frames, TRACKS): 100 a second, or every second one for a wav2vec2's 50; the last
        is repeated if need be."""
        padding = max(self.sample_rate - len(waveform), 0)
        padded = nn.functional.pad(waveform, (0, padding))  # to 1 s: its median takes 0.3 s
        pitch = torchaudio.functional.detect_pitch_frequency(padded, self.sample_rate)
        octaves = (pitch / 100).log2()
        window, hop = self.sample_rate // 40, self.sample_rate // 100  # 25 ms, 10 ms
        power = waveform.unfold(0, window, hop).square().mean(1)
        decibels = 10 * (power + 1e-8).log10()  # floor: -80 dB
        length = min(len(octaves), len(decibels))
        duration = torch.full((length,), len(waveform) / self.sample_rate).log2()
        tracks = torch.stack([octaves[:length], decibels[:length], duration], dim=1)
        step = max(round(length / frames), 1)
        return tracks[(step * torch.arange(frames)).clamp_max(length - 1)]


class ProsodyFusion(moemos.FeatureFusion):
    """FeatureFusion of the layers, and behind it the standardised statistics of the tracks."""

    def __init__(self, layers, width):
        super().__init__(layers, width)
        self.tracks = [*range(TRACKS), *range(width, width + TRACKS)]  # their means, deviations
        self.register_buffer("prosody_center", torch.zeros(2 * TRACKS))
        self.register_buffer("prosody_scale", torch.ones(2 * TRACKS))

    def set_statistics(self, features):
        super().set_statistics(features[:, :-1])
        values = features[:, -1, self.tracks].double()
        self.prosody_center.copy_(values.mean(0))
        deviation = values.std(0, correction=0)
        self.prosody_scale.copy_(deviation.clamp_min(0.1))  # clips of one length have deviation 0

    def forward(self, features):                                            # (B, L + 1, 2D)
        fused = super().forward(features[:, :-1])                           # (B, L 2D)
        values = features[:, -1, self.tracks]                               # (B, 2 TRACKS)
        values = (values - self.prosody_center) / self.prosody_scale
        return torch.cat([fused, values], dim=1)                            # (B, L 2D + 2 TRACKS)


def build(config, backbone, classes):
    """MoEMOS with ProsodyFusion; its experts and gate read 2 TRACKS numbers more."""
    model = train.build_model(config, backbone, classes)
    model.fusion = ProsodyFusion(backbone.layers - 1, backbone.width)
    inputs = (backbone.layers - 1) * 2 * backbone.width + 2 * TRACKS
    model.moe = moemos.MixtureOfExperts(inputs, config.experts, config.hidden, config.dropout)
    return model


def run(config):
    """Trains and evaluates."""
    backbone = ProsodyBackbone(data.open_backbone(config.backbone, config.device))
    train.train(config, build=build, backbone=backbone)
    trained = evaluate.load_run(config.out, build=build, backbone=backbone)
    evaluate.evaluate(config.out, trained=trained)


def main():
    config, _ = train.parse(argparse.ArgumentParser(
        allow_abbrev=False, description="Trains with pitch, energy and duration."),
        out="runs/with_prosody")
    with data.one_sentence("studies.prosody"):
        run(config)


if __name__ == "__main__":
    main()
