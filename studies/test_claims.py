"""Tests of what experiments may claim: the seeds that are needed, and what Holm leaves."""

import json

import numpy as np
import pytest
import scipy.stats

import evaluate
from studies import claims, experiments
from test_moemos import call, no_network  # noqa: F401 - a fixture


def test_yardsticks_are_half_of_the_papers_gains_at_system_level():
    assert claims.YARDSTICKS["system", "LCC"] == pytest.approx((0.978 - 0.941) / 2)
    assert claims.YARDSTICKS["system", "MSE"] == pytest.approx((0.119 - 0.056) / 2)


@pytest.mark.parametrize("deviation", [0.3, 1.0, 2.0])
def test_with_the_seeds_needed_80_of_100_true_differences_are_shown(deviation):
    n = claims.seeds_needed(deviation, 1.0)
    rng = np.random.default_rng(0)
    power = []
    for pairs in (n, n - 1):
        differences = 1.0 + deviation * rng.normal(size=(4000, pairs))
        if pairs == 1:
            power.append(0.0)  # of which there is no interval
            continue
        test = scipy.stats.ttest_1samp(differences, 0.0, axis=1)
        power.append(np.mean(test.pvalue < 0.05))
    assert power[0] > 0.78
    assert power[1] < 0.82


def test_seeds_needed_of_no_spread_and_of_too_much():
    assert claims.seeds_needed(0.0, 0.01) == 2
    assert claims.seeds_needed(1.0, 0.01, most=50) == 51


def row(variant, first=None, p=1.0, deviation=0.01):
    if first is None:
        return {"variant": variant}
    numbers = evaluate.nested([[0.02, 0.01, 0.03, p]] * 8)
    return {"variant": variant, "first": first, "pairs": 5, "own_corpora": True,
            "sd_of_pairs": evaluate.nested([deviation] * 8),
            "difference": {"these": numbers, "others": numbers}}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Comparisons of two experiments, of which one is in both."""
    monkeypatch.chdir(tmp_path)
    root = tmp_path / experiments.ROOT / experiments.SIMULATED
    root.mkdir(parents=True)
    rows = [row("1: default"), row("2: experts=1", 1, 0.001), row("3: experts=8", 1, 0.03)]
    (root / "experts.json").write_text(json.dumps(rows))
    rows = [row("1: default"), row("2: experts=8", 1, 0.03), row("3: experts=2", 2, 0.5)]
    (root / "collapse.json").write_text(json.dumps(rows))
    return root


def test_a_comparison_of_two_experiments_counts_once(folder):
    assert list(claims.read_comparisons("simulated")) == [
        "experts=1 - default", "experts=8 - default", "experts=2 - experts=8"]


def test_what_is_printed_is_what_holm_leaves_of_all_comparisons(folder, monkeypatch, capsys):
    assert call(monkeypatch, claims) == 0
    power, _, found = capsys.readouterr().out.partition("\n\n")
    needed = [claims.seeds_needed(0.01, difference) for difference in claims.YARDSTICKS.values()]
    for line in power.splitlines()[2:]:
        assert [int(word) for word in line.split()[-4:]] == [5, *needed]
    first, _, *lines = found.splitlines()
    assert first == ("12 comparisons, of which 0.6 would have p < .05 by chance; 8 have, and 4 of "
                     "them after Holm's correction:")
    assert len(lines) == 8
    for place, line in enumerate(lines):  # p of .001 four times, of .03 four times
        adjusted = 12 * 0.001 if place < 4 else 8 * 0.03
        assert f"{adjusted:7.4f}" in line
        assert line.endswith(" *") is (place < 4)
        assert "+.020 [+.010, +.030]" in line


def test_ratings_by_another_panel_are_no_comparison(folder, monkeypatch):
    rows = [row("1: default"), row("2: strict panel", 1), row("3: raters=yes,strict", 2),
            row("4: raters=yes,second", 1)]
    (folder / "adaptation.json").write_text(json.dumps(rows))
    assert "strict panel - default" not in claims.read_comparisons("simulated")
    assert "raters=yes,strict - strict panel" in claims.read_comparisons("simulated")
    assert "raters=yes,second - default" in claims.read_comparisons("simulated")


def test_pairs_on_one_corpus_have_no_table_of_power(folder, monkeypatch, capsys):
    shared = row("2: experts=1", 1) | {"own_corpora": False}
    (folder / "experts.json").write_text(json.dumps([row("1: default"), shared]))
    (folder / "collapse.json").unlink()
    assert call(monkeypatch, claims) == 0
    assert "pairs with which" not in capsys.readouterr().out


def test_what_is_no_comparison_gets_one_sentence(folder, monkeypatch, capsys):
    assert call(monkeypatch, claims, "--on", "nowhere") == 2
    assert "nowhere has no comparison; run studies.experiments" in capsys.readouterr().err
    (folder / "experts.json").write_text("[1]")
    assert call(monkeypatch, claims) == 2
    assert "experts.json: is damaged or of another version" in capsys.readouterr().err
