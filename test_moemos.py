"""Tests as oracles: a number worked out by hand, a plain loop, scipy's function, or a property. None downloads."""

import contextlib
import csv
import dataclasses
import hashlib
import io
import json
import math
import os
import random
import re
import signal
import socket
import struct
import subprocess
import sys
import time
import types
import zlib
from pathlib import Path

import numpy as np
import pytest
import scipy.signal
import scipy.stats
import torch
from scipy.io import wavfile

import data
import evaluate
import moemos
import train

pytestmark = pytest.mark.filterwarnings("error")
HERE = Path(__file__).resolve().parent
REAL_CLIPS, FORMATS = (HERE.parent / "shared" / "data" / name for name in ("p835_wb16k", "audio_formats"))
nan = float("nan")


def table(path):
    return list(csv.DictReader(path.read_text().splitlines()))


def call(monkeypatch, module, *words):
    """Exit status of a script's main() with these words on its command line."""
    monkeypatch.setattr(sys, "argv", [f"{module.__name__}.py", *map(str, words)])
    try:
        module.main()
    except SystemExit as end:
        return int(end.code or 0)
    return 0


def some_output(clips=6, classes=3, experts=4, seed=0):
    torch.manual_seed(seed)
    model = moemos.MoEMOS(layers=3, width=5, classes=classes, experts=experts, hidden=7).eval()
    return model, model(torch.randn(clips, 3, 10))


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    """Any download fails the test that wants it."""
    def refuse(*args, **kwargs):
        raise AssertionError("a test wants to download")
    monkeypatch.setattr(torch.hub, "download_url_to_file", refuse)


@pytest.fixture(scope="session")
def corpus(tmp_path_factory):
    directory = tmp_path_factory.mktemp("simulated") / "corpus"
    data.simulate(directory, 101)
    return directory


# -- model ------------------------------------------------------------------------------------------------

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
            expert = hidden @ moe.w2[e] + moe.b2[e]
            torch.testing.assert_close(experts[b, e], expert)
            y = y + g[e] * expert
        torch.testing.assert_close(gates[b], g)
        torch.testing.assert_close(z[b], y)


def test_experts_are_drawn_independently():
    moe = moemos.MixtureOfExperts(10, experts=4, hidden=7, dropout=0.0)
    assert all(not torch.equal(moe.w1[i], moe.w1[j]) for i in range(4) for j in range(i))


def test_output_shapes_and_gates_sum_to_one():
    _, output = some_output()
    assert [tuple(part.shape) for part in output] == [(6,), (6,), (6, 3), (6, 4), (6, 4, 7), (6, 7)]
    torch.testing.assert_close(output.gates.sum(1), torch.ones(6))


def test_both_heads_read_the_gated_sum():
    model, output = some_output()
    y = torch.einsum("be,beh->bh", output.gates, output.experts)
    torch.testing.assert_close(output.mos, 3 + y @ model.mos_head.weight[0] + model.mos_head.bias)
    torch.testing.assert_close(output.logits, y @ model.class_head.weight.T + model.class_head.bias)


def test_dropout_is_on_the_fused_features_and_inside_the_experts():
    model, _ = some_output()
    seen = {}
    for name, module in (("fused", model.dropout), ("hidden", model.moe.dropout)):
        module.register_forward_hook(lambda _, inputs, output, name=name: seen.update({name: (inputs[0], output)}))
    model.moe.gate.register_forward_pre_hook(lambda _, inputs: seen.update(gate=inputs[0]))
    model.train()(torch.randn(200, 3, 10))
    for name, shape in (("fused", (200, 10)), ("hidden", (200, 4, 7))):
        before, after = seen[name]
        kept = after != 0
        assert tuple(after.shape) == shape and kept.float().mean().item() == pytest.approx(0.5, abs=0.05)
        torch.testing.assert_close(after[kept], 2 * before[kept])
    assert torch.equal(seen["gate"], seen["fused"][1])


def test_fusion_is_a_softmax_weighted_sum_of_normalised_layers():
    fusion = moemos.FeatureFusion(3, 5)
    fusion.layer_logits.data = torch.tensor([0.0, 1.0, 2.0])
    features = torch.randn(4, 3, 10)
    weights = np.exp([0, 1, 2]) / np.exp([0, 1, 2]).sum()
    x = features.numpy()
    normal = (x - x.mean(2, keepdims=True)) / np.sqrt(x.var(2, keepdims=True) + 1e-5)
    np.testing.assert_allclose(fusion(features).detach().numpy(), np.einsum("l,bld->bd", weights, normal), atol=1e-5)
    loud = features * torch.tensor([1.0, 1000.0, 0.5])[:, None]  # a layer's scale does not matter
    torch.testing.assert_close(fusion(loud), fusion(features), atol=1e-3, rtol=1e-3)


def test_statistics_centre_and_scale_the_training_clips():
    fusion = moemos.FeatureFusion(1, 5)
    features = torch.randn(50, 1, 10)
    fusion.set_statistics(features)
    fused = fusion(features)
    torch.testing.assert_close(fused.mean(0), torch.zeros(10), atol=1e-5, rtol=0)
    torch.testing.assert_close(fused.std(0, correction=0), torch.ones(10), atol=1e-4, rtol=0)


def test_pool_statistics_are_mean_and_population_deviation_over_time():
    frames = torch.randn(2, 9, 5)
    pooled = moemos.pool_statistics(frames).numpy()
    np.testing.assert_allclose(pooled, np.concatenate([frames.numpy().mean(1), frames.numpy().std(1)], 1), atol=1e-6)
    assert moemos.pool_statistics(frames[:, :1]).isfinite().all()


# -- losses -----------------------------------------------------------------------------------------------

def test_mos_loss_by_hand():
    predicted, mos = torch.tensor([1.0, 2.0, 9.0]), torch.tensor([1.5, 4.0, nan])
    assert moemos.mos_loss(predicted, mos).item() == pytest.approx((0.5 * 0.25 + 1.5) / 2)
    assert moemos.mos_loss(predicted, mos, smooth_l1_beta=4.0).item() == pytest.approx((0.25 / 8 + 4 / 8) / 2)


def test_classification_loss_by_hand_and_unknown_classes_left_out():
    logits = torch.tensor([[0.0, math.log(3)], [5.0, 1.0]])
    assert moemos.classification_loss(logits, torch.tensor([1, -1])).item() == pytest.approx(math.log(4 / 3))


@pytest.mark.parametrize(("gates", "diversity", "sparsity"), [
    ([[0.25] * 4] * 3, 1.0, 2.0),                                        # all alike: balanced, not sparse
    ([[1.0, 0, 0, 0]] * 3, 4.0, 1.0),                                    # collapse
    (np.eye(4).tolist(), 1.0, 1.0),                                      # specialised
    ([[0.5, 0.5], [0.9, 0.1]], 2 * (0.7 ** 2 + 0.3 ** 2), (1 / math.sqrt(0.5) + 1 / math.sqrt(0.82)) / 2),
    ([[1.0]] * 3, 1.0, 1.0),                                             # one expert
])
def test_regularisers_by_hand(gates, diversity, sparsity):
    gates = torch.tensor(gates)
    assert moemos.diversity_loss(gates).item() == pytest.approx(diversity, rel=1e-6)
    assert moemos.sparsity_loss(gates).item() == pytest.approx(sparsity, rel=1e-6)


def test_diversity_is_one_plus_the_squared_coefficient_of_variation_of_importance():
    gates = torch.randn(20, 6).softmax(1)
    importance = gates.sum(0).numpy()
    assert moemos.diversity_loss(gates).item() == pytest.approx(1 + importance.var() / importance.mean() ** 2, rel=1e-5)


def test_total_is_the_weighted_sum():
    _, output = some_output()
    terms = moemos.losses(output, torch.tensor([1.0, 2, 3, 4, 5, nan]), torch.tensor([0, 1, 2, 0, 1, 2]),
                          alpha=0.3, beta=0.7, lambda_1=0.11, lambda_2=0.13)
    assert terms["total"].item() == pytest.approx(0.3 * terms["mos"].item() + 0.7 * terms["classification"].item()
                                                  + 0.11 * terms["diversity"].item() + 0.13 * terms["sparsity"].item())


@pytest.mark.parametrize("experts", [1, 4])
def test_gradients_are_finite_without_labels_and_with_saturated_gates(experts):
    model, _ = some_output(experts=experts)
    model.moe.gate.weight.data *= 1e4
    output = model(torch.randn(6, 3, 10))
    terms = moemos.losses(output, torch.full((6,), nan), torch.full((6,), -1), alpha=0.5, beta=0.5)
    terms["total"].backward()
    assert terms["mos"] == terms["classification"] == 0
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


def test_clips_without_mos_give_the_mos_head_no_gradient_but_the_classifier_one():
    model, _ = some_output()
    output = model(torch.randn(6, 3, 10))
    moemos.losses(output, torch.full((6,), nan), torch.zeros(6, dtype=torch.long), alpha=0.5, beta=0.5)["total"].backward()
    assert model.mos_head.weight.grad.abs().sum() == 0
    assert model.class_head.weight.grad.abs().sum() > 0


def test_losses_refuse_shapes_that_would_broadcast():
    _, output = some_output()
    with pytest.raises(ValueError, match=r"ratings \(6, 1\) must be \(6,\)"):
        moemos.losses(output, torch.ones(6, 1), torch.zeros(6, dtype=torch.long), alpha=1, beta=0)


def test_gate_entropies_tell_collapse_from_specialisation():
    assert [round(h.item(), 6) for h in moemos.gate_entropies(torch.tensor([[1.0, 0.0]] * 4))] == [0, 0]
    assert [h.item() for h in moemos.gate_entropies(torch.eye(4))] == pytest.approx([0, math.log(4)])
    assert [h.item() for h in moemos.gate_entropies(torch.full((3, 4), 0.25))] == pytest.approx([math.log(4)] * 2)


# -- metrics ----------------------------------------------------------------------------------------------

@pytest.mark.parametrize("ties", [False, True])
def test_metrics_agree_with_scipy(ties):
    rng = np.random.default_rng(0)
    p, t = rng.normal(size=40), rng.normal(size=40)
    if ties:
        p, t = p.round(), t.round()
    assert moemos.mse(p, t) == pytest.approx(np.square(p - t).mean())
    assert moemos.lcc(p, t) == pytest.approx(scipy.stats.pearsonr(p, t)[0])
    assert moemos.srcc(p, t) == pytest.approx(scipy.stats.spearmanr(p, t)[0])
    assert moemos.ktau(p, t) == pytest.approx(scipy.stats.kendalltau(p, t)[0])


def test_ranks_are_scipys():
    values = np.random.default_rng(0).integers(0, 9, 40)
    assert np.array_equal(moemos.ranks(values), scipy.stats.rankdata(values))


def test_metrics_by_hand():
    p, t = [1, 2, 3, 4], [1, 3, 2, 4]
    assert (moemos.mse(p, t), moemos.lcc(p, t), moemos.srcc(p, t)) == pytest.approx((0.5, 0.8, 0.8))
    assert moemos.ktau(p, t) == pytest.approx(4 / 6)


@pytest.mark.parametrize(("p", "t", "why"), [([3, 3, 3], [1, 2, 3], "predictions are all equal"), ([1, 2], [4, 4], "true scores are all equal"),
                                             ([1], [2], "two are needed"), ([], [], "two are needed"), ([1, nan], [1, 2], "not finite")])
def test_undefined_correlations_are_nan_with_a_reason(p, t, why):
    assert why in moemos.undefined(p, t)
    assert all(math.isnan(metric(p, t)) for metric in (moemos.lcc, moemos.srcc, moemos.ktau))


def test_system_level_is_the_plain_mean_of_a_systems_clips():
    result = moemos.metrics([1, 3, 5, 5], [2, 2, 4, 4.5], ["a", "a", "b", "c"])
    assert result["system"]["MSE"] == pytest.approx((0 + 1 + 0.25) / 3)
    assert result["utterance"]["MSE"] == pytest.approx((1 + 1 + 1 + 0.25) / 4)


# -- schedule ---------------------------------------------------------------------------------------------

def test_stages_are_the_papers():
    assert [(s.lr, s.alpha_start, s.alpha_end) for s in train.STAGES if s.name != "joint"] == [(1e-4, 0, 0), (1e-5, 0.9, 0.9)]
    assert [(s.alpha_start, s.alpha_end) for s in train.STAGES if s.name == "joint"] == [(0.3, 0.7)]
    assert [s.name for s in train.STAGES] == ["classification", "joint", "mos"]


def test_learning_rate_is_torchs_cosine():
    optimiser = torch.optim.AdamW([torch.zeros(1, requires_grad=True)], lr=0.3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, T_max=10)
    for step in range(10):
        assert train.learning_rate(step, 10, 0.3) == pytest.approx(optimiser.param_groups[0]["lr"])
        optimiser.step()
        schedule.step()
    assert train.learning_rate(10, 10, 0.3) == pytest.approx(0)


def test_alpha_ramps_from_start_to_end():
    assert [train.alpha(step, 5, 0.3, 0.7) for step in range(5)] == pytest.approx([0.3, 0.4, 0.5, 0.6, 0.7])
    assert train.alpha(0, 1, 0.9, 0.9) == 0.9


# -- backbone ---------------------------------------------------------------------------------------------

def hub_with_base_weights(folder):
    """A hub folder with a state dict of WAV2VEC2_BASE's shape, and the network it came from."""
    import torchaudio
    torch.manual_seed(0)
    bundle = torchaudio.pipelines.WAV2VEC2_BASE
    network = torchaudio.models.wav2vec2_model(**bundle._params)
    (folder / "checkpoints").mkdir(parents=True)
    torch.save(network.state_dict(), folder / "checkpoints" / bundle._path)
    return network.eval()


def test_a_backbone_is_frozen_and_in_eval_whatever_it_is_given():
    network = moemos.LogMel()
    network.extract_features = lambda waveforms, inner=network.extract_features: ([torch.nn.functional.dropout(layer, 0.5, network.training)
                                                                                  for layer in inner(waveforms)[0]], None)
    network.weight = torch.nn.Parameter(torch.ones(1))
    backbone = moemos.Backbone("x", network.train())
    waveform = torch.randn(8000)
    assert torch.equal(backbone.extract(waveform), backbone.extract(waveform)) and not network.weight.requires_grad
    other = moemos.LogMel()
    other.weight = torch.nn.Parameter(torch.zeros(1))
    assert moemos.Backbone("x", other).identity != backbone.identity  # other weights, another backbone


