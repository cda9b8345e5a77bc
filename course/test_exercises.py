"""Tests that the scripts in exercises.md run as they stand, and give what the text says of them.

A script replaces parts of the method while it runs; after each test they are put back."""

import functools
import re

import numpy as np
import pytest
import torchaudio

import data
import evaluate
import moemos
import train
from test_moemos import (  # noqa: F401 - fixture
    HERE,
    no_network,
    quick,
    simulated_corpus,
    simulated_run,
    small_corpus,
    small_run,
)

TEXT = (HERE / "course" / "exercises.md").read_text(encoding="utf-8")
SECTIONS = dict(re.findall(r"^## \d+\. (.*)\n((?:(?!## ).*\n)*)", TEXT, re.MULTILINE))
SILENCE, TORN, PADDING, COLLAPSE, GATE, HARD, NO_MOS, RIDGE, FUSION = SECTIONS


def script(title):
    """The script of a question, as a student saves it."""
    lines = re.findall(r"^(?:    .*|)\n", SECTIONS[title], re.MULTILINE)
    return "".join(line.removeprefix("    ") for line in lines)


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A function that makes the current folder one in which the default run was trained, on the
    simulated corpus or on the small one. After the test the modules are as they were."""
    for module in (data, moemos, train, evaluate):
        for name, value in vars(module).items():
            monkeypatch.setattr(module, name, value)
    monkeypatch.chdir(tmp_path)

    def lay_out(corpus, run):
        (tmp_path / "corpus").symlink_to(corpus)
        (tmp_path / "cache").symlink_to(quick(corpus, tmp_path).cache)
        (tmp_path / "runs").mkdir()
        (tmp_path / "runs" / "default").symlink_to(run)
    return lay_out


def printed(capsys, code, **replaced):
    """Runs a script, some of whose text is replaced by other text -> what it prints."""
    for old, new in replaced.values():
        assert old in code
        code = code.replace(old, new)
    capsys.readouterr()
    exec(compile(code, "script", "exec"), {"__name__": "__main__"})  # noqa: S102 - our own text
    return capsys.readouterr().out


def numbers(text, words):
    """The numbers that follow these words in a text."""
    return [float(number) for number in re.findall(rf"{words} (-?\d+(?:\.\d+)?)", text)]


def test_every_question_says_what_to_run_what_to_look_at_and_how_to_know():
    assert len(SECTIONS) == 9
    for title, text in SECTIONS.items():
        assert script(title).strip(), title
        assert text.index("\n    ") < text.index("**Look at**") < text.index("**How to know.**")


def test_no_question_asks_to_edit_the_method():
    assert "None of the questions asks you to edit" in TEXT
    for title in SECTIONS:
        assert not re.search(r"write_text|open\(", script(title))


def test_silence_at_the_ends_changes_nothing_if_it_is_cut_and_the_spectrum_if_it_is_not(
        place, capsys):
    place(simulated_corpus(), simulated_run()[0])
    lines = printed(capsys, script(SILENCE)).splitlines()
    assert len(lines) == 4
    assert lines[0] == lines[1]
    usual, longer = (numbers(line, "spectrum")[0] for line in lines[2:])
    assert usual - longer > 2


def test_silence_in_the_middle_is_not_cut(place, capsys):
    place(simulated_corpus(), simulated_run()[0])
    out = printed(capsys, script(SILENCE), middle=(
        "[silence, samples, silence]", "[samples[:30000], silence, samples[30000:]]"))
    first, second, *_ = [int(count) for count in re.findall(r"^(\d+) samples", out, re.MULTILINE)]
    assert second - first == 16000


def test_folds_that_split_talkers_promise_too_small_an_error_unless_talkers_are_unrecognisable(
        capsys):
    out = printed(capsys, script(TORN))
    whole, torn = numbers(out, "promised error")
    assert 0.9 < whole < 1.2 and torn < 0.5
    whole, torn = numbers(out, "on new talkers")
    assert 0.9 < whole < 1.2 and torn > 3
    strong, weak = re.findall(r"penalty (\S+),", out)
    assert float(strong) > 1000 * float(weak)

    out = printed(capsys, script(TORN), noise=("0.1 * rng", "3 * rng"))
    whole, torn = numbers(out, "promised error")
    assert whole == pytest.approx(torn, abs=0.2)
    assert torn > 0.8


def test_padding_changes_the_features_of_a_clip_and_more_padding_changes_them_more(
        monkeypatch, capsys):
    once = functools.cache(torchaudio.models.wav2vec2_base)  # as it takes seconds to draw
    monkeypatch.setattr(torchaudio.models, "wav2vec2_base", once)
    one = numbers(printed(capsys, script(PADDING)), "changes by")
    assert len(one) == 2 and min(one) > 10
    alone = numbers(printed(
        capsys, script(PADDING), batch=("torch.stack([torch.nn", "clip[None]; ([torch.nn"),
        lengths=("torch.tensor([16000, 32000])", "torch.tensor([16000])")), "changes by")
    assert alone == [0, 0]
    three = numbers(printed(
        capsys, script(PADDING), padding=("(0, 16000)", "(0, 48000)"),
        other=("torch.randn(32000)", "torch.randn(64000)"),
        lengths=("[16000, 32000]", "[16000, 64000]")), "changes by")
    assert all(more > less for more, less in zip(three, one, strict=True))


def test_with_the_sparsity_loss_alone_the_gates_collapse_and_the_diversity_loss_prevents_it(
        place, capsys):
    place(simulated_corpus(), simulated_run()[0])
    out = printed(capsys, script(COLLAPSE))
    mean_gates = [[float(gate) for gate in gates.split(", ")]
                  for gates in re.findall(r"mean gates \[(.*)\], ", out)]
    of_a_clip, of_the_mean = (numbers(out, f"of {what} gates") for what in ("a clip's", "the mean"))
    slow, collapsed, cured = mean_gates
    assert min(slow) > 0.2 and of_a_clip[0] > 1.3
    assert max(collapsed) > 1.5 * min(collapsed)
    assert max(cured) < 1.4 * min(cured)
    assert max(of_a_clip[1:]) < 0.6 and of_the_mean[1] < of_the_mean[2] - 0.02


def test_the_share_of_variance_between_groups_is_right_if_the_answer_is_known(place, capsys):
    place(simulated_corpus(), simulated_run()[0])
    more = """
