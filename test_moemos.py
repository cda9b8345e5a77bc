"""Tests of the core. Each compares it with something that can be trusted: a number worked out by
hand, a plain loop, scipy's function, or a property that must hold.

No test downloads anything. The tests stand in the order of the core: model, losses, metrics,
schedule, backbone, audio, ratings, features, training, evaluation, scoring, command lines. At the
end come processes, how the tests run, and the shape of the core. Other files of tests import what
they need from the first section.
"""

import ast
import atexit
import contextlib
import csv
import dataclasses
import functools
import importlib
import io
import itertools
import json
import math
import multiprocessing
import os
import pkgutil
import py_compile
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
from types import SimpleNamespace

import numpy as np
import pytest
import scipy.signal
import scipy.stats
import torch
import torchaudio
from scipy.io import wavfile

import conftest
import corpora.features
import data
import evaluate
import moemos
import train
from corpora import simulated

HERE = Path(__file__).resolve().parent
REAL_CLIPS = HERE.parent / "shared" / "data" / "p835_wb16k"
FORMATS = HERE.parent / "shared" / "data" / "audio_formats"
PREDICT = evaluate.predict
DOWNLOAD = torch.hub.download_url_to_file
COLUMNS = ("wav", "split", "system", "model", "rater", "score")  # what most tables have
nan = float("nan")
torch.set_num_threads(1)  # The tensors are small: threads would only wait for each other.


# -- What other test files use too -----------------------------------------------------------------

def table(path):
    return list(csv.DictReader(Path(path).read_text().splitlines()))


def call(monkeypatch, module, *words):
    """Runs a script's main() with these words on its command line -> its exit status."""
    monkeypatch.setattr(sys, "argv", [f"{module.__name__}.py", *map(str, words)])
    try:
        module.main()
    except SystemExit as end:
        return int(end.code or 0)
    return 0


def quick(corpus, tmp_path, **settings):
    """Gives settings for a run of a few seconds. Features of shared corpora are extracted once."""
    shared = Path(corpus).name in ("simulated", "small")
    cache = (scratch() if shared else tmp_path) / "cache"
    usual = {"data": str(corpus), "backbone": "logmel", "device": "cpu", "steps": 2,
             "cache": str(cache), "out": str(tmp_path / "run")}
    return train.Config(**(usual | settings))


def tone(rate, seconds=0.5):
    return 0.5 * np.sin(2 * np.pi * 440 * np.arange(int(rate * seconds)) / rate)


def header(channels, rate, width=2, samples=bytes(8000)):
    """Gives a WAV file, as bytes, whose header states these channels and this rate, and PCM samples
    of `width` bytes."""
    block = width * channels
    return struct.pack("<4sI4s4sIHHIIHH4sI", b"RIFF", 36 + len(samples), b"WAVE",
                       b"fmt ", 16, 1, channels, rate, block * rate, block, 8 * width,
                       b"data", len(samples)) + samples


def lay_out(folder, files, wavs):
    """Writes text files, and short clips of noise, under their paths -> the folder."""
    for name in [*files, *wavs]:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name).write_text(text)
    for i, name in enumerate(wavs):
        noise = 0.1 * np.random.default_rng(i).normal(size=4000)
        wavfile.write(folder / name, 16000, noise.astype(np.float32))
    return folder


def manifest(folder, rows, header="wav,split,system,model,rater,score"):
    """Writes a ratings.csv, and two clips beside it, a.wav and b.wav -> the folder."""
    wavfile.write(folder / "a.wav", 16000, tone(16000).astype(np.float32))
    wavfile.write(folder / "b.wav", 16000, -tone(16000, 0.6).astype(np.float32))
    (folder / "ratings.csv").write_text("\n".join([header, *rows]) + "\n")
    return folder


def some_output(clips=6, classes=3, experts=4, seed=0):
    """Gives a small model, all of whose weights are random, and its output for random features."""
    torch.manual_seed(seed)
    model = moemos.MoEMOS(layers=3, width=5, axes=30, classes=classes, experts=experts, hidden=7)
    model.fusion.axes.copy_(torch.eye(30))
    for expert in model.moe.mlps:
        expert[2].reset_parameters()
    return model.eval(), model(torch.randn(clips, 3, 10))


def hub_with_base_weights(folder):
    """Makes a hub folder with weights of WAV2VEC2_BASE's shape -> the network they came from."""
    torch.manual_seed(0)
    bundle = torchaudio.pipelines.WAV2VEC2_BASE
    network = torchaudio.models.wav2vec2_model(**bundle._params)
    (folder / "checkpoints").mkdir(parents=True)
    torch.save(network.state_dict(), folder / "checkpoints" / bundle._path)
    return network.eval()


@functools.cache
def scratch():
    """Makes a folder for what tests share and must not change."""
    folder = tempfile.TemporaryDirectory()
    atexit.register(folder.cleanup)
    return Path(folder.name)


@functools.cache
def simulated_corpus():
    simulated.simulate(scratch() / "simulated", 101)
    return scratch() / "simulated"


@functools.cache
def small_corpus():
    """Makes 48 clips. Most are of four systems and two synthesis models; the others, which have no
    ratings, are of one more system and model."""
    folder, rng = scratch() / "small", np.random.default_rng(0)
    folder.mkdir()
    rows = [COLUMNS]
    for i in range(48):
        dullness = 0.1 * (i % 4 + rng.normal())  # so that features can roughly tell the MOS
        noise = scipy.signal.lfilter([0.1], [1, -dullness], rng.normal(size=4000))
        wavfile.write(folder / f"{i}.wav", 16000, noise.astype(np.float32))
        split = "test" if i >= 32 else "train"
        if i % 8 < 6 or split == "test":
            rows += [(f"{i}.wav", split, f"s{i % 4}", f"m{i % 2}", rater, 1 + i % 4)
                     for rater in range(2)]
        else:
            rows.append((f"{i}.wav", split, "x", "x", "", ""))
    data.write_files({folder / "ratings.csv": rows})
    return folder


@functools.cache
def small_run():
    """Trains on the small corpus, two steps a stage -> the run."""
    with contextlib.redirect_stdout(None):
        train.train(quick(small_corpus(), scratch()))
    return scratch() / "run"


@functools.cache
def simulated_run():
    """Trains on the simulated corpus with default settings -> (the run, its results)."""
    with contextlib.redirect_stdout(None):
        train.train(quick(simulated_corpus(), scratch(), out=str(scratch() / "whole"), steps=0))
        return scratch() / "whole", evaluate.evaluate(scratch() / "whole", "cpu")


@pytest.fixture
def corpus():
    return simulated_corpus()


@pytest.fixture
def small():
    return small_corpus()


@pytest.fixture
def run(tmp_path):
    """Copies the run on the small corpus, so that a test may change it."""
    return shutil.copytree(small_run(), tmp_path / "run")


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    """Makes a test fail if it wants to download."""
    def refuse(*args, **kwargs):
        pytest.fail("a test wants to download")
    monkeypatch.setattr(torch.hub, "download_url_to_file", refuse)


# -- Model -----------------------------------------------------------------------------------------

def test_mixture_gives_the_gated_sum_of_the_experts_that_a_plain_loop_computes():
    torch.manual_seed(1)
    moe = moemos.MixtureOfExperts(10, experts=3, hidden=7, outputs=5).eval()
    for expert in moe.mlps:
        expert[2].reset_parameters()
    x = torch.randn(4, 10)
    sums, gates, experts = moe(x)
    assert moe.linear.bias is None
    for b in range(4):
        scores = moe.gate.weight @ x[b] + moe.gate.bias
        g = scores.exp() / scores.exp().sum()
        y = torch.zeros(5)
        for e, (first, _, second) in enumerate(moe.mlps):
            hidden = torch.nn.functional.gelu(first.weight @ x[b] + first.bias)
            expert = moe.linear.weight @ x[b] + second.weight @ hidden + second.bias
            torch.testing.assert_close(experts[b, e], expert)
            y = y + g[e] * expert
        torch.testing.assert_close(gates[b], g)
        torch.testing.assert_close(sums[b], y)


def test_first_layers_of_experts_are_drawn_independently_and_second_layers_start_at_0():
    torch.manual_seed(0)
    moe = moemos.MixtureOfExperts(100, experts=4, hidden=50, outputs=3)
    weights = np.stack([expert[0].weight.detach().numpy() for expert in moe.mlps])
    alike = np.corrcoef(weights.reshape(4, -1)) - np.eye(4)
    assert np.abs(alike).max() < 0.1
    for expert in moe.mlps:
        assert not expert[2].weight.any() and not expert[2].bias.any()


def test_both_heads_read_only_the_gated_sum_and_the_mos_is_counted_from_the_training_mean():
    model, _ = some_output()
    model.mean.fill_(2.5)
    model.deviation.fill_(1.5)
    output = model(torch.randn(6, 3, 10))
    assert (output.gates.shape, output.experts.shape) == ((6, 4), (6, 4, 1 + 3))
    torch.testing.assert_close(output.gates.sum(1), torch.ones(6))
    y = torch.einsum("be,bey->by", output.gates, output.experts)
    torch.testing.assert_close(output.y, y)
    torch.testing.assert_close(output.logits, y @ model.class_head.weight.T + model.class_head.bias)
    mos = 2.5 + 1.5 * (y @ model.mos_head.weight[0] + model.mos_head.bias)
    torch.testing.assert_close(output.mos, mos)


def test_fusion_standardises_each_feature_and_projects_all_layers_together_onto_the_axes():
    torch.manual_seed(0)
    fusion = moemos.FeatureFusion(3, 5, axes=4)
    mean, axes = torch.randn(3, 10), torch.randn(30, 4)
    deviation = torch.rand(3, 10) + 0.5
    fusion.load_state_dict({"mean": mean, "deviation": deviation, "axes": axes})
    features = torch.randn(6, 3, 10)
    expected = torch.zeros(6, 4)
    for i, layer in enumerate(features.unbind(1)):
        standardised = (layer - mean[i]) / deviation[i]
        expected += standardised @ axes[10 * i:10 * (i + 1)]
    torch.testing.assert_close(fusion(features), expected)
    assert not list(fusion.parameters())


def test_pool_statistics_gives_mean_and_population_standard_deviation_over_time():
    frames = torch.randn(2, 9, 5, generator=torch.Generator().manual_seed(0))
    pooled = moemos.pool_statistics(frames).numpy()
    x = frames.numpy()
    np.testing.assert_allclose(pooled, np.concatenate([x.mean(1), x.std(1)], 1), atol=1e-6)
    assert moemos.pool_statistics(frames[:, :1]).isfinite().all()


# -- Where training starts -------------------------------------------------------------------------

def some_clips(rated=40, unrated=0, classes=3, noise=0.25):
    """Gives clips of 12 random features. Their MOS is a linear function of these, plus noise."""
    rng = np.random.default_rng(0)
    n = rated + unrated
    x = rng.normal(size=(n, 12)) * np.linspace(0.5, 3, 12) + 1
    mos = 3 + x @ rng.normal(size=12) / 6 + noise * rng.normal(size=n)
    mos[rated:] = nan
    model = rng.integers(classes, size=n)
    model[:classes] = np.arange(classes)  # Each class has a clip.
    features = torch.from_numpy(x).float().view(n, 2, 6)
    return train.Tensors(features, torch.from_numpy(mos), torch.from_numpy(model))


def start_of(clips, fold=None, **settings):
    """Gives the weights that training on Clips starts from, and the model that has them."""
    rated = int((~clips.mos.isnan()).sum())
    fold = np.arange(rated) % 5 if fold is None else fold
    classes = int(clips.label.max()) + 1
    weights = moemos.start(*clips, classes, fold)
    torch.manual_seed(0)
    return weights, train.build_model(train.Config(**settings), weights).eval()


def plain_ridge(x, target, new, penalty):
    """Solves the normal equations of ridge regression -> predictions for the features `new`, which
    are standardised as x is. The penalty is not per feature."""
    z, z_new = ((some - x.mean(0)) / x.std(0) for some in (x, new))
    weights = np.linalg.solve(z.T @ z + penalty * np.eye(x.shape[1]),
                              z.T @ (target - target.mean(0)))
    return target.mean(0) + z_new @ weights


@pytest.mark.parametrize("unrated", ["no clip", "some clips", "a class"])
def test_training_starts_from_the_mean_of_ridge_and_of_the_mos_expected_from_the_classes(unrated):
    clips = some_clips(unrated=25 if unrated == "some clips" else 0, noise=1)
    if unrated == "a class":
        clips.mos[clips.label == 1] = nan
    weights, model = start_of(clips)
    x, mos = clips.features.flatten(1).double().numpy(), clips.mos.numpy()
    rated, classes = ~np.isnan(mos), clips.label.numpy()
    penalty = weights["penalty"].item() * 12  # It is stored per feature.
    assert penalty > 1  # Else the test would not notice a wrong penalty.
    one_hot = np.eye(3)[classes]

    ridge_mos = plain_ridge(x[rated], mos[rated], x, penalty)
    of_classes = plain_ridge(x, one_hot, x, penalty * len(x) / rated.sum())
    mean = mos[rated].mean()
    known = np.where(rated, mos, ridge_mos)
    class_means = np.array([known[classes == c].mean() for c in range(3)])
    class_mos = mean + of_classes @ (class_means - mean)
    output = model(clips.features)
    np.testing.assert_allclose(output.mos.detach(), (ridge_mos + class_mos) / 2, atol=1e-5)
    assert model.mean.item() == pytest.approx(mean)
    assert model.deviation.item() == pytest.approx(mos[rated].std())

    share = one_hot.mean(0)
    np.testing.assert_allclose(output.y[:, 1:].detach(), of_classes - share, atol=1e-5)
    logits = np.log(share) + (of_classes - share) / share
    np.testing.assert_allclose(output.logits.detach(), logits, atol=1e-4)
    in_deviations = (ridge_mos - ridge_mos.mean()) / mos[rated].std()
    np.testing.assert_allclose(output.y[:, 0].detach(), in_deviations, atol=1e-5)


@pytest.mark.parametrize("unrated", [0, 25])
def test_training_starts_from_ridge_alone_if_there_is_only_one_class(unrated):
    clips = with_one_class(some_clips(unrated=unrated, noise=1))
    weights, model = start_of(clips)
    x, mos = clips.features.flatten(1).double().numpy(), clips.mos.numpy()
    rated = ~np.isnan(mos)
    ridge_mos = plain_ridge(x[rated], mos[rated], x, weights["penalty"].item() * 12)
    np.testing.assert_allclose(model(clips.features).mos.detach(), ridge_mos, atol=1e-5)


def test_fused_features_are_uncorrelated_and_shrunk_as_by_ridge_and_the_weakest_axes_are_dropped():
    clips = some_clips(noise=20, unrated=15)
    features = clips.features.clone()
    features[:, 1] = features[:, 0] + 0.05 * features[:, 1]  # Now half of the axes are weak.
    weights, model = start_of(clips._replace(features=features))
    x = features.flatten(1).double().numpy()
    variance = np.linalg.eigvalsh(np.corrcoef(x.T))[::-1]
    kept = variance / (variance + weights["penalty"].item() * 12 / 40)
    large = kept > moemos.LEAST_KEPT * kept[0]
    assert 0 < large.sum() < 12
    fused = model.fusion(features).double()
    np.testing.assert_allclose(fused.mean(0), 0, atol=1e-6)
    np.testing.assert_allclose(fused.T @ fused / 55, np.diag(kept[large] ** 2), atol=1e-6)


def test_experts_add_nothing_at_first_and_each_adds_something_different_after_training():
    clips = some_clips(unrated=20)
    _, model = start_of(clips)
    fused = model.fusion(clips.features)

    def added():
        return (model(clips.features).experts - model.moe.linear(fused)[:, None]).detach()
    assert not added().any()
    first = torch.stack([expert[0].weight.detach().flatten() for expert in model.moe.mlps])
    assert (torch.corrcoef(first) - torch.eye(4)).abs().max() < 0.3
    clips = clips._replace(mos=clips.mos.float())
    for stage in train.STAGES:
        assert list(train.run_stage(model, stage._replace(steps=20), train.Config(), clips))
    assert (added().abs().amax((0, 2)) > 0).all()
    of_mos = added()[:, :, 0].T
    assert (torch.corrcoef(of_mos) - torch.eye(4)).abs().max() < 0.99


def test_best_penalty_is_the_one_with_the_least_error_in_cross_validation():
    found = set()
    for noise in (0.1, 1, 3, 20):
        clips = some_clips(noise=noise)
        x, mos = clips.features.flatten(1).double().numpy(), clips.mos.numpy()
        fold = np.array([0] * 3 + [1] * 9 + [2] * 28)  # Folds may differ in size.
        errors = []
        for penalty in moemos.PENALTIES:
            error = 0
            for i in range(40):
                others = fold != fold[i]
                predicted = plain_ridge(x[others], mos[others], x[i], penalty * 12)
                error += (predicted - mos[i]) ** 2
            errors.append(error)
        penalty = moemos.PENALTIES[np.argmin(errors)]
        assert moemos.best_penalty(x, mos, fold) == penalty
        assert start_of(clips, fold)[0]["penalty"].item() == pytest.approx(penalty)
        found.add(penalty)
    assert len(found) == 4  # Else the test would show little.


def test_ridge_minimises_its_loss_in_any_units_and_ignores_features_that_never_vary():
    rng = np.random.default_rng(0)
    for clips, features in ((12, 40), (40, 12)):
        heard = rng.normal(rng.normal(3, 2, features), 2, (clips + 5, features))
        x, new = heard[:clips], heard[clips:]
        y = rng.normal(3, 2, clips)
        z, z_new = (x - x.mean(0)) / x.std(0), (new - x.mean(0)) / x.std(0)
        expected = []
        for penalty in moemos.PENALTIES:
            stacked = np.vstack([z, math.sqrt(penalty * features) * np.eye(features)])
            target = np.concatenate([y - y.mean(), np.zeros(features)])
            weights, *_ = np.linalg.lstsq(stacked, target, rcond=None)
            expected.append(z_new @ weights + y.mean())
        np.testing.assert_allclose(moemos.ridge(x, y, new, moemos.PENALTIES), expected, atol=1e-6)
        # The unit does not matter, and features that vary by rounding alone have no weight.
        tiny = moemos.ridge(1e-9 * x, y, 1e-9 * new, moemos.PENALTIES)
        np.testing.assert_allclose(tiny, expected, atol=1e-6)
        constant, new_constant = np.full((clips, 1), 0.1), np.array([[-9.0], [0], [0.1], [1], [9]])
        constant[0] += 1e-9
        predicted = [moemos.ridge(np.hstack([x, constant]), y, np.hstack([new, other]), [0.1])
                     for other in (np.full((5, 1), 0.1), new_constant)]
        np.testing.assert_allclose(*predicted, atol=1e-6)
    few = moemos.ridge(np.ones((2, 3)), np.array([1.0, 2.0]), np.ones((1, 3)), [1e-4])
    assert few == pytest.approx(1.5)


def with_equal_mos(clips):
    return clips._replace(mos=torch.full_like(clips.mos, 3.7))


def with_equal_features(clips):
    return clips._replace(features=clips.features[:1].expand_as(clips.features))


def with_random_mos(clips):
    """Gives 400 clips, enough for cross-validation to tell that there is nothing to learn."""
    torch.manual_seed(0)
    return train.Tensors(torch.randn(400, 2, 6), torch.randn(400).double(), torch.arange(400) % 3)


@pytest.mark.parametrize("change", [with_equal_mos, with_equal_features, with_random_mos])
def test_training_starts_from_the_mean_mos_if_there_is_nothing_to_learn(change):
    clips = change(some_clips())
    weights, model = start_of(clips)
    assert all(weight.isfinite().all() for weight in weights.values())
    away = (model(clips.features).mos - clips.mos.mean()) / model.deviation
    if change is with_random_mos:
        assert weights["penalty"] > 10
        assert away.std() < 0.1
    else:
        assert away.abs().max() < 1e-6
    if change is with_equal_mos:
        assert (model.mean.item(), model.deviation.item()) == (pytest.approx(3.7), 1)
    clips = clips._replace(mos=clips.mos.float())
    list(train.run_stage(model, train.STAGES[1]._replace(steps=5), train.Config(), clips))
    assert model.eval()(clips.features).mos.isfinite().all()


def with_constant_feature(clips):
    features = clips.features.clone()
    features[:, 1, 3] = 0.1
    return clips._replace(features=features)


