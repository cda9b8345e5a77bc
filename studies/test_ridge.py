"""Tests of studies/ridge.py, scores of the linear model."""

from pathlib import Path

import numpy as np
import pytest

import data
import evaluate
import moemos
from studies import ridge
from test_moemos import call, lay_out, no_network, run  # noqa: F401 - fixtures


def test_scores_are_those_of_ridge_on_the_rated_training_clips_of_the_run(
        run, monkeypatch, capsys):
    trained = evaluate.load_run(run)
    config = trained.config
    clips = data.read_ratings(config.data, config.scale)
    training = [clip for clip in clips if clip.split == "train" and clip.ratings]
    new = [clip for clip in clips if clip.split == "test"][:2]
    x, x_new = (data.extract_features(some, trained.backbone, config.cache).flatten(1).double()
                .numpy() for some in (training, new))
    mos = np.array([clip.mos for clip in training])
    (expected,) = moemos.ridge(x, mos, x_new, [trained.model.penalty.item()])
    paths = [str(clip.path) for clip in new]
    assert dict(ridge.score(run, paths)) == pytest.approx(dict(zip(paths, expected)), abs=1e-9)
    assert call(monkeypatch, ridge, str(run), "--wav", *paths) == 0
    lines = [f"{path},{score:.4f}" for path, score in zip(paths, expected)]
    assert capsys.readouterr().out.splitlines() == ["wav,mos", *lines]


def test_a_folder_is_scored_and_a_file_that_is_no_wav_is_refused_in_one_sentence(
        run, tmp_path, monkeypatch, capsys):
    lay_out(tmp_path, {"bad.wav": "no sound"}, wavs=["some/a.wav", "some/b/c.wav"])
    scored = dict(ridge.score(run, [tmp_path / "some"]))
    assert [Path(path).name for path in scored] == ["a.wav", "c.wav"]
    assert np.isfinite(list(scored.values())).all()
    assert call(monkeypatch, ridge, str(run), "--wav", str(tmp_path / "bad.wav")) == 2
    assert "bad.wav: not a whole WAV file" in capsys.readouterr().err


def test_a_table_that_has_lost_its_ratings_since_training_is_refused(run, tmp_path, monkeypatch):
    lay_out(tmp_path, {}, wavs=["a.wav"])
    monkeypatch.setattr(data, "read_ratings", lambda *_: [])
    with pytest.raises(data.InputError, match="fewer than two are left, so train again"):
        ridge.score(run, [tmp_path / "a.wav"])
