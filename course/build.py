"""Makes course/notebook.ipynb from course/notebook.py, which is the one to edit.

    python -m course.build          writes the notebook

In notebook.py a line "# %%" begins a cell of code, and "# %% [markdown]" one of text, whose lines
begin with "# ". The notebook holds no outputs, and its bytes depend on notebook.py alone.
"""

import json
import re
from pathlib import Path

import data

SOURCE = Path(__file__).with_name("notebook.py")
MARK = re.compile(r"^# %%( \[markdown\])?\n", re.MULTILINE)


def cells_of(text):
    """The text of notebook.py -> [(whether it is text and not code, what the cell holds), ...]."""
    _, *parts = MARK.split(text)  # mark, cell, mark, cell, ...
    cells = []
    for mark, cell in zip(parts[::2], parts[1::2]):
        if mark:
            cell = re.sub(r"^# ?", "", cell, flags=re.MULTILINE)
        cells.append((bool(mark), cell.strip("\n")))
    return cells


def notebook(text):
    """The text of notebook.py -> the bytes of the notebook, in version 4.5 of Jupyter's format."""
    cells = []
    for i, (is_text, source) in enumerate(cells_of(text)):
        cell = {"cell_type": "markdown" if is_text else "code", "id": f"cell-{i + 1}",
                "metadata": {}, "source": source.splitlines(keepends=True)}
        if not is_text:
            cell |= {"execution_count": None, "outputs": []}
        cells.append(cell)
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    whole = {"cells": cells, "metadata": {"kernelspec": kernel}, "nbformat": 4, "nbformat_minor": 5}
    return (json.dumps(whole, indent=1, ensure_ascii=False) + "\n").encode()


def main():
    path = SOURCE.with_suffix(".ipynb")
    with data.errors_in_one_sentence("course.build"):
        data.write_files({path: notebook(SOURCE.read_text(encoding="utf-8"))})
        print(data.printable(f"wrote {path}"))


if __name__ == "__main__":
    main()