print("MOS by quality:", f"{share(mos[:, None], quality):.3f}")
columns = (systems[:, None] == np.unique(systems)).astype(float)
print("columns by systems:", f"{share(columns, systems):.3f}")
"""
    out = printed(capsys, script(GATE) + more)
    assert numbers(out, "MOS by quality:")[0] > 0.95
    assert numbers(out, "columns by systems:") == [1]
    assert numbers(out, "chance:")[0] == pytest.approx(19 / 399, abs=0.03)
    for name in ("systems:", "quality:"):
        assert 0 < numbers(out, name)[0] < 1


@pytest.mark.parametrize(("gate", "learns"), [("HardGate", False), ("torch.nn.Linear", True)])
def test_a_hard_gate_does_not_learn_and_a_soft_one_does(place, capsys, gate, learns):
    place(small_corpus(), small_run())
    out = printed(capsys, script(HARD), gate=("HardGate(axes", f"{gate}(axes"),
                  steps=('"runs/hard"', '"runs/hard", steps=2'))
    (change,) = numbers(out, "weight of the gate:")
    assert (change > 0) is learns


def test_a_class_label_changes_the_weights_that_compute_y_unless_its_gradient_is_cut_off(capsys):
    out = printed(capsys, script(NO_MOS))
    assert re.findall(r"^(\S+) +stays$", out, re.MULTILINE) == ["mos_head.weight", "mos_head.bias"]
    assert "moe.gate.weight          moves" in out
    (cut,) = re.findall(r"`(output = output\._replace\([^`]*)`", SECTIONS[NO_MOS])
    cut = re.sub(r"\s*\n\s*", "", cut)
    out = printed(capsys, script(NO_MOS), cut=("terms = ", f"{cut}\nterms = "))
    assert re.findall(r"^(\S+) +moves$", out, re.MULTILINE) == [
        "class_head.weight", "class_head.bias"]


@pytest.mark.parametrize("penalty", ["2.0", "0.00001"])
def test_ridge_keeps_along_each_axis_the_share_that_the_formula_gives(capsys, penalty):
    out = printed(capsys, script(RIDGE), penalty=("60, 8, 2.0", f"60, 8, {penalty}"))
    variance = np.array(numbers(out, "variance along the axis"))
    kept = np.array(numbers(out, "ridge keeps"))
    assert len(variance) == 8
    np.testing.assert_allclose(kept, 100 * variance / (variance + float(penalty) * 8 / 60), atol=1)


def test_a_verdict_is_about_the_difference_and_a_run_is_not_comparable_with_itself(place, capsys):
    place(small_corpus(), small_run())
    steps = ("out=out)", "out=out, steps=2)")
    out = printed(capsys, script(FUSION), steps=steps)
    values = numbers(out, "OWN INTERVAL of runs/(?:all|last):")
    (difference,) = numbers(out, "DIFFERENCE")
    assert difference == pytest.approx(values[0] - values[1], abs=1.1e-3)
    assert values[0] != values[1]
    assert re.search(r"all layers are .* the last one$", out.strip())
    out = printed(capsys, script(FUSION), steps=steps,
                  same=('("runs/last", LastLayer)', '("runs/last", moemos.FeatureFusion)'))
    assert numbers(out, "DIFFERENCE") == [0]
    assert out.strip().endswith("all layers are not comparable with the last one")
