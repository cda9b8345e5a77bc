"""Pitch, energy and duration, which section IV names as future work; the form is ours.

They come as one more layer of the backbone, so that all that follows stays as it is: three tracks,
which are octaves above 100 Hz (of voiced and unvoiced frames alike), dB, and log2 of the clip's
seconds, the same in all frames; zeros behind them. `python -m studies.questions prosody`.
"""

import torch
import torchaudio
from torch import nn

import data
import moemos
from studies.lab import Corpus

TRACKS = 3


class ProsodyBackbone(moemos.Backbone):
    """A backbone whose last layer is prosody: (L + 1, F, D)."""

    def __init__(self, backbone):
        super().__init__(backbone.name, backbone.network, backbone.sample_rate, backbone.device)
        self.identity = f"prosody-{backbone.identity}"

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


def with_prosody(corpus):
    """A Corpus -> the same, with the features of such a backbone."""
    backbone = ProsodyBackbone(corpus.backbone)
    return Corpus(corpus.clips, data.extract_features(corpus.clips, backbone), backbone)
