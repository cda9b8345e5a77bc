"""Tests as oracles: a number worked out by hand, a plain loop, scipy's function, or a property.

None downloads. Their order is the core's: model, losses, metrics, schedule, backbone, audio,
ratings, features, training, evaluation, scoring, command lines, processes, shape. Each other file
of tests imports what it needs of the first section.
"""

import ast
import atexit
import contextlib
import csv
import dataclasses
import functools
import hashlib
import importlib
import io
import itertools
import json
import math
import multiprocessing
import os
import pkgutil
import re
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

import numpy as np
import pytest
import scipy.signal
import scipy.stats
import torch
import torchaudio
from scipy.io import wavfile

import data
import evaluate
import moemos
import train
from corpora import simulated

HERE = Path(__file__).resolve().parent
REAL_CLIPS = HERE.parent / "shared" / "data" / "p835_wb16k"
FORMATS = HERE.parent / "shared" / "data" / "audio_formats"
DOWNLOAD = torch.hub.download_url_to_file
nan = float("nan")
torch.set_num_threads(1)  # the tensors are small, and threads of a busy machine wait for each other


# -- What other test files use too -----------------------------------------------------------------

def table(path):
    return list(csv.DictReader(Path(path).read_text().splitlines()))


def call(monkeypatch, module, *words):
    """Exit status of a script's main() with these words on its command line."""
    monkeypatch.setattr(sys, "argv", [f"{module.__name__}.py", *map(str, words)])
    try:
        module.main()
    except SystemExit as end:
        return int(end.code or 0)
    return 0


def quick(corpus, tmp_path, **settings):
    """Settings of a run of seconds; the features of the simulated corpus are extracted once."""
    cache = scratch() / "cache" if Path(corpus).name == "simulated" else tmp_path / "cache"
    usual = {"data": str(corpus), "backbone": "logmel", "device": "cpu", "steps": 2,
             "cache": str(cache), "out": str(tmp_path / "run")}
    return train.Config(**(usual | settings))


def tone(rate, seconds=0.5):
    return 0.5 * np.sin(2 * np.pi * 440 * np.arange(int(rate * seconds)) / rate)


def header(channels, rate, width=2, samples=bytes(8000)):
    """A WAV file of PCM samples of `width` bytes that says it has these channels and this rate."""
    block = width * channels
    return struct.pack("<4sI4s4sIHHIIHH4sI", b"RIFF", 36 + len(samples), b"WAVE",
                       b"fmt ", 16, 1, channels, rate, block * rate, block, 8 * width,
                       b"data", len(samples)) + samples


def lay_out(folder, files, wavs):
    """Text files, and short clips of noise, under their paths -> the folder."""
    for name in [*files, *wavs]:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name).write_text(text)
    for i, name in enumerate(wavs):
        noise = 0.1 * np.random.default_rng(i).normal(size=4000)
        wavfile.write(folder / name, 16000, noise.astype(np.float32))
    return folder


def manifest(folder, rows, header="wav,split,system,model,rater,score"):
    """A ratings.csv, and two clips beside it, a.wav and b.wav -> the folder."""
    wavfile.write(folder / "a.wav", 16000, tone(16000).astype(np.float32))
    wavfile.write(folder / "b.wav", 16000, -tone(16000, 0.6).astype(np.float32))
    (folder / "ratings.csv").write_text("\n".join([header, *rows]) + "\n")
    return folder


def some_output(clips=6, classes=3, experts=4, seed=0):
    """A small untrained model and what it says of random features."""
    torch.manual_seed(seed)
    model = moemos.MoEMOS(layers=3, width=5, classes=classes, experts=experts, hidden=7).eval()
    return model, model(torch.randn(clips, 3, 10))


def hub_with_base_weights(folder):
    """Makes a hub folder with weights of WAV2VEC2_BASE's shape -> the network they came from."""
    torch.manual_seed(0)
    bundle = torchaudio.pipelines.WAV2VEC2_BASE
    network = torchaudio.models.wav2vec2_model(**bundle._params)
    (folder / "checkpoints").mkdir(parents=True)
    torch.save(network.state_dict(), folder / "checkpoints" / bundle._path)
    return network.eval()


def refuse_network(*args, **kwargs):
    raise OSError("no network in tests")


@functools.cache
def scratch():
    """A folder of what tests share, and must not change."""
    folder = tempfile.TemporaryDirectory()
    atexit.register(folder.cleanup)
    return Path(folder.name)


@functools.cache
def simulated_corpus():
    simulated.simulate(scratch() / "simulated", 101)
    return scratch() / "simulated"


@functools.cache
def small_corpus():
    """48 clips of four systems of two models, and of another without ratings; quick to train on."""
    folder, rng = scratch() / "small", np.random.default_rng(0)
    folder.mkdir()
    rows = [data.HEADER]
    for i in range(48):
        noise = 0.1 * (1 + i % 4) * rng.normal(size=4000)
        wavfile.write(folder / f"{i}.wav", 16000, noise.astype(np.float32))
        split = "test" if i >= 32 else "train"
        if i % 8 < 6 or split == "test":
            rows += [(f"{i}.wav", split, f"s{i % 4}", f"m{i % 2}", rater, 1 + i % 4)
                     for rater in range(2)]
        else:
            rows.append((f"{i}.wav", split, "x", "x", "", ""))
    data.write_csv(folder / "ratings.csv", rows)
    return folder


@functools.cache
def small_run():
    """A finished run on the small corpus."""
    with contextlib.redirect_stdout(None):
        train.train(quick(small_corpus(), scratch()))
    return scratch() / "run"


@pytest.fixture
def corpus():
    return simulated_corpus()


@pytest.fixture
def small():
    return small_corpus()


@pytest.fixture
def run(tmp_path):
    """A copy of the finished run, to do with as one likes."""
    return shutil.copytree(small_run(), tmp_path / "run")


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    """Any download fails the test that wants it."""
    def refuse(*args, **kwargs):
        pytest.fail("a test wants to download")
    monkeypatch.setattr(torch.hub, "download_url_to_file", refuse)


# -- Model -----------------------------------------------------------------------------------------

def test_mixture_is_the_gated_sum_of_the_experts_as_a_plain_loop_computes_it():
    torch.manual_seed(1)
    moe = moemos.MixtureOfExperts(10, experts=3, hidden=7, dropout=0.5).eval()
    x = torch.randn(4, 10)
    z, gates, experts = moe(x)
    for b in range(4):
        scores = moe.gate.weight @ x[b] + moe.gate.bias
        g = scores.exp() / scores.exp().sum()
        y = torch.zeros(7)
        for e in range(3):
            hidden = torch.nn.functional.gelu(x[b] @ moe.w1[e] + moe.b1[e])
            expert = x[b] @ moe.v + hidden @ moe.w2[e] + moe.b2[e]
            torch.testing.assert_close(experts[b, e], expert)
            y = y + g[e] * expert
        torch.testing.assert_close(gates[b], g)
        torch.testing.assert_close(z[b], y)


def test_experts_are_drawn_independently():
    torch.manual_seed(0)
    moe = moemos.MixtureOfExperts(100, experts=4, hidden=50, dropout=0.0)
    assert moe.v.std().item() == pytest.approx(0.1, rel=0.05)
    for weights, inputs in ((moe.w1, 100), (moe.w2, 50)):
        alike = np.corrcoef(weights.detach().flatten(1).numpy()) - np.eye(4)
        assert np.abs(alike).max() < 0.1
        assert weights.std().item() == pytest.approx(inputs ** -0.5, rel=0.05)


def test_output_shapes_and_gates_sum_to_one():
    _, output = some_output()
    shapes = {name: tuple(part.shape) for name, part in output._asdict().items()}
    assert shapes == {"mos": (6,), "logits": (6, 3), "gates": (6, 4), "experts": (6, 4, 7),
                      "y": (6, 7)}
    torch.testing.assert_close(output.gates.sum(1), torch.ones(6))


def test_both_heads_read_the_gated_sum_and_the_mos_head_the_class_probabilities():
    model, output = some_output()
    y = torch.einsum("be,beh->bh", output.gates, output.experts)
    torch.testing.assert_close(output.y, y)
    torch.testing.assert_close(output.logits, model.class_head(y))
    weight, bias = model.mos_head.weight[0], model.mos_head.bias
    for b in range(6):
        p = output.logits[b].exp() / output.logits[b].exp().sum()
        mos = 3 + weight[:7] @ y[b] + weight[7:] @ (math.sqrt(3) * p) + bias
        torch.testing.assert_close(output.mos[b:b + 1], mos)


def test_dropout_is_on_the_fused_features_and_inside_the_experts():
    model, _ = some_output()
    seen = {}
    for module in (model.dropout, model.moe.dropout, model.moe.gate):
        module.register_forward_hook(
            lambda module, inputs, output: seen.update({module: (inputs[0], output)}))
    model.train()(torch.randn(200, 3, 10))
    for module, shape in ((model.dropout, (200, 30)), (model.moe.dropout, (200, 4, 7))):
        before, after = seen[module]
        kept = after != 0
        assert tuple(after.shape) == shape
        assert kept.float().mean().item() == pytest.approx(0.3, abs=0.05)
        torch.testing.assert_close(after[kept], before[kept] / 0.3)
    assert torch.equal(seen[model.moe.gate][0], seen[model.dropout][1])


def test_fusion_lays_standardised_layers_side_by_side_each_by_its_softmax_weight():
    torch.manual_seed(0)
    fusion = moemos.FeatureFusion(3, 5)
    fusion.layer_logits.data = torch.tensor([0.0, 1.0, 2.0])
    features = torch.randn(4, 3, 10) * torch.tensor([1.0, 1000.0, 0.5])[:, None] + 3
    fusion.set_statistics(features)
    weights = np.exp([0, 1, 2]) / np.exp([0, 1, 2]).sum()
    x = features.numpy()
    for b in range(4):
        parts = [weights[i] * (x[b, i] - x[:, i].mean(0)) / x[:, i].std(0) for i in range(3)]
        np.testing.assert_allclose(
            fusion(features)[b].detach().numpy(), np.concatenate(parts), atol=1e-4)


def test_statistics_centre_and_scale_the_training_clips():
    torch.manual_seed(0)
    fusion = moemos.FeatureFusion(1, 5)
    features = torch.randn(600, 1, 10) * torch.linspace(0.1, 3, 10) + torch.linspace(-1, 4, 10)
    features[300:] += torch.linspace(3, 0, 10)  # whose last half is unlike its first
    fusion.set_statistics(features)
    fused = fusion(features)
    torch.testing.assert_close(fused.mean(0), torch.zeros(10), atol=1e-4, rtol=0)
    torch.testing.assert_close(fused.std(0, correction=0), torch.ones(10), atol=1e-4, rtol=0)
    fusion.set_statistics(features[:1])  # features that never vary
    torch.testing.assert_close(fusion(features[:1]), torch.zeros(1, 10), atol=1e-3, rtol=0)


def test_pool_statistics_are_mean_and_population_deviation_over_time():
    frames = torch.randn(2, 9, 5, generator=torch.Generator().manual_seed(0))
    pooled = moemos.pool_statistics(frames).numpy()
    x = frames.numpy()
    np.testing.assert_allclose(pooled, np.concatenate([x.mean(1), x.std(1)], 1), atol=1e-6)
    assert moemos.pool_statistics(frames[:, :1]).isfinite().all()


# -- Losses ----------------------------------------------------------------------------------------

