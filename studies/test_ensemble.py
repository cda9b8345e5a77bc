"""Tests of several runs as one predictor: means and spreads by hand, and what is refused."""

import csv
import functools
import os
import shutil

import numpy as np
import pytest
import scipy.stats

import data
import evaluate
import moemos
import train
from studies import ensemble
from test_moemos import (  # noqa: F401 - fixtures
    call,
    no_network,
    quick,
    scratch,
    small,
    small_corpus,
)


@functools.cache
def three_runs():
    """Of the small corpus and three seeds -> their folders."""
    folders = [scratch() / "ensemble" / str(seed) for seed in range(3)]
    for seed, folder in enumerate(folders):
        train.train(quick(small_corpus(), scratch(), seed=seed, out=str(folder),
                          cache=str(scratch() / "ensemble" / "cache")))
    return folders


@pytest.fixture
def runs():
    return three_runs()


def other_run(corpus, tmp_path, **settings):
    """A run of one step in another folder -> the folder."""
    train.train(quick(corpus, tmp_path, steps=1, **settings))
    return tmp_path / "run"


def lines(capsys):
    return list(csv.reader(capsys.readouterr().out.splitlines()))


# -- Scores of one's own clips ---------------------------------------------------------------------

def test_mean_and_spread_are_numpys_of_the_scores_of_each_run(small, runs):
    paths = [small / name for name in ("3.wav", "40.wav", "6.wav")]
    own = np.array([list(dict(evaluate.score(run, paths)).values()) for run in runs])
    found = list(ensemble.score(runs, paths))
    assert [path for path, _, _ in found] == list(map(str, paths))
    assert [mean for _, mean, _ in found] == pytest.approx(own.mean(0))
    assert [spread for _, _, spread in found] == pytest.approx(own.std(0))
    assert min(spread for _, _, spread in found) > 0  # the runs differ


def test_mean_and_spread_of_two_runs_by_hand(small, runs):
    one, other = (dict(evaluate.score(run, [small / "3.wav"])).popitem()[1] for run in runs[:2])
    ((_, mean, spread),) = ensemble.score(runs[:2], [small / "3.wav"])
    assert (mean, spread) == pytest.approx(((one + other) / 2, abs(one - other) / 2))


def test_a_file_that_cannot_be_used_is_skipped_with_status_1(
        small, runs, tmp_path, monkeypatch, capsys):
    (tmp_path / "a.wav").write_text("text")
    shutil.copy(small / "3.wav", tmp_path / "b.wav")
    assert call(monkeypatch, ensemble, *runs, "--wav", tmp_path) == 1
    out, err = capsys.readouterr()
    assert err.startswith(f"skipped: {tmp_path}/a.wav: ")
    header, row = csv.reader(out.splitlines())
    ((_, mean, spread),) = ensemble.score(runs, [small / "3.wav"])
    assert header == ["wav", "mos", "spread"]
    assert row == [str(tmp_path / "b.wav"), f"{mean:.4f}", f"{spread:.4f}"]
    (tmp_path / "a.wav").unlink()
    assert call(monkeypatch, ensemble, *runs, "--wav", tmp_path) == 0


def test_a_name_of_any_bytes_is_printed_as_it_is(
        small, runs, tmp_path, monkeypatch, capsysbinary):
    name = os.fsencode(tmp_path) + b"/\xff,\xc3\xa4.wav"
    shutil.copy(small / "3.wav", name)
    assert call(monkeypatch, ensemble, *runs, "--wav", tmp_path) == 0
    assert b'"' + name + b'",' in capsysbinary.readouterr().out


# -- On the test clips -----------------------------------------------------------------------------

def test_the_rows_are_the_mean_of_the_runs_numbers_and_the_numbers_of_their_mean(
        small, runs, capsys):
    test = [own for own in data.read_manifest(small) if own.split == "test"]
    true, system = [own.mos for own in test], [own.system for own in test]
    said = np.array([list(dict(evaluate.score(run, [own.path for own in test])).values())
                     for run in runs])
    ensemble.measure(runs)
    *_, single, together, last = capsys.readouterr().out.splitlines()
    own = [evaluate.eight(moemos.metrics(row, true, system)) for row in said]
    of_mean = evaluate.eight(moemos.metrics(said.mean(0), true, system))
    assert single.startswith("3 single runs, on average ")
    assert together.startswith("their mean as one predictor ")
    assert single[34:].split() == [f"{value:.3f}" for value in np.mean(own, axis=0)]
    assert together[34:].split() == [f"{value:.3f}" for value in of_mean]
    spread, error = said.std(0), np.abs(said.mean(0) - true)
    srcc = scipy.stats.spearmanr(spread, error).statistic
    assert last == (f"spread of a clip: {spread.mean():.3f} on average; its error: "
                    f"{error.mean():.3f}; SRCC of the two: {srcc:.3f}")


def test_the_mean_has_no_larger_squared_error_than_the_runs_on_average(runs, capsys):
    ensemble.measure(runs)
    *_, single, together, _ = capsys.readouterr().out.splitlines()
    assert float(together[34:].split()[0]) <= float(single[34:].split()[0])


# -- What is refused -------------------------------------------------------------------------------

def refusal(monkeypatch, capsys, *words):
    """What is said, in one sentence and nothing else, of what is refused."""
    capsys.readouterr()
    assert call(monkeypatch, ensemble, *words) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    return err


@pytest.mark.parametrize("wav", [(), ("--wav", "a.wav")])
def test_a_single_run_or_none_that_is_whole_is_refused(runs, monkeypatch, capsys, wav):
    said = refusal(monkeypatch, capsys, runs[0], *wav)
    assert "a mean needs two runs or more" in said
    assert "nowhere/model.pt is missing" in refusal(monkeypatch, capsys, runs[0], "nowhere", *wav)


@pytest.mark.parametrize(("settings", "why"), [
    ({"scale": (0.0, 5.0)}, "has another scale than"),
    ({"backbone": "logmel48"}, "has another backbone than")])
def test_runs_of_another_scale_or_backbone_are_refused(
        small, runs, tmp_path, monkeypatch, capsys, settings, why):
    other = other_run(small, tmp_path, **settings)
    for wav in ((), ("--wav", small / "3.wav")):
        said = refusal(monkeypatch, capsys, *runs, other, *wav)
        assert f"{other} {why} {runs[0]};" in said


def test_runs_of_other_corpora_are_refused_on_test_clips_but_score_together(
        small, runs, tmp_path, monkeypatch, capsys):
    copy = shutil.copytree(small, tmp_path / "copy")
    other = other_run(copy, tmp_path)
    said = refusal(monkeypatch, capsys, *runs, other)
    assert f"different corpora: {', '.join(sorted([str(small), str(copy)]))}" in said
    assert call(monkeypatch, ensemble, *runs, other, "--wav", small / "3.wav") == 0
    assert len(lines(capsys)) == 2


def test_a_corpus_without_rated_test_clips_is_refused(small, runs, monkeypatch, capsys):
    clips = [own for own in data.read_manifest(small) if own.split == "train"]
    monkeypatch.setattr(data, "read_manifest", lambda *others: clips)
    assert "has no rated test clips" in refusal(monkeypatch, capsys, *runs)
