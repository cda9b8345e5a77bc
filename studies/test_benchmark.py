"""Tests of those parts of studies/benchmark.py that do not depend on the speed of the machine."""

import numpy as np
import pytest
import torch

import data
import train
from studies import benchmark
from test_moemos import no_network, small_corpus  # noqa: F401 - fixture


def test_the_benchmark_times_the_start_and_the_three_stages_of_a_training(monkeypatch):
    seen = []
    monkeypatch.setattr(train, "run_stages", lambda *words: seen.append(words))
    clips = train.Tensors(torch.randn(20, 2, 6), torch.linspace(1, 5, 20), torch.arange(20) % 3)
    durations = benchmark.training_itself(clips, np.arange(20) % 5)
    assert min(durations) > 0
    ((model, stages, config, training),) = seen
    assert (stages, config, training) == (train.STAGES, train.Config(), clips)
    torch.testing.assert_close(model.mean, torch.tensor(3.0))


def test_a_corpus_made_of_some_clips_has_their_files_and_ratings(tmp_path):
    clips = data.read_ratings(small_corpus())[::5]
    assert {bool(clip.ratings) for clip in clips} == {True, False}
    benchmark.make_corpus(tmp_path, clips)
    again = data.read_ratings(tmp_path)
    assert [clip.ratings for clip in again] == [clip.ratings for clip in clips]
    assert [clip.path.resolve() for clip in again] == [clip.path.resolve() for clip in clips]


def test_a_process_that_fails_gets_a_sentence():
    with pytest.raises(data.InputError, match="-c raise SystemExit.3. ended with status 3"):
        benchmark.finish(benchmark.start("-c", "raise SystemExit(3)"))
