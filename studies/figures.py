"""Draws what train.py and evaluate.py wrote (needs `pip install matplotlib`).

    python -m studies.figures                  draws runs/default
    python -m studies.figures RUN              draws another run that has been evaluated
    python -m studies.figures RUN/on_CORPUS    draws its results on another corpus
    python -m studies.figures --answers        draws the stored answer to the question "plainer"

predictions.png has predicted against rated MOS, experts.png the mean gates of each synthesis model,
training.png the log of the three stages, and answers.png the method beside plainer predictors on
real listening tests. Figures are written into the folder that they are of, or with --out FOLDER
into that one. If there are more than MOST synthesis models, the ones with the most clips are told
apart. Nothing is computed here but the means of the systems.
"""

import argparse
import contextlib
import io
import math
from collections import Counter
from pathlib import Path

import numpy as np

import data
import moemos
from data import InputError
from studies import questions, tables

try:
    from matplotlib.figure import Figure
    from PIL import Image  # comes with it
except ImportError:  # it is not a requirement
    Figure = None

# Okabe and Ito's colours, which the colour-blind tell apart; each comes with another marker.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#999999")
MARKERS = "osD^vPX*"
LINES = ("-", "--", ":", "-.")
MOST = 24  # synthesis models that are told apart; a legend has no room for more
COMPARED = ("the method", "one expert", "ridge", "system's mean")  # answers.png has no more

# What is read: the form of metrics.json, as tables.fits() describes it, and columns of the tables.
LCC, INTERVAL = (float, None), ([float, float], [None, None])
RESULT = {"settings": {"scale": [float, float]}, "gates": {str: [float]},
          "metrics": {"utterance LCC": LCC, "system LCC": LCC},
          "interval_95": {"utterance LCC": INTERVAL, "system LCC": INTERVAL}}
PREDICTIONS = ("wav", "system", "model", "mos", "predicted")
LOG = ("stage", "step", "mos", "classification", "diversity", "sparsity", "gate_1")
TEXTS = ("wav", "system", "model", "stage")  # all other columns hold numbers


def figure(columns, rows, width, height):
    """(a matplotlib Figure, a flat list of its axes). width, height: of each of them, in inches."""
    drawing = Figure(figsize=(width * columns, height * rows), layout="constrained")
    axes = drawing.subplots(rows, columns, squeeze=False)
    return drawing, axes.ravel().tolist()


def short(name):
    """A name that matplotlib shows as it is: it is cut where it is long, can be printed, is not
    taken for a formula, and is not hidden because of a leading _."""
    shown = data.printable(name)[:28].replace("$", r"\$")
    return " " + shown if shown.startswith("_") else shown


def save(drawing, path):
    """Writes a figure as a PNG of 64 colours, so that the file is small."""
    drawn, content = io.BytesIO(), io.BytesIO()
    drawing.savefig(drawn, dpi=100)
    Image.open(drawn).convert("RGB").quantize(64).save(content, "PNG", optimize=True)
    data.write_files({path: content.getvalue()})
    print(data.printable(f"wrote {path}"))


def read_table(path, columns):
    """The rows of a CSV table as dicts; all columns but TEXTS hold numbers. Raises InputError that
    names the file and the row."""
    rows = []
    with contextlib.redirect_stderr(io.StringIO()):  # hides which columns are ignored
        for place, row in data.read_rows(path, columns):
            try:
                rows.append({name: text if name in TEXTS else as_number(name, text)
                             for name, text in row.items()})
            except ValueError as error:
                raise InputError(f"{place}: is damaged ({error}); train and evaluate the run "
                                 "again") from None
    if not rows:
        raise InputError(f"{path}: has no rows; train and evaluate the run again")
    return rows


def as_number(name, text):
    """The number in a cell of a column: finite, or NaN for an LCC that is undefined. Raises
    ValueError."""
    value = float(text)
    undefined = name == "dev_lcc" and math.isnan(value)
    if not undefined and not abs(value) < 1e12:
        raise ValueError(f"{name} {value}")
    return value


