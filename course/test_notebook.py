"""Tests of the notebook: it is what the command makes of notebook.py, and its cells run."""

import ast
import itertools
import json
import os
import sys
from pathlib import Path
from types import ModuleType
from unittest.mock import MagicMock

import pytest

from course import build
from test_moemos import HERE, call, no_network, quick, simulated_corpus  # noqa: F401 - fixture

NOTEBOOK = HERE / "course" / "notebook.ipynb"


def test_a_notebook_has_the_cells_of_its_text_without_outputs():
    text = "# %% [markdown]\n# # Title\n#\n# Words.\n\n# %%\na = 1\n\nb = 2\n\n# %%\nc = 3\n"
    made = json.loads(build.notebook(text))
    assert [(cell["cell_type"], "".join(cell["source"])) for cell in made["cells"]] == [
        ("markdown", "# Title\n\nWords."), ("code", "a = 1\n\nb = 2"), ("code", "c = 3")]
    assert (made["nbformat"], made["nbformat_minor"]) == (4, 5)
    assert [cell["id"] for cell in made["cells"]] == ["cell-1", "cell-2", "cell-3"]
    for cell in made["cells"][1:]:
        assert (cell["outputs"], cell["execution_count"]) == ([], None)


def test_the_stored_notebook_is_what_the_command_makes_from_notebook_py(
        tmp_path, monkeypatch, capsys):
    copy = tmp_path / "notebook.py"
    copy.write_bytes(build.SOURCE.read_bytes())
    monkeypatch.setattr(build, "SOURCE", copy)
    assert call(monkeypatch, build) == 0
    assert "notebook.ipynb" in capsys.readouterr().out
    assert (tmp_path / "notebook.ipynb").read_bytes() == NOTEBOOK.read_bytes(), (
        "run python -m course.build")


def test_the_notebook_explains_every_cell_and_is_valid():
    cells = build.cells_of(build.SOURCE.read_text(encoding="utf-8"))
    for (text_before, _), (is_text, _) in itertools.pairwise(cells):
        assert text_before or is_text  # no two cells of code in a row
    for is_text, cell in cells:
        if not is_text:
            ast.parse(cell)
    nbformat = pytest.importorskip("nbformat")
    nbformat.validate(nbformat.reads(NOTEBOOK.read_text(encoding="utf-8"), 4))


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder with the simulated corpus. It is the current one, which the cells cannot leave."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(os, "chdir", lambda path: None)
    monkeypatch.setattr(sys, "path", [*sys.path])
    (tmp_path / "corpus").symlink_to(simulated_corpus())
    cache = Path(quick(simulated_corpus(), tmp_path).cache)
    cache.mkdir(exist_ok=True)
    (tmp_path / "cache").symlink_to(cache)
    return tmp_path


def test_the_cells_run_as_a_script_and_compute_the_same_mos_as_the_model(
        place, monkeypatch, capsys):
    """Jupyter and matplotlib are not requirements: here they are replaced by what does nothing."""
    for name in ("matplotlib", "matplotlib.pyplot", "IPython", "IPython.display"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    sys.modules["matplotlib"].pyplot = plt = MagicMock()
    sys.modules["matplotlib.pyplot"] = plt
    shown = []
    sys.modules["IPython.display"].display = shown.append
    sys.modules["IPython.display"].HTML = str

    names = {}
    for is_text, cell in build.cells_of(build.SOURCE.read_text(encoding="utf-8")):
        if not is_text:
            exec(compile(cell, "cell", "exec"), names)  # noqa: S102 - our own text
    out = capsys.readouterr().out
    assert "y by hand is the y of the model: True" in out
    assert names["mos"].item() == pytest.approx(names["output"].mos.item(), abs=1e-4)
    assert names["predicted"][0].item() == pytest.approx(names["mos"].item(), abs=1e-4)
    (page,) = shown
    assert page.count("<audio ") == 4
    assert len({clip.system for clip in names["four"]}) == 4
    assert len({clip.group for clip in names["four"]}) == 1
    assert plt.show.call_count == 3
    columns = [[float(row[name]) for row in names["rows"]] for name in ("classification", "mos")]
    drawn = [list(drawing.args[1]) for drawing in plt.plot.call_args_list]
    assert all(column in drawn for column in columns)
    assert "by its utterance LCC on 400 clips, this run is" in out