def test_mos_loss_by_hand():
    predicted, mos = torch.tensor([1.0, 2.0, 9.0]), torch.tensor([1.5, 4.0, nan])
    assert moemos.mos_loss(predicted, mos).item() == pytest.approx((0.5 * 0.25 + 1.5) / 2)
    wide = moemos.mos_loss(predicted, mos, smooth_l1_beta=4.0)
    assert wide.item() == pytest.approx((0.25 / 8 + 4 / 8) / 2)


def test_classification_loss_by_hand_and_unknown_classes_left_out():
    logits = torch.tensor([[0.0, math.log(3)], [5.0, 1.0]])
    loss = moemos.classification_loss(logits, torch.tensor([1, -1]))
    assert loss.item() == pytest.approx(math.log(4 / 3))


@pytest.mark.parametrize(("gates", "diversity", "sparsity"), [
    ([[0.25] * 4] * 3, 1.0, 2.0),    # all alike: balanced, not sparse
    ([[1.0, 0, 0, 0]] * 3, 4.0, 1.0),  # collapse
    (np.eye(4).tolist(), 1.0, 1.0),  # specialised
    ([[0.5, 0.5], [0.9, 0.1]], 2 * (0.7 ** 2 + 0.3 ** 2),
     (1 / math.sqrt(0.5) + 1 / math.sqrt(0.82)) / 2),
    ([[1.0]] * 3, 1.0, 1.0),         # one expert
])
def test_regularisers_by_hand(gates, diversity, sparsity):
    gates = torch.tensor(gates)
    assert moemos.diversity_loss(gates).item() == pytest.approx(diversity, rel=1e-6)
    assert moemos.sparsity_loss(gates).item() == pytest.approx(sparsity, rel=1e-6)


def test_total_is_the_weighted_sum():
    _, output = some_output()
    mos, model = torch.tensor([1.0, 2, 3, 4, 5, nan]), torch.tensor([0, 1, 2, 0, 1, -1])
    terms = moemos.losses(output, mos, model, alpha=0.3, beta=0.6, lambda_1=0.11, lambda_2=0.13,
                          smooth_l1_beta=0.5)
    expected = {"mos": moemos.mos_loss(output.mos, mos, 0.5),
                "classification": moemos.classification_loss(output.logits, model),
                "diversity": moemos.diversity_loss(output.gates),
                "sparsity": moemos.sparsity_loss(output.gates)}
    weights = {"mos": 0.3, "classification": 0.6, "diversity": 0.11, "sparsity": 0.13}
    expected["total"] = sum(weights[name] * expected[name] for name in weights)
    torch.testing.assert_close(terms, expected)


@pytest.mark.parametrize("experts", [1, 4])
def test_gradients_are_finite_without_labels_and_with_saturated_gates(experts):
    model, _ = some_output(experts=experts)
    model.moe.gate.weight.data *= 1e4
    output = model(torch.randn(6, 3, 10))
    nothing = torch.full((6,), nan), torch.full((6,), -1)
    terms = moemos.losses(output, *nothing, alpha=0.5, beta=0.5)
    terms["total"].backward()
    assert terms["mos"] == terms["classification"] == 0
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


def test_clips_without_mos_give_the_mos_head_no_gradient_but_the_classifier_one():
    model, _ = some_output()
    output = model(torch.randn(6, 3, 10))
    labels = torch.full((6,), nan), torch.zeros(6, dtype=torch.long)
    moemos.losses(output, *labels, alpha=0.5, beta=0.5)["total"].backward()
    assert model.mos_head.weight.grad.abs().sum() == 0
    assert model.class_head.weight.grad.abs().sum() > 0


def test_losses_refuse_shapes_that_would_broadcast():
    _, output = some_output()
    with pytest.raises(ValueError, match=r"MOS \(6, 1\) must be \(6,\)"):
        moemos.losses(output, torch.ones(6, 1), torch.zeros(6, dtype=torch.long), 1, 0)


def test_gate_entropies_tell_collapse_from_specialisation():
    collapse, special, even = (
        [entropy.item() for entropy in moemos.gate_entropies(gates)]
        for gates in (torch.tensor([[1.0, 0.0]] * 4), torch.eye(4), torch.full((3, 4), 0.25)))
    assert collapse == [0, 0]
    assert special == pytest.approx([0, math.log(4)])
    assert even == pytest.approx([math.log(4)] * 2)


# -- Metrics ---------------------------------------------------------------------------------------

@pytest.mark.parametrize("ties", [False, True])
def test_metrics_agree_with_scipy(ties):
    rng = np.random.default_rng(0)
    p, t = rng.normal(size=(2, 40))
    if ties:
        p, t = p.round(), t.round()
    assert moemos.mse(p, t) == pytest.approx(np.square(p - t).mean())
    assert moemos.lcc(p, t) == pytest.approx(scipy.stats.pearsonr(p, t)[0])
    assert moemos.srcc(p, t) == pytest.approx(scipy.stats.spearmanr(p, t)[0])
    assert moemos.ktau(p, t) == pytest.approx(scipy.stats.kendalltau(p, t)[0])
    assert moemos.ktau(p, t) == pytest.approx(moemos.ktau_by_pairs(p, t), abs=1e-12)
    concordant = discordant = untied_p = untied_t = 0
    for i, j in itertools.combinations(range(40), 2):
        concordant += (p[i] - p[j]) * (t[i] - t[j]) > 0
        discordant += (p[i] - p[j]) * (t[i] - t[j]) < 0
        untied_p += p[i] != p[j]
        untied_t += t[i] != t[j]
    by_hand = (concordant - discordant) / math.sqrt(untied_p * untied_t)
    assert moemos.ktau_by_pairs(p, t) == pytest.approx(by_hand)


@pytest.mark.parametrize(("p", "t", "why"), [
    ([3, 3, 3], [1, 2, 3], "predictions are all equal"),
    ([1, 2], [4, 4], "true scores are all equal"),
    ([1, 2], [0.1 + 0.2, 0.3], "true scores are all equal"),  # but for rounding
    ([1], [2], "two are needed"), ([], [], "two are needed"), ([1, nan], [1, 2], "not finite")])
def test_undefined_correlations_are_nan_with_a_reason(p, t, why):
    assert why in moemos.undefined(p, t)
    assert all(math.isnan(metric(p, t)) for metric in (moemos.lcc, moemos.srcc, moemos.ktau))
    assert moemos.undefined([1, 2], [2, 3]) == ""


def test_metrics_refuse_what_numpy_would_broadcast():
    with pytest.raises(ValueError, match=r"\(n,\) of one n, not \(2,\) and \(2, 1\)"):
        moemos.mse([1, 2], [[1], [2]])


def test_system_level_is_the_plain_mean_of_a_systems_clips():
    result = moemos.metrics([5, 1, 3, 5], [4, 2, 2, 4.5], ["b", "a", "a", "c"])
    assert list(result) == ["utterance", "system"]
    assert list(result["system"]) == ["MSE", "LCC", "SRCC", "KTAU"]
    assert result["system"]["MSE"] == pytest.approx((0 + 1 + 0.25) / 3)
    assert result["utterance"]["MSE"] == pytest.approx((1 + 1 + 1 + 0.25) / 4)
    means = moemos.levels([5, 1, 3, 5], [4, 2, 2, 4.5], ["b", "a", "a", "c"])["system"]
    assert [list(part) for part in means] == [[2, 5, 5], [2, 4, 4.5]]


# -- Schedule --------------------------------------------------------------------------------------

def test_stages_are_the_papers():
    first, second, third = train.STAGES
    assert [stage.name for stage in train.STAGES] == ["classification", "joint", "mos"]
    assert (first.lr, first.alpha_start, first.alpha_end) == (1e-4, 0, 0)
    assert (second.alpha_start, second.alpha_end) == (0.3, 0.7)
    assert (third.lr, third.alpha_start, third.alpha_end) == (1e-5, 0.9, 0.9)
    assert train.CLIP_NORM == 1.0


def test_learning_rate_is_torchs_cosine():
    optimiser = torch.optim.AdamW([torch.zeros(1, requires_grad=True)], lr=0.3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, T_max=10)
    for step in range(10):
        assert train.learning_rate(step, 10, 0.3) == pytest.approx(optimiser.param_groups[0]["lr"])
        optimiser.step()
        schedule.step()
    assert train.learning_rate(10, 10, 0.3) == pytest.approx(0)


def test_alpha_ramps_from_start_to_end():
    ramp = [train.alpha(step, 5, 0.3, 0.7) for step in range(5)]
    assert ramp == pytest.approx([0.3, 0.4, 0.5, 0.6, 0.7])
    assert train.alpha(0, 1, 0.9, 0.9) == 0.9


# -- Backbone --------------------------------------------------------------------------------------

class Noisy(moemos.LogMel):
    def __init__(self, weight):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.tensor(weight))

    def extract_features(self, waveforms):
        layers, _ = super().extract_features(waveforms)
        noisy = torch.nn.functional.dropout(torch.stack(layers), 0.5, self.training)
        return list(self.weight * noisy), None


def test_a_backbone_is_frozen_and_in_eval_whatever_it_is_given():
    backbone, waveform = moemos.Backbone("x", Noisy(1.0).train(), 16000), torch.randn(8000)
    assert torch.equal(backbone.extract(waveform), backbone.extract(waveform))
    assert not backbone.network.weight.requires_grad
    assert not isinstance(backbone, torch.nn.Module)
    assert moemos.Backbone("x", Noisy(1.0), 16000).identity == backbone.identity
    assert moemos.Backbone("x", Noisy(0.0), 16000).identity != backbone.identity