def read_result(folder):
    """What the files metrics.json and predictions.csv of a folder hold. Raises InputError."""
    result = tables.read_json(folder / "metrics.json", RESULT, "evaluate the run")
    rows = read_table(folder / "predictions.csv", PREDICTIONS)
    gates = result["gates"]
    if gates.keys() != {row["model"] for row in rows}:
        raise InputError(f"{folder}: metrics.json has other synthesis models than predictions.csv; "
                         "evaluate the run again")
    if len({len(several) for several in gates.values()}) > 1:
        raise InputError(f"{folder}/metrics.json: has models with more experts than others; "
                         "evaluate the run again")
    return result, rows


def plot_run(folder, out=""):
    """Writes figures of the tables in a folder, which is that of a run or one below it; the latter
    has no log of training. The figures go into the same folder, or into out. Raises InputError."""
    folder = Path(folder)
    result, rows = read_result(folder)
    counts = Counter(row["model"] for row in rows)
    models = sorted(name for name, _ in counts.most_common(MOST))
    if len(counts) > MOST:
        print(f"of {len(counts)} synthesis models the {MOST} with the most clips are told apart; "
              "the others are grey, and left out of experts.png")
    drawings = {
        "predictions.png": plot_predictions(result, rows, models),
        "experts.png": plot_experts({name: result["gates"][name] for name in models})}
    if (folder / "log.csv").is_file():
        drawings["training.png"] = plot_training(read_table(folder / "log.csv", LOG))
    for name, drawing in drawings.items():
        save(drawing, Path(out or folder, name))


