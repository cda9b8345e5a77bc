"""Pitch, energy and duration, which section IV names as future work; how they are added is ours.

They are one more layer of the backbone, so that nothing that follows has to change. The first three
numbers of a frame in this layer are the pitch, in octaves above 100 Hz (whether the frame is voiced
or not), the energy, in dB, and the duration, log2 of the clip's seconds, which is the same in all
frames; the other numbers are zeros. The command is `python -m studies.questions prosody`.
"""

import torch
import torchaudio
from torch import nn

import data
import moemos
from studies.lab import Corpus

TRACKS = 3  # pitch, energy, duration


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
        """(T,) -> (frames, TRACKS). They are computed 100 times a second; for a backbone with 50
        frames a second every second one is taken, and the last one is repeated if need be."""
        padding = max(self.sample_rate - len(waveform), 0)
        padded = nn.functional.pad(waveform, (0, padding))  # to 1 s: the median takes 0.3 s
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
    """A Corpus with the features of a ProsodyBackbone around the one that it had."""
    backbone = ProsodyBackbone(corpus.backbone)
    return Corpus(corpus.clips, data.extract_features(corpus.clips, backbone), backbone)