def test_wav2vec2_base_is_loaded_frozen_from_the_hub_folder(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    network = hub_with_base_weights(tmp_path)
    backbone = moemos.load_backbone("WAV2VEC2_BASE")
    waveform = torch.randn(8000)
    frames = backbone.extract(waveform)
    assert (backbone.name, backbone.layers, backbone.width, tuple(frames.shape)) == ("WAV2VEC2_BASE", 12, 768, (12, 24, 768))
    with torch.no_grad():
        expected = torch.cat(network.extract_features(waveform[None])[0])
    assert torch.equal(frames, expected)
    assert torch.equal(backbone.extract(waveform), frames)  # no dropout
    assert not any(p.requires_grad for p in backbone.network.parameters())


def test_logmel_has_three_layers_and_refuses_what_is_no_waveform():
    backbone = moemos.load_backbone("logmel")
    assert tuple(backbone.extract(torch.randn(16000)).shape) == (3, 101, backbone.width)
    for wrong in (torch.zeros(399), torch.zeros(2, 16000)):
        with pytest.raises(moemos.InputError, match="25 ms"):
            backbone.extract(wrong)


def refuse_network(*args, **kwargs):
    raise OSError("no network in tests")


def test_without_weights_the_default_falls_back_and_a_named_bundle_does_not(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr(torch.hub, "download_url_to_file", refuse_network)
    assert train.default_backbone("cpu").name == "logmel"
    assert "WARNING" in capsys.readouterr().err
    with pytest.raises(moemos.WeightsUnavailable, match="no network in tests"):
        moemos.load_backbone("WAV2VEC2_BASE")
    with pytest.raises(moemos.InputError, match="choose one of logmel, prosody.*WAVLM_BASE"):
        moemos.load_backbone("WAV2VEC3")


def test_damaged_weights_are_an_error_and_not_a_fallback(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "wav2vec2_fairseq_base_ls960.pth").write_bytes(b"half a download")
    with pytest.raises(moemos.InputError, match="damaged"):
        train.default_backbone("cpu")


DOWNLOAD = torch.hub.download_url_to_file


def test_a_stalled_download_is_given_up(tmp_path, monkeypatch):
    download = DOWNLOAD
    with socket.create_server(("127.0.0.1", 0)) as server:  # accepts, and never answers
        url = f"http://127.0.0.1:{server.getsockname()[1]}/weights"
        monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
        monkeypatch.setattr(torch.hub, "download_url_to_file", lambda _, *rest, **options: download(url, *rest, **options))
        monkeypatch.setattr(moemos, "STALL_SECONDS", 0.3)
        with pytest.raises(moemos.WeightsUnavailable, match="timed out"):
            moemos.load_backbone("WAV2VEC2_BASE")
    assert socket.getdefaulttimeout() is None


# -- audio, manifest, features ----------------------------------------------------------------------------

def tone(rate, seconds=0.5):
    return 0.5 * np.sin(2 * np.pi * 440 * np.arange(int(rate * seconds)) / rate)


@pytest.mark.parametrize("encode", [lambda x: np.rint(128 + 127 * x).astype(np.uint8), lambda x: np.rint(32767 * x).astype(np.int16),
                                    lambda x: np.rint((2 ** 31 - 1) * x).astype(np.int32), np.float32, np.float64])
@pytest.mark.parametrize("rate", [8000, 16000, 44100, 48000])
def test_read_wav_gives_the_same_tone_from_every_encoding_and_rate(tmp_path, encode, rate):
    wavfile.write(tmp_path / "a.wav", rate, encode(tone(rate)))
    wave = data.read_wav(tmp_path / "a.wav")
    assert wave.dtype == torch.float32 and wave.shape == (8000,)
    np.testing.assert_allclose(wave[500:-500], tone(16000)[500:-500], atol=0.012)


def test_read_wav_averages_channels_and_keeps_the_level(tmp_path):
    wavfile.write(tmp_path / "a.wav", 16000, np.stack([tone(16000), np.zeros(8000)], 1).astype(np.float32))
    np.testing.assert_allclose(data.read_wav(tmp_path / "a.wav"), tone(16000) / 2, atol=1e-6)


def header(channels, rate):
    """A WAV file of 4000 16-bit zeros that says it has these channels and this rate."""
    return struct.pack("<4sI4s4sIHHIIHH4sI", b"RIFF", 8036, b"WAVE", b"fmt ", 16, 1, channels, rate, 2 * channels * rate, 2 * channels, 16, b"data", 8000) + bytes(8000)


@pytest.mark.parametrize(("content", "why"), [
    (None, "cannot be read"), (b"", "not a whole WAV"), (b"ID3\x04 an mp3", "not a whole WAV"), (b"fLaC\0\0\0\x22", "not a whole WAV"), (b"some text", "not a whole WAV"),
    ("cut", "not a whole WAV"), (header(1, 16000)[:44], "not a whole WAV|at least one sample"), (np.zeros(0, np.int16), "at least one sample"),
    (header(0, 16000), "not a whole WAV"), (header(1, 0), "a rate up to"), (np.zeros(399, np.int16), "25 ms"), (np.full(8000, np.nan, np.float32), "NaN"),
    (np.full(8000, 1e300), "huge"), (np.full(8000, np.inf), "NaN, infinite or huge"), (np.zeros(8000, np.int64), "int64")])
def test_read_wav_refuses_the_rest_naming_the_file(tmp_path, content, why):
    path = tmp_path / "bad.wav"
    if isinstance(content, np.ndarray):
        wavfile.write(path, 16000, content)
    elif content == "cut":
        wavfile.write(path, 16000, tone(16000).astype(np.float32))
        path.write_bytes(path.read_bytes()[:-1000])
    elif content is not None:
        path.write_bytes(content)
    with pytest.raises(ValueError, match=why) as caught:
        data.read_wav(path)
    assert str(path) in str(caught.value)


def manifest(folder, rows, header="wav,split,system,model,rater,score"):
    wavfile.write(folder / "a.wav", 16000, tone(16000).astype(np.float32))
    wavfile.write(folder / "b.wav", 16000, -tone(16000, 0.6).astype(np.float32))
    (folder / "ratings.csv").write_text("\n".join([header, *rows]) + "\n")
    return folder


def test_manifest_is_read_with_and_without_mos_and_model(tmp_path):
    clips = data.read_manifest(manifest(tmp_path, ["a.wav,train,s,0,4", "a.wav,train,s,1,5", "b.wav,test,s,,"], "wav,split,system,rater,score"))
    assert [(c.wav, c.split, c.system, c.model, c.ratings) for c in clips] == [("a.wav", "train", "s", "s", {"0": 4, "1": 5}), ("b.wav", "test", "s", "s", {})]
    assert clips[0].mos == 4.5 and math.isnan(clips[1].mos)


@pytest.mark.parametrize(("rows", "why"), [
    ([], "no rows"), (["a.wav,train,s,m,0"], "one value for each of"), (["a.wav,valid,s,m,0,4"], "train, dev or test"), (["c.wav,train,s,m,0,4"], "is not there"),
    (["a.wav,train,s,m,0,4", "a.wav,test,s,m,1,4"], "row 3: a.wav stood in another split"), (["a.wav,train,s,m,0,4"] * 2, "row 3: rater '0' has rated a.wav"),
    (["a.wav,train,s,m,0,good"], "no number"), (["a.wav,train,s,m,0,"], "no number"), (["a.wav,train,s,m,,4", "./a.wav,train,s,m,,4"], "rater 'mean' has rated a.wav"), (["a.wav,train,s,m,0,6"], "off the scale"), (["a.wav,train,s,m,0,nan"], "off the scale")])
def test_bad_manifest_rows_are_refused_by_number(tmp_path, rows, why):
    with pytest.raises(moemos.InputError, match=why):
        data.read_manifest(manifest(tmp_path, rows))


class CountingBackbone:
    name, identity, layers, width = "counting", "x", 2, 3

    def __init__(self):
        self.lengths = []

    def extract(self, waveform):
        self.lengths.append(len(waveform))
        return waveform[:12].view(2, 2, 3)


def test_each_clip_goes_through_the_backbone_once_alone_and_unpadded(tmp_path):
    clips = data.read_manifest(manifest(tmp_path, ["a.wav,train,s,m,0,4", "b.wav,train,s,m,0,4"]))
    backbone, cache = CountingBackbone(), tmp_path / "cache"
    first = data.extract_features(clips, backbone, cache)
    assert backbone.lengths == [8000, 9600]
    assert torch.equal(first[1], moemos.pool_statistics(data.read_wav(clips[1].path)[:12].view(2, 2, 3)))
    assert torch.equal(data.extract_features(clips[::-1], backbone, cache).flip(0), first)
    assert len(backbone.lengths) == 2                                          # all from the cache

    next(cache.iterdir()).write_bytes(b"damaged" * 20)                         # a damaged entry is made again
    assert torch.equal(data.extract_features(clips, backbone, cache), first) and len(backbone.lengths) == 3
    wavfile.write(clips[0].path, 16000, tone(16000, 0.7).astype(np.float32))   # so is a file of another content
    data.extract_features(clips, backbone, cache)
    assert backbone.lengths[3:] == [11200]
    backbone.identity = "y"                                                    # and all of another backbone
    data.extract_features(clips, backbone, cache)
    assert len(backbone.lengths) == 6
    for entry in cache.iterdir():                                              # or of another shape
        entry.write_bytes(hashlib.sha256(b"").digest())
    data.extract_features(clips, backbone, cache)
    assert len(backbone.lengths) == 8
    assert not list(cache.glob("*.partial"))


def test_an_interrupted_extraction_continues_where_it_stopped(tmp_path):
    clips = data.read_manifest(manifest(tmp_path, ["a.wav,train,s,m,0,4", "b.wav,train,s,m,0,4"]))
    backbone = CountingBackbone()
    backbone.extract = lambda waveform: CountingBackbone.extract(backbone, waveform) if len(waveform) == 8000 else 1 / 0
    with pytest.raises(ZeroDivisionError):
        data.extract_features(clips, backbone, tmp_path / "cache")
    del backbone.extract
    data.extract_features(clips, backbone, tmp_path / "cache")
    assert backbone.lengths == [8000, 9600]


@pytest.mark.parametrize("terminal", [True, False])
def test_progress_is_shown_on_a_terminal_and_not_in_a_pipe(tmp_path, monkeypatch, terminal):
    clips = data.read_manifest(manifest(tmp_path, ["a.wav,train,s,m,0,4", "b.wav,train,s,m,0,4"]))
    screen = io.StringIO()
    screen.isatty = lambda: terminal
    monkeypatch.setattr(sys, "stderr", screen)
    data.extract_features(clips, CountingBackbone(), tmp_path / "cache")
    assert ("2/2 clips, 1 s of audio" in screen.getvalue() and "0 s left" in screen.getvalue()) if terminal else not screen.getvalue()


@pytest.mark.parametrize("text", [
    "\ufeffwav,split,system,model,rater,score\r\n\"a,b é.wav\",train,s,m,0,4\r\n", "score,wav,split,system,rater,model\n4,\"a,b é.wav\",train,s,0,m\n",
    "wav,split,system,model,rater,score\n\n\"FOLDER/a,b é.wav\",train,s,m,0,4\n"])
def test_tables_with_bom_crlf_quotes_other_letters_other_order_and_absolute_paths_are_read(tmp_path, text):
    wavfile.write(tmp_path / "a,b é.wav", 16000, tone(16000).astype(np.float32))
    (tmp_path / "ratings.csv").write_bytes(text.replace("FOLDER", str(tmp_path)).encode())
    (clip,) = data.read_manifest(tmp_path)
    assert (clip.path, clip.split, clip.system, clip.model, clip.ratings) == (tmp_path / "a,b é.wav", "train", "s", "m", {"0": 4.0})


@pytest.mark.parametrize(("content", "why"), [
    (b"", "first row must be wav,split"), (b"wav,score\na.wav,4\n", "first row must be"), (b"a.wav,train,s,m,0,4\n", "first row must be"),
    (b"wav,split,system,model,rater,score\n", "no rows"), (b"\xff\xfe\x00", "no CSV table in UTF-8"), (b'wav,split,system,model,rater,score\n"a.wav,train', "no CSV table")])
def test_what_is_no_table_of_ratings_is_refused_naming_the_file(tmp_path, content, why):
    (tmp_path / "ratings.csv").write_bytes(content)
    with pytest.raises(moemos.InputError, match=why) as caught:
        data.read_manifest(tmp_path)
    assert str(tmp_path) in str(caught.value)


def test_silence_is_warned_of_and_a_long_clip_refused(tmp_path, capsys):
    wavfile.write(tmp_path / "a.wav", 16000, np.zeros(16000, np.int16))
    assert data.check_clip(tmp_path / "a.wav", 1.0) == (16000, 1.0)
    assert f"{tmp_path / 'a.wav'} is all digital silence" in capsys.readouterr().err
    with pytest.raises(moemos.InputError, match="1.00 s long, above train.py's --max-seconds 0.9"):
        data.check_clip(tmp_path / "a.wav", 0.9)


def test_a_full_disk_gets_one_sentence_and_spoils_nothing(tmp_path, monkeypatch):
    data.write_atomically(tmp_path / "a", b"good")

    def no_room(path, content):
        with open(path, "wb") as file:
            file.write(content[:2])
        raise OSError(28, "No space left on device")
    monkeypatch.setattr(Path, "write_bytes", no_room)
    with pytest.raises(moemos.InputError, match=r"a: cannot be written \(No space left"):
        data.write_atomically(tmp_path / "a", b"new")
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [("a", b"good")]


def decode_by_hand(content):
    """A WAV file, by its chunks and one sample at a time -> (rate, (T, channels))."""
    order, at, name = ">" if content[:4] == b"RIFX" else "<", 12, b""
    while name != b"data":
        name, size = struct.unpack_from(f"{order}4sI", content, at)
        at += 8
        if name == b"fmt ":
            kind, channels, rate, _, block = struct.unpack_from(f"{order}HHIIH", content, at)
            kind = struct.unpack_from(f"{order}H", content, at + 24)[0] if kind == 0xFFFE else kind
        at += (size + size % 2) * (name != b"data")
    width = block // channels
    size = min(size, len(content) - at) // block * block  # RF64 says 2^32 - 1
    if kind == 3:
        values = np.frombuffer(content, f"{order}f{width}", size // width, at).astype(float)
    else:
        endian = "big" if order == ">" else "little"
        values = np.array([int.from_bytes(content[i:i + width], endian, signed=width > 1) for i in range(at, at + size, width)], float)
        values = (values - 128) / 128 if width == 1 else values / 2 ** (8 * width - 1)
    return rate, values.reshape(-1, channels)


@pytest.mark.skipif(not FORMATS.is_dir(), reason="the encodings of audio_formats do not lie beside the checkout")
def test_every_encoding_is_read_as_an_independent_decoding_has_it_or_truly_refused(monkeypatch):
    refused = {"early-eof-no-data": "Unexpected end of file", "early-eof.": "Reached EOF prematurely", "incomplete-chunk": "Incomplete chunk",
               "ulaw": "MULAW", "inconsistent": "header is invalid", "36bit": "int64", "45bit": "int64", "53bit": "int64", "64bit.": "int64"}
    for row in table(FORMATS / "formats.csv"):
        path = FORMATS / "wav" / row["wav"]
        why = next((reason for part, reason in refused.items() if part in path.name), None) or "25 ms" * (float(row["seconds"]) < 0.025)
        if why:
            with pytest.raises(moemos.InputError, match=why) as caught:
                data.read_wav(path)
            assert str(path) in str(caught.value)
        if why in ("", "25 ms"):
            rate, samples = decode_by_hand(path.read_bytes())
            assert (rate, samples.shape[1]) == (int(row["rate"]), int(row["channels"])) and abs(len(samples) / rate - float(row["seconds"])) < 1e-4
            expected = scipy.signal.resample_poly(samples.mean(1), 16000 // math.gcd(rate, 16000), rate // math.gcd(rate, 16000))
            with monkeypatch.context() as patch:
                patch.setattr(moemos, "MIN_SAMPLES", 0)  # most of these files are shorter
                np.testing.assert_allclose(data.read_wav(path), expected, atol=1e-6)


# -- simulated corpus -------------------------------------------------------------------------------------

def test_corpus_has_the_make_up_of_track_3(corpus):
    clips = data.read_manifest(corpus)
    rated = {split: [c for c in clips if c.split == split and c.ratings] for split in ("train", "test")}
    assert {split: len(rows) for split, rows in rated.items()} == {"train": 400, "test": 400}
    for split, raters in (("train", range(10)), ("test", range(10, 20))):
        assert all(sorted(map(int, c.ratings)) == list(raters) for c in rated[split])
        counts = {system: sum(c.system == system for c in rated[split]) for system in data.CONDITIONS}
        assert counts == {system: 5 if system[:3] == "48k" else 30 for system in data.CONDITIONS}
    sentences = {split: {c.wav[-6:-4] for c in rows} for split, rows in rated.items()}
    assert len(sentences["train"]) == len(sentences["test"]) == 30 and not sentences["train"] & sentences["test"]
    unrated = [c for c in clips if not c.ratings]
    assert len(unrated) == 400 and {c.split for c in unrated} == {"train"}
    assert {c.model for c in unrated} == {"CosyVoice-300M", "CosyVoice2-0.5B", "FireRedTTS", "F5-TTS"}
    for split, texts in (("train", range(30)), ("test", range(30, 60))):  # the augmentation speaks those of training
        assert {clip["sentence"] for clip in data.plan_corpus(101) if clip["split"] == split} == set(texts)
    assert len({c.model for c in clips if c.split == "train"}) == 12
    assert all(score in (1, 2, 3, 4, 5) for c in clips for score in c.ratings.values())
    audio = [wavfile.read(c.path) for c in clips]
    assert all(rate == int(c.system[:2]) * 1000 for c, (rate, _) in zip(clips, audio) if c.ratings)
    seconds = np.array([len(samples) / rate for rate, samples in audio])
    assert seconds.min() >= 1.3 and seconds.max() <= 4.0 and 2.3 < seconds.mean() < 2.7
    is_rated, mos = np.array([bool(c.ratings) for c in clips]), np.array([c.mos for c in clips])
    level = np.array([np.log(np.std(samples.astype(float))) for _, samples in audio])
    assert np.exp(level).min() > 300  # no clip is silent
    for telltale in (level, seconds):  # neither says anything of the score
        assert abs(moemos.lcc(telltale[is_rated], mos[is_rated])) < 0.12


def test_super_resolution_mirrors_the_band_below_six_kilohertz():
    phones, talker = data.speak(np.random.default_rng(0)), data.talk(np.random.default_rng(1), studio=False) | {"noise": -120}
    plain, mirrored = (np.log(np.abs(np.fft.rfft(data.synthesize(phones, talker, traces, 24000, np.random.default_rng(2)).astype(float))))
                       for traces in ({}, {"image": 1.0}))
    hz = np.linspace(0, 12000, len(plain))
    bands = [np.array([x[(hz >= low) & (hz < low + 500)].mean() for low in range(0, 12000, 500)]) for x in (plain, mirrored)]
    assert moemos.lcc(bands[1][12:], bands[1][11::-1]) > 0.95
    assert moemos.lcc(bands[0][12:], bands[0][11::-1]) < 0.5


def test_corpus_is_the_same_bytes_for_a_seed_and_others_for_another(corpus, tmp_path, monkeypatch):
    monkeypatch.setattr(data, "CONDITIONS", dict(list(data.CONDITIONS.items())[8:20:5]))  # a part of it, for the time's sake
    monkeypatch.setattr(data, "AUGMENTATION_CLIPS", 3)
    for name, seed in (("one", 1), ("two", 1), ("three", 2)):
        data.simulate(tmp_path / name, seed)
    files = {name: {path.relative_to(tmp_path / name): path.read_bytes() for path in (tmp_path / name).rglob("*.*")} for name in ("one", "two", "three")}
    assert files["one"] == files["two"] and len(files["one"]) == 2 * (30 + 5 + 5) + 4 * 3 + 1
    assert not any(files["one"][name] == content for name, content in files["three"].items() if name in files["one"])
    with pytest.raises(moemos.InputError, match="no empty folder"):
        data.simulate(corpus, 102)


def test_simulated_listeners_are_calibrated_on_the_published_figures():
    targets = [{name: mos[half] for name, mos in data.CONDITIONS.items()} for half in (0, 1)]
    names = np.repeat(list(data.CONDITIONS), [data.CLIPS[name[:2]] for name in data.CONDITIONS])
    errors, rows, reliability, halves, effects = [], [], [], [], []
    for seed in range(200, 212):
        rng = np.random.default_rng(seed)
        severity = {name: rng.normal(size=data.CLIPS[name[:2]]) for name in data.CONDITIONS}
        panels = []
        for target in targets:
            raters = data.draw_panel(rng)
            panels.append({name: data.rate_clips(rng, mos, severity[name], *raters) for name, mos in target.items()})
        errors += [panels[half][name].mean() - mos for half in (0, 1) for name, mos in targets[half].items()]
        mean = {name: panels[0][name].mean() for name in data.CONDITIONS}
        scores = np.concatenate([panels[1][name] for name in data.CONDITIONS])                 # (400, 10)
        rows.append([v for level in moemos.metrics([mean[name] for name in names], scores.mean(1), names).values() for v in level.values()])
        one, other = scores[:, ::2].mean(1), scores[:, 1::2].mean(1)
        r = moemos.lcc(one, other)
        reliability.append(2 * r / (1 + r))
        halves.append(moemos.metrics(one, other, names)["system"]["SRCC"])
        residual = scores - scores.mean(1, keepdims=True) - scores.mean(0) + scores.mean()
        slopes = [np.polyfit(scores.mean(1), scores[:, rater], 1)[0] for rater in range(10)]
        effects.append([scores.mean(0).std(ddof=1), residual.std() * math.sqrt(10 / 9), np.std(slopes, ddof=1)])
    assert abs(np.mean(errors)) < 0.02 and np.std(errors) < 0.11
    np.testing.assert_allclose(np.mean(rows, 0), (0.222, 0.856, 0.702, 0.520, 0.101, 0.945, 0.748, 0.575), atol=0.04)
    assert np.mean(reliability) == pytest.approx(0.90, abs=0.025) and np.mean(halves) == pytest.approx(0.95, abs=0.025)
    bias, residual, gain = np.mean(effects, 0)
    assert 0.42 <= bias <= 0.70 and 0.68 <= residual <= 0.86 and 0.14 <= gain <= 0.24


# -- real data sets ---------------------------------------------------------------------------------------

def lay_out(folder, files, wavs):
    """Text files and short clips, under their paths."""
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    for i, name in enumerate(wavs):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        wavfile.write(folder / name, 16000, (0.1 * np.random.default_rng(i).normal(size=4000)).astype(np.float32))
    return folder


OBF, EVAL, POST = "track3_obf/DATA", "audiomos2025-track3-eval-phase/DATA", "post_eval_distro"
SOMOS = "training_files/split1/clean"
LAYOUTS = {
    "AudioMOS 2025 Track 3, post-evaluation archive": (
        {f"{POST}/train/utt_16k.csv": "uttID,lisID,rating\naudiomos-track3-16k_nv_1_2_3.wav,01,4\naudiomos-track3-16k_nv_1_2_3.wav,02,5\n",
         f"{POST}/train/utt_24k.csv": "uttID,lisID,rating\naudiomos-track3-24k_originalSR_1089_134686_000015_000002.wav,01,3\n",
         f"{POST}/val/utt_mix_val.csv": "uttID,lisID,rating\naudiomos-track3-16k_nv_1_2_3.wav,01,1\n",
         f"{POST}/test/utt_mix_test.csv": "uttID,lisID,rating\naudiomos-track3-48k_worldSR_7.wav,11,2\n"},
        [f"{POST}/wav/audiomos-track3-{name}.wav" for name in ("16k_nv_1_2_3", "24k_originalSR_1089_134686_000015_000002", "48k_worldSR_7")],
        [("train", "16k_nv", "nv", {"utt_16k:01": 4, "utt_16k:02": 5}), ("train", "24k_originalSR", "originalSR", {"utt_24k:01": 3}),
         ("test", "48k_worldSR", "worldSR", {"utt_mix_test:11": 2})]),
    "AudioMOS 2025 Track 3, phase archives": (
        {f"{OBF}/utt_16k.csv": "uttID,lisID,rating\naudiomos-track3-16k_sys1_utt31.wav,01,4\n",
         f"{OBF}/utt_24k.csv": "uttID,lisID,rating\naudiomos-track3-24k_sys2_utt31.wav,01,3\naudiomos-track3-24k_sys3_utt31.wav,01,2\n",
         f"{EVAL}/sets/eval_list.txt": "audiomos-track3-16k_sys1_utt51\naudiomos-track3-48k_sys2_utt52\n"},
        [f"{OBF}/wav/audiomos-track3-16k_sys1_utt31.wav", f"{OBF}/wav/audiomos-track3-24k_sys2_utt31.wav", f"{OBF}/wav/audiomos-track3-24k_sys3_utt31.wav",
         f"{EVAL}/wav/audiomos-track3-16k_sys1_utt51.wav", f"{EVAL}/wav/audiomos-track3-48k_sys2_utt52.wav"],
        [("train", "16k_sys1", "sys1", {"utt_16k:01": 4}), ("train", "24k_sys2", "sys2", {"utt_24k:01": 3}), ("train", "24k_sys3", "sys3", {"utt_24k:01": 2}),
         ("test", "16k_sys1", "sys1", {}), ("test", "48k_sys2", "sys2", {})]),
    "BVCC, single ratings": (
        {"DATA/sets/TRAINSET": "sys64e2f,sys64e2f-utt9c183cd.wav,4,VDP1ovyrBzg8_1,{}_30-39_bZPQE7w4Zl3g_Female_Valid_1_No\n"
                               "sys64e2f,sys64e2f-utt9c183cd.wav,2,x,{}_30-39_other_Male_Valid_1_No\n",
         "DATA/sets/DEVSET": "sysdev00,sysdev00-utt1.wav,3,x,{}_30-39_third_Male_Valid_1_No\n",
         "DATA/sets/TESTSET": "sysnew00,sysnew00-utt2.wav,5,x,{}_30-39_third_Male_Valid_1_No\n"},
        [f"DATA/wav/{name}.wav" for name in ("sys64e2f-utt9c183cd", "sysdev00-utt1", "sysnew00-utt2")],
        [("train", "sys64e2f", "sys64e2f", {"bZPQE7w4Zl3g": 4, "other": 2}), ("dev", "sysdev00", "sysdev00", {"third": 3}),
         ("test", "sysnew00", "sysnew00", {"third": 5})]),
    "BVCC, mean ratings": (
        {"DATA/sets/train_mos_list.txt": "sys64e2f-utt1.wav,3.125\n", "DATA/sets/val_mos_list.txt": "", "DATA/sets/test_mos_list.txt": "sys64e2f-utt2.wav,2.5\n"},
        ["DATA/wav/sys64e2f-utt1.wav", "DATA/wav/sys64e2f-utt2.wav"],
        [("train", "sys64e2f", "sys64e2f", {"mean": 3.125}), ("test", "sys64e2f", "sys64e2f", {"mean": 2.5})]),
    "SOMOS, clean split": (
        {f"{SOMOS}/TRAINSET": "systemId,utteranceId,choice,listenerId\n015,novel_2007_0098_015.wav,4,KEXM49572020611127\n",
         f"{SOMOS}/VALIDSET": "systemId,utteranceId,choice,listenerId\n", f"{SOMOS}/TESTSET": "systemId,utteranceId,choice,listenerId\n016,x_016.wav,3,L2\n"},
        ["audios/novel_2007_0098_015.wav", "audios/x_016.wav"],
        [("train", "015", "015", {"KEXM49572020611127": 4}), ("test", "016", "016", {"L2": 3})]),
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_each_layout_is_recognised_read_and_summed_up_in_one_line(tmp_path, capsys, name):
    files, wavs, expected = LAYOUTS[name]
    folder = lay_out(tmp_path, files, wavs)
    clips = data.read_corpus(folder)
    assert [(c.split, c.system, c.model, c.ratings) for c in clips] == expected
    assert {c.path for c in clips} == {folder / wav for wav in wavs}
    line = capsys.readouterr().out
    train_ratings = sum(len(ratings) for split, _, _, ratings in expected if split == "train")
    assert line.startswith(f"{folder}: {name}; train ") and f"{train_ratings} ratings" in line and line.count("\n") == 1
    assert re.search(r"; test \d+ clips, \d+ ratings, \d+ systems, \d+ raters, \d+ s$", line)
    assert data.read_corpus(next(folder.rglob("wav*")).parent if "Track 3" not in name and "SOMOS" not in name else folder)  # DATA itself too


def test_clips_without_ratings_are_predicted_in_the_challenges_form_and_not_scored(tmp_path, capsys):
    files, wavs, _ = LAYOUTS["AudioMOS 2025 Track 3, phase archives"]
    train.train(quick(lay_out(tmp_path / "data", files, wavs), tmp_path))
    assert evaluate.evaluate(tmp_path / "run", "cpu") is None
    lines = [line.split(",") for line in (tmp_path / "run" / "answer.txt").read_text().splitlines()]
    assert [line[0] for line in lines] == ["audiomos-track3-16k_sys1_utt51", "audiomos-track3-48k_sys2_utt52"]
    assert all(math.isfinite(float(line[1])) for line in lines) and "2 test clips without ratings" in capsys.readouterr().out


def test_systems_that_training_never_saw_have_no_class_and_make_no_nan(small, tmp_path):
    train.train(quick(small, tmp_path))
    other = lay_out(tmp_path / "other", {"ratings.csv": ",".join(data.HEADER) + "\n" + "".join(f"{i}.wav,test,new{i % 3},m{i},r,{1 + i % 4}\n" for i in range(6))},
                    [f"{i}.wav" for i in range(6)])
    result = evaluate.evaluate(tmp_path / "run", "cpu", other)
    assert np.isfinite([value for level in ("utterance", "system") for value in result[level].values()]).all()
    assert (tmp_path / "run" / "on_other" / "metrics.json").exists() and not (tmp_path / "run" / "metrics.json").exists()  # the run's own would stay
    assert result["accuracy"] == 0.0 and list(result["reference"]) == ["half of the raters, by the others"]  # m0, m1 are known, and missed


def test_augment_adds_a_folder_of_clips_without_mos_a_subfolder_a_model(small, tmp_path):
    more = lay_out(tmp_path / "more", {}, ["tts1/a.wav", "tts1/deep/b.WAV", "tts2/c.wav"])
    clips = data.read_corpus(small, more)[-3:]
    assert [(c.split, c.model, c.ratings) for c in clips] == [("train", "tts1", {}), ("train", "tts1", {}), ("train", "tts2", {})]
    train.train(quick(small, tmp_path, augment=str(more)))
    assert torch.load(tmp_path / "run" / "model.pt")["classes"] == ["m0", "m1", "tts1", "tts2", "x"]


def test_a_scale_of_the_command_line_is_that_of_its_run(small, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert call(monkeypatch, train, "--data", small, "--backbone", "logmel", "--epochs", 1, "--scale", 0, 6) == 0
    assert call(monkeypatch, evaluate) == 0
    assert evaluate.load_run("runs/default", "cpu")[-1].scale == (0.0, 6.0)


def test_a_clip_of_the_corpus_is_no_augmentation(small):
    with pytest.raises(moemos.InputError, match="is a clip of .* too; take it out of"):
        data.read_corpus(small, small.parent)


def test_augmentation_lies_in_a_subfolder_a_model(small, tmp_path):
    with pytest.raises(moemos.InputError, match="a.wav: must lie in a subfolder of"):
        data.read_corpus(small, lay_out(tmp_path, {}, ["a.wav"]))


def test_linked_folders_and_broken_links_are_found_and_circles_are_left(tmp_path):
    lay_out(tmp_path, {}, ["elsewhere/a.wav", "clips/tts/b.wav"])
    (tmp_path / "clips" / "linked").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "clips" / "circle").symlink_to(tmp_path / "clips")
    (tmp_path / "clips" / "broken.wav").symlink_to(tmp_path / "nowhere")
    found = data.find_wavs([tmp_path / "clips"])
    assert found == [tmp_path / "clips" / name for name in ("broken.wav", "linked/a.wav", "tts/b.wav")]
    with pytest.raises(moemos.InputError, match="broken.wav: cannot be read"):
        data.read_wav(found[0])
    with pytest.raises(moemos.InputError, match="an empty name is no file"):
        data.find_wavs([""])


def test_a_table_whose_name_has_brackets_is_read(tmp_path):
    (manifest(tmp_path, ["a.wav,train,s,m,0,4"]) / "ratings.csv").rename(tmp_path / "ratings[1].csv")
    assert len(data.read_manifest(tmp_path / "ratings[1].csv")) == 1


def test_training_again_removes_the_old_results_and_nothing_else(small, tmp_path):
    train.train(quick(small, tmp_path))
    evaluate.evaluate(tmp_path / "run", "cpu")
    (tmp_path / "run" / "holiday.png").touch()
    train.train(quick(small, tmp_path))
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == ["config.json", "holiday.png", "log.csv", "model.pt"]
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "raters.csv").touch()
    train.train(quick(small, tmp_path, out=str(tmp_path / "mine")))
    assert (tmp_path / "mine" / "raters.csv").exists()  # no run was there


@pytest.mark.parametrize(("words", "why"), [
    (["evaluate.py", "RUN", ">", "/dev/full"], "No space left"), (["evaluate.py", "RUN", "--wav", "SMALL", "|", "true"], "nobody reads what it prints"),
    (["train.py", "--data", "x" * 300], "File name too long")])
def test_a_full_disk_a_closed_pipe_and_a_name_too_long_get_one_sentence(small, tmp_path, words, why):
    train.train(quick(small, tmp_path, epochs=1))
    script, *words = (word.replace("RUN", str(tmp_path / "run")).replace("SMALL", str(small)) for word in words)
    done = subprocess.run(" ".join([sys.executable, str(HERE / script), *words]), shell=True, check=False, capture_output=True, text=True, cwd=tmp_path)
    assert why in done.stderr and "Traceback" not in done.stderr and done.stderr.count("\n") == 1


def test_names_that_the_terminal_does_not_have_are_printed_all_the_same(small, tmp_path):
    rows = "".join(f"{small / f'{i}.wav'},{'test' if i > 9 else 'train'},漢字{i % 2},模{i % 2},r,{1 + i % 4}\n" for i in range(14))
    lay_out(tmp_path, {"ratings.csv": ",".join(data.HEADER) + "\n" + rows}, [])
    train.train(quick(tmp_path, tmp_path))
    done = subprocess.run([sys.executable, HERE / "evaluate.py", tmp_path / "run"], check=True, capture_output=True, env=os.environ | {"PYTHONIOENCODING": "latin-1"})
    assert rb"\u6a21" in done.stdout and not done.stderr


def test_a_clip_can_come_through_a_pipe(small, tmp_path):
    train.train(quick(small, tmp_path, epochs=1))
    done = subprocess.run([sys.executable, HERE / "evaluate.py", tmp_path / "run", "--wav", "/dev/stdin"], check=False, capture_output=True,
                          input=(small / "40.wav").read_bytes())
    assert done.returncode == 0 and float(done.stdout.split(b",")[-1]) == pytest.approx(dict(evaluate.score(tmp_path / "run", [small / "40.wav"]))[str(small / "40.wav")], abs=1e-4)


def test_another_scale_gives_the_same_predictions_on_that_scale(small, tmp_path):
    mushra = tmp_path / "mushra"
    mushra.mkdir()
    rows = [line.split(",") for line in (small / "ratings.csv").read_text().splitlines()]
    rows = [[str(small / row[0]), *row[1:5], str(25 * (float(row[5]) - 1)) if row[5] else ""] for row in rows[1:]]  # 1-5 -> 0-100
    (mushra / "ratings.csv").write_text("\n".join(map(",".join, [data.HEADER, *rows])))
    predicted = []
    for folder, scale in ((small, (1.0, 5.0)), (mushra, (0.0, 100.0))):
        train.train(quick(folder, tmp_path, scale=scale, epochs=8))
        result = evaluate.evaluate(tmp_path / "run", "cpu")
        predicted.append([float(row["predicted"]) for row in table(tmp_path / "run" / "predictions.csv")])
    np.testing.assert_allclose(25 * (np.array(predicted[0]) - 1), predicted[1], atol=0.5)
    assert result["utterance"]["MSE"] > 5  # in units of the scale
    with pytest.raises(moemos.InputError, match="off the scale of 1 to 5"):
        data.read_manifest(mushra)


# -- scoring one's own clips ------------------------------------------------------------------------------

def test_a_clip_has_one_score_alone_in_company_and_on_every_call(small, tmp_path, monkeypatch, capsys):
    train.train(quick(small, tmp_path))
    evaluate.evaluate(tmp_path / "run", "cpu")
    expected = {row["wav"]: float(row["predicted"]) for row in table(tmp_path / "run" / "predictions.csv")}
    company = dict(evaluate.score(tmp_path / "run", [small]))
    assert {Path(path).name: mos for path, mos in company.items() if Path(path).name in expected} == expected and len(company) == 48
    one = str(small / "40.wav")
    assert list(evaluate.score(tmp_path / "run", [one])) == [(one, company[one])]
    capsys.readouterr()
    assert call(monkeypatch, evaluate, tmp_path / "run", "--wav", small / "40.wav", small / "41.wav") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines == ["wav,mos", *(f"{small / name},{expected[name]:.4f}" for name in ("40.wav", "41.wav"))]


def test_a_bad_file_is_reported_and_skipped_the_others_are_scored_and_the_status_is_1(small, tmp_path, monkeypatch, capsys):
    train.train(quick(small, tmp_path))
    (tmp_path / "bad.wav").write_bytes(b"")
    wavfile.write(tmp_path / "loud.wav", 16000, 1e20 * tone(16000).astype(np.float32))  # its power is beyond float32
    wavfile.write(tmp_path / "still.wav", 16000, np.zeros(8000, np.int16))
    capsys.readouterr()
    assert call(monkeypatch, evaluate, tmp_path / "run", "--wav", *(tmp_path / f"{name}.wav" for name in ("bad", "loud", "still", "gone")), small / "40.wav") == 1
    out, err = capsys.readouterr()
    assert "loud.wav: too loud" in err and "still.wav is all digital silence" in err
    assert [line.split(",")[0] for line in out.splitlines()] == ["wav", str(tmp_path / "still.wav"), str(small / "40.wav")] and f"skipped: {tmp_path / 'bad.wav'}: not a whole WAV" in err and "gone.wav: cannot be read" in err
    (tmp_path / "empty").mkdir()
    assert call(monkeypatch, evaluate, tmp_path / "run", "--wav", tmp_path / "empty") == 2


# -- training and evaluation ------------------------------------------------------------------------------

def quick(corpus, tmp_path, **settings):
    return train.Config(**({"data": str(corpus), "backbone": "logmel", "cache": str(tmp_path / "cache"), "out": str(tmp_path / "run"), "epochs": 2} | settings))


@pytest.fixture(scope="session")
def small(tmp_path_factory):
    """Eight systems of logmel-sized clips, quick to train on."""
    folder, rng = tmp_path_factory.mktemp("small"), np.random.default_rng(0)
    rows = []
    for i in range(48):
        wavfile.write(folder / f"{i}.wav", 16000, (0.1 * (1 + i % 4) * rng.normal(size=4000)).astype(np.float32))
        split = "test" if i >= 32 else "train"
        rows += [f"{i}.wav,{split},s{i % 4},m{i % 2},{r},{1 + i % 4}" for r in range(2)] if i % 8 < 6 or i >= 32 else [f"{i}.wav,{split},x,x,,"]
    (folder / "ratings.csv").write_text("\n".join([",".join(data.HEADER), *rows]) + "\n")
    return folder


def test_same_seed_same_bytes_other_seed_other_bytes(small, tmp_path):
    runs = {}
    for name, seed in (("one", 1), ("two", 1), ("three", 2)):
        train.train(quick(small, tmp_path, seed=seed, out=str(tmp_path / name)))
        runs[name] = (tmp_path / name / "model.pt").read_bytes()
    assert runs["one"] == runs["two"] != runs["three"]


def test_run_holds_plain_values_a_full_log_and_both_evaluation_files(small, tmp_path):
    train.train(quick(small, tmp_path))
    checkpoint = torch.load(tmp_path / "run" / "model.pt", weights_only=True)
    assert checkpoint["classes"] == ["m0", "m1", "x"] and checkpoint["backbone"]["name"] == "logmel"
    log = table(tmp_path / "run" / "log.csv")
    assert [row["stage"] for row in log] == ["classification"] * 2 + ["joint"] * 2 + ["mos"] * 2
    wanted = {"lr", "alpha", "total", "mos", "classification", "diversity", "sparsity", "grad_norm", "gate_entropy", "mean_gate_entropy", "val_mse"}
    assert wanted | {f"gate_{e}" for e in range(1, 5)} <= set(log[0])
    result = evaluate.evaluate(tmp_path / "run", "cpu")
    saved = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert saved["utterance"]["MSE"] == result["utterance"]["MSE"]
    rows = table(tmp_path / "run" / "predictions.csv")
    assert list(rows[0]) == ["wav", "system", "model", "mos", "predicted"] and len(rows) == 16
    again = moemos.metrics([float(r["predicted"]) for r in rows], [float(r["mos"]) for r in rows], [r["system"] for r in rows])
    assert again["system"] == pytest.approx(result["system"])


def test_a_stage_is_the_plain_loop_of_adamw_cosine_alpha_and_clipping(monkeypatch):
    assert train.CLIP_NORM == 1.0
    monkeypatch.setattr(train, "CLIP_NORM", 0.4)
    config = train.Config(batch_size=5, dropout=0.0, weight_decay=0.1, lambda_1=0.3, lambda_2=0.7, smooth_l1_beta=0.5)
    stage = train.Stage("joint", 2, 0.05, 0.3, 0.7)
    torch.manual_seed(0)
    mos = torch.tensor([1.0, 5, 2, 4, nan] * 2)
    clips = train.Clips((3 * torch.randn(10, 3, 10),), mos, mos, torch.arange(10) % 3)
    model, loop = (moemos.MoEMOS(3, 5, 3, experts=4, hidden=7, dropout=0.0) for _ in range(2))
    loop.load_state_dict(model.state_dict())
    torch.manual_seed(1)
    rows = list(train.run_stage(model, stage, config, clips, clips))

    torch.manual_seed(1)
    parameters = list(loop.parameters())
    first, second, norms = [torch.zeros_like(p) for p in parameters], [torch.zeros_like(p) for p in parameters], []
    for step in range(4):
        if step % 2 == 0:
            order = torch.randperm(10)
        batch = order[:5] if step % 2 == 0 else order[5:]
        a, lr = 0.3 + 0.4 * step / 3, 0.025 * (1 + math.cos(math.pi * step / 4))
        output = loop(clips.inputs[0][batch])
        total = (a * moemos.mos_loss(output.mos, clips.mos[batch], 0.5) + (1 - a) * moemos.classification_loss(output.logits, clips.model[batch])
                 + 0.3 * moemos.diversity_loss(output.gates) + 0.7 * moemos.sparsity_loss(output.gates))
        gradients = torch.autograd.grad(total, parameters)
        norms.append(math.sqrt(sum(g.square().sum().item() for g in gradients)))
        for p, g, m, v in zip(parameters, gradients, first, second):
            g = g * min(1.0, 0.4 / norms[-1])
            m.mul_(0.9).add_(0.1 * g)
            v.mul_(0.999).add_(0.001 * g * g)
            p.data -= lr * 0.1 * p.data + lr * (m / (1 - 0.9 ** (step + 1))) / ((v / (1 - 0.999 ** (step + 1))).sqrt() + 1e-8)
    assert min(norms) < 0.4 < max(norms)
    for ours, theirs in zip(model.parameters(), parameters):
        torch.testing.assert_close(ours, theirs, atol=2e-4, rtol=1e-3)
    assert [row["grad_norm"] for row in rows] == pytest.approx([np.mean(norms[:2]), np.mean(norms[2:])], rel=1e-3)
    assert [row["alpha"] for row in rows] == pytest.approx([0.3 + 0.4 / 3, 0.7]) and [row["epoch"] for row in rows] == [1, 2]


@pytest.mark.parametrize("augmentation", ["yes", "no"])
def test_training_and_validation_share_no_clip_and_hold_no_test_clip(small, tmp_path, monkeypatch, augmentation):
    seen = []

    def watch(model, stage, config, training, validation):
        seen.append((model, training, validation))
        yield {"stage": stage.name, "epoch": 1} | dict.fromkeys([*train.SCREEN, *(f"gate_{e}" for e in range(1, 5))], 1)
    monkeypatch.setattr(train, "run_stage", watch)
    model = train.train(quick(small, tmp_path, augmentation=augmentation))
    ((_, training, validation), *_) = seen
    clips = [clip for clip in data.read_manifest(small) if clip.split == "train" and (clip.ratings or augmentation == "yes")]
    expected = data.extract_features(clips, moemos.load_backbone("logmel"), tmp_path / "cache")
    assert (len(validation.mos), len(training.mos)) == (len(clips) // 10, len(clips) - len(clips) // 10)
    held_out = torch.randperm(len(clips), generator=torch.Generator().manual_seed(0))[:len(clips) // 10]  # drawn, not the first
    assert torch.equal(validation.inputs[0], expected[held_out])
    used = torch.cat([validation.inputs[0], training.inputs[0]])
    assert {x.numpy().tobytes() for x in used} == {x.numpy().tobytes() for x in expected}
    assert int(training.mos.isnan().sum() + validation.mos.isnan().sum()) == (8 if augmentation == "yes" else 0)
    torch.testing.assert_close(model.fusion(training.inputs[0]).mean(0), torch.zeros(160), atol=1e-4, rtol=0)
    assert model.dropout.p == model.moe.dropout.p == 0.5
    assert training.inputs[0].untyped_storage().data_ptr() == validation.inputs[0].untyped_storage().data_ptr()  # no second copy in memory


def test_dev_clips_are_not_trained_on(small, tmp_path, capsys):
    rows = table(small / "ratings.csv")
    data.write_csv(tmp_path / "ratings.csv", [data.HEADER, *((small / row["wav"], "dev" if int(row["wav"][:-4]) < 8 else row["split"], *list(row.values())[2:])
                                                              for row in rows)])
    train.train(quick(tmp_path / "ratings.csv", tmp_path, epochs=1))
    rated, held_out = re.search(r"22 clips to train on, (\d+) with MOS; 2 held out, (\d+) with MOS", capsys.readouterr().out).groups()
    assert int(rated) + int(held_out) == 18  # of 24 clips, for 32


def test_validation_is_without_dropout():
    model, _ = some_output()
    clips = train.Clips((torch.randn(6, 3, 10),), torch.arange(6.0), torch.arange(6.0), torch.zeros(6, dtype=torch.long))
    model.train()
    assert train.validate(model, clips) == train.validate(model.train(), clips)
    assert train.validate(model, clips)["val_mse"] == pytest.approx(moemos.mse(model(*clips.inputs).mos.detach(), clips.mos))


def test_first_stage_leaves_the_mos_head_alone(small, tmp_path, monkeypatch):
    monkeypatch.setitem(train.SCHEDULES, "three", train.STAGES[:1])
    model = train.train(quick(small, tmp_path))
    torch.manual_seed(0)
    untrained = moemos.MoEMOS(3, 80, 3)
    assert torch.equal(model.mos_head.weight, untrained.mos_head.weight)  # neither gradient nor weight decay
    assert not torch.equal(model.class_head.weight, untrained.class_head.weight)


def test_without_auxiliary_task_the_classifier_is_not_trained(small, tmp_path):
    model = train.train(quick(small, tmp_path, auxiliary="none", augmentation="no"))
    torch.manual_seed(0)
    untrained = moemos.MoEMOS(3, 80, 2)
    assert torch.equal(model.class_head.weight, untrained.class_head.weight) and not torch.equal(model.mos_head.weight, untrained.mos_head.weight)
    log = table(tmp_path / "run" / "log.csv")
    assert [row["stage"] for row in log] == ["joint"] * 2 + ["mos"] * 2


def test_a_gradient_that_overflows_stops_the_run_too(small, tmp_path):
    with pytest.raises(FloatingPointError, match="stage classification, epoch 1, step 1.*grad_norm inf"):
        train.train(quick(small, tmp_path, lambda_1=1e30))


def test_a_loss_that_is_not_finite_stops_the_run_and_says_where(small, tmp_path, monkeypatch):
    monkeypatch.setattr(moemos, "sparsity_loss", lambda gates: gates.sum() * nan)
    with pytest.raises(FloatingPointError, match="stage classification, epoch 1, step 1.*sparsity nan"):
        train.train(quick(small, tmp_path))


class Surprise:
    """Unpickled, it would write a file."""
    def __reduce__(self):
        return Path.write_text, (Path("surprise"), "")


@pytest.mark.parametrize(("harm", "why"), [
    (lambda run: (run / "model.pt").unlink(), "model.pt is missing"), (lambda run: (run / "model.pt").write_bytes((run / "model.pt").read_bytes()[:5000]), "damaged"),
    (lambda run: (run / "model.pt").write_bytes(b"text"), "damaged"), (lambda run: (run / "model.pt").write_bytes(b""), "damaged"),
    (lambda run: edit(run, lambda c: c["weights"]["mos_head.bias"].fill_(nan)), "a weight is not finite"),
    (lambda run: edit(run, lambda c: c.pop("backbone")), "damaged"), (lambda run: (run / "config.json").write_text("[]"), "of another version"), (lambda run: torch.save(Surprise(), run / "model.pt"), "damaged"),
    (lambda run: edit(run, lambda c: c["backbone"].update(identity="other")), "other weights"), (lambda run: edit(run, lambda c: c["classes"].append("y")), "of another run"),
    (lambda run: (run / "config.json").write_text((run / "config.json").read_text().replace("1.0,", "0.0,")), "config.json is of another run"),
    (lambda run: (run / "config.json").write_text("{"), "config.json is missing, damaged or of another version"),
    (lambda run: (run / "config.json").write_text(re.sub('"cache": "[^"]*"', '"cache": 5', (run / "config.json").read_text())), "--cache 5: must be str"),
    (lambda run: (run / "config.json").write_text((run / "config.json").read_text().replace('"seed"', '"sed"')), "of another version"),
    (lambda run: (run / "config.json").write_text((run / "config.json").read_text().replace('"experts": 4', '"experts": 3')), "of another run")])
def test_a_run_that_is_not_whole_or_not_for_this_backbone_is_refused(small, tmp_path, monkeypatch, harm, why):
    train.train(quick(small, tmp_path, epochs=1))
    harm(tmp_path / "run")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(moemos.InputError, match=why):
        evaluate.evaluate(tmp_path / "run", "cpu")
    assert not (tmp_path / "surprise").exists()


def edit(run, change):
    checkpoint = torch.load(run / "model.pt", weights_only=True)
    change(checkpoint)
    torch.save(checkpoint, run / "model.pt")


def test_no_training_clips_no_test_clips_and_one_system_are_said(tmp_path, capsys):
    text = ",".join(data.HEADER) + "\n"
    only_test = lay_out(tmp_path / "t", {"ratings.csv": text + "0.wav,test,s,m,r,3\n"}, ["0.wav"])
    with pytest.raises(moemos.InputError, match="fewer than two training clips"):
        train.train(quick(only_test, tmp_path))
    rows = "".join(f"{i}.wav,{'test' if i > 9 else 'train'},s,m{i % 2},r,{1 + i % 4}\n" for i in range(14))
    one_system = lay_out(tmp_path / "s", {"ratings.csv": text + rows}, [f"{i}.wav" for i in range(14)])
    train.train(quick(one_system, tmp_path))
    result = evaluate.evaluate(tmp_path / "run", "cpu")
    assert "undefined (nan) at system level: 1 values, two are needed" in capsys.readouterr().out
    assert math.isnan(result["system"]["LCC"]) and json.loads((tmp_path / "run" / "metrics.json").read_text())["system"]["LCC"] is None
    only_train = lay_out(tmp_path / "n", {"ratings.csv": text + rows.replace("test", "train")}, [f"{i}.wav" for i in range(14)])
    with pytest.raises(moemos.InputError, match="no test clips"):
        evaluate.evaluate(tmp_path / "run", "cpu", only_train)


def test_predictions_do_not_depend_on_company():
    model, _ = some_output()
    features = torch.randn(5, 3, 10)
    together = evaluate.predict(model, features)
    assert all(torch.equal(evaluate.predict(model, features[i:i + 1]).mos, together.mos[i:i + 1]) for i in range(5))


def test_the_report_says_what_the_model_says_of_the_test_clips(small, tmp_path, capsys):
    model = train.train(quick(small, tmp_path, epochs=8)).eval()
    capsys.readouterr()
    result = evaluate.evaluate(tmp_path / "run", "cpu")
    first, printed = (tmp_path / "run" / "metrics.json").read_bytes(), capsys.readouterr().out
    test = [clip for clip in data.read_manifest(small) if clip.split == "test"]
    output = model(data.extract_features(test, moemos.load_backbone("logmel"), tmp_path / "cache"))
    hits = output.logits.argmax(1) == torch.tensor([["m0", "m1", "x"].index(clip.model) for clip in test])
    assert result["accuracy"] == pytest.approx(hits.float().mean().item())
    for name in ("m0", "m1"):
        assert result["experts"][name] == pytest.approx(output.gates[[clip.model == name for clip in test]].mean(0).tolist(), abs=1e-6)
    means = {name: np.mean([clip.mos for clip in data.read_manifest(small) if clip.split == "train" and clip.system == name]) for name in ("s0", "s1", "s2", "s3")}
    row = result["reference"]["condition's mean training MOS"]["utterance"]
    assert row["MSE"] == pytest.approx(np.mean([(means[clip.system] - clip.mos) ** 2 for clip in test]))
    assert "a STAND-IN, not the paper's wav2vec2" in printed and max(len(line) for line in printed.splitlines() if str(small) not in line) <= 100
    assert "   0.277   0.811   0.716   0.529   0.056   0.978   0.913   0.758\n" in printed   # the paper
    assert "   0.273   0.821   0.695   0.508   0.119   0.941   0.749   0.547\n" in printed   # B03
    assert "   0.222   0.856   0.702   0.520   0.101   0.945   0.748   0.575\n" in printed   # the condition's mean of the real training MOS
    low, high = result["interval_95"]["utterance"]["MSE"]
    assert f"interval from{low:21.3f}"[-8:] in printed and low < result["utterance"]["MSE"] < high
    evaluate.evaluate(tmp_path / "run", "cpu")
    assert (tmp_path / "run" / "metrics.json").read_bytes() == first


def test_bootstrap_interval_covers_as_theory_says():
    rng = np.random.default_rng(0)
    p = rng.normal(size=400)
    t = p + rng.normal(size=400)
    low, high = evaluate.bootstrap(p, t, np.arange(400) % 20)["utterance"]["MSE"]
    assert high - low == pytest.approx(2 * 1.96 * math.sqrt(2 / 400), rel=0.2)  # the variance of chi squared is 2
    assert low < moemos.mse(p, t) < high


def test_lcc_within_systems_is_the_mean_over_those_that_have_one():
    predicted, mos, system = [1, 2, 3, 3, 2, 1, 5, 5], [1, 2, 3, 1, 2, 3, 1, 2], list("aaabbbcc")
    assert evaluate.lcc_within_systems(predicted, mos, system) == pytest.approx(0.0)
    assert evaluate.lcc_within_systems(predicted[:3], mos[:3], system[:3]) == pytest.approx(1.0)
    assert math.isnan(evaluate.lcc_within_systems([1], [1], ["a"]))


def test_reference_rows_by_hand():
    def clip(system, mos):
        return data.Clip("a", None, "", system, "m", {"r": mos})
    rows = evaluate.reference_rows([clip("a", 1.0), clip("a", 3.0), clip("b", 5.0)], [clip("a", 3.0), clip("b", 4.0), clip("new", 5.0)])
    assert rows["mean of training MOS"]["utterance"]["MSE"] == pytest.approx((0 + 1 + 4) / 3)
    assert rows["condition's mean training MOS"]["utterance"]["MSE"] == pytest.approx((1 + 1 + 4) / 3)
    assert rows["half of the raters, by the others"] is None


def test_half_against_half_differs_by_the_raters_biases():
    clips = [data.Clip(str(i), None, "test", f"s{i % 3}", "m", {"mild": 3.0 + i % 2, "strict": 1.0 + i % 2}) for i in range(6)]
    assert evaluate.half_against_half(clips)["utterance"]["MSE"] == pytest.approx(4)


def test_half_against_half_is_perfect_where_raters_agree_and_none_without_shared_clips():
    clips = [data.Clip(str(i), None, "test", f"s{i % 3}", "m", {str(r): float(1 + i % 5) for r in range(4)}) for i in range(15)]
    assert evaluate.half_against_half(clips)["utterance"]["LCC"] == pytest.approx(1)
    assert evaluate.half_against_half([dataclasses.replace(clip, ratings={"mean": 3.0}) for clip in clips]) is None


@pytest.mark.parametrize(("script", "module", "error"), [
    ("train.py", "torchaudio", "RuntimeError('Detected that PyTorch and TorchAudio were compiled with different CUDA versions.')"),
    ("evaluate.py", "torch", "OSError('libc10_cuda.so: cannot open shared object file')"), ("data.py", "torchaudio", "ImportError()")])
def test_a_mismatched_pair_of_torch_and_torchaudio_gets_one_sentence(tmp_path, script, module, error):
    (tmp_path / f"{module}.py").write_text(f"raise {error}")
    done = subprocess.run([sys.executable, HERE / script, "--help"], check=False, capture_output=True, text=True,
                          env=os.environ | {"PYTHONPATH": str(tmp_path), "PYTHONSAFEPATH": ""})
    assert done.returncode and "as the pair that requirements.txt pins" in done.stderr and "Traceback" not in done.stderr


@pytest.mark.parametrize(("module", "words", "why"), [
    (data, ["--out", "SMALL"], "no empty folder"), (data, ["--seed", "-1"], "at least 0"), (data, ["--out", "SMALL/ratings.csv"], "no empty folder"), (data, ["--out", "SMALL/ratings.csv/x"], "cannot be written"),
    (train, ["--data", "EMPTY"], "looked for ratings.csv"), (train, ["--backbone", "nonsense"], "no backbone 'nonsense'"),
    (train, ["--data", "nowhere"], "looked for ratings.csv (manifest), train/utt_*.csv (AudioMOS"), (train, ["--experts", "0"], "--experts 0: must be at least 1"),
    (train, ["--epochs", "-1"], "--epochs -1: must be at least 0"), (train, ["--dropout", "nan"], "--dropout nan"), (train, ["--dropout", "1"], "below 1"), (train, ["--out", ""], "must not be empty"), (train, ["--exp", "2"], "unrecognized"), (train, ["--nonsense"], "unrecognized"),
    (train, ["--scale", "5", "1"], "--scale 5.0 1.0"), (train, ["--scale", "0", "1e39"], "of a million at most"), (train, ["--max-seconds", "inf"], "at least 0 and below inf"), (evaluate, ["--device", "hpu"], "cannot be used here"), (train, ["--device", "cuda:99"], "cannot be used here"),
    (train, ["--data", "SMALL", "--backbone", "wav2vec"], "there is no backbone 'wav2vec'; choose one of logmel, prosody, HUBERT_BASE"),
    (train, ["--data", "SMALL", "--backbone", "logmel", "--out", "SMALL/ratings.csv"], "ratings.csv: is no folder"),
    (train, ["--data", "SMALL", "--augment", "EMPTY"], "no WAV file"), (train, ["--data", "SMALL", "--augment", "SMALL"], "is a clip of"),
    (train, ["--data", "SMALL", "--augment", "nowhere"], "--augment nowhere: is no folder"), (train, ["--experts", "99999999"], "below 100"), (train, ["--data", "SMALL", "--max-seconds", "0.1"], "above train.py's --max-seconds 0.1"),
    (evaluate, ["nowhere"], "nowhere/config.json is missing"), (evaluate, ["--device", "cuda:99"], "cannot be used here")])
def test_bad_options_get_one_sentence_and_status_2(small, tmp_path, monkeypatch, capsys, module, words, why):
    monkeypatch.chdir(tmp_path)
    assert call(monkeypatch, module, *(word.replace("SMALL", str(small)).replace("EMPTY", str(tmp_path)) for word in words)) == 2
    assert why in capsys.readouterr().err
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]  # nothing was begun


def test_default_settings_come_near_the_condition_mean_row(corpus, tmp_path):
    train.train(quick(corpus, tmp_path, epochs=0))
    result = evaluate.evaluate(tmp_path / "run", "cpu")
    reference = result["reference"]["condition's mean training MOS"]
    assert result["system"]["LCC"] > reference["system"]["LCC"] - 0.06   # one corpus; the README has five
    assert result["system"]["SRCC"] > reference["system"]["SRCC"] - 0.16
    assert result["utterance"]["LCC"] > reference["utterance"]["LCC"] - 0.10
    assert np.mean(list(result["experts"].values()), 0).min() > 0.05      # no expert is dead
    assert result["lcc_within_systems"] > 0.15                           # it hears more than which condition it is


# -- experiments ------------------------------------------------------------------------------------------

@pytest.fixture
def no_pool(monkeypatch):
    """Runs are read in this process: others take seconds to start."""
    threads = torch.get_num_threads()
    monkeypatch.setattr(train, "worker_pool", lambda jobs: contextlib.nullcontext(types.SimpleNamespace(map=map)))
    yield
    torch.set_num_threads(threads)


def test_experiments_change_settings_that_exist():
    assert list(train.EXPERIMENTS) == ["baseline", "experts", "raters", "adaptation", "augmentation", "auxiliary", "stages", "prosody", "choices", "frontend"]
    for _, variants in train.EXPERIMENTS.values():
        assert len({json.dumps(changes, sort_keys=True) for changes in variants}) == len(variants)
        for changes in variants:
            assert changes.get("data", "second") in data.PANELS
            train.check(dataclasses.replace(train.Config(), **changes))


def test_an_experiment_loses_no_finished_run_and_gives_the_same_table_again(small, tmp_path, monkeypatch, capsys, no_pool):
    """Killed after its first run, started again, and beside it one undisturbed."""
    words = ("--experiment", "augmentation", "--seeds", 2, "--data", small, "--backbone", "logmel", "--epochs", 1)
    tables = []
    for name in ("killed", "whole"):
        folder = tmp_path / name
        folder.mkdir()
        if name == "killed":
            process = start(folder, *words, start_new_session=True)
            while not list(folder.glob("runs/*/*/model.pt")) and process.poll() is None:
                time.sleep(0.001)
            os.killpg(process.pid, 9)
            process.wait()
            finished = {path: path.stat().st_mtime_ns for path in folder.glob("runs/*/*/model.pt")}
            assert 1 <= len(finished) < 4
        assert start(folder, *words).wait() == 0
        assert name == "whole" or all(path.stat().st_mtime_ns == when for path, when in finished.items())
        runs = sorted((folder / "runs" / "augmentation").iterdir())
        assert [run.name for run in runs] == [f"{i:02d}_{label}_seed{seed}" for i, label in enumerate(("augmentation=no", "default"), 1) for seed in (0, 1)]
        monkeypatch.chdir(folder)
        printed = []
        for more in ([], [runs[0].parent / "comparison.json"]):  # again, and with what a shell's * adds
            capsys.readouterr()
            assert call(monkeypatch, evaluate, *runs, *more) == 0
            printed.append(capsys.readouterr().out)
        assert printed[0] == printed[1] and max(map(len, printed[0].splitlines()[:-1])) <= 100
        tables.append((folder / "runs" / "augmentation" / "comparison.json").read_bytes())
    assert tables[0] == tables[1]
    rows = json.loads(tables[0])
    assert [(row["variant"], row["runs"], "difference" in row) for row in rows] == [("1: augmentation=no", 2, False), ("2: default", 2, True)]
    results = [json.loads((run / "metrics.json").read_text())["system"]["MSE"] for run in runs]
    assert rows[0]["mean"]["system"]["MSE"] == pytest.approx(np.mean(results[:2])) and rows[0]["sd"]["system"]["MSE"] == pytest.approx(np.std(results[:2], ddof=1))
    assert rows[1]["difference"]["system"]["MSE"][0] == pytest.approx(np.mean(results[2:]) - np.mean(results[:2]))
    assert all(f"{row['mean']['utterance']['MSE']:8.3f}" in printed[0] for row in rows)


def test_a_finished_run_with_other_settings_is_not_overwritten(small, tmp_path, monkeypatch):
    config = quick(small, tmp_path, epochs=1)
    assert not train.is_trained(config)
    assert train.train_if_missing(config) == config.out and train.is_trained(config)
    before = (tmp_path / "run" / "model.pt").read_bytes()
    with pytest.raises(moemos.InputError, match=r"holds a run with other settings \(STAGES, epochs\)"):
        train.train_if_missing(dataclasses.replace(config, epochs=2))
    with monkeypatch.context() as patch:
        patch.setitem(train.SCHEDULES, "three", tuple(stage._replace(lr=1.0) for stage in train.STAGES))
        with pytest.raises(moemos.InputError, match=r"other settings \(STAGES\)"):
            train.train_if_missing(config)
    assert (tmp_path / "run" / "model.pt").read_bytes() == before
    (tmp_path / "run" / "model.pt").write_bytes(b"half")
    assert not train.is_trained(config)


def test_an_experiment_that_is_interrupted_twice_ends_at_once(small, tmp_path):
    process = start(tmp_path, "--experiment", "choices", "--seeds", 1, "--data", small, "--backbone", "logmel", start_new_session=True)
    while not list(tmp_path.glob("runs/*/*")) and process.poll() is None:
        time.sleep(0.01)
    for _ in range(2):
        os.killpg(process.pid, signal.SIGINT)
        time.sleep(0.3)
    assert process.wait(timeout=10) != 0
    assert len(list(tmp_path.glob("runs/*/*/model.pt"))) < 7


def test_an_experiment_under_torchrun_is_refused(monkeypatch):
    monkeypatch.setenv("RANK", "0")
    with pytest.raises(moemos.InputError, match="without torchrun"):
        train.run_experiment("stages", 1, train.Config())


@pytest.mark.parametrize(("name", "content"), [("metrics.json", "{}"), ("metrics.json", "null"), ("predictions.csv", "wav,system,model,mos,predicted\n"), ("predictions.csv", "wav,system,model,mos,predicted\na,s,m,3,nan\n"), ("config.json", "[]")])
def test_damaged_files_of_a_run_are_refused_in_a_comparison(small, tmp_path, name, content):
    train.train(quick(small, tmp_path, epochs=1))
    evaluate.evaluate(tmp_path / "run", "cpu")
    (tmp_path / "run" / name).write_text(content)
    with pytest.raises(moemos.InputError, match="its files are damaged"):
        evaluate.read_run(tmp_path / "run")


def run_of(predicted, true, system, seed=0):
    return evaluate.Run({}, [], Path("corpus"), {"label_noise": 0.04}, [], [], evaluate.eight(moemos.metrics(predicted, true, system)),
                        evaluate.resample(predicted, true, system, seed))


def test_intervals_of_differences_find_a_known_one_and_miss_none_in_about_95_of_100_cases(monkeypatch):
    monkeypatch.setattr(moemos, "METRICS", {"MSE": moemos.mse, "LCC": moemos.lcc})
    monkeypatch.setattr(evaluate, "RESAMPLES", 100)
    rng, system = np.random.default_rng(0), np.arange(120) % 20
    found = {"one pair": [], "five pairs": [], "worse": [], "one corpus": []}
    for _ in range(60):
        pairs = {"equal": [], "worse": [], "one corpus": []}
        shared = rng.normal(size=120) + rng.normal(size=20)[system]
        predictors = [shared + 0.5 * rng.normal(size=120) for _ in range(2)]  # what clips do to both, whatever the seed
        for seed in range(5):
            true = rng.normal(size=120) + rng.normal(size=20)[system]
            one, other, worse = (run_of(true + sd * rng.normal(size=120), true, system, seed) for sd in (0.5, 0.5, 1.0))
            pairs["equal"].append((one, other))
            pairs["worse"].append((worse, one))
            pairs["one corpus"].append([run_of(predicted + 0.1 * rng.normal(size=120), shared, system, 7) for predicted in predictors])
        for name, these in (("one pair", pairs["equal"][:1]), ("five pairs", pairs["equal"]), ("worse", pairs["worse"]), ("one corpus", pairs["one corpus"])):
            found[name].append(evaluate.nested(evaluate.difference(*zip(*these)).T))
    for name, low, high in (("one pair", 0.87, 0.99), ("five pairs", 0.93, 1.0), ("one corpus", 0.9, 1.0)):
        for metric in ("MSE", "LCC"):
            assert low <= np.mean([bounds["utterance"][metric][1] <= 0 <= bounds["utterance"][metric][2] for bounds in found[name]]) <= high
    assert 0.83 <= np.mean([bounds["system"]["MSE"][1] <= 0 <= bounds["system"]["MSE"][2] for bounds in found["one pair"]]) <= 0.99
    found["worse"] = [bounds["utterance"] for bounds in found["worse"]]
    assert np.mean([bounds["MSE"][0] for bounds in found["worse"]]) == pytest.approx(0.75, abs=0.01)          # 1.0 ** 2 - 0.5 ** 2
    assert 0.92 <= np.mean([bounds["MSE"][1] <= 0.75 <= bounds["MSE"][2] for bounds in found["worse"]])
    assert all(bounds["MSE"][1] > 0 > bounds["LCC"][2] for bounds in found["worse"])


def test_other_systems_count_once_however_many_corpora_have_the_same():
    """Two predictors whose errors differ by system alike in all corpora: the interval of five pairs must not be narrower than one's."""
    rng, system = np.random.default_rng(0), np.repeat([f"s{i}" for i in range(20)], 5)
    offset, pairs = np.repeat(rng.normal(size=20), 5), []
    for seed in range(5):
        true = np.repeat(rng.normal(size=20), 5)
        pairs.append((run_of(true + offset, true, system, seed), run_of(true, true, system, seed)))
    one, five = (evaluate.nested(evaluate.difference(*zip(*these)).T)["system"]["MSE"] for these in (pairs[:1], pairs))
    assert five == pytest.approx(one, rel=1e-6) and one[2] - one[1] > 0.4


def test_a_difference_of_equal_runs_is_nothing():
    rng = np.random.default_rng(0)
    true = rng.normal(size=40)
    run = run_of(true + rng.normal(size=40), true, np.arange(40) % 5)
    assert (evaluate.difference([run], [run]) == 0).all()


def test_label_noise_is_that_of_an_additive_panel_and_is_not_to_be_told_from_single_ratings():
    rng = np.random.default_rng(0)
    quality, bias = rng.normal(size=2000), rng.normal(size=10)
    clips = [data.Clip(str(i), None, "test", "s", "m", {str(r): q + bias[r] + 0.8 * rng.normal() for r in range(10)}) for i, q in enumerate(quality)]
    assert evaluate.label_noise(clips) == pytest.approx(0.064, rel=0.03)
    few = [dataclasses.replace(clip, ratings={r: clip.ratings[r] for r in map(str, rng.permutation(10)[:3])}) for clip in clips]
    assert evaluate.label_noise(few) == pytest.approx(0.64 / 3, rel=0.05)  # where not all rate all
    apart = [dataclasses.replace(clip, ratings={f"{i // 3}:{r}": clip.ratings[r] for r in "01"}) for i, clip in enumerate(clips)]
    assert evaluate.label_noise(apart) == pytest.approx(0.64 / 2, rel=0.1)     # and where raters fall into groups that share no clip
    assert evaluate.label_noise([dataclasses.replace(clip, ratings={"mean": 3.0}) for clip in clips]) is None


def test_the_parts_of_the_error_add_up_and_find_a_shifted_panel():
    rng, system = np.random.default_rng(0), np.arange(4000) % 20
    quality = rng.normal(size=4000)
    predicted = quality + 0.3 * rng.normal(size=4000)
    labels = [quality + shift + 0.2 * rng.normal(size=4000) for shift in (0.0, 0.5)]
    training, second = (evaluate.Run({}, [], Path("corpus"), {"label_noise": 0.04}, [], [], evaluate.eight(moemos.metrics(predicted, true, system)), None) for true in labels)
    parts = {part: numbers[0] for part, numbers in evaluate.decompose([second], [training]).items()}
    assert sum(parts.values()) == pytest.approx(second.numbers[0])
    assert list(parts) == ["model", "panel", "label noise"] and list(parts.values()) == pytest.approx([0.09, 0.25, 0.04], abs=0.02)
    assert evaluate.decompose([second], [second])["panel"][0] == 0


def test_runs_whose_names_differ_in_their_last_number_are_the_seeds_of_one_variant(small, tmp_path, no_pool):
    folders = [tmp_path / name for name in ("all/0", "all/1", "last/0", "last/1", "one", "two_seed1")]
    for folder in folders:
        train.train(quick(small, tmp_path, epochs=1, out=str(folder), seed=int(folder.name[-1]) if folder.name[-1].isdigit() else 0))
    rows = evaluate.compare([*folders, folders[0]], "cpu")
    assert [(row["variant"], row["runs"], row.get("pairs")) for row in rows] == [("1: all", 2, None), ("2: last", 2, 2), ("3: one", 1, None), ("4: two", 1, 1)]
    assert all(set(map(tuple, row["difference"]["utterance"].values())) == {(0, 0, 0)} for row in (rows[1], rows[3]))  # the same code, here
    assert (tmp_path / "comparison.json").exists()
    same = folders[1].with_name("x_seed0")
    folders[0].rename(folders[0].with_name("x0"))
    folders[1].rename(same)
    with pytest.raises(moemos.InputError, match="x_seed0: has the name and the number of another run; rename it"):
        evaluate.compare([folders[0].with_name("x0"), same], "cpu")
    same = same.rename(same.with_name("x1"))
    for change, what in (({"experts": 2}, "experts"), ({"epochs": 2}, "epochs, STAGES")):
        train.train(quick(small, tmp_path, **({"epochs": 1, "out": str(same)} | change)))
        with pytest.raises(moemos.InputError, match=f"x1: by its name a seed of x, but it differs in {what}; rename it"):
            evaluate.compare([folders[0].with_name("x0"), same], "cpu")


def test_seeds_on_one_corpus_draw_the_same_clips(small, tmp_path):
    runs = []
    for seed in (0, 1):
        train.train(quick(small, tmp_path, epochs=1, seed=seed, out=str(tmp_path / str(seed))))
        runs.append(evaluate.read_run(tmp_path / str(seed)))
        rows = table(tmp_path / str(seed) / "predictions.csv")
        true, predicted = (np.array([row[column] for row in rows], float) for column in ("mos", "predicted"))
        draws = np.random.default_rng(zlib.crc32(small.name.encode())).integers(16, size=(evaluate.RESAMPLES, 16))
        assert runs[-1].resampled[:, 0] == pytest.approx([np.mean((predicted[clips] - true[clips]) ** 2) for clips in draws])


def test_the_table_of_raters_by_hand(small, tmp_path):
    clips = [data.Clip("a", None, "train", "s", "m", {"x": 1.0, "y": 4.0}), data.Clip("b", None, "train", "s", "m", {"x": 3.0}), data.Clip("c", None, "test", "s", "m", {"x": 5.0})]
    assert evaluate.rater_table(clips) == [("train", "x", 2, 2.0, 1.0), ("train", "y", 1, 4.0, 0.0), ("test", "x", 1, 5.0, 0.0)]
    train.train(quick(small, tmp_path))
    evaluate.evaluate(tmp_path / "run", "cpu")
    assert [(row["split"], row["rater"], row["ratings"]) for row in table(tmp_path / "run" / "raters.csv")] == [
        ("train", "0", "24"), ("train", "1", "24"), ("test", "0", "16"), ("test", "1", "16")]


def test_panels_rate_the_same_test_clips_and_leave_training_alone():
    plans = {panel: data.plan_corpus(5, panel) for panel in data.PANELS}
    assert plans["second"] == data.plan_corpus(5)
    half = {panel: [[clip for clip in plan if clip["split"] == split and clip["scores"] != {"": ""}] for split in ("train", "test")] for panel, plan in plans.items()}
    scores = {panel: np.array([list(clip["scores"].values()) for clip in test]) for panel, (_, test) in half.items()}
    for panel, (training, test) in half.items():
        assert training == half["second"][0]
        assert [{**clip, "scores": 0} for clip in test] == [{**clip, "scores": 0} for clip in half["second"][1]]
        assert list(test[0]["scores"]) == list(range(10) if panel == "training" else range(10, 20))
    mean = {panel: {system: np.mean([rows for rows, clip in zip(scores[panel], half[panel][1]) if clip["system"] == system]) for system in data.CONDITIONS} for panel in scores}
    for panel, target in (("training", 0), ("unbiased", 0), ("second", 1)):
        assert np.mean([mean[panel][system] - mos[target] for system, mos in data.CONDITIONS.items()]) == pytest.approx(0, abs=0.05)
    assert scores["second"].mean() - scores["strict"].mean() == pytest.approx(0.5, abs=0.05)
    assert scores["unbiased"].mean(0).std() < 0.1 and scores["second"].mean(0).std() > 0.3
    assert moemos.lcc(scores["strict"].mean(0), scores["second"].mean(0)) > 0.95  # the same raters
    residual = {panel: (rows - rows.mean(0) - rows.mean(1, keepdims=True)).ravel() for panel, rows in scores.items()}
    assert all(abs(moemos.lcc(residual[one], residual[other])) < 0.1 for one in residual for other in residual if one < other)  # each hears for itself
    assert moemos.lcc(scores["training"].mean(0), np.array([list(clip["scores"].values()) for clip in half["second"][0]]).mean(0)) > 0.95  # the same raters


def test_each_variant_is_compared_with_the_first_that_has_one_setting_other_and_panels_are_told_apart(small, tmp_path):
    folder, rows = tmp_path / "corpus", table(small / "ratings.csv")
    folder.mkdir()
    for panel, shift in (("training", 0.0), ("second", 1.0)):
        data.write_csv(folder / f"ratings_{panel}.csv", [data.HEADER, *(
            (small / row["wav"], *list(row.values())[1:5], min(5.0, float(row["score"]) + shift * (row["split"] == "test")) if row["score"] else "") for row in rows)])
    runs = []
    for i, (panel, extra) in enumerate((("training", {}), ("second", {}), ("training", {"experts": 2}), ("second", {"experts": 2}))):
        runs.append(tmp_path / "runs" / f"{i}_{panel}{extra}_seed0")
        train.train(quick(folder / f"ratings_{panel}.csv", tmp_path, epochs=1, out=str(runs[-1]), **extra))
    compared = evaluate.compare(runs, "cpu")
    assert [row.get("first") for row in compared] == [None, 1, 1, 2] and [("parts" in row) for row in compared] == [False, True, False, False]
    mse = [json.loads((run / "metrics.json").read_text())["utterance"]["MSE"] for run in runs]
    assert [row["difference"]["utterance"]["MSE"][0] for row in compared[1:]] == pytest.approx([mse[1] - mse[0], mse[2] - mse[0], mse[3] - mse[1]])
    assert sum(part[0] for part in compared[1]["parts"].values()) == pytest.approx(mse[1])


def test_a_corpus_is_prepared_with_the_ratings_of_all_panels(tmp_path, monkeypatch):
    monkeypatch.setattr(data, "CONDITIONS", dict(list(data.CONDITIONS.items())[19:]))  # a part of it, for the time's sake
    monkeypatch.setattr(data, "AUGMENTATION_CLIPS", 1)
    data.prepare(tmp_path / "7", 7)
    ratings = {panel: (tmp_path / "7" / f"ratings_{panel}.csv").read_bytes() for panel in data.PANELS}
    assert ratings["second"] == (tmp_path / "7" / "ratings.csv").read_bytes() and len(set(ratings.values())) == 4
    data.simulate(tmp_path / "again", 7)
    assert ratings["second"] == (tmp_path / "again" / "ratings.csv").read_bytes()
    before = [path.stat().st_mtime_ns for path in (tmp_path / "7" / "wav").iterdir()]
    data.prepare(tmp_path / "7", 7)
    assert before == [path.stat().st_mtime_ns for path in (tmp_path / "7" / "wav").iterdir()]
    (tmp_path / "8" / "x").mkdir(parents=True)
    with pytest.raises(moemos.InputError, match="no empty folder"):
        data.prepare(tmp_path / "8", 8)

    def made_meanwhile(corpus, seed):
        os.replace(tmp_path / "again", tmp_path / "9")
        raise moemos.InputError("it is there")
    monkeypatch.setattr(data, "simulate", made_meanwhile)
    data.prepare(tmp_path / "9", 9)
    assert (tmp_path / "9" / "ratings_strict.csv").exists()


@pytest.fixture(scope="session")
def rater_run(corpus, tmp_path_factory):
    folder = tmp_path_factory.mktemp("raters")
    train.train(quick(corpus, folder, raters="yes", epochs=0))
    return folder / "run"


def test_the_rater_model_recovers_the_simulated_biases_and_gains(rater_run):
    model, _, _, raters, _ = evaluate.load_run(rater_run, "cpu")
    true = data.draw_panel(np.random.default_rng([101, 0]))
    order = [int(rater) for rater in raters]
    for learned, simulated, least in zip(model.raters.bias_and_gain(), true, (0.9, 0.7)):
        assert moemos.lcc(learned.detach(), simulated[order]) > least
    assert 0.6 < model.raters.noise.item() < 1.3  # 0.88 ** 2 and the model's own error


def test_calibration_lowers_the_utterance_error_where_there_is_bias_and_not_where_there_is_none(corpus, rater_run):
    errors = {}
    for panel in ("strict", "unbiased"):
        data.write_ratings(corpus / f"ratings_{panel}.csv", data.plan_corpus(101, panel))
        errors[panel] = evaluate.evaluate(rater_run, "cpu", corpus / f"ratings_{panel}.csv")["adaptation"]
    assert list(errors["strict"]) == [0, 1, 5, 20]
    assert errors["strict"][20]["MOS"] < errors["strict"][0]["MOS"] - 0.1
    assert errors["strict"][20]["rating"] < errors["strict"][5]["rating"] < errors["strict"][0]["rating"] - 0.1
    assert abs(errors["unbiased"][20]["MOS"] - errors["unbiased"][0]["MOS"]) < 0.03


def test_calibration_by_hand_and_never_on_the_clips_scored():
    raters = moemos.Raters(2, 3.0, 1.0)
    raters.raw_bias.data, raters.raw_gain.data = torch.tensor([1.0, -1.0]), torch.tensor([0.5, -0.5])  # variances 1 and 0.25
    raters.noise.fill_(0.5)
    predicted = np.full(4, 3.0)  # so that the gain has no say
    clips = [data.Clip(str(i), None, "test", "s", "m", {"r": 5.0}) for i in range(4)]
    errors = evaluate.adaptation(raters, predicted, clips)
    for k, bias in ((0, 0.0), (1, 2 / (1 + 0.5)), (5, 2 * 2 / (2 + 0.5))):  # two of the four clips are for calibration
        assert errors[k]["MOS"] == errors[k]["rating"] == pytest.approx((2 - bias) ** 2)
    odd = [dataclasses.replace(clip, ratings={"r": 3.0 if i else 5.0}) for i, clip in enumerate(clips)]
    expected = (2 ** 2 + 2 * (2 / 2.5) ** 2 + 0) / 4  # the odd clip's rating shifts the two of the other half alone, by 2 / (2 + 0.5)
    assert evaluate.adaptation(raters, predicted, odd)[20]["MOS"] == pytest.approx(expected)


def test_calibration_learns_a_gain_too():
    raters = moemos.Raters(2, 3.0, 1.0)
    raters.raw_gain.data = torch.tensor([0.5, -0.5])
    raters.noise.fill_(1e-6)
    predicted = np.linspace(1.5, 4.5, 40)
    clips = [data.Clip(str(i), None, "test", "s", "m", {"r": 3 + 1.5 * (p - 3)}) for i, p in enumerate(predicted)]
    errors = evaluate.adaptation(raters, predicted, clips)
    assert errors[0]["MOS"] == pytest.approx(0.25 * np.mean((predicted - 3) ** 2)) and errors[20]["MOS"] < 1e-6


def test_the_noise_of_a_rating_is_that_of_the_held_out_clips_without_dropout(small, tmp_path):
    model = train.train(quick(small, tmp_path, raters="yes"))
    clips = [clip for clip in data.read_manifest(small) if clip.split == "train"]
    clips = [clips[i] for i in torch.randperm(len(clips), generator=torch.Generator().manual_seed(0))[:len(clips) // 10]]
    with torch.no_grad():
        said = model.eval()(data.extract_features(clips, moemos.load_backbone("logmel"), tmp_path / "cache")).ratings
    errors = [said[i, int(rater)].item() - score for i, clip in enumerate(clips) for rater, score in clip.ratings.items()]
    assert model.raters.noise.item() == pytest.approx(np.mean(np.square(errors)), rel=1e-4)


def test_raters_are_centred_and_the_mean_rater_is_the_mos():
    raters = moemos.Raters(3, 50.5, 24.75)
    raters.raw_bias.data, raters.raw_gain.data = torch.tensor([1.0, 2.0, 6.0]), torch.tensor([0.0, 0.3, 0.0])
    mos = torch.tensor([10.0, 80.0])
    said = raters(mos)
    assert tuple(said.shape) == (2, 3)
    torch.testing.assert_close(said.mean(1), mos)
    torch.testing.assert_close(said[0, 2], 50.5 + 0.9 * (10.0 - 50.5) + 24.75 * torch.tensor(3.0))


def test_prosody_of_a_tone_by_hand():
    tone = 0.5 * torch.sin(2 * math.pi * 200 * torch.arange(32000) / 16000)
    mean, deviation = moemos.pool_statistics(moemos.load_backbone("prosody").extract(tone)).view(2, 3)
    assert mean.tolist() == pytest.approx([1.0, 10 * math.log10(0.125), 1.0], abs=0.02)  # an octave above 100 Hz, dB, 2 s
    assert deviation[2] == 0 and deviation[1] < 0.05
    assert moemos.pool_statistics(moemos.load_backbone("prosody").extract(torch.zeros(400))).isfinite().all()


def test_clips_of_one_length_teach_nothing_of_others():
    standardise = moemos.MoEMOS(3, 5, 2, prosody=6).prosody
    standardise.set_statistics([torch.tensor([[[0.3, -20.0, 0.0, 0.2, 8.0, 0.0]], [[0.5, -25.0, 0.0, 0.3, 9.0, 0.0]]])])
    assert standardise(torch.tensor([[[0.4, -22.0, 1.0, 0.25, 8.5, 0.0]]])).abs().max() <= 10  # twice the length


def test_prosody_joins_the_fused_features_and_a_clip_keeps_its_one_score(small, tmp_path):
    model = train.train(quick(small, tmp_path, prosody="yes", raters="yes", auxiliary="rate"))
    evaluate.evaluate(tmp_path / "run", "cpu")
    assert model.moe.gate.weight.shape[1] == 2 * 80 + 6 and model.raters.raw_bias.shape == (2,)
    expected = {row["wav"]: float(row["predicted"]) for row in table(tmp_path / "run" / "predictions.csv")}
    assert dict(evaluate.score(tmp_path / "run", [small / "40.wav"]))[str(small / "40.wav")] == expected["40.wav"]
    clips = [clip for clip in data.read_manifest(small) if clip.split == "test"]
    prosody = data.extract_features(clips, moemos.load_backbone("prosody"), tmp_path / "cache")
    model.eval()
    moved = model(torch.zeros(len(clips), 3, 160), prosody).mos - model(torch.zeros(len(clips), 3, 160), prosody.flip(0)).mos
    assert moved.abs().max() > 0


@pytest.mark.parametrize(("auxiliary", "classes"), [("model", ["m0", "m1", "x"]), ("condition", ["s0", "s1", "s2", "s3", "x"]), ("rate", ["16000 Hz"])])
def test_the_second_task_classifies_what_it_is_told_to(small, tmp_path, auxiliary, classes):
    model = train.train(quick(small, tmp_path, auxiliary=auxiliary, epochs=5)).eval()
    assert torch.load(tmp_path / "run" / "model.pt")["classes"] == classes
    test = [clip for clip in data.read_corpus(small) if clip.split == "test"]
    said = model(data.extract_features(test, moemos.load_backbone("logmel"), tmp_path / "cache")).logits.argmax(1)
    true = {"model": [clip.model for clip in test], "condition": [clip.system for clip in test], "rate": ["16000 Hz"] * 16}[auxiliary]
    assert evaluate.evaluate(tmp_path / "run", "cpu")["accuracy"] == np.mean([classes[i] == name for i, name in zip(said, true)])


def test_single_ratings_without_rater_effects_are_learned_by_the_mean_rater_alone(small, tmp_path):
    model = train.train(quick(small, tmp_path, raters="single"))
    assert all((part == default).all() for part, default in zip(model.raters.bias_and_gain(), (0, 1)))
    assert evaluate.evaluate(tmp_path / "run", "cpu")["adaptation"] is None  # there is nothing to calibrate


def test_a_head_that_a_stage_has_no_loss_of_stays_as_it_was(small, tmp_path):
    model = train.train(quick(small, tmp_path, schedule="mos_only"))
    torch.manual_seed(0)
    assert torch.equal(model.class_head.weight, moemos.MoEMOS(3, 80, 3).class_head.weight)


def test_an_untrained_second_head_has_no_accuracy(small, tmp_path):
    for settings in ({"auxiliary": "none"}, {"schedule": "mos_only"}):
        train.train(quick(small, tmp_path, **settings))
        assert evaluate.evaluate(tmp_path / "run", "cpu")["accuracy"] is None


def test_schedules_are_what_they_are_compared_as():
    epochs = {name: sum(stage.epochs for stage in stages) for name, stages in train.SCHEDULES.items()}
    assert set(epochs.values()) == {140}
    assert [(s.name, s.alpha_start, s.alpha_end) for s in train.SCHEDULES["reversed"]] == [("mos", 0.9, 0.9), ("joint", 0.7, 0.3), ("classification", 0, 0)]
    assert [s.alpha_end for s in train.SCHEDULES["mos_only"]] == [1.0]


def test_extensions_leave_the_default_run_as_it_was(small, tmp_path):
    model = train.train(quick(small, tmp_path))
    checkpoint = torch.load(tmp_path / "run" / "model.pt", weights_only=True)
    assert not set(train.EXTENSIONS) & set(checkpoint["config"]) and list(checkpoint) == ["weights", "config", "stages", "classes", "backbone"]
    assert {name.split(".")[0] for name in checkpoint["weights"]} == {"fusion", "moe", "mos_head", "class_head"}
    assert model.moe.gate.weight.shape == (4, 160)
    weights = []
    for raters in (0, 2):
        torch.manual_seed(0)
        weights.append(moemos.MoEMOS(3, 80, 3, raters=raters).state_dict())
    assert all(torch.equal(tensor, weights[1][name]) for name, tensor in weights[0].items())  # no random number more
    for extension in ({"schedule": "mos_only"}, {"prosody": "yes"}, {"raters": "yes"}, {"raters": "single"}):
        train.train(quick(small, tmp_path, out=str(tmp_path / "other"), **extension))
        other = torch.load(tmp_path / "other" / "model.pt", weights_only=True)
        assert set(extension) < set(other["config"])


def test_a_bundle_is_at_hand_where_its_file_is(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    assert moemos.at_hand("logmel") and not moemos.at_hand("WAVLM_BASE")
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "wavlm_base.pth").touch()
    assert moemos.at_hand("WAVLM_BASE")


@pytest.mark.parametrize(("module", "words", "why"), [
    (evaluate, ["a", "b"], "a: is no folder of a run"), (evaluate, [HERE / "train.py"], "is a file and no folder of a run; WAV files are scored with --wav"), (evaluate, ["a", "b", "--wav", "c.wav"], "only one of several runs, --data, --wav"),
    (train, ["--experiment", "raters", "--data", "SMALL"], "needs the simulated corpora"), (train, ["--experiment", "none"], "invalid choice"),
    (train, ["--experiment", "stages", "--seeds", "0"], "--seeds 0"), (train, ["--seeds", "2"], "goes with --experiment"),
    (train, ["--experiment", "prosody", "--prosody", "yes"], "--prosody: experiment prosody sets it itself"), (train, ["--experiment", "stages", "--out", "x"], "--out: experiment"),
    (train, ["--experiment", "stages", "--epochs", "-1"], "--epochs -1"), (evaluate, ["a", "--wav", "c.wav", "--plot"], "--plot not with the last two")])
def test_bad_comparisons_and_experiments_get_one_sentence(small, tmp_path, monkeypatch, capsys, module, words, why):
    monkeypatch.chdir(tmp_path)
    assert call(monkeypatch, module, *(str(word).replace("SMALL", str(small)) for word in words)) == 2
    assert why in capsys.readouterr().err


# -- exercises, audit table, explanation, figures -----------------------------------------------------------

def test_exercise_2_a_hard_gate_does_not_learn_and_a_soft_one_does():
    model, _ = some_output()
    x = torch.randn(6, 10)
    scores = model.moe.gate(x)
    for gates, learns in ((scores.softmax(1), True), (torch.nn.functional.one_hot(scores.argmax(1), 4).float(), False)):
        loss = torch.einsum("be,beh->bh", gates, model.moe(x)[2]).square().sum()
        (gradient,) = torch.autograd.grad(loss, model.moe.gate.weight, allow_unused=True, retain_graph=True)
        assert (gradient is not None and gradient.abs().sum().item() > 0) is learns


def test_exercise_3_l1_of_a_softmax_teaches_nothing():
    scores = torch.randn(6, 4, requires_grad=True)
    l1 = scores.softmax(1).norm(p=1, dim=1).mean()
    (gradient,) = torch.autograd.grad(l1, scores)
    assert l1.item() == pytest.approx(1) and gradient.abs().max() < 1e-7
    (gradient,) = torch.autograd.grad(moemos.sparsity_loss(scores.softmax(1)), scores)
    assert gradient.abs().max() > 1e-3


def test_exercise_4_a_padded_batch_changes_a_clips_features():
    import torchaudio
    torch.manual_seed(0)
    network = torchaudio.models.wav2vec2_model(
        extractor_mode="group_norm", extractor_conv_layer_config=[(32, 10, 5), *[(32, 3, 2)] * 4, *[(32, 2, 2)] * 2], extractor_conv_bias=False,
        encoder_embed_dim=32, encoder_projection_dropout=0, encoder_pos_conv_kernel=16, encoder_pos_conv_groups=4, encoder_num_layers=2,
        encoder_num_heads=2, encoder_attention_dropout=0, encoder_ff_interm_features=64, encoder_ff_interm_dropout=0, encoder_dropout=0,
        encoder_layer_norm_first=False, encoder_layer_drop=0, aux_num_out=None)
    backbone, short, long = moemos.Backbone("small", network), torch.randn(8000), torch.randn(16000)
    alone = backbone.extract(short)
    with torch.no_grad():
        layers, _ = network.extract_features(torch.stack([torch.nn.functional.pad(short, (0, 8000)), long]), torch.tensor([8000, 16000]))
    in_batch = torch.stack([layer[0, :alone.shape[1]] for layer in layers])
    assert 0.1 < (alone - in_batch).norm() / alone.norm() < 1
    assert torch.equal(backbone.extract(short), alone)


def test_exercise_5_sparsity_alone_collapses_and_diversity_cures(corpus, tmp_path):
    use = {}
    for weight in (0.0, 10.0):
        train.train(quick(corpus, tmp_path, lambda_1=weight, lambda_2=10.0, epochs=20, augmentation="no"))
        last = table(tmp_path / "run" / "log.csv")[-1]
        use[weight] = [float(last[name]) for name in ("gate_1", "gate_2", "gate_3", "gate_4", "gate_entropy", "mean_gate_entropy")]
    assert min(use[0.0][:4]) < 0.05 and use[0.0][5] < 1.2
    assert min(use[10.0][:4]) > 0.15 and use[10.0][5] > 1.3


def test_exercise_6_a_second_cosine_on_a_used_optimiser_stays_at_zero():
    weight = torch.ones(1, requires_grad=True)
    weight.grad = torch.ones(1)
    optimiser = torch.optim.AdamW([weight], lr=0.1)
    for _stage in range(2):
        before, schedule = weight.item(), torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, T_max=5)
        for _ in range(5):
            optimiser.step()
            schedule.step()
        moved = abs(weight.item() - before)
        assert moved > 0.1 if _stage == 0 else moved < 1e-6
    assert train.learning_rate(0, 5, 0.1) == 0.1  # ours knows of no earlier stage


def test_exercise_7_a_column_of_ratings_would_be_compared_with_every_clip():
    predicted, ratings = torch.tensor([1.0, 2.0, 4.0]), torch.tensor([1.0, 2.0, 4.0])
    with pytest.warns(UserWarning, match="will likely lead to incorrect results"):
        broadcast = torch.nn.functional.smooth_l1_loss(predicted, ratings[:, None])
    assert moemos.mos_loss(predicted, ratings) == 0
    assert broadcast.item() == pytest.approx(2 * (0.5 + 2.5 + 1.5) / 9)


def test_exercise_8_a_class_label_moves_the_experts_that_the_mos_head_reads():
    model, _ = some_output()
    output = model(torch.randn(6, 3, 10))
    moemos.losses(output, torch.full((6,), nan), torch.zeros(6, dtype=torch.long), alpha=0.5, beta=0.5, lambda_1=0, lambda_2=0)["total"].backward()
    assert all(parameter.grad.abs().sum() > 0 for parameter in (model.moe.w1, model.moe.w2, model.moe.gate.weight, model.fusion.layer_logits))


@pytest.fixture(scope="module")
def readme():
    return (HERE / "README.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def audit(readme):
    return re.search(r"## Audit\n(.*?)\n## ", readme, re.DOTALL).group(1)


def test_every_function_and_test_that_the_readme_names_exists(readme):
    named = re.findall(r"`((?:moemos|train|evaluate|data)(?:\.[A-Za-z_]\w*)+)`", readme)
    assert len(named) > 40
    for name in named:
        thing, *path = name.split(".")
        thing = globals()[thing]
        if path not in (["py"], ["csv"]):
            for part in path:
                thing = getattr(thing, part)
    tests = set(re.findall(r"`(test_\w+)`", readme)) - {"test_moemos"}
    assert len(tests) > 30 and tests <= set(globals())


def test_every_row_of_the_audit_table_names_code_and_a_test(audit):
    rows = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in audit.splitlines() if line.startswith("| ")][1:]
    assert len(rows) > 25
    for section, statement, code, pinned, *_ in rows:
        assert section and statement and re.search(r"`\w+\.\w+", code) and ("`test_" in pinned or pinned == "the same")


def test_every_setting_and_stage_stands_in_the_audit_table(audit):
    rows = [line for line in audit.splitlines() if line.startswith("| ")]
    for setting in dataclasses.fields(train.Config):
        assert any(f"`{setting.name}`" in row for row in rows), setting.name
    assert "train.STAGES" in audit and len(train.STAGES) == 3


def test_the_readme_names_each_experiment_with_its_question_and_command(readme):
    for name, experiment in train.EXPERIMENTS.items():
        assert f"### {name}\n\n{experiment.question}" in readme
        assert f"    python train.py --experiment {name} --seeds 5 && python evaluate.py runs/{name}/*\n" in readme


def test_every_shape_of_the_explanation_is_printed_and_its_numbers_are_those_of_the_score(small, tmp_path, monkeypatch, capsys):
    train.train(quick(small, tmp_path))
    wav = small / "40.wav"
    (_, mos), = evaluate.score(tmp_path / "run", [wav])
    capsys.readouterr()
    assert call(monkeypatch, evaluate, tmp_path / "run", "--explain", wav) == 0
    out = capsys.readouterr().out
    for what, shape in (("waveform", "(4000,)"), ("layers of the backbone", "(3, 26, 80)"), ("mean, deviation over F", "(3, 160)"), ("fused features", "(1, 160)"),
                        ("gates g", "(1, 4)"), ("experts E_1 ... E_N", "(1, 4, 64)"), ("y = sum g_i E_i", "(1, 64)"), ("logits of the classes", "(1, 3)")):
        assert re.search(rf"^{re.escape(what)} .*{re.escape(shape)} ", out, re.MULTILINE)
    assert re.search(r"^MOS .*\(1,\) +(\S+)$", out, re.MULTILINE).group(1) == f"{mos:.4f}"
    assert max(map(len, out.splitlines()[1:])) < 100 and "class probabilities: " in out
    terms = {name: float(value) for name, value in re.findall(r"(\w+) (\d+\.\d{4})", out.splitlines()[-1])}
    assert terms["total"] == pytest.approx(0.9 * terms["mos"] + 0.1 * terms["classification"] + 0.02 * terms["diversity"] + 0.02 * terms["sparsity"], abs=2e-4)
    assert terms["mos"] == pytest.approx(moemos.mos_loss(torch.tensor([mos]), torch.tensor([1.0])).item(), abs=1e-4)  # 40 % 4 + 1


def test_figures_without_matplotlib_get_one_sentence_before_any_work(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    assert call(monkeypatch, evaluate, tmp_path, "--plot") == 2
    assert "pip install matplotlib" in capsys.readouterr().err


def test_figures_show_the_numbers_of_the_tables(small, tmp_path, monkeypatch, no_pool):
    pytest.importorskip("matplotlib", reason="matplotlib is no requirement and not installed")
    train.train(quick(small, tmp_path))
    result = evaluate.evaluate(tmp_path / "run", "cpu")
    drawn = {}
    monkeypatch.setattr(evaluate, "save", lambda drawing, path: drawn.update({path.name: drawing}))
    evaluate.plot(tmp_path / "run", tmp_path / "run")
    assert set(drawn) == {"predictions.png", "experts.png", "training.png", "raters.png"}
    utterance, system = drawn["predictions.png"].axes
    assert utterance.get_title().startswith(f"utterance level: LCC {result['utterance']['LCC']:.3f}, 95 % from {result['interval_95']['utterance']['LCC'][0]:.3f}")
    points = np.concatenate([line.get_xydata() for line in utterance.get_lines() if line.get_linestyle() == "None"])
    rows = [(float(row["mos"]), float(row["predicted"])) for row in table(tmp_path / "run" / "predictions.csv")]
    np.testing.assert_allclose(np.sort(points, 0), np.sort(rows, 0))
    assert sum(len(line.get_xydata()) for line in system.get_lines() if line.get_linestyle() == "None" and line.get_marker() != "|") >= 4
    np.testing.assert_allclose(drawn["experts.png"].axes[0].images[0].get_array(), 100 * np.array(list(result["experts"].values())))
    borders = [line.get_xdata()[0] for line in drawn["training.png"].axes[0].get_lines() if line.get_color() == "0.7"]
    assert borders == [1, 3, 5]
    assert [axis.get_ylabel() for axis in drawn["training.png"].axes] == ["loss terms", "held-out clips", "mean gate, %"]
    (raters,) = drawn["raters.png"].axes
    assert [text.get_text() for text in raters.get_xticklabels()] == ["0", "1", "0", "1"]
    rows = evaluate.compare([tmp_path / "run"], "cpu") * 2
    rows[1] = rows[1] | {"variant": "2", "first": 1, "difference": evaluate.nested([0.0] * 8) | {level: dict.fromkeys(moemos.METRICS, (0.1, -0.1, 0.4)) for level in ("utterance", "system")}}
    evaluate.plot_comparison(rows, tmp_path / "comparison.png")
    assert [axis.get_title() for axis in drawn["comparison.png"].axes][:2] == ["utterance MSE", "utterance LCC"] and len(drawn["comparison.png"].axes) == 8
    evaluate.plot_comparison(rows[:1], tmp_path / "none.png")
    assert "none.png" not in drawn  # one variant differs from nothing
    (tmp_path / "run" / "log.csv").write_text("epoch\n")
    with pytest.raises(moemos.InputError, match=r"log.csv is missing or damaged \(list index out of range\)"):
        evaluate.plot(tmp_path / "run", tmp_path / "run")


def start(folder, *words, torchrun=False, **options):
    """train.py in a process of its own, in that folder."""
    program = ["-m", "torch.distributed.run", "--nproc-per-node", "2", HERE / "train.py"] if torchrun else [HERE / "train.py"]
    return subprocess.Popen([sys.executable, *program, *map(str, words)], cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
                            env=os.environ | {"OMP_NUM_THREADS": "1"}, **options)


def test_killed_at_any_moment_the_next_start_continues_to_the_bytes_of_an_undisturbed_run(small, tmp_path):
    train.train(quick(small, tmp_path, out=str(tmp_path / "reference"), cache=str(tmp_path / "other")))
    words = ("--data", small, "--backbone", "logmel", "--epochs", 2, "--cache", tmp_path / "cache", "--out", tmp_path / "run")
    begun = time.monotonic()
    assert start(tmp_path, *words[:-1], tmp_path / "whole", "--cache", tmp_path / "whole" / "cache").wait() == 0
    whole, rng, entries = time.monotonic() - begun, random.Random(0), 0
    for i in range(10):
        process = start(tmp_path, *words)
        if i < 5:  # within the extraction
            while len(list((tmp_path / "cache").glob("*"))) < 1 + 5 * i and process.poll() is None:
                time.sleep(0.0005)
        else:
            time.sleep(whole * rng.uniform(0.6, 1.0))  # before that it only imports
        process.kill()
        process.wait()
        assert i > 4 or entries <= (entries := len(list((tmp_path / "cache").glob("*")))) < 32
        if (tmp_path / "run" / "model.pt").exists():  # never half a file
            torch.load(tmp_path / "run" / "model.pt", weights_only=True)
            (tmp_path / "run" / "model.pt").unlink()
    assert start(tmp_path, *words).wait() == 0
    reference = Path(tmp_path / "reference" / "model.pt").read_bytes()
    assert (tmp_path / "run" / "model.pt").read_bytes() == (tmp_path / "whole" / "model.pt").read_bytes() == reference


def test_two_processes_on_one_cache_do_not_harm_each_other(small, tmp_path):
    both = [start(tmp_path, "--data", small, "--backbone", "logmel", "--epochs", 2, "--out", tmp_path / name) for name in "ab"]
    assert [process.wait() for process in both] == [0, 0]
    assert (tmp_path / "a" / "model.pt").read_bytes() == (tmp_path / "b" / "model.pt").read_bytes()


def test_torchrun_with_two_ranks_and_a_killed_and_restarted_run_give_the_bytes_of_a_single_process(small, tmp_path):
    folder = REAL_CLIPS if REAL_CLIPS.is_dir() else small
    train.train(quick(folder, tmp_path))
    words = ("--data", folder, "--backbone", "logmel", "--epochs", 2, "--cache", tmp_path / "shared", "--out", tmp_path / "two")
    assert start(tmp_path, *words, torchrun=True).wait() == 0
    assert (tmp_path / "two" / "model.pt").read_bytes() == (tmp_path / "run" / "model.pt").read_bytes()
    process = start(tmp_path, *words[:-1], tmp_path / "killed", "--cache", tmp_path / "anew")
    while len(list((tmp_path / "anew").glob("*"))) < 10 and process.poll() is None:
        time.sleep(0.0005)
    process.kill()
    process.wait()
    assert not (tmp_path / "killed" / "model.pt").exists()
    assert start(tmp_path, *words[:-1], tmp_path / "killed", "--cache", tmp_path / "anew").wait() == 0
    for name in ("two", "killed"):
        assert (tmp_path / name / "model.pt").read_bytes() == (tmp_path / "run" / "model.pt").read_bytes()
    predictions = []
    for name in ("run", "two", "killed"):
        evaluate.evaluate(tmp_path / name, "cpu")
        predictions.append((tmp_path / name / "predictions.csv").read_bytes())
    assert predictions[0] == predictions[1] == predictions[2]
    assert sorted(path.name for path in (tmp_path / "shared").iterdir()) == sorted(path.name for path in (tmp_path / "cache").iterdir())


def test_bfloat16_is_refused_where_the_processor_has_none(monkeypatch):
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: False)
    with pytest.raises(moemos.InputError, match="--precision bfloat16: this processor does not have it"):
        moemos.load_backbone("logmel", precision="bfloat16")


def test_the_accelerator_is_taken_where_there_is_one_and_the_cpu_elsewhere(monkeypatch):
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda check_available: None)
    assert moemos.pick_device() == torch.device("cpu")
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda check_available: torch.device("meta"))
    with pytest.raises(moemos.InputError, match="--device meta"):  # tried, though it holds no numbers
        moemos.pick_device()


@pytest.mark.skipif(not torch.ops.mkldnn._is_mkldnn_bf16_supported(), reason="this processor has no bfloat16")
def test_bfloat16_is_another_backbone_that_says_nearly_the_same(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    hub_with_base_weights(tmp_path)
    full, half = (moemos.load_backbone("WAV2VEC2_BASE", precision=precision) for precision in ("float32", "bfloat16"))
    assert full.identity != half.identity  # so neither's features are taken for the other's
    waveform = torch.randn(8000)
    one, other = full.extract(waveform), half.extract(waveform)
    assert other.dtype == torch.float32 and 0 < (one - other).norm() / one.norm() < 0.05


@pytest.mark.skipif(not REAL_CLIPS.is_dir(), reason="the real clips of p835_wb16k do not lie beside the checkout")
def test_real_clips_with_human_scores(tmp_path):
    train.train(quick(REAL_CLIPS, tmp_path, epochs=0))
    assert evaluate.evaluate(tmp_path / "run", "cpu")["utterance"]["LCC"] > 0.90