def with_two_rated(clips):
    mos = torch.full_like(clips.mos, nan)
    mos[:2] = torch.tensor([2.0, 4.0])
    return clips._replace(mos=mos)


def with_one_class(clips):
    return clips._replace(label=torch.zeros_like(clips.label))


def with_class_that_nobody_rated(clips):
    mos = clips.mos.clone()
    mos[clips.label == 1] = nan
    return clips._replace(mos=mos)


def with_two_clips(clips):
    return clips.take(slice(2))


@pytest.mark.parametrize("change", [with_constant_feature, with_two_rated, with_one_class,
                                    with_class_that_nobody_rated, with_two_clips])
def test_training_starts_from_finite_weights_that_fit_even_few_clips_classes_or_ratings(change):
    clips = change(some_clips())
    weights, model = start_of(clips)
    assert all(weight.isfinite().all() for weight in weights.values())
    output = model(clips.features)
    rated = ~clips.mos.isnan()
    assert moemos.lcc(output.mos[rated].tolist(), clips.mos[rated].tolist()) > 0.9
    assert output.mos.isfinite().all()
    torch.testing.assert_close(weights["class_head.bias"].exp().sum(), torch.tensor(1.0))
    if change is with_constant_feature:
        features = clips.features.clone()
        features[:, 1, 3] += 0.01  # Even 10 times its scale hardly changes the MOS.
        torch.testing.assert_close(model(features).mos, output.mos, atol=1e-3, rtol=0)


def test_the_first_weights_do_not_depend_on_the_signs_of_the_eigenvectors(monkeypatch):
    clips, eigh = some_clips(), np.linalg.eigh
    plain, _ = start_of(clips)
    rng = np.random.default_rng(0)

    def turned(matrix):
        values, vectors = eigh(matrix)
        sign = rng.choice([-1, 1], len(values))
        assert {*sign} == {-1, 1}
        return values, vectors * sign
    monkeypatch.setattr(np.linalg, "eigh", turned)
    torch.testing.assert_close(start_of(clips)[0], plain, rtol=1e-5, atol=1e-6)


def test_copies_of_the_features_in_other_units_do_not_change_where_training_starts():
    """288 features give the same predictions as 64 copies of each, 18,432, in other units."""
    torch.manual_seed(0)
    features = torch.randn(60, 1, 20).double() @ torch.randn(20, 288).double()
    features += torch.randn(60, 1, 288)
    mos = 3 + features[:, 0, :5].mean(1) / 4 + torch.randn(60) / 2
    mos[40:] = nan
    clips = train.Tensors(features.float(), mos, torch.arange(60) % 3)
    copies = (features * 10 ** torch.linspace(-2, 2, 64)[:, None]).reshape(60, 12, 1536)
    wide = clips._replace(features=(copies + 5).float())
    (weights, narrow_model), (wide_weights, wide_model) = start_of(clips), start_of(wide)
    assert weights["penalty"] == wide_weights["penalty"] > moemos.PENALTIES.min()
    assert wide_weights["fusion.axes"].shape[0] == 64 * 288
    one, other = narrow_model(clips.features), wide_model(wide.features)
    torch.testing.assert_close(one.mos, other.mos, atol=1e-3, rtol=0)
    torch.testing.assert_close(one.logits, other.logits, atol=1e-2, rtol=0)


# -- Losses ----------------------------------------------------------------------------------------

def test_mos_loss_is_smooth_l1_over_the_rated_clips_as_computed_by_hand():
    predicted, mos = torch.tensor([1.0, 2.0, 9.0]), torch.tensor([1.5, 4.0, nan])
    assert moemos.mos_loss(predicted, mos).item() == pytest.approx((0.5 * 0.25 + 1.5) / 2)


def test_classification_loss_is_cross_entropy_as_computed_by_hand():
    logits = torch.tensor([[0.0, math.log(3)], [5.0, 1.0]])
    loss = moemos.classification_loss(logits, torch.tensor([1, 0]))
    assert loss.item() == pytest.approx((math.log(4 / 3) + math.log(1 + math.exp(-4))) / 2)


@pytest.mark.parametrize(("gates", "diversity", "sparsity"), [
    ([[0.25] * 4] * 3, 1.0, 2.0),      # All alike is balanced and not sparse.
    ([[1.0, 0, 0, 0]] * 3, 4.0, 1.0),  # This is collapse.
    (np.eye(4).tolist(), 1.0, 1.0),    # Each clip has an expert of its own.
    ([[0.5, 0.5], [0.9, 0.1]], 2 * (0.7 ** 2 + 0.3 ** 2),
     (1 / math.sqrt(0.5) + 1 / math.sqrt(0.82)) / 2),
    ([[1.0]] * 3, 1.0, 1.0),           # There is one expert.
])
def test_diversity_and_sparsity_loss_agree_with_values_computed_by_hand(gates, diversity, sparsity):
    gates = torch.tensor(gates)
    assert moemos.diversity_loss(gates).item() == pytest.approx(diversity, rel=1e-6)
    assert moemos.sparsity_loss(gates).item() == pytest.approx(sparsity, rel=1e-6)


def test_total_loss_is_the_weighted_sum_of_its_four_terms():
    _, output = some_output()
    mos, model = torch.tensor([1.0, 2, 3, 4, 5, nan]), torch.tensor([0, 1, 2, 0, 1, 0])
    terms = moemos.losses(output, mos, model, alpha=0.3, beta=0.6, lambda_1=0.11, lambda_2=0.13,
                          deviation=torch.tensor(2.0))
    expected = {"mos": moemos.mos_loss(output.mos / 2, mos / 2),
                "classification": moemos.classification_loss(output.logits, model),
                "diversity": moemos.diversity_loss(output.gates),
                "sparsity": moemos.sparsity_loss(output.gates)}
    weights = {"mos": 0.3, "classification": 0.6, "diversity": 0.11, "sparsity": 0.13}
    expected["total"] = sum(weights[name] * expected[name] for name in weights)
    torch.testing.assert_close(terms, expected)


@pytest.mark.parametrize("experts", [1, 4])
def test_gradients_are_finite_without_any_mos_and_with_saturated_gates(experts):
    model, _ = some_output(experts=experts)
    model.moe.gate.weight.data *= 1e4
    output = model(torch.randn(6, 3, 10))
    labels = torch.full((6,), nan), torch.zeros(6, dtype=torch.long)
    terms = moemos.losses(output, *labels, 0.5, 0.5, 0.02, 0.02)
    terms["total"].backward()
    assert terms["mos"] == 0
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


def test_clips_without_mos_give_a_gradient_to_the_class_head_but_none_to_the_mos_head():
    model, _ = some_output()
    output = model(torch.randn(6, 3, 10))
    labels = torch.full((6,), nan), torch.zeros(6, dtype=torch.long)
    moemos.losses(output, *labels, 0.5, 0.5, 0.02, 0.02)["total"].backward()
    assert model.mos_head.weight.grad.abs().sum() == 0
    assert model.class_head.weight.grad.abs().sum() > 0


def test_gate_entropies_tell_collapse_from_specialisation():
    collapse, special, even = (
        [entropy.item() for entropy in moemos.gate_entropies(gates)]
        for gates in (torch.tensor([[1.0, 0.0]] * 4), torch.eye(4), torch.full((3, 4), 0.25)))
    assert collapse == [0, 0]
    assert special == pytest.approx([0, math.log(4)])
    assert even == pytest.approx([math.log(4)] * 2)


# -- Metrics ---------------------------------------------------------------------------------------

@pytest.mark.parametrize("ties", [False, True])
def test_metrics_agree_with_numpy_scipy_and_a_plain_loop_with_and_without_ties(ties):
    rng = np.random.default_rng(0)
    p, t = rng.normal(size=(2, 40))
    if ties:
        p, t = p.round(), t.round()
    assert moemos.mse(p, t) == pytest.approx(np.square(p - t).mean())
    assert moemos.lcc(p, t) == pytest.approx(scipy.stats.pearsonr(p, t)[0])
    assert moemos.srcc(p, t) == pytest.approx(scipy.stats.spearmanr(p, t)[0])
    concordant = discordant = untied_p = untied_t = 0
    for i, j in itertools.combinations(range(40), 2):
        concordant += (p[i] - p[j]) * (t[i] - t[j]) > 0
        discordant += (p[i] - p[j]) * (t[i] - t[j]) < 0
        untied_p += p[i] != p[j]
        untied_t += t[i] != t[j]
    tau_b = (concordant - discordant) / math.sqrt(untied_p * untied_t)
    assert moemos.ktau(p, t) == pytest.approx(tau_b)


@pytest.mark.parametrize(("p", "t", "why"), [
    ([3, 3, 3], [1, 2, 3], "predictions are all equal"),
    ([1, 2], [4, 4], "true scores are all equal"),
    ([1, 2], [0.1 + 0.2, 0.3], "true scores are all equal"),  # They differ by rounding alone.
    ([1], [2], "two are needed"), ([], [], "two are needed"), ([1, nan], [1, 2], "not finite")])
def test_undefined_correlations_are_nan_with_a_reason(p, t, why):
    assert why in moemos.why_undefined(p, t)
    assert all(math.isnan(metric(p, t)) for metric in (moemos.lcc, moemos.srcc, moemos.ktau))
    assert moemos.why_undefined([1, 2], [2, 3]) == ""


def test_losses_and_metrics_refuse_shapes_that_would_broadcast():
    _, output = some_output()
    with pytest.raises(ValueError, match=r"MOS \(6, 1\) must be \(6,\)"):
        moemos.losses(output, torch.ones(6, 1), torch.zeros(6, dtype=torch.long), 1, 0, 0, 0)
    with pytest.raises(ValueError, match=r"with the same n, not \(2,\) and \(2, 1\)"):
        moemos.mse([1, 2], [[1], [2]])


def test_system_level_metrics_compare_the_plain_means_of_each_systems_clips():
    result = moemos.metrics([5, 1, 3, 5], [4, 2, 2, 4.5], ["b", "a", "a", "c"])
    assert list(result) == [f"{level} {name}" for level in ("utterance", "system")
                            for name in ("MSE", "LCC", "SRCC", "KTAU")]
    assert result["system MSE"] == pytest.approx((0 + 1 + 0.25) / 3)
    assert result["utterance MSE"] == pytest.approx((1 + 1 + 1 + 0.25) / 4)
    means = moemos.levels([5, 1, 3, 5], [4, 2, 2, 4.5], ["b", "a", "a", "c"])["system"]
    assert [list(part) for part in means] == [[2, 5, 5], [2, 4, 4.5]]


def test_systems_with_equal_means_tie_whatever_the_order_of_their_clips():
    """Systems a and b have the same mean, but in some orders of their clips the sums differ in the
    last bit."""
    mos = [1.1, 2.2, 3.3, 1.1, 2.2, 3.3, 1.5, 1.6, 4.4, 4.5]
    system = [*"aaabbbccdd"]
    predicted = [3.0, 3.0, 3.0, 2.0, 2.0, 2.0, 1.0, 1.0, 4.0, 4.0]
    rng, found, bits = np.random.default_rng(0), [], set()
    for _ in range(30):
        order = rng.permutation(10)
        true_and_system = [[values[i] for i in order] for values in (mos, system)]
        found.append(moemos.metrics([predicted[i] for i in order], *true_and_system))
        bits.add(tuple(moemos.system_means(*true_and_system)[:2]))
    assert any(a != b for a, b in bits)  # Else the test would show nothing.
    a_and_b_tie = scipy.stats.spearmanr([3, 2, 1, 4], [2.2, 2.2, 1.55, 4.45])[0]
    assert {round(result["system SRCC"], 12) for result in found} == {round(a_and_b_tie, 12)}
    tau = scipy.stats.kendalltau([3, 2, 1, 4], [2.2, 2.2, 1.55, 4.45])[0]
    assert {round(result["system KTAU"], 12) for result in found} == {round(tau, 12)}


# -- Schedule --------------------------------------------------------------------------------------

def test_stages_have_equal_length_and_the_papers_learning_rates_and_loss_weights():
    first, second, third = train.STAGES
    assert [stage.name for stage in train.STAGES] == ["classification", "joint", "mos"]
    assert [stage.steps for stage in train.STAGES] == [200] * 3  # These are ours.
    assert "0 means 200." in train.Config.__dataclass_fields__["steps"].metadata["help"]
    assert second.lr == first.lr  # The paper has none for stage 2.
    assert (first.lr, first.alpha_start, first.alpha_end) == (1e-4, 0, 0)
    assert (second.alpha_start, second.alpha_end) == (0.3, 0.7)
    assert (third.lr, third.alpha_start, third.alpha_end) == (1e-5, 0.9, 0.9)
    assert train.CLIP_NORM == 1.0


def test_learning_rate_is_that_of_torchs_cosine_annealing():
    optimiser = torch.optim.AdamW([torch.zeros(1, requires_grad=True)], lr=0.3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, T_max=10)
    for step in range(10):
        assert train.learning_rate(step, 10, 0.3) == pytest.approx(optimiser.param_groups[0]["lr"])
        optimiser.step()
        schedule.step()
    assert train.learning_rate(10, 10, 0.3) == pytest.approx(0)


def test_alpha_rises_linearly_from_its_start_to_its_end():
    ramp = [train.alpha_at(step, 5, 0.3, 0.7) for step in range(5)]
    assert ramp == pytest.approx([0.3, 0.4, 0.5, 0.6, 0.7])
    assert train.alpha_at(0, 1, 0.9, 0.9) == 0.9


# -- Backbone --------------------------------------------------------------------------------------

class Noisy(moemos.LogMel):
    def __init__(self, weight):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.tensor(weight))

    def extract_features(self, waveforms):
        layers, _ = super().extract_features(waveforms)
        noisy = torch.nn.functional.dropout(torch.stack(layers), 0.5, self.training)
        return list(self.weight * noisy), None


def test_a_backbone_is_frozen_and_in_evaluation_mode_even_if_its_network_was_in_training_mode():
    backbone, waveform = moemos.Backbone("x", Noisy(1.0).train(), 16000), torch.randn(8000)
    assert torch.equal(backbone.extract(waveform), backbone.extract(waveform))
    assert not backbone.network.weight.requires_grad
    assert not isinstance(backbone, torch.nn.Module)


class Named(moemos.LogMel):
    """Has a weight under a name, and a setting that is not a weight."""
    def __init__(self, name, weight=1.0, setting=1.0, dtype=torch.float32):
        super().__init__()
        self.setting = setting
        self.register_parameter(name, torch.nn.Parameter(torch.tensor([weight, 2.0], dtype=dtype)))

    def extract_features(self, waveforms):
        layers, _ = super().extract_features(waveforms)
        return [self.setting * layer for layer in layers], None


def identity(*words, **options):
    return moemos.Backbone("x", Named(*words, **options), 16000).identity


def test_the_identity_changes_with_weights_their_names_or_features_but_not_with_rounding():
    assert identity("a") == identity("a") != identity("b")
    assert identity("a") != identity("a", weight=1.0 + 2 ** -23)  # This is the next larger float32.
    assert identity("a") == identity("a", setting=1.0 + 1e-6)  # Machines differ by as much.
    assert len({identity("a", setting=setting) for setting in (-1.0, 0.5, 1.0, 2.0)}) == 4
    swapped = Named("a")
    swapped.extract_features = lambda waveforms: (Named("a").extract_features(waveforms)[0][::-1],)
    assert moemos.Backbone("x", swapped, 16000).identity != identity("a")


def test_the_identity_of_logmel_ignores_the_last_bits_of_its_filters_but_no_larger_change(
        monkeypatch):
    usual, filters = moemos.load_backbone("logmel"), torchaudio.functional.melscale_fbanks
    for change, same in ((lambda bands: bands * (1 + 2 ** -22), True),
                         (lambda bands: bands.flip(1), False), (lambda bands: 4 * bands, False)):
        monkeypatch.setattr(torchaudio.functional, "melscale_fbanks",
                            lambda *words, change=change: change(filters(*words)))
        changed = moemos.load_backbone("logmel")
        assert not torch.equal(changed.network.mel.mel_scale.fb, usual.network.mel.mel_scale.fb)
        assert (changed.identity == usual.identity) == same


def test_the_identity_distinguishes_bfloat16_weights_although_numpy_lacks_this_type():
    half = [identity("a", weight=weight, dtype=torch.bfloat16) for weight in (1.0, 1.0, 1.0078125)]
    assert half[0] == half[1] != half[2]