def plot_predictions(result, rows, shown):
    """Predicted against rated MOS at both levels, coloured by synthesis model.

    result: what metrics.json holds. rows: those of predictions.csv. shown: the synthesis models
    that are told apart.
    """
    drawing, axes = figure(2, 1, width=5.5, height=5.2)
    mos, predicted = np.array([(row["mos"], row["predicted"]) for row in rows]).T
    models, systems = (np.array([row[name] for row in rows]) for name in ("model", "system"))
    styles = [(models == model, COLOURS[i % 8], MARKERS[(i + i // 8) % 8], short(model))
              for i, model in enumerate(shown)]
    others = ~np.isin(models, shown)
    if others.any():
        styles.insert(0, (others, "0.8", ".", "others"))
    for own, colour, marker, label in styles:
        levels = moemos.levels(predicted[own], mos[own], systems[own]).values()
        for axis, (p, t), size in zip(axes, levels, (4, 8)):
            axis.plot(t, p, color=colour, marker=marker, markersize=size, linestyle="none",
                      alpha=0.8, label=label)
    low, high = result["settings"]["scale"]
    span = (min(low, predicted.min()) - 0.1, max(high, predicted.max()) + 0.1)
    for axis, level in zip(axes, ("utterance", "system")):
        axis.axline((low, low), slope=1, color="0.6", linewidth=0.8)
        axis.set(xlabel="rated MOS", ylabel="predicted MOS", xlim=span, ylim=span,
                 aspect="equal")
        axis.set_title(lcc_title(result, level), fontsize="medium")
    drawing.legend(*axes[1].get_legend_handles_labels(), loc="outside right upper",
                   fontsize="small", title="synthesis model")
    return drawing


def lcc_title(result, level):
    lcc = result["metrics"][f"{level} LCC"]
    low, high = result["interval_95"][f"{level} LCC"]
    if lcc is None:
        return f"{level} level: LCC undefined"
    interval = "" if low is None else f", 95 % from {low:.3f} to {high:.3f}"
    return f"{level} level: LCC {lcc:.3f}{interval}"


def plot_experts(experts):
    """The mean gates of each synthesis model as a heat map. experts: {synthesis model: (E,)}."""
    gates = 100 * np.array(list(experts.values()))  # (models, E)
    models, number = gates.shape
    drawing, (axis,) = figure(1, 1, width=2.5 + 0.8 * number, height=1.5 + 0.4 * models)
    image = axis.imshow(gates, cmap="cividis", vmin=0, vmax=100, aspect="auto")
    axis.set(title="use of the experts", xlabel="expert", ylabel="synthesis model")
    axis.set_xticks(range(number), range(1, number + 1))
    axis.set_yticks(range(models), [short(model) for model in experts])
    for (y, x), gate in np.ndenumerate(gates):
        colour = "black" if gate > 50 else "white"
        axis.text(x, y, f"{gate:.0f}", ha="center", va="center", color=colour)
    drawing.colorbar(image, label="mean gate, %")
    return drawing


def plot_training(log):
    """Loss terms, gates and, if there are dev clips, their numbers, at each step of all stages.

    log: the rows of log.csv.
    """
    gates = [name for name in log[0] if name.startswith("gate_") and name != "gate_entropy"]
    panels = [
        ("loss terms", 1, {name: name for name in
                           ("mos", "classification", "diversity", "sparsity")}),
        ("mean gate, %", 100, {name: name.replace("gate_", "expert ") for name in gates})]
    if {"dev_mse", "dev_lcc"} <= log[0].keys():
        panels.append(("dev clips", 1, {"dev_mse": "MSE", "dev_lcc": "LCC"}))
    drawing, axes = figure(1, len(panels), width=9, height=2.8)
    steps, starts = steps_of_all(log)
    for axis, (title, unit, columns) in zip(axes, panels):
        for i, (column, name) in enumerate(columns.items()):
            axis.plot(steps, [unit * row[column] for row in log], color=COLOURS[i % 8],
                      linestyle=LINES[i // 2 % 4], label=name)
        for start in starts.values():
            axis.axvline(start, color="0.7", linewidth=0.8)
        axis.set_ylabel(title)
        axis.legend(fontsize="small", loc="center left", bbox_to_anchor=(1, 0.5))
    for stage, start in starts.items():
        axes[0].annotate(stage, (start, 1.02), xycoords=("data", "axes fraction"))
    axes[-1].set_xlabel("step, of all stages")
    return drawing


def plot_answers(numbers):
    """The utterance LCC, with interval, of each variant in COMPARED on each listening test with
    each backbone.

    numbers: those of results/plainer.json.
    """
    drawing, (axis,) = figure(1, 1, width=9.6, height=3.6)
    letters = {backbone: letter for letter, backbone in questions.BACKBONES.items()}
    numbers = [row for row in numbers if row["variant"] in COMPARED]
    names = [row["cell"][0] + letters.get(row["cell"][1], "") for row in numbers]
    columns = list(dict.fromkeys(names))
    variants = list(dict.fromkeys(row["variant"] for row in numbers))
    for i, variant in enumerate(variants):
        own = [row for row in numbers if row["variant"] == variant]
        named = [name for name, row in zip(names, numbers) if row["variant"] == variant]
        aside = (i - (len(variants) - 1) / 2) / 8
        places = [columns.index(name) + aside for name in named]
        lcc = np.array([row["utterance LCC"] for row in own])
        low, high = np.array([row["interval_95"] for row in own]).T
        reach = np.maximum([lcc - low, np.minimum(high, 1) - lcc], 0)
        axis.errorbar(places, lcc, reach, color=COLOURS[i % 8], marker=MARKERS[i % 8],
                      linestyle="none", capsize=2, label=short(variant))
    axis.set(ylabel="utterance LCC",
             title="four listening tests, two backbones (W: Whisper's), 95 % intervals")
    axis.set_xticks(range(len(columns)), columns, fontsize="small")
    axis.grid(axis="y", color="0.9")
    axis.legend(fontsize="small", loc="center left", bbox_to_anchor=(1, 0.5))
    return drawing


def steps_of_all(log):
    """(each row's step, counted through all stages; {stage: the number of steps before it}).

    log: the rows of log.csv, in which steps are counted anew in each stage.
    """
    steps, starts = [], {}
    for row in log:
        start = starts.setdefault(row["stage"], steps[-1] if steps else 0)
        steps.append(start + int(row["step"]))
    return steps, starts


def main():
    parser = argparse.ArgumentParser(allow_abbrev=False, description="Draws the tables of a run.")
    parser.add_argument("folder", metavar="RUN", nargs="?", default="runs/default",
                        help="Name a run, or RUN/on_... (default: runs/default).")
    parser.add_argument("--answers", action="store_true", help="Draw a stored answer and no run.")
    parser.add_argument("--out", metavar="FOLDER", default="", help="Figures go into this folder.")
    options = parser.parse_args()
    with data.errors_in_one_sentence("studies.figures"):
        if Figure is None:
            raise InputError("figures need matplotlib, which is not a requirement of this project: "
                             "pip install matplotlib")
        if options.answers:
            drawing = plot_answers(questions.read("plainer")["numbers"])
            save(drawing, Path(options.out, "answers.png"))
        else:
            plot_run(options.folder, options.out)


if __name__ == "__main__":
    main()
