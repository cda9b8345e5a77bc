"""Tests of studies/prosody.py: pitch, energy and duration as one more layer of a backbone."""

import math

import pytest
import torch

import moemos
from studies import prosody
from test_moemos import no_network  # noqa: F401 - a fixture


def tone(hz, seconds, rate):
    return 0.5 * torch.sin(2 * math.pi * hz * torch.arange(int(rate * seconds)) / rate)


@pytest.fixture(scope="module")
def backbone():
    return prosody.ProsodyBackbone(moemos.load_backbone("logmel"))


def test_prosody_of_a_tone_agrees_with_values_computed_by_hand(backbone):
    waveform = tone(200, 2.0, backbone.sample_rate)
    statistics = moemos.pool_statistics(backbone.extract(waveform))[-1].view(2, backbone.width)
    mean, deviation = statistics[:, :3]
    expected = [1.0, 10 * math.log10(0.125), 1.0]  # an octave above 100 Hz, dB, log2 of 2 s
    assert mean.tolist() == pytest.approx(expected, abs=0.02)
    assert deviation[2] == 0
    assert deviation[1] < 0.05
    assert (statistics[:, 3:] == 0).all()
    assert backbone.extract(torch.zeros(backbone.sample_rate // 40)).isfinite().all()


def test_at_50_frames_a_second_every_second_value_of_prosody_is_used_up_to_the_end_of_the_clip(
        backbone):
    waveform = torch.cat([tone(100, 1.0, 16000), tone(200, 1.0, 16000)])
    every = backbone.prosody(waveform, 198)
    half = backbone.prosody(waveform, 99)
    assert every[-1, 0] == pytest.approx(1, abs=0.02)  # an octave up
    torch.testing.assert_close(half, every[::2])


def test_adding_prosody_does_not_change_the_other_layers(backbone):
    plain = moemos.load_backbone("logmel")
    waveform = torch.randn(8000)
    assert torch.equal(backbone.extract(waveform)[:-1], plain.extract(waveform))
    assert (backbone.layers, backbone.width) == (3, 80)
    assert backbone.identity != plain.identity  # so that a run distinguishes them
