"""Tests of the random settings: their bounds, what they learn from, the printed spread."""

import numpy as np
import pytest

import data
import evaluate
import moemos
import train
from studies import plateau
from studies.test_choose import in_this_process, learned, names_of  # noqa: F401 - fixtures
from test_moemos import call, no_network, small  # noqa: F401 - fixtures

DEFAULT = train.Config(backbone="logmel")


@pytest.fixture
def folder(small, tmp_path, monkeypatch):
    """A folder to run in, in which the small corpus stands for the simulated one."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(plateau, "prepare", {plateau.CORPUS: str(small)}.get)
    return tmp_path


# -- Settings --------------------------------------------------------------------------------------

def test_settings_stay_within_their_bounds_and_reach_both_halves_of_them():
    ratios, configs = [], []
    for number in range(plateau.SETTINGS):
        config, stages = plateau.draw(number)
        train.check(config)
        configs.append(config)
        ratios.append([getattr(config, name) / getattr(DEFAULT, name) for name in plateau.NEAR]
                      + [own.steps / usual.steps for own, usual in zip(stages, train.STAGES)]
                      + [stages[1].lr / train.STAGES[1].lr])
    ratios = np.array(ratios)
    assert ratios.min() >= 0.5
    assert ratios.max() <= 2
    assert (ratios.min(0) < 0.6).all()
    assert (ratios.max(0) > 1.7).all()
    assert np.abs((ratios < 1).mean(0) - 0.5).max() < 0.15  # as often halved as doubled
    assert {config.experts for config in configs} == set(range(2, 9))
    dropout = [config.dropout for config in configs]
    assert 0.55 <= min(dropout) < 0.57
    assert 0.83 < max(dropout) <= 0.85


def test_all_else_is_the_defaults():
    drawn = {*plateau.NEAR, "dropout", "experts"}
    for number in range(20):
        config, stages = plateau.draw(number)
        for name in train.Config.__dataclass_fields__:
            if name not in drawn | {"seed"}:
                assert getattr(config, name) == getattr(DEFAULT, name)
        assert config.seed == number
        for i, (own, usual) in enumerate(zip(stages, train.STAGES, strict=True)):
            assert own._replace(steps=usual.steps, lr=usual.lr) == usual
            assert i == 1 or own.lr == usual.lr


def test_a_number_is_the_same_setting_on_every_call_and_no_others():
    assert plateau.draw(3) == plateau.draw(3)
    assert len({str(plateau.draw(number)) for number in range(plateau.SETTINGS)}) == 200


# -- Runs ------------------------------------------------------------------------------------------

@pytest.mark.parametrize(("number", "seed"), [(-1, 0), (-3, 2), (0, 0), (5, 5)])
def test_a_run_has_its_setting_and_learns_from_training_clips_alone(
        small, folder, learned, number, seed):
    plateau.try_some("cache", [number])
    ((stages, config, training, validation),) = learned
    if number >= 0:
        assert (config, stages) == plateau.draw(number)
    else:
        assert (config, stages) == (train.Config(backbone="logmel", seed=seed), train.STAGES)
    clips = data.read_manifest(small)
    for part, split in ((training, "train"), (validation, "test")):
        assert names_of(part, small, "cache") == [own.wav for own in clips if own.split == split]


def test_numbers_of_a_run_by_hand(folder, monkeypatch):
    def off_by_a_half(everything, rows, new, *others):
        return everything.mos.numpy()[new] + 0.5
    monkeypatch.setattr(plateau, "learn", off_by_a_half)
    assert plateau.try_some("cache", [-1])[0] == pytest.approx((0.25, 1, 1))


def test_ridge_is_of_all_rated_training_clips(small, folder):
    clips = data.read_manifest(small)
    backbone = moemos.load_backbone("logmel")
    x = data.extract_features(clips, backbone, "cache").flatten(1).double().numpy()
    mos = np.array([own.mos for own in clips])
    known = np.array([own.split == "train" and bool(own.ratings) for own in clips])
    new = np.array([own.split == "test" for own in clips])
    predicted = evaluate.ridge(x[known], mos[known], x[new])
    expected = (np.mean((predicted - mos[new]) ** 2), np.corrcoef(predicted, mos[new])[0, 1])
    assert plateau.by_ridge("cache")[:2] == pytest.approx(expected)


def test_the_table_has_the_spread_of_both_groups_and_the_share_better_than_ridge(
        monkeypatch, capsys):
    """Three seeds have MSE 1, 2, 3, five settings 10, 11, ... 14; LCC a tenth, system LCC half."""
    def known(cache, numbers):
        errors = [10.0 + number if number >= 0 else -number for number in numbers]
        return [(mse, mse / 10, mse / 2) for mse in errors]
    in_this_process(monkeypatch, plateau)
    monkeypatch.setattr(plateau, "SEEDS", 3)
    monkeypatch.setattr(plateau, "SETTINGS", 5)
    monkeypatch.setattr(plateau, "try_some", known)
    monkeypatch.setattr(plateau, "by_ridge", lambda cache: (9.0, 1.15, 7.0))
    assert call(monkeypatch, plateau, "--cache", "c") == 0
    _, default, *rows = capsys.readouterr().out.splitlines()
    assert (default, rows[3]) == ("default, 3 seeds", "5 random settings")
    assert [row.split()[2:] for row in rows[:3]] == [
        ["1.000", "1.100", "2.000", "2.900", "3.000", "0.8165", "9.000"],
        ["0.100", "0.110", "0.200", "0.290", "0.300", "0.0816", "1.150"],
        ["0.500", "0.550", "1.000", "1.450", "1.500", "0.4082", "7.000"]]
    assert rows[4].split()[2:] == [
        "10.000", "10.200", "12.000", "13.800", "14.000", "1.4142", "9.000"]
    assert rows[7] == "of the random settings 60 % have a higher utterance LCC than ridge"