def test_wav2vec2_base_is_loaded_frozen_from_the_hub_folder(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    network = hub_with_base_weights(tmp_path)
    backbone = data.open_backbone(device="cpu")  # without a name it is the paper's
    waveform = torch.randn(8000)
    frames = backbone.extract(waveform)
    assert (backbone.name, backbone.layers, backbone.width) == ("WAV2VEC2_BASE", 12, 768)
    assert backbone.sample_rate == 16000
    assert tuple(frames.shape) == (12, 24, 768)
    with torch.no_grad():
        expected = torch.cat(network.extract_features(waveform[None])[0])
    assert torch.equal(frames, expected)
    assert torch.equal(backbone.extract(waveform), frames)  # no dropout
    assert not any(p.requires_grad for p in backbone.network.parameters())


def test_logmel_has_three_layers_and_hears_spectra():
    backbone = moemos.load_backbone("logmel")
    assert (backbone.name, backbone.layers, backbone.width) == ("logmel", 3, 80)
    frames = backbone.extract(torch.from_numpy(tone(16000, 1.0).astype(np.float32)))
    assert backbone.sample_rate == 16000 and tuple(frames.shape) == (3, 101, 80)
    assert frames[0].mean(0).argmax() == 15  # 440 Hz are 549.6 mel; band i is at 35.06 (i + 1)
    louder = backbone.extract(torch.from_numpy(2 * tone(16000, 1.0).astype(np.float32)))
    change = (louder - frames)[:, 10:-10, 15]  # of power, and none of its change over time
    expected = torch.tensor([math.log(4), 0, 0])[:, None].expand_as(change)
    torch.testing.assert_close(change, expected, atol=1e-3, rtol=0)


def test_full_band_logmel_has_the_same_bands_and_33_more_and_a_missing_band_shows(tmp_path):
    narrow, full = moemos.load_backbone("logmel"), moemos.load_backbone("logmel48")
    assert (full.sample_rate, full.layers, full.width) == (48000, 3, 113)
    for hz, band in ((440, 15), (4000, 60), (7000, 76), (12000, 92), (21000, 109)):  # as below
        wave = torch.sin(2 * math.pi * hz * torch.arange(48000) / 48000)
        assert full.extract(wave)[0].mean(0).argmax() == band
        if hz < 8000:
            assert narrow.extract(wave[::3])[0].mean(0).argmax() == band
    noise = np.random.default_rng(0).normal(0, 0.1, 48000)
    for rate in (16000, 48000):
        wavfile.write(tmp_path / "a.wav", rate, noise[:rate].astype(np.float32))
        levels = full.extract(data.read_wav(tmp_path / "a.wav", 48000))[0].mean(0)
        above, below = levels[88:].max(), levels[20:76].min()  # of 11 kHz on, of 0.6 to 7 kHz
        assert (above > below - 3) if rate == 48000 else (above < below - 8)


def test_a_backbone_refuses_what_is_no_waveform():
    for name, least in (("logmel", 400), ("logmel48", 1200)):
        backbone = moemos.load_backbone(name)
        for wrong in (torch.zeros(least - 1), torch.zeros(2, 16000)):
            with pytest.raises(ValueError, match="25 ms"):
                backbone.extract(wrong)
        assert backbone.extract(torch.zeros(least)).isfinite().all()


def test_without_weights_the_default_falls_back_and_a_named_bundle_does_not(
        tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr(torch.hub, "download_url_to_file", refuse_network)
    assert data.open_backbone(device="cpu").name == "logmel"
    warning = capsys.readouterr().err
    assert "WARNING" in warning and "NOT those of the paper" in warning
    with pytest.raises(data.InputError, match=r"WAV2VEC2_BASE in .*\(no network in tests\)"):
        data.open_backbone("WAV2VEC2_BASE", "cpu")
    for open_backbone in (data.open_backbone, moemos.load_backbone):
        why = "no backbone 'WAV2VEC3'; choose logmel, logmel48, WAV2VEC2_B"
        with pytest.raises(ValueError, match=why):
            open_backbone("WAV2VEC3", "cpu")
    weights = tmp_path / "checkpoints" / torchaudio.pipelines.WAV2VEC2_BASE._path
    weights.write_bytes(b"half a download")
    with pytest.raises(data.InputError, match="missing or damaged"):
        data.open_backbone(device="cpu")  # damaged is not missing
    assert capsys.readouterr().err == ""


def test_a_stalled_download_is_given_up(tmp_path, monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as server:  # accepts, and never answers
        url = f"http://127.0.0.1:{server.getsockname()[1]}/weights"
        monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
        monkeypatch.setattr(torch.hub, "download_url_to_file",
                            lambda _, *rest, **options: DOWNLOAD(url, *rest, **options))
        monkeypatch.setattr(data, "STALL_SECONDS", 0.3)
        with pytest.raises(data.InputError, match="timed out"):
            data.open_backbone("WAV2VEC2_BASE", "cpu")
    assert socket.getdefaulttimeout() is None


def test_the_accelerator_is_taken_where_there_is_one_and_the_cpu_elsewhere(monkeypatch):
    for accelerator, taken in ((None, "cpu"), (torch.device("cpu", 1), "cpu:1")):
        monkeypatch.setattr(torch.accelerator, "current_accelerator",
                            lambda check_available, accelerator=accelerator: accelerator)
        assert data.pick_device() == torch.device(taken)
    for unusable in ("meta", "cuda:99"):  # the first is there, but holds no numbers
        with pytest.raises(data.InputError, match=f"--device {unusable} cannot be used here"):
            data.open_backbone("logmel", unusable)


# -- Audio -----------------------------------------------------------------------------------------

@pytest.mark.parametrize("encode", [
    lambda x: np.rint(128 + 127 * x).astype(np.uint8),
    lambda x: np.rint((2 ** 15 - 1) * x).astype(np.int16),
    lambda x: np.rint((2 ** 31 - 1) * x).astype(np.int32), np.float32, np.float64])
@pytest.mark.parametrize("rate", [8000, 16000, 44100, 48000])
def test_read_wav_gives_the_same_tone_from_every_encoding_and_rate(tmp_path, encode, rate):
    wavfile.write(tmp_path / "a.wav", rate, encode(tone(rate)))
    for sample_rate in (16000, 48000):
        wave = data.read_wav(tmp_path / "a.wav", sample_rate)
        assert wave.dtype == torch.float32 and wave.shape == (sample_rate // 2,)
        np.testing.assert_allclose(wave[500:-500], tone(sample_rate)[500:-500], atol=0.012)


def test_read_wav_averages_channels_keeps_the_level_and_knows_24_bits(tmp_path):
    stereo = np.stack([np.zeros(8000), tone(16000)], 1).astype(np.float32)
    wavfile.write(tmp_path / "a.wav", 16000, stereo)
    np.testing.assert_allclose(data.read_wav(tmp_path / "a.wav", 16000), tone(16000) / 2, atol=1e-6)
    values = np.rint(2 ** 23 * tone(16000)).astype(int)
    samples = b"".join(int(value).to_bytes(3, "little", signed=True) for value in values)
    (tmp_path / "a.wav").write_bytes(header(1, 16000, 3, samples))
    np.testing.assert_allclose(data.read_wav(tmp_path / "a.wav", 16000), tone(16000), atol=1e-6)


@pytest.mark.parametrize(("content", "why"), [
    (None, "cannot be read"), (b"", "not a whole WAV"), (b"ID3\x04 an mp3", "not a whole WAV"),
    (b"fLaC\0\0\0\x22", "not a whole WAV"), (b"some text", "not a whole WAV"),
    ("cut", "not a whole WAV"), (header(1, 16000)[:44], "not a whole WAV|at least one"),
    (np.zeros(0, np.int16), "at least one"), (header(0, 16000), "not a whole WAV"),
    (header(1, 0), "a rate up to"), (header(1, 768001), "a rate up to"),
    (np.zeros(399, np.int16), "25 ms"), (np.full(8000, np.nan, np.float32), "NaN"),
    (np.full(8000, 1e300), "huge"), (np.full(8000, np.inf), "NaN, infinite or huge"),
    (np.zeros(8000, np.int64), "int64")])
def test_read_wav_refuses_the_rest_naming_the_file(tmp_path, content, why):
    path = tmp_path / "bad.wav"
    if isinstance(content, np.ndarray):
        wavfile.write(path, 16000, content)
    elif content == "cut":
        wavfile.write(path, 16000, tone(16000).astype(np.float32))
        path.write_bytes(path.read_bytes()[:-1000])
    elif content is not None:
        path.write_bytes(content)
    with pytest.raises(data.InputError, match=why) as caught:
        data.read_wav(path, 16000)
    assert str(caught.value).startswith(f"{path}: ") and "\n" not in str(caught.value)


def test_a_file_above_the_bound_or_without_end_is_refused(tmp_path, monkeypatch, run, capsys):
    monkeypatch.setattr(data, "MAX_BYTES", 2 ** 20)
    (tmp_path / "long.wav").write_bytes(bytes(2 ** 20))
    assert len(data.read_bytes(tmp_path / "long.wav")) == 2 ** 20
    (tmp_path / "long.wav").write_bytes(bytes(2 ** 20 + 1))
    endless = ["/dev/zero"] if Path("/dev/zero").exists() else []
    files = [str(tmp_path / "long.wav"), *endless]
    for path in files:
        with pytest.raises(data.InputError, match=rf"^{path}: is above 1 MiB or never ends"):
            data.read_bytes(path)
    assert call(monkeypatch, evaluate, run, "--wav", *files) == 1
    out, err = capsys.readouterr()
    assert out == "wav,mos\n"
    assert [line.split(": ")[:2] for line in err.splitlines()] == [["skipped", f] for f in files]


def test_silence_is_warned_of_and_a_long_clip_refused(tmp_path, capsys):
    wavfile.write(tmp_path / "a.wav", 8000, np.zeros(8000, np.int16))
    assert data.check_clip(tmp_path / "a.wav", 1.0) == (8000, 1.0)
    assert f"{tmp_path / 'a.wav'} is all digital silence" in capsys.readouterr().err
    with pytest.raises(data.InputError, match="1.00 s long, above --max-seconds 0.9"):
        data.check_clip(tmp_path / "a.wav", 0.9)
    wavfile.write(tmp_path / "a.wav", 8000, tone(8000))
    assert data.check_clip(tmp_path / "a.wav", 1.0) == (8000, 0.5)
    assert capsys.readouterr().err == ""


def test_folders_links_and_names_with_brackets_are_searched_and_broken_links_said(tmp_path):
    lay_out(tmp_path, {"clips[1]/notes.txt": ""}, ["elsewhere/a.wav", "clips[1]/tts/b.WAV"])
    (tmp_path / "clips[1]" / "linked").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "clips[1]" / "broken.wav").symlink_to(tmp_path / "nowhere")
    found = data.find_wavs([tmp_path / "clips[1]", "given"])
    names = ("clips[1]/broken.wav", "clips[1]/linked/a.wav", "clips[1]/tts/b.WAV")
    assert found == [*(tmp_path / name for name in names), Path("given")]
    with pytest.raises(data.InputError, match="an empty name is no file"):
        data.find_wavs([""])
    with pytest.raises(data.InputError, match="broken.wav: cannot be read"):
        data.read_wav(found[0], 16000)


def decode_by_hand(content):
    """A WAV file, by its chunks and one sample at a time -> (rate, (T, channels))."""
    order, at, name = ">" if content[:4] == b"RIFX" else "<", 12, b""
    while name != b"data":
        name, size = struct.unpack_from(f"{order}4sI", content, at)
        at += 8
        if name == b"fmt ":
            kind, channels, rate, _, block = struct.unpack_from(f"{order}HHIIH", content, at)
            if kind == 0xFFFE:  # extensible: the kind is in its subformat
                kind, = struct.unpack_from(f"{order}H", content, at + 24)
        if name != b"data":
            at += size + size % 2
    width = block // channels
    size = min(size, len(content) - at) // block * block  # RF64 says 2^32 - 1
    if kind == 3:
        values = np.frombuffer(content, f"{order}f{width}", size // width, at).astype(float)
        return rate, values.reshape(-1, channels)
    endian = "big" if order == ">" else "little"
    values = np.array([int.from_bytes(content[i:i + width], endian, signed=width > 1)
                       for i in range(at, at + size, width)], float)
    values = (values - 128) / 128 if width == 1 else values / 2 ** (8 * width - 1)
    return rate, values.reshape(-1, channels)


REFUSED = {"early-eof-no-data": "Unexpected end of file", "early-eof.": "Reached EOF prematurely",
           "incomplete-chunk": "Incomplete chunk", "ulaw": "MULAW",
           "inconsistent": "header is invalid", "36bit": "int64", "45bit": "int64",
           "53bit": "int64", "64bit.": "int64"}


@pytest.mark.skipif(not FORMATS.is_dir(), reason="audio_formats does not lie beside the checkout")
def test_every_encoding_is_read_as_an_independent_decoding_has_it_or_truly_refused(monkeypatch):
    for row in table(FORMATS / "formats.csv"):
        path = FORMATS / "wav" / row["wav"]
        why = next((reason for part, reason in REFUSED.items() if part in path.name), "")
        if why or float(row["seconds"]) < 0.025:
            with pytest.raises(data.InputError, match=why or "25 ms") as caught:
                data.read_wav(path, 16000)
            assert str(path) in str(caught.value)
        if why:
            continue
        rate, samples = decode_by_hand(path.read_bytes())
        assert (rate, samples.shape[1]) == (int(row["rate"]), int(row["channels"]))
        assert len(samples) / rate == pytest.approx(float(row["seconds"]), abs=1e-4)
        common = math.gcd(rate, 16000)
        mono = samples.mean(1)
        expected = scipy.signal.resample_poly(mono, 16000 // common, rate // common)
        with monkeypatch.context() as patch:
            patch.setattr(moemos, "MIN_SECONDS", 0)  # most of these files are shorter
            np.testing.assert_allclose(data.read_wav(path, 16000), expected, atol=1e-6)


# -- ratings.csv -----------------------------------------------------------------------------------

def test_manifest_is_read_with_and_without_mos_and_model(tmp_path):
    rows = ["a.wav,train,s,0,4", "b.wav,test,s,,", "a.wav,train,s,1,5"]
    clips = data.read_manifest(manifest(tmp_path, rows, "wav,split,system,rater,score"))
    assert [(clip.wav, clip.split, clip.system, clip.model, clip.ratings) for clip in clips] == [
        ("a.wav", "train", "s", "s", {"0": 4, "1": 5}), ("b.wav", "test", "s", "s", {})]
    assert clips[0].mos == 4.5 and math.isnan(clips[1].mos)
    clips = data.read_manifest(manifest(tmp_path, ["a.wav,dev,s,,,2.5", "b.wav,dev,s,m,0,1"]))
    assert [(clip.model, clip.ratings) for clip in clips] == [("s", {"mean": 2.5}), ("m", {"0": 1})]


@pytest.mark.parametrize("text", [
    "\ufeffwav,split,system,model,rater,score\r\n\"a,b é.wav\",train,s,m,0,4\r\n",
    "score,wav,split,system,rater,model\n4,\"a,b é.wav\",train,s,0,m\n",
    "wav,split,system,model,rater,score\n\n\"FOLDER/a,b é.wav\",train,s,m,0,4\n"])
def test_tables_with_bom_crlf_quotes_other_order_and_absolute_paths_are_read(tmp_path, text):
    wavfile.write(tmp_path / "a,b é.wav", 16000, tone(16000).astype(np.float32))
    (tmp_path / "ratings[1].csv").write_bytes(text.replace("FOLDER", str(tmp_path)).encode())
    (clip,) = data.read_manifest(tmp_path / "ratings[1].csv")
    assert (clip.path, clip.split, clip.system) == (tmp_path / "a,b é.wav", "train", "s")
    assert (clip.model, clip.ratings) == ("m", {"0": 4.0})


@pytest.mark.parametrize(("content", "why"), [
    (b"", "first row must be wav,split"), (b"wav,score\na.wav,4\n", "first row must be"),
    (b"a.wav,train,s,m,0,4\n", "first row must be"),
    (b"wav,wav,split,system,model,rater,score\n", "first row must be"),
    (b"wav,split,system,model,rater,score\n", "no rows"),
    (b"\xff\xfe\x00", "no CSV table in UTF-8"),
    (b'wav,split,system,model,rater,score\n"a.wav,train', "no CSV table")])
def test_what_is_no_table_of_ratings_is_refused_naming_the_file(tmp_path, content, why):
    (tmp_path / "ratings.csv").write_bytes(content)
    with pytest.raises(data.InputError, match=why) as caught:
        data.read_manifest(tmp_path)
    assert str(tmp_path / "ratings.csv") in str(caught.value)


@pytest.mark.parametrize(("rows", "why"), [
    ([], "no rows"), (["a.wav,train,s,m,0"], "row 2: a row needs one value for each"),
    (["a.wav,train,s,m,0,4,4"], "one value for each"), ([",train,s,m,0,4"], "must not be empty"),
    (["a.wav,train,,m,0,4"], "must not be empty"), (["a.wav,valid,s,m,0,4"], "train, dev or test"),
    (["c.wav,train,s,m,0,4"], "is not there"),
    (["a.wav,train,s,m,0,4", "a.wav,test,s,m,1,4"], "row 3: a.wav stood in another split"),
    (["a.wav,train,s,m,0,4", "a.wav,train,t,m,1,4"], "row 3: a.wav stood in another split, system"),
    (["a.wav,train,s,m,0,4", "a.wav,train,s,n,1,4"], "row 3: a.wav stood in another split, system"),
    (["a.wav,train,s,m,0,4"] * 2, "row 3: rater '0' has rated a.wav"),
    (["a.wav,train,s,m,,4", "./a.wav,train,s,m,,4"], "rater 'mean' has rated a.wav"),
    (["a.wav,train,s,m,0,good"], "no number"), (["a.wav,train,s,m,0,"], "no number"),
    (["a.wav,train,s,m,0,6"], "off the scale of 1 to 5"),
    (["a.wav,train,s,m,0,0.9"], "off the scale"), (["a.wav,train,s,m,0,nan"], "off the scale")])
def test_bad_manifest_rows_are_refused_by_number(tmp_path, rows, why):
    with pytest.raises(data.InputError, match=why):
        data.read_manifest(manifest(tmp_path, rows))


def test_a_corpus_is_summed_up_in_a_line_and_every_clip_is_decoded(tmp_path, capsys):
    rows = ["a.wav,train,s,m,0,4", "a.wav,train,s,m,1,5", "b.wav,test,t,m,,"]
    clips = data.read_corpus(manifest(tmp_path, rows))
    assert capsys.readouterr().out == (
        f"{tmp_path}: train 1 clips, 2 ratings, 1 systems, 2 raters, 0 s; "
        "test 1 clips, 0 ratings, 1 systems, 0 raters, 1 s\n")
    assert [(clip.rate, clip.seconds) for clip in clips] == [(16000, 0.5), (16000, 0.6)]
    (tmp_path / "b.wav").write_bytes(b"")
    with pytest.raises(data.InputError, match="b.wav: not a whole WAV"):
        data.read_corpus(tmp_path)


# -- Features --------------------------------------------------------------------------------------

class CountingBackbone:
    name, identity, sample_rate, layers, width = "counting", "x", 16000, 2, 3
    network = torch.nn.Identity()

    def __init__(self):
        self.lengths = []

    def extract(self, waveform):
        self.lengths.append(len(waveform))
        return waveform[:12].view(2, 2, 3)


def two_clips(folder):
    return data.read_manifest(manifest(folder, ["a.wav,train,s,m,0,4", "b.wav,train,s,m,0,4"]))


def test_each_clip_goes_through_the_backbone_once_alone_and_unpadded(tmp_path):
    clips, backbone, cache = two_clips(tmp_path), CountingBackbone(), tmp_path / "cache"
    first = data.extract_features(clips, backbone, cache)
    assert backbone.lengths == [8000, 9600]
    second = data.read_wav(clips[1].path, 16000)[:12].view(2, 2, 3)
    assert torch.equal(first[1], moemos.pool_statistics(second))
    assert torch.equal(data.extract_features(clips[::-1], backbone, cache).flip(0), first)
    assert len(backbone.lengths) == 2  # all from the cache
    assert len(list(cache.iterdir())) == 2


def test_a_damaged_or_stale_entry_of_the_cache_is_made_again(tmp_path, monkeypatch):
    clips, backbone, cache = two_clips(tmp_path), CountingBackbone(), tmp_path / "cache"
    first = data.extract_features(clips, backbone, cache)
    for damage in (lambda content: b"damaged" * 20,
                   lambda content: content[:-1] + bytes([content[-1] ^ 1]),
                   lambda content: hashlib.sha256(b"").digest()):  # whole, but of another shape
        entry = next(cache.iterdir())
        entry.write_bytes(damage(entry.read_bytes()))
        backbone.lengths.clear()
        assert torch.equal(data.extract_features(clips, backbone, cache), first)
        assert len(backbone.lengths) == 1

    backbone.lengths.clear()
    wavfile.write(clips[0].path, 16000, tone(16000, 0.7).astype(np.float32))  # another content
    data.extract_features(clips, backbone, cache)
    assert backbone.lengths == [11200]
    backbone.identity = "y"  # other weights
    data.extract_features(clips, backbone, cache)
    assert backbone.lengths == [11200, 11200, 9600]

    def pool_statistics(frames):  # other code
        return frames.reshape(2, 6)
    monkeypatch.setattr(moemos, "pool_statistics", pool_statistics)
    assert not torch.equal(data.extract_features(clips, backbone, cache), first)


@pytest.mark.parametrize("terminal", [True, False])
def test_progress_is_shown_on_a_terminal_and_not_in_a_pipe(tmp_path, monkeypatch, terminal):
    screen = io.StringIO()
    screen.isatty = lambda: terminal
    monkeypatch.setattr(sys, "stderr", screen)
    data.extract_features(two_clips(tmp_path), CountingBackbone(), tmp_path / "cache")
    shown = screen.getvalue()
    assert ("2/2 clips, 0 s left" in shown) if terminal else not shown


def test_a_full_disk_gets_one_sentence_and_spoils_nothing(tmp_path, monkeypatch):
    data.write_atomically(tmp_path / "a", b"good")
    write_bytes = Path.write_bytes

    def no_room(path, content):
        write_bytes(path, content[:2])
        raise OSError(28, "No space left on device")
    monkeypatch.setattr(Path, "write_bytes", no_room)
    with pytest.raises(data.InputError, match=r"a: cannot be written \(No space left"):
        data.write_atomically(tmp_path / "a", b"new")
    files = [(path.name, path.read_bytes()) for path in tmp_path.iterdir()]
    assert files == [("a", b"good")]


# -- Training --------------------------------------------------------------------------------------

def edit(run, change):
    """Applies change to what a run's model.pt holds."""
    checkpoint = torch.load(run / "model.pt", weights_only=True)
    change(checkpoint)
    torch.save(checkpoint, run / "model.pt")


def training_clips_of(corpus):
    return [clip for clip in data.read_manifest(corpus) if clip.split == "train"]


def watch_stages(monkeypatch):
    """-> a list that fills with (model, training Clips, validation Clips) of each stage."""
    run_stage, seen = train.run_stage, []

    def watch(model, stage, config, training, validation):
        seen.append((model, training, validation))
        return run_stage(model, stage, config, training, validation)
    monkeypatch.setattr(train, "run_stage", watch)
    return seen


def test_same_seed_same_bytes_other_seed_other_bytes(small, tmp_path):
    runs = {}
    for name, seed in (("one", 1), ("two", 1), ("three", 2)):
        train.train(quick(small, tmp_path, seed=seed, out=str(tmp_path / name)))
        runs[name] = (tmp_path / name / "model.pt").read_bytes()
    assert runs["one"] == runs["two"] != runs["three"]


def test_a_run_holds_plain_values_and_a_full_log(small, run):
    checkpoint = torch.load(run / "model.pt", weights_only=True)
    assert list(checkpoint) == ["weights", "config", "stages", "classes", "backbone"]
    assert checkpoint["classes"] == ["m0", "m1", "x"]
    parts = {name.split(".")[0] for name in checkpoint["weights"]}
    assert parts == {"fusion", "moe", "mos_head", "class_head"}  # no backbone, no extension
    settings = json.loads((run / "config.json").read_text())
    del settings["out"]  # a run is the same bytes in any folder
    assert checkpoint["config"] == settings | {"scale": (1.0, 5.0)}
    log = table(run / "log.csv")
    stages = ["classification", "joint", "mos"]
    assert [(row["stage"], row["step"]) for row in log] == list(zip(stages, "222"))
    assert list(log[0])[2:] == [
        "lr", "alpha", "mos", "classification", "diversity", "sparsity", "total", "grad_norm",
        "gate_entropy", "mean_gate_entropy", "gate_1", "gate_2", "gate_3", "gate_4",
        "val_mse", "val_lcc", "val_srcc", "val_accuracy"]
    gates = np.array([float(log[0][f"gate_{e}"]) for e in (1, 2, 3, 4)])
    assert gates.sum() == pytest.approx(1)
    assert float(log[0]["mean_gate_entropy"]) == pytest.approx(-(gates * np.log(gates)).sum())


def loop_step(parameters, gradients, first, second, step, lr):
    """AdamW with weight decay 0.1, by its formulas; step from 1."""
    for p, g, m, v in zip(parameters, gradients, first, second):
        m.mul_(0.9).add_(0.1 * g)
        v.mul_(0.999).add_(0.001 * g * g)
        change = (m / (1 - 0.9 ** step)) / ((v / (1 - 0.999 ** step)).sqrt() + 1e-8)
        p.data -= lr * (0.1 * p.data + change)


def test_a_stage_is_the_plain_loop_of_adamw_cosine_alpha_and_clipping(monkeypatch):
    monkeypatch.setattr(train, "CLIP_NORM", 1.5)
    monkeypatch.setattr(train, "LOG_STEPS", 3)
    config = train.Config(batch_size=5, dropout=0.0, weight_decay=0.1, lambda_1=0.3, lambda_2=0.7,
                          smooth_l1_beta=0.5)
    torch.manual_seed(0)
    mos = torch.tensor([1.0, 5, 2, 4, nan] * 2)
    clips = train.Clips(3 * torch.randn(10, 3, 10), mos, torch.arange(10) % 3)
    model, loop = (moemos.MoEMOS(3, 5, 3, hidden=7, dropout=0.0) for _ in range(2))
    loop.load_state_dict(model.state_dict())
    torch.manual_seed(1)
    stage = train.Stage("joint", 4, 0.05, 0.3, 0.7)
    rows = list(train.run_stage(model, stage, config, clips, clips))

    torch.manual_seed(1)
    parameters, norms = list(loop.parameters()), []
    first, second = ([torch.zeros_like(p) for p in parameters] for _ in range(2))
    for step in range(4):
        batch = torch.randperm(10)[:5]
        a, lr = 0.3 + 0.4 * step / 3, 0.025 * (1 + math.cos(math.pi * step / 4))
        output = loop(clips.features[batch])
        total = (a * moemos.mos_loss(output.mos, clips.mos[batch], 0.5)
                 + (1 - a) * moemos.classification_loss(output.logits, clips.model[batch])
                 + 0.3 * moemos.diversity_loss(output.gates)
                 + 0.7 * moemos.sparsity_loss(output.gates))
        gradients = torch.autograd.grad(total, parameters)
        norms.append(math.sqrt(sum(g.square().sum().item() for g in gradients)))
        gradients = [g * min(1.0, 1.5 / norms[-1]) for g in gradients]
        loop_step(parameters, gradients, first, second, step + 1, lr)
    assert min(norms) < 1.5 < max(norms)
    for ours, theirs in zip(model.parameters(), parameters):
        torch.testing.assert_close(ours, theirs, atol=2e-4, rtol=1e-3)
    means = [np.mean(norms[:3]), norms[3]]  # a row of log.csv each third step, and at the end
    assert [row["step"] for row in rows] == [3, 4]
    assert [row["grad_norm"] for row in rows] == pytest.approx(means, rel=1e-3)
    assert [row["alpha"] for row in rows] == pytest.approx([0.3 + 0.8 / 3, 0.7])


@pytest.mark.parametrize("augmentation", ["yes", "no"])
def test_training_and_validation_share_no_clip_and_hold_no_test_clip(
        small, tmp_path, monkeypatch, augmentation):
    seen = watch_stages(monkeypatch)
    train.train(quick(small, tmp_path, augmentation=augmentation, seed=3, steps=1))
    model, training, validation = seen[0]
    clips = [clip for clip in training_clips_of(small) if clip.ratings or augmentation == "yes"]
    count = len(clips)
    expected = data.extract_features(clips, moemos.load_backbone("logmel"), tmp_path / "cache")
    assert (len(validation.mos), len(training.mos)) == (count // 10, count - count // 10)
    order = torch.randperm(count, generator=torch.Generator().manual_seed(3))  # drawn by the seed
    assert torch.equal(validation.features, expected[order[:count // 10]])
    assert torch.equal(training.features, expected[order[count // 10:]])
    mos = torch.tensor([clip.mos for clip in clips])[order]
    assert torch.equal(torch.cat([validation.mos, training.mos]).nan_to_num(-1), mos.nan_to_num(-1))
    assert int(mos.isnan().sum()) == (8 if augmentation == "yes" else 0)
    classes = ["m0", "m1", "x"] if augmentation == "yes" else ["m0", "m1"]
    assert [classes[i] for i in training.model] == [clips[i].model for i in order[count // 10:]]
    fused = model.fusion(training.features)  # statistics are those of the training clips
    torch.testing.assert_close(fused.mean(0), torch.zeros(480), atol=1e-4, rtol=0)
    assert model.dropout.p == model.moe.dropout.p == 0.7
    storages = {part.features.untyped_storage().data_ptr() for part in (training, validation)}
    assert len(storages) == 1  # no second copy in memory


def test_dev_clips_are_used_for_nothing(small, tmp_path, capsys):
    rows = [{**row, "wav": str(small / row["wav"])} for row in table(small / "ratings.csv")]
    for row in rows:
        if int(Path(row["wav"]).stem) in (*range(8), 40):
            row["split"] = "dev"
    data.write_csv(tmp_path / "ratings.csv", [data.HEADER, *(row.values() for row in rows)])
    train.train(quick(tmp_path / "ratings.csv", tmp_path, steps=1))
    said = r"22 clips to train on, (\d+) with MOS; 2 held out, (\d+) with MOS; 3 classes"
    rated, held_out = re.search(said, capsys.readouterr().out).groups()
    assert int(rated) + int(held_out) == 18  # of 24 clips, for 32
    result = evaluate.evaluate(tmp_path / "run")
    assert result["clips"] == 15
    mos = {split: np.array([float(row["score"]) for row in rows
                            if row["score"] and (row["split"], row["rater"]) == (split, "0")])
           for split in ("train", "test")}
    expected = np.mean((mos["test"] - mos["train"].mean()) ** 2)
    reference = result["reference"]["mean of training MOS"]["utterance"]["MSE"]
    assert reference == pytest.approx(expected)


def test_dropout_is_on_in_training_and_off_in_validation():
    model, _ = some_output()
    clips = train.Clips(torch.randn(6, 3, 10), torch.arange(6.0), torch.arange(6) % 3)
    said = train.validate(model.train(), clips)
    output = model.eval()(clips.features)
    assert said["val_mse"] == pytest.approx(moemos.mse(output.mos.detach(), clips.mos))
    hits = output.logits.argmax(1) == clips.model
    assert said["val_accuracy"] == pytest.approx(hits.float().mean().item())
    modes = []
    model.register_forward_hook(lambda model, *_: modes.append(model.training))
    stage = train.Stage("mos", 51, 0.1, 0.9, 0.9)
    list(train.run_stage(model, stage, train.Config(), clips, clips))
    assert modes == [True] * 50 + [False, True, False]


@pytest.mark.parametrize(("settings", "stages"), [
    ({}, train.STAGES[:1]), ({"auxiliary": "none"}, train.STAGES), ({}, train.STAGES)])
def test_the_mos_head_waits_for_a_stage_with_mos_and_no_second_task_is_no_first_stage(
        small, tmp_path, settings, stages):
    config = quick(small, tmp_path, seed=5, **settings)
    model = train.train(config, stages)
    torch.manual_seed(5)
    untrained = moemos.MoEMOS(3, 80, 3)
    idle = torch.equal(model.mos_head.weight, untrained.mos_head.weight)
    assert idle == (len(stages) == 1)  # neither gradient nor weight decay
    assert not torch.equal(model.class_head.weight, untrained.class_head.weight)
    said = evaluate.evaluate(tmp_path / "run")["accuracy"]
    assert (said is None) == (config.auxiliary == "none")
    log = table(tmp_path / "run" / "log.csv")
    ran = [row["stage"] for row in log]
    without = config.auxiliary == "none"
    assert ran == [stage.name for stage in stages if not (without and stage.alpha_end == 0)]
    last = {name: float(value) for name, value in log[-1].items() if name != "stage"}
    beta = 0 if config.auxiliary == "none" else 1 - last["alpha"]
    assert last["total"] == pytest.approx(
        last["alpha"] * last["mos"] + beta * last["classification"]
        + 0.02 * last["diversity"] + 0.02 * last["sparsity"], rel=1e-5)


def test_the_second_task_may_have_another_label_and_the_backbone_be_given(small, tmp_path):
    def condition(clip):
        return clip.system

    backbone = moemos.Backbone("given", moemos.LogMel(), 16000)
    config = quick(small, tmp_path, backbone="nonsense")
    train.train(config, label=condition, backbone=backbone)
    trained = evaluate.load_run(tmp_path / "run", backbone=backbone)
    assert trained.classes == ["s0", "s1", "s2", "s3", "x"]
    assert (trained.config.backbone, trained.backbone) == ("given", backbone)
    result = evaluate.evaluate(tmp_path / "run", label=condition, trained=trained)
    test = [clip for clip in data.read_manifest(small) if clip.split == "test"]
    logits = trained.model(data.extract_features(test, backbone, tmp_path / "cache")).logits
    assert result["accuracy"] == np.mean(logits.argmax(1).numpy() == np.arange(32, 48) % 4)


def test_a_loss_or_gradient_that_is_not_finite_stops_the_run_and_says_where(
        small, tmp_path, monkeypatch):
    where = "stage classification, step 1"
    with pytest.raises(FloatingPointError, match=f"{where}.*grad_norm.*inf"):
        train.train(quick(small, tmp_path, lambda_1=1e30))
    monkeypatch.setattr(moemos, "sparsity_loss", lambda gates: gates.sum() * nan)
    with pytest.raises(FloatingPointError, match=f"{where}.*sparsity.*nan"):
        train.train(quick(small, tmp_path))
    assert not (tmp_path / "run" / "model.pt").exists()


def test_training_again_removes_the_old_results_and_nothing_else(small, tmp_path, run):
    evaluate.evaluate(run)
    (run / "holiday.png").touch()
    train.train(quick(small, tmp_path, steps=1))
    names = sorted(path.name for path in run.iterdir())
    assert names == ["config.json", "holiday.png", "log.csv", "model.pt"]
    lay_out(tmp_path, {"mine/raters.csv": ""}, [])
    train.train(quick(small, tmp_path, steps=1, out=str(tmp_path / "mine")))
    assert (tmp_path / "mine" / "raters.csv").exists()  # no run was there


def test_another_scale_gives_the_same_predictions_on_that_scale(small, tmp_path):
    rows = [[str(small / row["wav"]), *list(row.values())[1:5],
             25 * (float(row["score"]) - 1) if row["score"] else ""]  # 1-5 -> 0-100
            for row in table(small / "ratings.csv")]
    mushra = tmp_path / "mushra"
    data.write_csv(mushra / "ratings.csv", [data.HEADER, *rows])
    predicted = []
    for folder, scale in ((small, (1.0, 5.0)), (mushra, (0.0, 100.0))):
        train.train(quick(folder, tmp_path, scale=scale, steps=20))
        result = evaluate.evaluate(tmp_path / "run", "cpu")
        rows = table(tmp_path / "run" / "predictions.csv")
        predicted.append([float(row["predicted"]) for row in rows])
    np.testing.assert_allclose(25 * (np.array(predicted[0]) - 1), predicted[1], atol=0.5)
    assert result["utterance"]["MSE"] > 5  # in units of the scale
    with pytest.raises(data.InputError, match="off the scale of 1 to 5"):
        data.read_manifest(mushra)


# -- Evaluation ------------------------------------------------------------------------------------

class Surprise:
    """Unpickled, it would write a file."""
    def __reduce__(self):
        return Path.write_text, (Path("surprise"), "")


@pytest.mark.parametrize(("harm", "why"), [
    (lambda path: path.unlink(), "model.pt is missing"),
    (lambda path: path.write_bytes(path.read_bytes()[:5000]), "damaged"),
    (lambda path: path.write_bytes(b"text"), "damaged"),
    (lambda path: path.write_bytes(b""), "damaged"),
    (lambda path: torch.save(Surprise(), path), "damaged"),
    (lambda saved: saved["weights"]["mos_head.bias"].fill_(nan), "a weight is not finite"),
    (lambda saved: saved.pop("backbone"), "damaged"),
    (lambda saved: saved["config"].update(colour="red"), "of another version"),
    (lambda saved: saved["classes"].append("y"), "of another version"),
    (lambda saved: saved["backbone"].update(identity="y"), "other weights than the one here")])
def test_a_run_that_is_not_whole_or_not_for_this_backbone_is_refused(run, monkeypatch, harm, why):
    if "saved" in harm.__code__.co_varnames:
        edit(run, harm)
    else:
        harm(run / "model.pt")
    monkeypatch.chdir(run)
    with pytest.raises(data.InputError, match=why) as caught:
        evaluate.evaluate(run, "cpu")
    assert str(run) in str(caught.value) and "\n" not in str(caught.value)
    assert not (run / "surprise").exists()


def test_metrics_are_those_of_what_the_model_says_of_the_test_clips(small, run, tmp_path):
    result = evaluate.evaluate(run, "cpu")
    saved = (run / "metrics.json").read_bytes()
    test = [clip for clip in data.read_manifest(small) if clip.split == "test"]
    features = data.extract_features(test, moemos.load_backbone("logmel"), tmp_path / "cache")
    output = evaluate.load_run(run, "cpu").model(features)
    mos, system = [clip.mos for clip in test], [clip.system for clip in test]
    for level, expected in moemos.metrics(output.mos.tolist(), mos, system).items():
        assert result[level] == pytest.approx(expected, rel=1e-4)
        assert json.loads(saved)[level] == result[level]
    models = [["m0", "m1", "x"].index(clip.model) for clip in test]
    assert result["accuracy"] == np.mean(output.logits.argmax(1).numpy() == models)
    m1 = output.gates[1::2].mean(0)
    assert result["experts"]["m1"] == pytest.approx(m1.tolist(), abs=1e-6)
    rows = table(run / "predictions.csv")
    assert list(rows[0]) == ["wav", "system", "model", "mos", "predicted"]
    assert [row["wav"] for row in rows] == [clip.wav for clip in test]
    predicted = [float(row["predicted"]) for row in rows]
    assert predicted == pytest.approx(output.mos.tolist(), abs=1e-5)
    evaluate.evaluate(run, "cpu")
    assert (run / "metrics.json").read_bytes() == saved


def test_the_report_has_the_published_rows_and_those_of_the_run(small, run, capsys):
    result = evaluate.evaluate(run, "cpu")
    printed = capsys.readouterr().out
    lines = [line for line in printed.splitlines() if str(small) not in line]
    assert max(map(len, lines)) <= 100
    rows = [(line[:34].strip(), [float(number) for number in line[34:].split()])
            for line in lines if re.fullmatch(r"( +-?[\d.]+){8}", line[34:])]
    low, high = evaluate.eight(result["interval_95"]).T
    references = list(result["reference"].items())
    by_ridge = result["reference"]["ridge on the same features"]
    below, above = evaluate.eight(result["less_ridge_interval_95"]).T
    for (label, numbers), (name, expected) in zip(rows, [
            ("the paper", (0.277, 0.811, 0.716, 0.529, 0.056, 0.978, 0.913, 0.758)),
            ("B03, the organisers' SSL-MOS",
             (0.273, 0.821, 0.695, 0.508, 0.119, 0.941, 0.749, 0.547)),
            ("condition's mean training MOS",  # of the real test
             (0.222, 0.856, 0.702, 0.520, 0.101, 0.945, 0.748, 0.575)),
            *((name, evaluate.eight(numbers)) for name, numbers in references[1:]),
            ("this run", evaluate.eight(result)), ("95 % interval from", low), ("to", high),
            ("this run less ridge", evaluate.eight(result) - evaluate.eight(by_ridge)),
            ("95 % interval from", below), ("to", above)], strict=True):
        assert label == name
        assert numbers == pytest.approx(expected, abs=5.1e-4)
    assert low[0] < result["utterance"]["MSE"] < high[0]
    assert "a STAND-IN, not the paper's wav2vec2" in printed


def test_accuracy_counts_only_classes_that_training_has_seen():
    logits = np.array([[2, 1, 0], [0, 1, 2], [0, 1, 2]])
    assert evaluate.accuracy(logits, ["a", "b", "new"], ["a", "b", "c"]) == 0.5
    assert evaluate.accuracy(logits, ["d", "e", "f"], ["a", "b", "c"]) is None


def test_gate_use_by_hand():
    gates = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [0.5, 0.5]])
    use = evaluate.gate_use(gates, np.array(["a", "a", "b", "b"]))
    assert use["experts"] == {"a": [1.0, 0.0], "b": [0.25, 0.75]}
    assert use["expert_use"] == [0.625, 0.375]
    entropy = {p: -p * math.log(p) - (1 - p) * math.log(1 - p) for p in (0.25, 0.375, 0.5)}
    assert use["gate_entropy"] == pytest.approx(
        {"clip": entropy[0.5] / 4, "model": entropy[0.25] / 2, "mean": entropy[0.375]})


def test_systems_that_training_never_saw_make_no_nan_and_the_runs_own_results_stay(run, tmp_path):
    rows = [(f"{i}.wav", "test", f"new{i % 3}", f"new{i}", "r", 1 + i % 4) for i in range(6)]
    other = lay_out(tmp_path / "other", {}, [f"{i}.wav" for i in range(6)])
    data.write_csv(other / "ratings.csv", [data.HEADER, *rows])
    result = evaluate.evaluate(run, "cpu", other)
    assert np.isfinite(evaluate.eight(result)).all() and result["accuracy"] is None
    assert result["reference"] == {"half of the raters, by the others": None}
    assert result["less_ridge_interval_95"] is None  # there is nothing to learn it from
    assert (run / "on_other" / "metrics.json").exists() and not (run / "metrics.json").exists()


def test_clips_without_ratings_are_predicted_in_the_challenges_form_and_not_scored(
        small, run, tmp_path, capsys):
    rows = [(small / f"{i}.wav", "test", "s", "m", "r" * bool(mos), mos)
            for i, mos in ((41, ""), (40, 3), (42, ""))]
    data.write_csv(tmp_path / "mixed.csv", [data.HEADER, *rows])
    assert evaluate.evaluate(run, "cpu", tmp_path / "mixed.csv")["clips"] == 1
    assert "2 test clips without ratings: predicted in" in capsys.readouterr().out
    scores = dict(evaluate.score(run, [small]))
    answer = (run / "on_mixed.csv" / "answer.txt").read_text().splitlines()
    assert answer == [f"{i},{scores[str(small / f'{i}.wav')]}" for i in (41, 42)]
    (row,) = table(run / "on_mixed.csv" / "predictions.csv")
    assert float(row["predicted"]) == scores[str(small / "40.wav")]
    data.write_csv(tmp_path / "none.csv", [data.HEADER, rows[0]])
    assert evaluate.evaluate(run, "cpu", tmp_path / "none.csv") is None


def test_no_training_clips_no_test_clips_and_one_system_are_said(tmp_path, capsys):
    lay_out(tmp_path, {}, [f"{i}.wav" for i in range(14)])
    rows = [(f"{i}.wav", "test" if i > 9 else "train", "s", f"m{i % 2}", "r", 1 + i % 4)
            for i in range(14)]
    for name, some in (("test", rows[10:]), ("one", rows), ("train", rows[:10])):
        data.write_csv(tmp_path / f"{name}.csv", [data.HEADER, *some])
    with pytest.raises(data.InputError, match="fewer than two training clips"):
        train.train(quick(tmp_path / "test.csv", tmp_path))
    train.train(quick(tmp_path / "one.csv", tmp_path))
    result = evaluate.evaluate(tmp_path / "run", "cpu")
    printed = capsys.readouterr().out
    assert "undefined (nan) at system level: 1 values, two are needed" in printed
    assert math.isnan(result["system"]["LCC"])
    assert json.loads((tmp_path / "run" / "metrics.json").read_text())["system"]["LCC"] is None
    with pytest.raises(data.InputError, match="no test clips"):
        evaluate.evaluate(tmp_path / "run", "cpu", tmp_path / "train.csv")


def test_bootstrap_intervals_cover_as_theory_says():
    rng, system = np.random.default_rng(0), np.arange(400) % 200
    true = rng.normal(size=400)
    errors = rng.normal(size=400)
    bounds = evaluate.nested(evaluate.interval(evaluate.resample(true + errors, true, system)).T)
    of_systems = (errors[:200] + errors[200:]) / 2
    for level, squares in (("utterance", errors ** 2), ("system", of_systems ** 2)):
        low, high = bounds[level]["MSE"]
        width = 2 * 1.96 * squares.std() / math.sqrt(len(squares))
        assert high - low == pytest.approx(width, rel=0.08)
        assert (low + high) / 2 == pytest.approx(squares.mean(), abs=0.1 * width)


def test_resamples_of_two_predictors_are_paired():
    rng, system = np.random.default_rng(0), np.arange(40) % 5
    true, errors = rng.normal(size=(2, 40))
    one, other = (evaluate.resample(true + size * errors, true, system) for size in (1, 2))
    assert one.shape == (evaluate.RESAMPLES, 8)
    np.testing.assert_allclose(other[:, [0, 4]], 4 * one[:, [0, 4]])
    another = evaluate.resample(true + errors, true, system, seed=1)
    assert not np.array_equal(another[:, 0], one[:, 0])
    assert np.array_equal(another[:, 4], one[:, 4])  # the same systems are the same draws


def test_interval_is_the_middle_95_percent_and_leaves_nan_out():
    values = np.stack([np.arange(1001.0), np.full(1001, nan), np.arange(1001.0)], 1)
    values[::2, 2] = nan  # 1, 3, ... 999 are left
    expected = [[25, nan, 1 + 0.025 * 998], [975, nan, 1 + 0.975 * 998]]
    np.testing.assert_allclose(evaluate.interval(values), expected)


def test_lcc_within_systems_is_the_mean_over_those_that_have_one():
    predicted, mos = [1, 2, 3, 3, 2, 1, 1, 2, 5, 5], [1, 2, 3, 1, 2, 3, 7, 8, 1, 2]
    within = evaluate.lcc_within_systems(predicted, mos, list("aaabbbccdd"))
    assert within == pytest.approx((1 - 1 + 1) / 3)
    assert math.isnan(evaluate.lcc_within_systems([1], [1], ["a"]))


def rated(system, **ratings):
    return data.Clip("a", None, "test", system, "m", ratings)


def test_reference_rows_by_hand():
    training = [rated("a", r=1.0), rated("a", r=3.0), rated("b", r=5.0), rated("b", r=5.0)]
    test = [rated("a", r=3.0), rated("b", r=4.0), rated("new", r=5.0)]
    rows = evaluate.reference_rows(training, test)
    mean = rows["mean of training MOS"]["utterance"]["MSE"]
    assert mean == pytest.approx((0.5 ** 2 + 0.5 ** 2 + 1.5 ** 2) / 3)
    told = rows["condition's mean training MOS"]["utterance"]["MSE"]
    assert told == pytest.approx((1 ** 2 + 1 ** 2 + 1.5 ** 2) / 3)
    assert rows["half of the raters, by the others"] is None


def test_ridge_is_the_least_of_its_loss_and_the_fold_errors_choose_its_strength():
    rng = np.random.default_rng(0)
    for clips, features in ((12, 40), (40, 12)):  # in the dual form, and in the primal
        cause = rng.normal(size=(clips + 5, 3))
        heard = cause @ rng.normal(size=(3, features)) + rng.normal(3, 2, (clips + 5, features))
        x, new = heard[:clips], heard[clips:]
        y = cause[:clips].sum(1) + rng.normal(0, 3, clips)
        z, z_new = (x - x.mean(0)) / x.std(0), (new - x.mean(0)) / x.std(0)
        strengths = features * evaluate.ALPHAS
        expected = []
        for strength in strengths:
            stacked = np.vstack([z, math.sqrt(strength) * np.eye(features)])
            target = np.concatenate([y - y.mean(), np.zeros(features)])
            expected.append(z_new @ np.linalg.lstsq(stacked, target)[0] + y.mean())
        np.testing.assert_allclose(evaluate.ridge_by_alpha(x, y, new), expected, atol=1e-6)
        errors = np.zeros(len(strengths))
        for i in range(clips):
            others = np.arange(clips) % 5 != i % 5
            said = evaluate.ridge_by_alpha(x[others], y[others], x[i:i + 1])
            errors += (said[:, 0] - y[i]) ** 2
        assert 0 < errors.argmin() < len(strengths) - 1
        np.testing.assert_allclose(evaluate.ridge(x, y, new), expected[errors.argmin()], atol=1e-6)
    few = evaluate.ridge(np.ones((2, 3)), np.array([1.0, 2.0]), np.ones((1, 3)))
    assert few == pytest.approx(1.5)


def test_the_row_of_ridge_learns_from_the_training_clips_that_are_not_held_out(small, run):
    result = evaluate.evaluate(run, "cpu")
    clips = data.read_manifest(small)
    config = evaluate.load_run(run, "cpu").config
    learned = [clip for clip in train.split_training(clips, config)[0] if clip.ratings]
    assert len(learned) < 24
    test = [clip for clip in clips if clip.split == "test"]
    x, new = (data.extract_features(some, moemos.load_backbone("logmel"), config.cache)
              .flatten(1).double().numpy() for some in (learned, test))
    predicted = evaluate.ridge(x, np.array([clip.mos for clip in learned]), new)
    true, system = [clip.mos for clip in test], [clip.system for clip in test]
    row = result["reference"]["ridge on the same features"]
    for level, expected in moemos.metrics(predicted, true, system).items():
        assert row[level] == pytest.approx(expected)
    own = [float(row["predicted"]) for row in table(run / "predictions.csv")]
    differences = (evaluate.resample(own, true, system)
                   - evaluate.resample(predicted, true, system))
    low, high = np.nanquantile(differences[:, 0], (0.025, 0.975))
    assert result["less_ridge_interval_95"]["utterance"]["MSE"] == pytest.approx([low, high])


def test_a_difference_is_shown_where_its_interval_excludes_0_and_of_an_error_less_is_better(capsys):
    bounds = np.array([[-2, -1], [1, 2], [-1, 1], [nan, nan], [1, 2], [-2, -1], [0, 1], [-1, 0]])
    evaluate.show_difference(np.full(8, 3.0), np.full(8, 1.0), bounds)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["this", "run", "less", "ridge", *["2.000"] * 8]
    assert lines[3].split() == ["shown", "to", "be", "better", "better", "neither", "neither",
                                "worse", "worse", "neither", "neither"]


def test_half_against_half_differs_by_the_raters_biases_and_is_none_without_shared_clips():
    clips = [rated(f"s{i % 3}", mild=3.0 + i % 2, strict=1.0 + i % 2) for i in range(6)]
    halves = evaluate.half_against_half(clips)["utterance"]
    assert halves["MSE"] == pytest.approx(4) and halves["LCC"] == pytest.approx(1)
    assert evaluate.half_against_half([rated("s", mean=3.0)] * 3) is None


def test_the_table_of_raters_by_hand(run):
    training = [rated("s", x=1.0, y=4.0), rated("s", x=3.0)]
    training = [dataclasses.replace(clip, split="train") for clip in training]
    rows = evaluate.rater_table([*training, rated("s", x=5.0)])
    assert rows == [("train", "x", 2, 2.0, 1.0), ("train", "y", 1, 4.0, 0.0),
                    ("test", "x", 1, 5.0, 0.0)]
    evaluate.evaluate(run, "cpu")
    counts = [(row["split"], row["rater"], row["ratings"]) for row in table(run / "raters.csv")]
    assert counts == [("train", "0", "24"), ("train", "1", "24"), ("test", "0", "16"),
                      ("test", "1", "16")]


def test_default_settings_beat_the_condition_mean_row_and_a_straight_line(
        corpus, tmp_path, monkeypatch):
    monkeypatch.setattr(evaluate, "RESAMPLES", 10)  # the test is not on its intervals
    train.train(quick(corpus, tmp_path, steps=0))
    result = evaluate.evaluate(tmp_path / "run", "cpu")
    reference = result["reference"]["condition's mean training MOS"]
    by_ridge = result["reference"][evaluate.RIDGE]
    for reached in (reference, by_ridge):
        assert result["utterance"]["LCC"] > reached["utterance"]["LCC"]
        assert result["system"]["LCC"] > reached["system"]["LCC"] - 0.02
        assert result["system"]["SRCC"] > reached["system"]["SRCC"] - 0.05
    assert result["lcc_within_systems"] > by_ridge["lcc_within_systems"] - 0.05
    assert np.mean(list(result["experts"].values()), 0).min() > 0.05  # no expert is dead


@pytest.mark.skipif(not REAL_CLIPS.is_dir(), reason="p835_wb16k does not lie beside the checkout")
def test_real_clips_with_human_scores(tmp_path):
    train.train(quick(REAL_CLIPS, tmp_path, steps=0))
    assert evaluate.evaluate(tmp_path / "run", "cpu")["utterance"]["LCC"] > 0.90


# -- Scoring one's own clips -----------------------------------------------------------------------

def test_a_clip_has_one_score_alone_in_company_and_on_every_call(small, run, monkeypatch, capsys):
    evaluate.evaluate(run, "cpu")
    rows = table(run / "predictions.csv")
    expected = {str(small / row["wav"]): float(row["predicted"]) for row in rows}
    company = dict(evaluate.score(run, [small]))
    assert list(company) == sorted(str(small / f"{i}.wav") for i in range(48))
    assert {path: company[path] for path in expected} == expected
    one, other = str(small / "40.wav"), str(small / "41.wav")
    assert list(evaluate.score(run, [one])) == [(one, company[one])]
    capsys.readouterr()
    assert call(monkeypatch, evaluate, run, "--wav", one, other) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines == ["wav,mos", *(f"{path},{expected[path]:.4f}" for path in (one, other))]


def test_a_bad_file_is_skipped_the_others_are_scored_and_the_status_is_1(
        small, run, tmp_path, monkeypatch, capsys):
    edit(run, lambda saved: saved["config"].update(max_seconds=0.5))  # of the run's training
    (tmp_path / "bad.wav").write_bytes(b"")
    loud = 1e20 * tone(16000)  # its power is beyond float32
    wavfile.write(tmp_path / "loud.wav", 16000, loud.astype(np.float32))
    wavfile.write(tmp_path / "long.wav", 16000, tone(16000, 0.6))
    wavfile.write(tmp_path / "still.wav", 16000, np.zeros(8000, np.int16))
    names = ("bad", "loud", "long", "still", "gone")
    files = [*(tmp_path / f"{name}.wav" for name in names), small / "40.wav"]
    assert call(monkeypatch, evaluate, run, "--wav", *files) == 1
    out, err = capsys.readouterr()
    assert [line.split(",")[0] for line in out.splitlines()] == [
        "wav", str(tmp_path / "still.wav"), str(small / "40.wav")]
    said = ("skipped: {}: not a whole WAV", "skipped: {}: too loud", "skipped: {}: 0.60 s long",
            "WARNING: {} is all digital silence", "skipped: {}: cannot be read")
    for line, path, start in zip(err.splitlines(), files, said, strict=False):
        assert line.startswith(start.format(path))
    assert err.count("\n") == 5
    assert math.isnan(dict(evaluate.score(run, [files[0]]))[str(files[0])])


def test_a_clip_can_come_through_a_pipe(small, run, tmp_path):
    content, pipe = (small / "40.wav").read_bytes(), tmp_path / "pipe"
    os.mkfifo(pipe)
    writer = threading.Thread(target=pipe.write_bytes, args=[content])
    writer.start()
    ((_, mos),) = evaluate.score(run, [pipe])
    writer.join()
    assert mos == dict(evaluate.score(run, [small / "40.wav"]))[str(small / "40.wav")]


# -- Command lines ---------------------------------------------------------------------------------

LOGMEL = ("--backbone", "logmel", "--device", "cpu")


def test_every_setting_is_an_option_and_reaches_the_run(monkeypatch):
    config = train.Config(
        "d", (0.0, 10.0), 5.0, "logmel", "o", "c", "cpu", seed=7, experts=3, hidden=9, dropout=0.25,
        auxiliary="none", augmentation="no", batch_size=8, weight_decay=0.5, lambda_1=0.1,
        lambda_2=0.2, smooth_l1_beta=0.3, steps=4)
    words = ["--scale", 0, 10]
    for name, value in dataclasses.asdict(config).items():
        assert value != getattr(train.Config, name), name
        words += [] if name == "scale" else ["--" + name.replace("_", "-"), value]
    called = []
    monkeypatch.setattr(train, "train", called.append)
    assert call(monkeypatch, train, *words) == call(monkeypatch, train) == 0
    assert called == [config, train.Config()]


def test_the_two_commands_simulate_train_and_evaluate(small, tmp_path, monkeypatch, capsys):
    calls = []

    def simulate(directory, seed):
        calls.append((directory, seed))
        shutil.copytree(small, directory)
    monkeypatch.setattr(simulated, "simulate", simulate)
    monkeypatch.chdir(tmp_path)
    words = (*LOGMEL, "--steps", 1, "--scale", 0, 6)
    assert call(monkeypatch, train, *words) == call(monkeypatch, train, *words) == 0
    assert calls == [("corpus", 0)]
    assert call(monkeypatch, evaluate) == 0
    assert evaluate.load_run("runs/default", "cpu").config.scale == (0.0, 6.0)
    assert "runs/default on corpus: 16 test clips, 4 systems" in capsys.readouterr().out


@pytest.mark.parametrize(("module", "words", "why"), [
    (data, ["EMPTY"], "ratings.csv: cannot be read (No such file"),
    (data, ["SMALL", "--backbone", "wav2vec"], "there is no backbone 'wav2vec'; choose logmel"),
    (data, ["SMALL", "--scale", "1", "3"], "off the scale of 1 to 3"),
    (data, ["SMALL", "--max-seconds", "0.1"], "above --max-seconds 0.1"),
    (data, [], "required"),
    (train, ["--data", "EMPTY"], "ratings.csv: cannot be read (No such file"),
    (train, ["--data", "nowhere"], "nowhere: cannot be read (No such file"),
    (train, ["--data", "SMALL", "--backbone", "nonsense"], "no backbone 'nonsense'"),
    (train, ["--data", "SMALL", "--out", "SMALL/ratings.csv"], "cannot be written"),
    (train, ["--data", "SMALL", "--max-seconds", "0.1"], "above --max-seconds 0.1"),
    (train, ["--device", "cuda:99"], "--device cuda:99 cannot be used here"),
    (train, ["--experts", "0"], "--experts 0: must be at least 1"),
    (train, ["--experts", "99999999"], "below 100"), (train, ["--dropout", "1"], "below 1"),
    (train, ["--steps", "-1"], "--steps -1: must be at least 0"),
    (train, ["--dropout", "nan"], "--dropout nan"), (train, ["--max-seconds", "inf"], "below inf"),
    (train, ["--lambda-1", "-1"], "--lambda-1 -1.0: must be at least 0"),
    (train, ["--out", ""], "must not be empty"), (train, ["--scale", "5", "1"], "--scale 5.0 1.0"),
    (train, ["--scale", "0", "1e39"], "a million"), (train, ["--exp", "2"], "unrecognized"),
    (train, ["--auxiliary", "all"], "invalid choice"), (train, ["--nonsense"], "unrecognized"),
    (evaluate, ["nowhere"], "nowhere/model.pt is missing"), (evaluate, ["a", "b"], "unrecognized"),
    (evaluate, ["RUN", "--device", "cuda:99"], "--device cuda:99 cannot be used here"),
    (evaluate, ["RUN", "--data", "EMPTY"], "ratings.csv: cannot be read"),
    (evaluate, ["nowhere", "--wav", "SMALL"], "nowhere/model.pt is missing"),
    (evaluate, ["RUN", "--wav", "EMPTY"], "empty: there is no WAV file in this folder"),
    (evaluate, ["RUN", "--data", "SMALL", "--wav", "SMALL"], "two different things to do")])
def test_bad_options_get_one_sentence_and_status_2(
        small, run, tmp_path, monkeypatch, capsys, module, words, why):
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path)
    names = {"SMALL": str(small), "EMPTY": "empty", "RUN": "run"}
    words = [functools.reduce(lambda word, name: word.replace(name, names[name]), names, word)
             for word in words]
    if module is train and "--backbone" not in words:
        words += ["--backbone", "logmel"]
    before = {path for path in tmp_path.rglob("*") if path.is_file()}
    assert call(monkeypatch, module, *words) == 2
    err = capsys.readouterr().err
    assert why in err
    assert err.startswith("usage: ") or re.fullmatch(rf"{module.__name__}\.py: .*\n", err)
    assert {path for path in tmp_path.rglob("*") if path.is_file()} == before  # nothing was begun


def test_a_run_that_diverges_or_is_interrupted_ends_with_one_sentence(monkeypatch, capsys):
    for error, why in ((KeyboardInterrupt(), "KeyboardInterrupt"),
                       (FloatingPointError("the loss is\nnan"), "the loss is")):
        def stop(config, error=error):
            raise error
        monkeypatch.setattr(train, "train", stop)
        assert call(monkeypatch, train) == 2
        assert capsys.readouterr().err == f"train.py: {why}\n"


def test_names_that_the_terminal_does_not_have_are_printed_all_the_same(
        small, run, tmp_path, monkeypatch):
    rows = [(small / f"{i}.wav", "test", f"漢{i % 2}", f"模{i % 2}", "r", 1 + i % 4)
            for i in range(6)]
    data.write_csv(tmp_path / "ratings.csv", [data.HEADER, *rows])
    strange = tmp_path / os.fsdecode(b"\xff.wav")  # no text in any encoding
    shutil.copy(small / "40.wav", strange)
    for words, said in ((["--data", tmp_path], rb"\u6a21"), (["--wav", strange], b"/\xff.wav,")):
        terminal = io.TextIOWrapper(io.BytesIO(), encoding="latin-1")
        monkeypatch.setattr(sys, "stdout", terminal)
        assert call(monkeypatch, evaluate, run, *words) == 0
        terminal.flush()
        assert said in terminal.buffer.getvalue()


# -- Processes that are killed, or share a cache ---------------------------------------------------

def die_within_write(number):
    """This process is to be killed when half of its n-th file is written."""
    write_bytes, count = Path.write_bytes, itertools.count(1)

    def write(path, content):
        if next(count) < number:
            return write_bytes(path, content)
        write_bytes(path, content[:len(content) // 2])
        os.kill(os.getpid(), signal.SIGKILL)
    Path.write_bytes = write


def run_script(folder, name, words, environment, death):
    """What a process of start() does."""
    os.chdir(folder)
    os.environ.update(environment)
    sys.argv = [f"{name}.py", *map(str, words)]
    if death:
        die_within_write(death)
    with open(os.devnull, "w") as sys.stdout:
        importlib.import_module(name).main()


@functools.cache
def processes():
    """Those of a server that has imported torch once, as each would take seconds for it."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["test_moemos", "torch._dynamo"])  # the latter is AdamW's
    return context


def start(folder, name, *words, death=0, **environment):
    """A script in a process of its own, in that folder."""
    process = processes().Process(target=run_script,
                                  args=(folder, name, words, environment, death))
    process.start()
    return process


def wait(*started):
    """Exit codes of processes."""
    for process in started:
        process.join()
    return [process.exitcode for process in started]


def entries(cache):
    """What a cache holds: name -> when it was written."""
    return {path.name: path.stat().st_mtime_ns for path in cache.iterdir()}


TRAIN = (*LOGMEL, "--steps", 2, "--data")


def result(folder):
    return [(folder / name).read_bytes() for name in ("model.pt", "log.csv")]


@functools.cache
def undisturbed():
    """The result of a process that nobody disturbs."""
    folder = scratch() / "undisturbed"
    folder.mkdir()
    assert wait(start(folder, "train", *TRAIN, small_corpus())) == [0]
    return result(folder / "runs" / "default")


def test_killed_within_any_write_the_next_start_gives_the_bytes_of_an_undisturbed_run(
        small, tmp_path):
    for death, whole_entries in (
            (1, 0), (3, 0), (12, 9), (25, 31),  # a trial of the folder; entries, also the last
            (4, 32), (4, 32), (5, 32)):         # log.csv, config.json, model.pt
        assert wait(start(tmp_path, "train", *TRAIN, small, death=death)) == [-signal.SIGKILL]
        names = (path.name for path in tmp_path.glob("cache/*"))
        assert sum(len(name) == 64 for name in names) == whole_entries
        assert not (tmp_path / "runs" / "default" / "model.pt").exists()
    assert wait(start(tmp_path, "train", *TRAIN, small)) == [0]
    assert result(tmp_path / "runs" / "default") == undisturbed()


def test_two_runs_at_once_on_one_cache_do_not_harm_each_other(small, tmp_path):
    both = [start(tmp_path, "train", *TRAIN, small, "--out", name) for name in "ab"]
    assert wait(*both) == [0, 0]
    assert len(entries(tmp_path / "cache")) == 32
    assert result(tmp_path / "a") == result(tmp_path / "b") == undisturbed()


@pytest.mark.parametrize("torchrun", [False, True])
def test_two_processes_extract_a_share_each_and_training_nothing_more(small, tmp_path, torchrun):
    if torchrun:
        words = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
        subprocess.run([sys.executable, *words, HERE / "data.py", small, *LOGMEL], cwd=tmp_path,
                       check=True, capture_output=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    else:
        for rank, done in (("1", 24), ("0", 48)):
            process = start(tmp_path, "data", small, *LOGMEL, RANK=rank, WORLD_SIZE="2")
            assert wait(process) == [0]
            assert len(entries(tmp_path / "cache")) == done
    before = entries(tmp_path / "cache")
    assert len(before) == 48
    assert wait(start(tmp_path, "train", *TRAIN, small)) == [0]
    assert entries(tmp_path / "cache") == before
    assert result(tmp_path / "runs" / "default") == undisturbed()


# -- The shape of the core -------------------------------------------------------------------------

CORE = ("moemos", "data", "train", "evaluate")


def tree(module):
    return ast.parse((HERE / f"{module}.py").read_text())


def imports(node, function=""):
    """Yields (function, module) of every import below a node of a syntax tree."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import):
            yield from ((function, alias.name) for alias in child.names)
        elif isinstance(child, ast.ImportFrom):
            yield function, child.module
        inner = child.name if isinstance(child, ast.FunctionDef) else function
        yield from imports(child, inner)


def test_the_core_imports_no_study_and_a_corpus_only_where_one_is_simulated():
    ours = {module: {(function, name) for function, name in imports(tree(module))
                     if name.split(".")[0] in (*CORE, "corpora", "studies")} for module in CORE}
    assert ours == {
        "moemos": set(), "data": {("", "moemos")},
        "train": {("", "moemos"), ("", "data"), ("training_clips", "corpora")},
        "evaluate": {("", "moemos"), ("", "data"), ("", "train")}}


@pytest.mark.parametrize("module", CORE)
def test_functions_are_at_most_40_lines_and_lines_at_most_100_columns(module):
    long = {node.name: node.end_lineno - node.lineno + 1 for node in ast.walk(tree(module))
            if isinstance(node, ast.FunctionDef) and node.end_lineno - node.lineno >= 40}
    wide = [line for line in (HERE / f"{module}.py").read_text().splitlines() if len(line) > 100]
    assert (long, wide) == ({}, [])


def test_names_that_others_import_are_there():
    for name in ("moemos.load_backbone", "moemos.Backbone.extract", "moemos.pool_statistics",
                 "moemos.MoEMOS", "moemos.Output", "moemos.diversity_loss", "moemos.sparsity_loss",
                 "moemos.losses", "moemos.mse", "moemos.lcc", "moemos.srcc", "moemos.ktau",
                 "moemos.metrics", "train.learning_rate", "train.alpha", "data.read_wav",
                 "data.read_manifest", "evaluate.score"):
        assert callable(pkgutil.resolve_name(name)), name
    assert train.Stage._fields == ("name", "steps", "lr", "alpha_start", "alpha_end")
    assert all(isinstance(stage, train.Stage) for stage in train.STAGES)
