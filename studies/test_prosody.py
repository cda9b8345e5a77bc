"""Tests of pitch, energy and duration beside the fused features."""

import math

import numpy as np
import pytest
import torch

import data
import evaluate
import moemos
from studies import prosody
from test_moemos import call, no_network, quick, small, table  # noqa: F401 - fixtures


def tone(hz, seconds, rate):
    return 0.5 * torch.sin(2 * math.pi * hz * torch.arange(int(rate * seconds)) / rate)


@pytest.fixture(scope="module")
def backbone():
    return prosody.ProsodyBackbone(moemos.load_backbone("logmel"))


@pytest.mark.parametrize("name", ["logmel", "logmel48"])
def test_prosody_of_a_tone_by_hand(name):
    backbone = prosody.ProsodyBackbone(moemos.load_backbone(name))
    waveform = tone(200, 2.0, backbone.sample_rate)
    statistics = moemos.pool_statistics(backbone.extract(waveform))[-1].view(2, backbone.width)
    mean, deviation = statistics[:, :3]
    expected = [1.0, 10 * math.log10(0.125), 1.0]  # an octave above 100 Hz, dB, log2 of 2 s
    assert mean.tolist() == pytest.approx(expected, abs=0.02)
    assert deviation[2] == 0
    assert deviation[1] < 0.05
    assert (statistics[:, 3:] == 0).all()
    assert backbone.extract(torch.zeros(backbone.sample_rate // 40)).isfinite().all()


def test_at_50_frames_a_second_every_second_track_is_taken_to_the_clips_end(backbone):
    waveform = torch.cat([tone(100, 1.0, 16000), tone(200, 1.0, 16000)])
    every = backbone.prosody(waveform, 198)
    half = backbone.prosody(waveform, 99)
    assert every[-1, 0] == pytest.approx(1, abs=0.02)  # an octave up
    torch.testing.assert_close(half, every[::2])


def test_the_other_layers_are_the_backbones_own(backbone):
    plain = moemos.load_backbone("logmel")
    waveform = torch.randn(8000)
    assert torch.equal(backbone.extract(waveform)[:-1], plain.extract(waveform))
    assert (backbone.layers, backbone.width) == (4, 80)
    assert backbone.identity != plain.identity  # so that no run takes it for the other


def test_the_fusion_joins_six_standardised_numbers_to_the_fused_features():
    fusion = prosody.ProsodyFusion(3, 5)
    features = torch.randn(50, 4, 10)
    fusion.set_statistics(features)
    plain = moemos.FeatureFusion(3, 5)
    plain.set_statistics(features[:, :3])
    fused = fusion(features)
    assert tuple(fused.shape) == (50, 36)
    torch.testing.assert_close(fused[:, :30], plain(features[:, :3]))
    tracks = features[:, 3, [0, 1, 2, 5, 6, 7]].numpy()
    expected = (tracks - tracks.mean(0)) / tracks.std(0)
    np.testing.assert_allclose(fused[:, 30:].detach(), expected, atol=1e-4)


def test_clips_of_one_length_teach_nothing_of_others():
    fusion = prosody.ProsodyFusion(1, 3)
    features = torch.randn(2, 2, 6)
    features[:, 1, 2] = 0.0  # log2 of 1 s
    fusion.set_statistics(features)
    features[:, 1, 2] = 1.0  # twice the length
    assert fusion(features)[:, 6 + 2].tolist() == pytest.approx([10, 10])


def test_prosody_moves_the_mos_and_a_clip_keeps_its_one_score(small, tmp_path):
    prosody.run(quick(small, tmp_path))
    rows = {row["wav"]: row for row in table(tmp_path / "run" / "predictions.csv")}
    own = prosody.ProsodyBackbone(moemos.load_backbone("logmel"))
    trained = evaluate.load_run(tmp_path / "run", build=prosody.build, backbone=own)
    _, features = evaluate.read_clip(small / "40.wav", trained)
    mos = trained.model(features).mos.item()
    assert mos == float(rows["40.wav"]["predicted"])
    louder = features.clone()
    louder[:, -1, 1] += 10  # dB
    assert trained.model(louder).mos.item() != mos
    assert trained.model.moe.gate.weight.shape[1] == 3 * 2 * 80 + 6
    with pytest.raises(data.InputError, match="of another version"):  # it is no run of the core
        evaluate.load_run(tmp_path / "run")


def test_the_command_line_trains_and_evaluates(small, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = ("--data", small, "--backbone", "logmel", "--steps", 1, "--out", "runs/prosody")
    assert call(monkeypatch, prosody, *words) == 0
    assert (tmp_path / "runs" / "prosody" / "metrics.json").exists()
    assert call(monkeypatch, prosody, "--data", "nowhere", "--backbone", "logmel") == 2
