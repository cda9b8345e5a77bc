"""Tests of studies/distilled.py, a learned backbone that is installed by pip."""


import os
import re
import subprocess
import sys

import numpy as np
import pytest
import torch

import data
import evaluate
import moemos
import train
from corpora import simulated
from studies import distilled, lab, variants
from test_moemos import HERE, call, lay_out, no_network, table  # noqa: F401 - fixture

needs_distillmos = pytest.mark.skipif(
    distilled.distillmos is None, reason="distillmos is not a requirement and not installed")


@pytest.fixture(scope="module")
def backbone():
    return moemos.load_backbone("studies.distilled")


def noise(samples, seed=0):
    return 0.1 * torch.randn(samples, generator=torch.Generator().manual_seed(seed))


def distance(one, other):
    """The norm of the difference of two features, divided by that of the first."""
    return ((one - other).norm() / one.norm()).item()


def test_if_the_package_is_missing_the_error_says_how_to_install_it(monkeypatch):
    monkeypatch.setattr(distilled, "distillmos", None)
    with pytest.raises(data.InputError, match="needs `pip install distillmos`"):
        distilled.load()


@needs_distillmos
@pytest.mark.parametrize("samples", [400, 640, 16319, distilled.WINDOW + 100, 140000])
def test_it_has_seven_layers_of_width_200_with_a_frame_for_each_320_samples(backbone, samples):
    layers, _ = backbone.network.extract_features(noise(samples)[None])
    assert [tuple(layer.shape) for layer in layers] == [(1, samples // 320, 200)] * 7
    assert (backbone.layers, backbone.width, backbone.sample_rate) == (7, 200, 16000)


@needs_distillmos
def test_the_features_of_a_clip_depend_neither_on_other_clips_nor_on_its_level(backbone):
    clip = noise(16000)
    alone = backbone.extract(clip)
    backbone.extract(noise(20000, seed=1))
    assert torch.equal(backbone.extract(clip), alone)
    assert distance(alone, backbone.extract(noise(16000, seed=1))) > 0.01
    for gain in (0.1, 0.5, 2):
        assert distance(alone, backbone.extract(gain * clip)) < 1e-3


@needs_distillmos
def test_a_long_clip_is_encoded_in_pieces_without_the_frames_of_padding(backbone):
    clip = noise(2 * distilled.WINDOW + 8000)
    pieces = [backbone.extract(piece) for piece in clip.split(distilled.WINDOW)]
    assert [piece.shape[1] for piece in pieces] == [384, 384, 25]
    torch.testing.assert_close(backbone.extract(clip), torch.cat(pieces, dim=1))
    with torch.no_grad():
        padded = backbone.network.layers(clip[None, -8000:])
    assert padded[0].shape[1] > 25


@needs_distillmos
def test_distillmos_itself_predicts_a_mos_between_1_and_5(backbone):
    rng = np.random.default_rng(0)
    phones, talker = simulated.speak(rng), simulated.talk(rng, studio=False)
    speech = simulated.synthesize(phones, talker, {}, 16000, rng) / 32768
    mos = distilled.zero_shot(backbone, torch.from_numpy(speech).float())
    assert 1 < mos < 5
    assert backbone.network.heard == []  # else each clip would take memory


@needs_distillmos
def test_the_guides_lines_of_python_print_the_lcc_of_distillmos_itself_on_the_rated_clips(
        backbone, tmp_path):
    text = (HERE / "corpora" / "README.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"(?:^    .*\n)*^    print\(moemos.lcc.*\n", text, re.MULTILINE)
    wavs = ["a.wav", "b.wav", "c.wav", "d.wav"]
    scores = ["1", "4", "2", ""]
    rows = [f"{wav},train,s,{'r' if score else ''},{score}\n" for wav, score in zip(wavs, scores)]
    table = "wav,split,system,rater,score\n" + "".join(rows)
    lay_out(tmp_path, {"split.csv": table}, wavs)
    done = subprocess.run([sys.executable, "-c", re.sub("^    ", "", code, flags=re.MULTILINE)],
                          cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(HERE)}, check=True,
                          capture_output=True, text=True)
    predicted = [distilled.zero_shot(backbone, data.read_wav(tmp_path / wav, 16000))
                 for wav in wavs[:3]]
    assert float(done.stdout) == pytest.approx(np.corrcoef(predicted, [1, 4, 2])[0, 1], abs=1e-4)


@needs_distillmos
def test_as_a_variant_distillmos_itself_predicts_each_clip_from_its_own_file_alone(
        backbone, tmp_path):
    lay_out(tmp_path, {}, ["a.wav", "b.wav", "c.wav"])
    clips = [data.Clip(name, tmp_path / name, "test", "s", "s", name)
             for name in ("a.wav", "b.wav", "c.wav")]
    corpus = lab.Corpus(clips, torch.zeros(3, 7, 400), backbone)
    predicted = np.array([True, False, True])
    mos, gates = variants.by_distilled(variants.DISTILLED, corpus, ~predicted, predicted, 0, "test")
    expected = [distilled.zero_shot(backbone, data.read_wav(tmp_path / name, 16000))
                for name in ("a.wav", "c.wav")]
    assert mos.tolist() == expected
    assert mos[0] != mos[1]
    assert gates is None


@needs_distillmos
def test_a_run_on_this_backbone_can_be_evaluated_only_if_the_module_is_named_again(
        tmp_path, monkeypatch, capsys):
    wavs = [f"{i}.wav" for i in range(6)]
    rows = [f"{wav},{'test' if i > 3 else 'train'},s{i % 2},l,{1 + i % 4}\n"
            for i, wav in enumerate(wavs)]
    lay_out(tmp_path, {"ratings.csv": "wav,split,system,rater,score\n" + "".join(rows)}, wavs)
    run = tmp_path / "run"
    words = ("--backbone", "studies.distilled", "--device", "cpu")
    assert call(monkeypatch, train, "--data", tmp_path, "--cache", tmp_path / "cache",
                "--steps", 2, "--out", run, *words) == 0
    assert call(monkeypatch, evaluate, run, "--device", "cpu") == 2
    assert "trained on backbone 'studies.distilled': give it as --backbone" in (
        capsys.readouterr().err)
    assert call(monkeypatch, evaluate, run, *words) == 0
    assert len(table(run / "predictions.csv")) == 2