def test_wav2vec2_base_is_loaded_frozen_from_the_hub_folder(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    network = hub_with_base_weights(tmp_path)
    backbone = data.open_backbone(device="cpu")  # The default is a wav2vec2.
    assert (backbone.name, backbone.layers, backbone.width) == ("WAV2VEC2_BASE", 12, 768)
    assert backbone.sample_rate == 16000
    waveform = torch.randn(8000)
    frames = backbone.extract(waveform)
    assert tuple(frames.shape) == (12, 24, 768)
    with torch.no_grad():
        assert torch.equal(frames, torch.cat(network.extract_features(waveform[None])[0]))
    assert not any(p.requires_grad for p in backbone.network.parameters())


def test_logmel_has_two_layers_the_spectrum_and_its_change_and_does_not_depend_on_the_level():
    backbone = moemos.load_backbone("logmel")
    assert (backbone.layers, backbone.width, backbone.sample_rate) == (2, 80, 16000)
    rng = np.random.default_rng(0)
    noise = torch.from_numpy(0.1 * rng.normal(size=16000)).float()
    frames = backbone.extract(noise)
    assert frames.shape == (2, 101, 80)
    for hz, band in ((440, 15), (4000, 60), (7000, 76)):
        wave = torch.sin(2 * math.pi * hz * torch.arange(16000) / 16000)
        assert backbone.extract(wave)[0].mean(0).argmax() == band
    delta = torchaudio.functional.compute_deltas(frames[:1].transpose(1, 2))
    torch.testing.assert_close(frames[1], delta[0].T.abs())
    for gain in (0.1, 2.0):
        torch.testing.assert_close(backbone.extract(gain * noise), frames, rtol=0, atol=1e-4)
    silent = backbone.extract(torch.zeros(400))
    torch.testing.assert_close(silent[0], torch.full_like(silent[0], math.log(1e-3)))
    for wrong in (torch.zeros(399), torch.zeros(2, 16000)):
        with pytest.raises(ValueError, match="a waveform is .* 25 ms or more"):
            backbone.extract(wrong)


def test_if_weights_are_missing_the_default_backbone_becomes_logmel_but_a_named_one_fails(
        tmp_path, monkeypatch, capsys):
    def refuse(*words, **options):
        raise OSError("no network in tests")
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr(torch.hub, "download_url_to_file", refuse)
    assert data.open_backbone(device="cpu").name == "logmel"
    warning = capsys.readouterr().err
    assert "WARNING" in warning and "NOT those of the paper" in warning
    weights = tmp_path / "checkpoints" / torchaudio.pipelines.WAV2VEC2_BASE._path
    with pytest.raises(data.InputError) as caught:
        data.open_backbone("WAV2VEC2_BASE", "cpu")
    missing = f"{weights}: these weights are missing (no network in tests); put them there"
    assert str(caught.value) == missing
    for open_backbone in (data.open_backbone, moemos.load_backbone):
        why = (r"no backbone 'WAV2VEC3' \(No module named 'WAV2VEC3'\); choose logmel, a Wav2Vec2B"
               r"undle .* or a module that has load\(\), beside train.py or on PYTHONPATH$")
        with pytest.raises(ValueError, match=why):
            open_backbone("WAV2VEC3", "cpu")


@pytest.mark.parametrize("damage", [
    lambda content: b"", lambda content: content[:-1000], lambda content: content[:1000],
    lambda content: content[:-2000], lambda content: b"<!DOCTYPE html><html></html>"])
def test_a_broken_download_raises_an_error_that_names_it_instead_of_falling_back_to_logmel(
        tmp_path, monkeypatch, capsys, damage):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    weights = tmp_path / "checkpoints" / torchaudio.pipelines.WAV2VEC2_BASE._path
    weights.parent.mkdir()
    content = io.BytesIO()
    torch.save({"a": torch.zeros(1000)}, content)
    weights.write_bytes(damage(content.getvalue()))
    for name in ("", "WAV2VEC2_BASE"):
        with pytest.raises(data.InputError) as caught:
            data.open_backbone(name, "cpu")
        assert str(caught.value) == f"{weights}: holds no weights; delete it and start again"
    assert capsys.readouterr().err == ""


def test_running_out_of_memory_is_not_mistaken_for_a_damaged_file_of_weights(monkeypatch):
    def too_many(*words, **options):
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory")
    monkeypatch.setattr(moemos, "load_backbone", too_many)
    with pytest.raises(RuntimeError, match="can't allocate memory"):
        data.open_backbone("WAV2VEC2_BASE", "cpu")


class Surprise:
    """Whoever unpickles this writes a file."""
    def __reduce__(self):
        return Path.write_text, (Path("surprise"), "")


def test_code_hidden_in_weights_is_not_run_and_a_download_is_announced_on_standard_error(
        tmp_path, monkeypatch, capsys):
    weights = tmp_path / "checkpoints" / torchaudio.pipelines.WAV2VEC2_BASE._path
    weights.parent.mkdir()
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.chdir(tmp_path)

    def plant(url, path, *rest, **options):
        torch.save({"model": Surprise()}, path)
    monkeypatch.setattr(torch.hub, "download_url_to_file", plant)
    for _ in range(2):  # The first time it is downloaded, the second time it lies there.
        with pytest.raises(data.InputError, match="holds no weights") as caught:
            data.open_backbone("WAV2VEC2_BASE", "cpu")
        assert "weights_only" not in str(caught.value)
    assert weights.exists() and not (tmp_path / "surprise").exists()
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("Downloading: ")


OWN_BACKBONE = """
import torch
class Network(torch.nn.Module):
    def extract_features(self, waveforms):
        frames = waveforms[:, :waveforms.shape[1] // 8 * 8].reshape(1, -1, 8)
        return LAYERS, None
def load():
    return Network(), 8000
"""


@pytest.fixture
def own_backbone(tmp_path, monkeypatch):
    """Gives a function that writes a module with a backbone -> its name. After the test no such
    module stays imported."""
    monkeypatch.syspath_prepend(tmp_path)
    # Stored bytecode would be taken for that of another source of the same length and second.
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    names = []

    def write(layers="[frames, 2 * frames]", source=OWN_BACKBONE):
        name = f"own_backbone_{len(names)}"
        names.append(name)
        (tmp_path / f"{name}.py").write_text(source.replace("LAYERS", layers))
        return name
    yield write
    for name in names:
        sys.modules.pop(name, None)


def test_your_own_module_can_be_the_backbone_and_is_imported_only_if_you_name_it(
        small, tmp_path, own_backbone, monkeypatch, capsys):
    name = own_backbone()
    backbone = moemos.load_backbone(name)
    assert (backbone.layers, backbone.width, backbone.sample_rate) == (2, 8, 8000)
    train.train(quick(small, tmp_path, backbone=name))
    run = tmp_path / "run"
    result = evaluate.evaluate(run, "cpu", backbone=name)
    assert result["backbone"]["name"] == name
    assert call(monkeypatch, evaluate, run, "--backbone", name, "--wav", small / "1.wav") == 0
    sys.modules.pop(name)
    capsys.readouterr()
    for words in ([run], [run, "--backbone", "logmel"], [run, "--wav", small / "1.wav"]):
        assert call(monkeypatch, evaluate, *words) == 2
        message = f"{run} was trained on backbone '{name}': give it as --backbone\n"
        assert capsys.readouterr().err == f"evaluate.py: {message}"
    assert name not in sys.modules


WITHOUT_NONE = OWN_BACKBONE.replace("LAYERS, None", "LAYERS")
AT_A_RATE = OWN_BACKBONE.replace("8000", "LAYERS")


@pytest.mark.parametrize(("layers", "source", "why"), [
    ("[frames[0]]", OWN_BACKBONE, r"one shape \(1, F, D\) .*; it gave \[\(1000, 8\)\]"),
    ("[frames, frames[:, 1:]]", OWN_BACKBONE, r"all layers of one shape"),
    ("[]", OWN_BACKBONE, r"one shape \(1, F, D\)"),
    ("[frames, frames]", WITHOUT_NONE, r"\(list of layers, None\), .*; it gave \[\(1000, 8\)\]"),
    ("(frames, frames)", WITHOUT_NONE, r"\(list of layers, None\), .*; it gave \[\(1000, 8\)\]"),
    ("frames", WITHOUT_NONE, r"one shape \(1, F, D\)"),
    ("frames", OWN_BACKBONE, r"one shape \(1, F, D\)"),
    ("[torch.cat([frames, frames])]", OWN_BACKBONE, r"\(1, F, D\) .*; it gave \[\(2, 1000, 8\)\]"),
    ("[frames[:, :0]]", OWN_BACKBONE, r"none empty; it gave \[\(1, 0, 8\)\]"),
    ("[frames[:, :, :0]]", OWN_BACKBONE, r"none empty; it gave \[\(1, 1000, 0\)\]"),
    ("[frames / 0]", OWN_BACKBONE, "are not finite"), ("", "x = 1", "has no attribute 'load'"),
    ("", "def load():\n    return 1, 2", "must give a torch module and its rate in whole Hz"),
    *[(rate, AT_A_RATE, "rate in whole Hz") for rate in ("0", "-8000", "8e3", "'8000'", "None")],
    ("", "import no_such_package", "No module named 'no_such_package'"),
    ("", "raise SystemExit", "ends the program"), ("", "exit(0)", "ends the program"),
    ("", "def load():\n    exit(1)", "ends the program"),
    ("exit()", OWN_BACKBONE, "ends the program")])
def test_a_module_that_is_no_backbone_is_refused_with_a_sentence_that_says_why(
        own_backbone, layers, source, why):
    name = own_backbone(layers, source)
    with pytest.raises(data.InputError, match=f"{name}.*{why}"):
        data.open_backbone(name, "cpu")


@pytest.mark.parametrize("load", ["import torch\ndef load():\n    return torch.nn.Identity(), 8000",
                                  "import HELPER\ndef load():\n    return HELPER.load()"])
def test_a_module_whose_source_is_missing_is_refused_with_a_sentence_that_says_so(
        own_backbone, tmp_path, load):
    """Only the bytecode is left of the module, or of the one that defines the network's class."""
    helper = own_backbone()
    name = own_backbone(source=load.replace("HELPER", helper))
    bare = helper if "import torch" not in load else name
    py_compile.compile(tmp_path / f"{bare}.py", tmp_path / f"{bare}.pyc")
    (tmp_path / f"{bare}.py").unlink()
    with pytest.raises(data.InputError, match=f"the .py file of {name} is missing; put it where"):
        data.open_backbone(name, "cpu")


@pytest.mark.parametrize("name", [".x", "..", "../x", "./x"])
def test_a_relative_path_is_not_accepted_as_the_name_of_a_backbone(name):
    with pytest.raises(data.InputError, match="there is no backbone"):
        data.open_backbone(name, "cpu")


MINE = """
import HELPER
def load():
    return HELPER.Network(2.0), 8000
"""
HELPER = """
import torch
import MORE
class Network(torch.nn.Module):
    def __init__(self, factor):
        super().__init__()
        self.factor = factor
    def extract_features(self, waveforms):
        frames = waveforms[:, :waveforms.shape[1] // 8 * 8].reshape(1, -1, 8)
        return [MORE.louder(self.factor * frames)], None
"""
MORE = "def louder(frames):\n    return 1 * frames\n"


def test_if_the_code_of_a_backbone_changes_the_cache_key_changes_and_the_old_run_is_refused(
        small, tmp_path, own_backbone):
    """The module gets its network from a helper module, which calls a function of a third one. No
    weights are changed, as there are none. In the first two modules every change of the text
    counts, in the third one only what changes the features."""
    more = own_backbone(source=MORE)
    helper = own_backbone(source=HELPER.replace("MORE", more))
    name = own_backbone(source=MINE.replace("HELPER", helper))
    train.train(quick(small, tmp_path, backbone=name))
    keys = {data.cache_key(evaluate.load_run(tmp_path / "run", "cpu", name).backbone)}
    for module, old, new in ((name, "2.0", "2.001"), (name, "8000", "8000  # A comment counts."),
                             (helper, "frames = ", "some = frames = "), (more, "1 *", "3 *"),
                             (more, "3 * frames", "frames.abs()")):
        path = tmp_path / f"{module}.py"
        source = path.read_text()
        assert old in source
        path.write_text(source.replace(old, new))
        for imported in (name, helper, more):
            sys.modules.pop(imported)
        importlib.invalidate_caches()
        with pytest.raises(data.InputError, match="with other weights or code than the one here"):
            evaluate.load_run(tmp_path / "run", "cpu", name)
        keys.add(data.cache_key(moemos.load_backbone(name)))
    assert len(keys) == 6


def test_what_your_own_module_prints_goes_to_standard_error_and_not_into_the_scores(
        small, tmp_path, own_backbone, monkeypatch, capsys):
    source = OWN_BACKBONE.replace("def load():", "print('import')\ndef load():\n    print('load')")
    name = own_backbone("[(print('extract'), frames)[1]]", source)
    moemos.load_backbone(name)
    assert capsys.readouterr() == ("", "import\nload\nextract\n")
    train.train(quick(small, tmp_path, backbone=name))
    capsys.readouterr()
    words = (tmp_path / "run", "--backbone", name, "--wav", small / "1.wav")
    assert call(monkeypatch, evaluate, *words) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "wav,mos" and len(lines) == 2
    assert lines[1].startswith(f"{small / '1.wav'},")


def test_a_clip_for_which_the_backbone_gives_no_frames_is_refused_and_named(own_backbone, tmp_path):
    wavfile.write(tmp_path / "a.wav", 8000, tone(8000, 0.1).astype(np.float32))
    backbone = moemos.load_backbone(own_backbone("[frames[:, 200:]]"))
    clip = data.Clip("a.wav", tmp_path / "a.wav", "train", "s", "m", "g")
    why = rf"^{tmp_path / 'a.wav'}: backbone .* none empty; it gave \[\(1, 0, 8\)\]$"
    with pytest.raises(data.InputError, match=why):
        data.extract_features([clip], backbone, tmp_path / "cache")


def test_a_clip_whose_score_is_infinite_is_skipped_and_reported(small, run, monkeypatch, capsys):
    def infinite(model, features):
        output = PREDICT(model, features)
        return output._replace(mos=output.mos * math.inf)
    monkeypatch.setattr(evaluate, "predict", infinite)
    assert call(monkeypatch, evaluate, run, "--wav", small / "40.wav") == 1
    out, err = capsys.readouterr()
    assert out == "wav,mos\n"
    assert f"40.wav: {run} gives it no finite score" in err


@pytest.mark.parametrize("cells", ["a\0.wav,train,s,m,,4", '"a\r.wav",train,s,m,,4',
                                   '"a.wav",train,"s\r0",m,,4'])
def test_a_cell_with_a_null_character_or_a_carriage_return_is_refused(tmp_path, cells):
    refused = "no cell may hold a NUL or a CR|line contains NUL"  # The latter is from Python 3.10.
    with pytest.raises(data.InputError, match=refused):
        data.read_ratings(manifest(tmp_path, [cells]))


def test_a_clip_so_faint_that_float32_rounds_it_to_silence_causes_a_warning(tmp_path, capsys):
    wavfile.write(tmp_path / "a.wav", 16000, np.full(8000, 1e-300))
    data.check_clip(tmp_path / "a.wav", 60)
    assert "is all digital silence" in capsys.readouterr().err


@pytest.mark.parametrize("classes", [{"m0"}, {"m0": 0}, b"m0", "m0", [1], [None]])
def test_a_run_whose_classes_are_not_a_list_of_names_is_refused(run, classes):
    edit(run, lambda saved: saved.update(classes=classes))
    with pytest.raises(data.InputError, match="is damaged or of another version"):
        evaluate.read_checkpoint(run)


def test_checking_that_a_folder_is_writable_leaves_its_files_as_they_were(tmp_path):
    (tmp_path / ".writable").write_text("mine")
    data.check_writable(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [".writable"]
    assert (tmp_path / ".writable").read_text() == "mine"


def test_random_weights_of_your_own_module_are_always_the_same_and_do_not_reseed_torch(
        own_backbone):
    """A checkpoint may lack weights, which a library then draws at random."""
    source = OWN_BACKBONE.replace("    return Network(), 8000", """
    network = Network()
    network.drawn = torch.nn.Linear(3, 3)
    return network, 8000""")
    name = own_backbone("[frames]", source)
    identities = set()
    for seed in range(2):
        torch.manual_seed(seed)
        state = torch.get_rng_state()
        identities.add(moemos.load_backbone(name).identity)
        assert torch.equal(torch.get_rng_state(), state)
    assert len(identities) == 1


def test_an_error_inside_your_own_module_is_raised_unchanged(own_backbone):
    name = own_backbone("", "def load():\n    open('nowhere')")
    with pytest.raises(FileNotFoundError, match="nowhere"):
        data.open_backbone(name, "cpu")


def test_the_guides_wav2vec2_of_hugging_face_is_a_backbone_that_ignores_the_level(
        own_backbone, monkeypatch):
    """The lines are run as they are, but a small random model replaces the pretrained one."""
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    blocks = re.findall(r"(?:^    .*\n(?:^\n(?=    ))*)+",
                        (HERE / "corpora" / "README.md").read_text(), re.MULTILINE)
    (block,) = [block for block in blocks if "Network.from_pretrained(" in block]
    config = transformers.Wav2Vec2Config(
        hidden_size=16, num_hidden_layers=3, num_attention_heads=2, intermediate_size=16,
        conv_dim=(8,), conv_stride=(320,), conv_kernel=(400,), num_feat_extract_layers=1,
        num_conv_pos_embeddings=4, num_conv_pos_embedding_groups=2)
    monkeypatch.setattr(transformers.Wav2Vec2Model, "from_pretrained",
                        classmethod(lambda cls, name: cls(config)))
    name = own_backbone("", re.sub(r"^    ", "", block, flags=re.MULTILINE))
    backbone = data.open_backbone(name, "cpu")
    assert (backbone.layers, backbone.width, backbone.sample_rate) == (3, 16, 16000)
    waveform = torch.randn(8000)
    normal = (waveform - waveform.mean()) / waveform.std(correction=0)
    hidden = backbone.network(normal[None], output_hidden_states=True).hidden_states
    for level in (1.0, 0.01):
        torch.testing.assert_close(backbone.extract(level * waveform), torch.cat(hidden[1:]),
                                   rtol=1e-3, atol=1e-3)


def test_a_stalled_download_is_given_up(tmp_path, monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as server:  # It accepts but never answers.
        url = f"http://127.0.0.1:{server.getsockname()[1]}/weights"
        monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
        monkeypatch.setattr(torch.hub, "download_url_to_file",
                            lambda _, *rest, **options: DOWNLOAD(url, *rest, **options))
        monkeypatch.setattr(data, "STALL_SECONDS", 0.3)
        with pytest.raises(data.InputError, match="timed out"):
            data.open_backbone("WAV2VEC2_BASE", "cpu")
    assert socket.getdefaulttimeout() is None


def test_the_default_device_is_an_accelerator_or_else_the_cpu_and_an_unusable_one_is_refused(
        monkeypatch):
    for accelerator, taken in ((None, "cpu"), (torch.device("cpu", 1), "cpu:1")):
        monkeypatch.setattr(torch.accelerator, "current_accelerator",
                            lambda check_available, accelerator=accelerator: accelerator)
        assert data.pick_device() == torch.device(taken)
    for unusable in ("meta", "cuda:99"):  # The first exists, but holds no numbers.
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


def test_read_wav_averages_the_channels_keeps_the_level_and_reads_24_bits(tmp_path):
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
    (header(1, 16000)[:-1000], "not a whole WAV"), (header(1, 16000)[:44], "not a whole WAV"),
    (np.zeros(0, np.int16), "0 samples of 16 bits in format 1"), (header(0, 16000), "0 samples"),
    (header(1, 0), "at 0 Hz; .* a rate up to"), (header(1, 768001), "at 768001 Hz; .* up to 768"),
    (np.zeros(399, np.int16), "24.9 ms long, silence at its ends not counted; .* needs 25 ms"),
    (np.full(8000, np.nan, np.float32), "NaN"), (np.full(8000, 1e7), "huge"),
    (np.full(8000, np.inf), "NaN, infinite or huge"),
    (np.zeros(8000, np.int64), "64 bits in format 1 at .*; save it as PCM of 8 to 32 bits")])
def test_read_wav_refuses_an_unusable_file_with_one_line_that_names_it_and_says_why(
        tmp_path, content, why):
    path = tmp_path / "bad.wav"
    if isinstance(content, np.ndarray):
        wavfile.write(path, 16000, content)
    elif content is not None:
        path.write_bytes(content)
    with pytest.raises(data.InputError, match=why) as caught:
        data.read_wav(path, 16000)
    assert str(caught.value).startswith(f"{path}: ") and "\n" not in str(caught.value)


def test_a_file_that_is_too_large_or_never_ends_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(data, "MAX_BYTES", 2 ** 20)
    long = tmp_path / "long.wav"
    long.write_bytes(bytes(2 ** 20))
    assert len(data.read_bytes(long)) == 2 ** 20
    long.write_bytes(bytes(2 ** 20 + 1))
    for path in [long] + [Path("/dev/zero")] * Path("/dev/zero").exists():
        with pytest.raises(data.InputError, match=rf"^{path}: is above 1 MiB or never ends"):
            data.read_wav(path, 16000)


def test_a_silent_clip_causes_a_warning_and_a_clip_that_is_too_long_is_refused(tmp_path, capsys):
    wavfile.write(tmp_path / "a.wav", 8000, np.zeros(8000, np.int16))
    assert data.check_clip(tmp_path / "a.wav", 1.0) == 1.0
    warning = f"WARNING: {tmp_path / 'a.wav'} is all digital silence; its score says nothing\n"
    assert capsys.readouterr().err == warning
    why = "1.00 s long, above --max-seconds 0.9; cut it, or raise --max-seconds$"
    with pytest.raises(data.InputError, match=why):
        data.check_clip(tmp_path / "a.wav", 0.9)
    wavfile.write(tmp_path / "a.wav", 8000, tone(8000))
    assert data.check_clip(tmp_path / "a.wav", 1.0) == 0.5
    assert capsys.readouterr().err == ""


def test_find_wavs_searches_subfolders_but_neither_hidden_ones_nor_links_to_folders(
        tmp_path, capsys):
    lay_out(tmp_path, {"clips[1]/notes.txt": ""}, ["clips[1]/a.wav", "clips[1]/tts/b.WAV"])
    (tmp_path / "clips[1]" / "broken.wav").symlink_to(tmp_path / "nowhere")
    found = data.find_wavs(tmp_path / "clips[1]")
    names = ("clips[1]/a.wav", "clips[1]/broken.wav", "clips[1]/tts/b.WAV")
    assert found == [tmp_path / name for name in names]
    assert data.find_wavs(found[0]) == data.find_wavs(tmp_path / "nowhere") == []
    lay_out(tmp_path, {}, ["round/x/c.wav", "round/.hidden/d.wav", "round/x/._c.wav"])
    (tmp_path / "round" / "x" / "back").symlink_to(tmp_path / "round")
    assert data.find_wavs(tmp_path / "round") == [tmp_path / "round" / "x" / "c.wav"]
    (tmp_path / "linked").symlink_to(tmp_path / "round")  # The named folder itself may be a link.
    assert data.find_wavs(tmp_path / "linked") == [tmp_path / "linked" / "x" / "c.wav"]
    assert capsys.readouterr().err == ""
    lay_out(tmp_path, {"round/d.flac": "", "round/x/e.MP3": "", "round/x/.f.mp3": ""}, [])
    assert data.find_wavs(str(tmp_path / "round")) == [tmp_path / "round" / "x" / "c.wav"]
    message = f"{tmp_path / 'round'}: 2 audio files that are not WAV are passed over\n"
    assert capsys.readouterr().err == message
    with pytest.raises(data.InputError, match="broken.wav: cannot be read"):
        data.read_wav(found[1], 16000)


def decode_by_hand(content):
    """Reads a WAV file by its chunks and one sample at a time -> (rate, (T, channels))."""
    order, at, name = ">" if content[:4] == b"RIFX" else "<", 12, b""
    while name != b"data":
        name, size = struct.unpack_from(f"{order}4sI", content, at)
        at += 8
        if name == b"fmt ":
            kind, channels, rate, bits = struct.unpack_from(f"{order}HHI6xH", content, at)
            if kind == 0xFFFE:  # In the extensible form the subformat has the kind.
                kind, = struct.unpack_from(f"{order}H", content, at + 24)
        if name != b"data":
            at += size + size % 2
    width = (bits + 7) // 8
    block = width * channels
    size = min(size, len(content) - at) // block * block  # RF64 states 2^32 - 1.
    if kind == 3:
        values = np.frombuffer(content, f"{order}f{width}", size // width, at).astype(float)
        return rate, values.reshape(-1, channels)
    endian = "big" if order == ">" else "little"
    values = np.array([int.from_bytes(content[i:i + width], endian, signed=width > 1)
                       for i in range(at, at + size, width)], float)
    values = (values - 128) / 128 if width == 1 else values / 2 ** (8 * width - 1)
    return rate, values.reshape(-1, channels)


REFUSED = {"early-eof": "not a whole WAV file", "incomplete-chunk": "not a whole WAV file",
           "ulaw": "in format 7", "36bit": "of 36 bits", "45bit": "of 45 bits",
           "53bit": "of 53 bits", "5S-64bit": "of 64 bits"}


@pytest.mark.skipif(not FORMATS.is_dir(), reason="audio_formats does not lie beside the checkout")
def test_every_wav_format_agrees_with_a_decoder_written_by_hand_or_is_refused_with_a_reason(
        monkeypatch):
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
            patch.setattr(moemos, "MIN_SECONDS", 0)  # Most of these files are shorter.
            patch.setattr(data, "cut_silence", lambda mono, rate: mono)
            np.testing.assert_allclose(data.read_wav(path, 16000), expected, atol=1e-6)


@pytest.mark.parametrize(("riff", "length"), [
    (0xFFFFFFFF, 0xFFFFFFFF), (0x7FFFFFFF, 0x7FFFFFFF), (0, 0), (36, 0), (0x7FFFF024, 0x7FFFF000),
    (0xFFFFFFFF, 0xFFFFFFDB), (0, 16000), (0xFFFFFFFF, 16000)])
def test_a_wav_written_to_a_pipe_is_read_to_its_end_although_its_stated_length_is_wrong(
        tmp_path, riff, length):
    samples = (1e4 * tone(16000)).astype("<i2").tobytes()
    right = header(1, 16000, samples=samples)
    listed = right[:36] + struct.pack("<4sI4s", b"LIST", 4, b"INFO") + right[36:]  # as by ffmpeg
    for content in (right, listed):
        at = content.index(b"data")
        piped = b"".join([content[:4], struct.pack("<I", riff), content[8:at + 4],
                          struct.pack("<I", length), content[at + 8:]])
        for rest in (b"", b"\x01"):  # The latter is half a sample, where the pipe broke.
            (tmp_path / "a.wav").write_bytes(piped + rest)
            found = data.read_wav(tmp_path / "a.wav", 16000)
            assert torch.equal(found, data.read_wav(tmp_path / "b.wav", 16000, right))
    with pytest.raises(data.InputError, match="not a whole WAV file"):
        data.read_wav(tmp_path / "a.wav", 16000, right[:-100])  # The file is too short.
    unset = right[:4] + struct.pack("<I", 0) + right[8:-100]
    with pytest.raises(data.InputError, match="not a whole WAV file"):
        data.read_wav(tmp_path / "a.wav", 16000, unset)


@pytest.mark.parametrize("more", [8, 36, 44])
def test_a_wav_is_read_even_if_its_header_states_a_wrong_length_of_the_whole_file(tmp_path, more):
    right = header(1, 16000, samples=(1e4 * tone(16000)).astype("<i2").tobytes())
    listed = right + struct.pack("<4sI4s", b"LIST", 4, b"INFO")
    expected = data.read_wav("", 16000, right)
    for content in (right, listed):
        for riff in (len(content) - 8 + more, 12, len(content) - 8):
            wrong = content[:4] + struct.pack("<I", riff) + content[8:]
            assert torch.equal(data.read_wav("", 16000, wrong), expected)
            with pytest.raises(data.InputError, match="not a whole WAV file"):
                data.read_wav("", 16000, wrong[:len(right) - 1])
    sizes = struct.pack("<4sIQQQ", b"ds64", 24, len(right) + 4068, len(right) - 44, 0)
    long = b"RF64\xff\xff\xff\xffWAVE" + sizes + right[12:40] + b"\xff\xff\xff\xff" + right[44:]
    for behind in (b"", struct.pack("<4sI", b"LIST", 4000) + bytes(range(250)) * 16):
        assert torch.equal(data.read_wav("", 16000, long + behind), expected)
    empty = header(1, 16000, samples=b"") + struct.pack("<4sI", b"LIST", 8000) + bytes(8000)
    empty = empty[:4] + struct.pack("<I", len(empty) - 8) + empty[8:]
    with pytest.raises(data.InputError, match="0 samples"):  # LIST holds no samples.
        data.read_wav("", 16000, empty)


def test_if_a_header_contradicts_itself_the_bits_per_sample_decide_but_24_may_take_4_bytes():
    values = np.rint(2 ** 15 * tone(16000)).astype("<i2")
    expected = data.read_wav("", 16000, header(1, 16000, samples=values.tobytes()))
    for block, rate in ((4, 64000), (4, 32000), (1, 16000), (0, 0), (2, 7)):
        wrong = bytearray(header(1, 16000, samples=values.tobytes()))
        wrong[28:34] = struct.pack("<IH", rate, block)
        assert torch.equal(data.read_wav("", 16000, bytes(wrong)), expected)
    wide = bytearray(header(1, 16000, 4, (values.astype("<i4") << 16).tobytes()))
    wide[34:36] = struct.pack("<H", 24)
    assert torch.equal(data.read_wav("", 16000, bytes(wide)), expected)
    packed = b"".join(b"\0" + value.tobytes() for value in values)
    assert torch.equal(data.read_wav("", 16000, header(1, 16000, 3, packed)), expected)


OUR_WORDS = (r"a\.wav: (not a whole WAV file; save it again|\d+ samples of \d+ bits in format \d+ "
             r"at|holds NaN, infinite or huge|[\d.]+ ms long, silence)")


def test_every_damaged_wav_is_either_read_or_refused_with_one_of_our_own_sentences():
    whole = header(2, 16000, samples=bytes(range(256)) * 8)
    damaged = [whole[:end] for end in range(64)]
    damaged += [whole[:at] + bytes([value]) + whole[at + 1:] for at in range(44)
                for value in (0, 1, 3, 7, 24, 33, 128, 255)]
    refused = 0
    for content in damaged:
        try:
            data.decode("a.wav", content)
        except data.InputError as error:
            refused += 1
            assert re.match(OUR_WORDS, str(error))
    assert refused > 200


@pytest.mark.parametrize("rate", [8000, 11025, 16000, 22050, 22255, 24000, 32000, 44056, 44100,
                                  48000, 88200, 96000, 192000])
def test_a_usual_sampling_rate_is_resampled_by_the_exact_ratio_of_the_two_rates(rate):
    samples = np.random.default_rng(rate).normal(size=rate // 10).astype("<f4")
    content = io.BytesIO()
    wavfile.write(content, rate, samples)
    common = math.gcd(rate, 16000)
    expected = scipy.signal.resample_poly(samples.astype(float), 16000 // common, rate // common)
    assert np.array_equal(data.read_wav("", 16000, content.getvalue()), expected.astype("<f4"))


@pytest.mark.parametrize("rate", [767_999, 500_009])
def test_an_odd_sampling_rate_needs_no_huge_filter_and_a_tone_is_still_kept(monkeypatch, rate):
    resample, terms = scipy.signal.resample_poly, []

    def noting(samples, up, down):
        terms.append(max(up, down))
        return resample(samples, up, down)
    monkeypatch.setattr(scipy.signal, "resample_poly", noting)
    content = io.BytesIO()
    wavfile.write(content, rate, tone(rate).astype(np.float32))
    found = data.read_wav("", 16000, content.getvalue())
    assert terms[0] <= 100_000 and abs(len(found) - 8000) <= 1
    np.testing.assert_allclose(found[500:7500], tone(16000)[500:7500], atol=0.01)


def test_silence_is_cut_at_both_ends_of_a_clip_but_not_within_it(tmp_path):
    """A level 45 dB below the loudest 10 ms is 1 / 178 of their amplitude."""
    loud, soft, silent = tone(16000, 0.5), tone(16000, 0.1) / 100, tone(16000, 0.2) / 300
    clip = np.concatenate([silent, soft, loud, silent, np.zeros(3200), loud, silent])
    wavfile.write(tmp_path / "a.wav", 16000, clip.astype(np.float32))
    kept = data.read_wav(tmp_path / "a.wav", 16000)
    np.testing.assert_allclose(kept, clip[3200:-3200], atol=1e-6)
    assert data.check_clip(tmp_path / "a.wav", 60) == len(kept) / 16000
    short = np.concatenate([np.zeros(8000), tone(16000, 0.02), np.zeros(8000)])
    wavfile.write(tmp_path / "b.wav", 16000, short.astype(np.float32))
    with pytest.raises(data.InputError, match="b.wav: 20.0 ms long, silence at its ends not"):
        data.read_wav(tmp_path / "b.wav", 16000)


# -- ratings.csv -----------------------------------------------------------------------------------

def test_a_table_of_ratings_is_read_with_and_without_mos_model_and_group(tmp_path):
    rows = ["a.wav,train,s,0,4", "b.wav,test,s,,", "a.wav,train,s,1,5"]
    clips = data.read_ratings(manifest(tmp_path, rows, "wav,split,system,rater,score"))
    assert [(clip.wav, clip.split, clip.system, clip.model, clip.ratings) for clip in clips] == [
        ("a.wav", "train", "s", "s", {"0": 4, "1": 5}), ("b.wav", "test", "s", "s", {})]
    assert clips[0].mos == 4.5 and math.isnan(clips[1].mos)
    assert len({clip.group for clip in clips}) == 2  # Each clip is a group of its own.
    clips = data.read_ratings(manifest(tmp_path, ["a.wav,dev,s,,,2.5", "b.wav,dev,s,m,0,1"]))
    assert [(clip.model, clip.ratings) for clip in clips] == [("s", {"": 2.5}), ("m", {"0": 1})]
    rows = ["a.wav,train,s,ann,0,4", "b.wav,train,s,ann,0,4"]
    clips = data.read_ratings(manifest(tmp_path, rows, "wav,split,system,group,rater,score"))
    assert [(clip.model, clip.group) for clip in clips] == [("s", "ann")] * 2


def test_spaces_around_a_cell_or_a_column_name_are_ignored(tmp_path):
    rows = ["a.wav , train,s ,m , A1,4", "b.wav,train ,s, m,A1 , 5"]
    clips = data.read_ratings(manifest(tmp_path, rows, "wav, split,system ,model,rater,score"))
    assert [(clip.wav, clip.split, clip.system, clip.model, clip.ratings) for clip in clips] == [
        ("a.wav", "train", "s", "m", {"A1": 4}), ("b.wav", "train", "s", "m", {"A1": 5})]
    for rows, why in ((["a.wav,train,s,m,A1,4", "a.wav,train,s,m,A1 ,5"], "rater 'A1' has rated"),
                      ([" ,train,s,m,A1,4"], "need a value"),
                      (["a.wav,train,s,m,A1, "], "not a number")):
        with pytest.raises(data.InputError, match=why):
            data.read_ratings(manifest(tmp_path, rows))


def test_a_link_to_a_wav_or_another_spelling_of_its_path_means_the_same_clip(tmp_path):
    (tmp_path / "c.wav").symlink_to(tmp_path / "a.wav")
    rows = ["a.wav,train,s,m,0,4", "c.wav,train,s,m,1,5", "../NAME/a.wav,train,s,m,2,3"]
    rows = [row.replace("NAME", tmp_path.name) for row in rows]
    (clip,) = data.read_ratings(manifest(tmp_path, rows))
    assert (clip.wav, clip.mos) == ("a.wav", 4)
    with pytest.raises(data.InputError, match="row 3: a.wav has another split"):
        data.read_ratings(manifest(tmp_path, [rows[0], "c.wav,test,s,m,1,5"]))


@pytest.mark.parametrize(("groups", "folds"), [
    ("dacabdefg", [0, 0, 2, 0, 1, 0, 1, 2, 0]), ("aaaaaaa", [0, 1, 2, 0, 1, 2, 0])])
def test_folds_consist_of_whole_groups_in_order_of_name_or_of_clips_if_there_is_one_group(
        groups, folds):
    clips = [data.Clip("a.wav", None, "train", "s", "m", group) for group in groups]
    assert list(data.folds_of(clips, 3)) == folds


@pytest.mark.parametrize(("text", "warning"), [
    ("\ufeffwav,split,system,model,rater,score\r\n\"a,b é.wav\",train,s,m,0,4\r\n", ""),
    ("score,wav,split,system,rater,model\n4,\"a,b é.wav\",train,s,0,m\n", ""),
    ("wav,split,system,model,rater,score\n\n\"FOLDER/a,b é.wav\",train,s,m,0,4\n", ""),
    ("wav,split,system,model,age,rater,score\n\"a,b é.wav\",train,s,m,30,0,4\n",
     "columns that are ignored: 'age'\n")])
def test_a_table_may_have_a_bom_crlf_quotes_another_order_more_columns_or_absolute_paths(
        tmp_path, capsys, text, warning):
    wavfile.write(tmp_path / "a,b é.wav", 16000, tone(16000).astype(np.float32))
    (tmp_path / "ratings[1].csv").write_bytes(text.replace("FOLDER", str(tmp_path)).encode())
    (clip,) = data.read_ratings(tmp_path / "ratings[1].csv")
    assert (clip.path, clip.split, clip.system) == (tmp_path / "a,b é.wav", "train", "s")
    assert (clip.model, clip.ratings) == ("m", {"0": 4.0})
    assert capsys.readouterr().err == (warning and f"{tmp_path / 'ratings[1].csv'}: {warning}")


@pytest.mark.parametrize(("rows", "why"), [
    (b"", "first row must name wav,split"), (b"wav,score\na.wav,4\n", "first row must name"),
    (b"a.wav,train,s,m,0,4\n", "first row must name"),
    (b"wav,wav,split,system,model,rater,score\n", "first row must name"), ([], "no rows"),
    (b"\xff\xfe\x00", "not a CSV table in UTF-8"),
    (b'wav,split,system,model,rater,score\n"a.wav,train', "not a CSV table"),
    (["a.wav,train,s,m,0"], ", row 2: a row needs one value for each"),
    (["a.wav,train,s,m,0,4,4"], "one value for each"), ([",train,s,m,0,4"], "need a value"),
    (["a.wav,train,,m,0,4"], "need a value"), (["a.wav,valid,s,m,0,4"], "train, dev or test"),
    (["c.wav,train,s,m,0,4"], "is missing"),
    (["a.wav,train,s,m,0,4", "a.wav,test,s,m,1,4"], ", row 3: a.wav has another split"),
    (["a.wav,train,s,m,0,4", "a.wav,train,t,m,1,4"], "has another split, system"),
    (["a.wav,train,s,m,0,4", "a.wav,train,s,n,1,4"], "another split, system, model or group in an"),
    (["a.wav,train,s,m,0,4"] * 2, ", row 3: rater '0' has rated a.wav"),
    (["a.wav,train,s,m,,4", "./a.wav,train,s,m,,4"], "rater '' has rated a.wav"),
    (["a.wav,train,s,m,,5", "a.wav,train,s,m,0,1"], ", row 3: a.wav has both a mean "),
    (["a.wav,train,s,m,mean,5", "a.wav,train,s,m,,1"], ", row 3: a.wav has both a mean"),
    (["a.wav,train,s,m,0,good"], "not a number"), (["a.wav,train,s,m,0,"], "not a number"),
    (["a.wav,train,s,m,0,6"], "off the scale of 1 to 5"), (["a.wav,train,s,m,0,nan"], "off the")])
def test_a_bad_table_is_refused_with_a_sentence_that_names_the_file_and_says_why(
        tmp_path, rows, why):
    manifest(tmp_path, rows if isinstance(rows, list) else [])
    if isinstance(rows, bytes):
        (tmp_path / "ratings.csv").write_bytes(rows)
    with pytest.raises(data.InputError, match=why) as caught:
        data.read_ratings(tmp_path)
    assert str(caught.value).startswith(str(tmp_path / "ratings.csv"))


def test_reading_a_corpus_prints_one_line_of_counts_and_decodes_every_clip(tmp_path, capsys):
    rows = ["a.wav,train,s,m,0,4", "a.wav,train,s,m,1,5", "b.wav,test,t,m,,"]
    data.read_corpus(manifest(tmp_path, rows))
    assert capsys.readouterr().out == (
        f"{tmp_path}: train 1 clips, 2 ratings, 1 systems, 2 raters, 0 s; "
        "test 1 clips, 0 ratings, 1 systems, 0 raters, 1 s; ratings from 4 to 5\n")
    manifest(tmp_path, ["a.wav,train,s,m,,"])
    unrated = data.check_clips(data.read_ratings(tmp_path))
    assert unrated == "train 1 clips, 0 ratings, 1 systems, 0 raters, 0 s"
    manifest(tmp_path, rows)
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
    return data.read_ratings(manifest(folder, ["a.wav,train,s,m,0,4", "b.wav,train,s,m,0,4"]))


def test_each_clip_goes_through_the_backbone_only_once_and_alone_without_padding(tmp_path):
    clips, backbone, cache = two_clips(tmp_path), CountingBackbone(), tmp_path / "cache"
    first = data.extract_features(clips, backbone, cache)
    assert backbone.lengths == [8000, 9600]
    second = data.read_wav(clips[1].path, 16000)[:12].view(2, 2, 3)
    assert torch.equal(first[1], moemos.pool_statistics(second))
    assert torch.equal(data.extract_features(clips[::-1], backbone, cache).flip(0), first)
    assert len(backbone.lengths) == 2  # All came from the cache.
    assert len(list(cache.iterdir())) == 2


def test_a_damaged_or_outdated_entry_of_the_cache_is_computed_again(tmp_path, monkeypatch):
    """It is outdated if the clip, the weights, the sampling rate or the code has changed since."""
    clips, backbone, cache = two_clips(tmp_path), CountingBackbone(), tmp_path / "cache"
    first = data.extract_features(clips, backbone, cache)
    for damage in (lambda content: b"damaged" * 20,
                   lambda content: content[:-1] + bytes([content[-1] ^ 1]),
                   lambda content: data.with_digest(b"")):  # It is whole, but of another shape.
        entry = next(cache.iterdir())
        entry.write_bytes(damage(entry.read_bytes()))
        backbone.lengths.clear()
        assert torch.equal(data.extract_features(clips, backbone, cache), first)
        assert len(backbone.lengths) == 1

    def pool_statistics(frames):
        return frames.reshape(2, 6)

    def other_content():
        wavfile.write(clips[0].path, 16000, tone(16000, 0.7).astype(np.float32))
    for change, lengths in (
            (other_content, [11200]), (lambda: setattr(backbone, "identity", "y"), [11200, 9600]),
            (lambda: setattr(backbone, "sample_rate", 8000), [5600, 4800]),
            (lambda: monkeypatch.setattr(data, "SILENCE", 46.0), [5600, 4800]),
            (lambda: monkeypatch.setattr(moemos, "pool_statistics", pool_statistics),
             [5600, 4800])):
        change()
        backbone.lengths.clear()
        data.extract_features(clips, backbone, cache)
        assert backbone.lengths == lengths


def test_progress_is_shown_on_a_terminal_and_not_in_a_pipe(tmp_path, monkeypatch):
    for terminal in (True, False):
        screen = io.StringIO()
        screen.isatty = lambda terminal=terminal: terminal
        monkeypatch.setattr(sys, "stderr", screen)
        data.extract_features(two_clips(tmp_path), CountingBackbone(), tmp_path / "cache")
        shown = screen.getvalue()
        assert ("2/2 clips, 0 s left" in shown) if terminal else not shown


def test_an_unreadable_cache_entry_is_computed_again_and_a_complete_cache_is_not_written(
        tmp_path, monkeypatch):
    clips, backbone, cache = two_clips(tmp_path), CountingBackbone(), tmp_path / "cache"
    first = data.extract_features(clips, backbone, cache)
    read_bytes, refused = Path.read_bytes, next(cache.iterdir())

    def not_that_one(path):
        if path == refused:
            raise PermissionError(13, "Permission denied")
        return read_bytes(path)
    with monkeypatch.context() as patch:
        patch.setattr(Path, "read_bytes", not_that_one)
        backbone.lengths.clear()
        assert torch.equal(data.extract_features(clips, backbone, cache), first)
        assert len(backbone.lengths) == 1
    monkeypatch.setattr(data, "write_files", None)
    assert torch.equal(data.extract_features(clips, backbone, cache), first)


def test_extracting_features_fails_if_the_source_code_of_the_network_is_missing(
        tmp_path, monkeypatch):
    (tmp_path / "source.py").write_text("import moemos\nclass Network(moemos.LogMel):\n    pass\n")
    py_compile.compile(str(tmp_path / "source.py"), str(tmp_path / "compiled_alone.pyc"))
    monkeypatch.syspath_prepend(tmp_path)
    compiled = importlib.import_module("compiled_alone").Network
    backbone = moemos.Backbone("mine", compiled(), 16000)
    with pytest.raises(OSError, match="source"):
        data.extract_features(two_clips(tmp_path), backbone, tmp_path / "cache")


def test_features_that_are_not_finite_are_refused_with_a_sentence_that_names_the_clip(
        tmp_path, monkeypatch):
    monkeypatch.setattr(CountingBackbone, "extract", lambda *_: torch.full((2, 2, 3), np.inf))
    with pytest.raises(data.InputError, match="a.wav: too loud for counting, its features are not"):
        data.extract_features(two_clips(tmp_path), CountingBackbone(), tmp_path / "cache")
    assert not (tmp_path / "cache").exists()


def test_if_one_of_several_files_cannot_be_written_none_is_replaced_or_deleted(
        tmp_path, monkeypatch):
    old, new, gone = tmp_path / "old", tmp_path / "new", tmp_path / "outdated"
    data.write_files({old: b"good", gone: b"results"})
    new.mkdir()
    with pytest.raises(data.InputError, match="new: is a folder where a file is to be; rename it"):
        data.write_files({old: b"other", new: b"new"}, [gone])
    assert contents(tmp_path) == {old: b"good", gone: b"results"}
    new.rmdir()
    fill_disk(monkeypatch, "new")
    with pytest.raises(data.InputError, match=r"new: cannot be written \(No space left"):
        data.write_files({old: b"other", new: b"new"}, [gone])
    assert contents(tmp_path) == {old: b"good", gone: b"results"}


def contents(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def fill_disk(monkeypatch, name):
    """Makes the disk full while half of a file of that name is written."""
    write_bytes = Path.write_bytes

    def no_room(path, content):
        write_bytes(path, content[:len(content) // 2] if path.name.startswith(name) else content)
        if path.name.startswith(name):
            raise OSError(28, "No space left on device")
    monkeypatch.setattr(Path, "write_bytes", no_room)


# -- Training --------------------------------------------------------------------------------------

def edit(run, change):
    """Applies change to what a run's model.pt holds."""
    checkpoint = evaluate.read_checkpoint(run)
    change(checkpoint)
    write_checkpoint(run, checkpoint)


def write_checkpoint(run, checkpoint):
    """Writes a model.pt whose checksum is right, whatever it holds."""
    content = io.BytesIO()
    torch.save(checkpoint, content)
    (run / "model.pt").write_bytes(data.with_digest(content.getvalue()))


def test_the_same_seed_gives_the_same_bytes_and_another_seed_gives_others(small, tmp_path):
    runs = {}
    for name, seed in (("one", 1), ("two", 1), ("three", 2)):
        train.train(quick(small, tmp_path, seed=seed, out=str(tmp_path / name)))
        runs[name] = (tmp_path / name / "model.pt").read_bytes()
    assert runs["one"] == runs["two"] != runs["three"]


def test_a_run_stores_its_settings_as_plain_values_and_logs_every_loss_term_and_gate(run):
    assert sorted(path.name for path in run.iterdir()) == ["log.csv", "model.pt"]
    checkpoint = evaluate.read_checkpoint(run)
    assert list(checkpoint) == ["weights", "config", "stages", "classes", "backbone"]
    assert checkpoint["classes"] == ["m0", "m1", "x"]
    parts = {name.split(".")[0] for name in checkpoint["weights"]}
    assert parts == {"mean", "deviation", "penalty", "fusion", "moe", "mos_head", "class_head"}
    stages = ["classification", "joint", "mos"]
    assert [(stage["name"], stage["steps"]) for stage in checkpoint["stages"]] == [
        (name, 2) for name in stages]
    settings = json.loads(json.dumps(checkpoint["config"]))
    assert "out" not in settings  # A run has the same bytes in any folder.
    assert evaluate.evaluate(run, "cpu")["settings"]["steps"] == 2
    in_results = json.loads((run / "metrics.json").read_text())["settings"]
    assert in_results == settings | {"out": str(run)}
    log = table(run / "log.csv")
    assert [(row["stage"], row["step"]) for row in log] == list(zip(stages, "222"))
    assert list(log[0])[2:] == [
        "lr", "alpha", "mos", "classification", "diversity", "sparsity", "total", "grad_norm",
        "gate_entropy", "mean_gate_entropy", "gate_1", "gate_2", "gate_3", "gate_4"]
    gates = np.array([float(log[0][f"gate_{e}"]) for e in (1, 2, 3, 4)])
    assert float(log[0]["mean_gate_entropy"]) == pytest.approx(-(gates * np.log(gates)).sum())


def loop_stage(model, stage, clips):
    """Trains for one stage by the formulas of AdamW, with gradients clipped to a norm of 5 -> their
    norms before that."""
    parameters, norms = list(model.parameters()), []
    first, second = ([torch.zeros_like(p) for p in parameters] for _ in range(2))
    for step in range(stage.steps):
        rows = torch.randperm(10)[:5]
        alpha = stage.alpha_start + (stage.alpha_end - stage.alpha_start) * step / (stage.steps - 1)
        lr = stage.lr / 2 * (1 + math.cos(math.pi * step / stage.steps))
        output = model(clips.features[rows])
        total = (alpha * moemos.mos_loss(output.mos / model.deviation,
                                         clips.mos[rows] / model.deviation)
                 + (1 - alpha) * moemos.classification_loss(output.logits, clips.label[rows])
                 + 0.3 * moemos.diversity_loss(output.gates)
                 + 0.7 * moemos.sparsity_loss(output.gates))
        gradients = torch.autograd.grad(total, parameters)
        norms.append(math.sqrt(sum(g.square().sum().item() for g in gradients)))
        for p, g, m, v in zip(parameters, gradients, first, second):
            g = g * min(1.0, 5 / norms[-1])
            m.mul_(0.9).add_(0.1 * g)
            v.mul_(0.999).add_(0.001 * g * g)
            change = (m / (1 - 0.9 ** (step + 1))) / ((v / (1 - 0.999 ** (step + 1))).sqrt() + 1e-8)
            p.data -= lr * (0.01 * p.data + change)  # AdamW's weight decay
    return norms


def test_a_stage_trains_like_a_plain_loop_of_adamw_cosine_annealing_alpha_and_clipping(monkeypatch):
    """Each stage trains all weights, even the MOS head while alpha is 0, and starts AdamW anew."""
    monkeypatch.setattr(train, "CLIP_NORM", 5)
    monkeypatch.setattr(train, "LOG_STEPS", 3)
    config = train.Config(batch_size=5, lambda_1=0.3, lambda_2=0.7)
    torch.manual_seed(0)
    mos = torch.tensor([1.0, 5, 2, 4, nan] * 2).double()  # In float32 AdamW enlarges rounding.
    clips = train.Tensors(3 * torch.randn(10, 3, 10).double(), mos, torch.arange(10) % 3)
    model, loop = (some_output()[0].double() for _ in range(2))
    for one in (model, loop):
        one.deviation.fill_(1.5)
    stages = [train.Stage("classification", 2, 0.1, 0, 0), train.Stage("joint", 4, 0.05, 0.3, 0.7)]
    torch.manual_seed(1)
    rows = [list(train.run_stage(model, stage, config, clips)) for stage in stages]
    torch.manual_seed(1)
    norms = [loop_stage(loop, stage, clips) for stage in stages]
    assert min(norms[1]) < 5 < max(norms[1])
    for ours, theirs in zip(model.parameters(), loop.parameters()):
        torch.testing.assert_close(ours, theirs, atol=1e-7, rtol=1e-6)
    # A row of log.csv has the means over three steps, or over those that are left at the end.
    assert [row["step"] for row in rows[1]] == [3, 4]
    means = [np.mean(norms[1][:3]), norms[1][3]]
    assert [row["grad_norm"] for row in rows[1]] == pytest.approx(means, rel=1e-3)
    assert [row["alpha"] for row in rows[1]] == pytest.approx([0.3 + 0.8 / 3, 0.7])


def test_all_training_clips_are_trained_on_and_rated_dev_clips_only_appear_in_the_log(
        small, tmp_path, monkeypatch):
    rows = [{**row, "wav": str(small / row["wav"])} for row in table(small / "ratings.csv")]
    for row in rows:
        if int(Path(row["wav"]).stem) in (*range(8), 40):
            row["split"] = "dev"
    data.write_files({tmp_path / "ratings.csv": [COLUMNS, *(row.values() for row in rows)]})
    run_stage, seen = train.run_stage, []

    def watch(*stage):
        seen.append(stage)
        return run_stage(*stage)
    monkeypatch.setattr(train, "run_stage", watch)
    config = quick(tmp_path / "ratings.csv", tmp_path, steps=1)
    trained = train.train(config)
    clips = data.read_ratings(config.data)
    learned = [clip for clip in clips if clip.split == "train"]
    dev = [clip for clip in clips if clip.split == "dev" and clip.ratings]
    features, dev_features = (
        data.extract_features(some, moemos.load_backbone("logmel"), config.cache)
        for some in (learned, dev))
    mos = torch.tensor([clip.mos for clip in learned])
    assert (len(seen), len(learned), len(dev), int(mos.isnan().sum())) == (3, 24, 7, 6)
    for model, _, _, training, logged in seen:
        assert model is trained
        assert torch.equal(training.features, features)
        assert torch.equal(training.mos.nan_to_num(-1), mos.nan_to_num(-1))
        assert [("m0", "m1", "x")[i] for i in training.label] == [clip.model for clip in learned]
        assert torch.equal(logged.features, dev_features)
        assert logged.mos.tolist() == pytest.approx([clip.mos for clip in dev])
    assert trained.mean.item() == pytest.approx(mos.nanmean().item())
    torch.testing.assert_close(trained.fusion.mean, features.mean(0))
    last, predicted = table(tmp_path / "run" / "log.csv")[-1], trained.eval()(dev_features).mos
    expected = moemos.mse(predicted.tolist(), logged.mos.tolist())
    assert float(last["dev_mse"]) == pytest.approx(expected)
    assert evaluate.evaluate(tmp_path / "run")["clips"] == 15
    without_dev = [COLUMNS, *(row.values() for row in rows if row["split"] != "dev")]
    data.write_files({tmp_path / "ratings.csv": without_dev})
    again = train.train(config)  # Without the dev clips the weights are the same.
    torch.testing.assert_close(again.state_dict(), trained.state_dict(), rtol=0, atol=0)


class WithoutFloat64(torch.Tensor):
    """A tensor as on an accelerator that has float32 at most."""
    def double(self):
        raise TypeError("float64 is not supported")

    def cpu(self):
        return self.as_subclass(torch.Tensor)


def test_training_gives_the_same_run_on_an_accelerator_that_has_no_float64(
        small, tmp_path, monkeypatch):
    as_tensors, runs = train.as_tensors, []
    for kind in (torch.Tensor, WithoutFloat64):
        def of_kind(*words, kind=kind):
            clips, classes = as_tensors(*words)
            return train.Tensors(*(tensor.as_subclass(kind) for tensor in clips)), classes
        monkeypatch.setattr(train, "as_tensors", of_kind)
        train.train(quick(small, tmp_path))
        runs.append((tmp_path / "run" / "model.pt").read_bytes())
    assert runs[0] == runs[1]


def test_a_run_depends_neither_on_the_test_clips_nor_on_their_ratings(small, tmp_path):
    header, *rows = list(csv.reader((small / "ratings.csv").read_text().splitlines()))
    split, score = header.index("split"), header.index("score")
    rows = [[str(small / wav), *rest] for wav, *rest in rows]
    training = [row for row in rows if row[split] == "train"]
    rerated = [[*row[:score], 5 - int(row[score])] for row in rows if row[split] == "test"]
    runs = []
    for test in ([row for row in rows if row[split] == "test"], rerated, []):
        data.write_files({tmp_path / "ratings.csv": [header, *training, *test]})
        train.train(quick(tmp_path / "ratings.csv", tmp_path, steps=20))
        runs.append((tmp_path / "run" / "model.pt").read_bytes())
    assert runs[0] == runs[1] == runs[2]


def test_steps_run_in_training_mode_and_validation_in_evaluation_mode():
    model, _ = some_output()
    clips = train.Tensors(torch.randn(6, 3, 10), torch.arange(6.0), torch.arange(6) % 3)
    columns = train.validate(model.train(), clips)
    predicted = model.eval()(clips.features).mos.tolist()
    assert columns == {"dev_mse": pytest.approx(moemos.mse(predicted, clips.mos.tolist())),
                       "dev_lcc": pytest.approx(moemos.lcc(predicted, clips.mos.tolist()))}
    modes = []
    model.register_forward_hook(lambda model, *_: modes.append(model.training))
    stage = train.Stage("mos", 51, 0.1, 0.9, 0.9)
    list(train.run_stage(model, stage, train.Config(), clips, clips))
    assert modes == [True] * 50 + [False, True, False]


def test_training_stops_at_a_loss_or_gradient_that_is_not_finite_and_names_stage_and_step(
        small, tmp_path, monkeypatch):
    where = "stage classification, step 1"
    with pytest.raises(FloatingPointError, match=f"{where}.*grad_norm.*inf"):
        train.train(quick(small, tmp_path, lambda_1=1e30))
    monkeypatch.setattr(moemos, "sparsity_loss", lambda gates: gates.sum() * nan)
    with pytest.raises(FloatingPointError, match=f"{where}.*sparsity.*nan"):
        train.train(quick(small, tmp_path))
    assert not (tmp_path / "run" / "model.pt").exists()


@pytest.fixture
def evaluated(small, tmp_path, run):
    """Evaluates a run on its own corpus and on another, and adds a file that is not ours."""
    evaluate.evaluate(run)
    evaluate.evaluate(run, corpus=shutil.copytree(small, tmp_path / "other"))
    (run / "holiday.png").touch()
    return run


def test_training_again_removes_the_old_results_and_nothing_else(small, tmp_path, evaluated):
    train.train(quick(small, tmp_path, steps=1))
    (elsewhere,) = evaluated.glob("on_*")
    names = sorted(path.name for path in evaluated.iterdir())
    assert names == ["holiday.png", "log.csv", "model.pt", elsewhere.name]
    assert list(elsewhere.iterdir()) == []
    lay_out(tmp_path, {"mine/metrics.json": ""}, [])
    train.train(quick(small, tmp_path, steps=1, out=str(tmp_path / "mine")))
    assert (tmp_path / "mine" / "metrics.json").exists()  # No run wrote it.


def test_training_succeeds_even_if_another_process_has_already_deleted_the_old_results(
        small, tmp_path, run, monkeypatch):
    monkeypatch.setattr(train, "results_in", lambda run: [run / "metrics.json"])
    before = (run / "model.pt").read_bytes()
    train.train(quick(small, tmp_path, seed=1))
    assert (run / "model.pt").read_bytes() != before


def test_training_or_evaluation_that_fails_leaves_no_empty_folder(small, tmp_path, run):
    (tmp_path / "mine").mkdir()
    for out in ("a/b/c", "mine/d", "mine"):
        with pytest.raises(data.InputError, match="nowhere: cannot be read"):
            train.train(quick("nowhere", tmp_path, out=str(tmp_path / out)))
    edit(run, lambda saved: saved["weights"]["mos_head.bias"].fill_(3.4e38))
    shutil.copytree(small, tmp_path / "other")
    with pytest.raises(data.InputError, match="scores that are not finite"):
        evaluate.evaluate(run, "cpu", tmp_path / "other")
    assert {path for path in tmp_path.iterdir() if path.is_dir()} == {
        tmp_path / "mine", tmp_path / "other", run}
    assert [path.name for path in run.iterdir() if path.is_dir()] == []
    assert list((tmp_path / "mine").iterdir()) == []


def test_if_the_disk_is_full_the_old_run_stays_as_it_was(small, tmp_path, evaluated, monkeypatch):
    before = contents(evaluated)
    fill_disk(monkeypatch, "model.pt")
    with pytest.raises(data.InputError, match=r"model.pt: cannot be written \(No space left"):
        train.train(quick(small, tmp_path, seed=1))
    assert contents(evaluated) == before


def test_training_that_is_interrupted_never_leaves_old_results_beside_a_new_model(
        small, tmp_path, evaluated, monkeypatch):
    """It is stopped before each file that it writes, deletes or replaces: 11 times in all."""
    before, kept = contents(evaluated), shutil.copytree(evaluated, tmp_path / "kept")
    for stop in range(12):
        shutil.rmtree(evaluated)
        shutil.copytree(kept, evaluated)
        steps = iter(range(stop))
        with monkeypatch.context() as patch, contextlib.suppress(KeyboardInterrupt):
            for place, name in ((Path, "write_bytes"), (Path, "unlink"), (os, "replace")):
                patch.setattr(place, name, stop_without(steps, getattr(place, name)))
            train.train(quick(small, tmp_path, seed=1))
        after = contents(evaluated)
        is_new = after[evaluated / "model.pt"] != before[evaluated / "model.pt"]
        assert is_new == (stop == 11)
        assert stop > 5 or after.items() >= before.items()
        assert not (is_new and train.results_in(evaluated))


def stop_without(steps, function):
    """Gives the function, interrupted as soon as there is no step left."""
    def stopping(*words, **options):
        if next(steps, None) is None:
            raise KeyboardInterrupt
        return function(*words, **options)
    return stopping


@pytest.mark.parametrize("scale", [(0.0, 100.0), (0.0, 1e-3), (0.0, 1e-6)])
def test_ratings_on_another_scale_give_the_same_predictions_on_that_scale(small, tmp_path, scale):
    def mapped(score):
        return scale[0] + (scale[1] - scale[0]) * (score - 1) / 4  # 1 to 5 becomes the other scale.
    rows = [[str(small / row["wav"]), *list(row.values())[1:5],
             mapped(float(row["score"])) if row["score"] else ""]
            for row in table(small / "ratings.csv")]
    other = tmp_path / "other"
    data.write_files({other / "ratings.csv": [COLUMNS, *rows]})
    predicted = []
    for folder, limits in ((small, (1.0, 5.0)), (other, scale)):
        train.train(quick(folder, tmp_path, scale=limits, steps=20))
        result = evaluate.evaluate(tmp_path / "run", "cpu")
        rows = table(tmp_path / "run" / "predictions.csv")
        predicted.append(np.array([float(row["predicted"]) for row in rows]))
    np.testing.assert_allclose(predicted[1], mapped(predicted[0]), rtol=0, atol=0.005 * scale[1])
    assert np.ptp(predicted[1]) > 0.05 * scale[1]
    assert result["metrics"]["utterance MSE"] > 5e-4 * scale[1] ** 2  # In units of the scale.
    with pytest.raises(data.InputError, match="off the scale of 1 to 5"):
        data.read_ratings(other)


# -- Evaluation ------------------------------------------------------------------------------------

def flip_a_bit(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(("harm", "why"), [
    (lambda path: path.unlink(), r"model.pt cannot be read \(No such file or directory\); train"),
    (lambda path: (path.unlink(), path.mkdir()), r"model.pt cannot be read \(Is a directory\)"),
    (lambda path: path.write_bytes(path.read_bytes()[:5000]), "damaged"),
    (lambda path: path.write_bytes(b"text"), "damaged"), (flip_a_bit, "damaged"),
    (lambda path: write_checkpoint(path.parent, Surprise()), "damaged"),
    (lambda saved: saved["weights"]["mos_head.bias"].fill_(nan), "damaged"),
    (lambda saved: saved.pop("backbone"), "damaged"),
    (lambda saved: saved["config"].update(colour="red"), "damaged or of another version"),
    (lambda saved: saved["config"].update(scale=(5.0, 1.0)), "damaged"),
    (lambda saved: saved["config"].update(experts="4"), "damaged"),
    (lambda saved: saved["config"].update(max_seconds=nan), "damaged"),
    (lambda saved: saved["classes"].append("y"), "model.pt is of another version"),
    (lambda saved: saved["classes"].pop(), "model.pt is of another version"),
    (lambda saved: saved["weights"].pop("fusion.axes"), "model.pt is of another version"),
    (lambda saved: saved["weights"].update({"fusion.mean": torch.zeros(3, 160)}),
     "model.pt is of another version"),
    (lambda saved: saved["weights"]["mos_head.bias"].fill_(3.4e38), "scores that are not finite"),
    (lambda saved: saved["backbone"].update(name="WAV2VEC3"), "on backbone 'WAV2VEC3': give it as"),
    (lambda saved: saved["backbone"].update(identity="y"), "other weights or code than the")])
def test_a_run_that_is_damaged_outdated_or_of_another_backbone_is_refused_with_one_sentence(
        run, monkeypatch, harm, why):
    if "saved" in harm.__code__.co_varnames:
        edit(run, harm)
    else:
        harm(run / "model.pt")
    monkeypatch.chdir(run)
    with pytest.raises(data.InputError, match=why) as caught:
        evaluate.evaluate(run, "cpu")
    assert str(run) in str(caught.value) and "\n" not in str(caught.value)
    assert not (run / "surprise").exists()


def test_metrics_are_computed_from_the_models_predictions_for_the_test_clips(small, run, tmp_path):
    result = evaluate.evaluate(run, "cpu")
    saved = (run / "metrics.json").read_bytes()
    assert list(json.loads(saved)) == [
        "metrics", "unit", "interval_95", "reference", "minus", "intervals", "undefined",
        "gates", "clips", "systems", "accuracy", "backbone", "data", "scale", "settings"]
    assert (result["clips"], result["systems"], result["data"]) == (16, 4, str(small))
    test = [clip for clip in data.read_ratings(small) if clip.split == "test"]
    features = data.extract_features(test, moemos.load_backbone("logmel"), tmp_path / "cache")
    output = evaluate.load_run(run, "cpu").model(features)
    mos, system = [clip.mos for clip in test], [clip.system for clip in test]
    expected = moemos.metrics(output.mos.tolist(), mos, system)
    assert result["metrics"] == pytest.approx(expected, rel=1e-4)
    assert json.loads(saved)["metrics"] == result["metrics"]
    models = [["m0", "m1", "x"].index(clip.model) for clip in test]
    assert result["accuracy"] == np.mean(output.logits.argmax(1).numpy() == models)
    assert list(result["gates"]) == ["m0", "m1"]
    for place, name in enumerate(result["gates"]):  # The two models take turns.
        gates = output.gates[place::2].mean(0)
        assert result["gates"][name] == pytest.approx(gates.tolist(), abs=1e-6)
    rows = table(run / "predictions.csv")
    assert list(rows[0]) == ["wav", "system", "model", "mos", "predicted"]
    assert [row["wav"] for row in rows] == [clip.wav for clip in test]
    predicted = [float(row["predicted"]) for row in rows]
    assert predicted == pytest.approx(output.mos.tolist(), abs=1e-5)
    evaluate.evaluate(run, "cpu")
    assert (run / "metrics.json").read_bytes() == saved


def test_the_report_prints_every_number_of_the_result_and_states_each_comparison_in_words(
        small, run, capsys):
    result = evaluate.evaluate(run, "cpu")
    printed = capsys.readouterr().out
    lines = [line for line in printed.splitlines() if str(small) not in line]
    assert max(map(len, lines)) <= 100
    rows = [(line[:32].strip(), [float(number) for number in line[32:].split()])
            for line in lines if re.fullmatch(r"( +(-?[\d.]+|nan)){8}", line[32:])]
    metrics, reference, ridge = result["metrics"], result["reference"], "ridge"
    low, high = zip(*result["interval_95"].values())
    difference = {name: metrics[name] - reference[ridge][name] for name in metrics}
    _, below, above, verdicts = zip(*result["minus"][ridge].values())
    expected = [*((label, numbers.values()) for label, numbers in reference.items()),
                ("this run", metrics.values()), ("95 % interval from", low), ("to", high),
                ("this run minus ridge", difference.values()), ("95 % interval from", below),
                ("to", above)]
    assert list(reference) == ["mean of training MOS", "system's mean", ridge]
    for (label, numbers), (expected_label, expected_numbers) in zip(rows, expected, strict=True):
        assert label == expected_label
        assert numbers == pytest.approx(list(expected_numbers), abs=5.1e-4, nan_ok=True)
    assert low[0] < metrics["utterance MSE"] < high[0]
    (words,) = [line.split()[3:] for line in lines if line.startswith("  shown to be")]
    assert words == list(verdicts)
    assert words[4:] == ["-"] * 4
    assert "intervals: estimated from single clips; probably too narrow" in lines
    assert "a stand-in and NOT the paper's wav2vec2" in printed
    mean = result["minus"]["system's mean"]["utterance LCC"]
    assert mean[0] == metrics["utterance LCC"] - reference["system's mean"][
        "utterance LCC"]
    assert mean[3] == evaluate.verdict("utterance LCC", *mean[:3])
    told = evaluate.MEANING[evaluate.SYSTEM_MEAN]
    assert lines[-3:] == [
        "by its utterance LCC on 16 clips, this run is",
        f"  {evaluate.WORDS[verdicts[1]]} a linear model (ridge regression) on the same features",
        f"  {evaluate.WORDS[mean[3]]} {told}"]


def test_accuracy_agrees_with_a_value_computed_by_hand_and_ignores_unknown_classes():
    logits = np.array([[2, 1, 0], [0, 1, 2], [0, 1, 2]])  # Training has never seen "new".
    assert evaluate.accuracy(logits, ["a", "b", "new"], ["a", "b", "c"]) == 0.5
    assert evaluate.accuracy(logits, ["d", "e", "f"], ["a", "b", "c"]) is None


def test_another_corpus_is_evaluated_without_references_and_into_a_folder_of_its_own(
        small, run, tmp_path):
    rows = [(f"{i}.wav", "test" if i < 6 else "train", f"new{i % 3}", f"new{i}", "r", 1 + i % 4)
            for i in range(9)]
    for name in ("other", "elsewhere/other"):
        other = lay_out(tmp_path / name, {}, [f"{i}.wav" for i in range(9)])
        data.write_files({other / "ratings.csv": [COLUMNS, *rows]})
        result = evaluate.evaluate(run, "cpu", other)
        assert np.isfinite(list(result["metrics"].values())).all() and result["accuracy"] is None
        assert result["reference"] == {}
        assert result["minus"] == {}
    assert len(list(run.glob("on_other_*/metrics.json"))) == 2
    assert not (run / "metrics.json").exists()
    evaluate.evaluate(run, "cpu", small / "ratings.csv")  # This is the run's own corpus.
    assert (run / "metrics.json").exists()


def test_a_corpus_on_another_scale_gets_correlations_but_no_mse(
        small, run, tmp_path, monkeypatch, capsys):
    rows = [(small / row["wav"], *list(row.values())[1:5],
             row["score"] and 25 * (float(row["score"]) - 1))  # 1 to 5 becomes 0 to 100.
            for row in table(small / "ratings.csv")]
    data.write_files({tmp_path / "mushra" / "ratings.csv": [COLUMNS, *rows]})
    assert call(monkeypatch, evaluate, run, "--data", tmp_path / "mushra") == 2
    assert "off the scale of 1 to 5; --scale LOW HIGH sets another" in capsys.readouterr().err
    words = ("--data", tmp_path / "mushra", "--scale", 0, 100)
    assert call(monkeypatch, evaluate, run, *words) == 0
    printed = capsys.readouterr().out
    assert "MSE is undefined (nan): the ratings are on another scale than the run's\n" in printed
    (path,) = run.glob("on_mushra_*/metrics.json")
    found, usual = json.loads(path.read_text()), evaluate.evaluate(run, "cpu")
    assert (found["scale"], found["settings"]["scale"]) == ([0, 100], [1, 5])
    for level in ("utterance", "system"):
        assert found["metrics"][f"{level} MSE"] is None
        assert found["interval_95"][f"{level} MSE"] == [None, None]
        for name in ("LCC", "SRCC", "KTAU"):
            name = f"{level} {name}"
            assert found["metrics"][name] == pytest.approx(usual["metrics"][name])
    same = evaluate.evaluate(run, "cpu", scale=(1.0, 5.0))
    assert evaluate.as_json(same) == evaluate.as_json(usual)
    with pytest.raises(data.InputError, match="--scale 5 1: the lower first"):
        evaluate.evaluate(run, "cpu", scale=(5, 1))
    # On the run's own corpus it is compared with ridge, but not by MSE, as the scales differ.
    compared = evaluate.evaluate(run, "cpu", scale=(0, 5))["minus"][evaluate.RIDGE]
    assert [word for *_, word in compared.values()][::4] == ["-", "-"]


@pytest.mark.parametrize(("lowest", "width"), [(0, 1e-6), (7, 1), (-3, 100), (0, 1e6)])
def test_the_report_is_the_same_on_any_scale(run, capsys, lowest, width):
    """An MSE is printed, and rounded for a verdict, as on a scale of 1 to 5."""
    rng, tables = np.random.default_rng(0), []
    true, errors = rng.uniform(1, 5, 60), rng.normal(size=60)
    trained = evaluate.load_run(run, "cpu")
    for low, unit in ((1, 1), (lowest, width / 4)):
        scale = (low, low + 4 * unit)
        config = dataclasses.replace(trained.config, scale=scale)
        test = [data.Clip("", None, "test", f"s{i % 6}", "m", "", {"": low + unit * (mos - 1)})
                for i, mos in enumerate(true)]
        predicted, ridge = (low + unit * (true - 1 + part * errors) for part in (0.1, 0.3))
        output = moemos.Output(*torch.zeros(5, 60, 1, dtype=torch.float64))
        output = output._replace(mos=torch.tensor(predicted))
        references = {label: ridge for label in evaluate.MEANING}
        result = evaluate.summary(trained._replace(config=config), test, output, references,
                                  scale)
        assert result["metrics"]["utterance MSE"] == pytest.approx(
            unit ** 2 * np.mean((0.1 * errors) ** 2), rel=1e-3)
        evaluate.show(run, result | {"data": "x", "scale": scale, "settings": {"scale": scale}})
        tables.append(capsys.readouterr().out)
    lines = [text.splitlines() for text in tables]
    times = f"{(width / 4) ** 2:g} times"
    note = f"MSE is as on a scale of 1 to 5; on your scale it is {times} as large"
    lines[1].remove(note)
    assert lines[0] == lines[1]
    assert "  shown to be                     better  better" in tables[0]


def test_if_a_run_is_trained_again_during_evaluation_no_results_of_the_old_model_are_written(
        small, tmp_path, run, monkeypatch):
    predict_clips = evaluate.predict_clips
    unrated = [(small / f"{i}.wav", "test", "s", "m", "", "") for i in range(3)]
    data.write_files({tmp_path / "unrated.csv": [COLUMNS, *unrated]})
    for seed, corpus in ((1, small), (2, tmp_path / "unrated.csv")):
        def train_meanwhile(*words, seed=seed):
            train.train(quick(small, tmp_path, seed=seed, experts=4 + seed))
            return predict_clips(*words)
        with monkeypatch.context() as patch:
            patch.setattr(evaluate, "predict_clips", train_meanwhile)
            with pytest.raises(data.InputError, match="run was trained anew meanwhile; evaluate"):
                evaluate.evaluate(run, "cpu", corpus)
        assert train.results_in(run) == []


def test_escape_sequences_in_names_do_not_reach_the_terminal(
        small, run, tmp_path, monkeypatch, capsys):
    strange = tmp_path / "x\x1b[31m"
    shutil.copytree(run, strange / "run")
    clip = shutil.copy(small / "40.wav", strange / "a.wav")
    rows = [(*COLUMNS, "age"), (clip, "test", "s\x1b[2J", "m\x1b]0;t\x07", "r", 3, 30),
            (small / "41.wav", "test", "s", "m", "", "", 30)]
    data.write_files({strange / "ratings.csv": rows})
    (strange / "b.flac").touch()
    for words in (["--data", strange], ["--wav", strange]):
        screen = io.TextIOWrapper(io.BytesIO(), encoding="utf-8")
        screen.isatty = lambda: True
        monkeypatch.setattr(sys, "stdout", screen)
        assert call(monkeypatch, evaluate, strange / "run", *words) == 0
        train.write_run(quick(small, tmp_path, out=str(strange / "new")), evaluate.load_run(
            run, "cpu").model, [], [], moemos.load_backbone("logmel"), [{"step": 1}])
        screen.flush()
        printed = screen.buffer.getvalue()
        assert b"\\x1b[31m" in printed
        assert b"\x1b" not in printed and b"\x07" not in printed
    err = capsys.readouterr().err
    assert "columns that are ignored" in err and "passed over" in err
    assert "\x1b" not in err


def test_unrated_test_clips_go_into_answer_txt_as_the_challenge_wants_and_not_into_metrics(
        small, run, tmp_path, capsys):
    rows = [(small / f"{i}.wav", "test", "s", "m", "r" * bool(mos), mos)
            for i, mos in ((41, ""), (40, 3), (42, ""))]
    data.write_files({tmp_path / "mixed.csv": [COLUMNS, *rows]})
    assert evaluate.evaluate(run, "cpu", tmp_path / "mixed.csv")["clips"] == 1
    assert "2 test clips without ratings: predicted in" in capsys.readouterr().out
    scores = dict(evaluate.score(run, [small]))
    (folder,) = run.glob("on_*")
    answer = (folder / "answer.txt").read_text().splitlines()
    assert answer == [f"{i},{scores[str(small / f'{i}.wav')]}" for i in (41, 42)]
    (row,) = table(folder / "predictions.csv")
    assert float(row["predicted"]) == scores[str(small / "40.wav")]
    data.write_files({tmp_path / "mixed.csv": [COLUMNS, rows[1]]})  # Now all clips are rated.
    evaluate.evaluate(run, "cpu", tmp_path / "mixed.csv")
    assert [path.name for path in folder.glob("*.txt")] == []
    data.write_files({tmp_path / "none.csv": [COLUMNS, rows[0]]})
    assert evaluate.evaluate(run, "cpu", tmp_path / "none.csv") is None
    twins = lay_out(tmp_path / "twins", {}, ["a/x.wav", "b/x.wav"])
    rows = [(f"{name}/x.wav", "test", "s", "m", "", "") for name in "ab"]
    data.write_files({twins / "ratings.csv": [COLUMNS, *rows]})
    evaluate.evaluate(run, "cpu", twins)
    (answer,) = run.glob("on_twins_*/answer.txt")
    ids = [row.split(",")[0] for row in answer.read_text().splitlines()]
    assert ids == ["a/x.wav", "b/x.wav"]


def test_a_corpus_without_training_clips_test_clips_or_a_second_system_gets_a_sentence(
        tmp_path, capsys):
    lay_out(tmp_path, {}, [f"{i}.wav" for i in range(14)])
    rows = [(f"{i}.wav", "test" if i > 9 else "train", "s", f"m{i % 2}", "r", 1 + i % 4)
            for i in range(14)]
    for name, some in (("test", rows[10:]), ("one", rows), ("train", rows[:10])):
        data.write_files({tmp_path / f"{name}.csv": [COLUMNS, *some]})
    with pytest.raises(data.InputError, match="fewer than two training clips"):
        train.train(quick(tmp_path / "test.csv", tmp_path))
    train.train(quick(tmp_path / "one.csv", tmp_path))
    result = evaluate.evaluate(tmp_path / "run", "cpu")
    printed = capsys.readouterr().out
    assert "undefined (nan) at system level: 1 values, two are needed" in printed
    saved = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert saved["metrics"]["system LCC"] is None
    assert "intervals: none, as clips and systems are too few" in printed
    for _, low, high, word in result["minus"][evaluate.RIDGE].values():
        assert math.isnan(low) and math.isnan(high) and word == "-"
    assert "not comparable with a linear model (ridge regression) on the same features" in printed
    with pytest.raises(data.InputError, match="no test clips"):
        evaluate.evaluate(tmp_path / "run", "cpu", tmp_path / "train.csv")


@pytest.mark.parametrize("systems", [4, 8])  # With 4, clips are left out; with 8, systems.
def test_the_interval_of_a_difference_in_mse_is_that_of_the_paired_t_test(systems):
    rng, system = np.random.default_rng(0), np.arange(40) % systems
    true, errors, others = rng.normal(size=(3, 40))
    predicted = [true + part for part in (errors, others)]
    one, other = (moemos.metrics(part, true, system) for part in predicted)
    left_out = [evaluate.leave_one_out(part, true, system) for part in predicted]
    squares = [errors ** 2, others ** 2]
    of_systems = [moemos.system_means(part, system) ** 2 for part in (errors, others)]
    if systems == 8:
        squares = [moemos.system_means(part, system) for part in squares]
    for name, pair in {"utterance MSE": squares, "system MSE": of_systems}.items():
        bounds = evaluate.interval(one[name] - other[name], left_out[0][name] - left_out[1][name])
        expected = list(scipy.stats.ttest_rel(*pair).confidence_interval(0.95))
        if name == "system MSE" and systems == 4:
            expected = [nan, nan]
        assert bounds == pytest.approx(expected, nan_ok=True)


def test_an_interval_agrees_with_the_jackknife_over_systems_in_a_plain_loop():
    rng = np.random.default_rng(0)
    system = np.repeat(list("fbdace"), [3, 1, 7, 2, 9, 4])
    true, errors = rng.normal(size=(2, 26))
    predicted = true + errors
    whole = moemos.metrics(predicted, true, system)
    left_out = evaluate.leave_one_out(predicted, true, system)
    for name, value in whole.items():
        numbers = []
        for letter in "abcdef":
            others = [i for i in range(26) if system[i] != letter]
            numbers.append(moemos.metrics(predicted[others], true[others], system[others])[name])
        np.testing.assert_allclose(left_out[name], numbers)
        mean = sum(numbers) / 6
        error = math.sqrt(5 / 6 * sum((number - mean) ** 2 for number in numbers))
        reach = scipy.stats.t.ppf(0.975, 5) * error
        assert evaluate.interval(value, left_out[name]) == pytest.approx(
            [value - reach, value + reach])
        for sign, bound in zip((-1, 1), evaluate.interval(value, left_out[name], name)):
            if name.endswith("MSE"):
                expected = value * math.exp(sign * (1 + 2 / 6) * reach / value)
            else:
                fisher = math.log((1 + value) / (1 - value)) / 2 + sign * reach / (1 - value ** 2)
                expected = (math.exp(2 * fisher) - 1) / (math.exp(2 * fisher) + 1)
            assert bound == pytest.approx(expected)


def test_with_fewer_than_5_systems_clips_are_left_out_and_below_10_clips_there_is_no_interval(
        monkeypatch):
    rng, system = np.random.default_rng(0), np.arange(60) % 4
    true, errors = rng.normal(size=(2, 60))
    for systems, enough in ((4, False), (5, True)):
        whole = evaluate.leave_one_out(true + errors, true, np.arange(60) % systems)
        assert len(whole["utterance LCC"]) == (5 if enough else 60)
        assert np.isfinite(whole["utterance LCC"]).all()
        for name in moemos.METRICS:
            assert np.isfinite(whole[f"system {name}"]).all() == enough
    tau = [moemos.ktau(np.delete(true + errors, i), np.delete(true, i)) for i in range(60)]
    of_clips = evaluate.leave_one_out(true + errors, true, system)
    np.testing.assert_allclose(of_clips["utterance KTAU"], tau)
    many = np.arange(1200.0) % 7
    left_out = evaluate.leave_one_out(many, -many, np.arange(1200) % 4)
    assert len(left_out["utterance MSE"]) == 500
    monkeypatch.setattr(evaluate, "PARTS", 20)
    parts = evaluate.leave_one_out(true + errors, true, system)["utterance MSE"]
    thirds = (errors ** 2).reshape(3, 20).mean(0)
    assert evaluate.interval(0, parts) == pytest.approx(
        scipy.stats.t.interval(0.95, 19, 0, scipy.stats.sem(thirds)))
    for clips, enough in ((9, False), (10, True)):
        some = evaluate.leave_one_out(true[:clips] + errors[:clips], true[:clips], system[:clips])
        for name in ("utterance LCC", "utterance MSE"):
            low, high = evaluate.interval(0.5, some[name], name)
            assert math.isfinite(low) == math.isfinite(high) == enough


@pytest.mark.parametrize(("clips", "systems", "words"), [
    (5, 5, "estimated by leaving out each system in turn"),
    (40, 5, "estimated by leaving out each system in turn"),
    (40, 4, "estimated from single clips; probably too narrow"),
    (10, 1, "estimated from single clips; probably too narrow"),
    (9, 4, "none, as clips and systems are too few")])
def test_the_report_says_what_its_intervals_hold_for(clips, systems, words, capsys):
    true = np.random.default_rng(0).uniform(1, 5, clips)
    test = [rated(f"s{i % systems}", r=mos) for i, mos in enumerate(true)]
    output = moemos.Output(*torch.zeros(5, clips, 1))._replace(mos=torch.tensor(true[::-1].copy()))
    trained = SimpleNamespace(config=train.Config(), classes=[], backbone=CountingBackbone())
    result = evaluate.summary(trained, test, output, {}, (1.0, 5.0))
    scales = {"scale": (1.0, 5.0), "settings": {"scale": (1.0, 5.0)}}
    evaluate.show("run", result | {"data": "x"} | scales)
    assert f"intervals: {words}\n" in capsys.readouterr().out
    has_interval = {"utterance": "none" not in words, "system": "each system" in words}
    for level, finite in has_interval.items():
        assert math.isfinite(result["interval_95"][f"{level} MSE"][0]) == finite


def test_a_number_that_changes_only_by_rounding_has_no_interval():
    """One predictor gives five systems their true scores, the other reverses them. Whichever system
    is left out, the correlations are 1 and -1, apart from rounding."""
    rng, moved = np.random.default_rng(0), 0
    for _ in range(20):
        true = rng.uniform(1, 5, 5)
        perfect, reverse = (evaluate.leave_one_out(predicted, true, np.arange(5))
                            for predicted in (true, 6 - true))
        for name in ("system LCC", "system SRCC", "system KTAU"):
            difference = perfect[name] - reverse[name]
            moved += np.ptp(difference) > 0
            for numbers in (perfect[name], reverse[name], difference):
                low, high = evaluate.interval(numbers[0], numbers)
                assert math.isnan(low) and math.isnan(high)
                assert evaluate.verdict(name, numbers[0], low, high) == "-"
    assert moved  # Else the test would show nothing.
    low, high = evaluate.interval(0.5, 0.5 + 1e-6 * np.arange(5))  # Rounding is never as large.
    assert high - low == pytest.approx(2 * 2.776445 * 1e-6 * math.sqrt(8))


def test_an_interval_always_contains_its_number_and_stays_within_the_range_of_the_metric():
    """This is tried with few systems of few clips, with predictions that are nearly perfect or
    reversed, with an outlier, and with one system that has most of the clips."""
    rng, finite = np.random.default_rng(0), 0
    for trial in range(200):
        systems = int(rng.integers(3, 9))
        system = np.append(np.arange(systems), rng.integers(0, systems, rng.integers(0, 12)))
        if trial % 5 == 0:
            system = np.append(system, np.zeros(40, int))
        true = np.round(rng.uniform(1, 5, len(system)), trial % 3)
        predicted = true * (-1) ** trial + 10.0 ** -(trial % 10) * rng.normal(size=len(true))
        predicted[0] += 100 * (trial % 4 == 0)
        left_out = evaluate.leave_one_out(predicted, true, system)
        for name, value in moemos.metrics(predicted, true, system).items():
            low, high = evaluate.interval(value, left_out[name], name)
            least, most = (0, math.inf) if name.endswith("MSE") else (-1, 1)
            assert math.isnan(low) == math.isnan(high)
            assert math.isnan(low) or least <= low <= value + 1e-12 <= high + 2e-12
            assert math.isnan(high) or high <= most
            finite += math.isfinite(low)
    assert finite > 800
    numbers = np.array([0.5, 1, 1, 1, 1])
    for value in (1.0, -1.0, 1 + 2e-16):  # as if one outlier decided everything
        low, high = evaluate.interval(value, math.copysign(1, value) * numbers, "system LCC")
        assert -1 <= low <= high <= 1


def draw_systems(rng, systems, clips, lcc, predictors=1):
    """Simulates clips -> their true scores, (systems * clips,), a list with the scores that each
    predictor gives, and the system of each clip.

    A score, true or predicted, is the sum of an effect of the system, of variance 1, and one of the
    clip, of variance 0.3. Predicted and true scores have the correlation `lcc`, over clips and over
    the means of systems. The errors of two predictors have the correlation 0.5."""
    system = np.repeat(np.arange(systems), clips)

    def effects():
        return rng.normal(size=systems)[system] + math.sqrt(0.3) * rng.normal(size=len(system))
    true, shared = effects(), effects()
    error = math.sqrt(1 - lcc ** 2)
    predicted = [lcc * true + error * math.sqrt(0.5) * (shared + effects())
                 for _ in range(predictors)]
    return true, predicted, system


@pytest.mark.parametrize("systems", [5, 8, 12, 20])
def test_95_percent_intervals_contain_the_true_value_in_92_to_98_percent_of_simulated_tests(
        systems):
    """In how many of 400 simulated listening tests, each with systems of its own, does the interval
    contain the value that very many systems would give? SRCC and KTAU of few systems can take few
    values only. Their intervals are too wide, and contain it in up to 100 percent of the tests."""
    rng, contained, finite, lcc = np.random.default_rng(systems), {}, {}, 0.8
    true_value = {"LCC": lcc, "SRCC": 6 / math.pi * math.asin(lcc / 2),
                  "KTAU": 2 / math.pi * math.asin(lcc)}  # for normal scores
    for _ in range(400):
        true, (predicted,), system = draw_systems(rng, systems, 6, lcc)
        left_out = evaluate.leave_one_out(predicted, true, system)
        for name, value in moemos.metrics(predicted, true, system).items():
            level, metric = name.split()
            variance = 1.3 if level == "utterance" else 1 + 0.3 / 6
            expected = true_value.get(metric, 2 * (1 - lcc) * variance)
            low, high = evaluate.interval(value, left_out[name], name)
            finite[name] = finite.get(name, 0) + math.isfinite(low)
            contained[name] = contained.get(name, 0) + (low <= expected <= high)
    for name, number in contained.items():
        too_wide = name in ("system SRCC", "system KTAU")
        assert finite[name] > (340 if too_wide else 399)
        assert 0.92 <= number / finite[name] <= (1 if too_wide else 0.98), name


@pytest.mark.parametrize("systems", [5, 10, 20, 40])
def test_equally_good_predictors_are_called_better_or_worse_in_at_most_6_percent_of_tests(
        monkeypatch, systems):
    """Two predictors whose errors, of systems and of clips, have the same distribution are compared
    300 times. How often is one called better or worse than the other, by MSE and by LCC?"""
    fast = {name: moemos.METRICS[name] for name in ("MSE", "LCC")}
    monkeypatch.setattr(moemos, "METRICS", fast)
    rng, false = np.random.default_rng(systems), {}
    for _ in range(300):
        true, predicted, names = draw_systems(rng, systems, 5, 0.8, 2)
        one, other = (moemos.metrics(part, true, names) for part in predicted)
        left = [evaluate.leave_one_out(part, true, names) for part in predicted]
        for name in one:
            difference = one[name] - other[name]
            bounds = evaluate.interval(difference, left[0][name] - left[1][name])
            word = evaluate.verdict(name, difference, *bounds)
            false[name] = false.get(name, 0) + (word != "neither")
    assert max(false.values()) <= 0.06 * 300
    assert 0 < false["utterance MSE"]


@pytest.mark.parametrize(("name", "difference", "low", "high", "word"), [
    ("utterance MSE", -1, -2, -0.5, "better"), ("utterance MSE", 1, 0.5, 2, "worse"),
    ("system LCC", 0.1, 0.05, 0.2, "better"), ("system LCC", -0.1, -0.2, -0.05, "worse"),
    ("system LCC", 0.1, -0.1, 0.3, "neither"), ("system KTAU", 0.1, 0.0, 0.2, "neither"),
    ("system LCC", 4e-4, 1e-4, 7e-4, "neither"), ("system LCC", 6e-4, 1e-4, 9e-4, "better"),
    ("system LCC", 0.1, nan, nan, "-")])
def test_a_run_is_better_or_worse_only_if_the_interval_excludes_0_and_a_lower_mse_is_better(
        name, difference, low, high, word):
    assert evaluate.verdict(name, difference, low, high) == word


def rated(system, split="test", **ratings):
    return data.Clip("a", None, split, system, "m", system, ratings)


def test_the_references_are_two_training_means_computed_by_hand_and_ridge_in_the_right_order(
        run, monkeypatch):
    test = [rated("a", r=3.0), rated("b", r=4.0), rated("new", r=5.0)]
    clips = [*test, rated("a", "train"), rated("a", "dev", r=5.0),
             rated("a", "train", r=1.0), rated("a", "train", r=3.0),
             rated("b", "train", r=5.0), rated("b", "train", r=5.0)]
    trained = evaluate.load_run(run, "cpu")
    features = {"a": 1.0, "b": 2.0, "new": 3.0}

    def extract_features(clips, backbone, cache):
        return torch.tensor([features[clip.system] for clip in clips])[:, None, None]
    monkeypatch.setattr(data, "extract_features", extract_features)
    references = evaluate.reference_predictions(trained, clips, test)
    assert list(references["mean of training MOS"]) == [3.5] * 3
    assert list(references["system's mean"]) == [2, 5, 3.5]
    ridge = references[evaluate.RIDGE]
    assert ridge[0] < ridge[1] < ridge[2]
    assert evaluate.reference_predictions(trained, clips[:6], test) == {}  # One clip is rated.


def test_the_ridge_row_learns_from_rated_training_clips_with_the_penalty_found_in_training(
        small, run):
    clips = data.read_ratings(small)
    trained = evaluate.load_run(run, "cpu")
    learned = [clip for clip in clips if clip.split == "train" and clip.ratings]
    test = [clip for clip in clips if clip.split == "test"]
    x, new = (data.extract_features(some, trained.backbone, trained.config.cache)
              .flatten(1).double().numpy() for some in (learned, test))
    mos = np.array([clip.mos for clip in learned])
    names = sorted({clip.group for clip in learned})
    fold = np.array([names.index(clip.group) % 5 for clip in learned])
    errors = [sum(np.square(plain_ridge(x[fold != k], mos[fold != k], x[fold == k], penalty * 320)
                            - mos[fold == k]).sum() for k in range(5))
              for penalty in moemos.PENALTIES]
    penalty = moemos.PENALTIES[np.argmin(errors)]
    assert trained.model.penalty.item() == pytest.approx(penalty)
    predicted = plain_ridge(x, mos, new, penalty * 320)
    found = evaluate.reference_predictions(trained, clips, test)[evaluate.RIDGE]
    np.testing.assert_allclose(found, predicted, atol=1e-5)

    result = evaluate.evaluate(run, "cpu")
    true, system = [clip.mos for clip in test], [clip.system for clip in test]
    row = result["reference"]["ridge"]
    assert row == pytest.approx(moemos.metrics(predicted, true, system), rel=1e-4)
    of_run = [float(row["predicted"]) for row in table(run / "predictions.csv")]
    errors = [np.square(np.array(part) - true) for part in (of_run, predicted)]
    expected = scipy.stats.ttest_rel(*errors).confidence_interval(0.95)
    _, low, high, _ = result["minus"][evaluate.RIDGE]["utterance MSE"]
    assert (low, high) == pytest.approx(tuple(expected), abs=1e-4)


def test_the_penalty_is_found_in_five_folds_of_whole_groups_of_the_rated_training_clips(
        small, tmp_path, monkeypatch, capsys):
    rows = [{**row, "wav": str(small / row["wav"])} for row in table(small / "ratings.csv")]
    for row in rows:
        row["group"] = "abcdefg"[int(Path(row["wav"]).stem) % 7]
    groups = {row["wav"]: row["group"] for row in rows if row["split"] == "train" and row["score"]}
    data.write_files({tmp_path / "ratings.csv": [rows[0].keys(), *(row.values() for row in rows)]})
    best_penalty, folds = moemos.best_penalty, []

    def watch(x, y, fold):
        folds.append(list(fold))
        return best_penalty(x, y, fold)
    monkeypatch.setattr(moemos, "best_penalty", watch)
    model = train.train(quick(tmp_path / "ratings.csv", tmp_path))
    assert folds == [["abcdefg".index(group) % 5 for group in groups.values()]]
    sentence = f"of ridge regression is {model.penalty.item():.2g} times the number of features"
    assert sentence in capsys.readouterr().out
    saved = evaluate.read_checkpoint(tmp_path / "run")["weights"]
    assert saved["penalty"] == model.penalty > 0
    assert saved["fusion.axes"].shape[0] == 320


def test_default_settings_beat_the_systems_mean_and_match_a_linear_model():
    _, result = simulated_run()
    numbers, reference = result["metrics"], result["reference"]
    for level, ahead in (("utterance", 0.02), ("system", 0.01)):
        name = f"{level} LCC"
        assert numbers[name] > reference["system's mean"][name] + ahead
        assert numbers[name] > reference[evaluate.RIDGE][name] - 0.01
    assert np.mean(list(result["gates"].values()), 0).min() > 0.05  # No expert is dead.


@pytest.mark.skipif(not REAL_CLIPS.is_dir(), reason="p835_wb16k does not lie beside the checkout")
def test_utterance_lcc_on_real_clips_with_human_scores_is_above_0_9(tmp_path):
    train.train(quick(REAL_CLIPS, tmp_path, steps=0))
    result = evaluate.evaluate(tmp_path / "run", "cpu")
    assert result["metrics"]["utterance LCC"] > 0.90


# -- Scoring one's own clips -----------------------------------------------------------------------

def test_neither_the_level_nor_silence_at_both_ends_noticeably_changes_a_score(corpus, tmp_path):
    """22,050 Hz is not a multiple of 100: there the added silence also shifts the parts of 10 ms in
    which silence is looked for."""
    run, _ = simulated_run()
    clips = [clip for clip in data.read_ratings(corpus) if clip.split == "test"][::40]
    for clip, new_rate in itertools.product(clips, (None, 22050)):
        rate, samples = wavfile.read(clip.path)
        samples, rate = samples / 2 ** 15, new_rate or rate
        silence = np.zeros(rate)
        variants = {"a": samples, "silence": np.concatenate([silence, samples, silence])}
        variants |= {f"{gain} times": gain * samples for gain in (0.1, 0.5, 2)}
        for name, variant in variants.items():
            wavfile.write(tmp_path / f"{name}.wav", rate, variant.astype(np.float32))
        wavfile.write(tmp_path / "16 bit.wav", rate, np.rint(3276.8 * samples).astype(np.int16))
        scores = {Path(path).stem: mos for path, mos in evaluate.score(run, [tmp_path])}
        moved = {name: abs(mos - scores["a"]) for name, mos in scores.items()}
        assert moved.pop("silence") < 0.05
        assert moved.pop("16 bit") < 0.03  # as it is a tenth as loud, 13 bits are left
        assert len(moved) == 4 and max(moved.values()) < 0.02


def test_a_clip_has_the_same_score_alone_or_with_other_clips_and_on_every_call(
        small, run, monkeypatch, capsys):
    evaluate.evaluate(run, "cpu")
    rows = table(run / "predictions.csv")
    expected = {str(small / row["wav"]): float(row["predicted"]) for row in rows}
    together = dict(evaluate.score(run, [small]))
    assert list(together) == sorted(str(small / f"{i}.wav") for i in range(48))
    assert {path: together[path] for path in expected} == expected
    one, other = str(small / "40.wav"), str(small / "41.wav")
    monkeypatch.chdir(small)
    for paths in (["40.wav"], "40.wav", Path("40.wav")):  # A string is one path, not many letters.
        assert list(evaluate.score(run, paths)) == [("40.wav", together[one])]
    capsys.readouterr()
    assert call(monkeypatch, evaluate, run, "--wav", one, other) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines == ["wav,mos", *(f"{path},{expected[path]:.4f}" for path in (one, other))]


def test_a_bad_file_is_skipped_with_status_1_and_the_other_files_are_scored(
        small, run, tmp_path, monkeypatch, capsys):
    edit(run, lambda saved: saved["config"].update(max_seconds=0.5))  # It is the run's limit.
    (tmp_path / "bad.wav").write_bytes(b"")
    wavfile.write(tmp_path / "loud.wav", 16000, 1e31 * tone(16000))
    wavfile.write(tmp_path / "long.wav", 16000, tone(16000, 0.6))
    wavfile.write(tmp_path / "still.wav", 16000, np.zeros(8000, np.int16))
    names = ("bad", "loud", "long", "still", "gone")
    files = [*(tmp_path / f"{name}.wav" for name in names), small / "40.wav"]
    assert call(monkeypatch, evaluate, run, "--wav", *files) == 1
    out, err = capsys.readouterr()
    assert [line.split(",")[0] for line in out.splitlines()] == [
        "wav", str(tmp_path / "still.wav"), str(small / "40.wav")]
    messages = ("skipped: {}: not a whole WAV", "skipped: {}: holds NaN",
                "skipped: {}: 0.60 s long", "WARNING: {} is all digital silence",
                "skipped: {}: cannot be read")
    for line, path, start in zip(err.splitlines(), files, messages, strict=False):
        assert line.startswith(start.format(path))
    assert err.count("\n") == 5
    assert math.isnan(dict(evaluate.score(run, [files[0]]))[str(files[0])])


def test_a_folder_without_a_wav_file_is_skipped_and_the_others_are_scored(
        small, run, tmp_path, monkeypatch, capsys):
    lay_out(tmp_path, {"empty/notes.txt": "", "music/a.flac": "", "music/b/c.mp3": ""}, [])
    monkeypatch.chdir(tmp_path)
    wrong = ("empty", "music", "gone.wav")
    assert call(monkeypatch, evaluate, run, "--wav", small / "40.wav", *wrong) == 1
    out, err = capsys.readouterr()
    assert [line.split(",")[0] for line in out.splitlines()] == ["wav", str(small / "40.wav")]
    assert err.splitlines() == [
        "music: 2 audio files that are not WAV are passed over",
        "skipped: empty: there is no WAV file in this folder",
        "skipped: music: there is no WAV file in this folder",
        "skipped: gone.wav: cannot be read (No such file or directory)"]
    assert call(monkeypatch, evaluate, run, "--wav", "empty") == 1


def test_a_long_clip_is_scored_if_the_limit_of_seconds_is_raised(
        small, run, tmp_path, monkeypatch, capsys):
    edit(run, lambda saved: saved["config"].update(max_seconds=0.5))
    wavfile.write(tmp_path / "long.wav", 16000, tone(16000, 0.6))
    data.write_files({tmp_path / "ratings.csv": [
        COLUMNS, (tmp_path / "long.wav", "test", "s", "m", "r", 3)]})
    for words, status in ((["--wav", tmp_path / "long.wav"], 1), (["--data", tmp_path], 2)):
        assert call(monkeypatch, evaluate, run, *words) == status
        assert "0.60 s long, above --max-seconds 0.5" in capsys.readouterr().err
        assert call(monkeypatch, evaluate, run, *words, "--max-seconds", 0.7) == 0
        capsys.readouterr()
    with pytest.raises(data.InputError, match="--max-seconds -1"):
        evaluate.evaluate(run, max_seconds=-1)


@pytest.mark.parametrize(("rate", "channels", "kind"), [
    (16000, 1, "float32"), (24000, 1, "int16"), (24000, 2, "int16"), (44100, 1, "float64"),
    (8000, 1, "uint8")])
def test_a_waveform_has_the_score_of_the_file_that_holds_its_samples(
        run, tmp_path, rate, channels, kind):
    silence, rng = np.zeros((rate // 3, channels)), np.random.default_rng(0)
    samples = np.concatenate([silence, 0.2 * rng.normal(size=(rate, channels)), silence])
    zero, full = {"uint8": (128.0, 128), "int16": (0.0, 2 ** 15)}.get(kind, (0.0, 1))
    samples = (zero + full * samples.clip(-0.99, 0.99)).astype(kind)
    wavfile.write(tmp_path / "a.wav", rate, samples)
    ((_, expected),) = evaluate.score(run, tmp_path / "a.wav")
    rate, samples = wavfile.read(tmp_path / "a.wav")
    waveform = (samples - zero) / full
    waveform = torch.from_numpy(waveform.mean(1) if channels == 2 else waveform)
    trained = evaluate.load_run(run, "cpu")
    assert evaluate.score_waveform(trained, waveform, rate) == expected
    assert evaluate.score_waveform(trained, waveform.numpy(), rate) == expected
    if kind != "float64":  # float32 holds all bits of these samples.
        assert evaluate.score_waveform(trained, waveform.float(), rate) == expected


def test_the_guides_lines_of_python_score_a_file_when_run_in_another_folder(run, tmp_path):
    text = (HERE / "corpora" / "README.md").read_text(encoding="utf-8")
    lines = r"(?:^    .*\n)*^    print\(evaluate.score_waveform.*\n"
    (block,) = re.findall(lines, text, re.MULTILINE)
    (tmp_path / "elsewhere").mkdir()
    noise = np.random.default_rng(0).normal(0, 3000, 16000).astype(np.int16)
    wavfile.write(tmp_path / "elsewhere" / "one.wav", 16000, noise)
    code = re.sub(r"^    ", "", block, flags=re.MULTILINE)
    code = code.replace('"runs/mine", backbone="studies.distilled"', f'"{run}"')
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path / "elsewhere", check=True,
                          capture_output=True, text=True,
                          env=os.environ | {"PYTHONPATH": str(HERE)})
    ((_, expected),) = evaluate.score(run, tmp_path / "elsewhere" / "one.wav")
    assert float(done.stdout) == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize(("waveform", "rate", "why"), [
    (torch.zeros(1, 16000), 16000, r"a waveform is \(T,\) floats .*of shape \(1, 16000\)"),
    (np.zeros(16000, np.int16), 16000, "int16"), (torch.ones(16000), -1, "at -1 Hz"),
    (torch.ones(16000), 3e9, "768 kHz"),
    (torch.ones(100), 16000, "the waveform: "), (torch.zeros(0), 16000, "the waveform: "),
    (torch.full((16000,), nan), 16000, "the waveform: holds NaN"),
    (torch.ones(16000), 0, "at 0 Hz"), (torch.ones(16000 * 61), 16000, "61.00 s long")])
def test_a_waveform_that_cannot_be_scored_is_refused_with_a_sentence_that_says_why(
        run, waveform, rate, why):
    with pytest.raises(data.InputError, match=why):
        evaluate.score_waveform(evaluate.load_run(run, "cpu"), waveform, rate)


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


def test_every_setting_is_an_option_of_the_command_line_and_reaches_training(monkeypatch):
    config = train.Config(
        "d", (0.0, 10.0), 5.0, "logmel", "o", "c", "cpu", seed=7, experts=3, hidden=9,
        batch_size=8, lambda_1=0.1, lambda_2=0.2, steps=4)
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
    (corpora.features, ["EMPTY"], "ratings.csv: cannot be read (No such file"),
    (corpora.features, [], "required"),
    (corpora.features, ["SMALL", "--backbone", "wav2vec"],
     "no backbone 'wav2vec' (No module named 'wav2vec')"),
    (corpora.features, ["SMALL", "--scale", "1", "3"], "off the scale of 1 to 3"),
    (corpora.features, ["SMALL", "--scale", "5", "1"], "--scale 5 1: the lower first"),
    (train, ["--batch-size", "9" * 30], "must be at least 1 and below"),
    (train, ["--data", "nowhere"], "nowhere: cannot be read (No such file"),
    (train, ["--data", "SMALL", "--out", "SMALL/ratings.csv"], "cannot be written"),
    (train, ["--data", "SMALL", "--max-seconds", "0.1"], "above --max-seconds 0.1"),
    (train, ["--device", "cuda:99"], "--device cuda:99 cannot be used here"),
    (train, ["--experts", "0"], "--experts 0: must be at least 1 and below 100"),
    (train, ["--experts", "99999999"], "below 100"),
    (train, ["--lambda-2", "nan"], "--lambda-2 nan"),
    (train, ["--max-seconds", "inf"], "below inf"),
    (train, ["--lambda-1", "-1"], "--lambda-1 -1.0: must be at least 0"),
    (train, ["--seed", str(2 ** 63)], "--seed 9223372036854775808: must be at least 0 and below"),
    (train, ["--out", ""], "must not be empty"), (train, ["--scale", "5", "1"], "--scale 5 1"),
    (train, ["--scale", "0", "1e39"], "a million"), (train, ["--exp", "2"], "unrecognized"),
    (train, ["--nonsense"], "unrecognized"), (evaluate, ["a", "b"], "unrecognized"),
    (evaluate, ["nowhere"], "nowhere/model.pt cannot be read (No such file"),
    (evaluate, ["RUN", "--device", "cuda:99"], "--device cuda:99 cannot be used here"),
    (evaluate, ["RUN", "--data", "SMALL", "--scale", "5", "1"], "--scale 5 1: the lower first"),
    (evaluate, ["RUN", "--scale", "0", "100"], "--scale needs --data, as it is the scale"),
    (evaluate, ["RUN", "--wav", "SMALL", "--scale", "1", "5"], "--scale needs --data"),
    (evaluate, ["--wav", "SMALL/40.wav", "RUN"], "run is a run; write it before --wav"),
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
    suffix = "" if module is corpora.features else r"\.py"
    assert err.startswith("usage: ") or re.fullmatch(rf"{module.__name__}{suffix}: .*\n", err)
    assert {path for path in tmp_path.rglob("*") if path.is_file()} == before  # Nothing was begun.


def test_a_run_that_diverges_or_is_interrupted_or_lacks_memory_ends_with_one_sentence(
        tmp_path, monkeypatch, capsys):
    def stopped_by(error):
        def stop(*_):
            raise error
        return stop
    memory = "memory ran out; fewer or shorter clips need less"
    for error, why in ((KeyboardInterrupt(), "KeyboardInterrupt"), (MemoryError(), memory),
                       (RuntimeError("DefaultCPUAllocator: can't allocate memory"), memory),
                       (FloatingPointError("the loss is\nnan"), "the loss is")):
        monkeypatch.setattr(train, "train", stopped_by(error))
        assert call(monkeypatch, train) == 2
        assert capsys.readouterr().err == f"train.py: {why}\n"
    monkeypatch.setattr(train, "train", stopped_by(RuntimeError("a fault of ours")))
    with pytest.raises(RuntimeError, match="a fault of ours"):  # It is shown in full.
        call(monkeypatch, train)


def test_an_error_message_is_one_line_and_quotes_at_most_80_characters_of_a_value(tmp_path):
    strange = tmp_path / "a\nb\x1b[31m.wav"
    with pytest.raises(data.InputError, match=r"a\\nb\\x1b\[31m\.wav: cannot be read") as caught:
        data.read_wav(strange, 16000)
    assert str(caught.value).isprintable()
    for row in ("a.wav,{},s,m,0,4", "{},train,s,m,0,4", "a.wav,train,s,m,0,{}"):
        for long, why in ((100_000 * "x", "row 2: .*xxx"), (10 ** 6 * "x", "ratings.csv")):
            with pytest.raises(data.InputError, match=why) as caught:
                data.read_ratings(manifest(tmp_path, [row.format(long)]))
            assert len(str(caught.value)) < 250 + len(str(tmp_path))
    long = 10 ** 6 * "x"
    for settings in ({"experts": long}, {"data": 5}):
        with pytest.raises(data.InputError) as caught:
            train.check(train.Config(**settings))
        assert len(str(caught.value)) < 200
    with pytest.raises(ValueError, match="no backbone 'xxx") as caught:
        moemos.load_backbone(long)
    assert len(str(caught.value)) < 300


def score_into(stream, run, wav, errors):
    """Runs evaluate.py --wav in this process, whose standard output is the stream of that name and
    whose standard error goes into a file."""
    os.dup2(os.open(errors, os.O_WRONLY | os.O_CREAT), 2)
    reading, writing = os.pipe()
    os.close(reading)
    if stream != "closed":
        os.dup2(os.open("/dev/full", os.O_WRONLY) if stream == "full disk" else writing, 1)
    sys.stdout, sys.stderr = (os.fdopen(number, "w", closefd=False) for number in (1, 2))
    sys.__stdout__ = sys.stdout  # An interpreter keeps its first stream until it ends.
    if stream == "closed":
        sys.stdout = sys.stderr = None
    sys.argv = ["evaluate.py", str(run), "--device", "cpu", "--wav", str(wav)]
    evaluate.main()


@pytest.mark.parametrize(("stream", "message", "status"), [
    ("full disk", "evaluate.py: [Errno 28] No space left on device\n", 2),
    ("closed pipe", "", 2), ("closed", "", 0)])
def test_a_full_disk_under_standard_output_is_reported_but_a_closed_output_is_not(
        small, run, tmp_path, stream, message, status):
    process = processes().Process(target=score_into,
                                  args=(stream, run, small / "40.wav", tmp_path / "errors"))
    process.start()
    assert wait(process) == [status]
    assert (tmp_path / "errors").read_text() == message


def test_names_with_characters_that_the_terminal_lacks_are_printed_anyway(
        small, run, tmp_path, monkeypatch):
    rows = [(small / f"{i}.wav", "test", f"漢{i % 2}", f"模{i % 2}", "r", 1 + i % 4)
            for i in range(6)]
    data.write_files({tmp_path / "ratings.csv": [COLUMNS, *rows]})
    strange = tmp_path / os.fsdecode(b"\xff.wav")  # It is not text in any encoding.
    shutil.copy(small / "40.wav", strange)
    for words, expected in ((["--data", tmp_path], rb"\u6a21"),
                            (["--wav", strange], b"/\xff.wav,")):
        terminal = io.TextIOWrapper(io.BytesIO(), encoding="latin-1")
        monkeypatch.setattr(sys, "stdout", terminal)
        assert call(monkeypatch, evaluate, run, *words) == 0
        terminal.flush()
        assert expected in terminal.buffer.getvalue()


BARE = """
import pwd, sys
def nobody(number):
    raise KeyError(f"getpwuid(): uid not found: {number}")
pwd.getpwuid = nobody
import train, evaluate
assert sys.getfilesystemencoding() != "utf-8" or sys.platform == "darwin"
common = ["--device", "cpu", "--backbone", "logmel"]
table, run = sys.argv[1:]
for module, words in ((train, ["--data", table, "--out", run, "--steps", "1", *common]),
                      (evaluate, [run, *common]), (evaluate, [run, *common, "--wav", table])):
    sys.argv = ["x", *words]
    try:
        module.main()
    except SystemExit as end:
        assert not end.code
"""


def test_it_runs_without_a_locale_and_without_a_user_name(small, tmp_path):
    """Files and systems have names in any language, but the locale is ASCII. The user's id has no
    entry in the password file, as with `docker run --user 12345`."""
    rows = []
    for i in range(12):
        (tmp_path / "漢" / "ü").mkdir(parents=True, exist_ok=True)
        shutil.copy(small / f"{i}.wav", tmp_path / "漢" / "ü" / f"é{i}.wav")
        rows.append((f"ü/é{i}.wav", "train" if i < 8 else "test", f"sÿ{i % 2}", f"模{i % 2}",
                     "" if i == 11 else "r", "" if i == 11 else 1 + i % 4))
    data.write_files({tmp_path / "漢" / "ratings.csv": [COLUMNS, *rows]})
    names = ("LOGNAME", "USER", "LNAME", "USERNAME", "TORCHINDUCTOR_CACHE_DIR")
    environment = {name: value for name, value in os.environ.items() if name not in names}
    environment |= {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0",
                    "PYTHONPATH": str(HERE)}
    command = [sys.executable, "-c", BARE, "漢".encode(), "ré".encode()]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr.decode()
    report, scores = done.stdout.split(b"wav,mos\n")
    assert rb"\u6a210" in report
    assert len(scores.splitlines()) == 12
    assert scores.startswith("漢/ü/é0.wav,".encode())
    predictions = table(tmp_path / "ré" / "predictions.csv")
    assert [row["wav"] for row in predictions] == [row[0] for row in rows[8:11]]
    assert [row["model"] for row in predictions] == ["模0", "模1", "模0"]
    assert (tmp_path / "ré" / "answer.txt").read_text("utf-8").startswith("é11,")


# -- Processes that are killed, or share a cache ---------------------------------------------------

def die_within_write(number):
    """Makes this process kill itself when half of the file of this number is written, from 1 on."""
    write_bytes, count = Path.write_bytes, itertools.count(1)

    def write(path, content):
        if next(count) < number:
            return write_bytes(path, content)
        write_bytes(path, content[:len(content) // 2])
        os.kill(os.getpid(), signal.SIGKILL)
    Path.write_bytes = write


def run_script(folder, name, words, environment, death):
    """This is what a process does that start() starts."""
    os.chdir(folder)
    os.environ.update(environment)
    sys.argv = [f"{name}.py", *map(str, words)]
    if death:
        die_within_write(death)
    with open(os.devnull, "w") as sys.stdout:
        importlib.import_module(name).main()


@functools.cache
def processes():
    """Starts processes from a server that has imported torch once, as that takes seconds."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["test_moemos", "torch._dynamo"])  # AdamW loads the latter.
    return context


def start(folder, name, *words, death=0, **environment):
    """Starts a script in a process of its own, in that folder."""
    process = processes().Process(target=run_script,
                                  args=(folder, name, words, environment, death))
    process.start()
    return process


def wait(*started):
    """Waits for processes -> their exit codes."""
    for process in started:
        process.join()
    return [process.exitcode for process in started]


def entries(cache):
    """Lists a cache -> {name of an entry: when it was written}."""
    return {path.name: path.stat().st_mtime_ns for path in cache.iterdir()}


TRAIN = (*LOGMEL, "--steps", 2, "--data")


def result(folder):
    return [(folder / name).read_bytes() for name in ("model.pt", "log.csv")]


@functools.cache
def undisturbed():
    """Gives the result of a process that nobody disturbs."""
    folder = scratch() / "undisturbed"
    folder.mkdir()
    assert wait(start(folder, "train", *TRAIN, small_corpus())) == [0]
    return result(folder / "runs" / "default")


def test_after_being_killed_during_any_write_training_gives_the_bytes_of_an_undisturbed_run(
        small, tmp_path):
    for death, whole_entries in (
            # It dies while it tries whether it can write into the folder, and while it writes the
            # first, a later and the last entry of the cache. Then, as all entries exist, it dies
            # while it writes log.csv and model.pt.
            (1, 0), (2, 0), (11, 9), (24, 31), (3, 32), (3, 32)):
        assert wait(start(tmp_path, "train", *TRAIN, small, death=death)) == [-signal.SIGKILL]
        names = (path.name for path in tmp_path.glob("cache/*"))
        assert sum(len(name) == 64 for name in names) == whole_entries
        assert not (tmp_path / "runs" / "default" / "model.pt").exists()
    assert wait(start(tmp_path, "train", *TRAIN, small)) == [0]
    assert result(tmp_path / "runs" / "default") == undisturbed()


def test_two_runs_that_share_a_cache_at_the_same_time_do_not_harm_each_other(small, tmp_path):
    both = [start(tmp_path, "train", *TRAIN, small, "--out", name) for name in "ab"]
    assert wait(*both) == [0, 0]
    assert len(entries(tmp_path / "cache")) == 32
    assert result(tmp_path / "a") == result(tmp_path / "b") == undisturbed()


@pytest.mark.parametrize(("rank", "processes"), [
    ("1", None), (None, "2"), ("2", "2"), ("-1", "2"), ("one", "2"), ("0", "0")])
def test_a_rank_and_a_world_size_that_do_not_fit_together_are_refused(
        small, monkeypatch, capsys, rank, processes):
    for name, value in (("RANK", rank), ("WORLD_SIZE", processes)):
        if value is not None:
            monkeypatch.setenv(name, value)
    assert call(monkeypatch, corpora.features, small, *LOGMEL) == 2
    assert "start with torchrun, or unset both" in capsys.readouterr().err


def test_two_processes_extract_half_of_the_features_each_and_training_extracts_no_more(
        small, tmp_path):
    for rank, done in (("1", 24), ("0", 48)):
        share = start(tmp_path, "corpora.features", small, *LOGMEL, RANK=rank, WORLD_SIZE="2")
        assert wait(share) == [0]
        assert len(entries(tmp_path / "cache")) == done
    before = entries(tmp_path / "cache")
    assert wait(start(tmp_path, "train", *TRAIN, small)) == [0]
    assert entries(tmp_path / "cache") == before
    assert result(tmp_path / "runs" / "default") == undisturbed()


def test_each_process_of_torchrun_reads_its_rank_and_the_number_of_processes(tmp_path, monkeypatch):
    words = ("--standalone", "--nproc-per-node", "2", "--no-python", "sh", "-c",
             "echo $RANK $WORLD_SIZE > $RANK")
    assert wait(start(tmp_path, "torch.distributed.run", *words)) == [0]
    for rank in (0, 1):
        for name, value in zip(("RANK", "WORLD_SIZE"), (tmp_path / f"{rank}").read_text().split()):
            monkeypatch.setenv(name, value)
        assert corpora.features.place_among_processes() == (rank, 2)


# -- How the tests run -----------------------------------------------------------------------------

NOISY_PLUGIN = """
import warnings
def pytest_configure():
    warnings.warn("from a plugin", DeprecationWarning)
"""
NOISY_TESTS = """
import getpass, warnings
def test_that_warns():
    warnings.warn("from a test")
def test_that_the_user_has_a_name():
    assert getpass.getuser()
"""


def test_a_warning_is_an_error_in_a_test_but_not_in_a_plugin_or_about_an_unwritable_cache(tmp_path):
    for name in (".pytest.ini", "conftest.py"):
        shutil.copy(HERE / name, tmp_path)
    lay_out(tmp_path, {"noisy_plugin.py": NOISY_PLUGIN, "test_noisy.py": NOISY_TESTS}, [])
    words = ("-p", "noisy_plugin", "--override-ini", "cache_dir=/dev/null/cache")
    done = subprocess.run([sys.executable, "-m", "pytest", *words], check=False, cwd=tmp_path,
                          env={"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}, text=True,
                          stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    assert done.returncode == pytest.ExitCode.TESTS_FAILED
    for message in ("from a plugin", "could not create cache path", "UserWarning: from a test\n",
                    "1 failed, 1 passed, "):
        assert message in done.stdout


def test_a_number_in_the_environment_shuffles_the_tests_always_in_the_same_way(monkeypatch):
    def run_in_order(number):
        monkeypatch.setenv("TEST_ORDER", number)
        items = [SimpleNamespace(number=i, add_marker=lambda mark: None) for i in range(20)]
        conftest.pytest_collection_modifyitems(items)
        return [item.number for item in items]
    one, again, other = (run_in_order(number) for number in "112")
    assert one == again != other
    assert sorted(one) == list(range(20)) != one


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


def test_the_core_imports_no_study_and_corpora_only_to_simulate_a_missing_corpus():
    ours = {module: {(function, name) for function, name in imports(tree(module))
                     if name.split(".")[0] in (*CORE, "corpora", "studies", "course")}
            for module in CORE}
    assert ours == {
        "moemos": set(), "data": {("", "moemos")},
        "train": {("", "moemos"), ("", "data"), ("read_clips", "corpora")},
        "evaluate": {("", "moemos"), ("", "data"), ("", "train")}}


@pytest.mark.parametrize("module", CORE)
def test_functions_are_at_most_40_lines_of_code_and_lines_at_most_100_columns(module):
    lines = (HERE / f"{module}.py").read_text().splitlines()
    for node in ast.walk(tree(module)):
        if isinstance(node, ast.FunctionDef):
            text = ast.get_docstring(node, clean=False) or ""
            code = [line for line in lines[node.lineno - 1:node.end_lineno]
                    if line.strip() and not line.strip().startswith("#")]
            assert len(code) - len(text.strip().splitlines()) <= 40, node.name
    assert [line for line in lines if len(line) > 100] == []


def test_the_functions_that_other_code_imports_from_the_core_exist():
    for name in ("moemos.load_backbone", "moemos.Backbone.extract", "moemos.pool_statistics",
                 "moemos.MoEMOS", "moemos.Output", "moemos.diversity_loss", "moemos.sparsity_loss",
                 "moemos.losses", "moemos.mse", "moemos.lcc", "moemos.srcc", "moemos.ktau",
                 "moemos.metrics", "train.learning_rate", "train.alpha_at", "data.read_wav",
                 "data.read_ratings", "evaluate.score"):
        assert callable(pkgutil.resolve_name(name)), name
    assert train.Stage._fields == ("name", "steps", "lr", "alpha_start", "alpha_end")
