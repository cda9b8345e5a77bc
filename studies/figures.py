"""Figures of what evaluate.py and studies.compare wrote (needs `pip install matplotlib`).

    python -m studies.figures RUN                 of a run's results on its own corpus
    python -m studies.figures RUN --on NAME       of those in RUN/on_NAME
    python -m studies.figures --comparison runs/experiments/simulated/NAME.json
    python -m studies.figures --curves runs/curves.json

Writes predictions.png, experts.png, training.png and raters.png beside the results; NAME.png beside
NAME.json of a comparison (studies.compare) or of tables of predictors (studies.curves, unheard and
straight_line). Nothing is computed but the intervals of systems' means.
"""

import argparse
import io
import itertools
import json
from pathlib import Path

import numpy as np

import data
import evaluate
import moemos
from data import InputError
from studies.compare import read_csv, student

try:
    from matplotlib.figure import Figure
except ImportError:  # it is no requirement
    Figure = None

# Okabe and Ito's colours, which the colour-blind tell apart; each comes with a marker of its own.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#999999")
MARKERS = "osD^vPX*"
LINES = ("-", "--", ":", "-.")


def figure(columns, rows=1, width=4.5, height=4.0):
    """(a matplotlib Figure, its axes as a flat list); width, height: of each, in inches."""
    drawing = Figure(figsize=(width * columns, height * rows), layout="constrained")
    axes = drawing.subplots(rows, columns, squeeze=False)
    return drawing, axes.ravel().tolist()


def short(name):
    """A name as matplotlib shows it: not long, no formula, and not hidden for a leading _."""
    shown = name[:20].replace("$", r"\$")
    return " " + shown if shown.startswith("_") else shown


def save(drawing, path):
    """Writes a figure as PNG."""
    content = io.BytesIO()
    drawing.savefig(content, dpi=150)
    data.write_atomically(path, content.getvalue())
    print(f"wrote {path}")


def plot_run(run, on=""):
    """The four figures of a run; on: the corpus, else its own. Raises InputError."""
    folder = Path(run, f"on_{on}") if on else Path(run)
    if not (folder / "metrics.json").is_file():
        other = " with --data" if on else ""
        raise InputError(f"{folder} holds no results; run evaluate.py {run}{other} first")
    try:
        result = json.loads((folder / "metrics.json").read_bytes())
        drawings = {
            "predictions.png": plot_predictions(result, read_csv(folder / "predictions.csv")),
            "experts.png": plot_experts(result["experts"]),
            "raters.png": plot_raters(read_csv(folder / "raters.csv")),
            "training.png": plot_training(read_csv(Path(run, "log.csv")))}
    except (OSError, ValueError, KeyError, TypeError, IndexError) as error:
        raise InputError(f"{folder}: a file is missing, damaged or of another version "
                         f"({data.first_line(error)}); train and evaluate the run again") from None
    for name, drawing in drawings.items():
        save(drawing, folder / name)


def plot_predictions(result, rows):
    """Predicted against rated MOS at both levels, coloured by synthesis model.

    result: of metrics.json. rows: of predictions.csv. Bars: Student's 95 % of a system's mean.
    """
    drawing, axes = figure(2, width=5.5, height=5.2)
    points = np.array([(row["mos"], row["predicted"]) for row in rows], float)  # (clips, 2)
    models = np.array([row["model"] for row in rows])
    systems = np.array([row["system"] for row in rows])
    for i, model in enumerate(np.unique(models)):
        style = {"color": COLOURS[i % 8], "marker": MARKERS[(i + i // 8) % 8],
                 "linestyle": "none", "alpha": 0.8, "label": short(model)}
        own = points[models == model]
        axes[0].plot(own[:, 0], own[:, 1], markersize=4, **style)
        own_systems = systems[models == model]
        means = np.array([student(own[own_systems == system])  # (systems, 3, 2)
                          for system in np.unique(own_systems)])
        half = means[:, 0] - means[:, 1]                       # (systems, 2), NaN of one clip
        axes[1].errorbar(means[:, 0, 0], means[:, 0, 1], xerr=half[:, 0], yerr=half[:, 1],
                         markersize=7, elinewidth=0.8, **style)
    low, high = result["scale"]
    span = (min(low, points[:, 1].min()) - 0.1, max(high, points[:, 1].max()) + 0.1)
    for axis, level in zip(axes, ("utterance", "system")):
        axis.axline((low, low), slope=1, color="0.6", linewidth=0.8)
        axis.set(xlabel="rated MOS", ylabel="predicted MOS", xlim=span, ylim=span,
                 aspect="equal", title=lcc_title(result, level))
    handles, labels = axes[1].get_legend_handles_labels()
    drawing.legend(handles, labels, loc="outside right upper", fontsize="small",
                   title="synthesis model;\nbars: 95 % of\nthe mean")
    return drawing


def lcc_title(result, level):
    lcc = result[level]["LCC"]
    low, high = result["interval_95"][level]["LCC"]
    if lcc is None or low is None:
        return f"{level} level: LCC undefined"
    return f"{level} level: LCC {lcc:.3f}, 95 % from {low:.3f} to {high:.3f}"


def plot_experts(experts):
    """Use of the experts, {synthesis model: its mean gates}, as a heat map."""
    gates = 100 * np.array(list(experts.values()))  # (models, E)
    models, number = gates.shape
    drawing, (axis,) = figure(1, width=2.5 + 0.8 * number, height=1.5 + 0.4 * models)
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
    """Loss terms, held-out numbers and gates by step of all stages; log: rows of log.csv."""
    drawing, axes = figure(1, 3, width=9, height=2.8)
    gates = [f"gate_{i}" for i in range(1, 100) if f"gate_{i}" in log[0]]
    panels = [
        ("loss terms", 1, {"mos": "MOS", "classification": "classification",
                           "diversity": "diversity", "sparsity": "sparsity"}),
        ("held-out clips", 1, {"val_mse": "MSE", "val_lcc": "LCC", "val_accuracy": "accuracy"}),
        ("mean gate, %", 100, {name: name.replace("gate_", "expert ") for name in gates})]
    steps, starts = steps_of_all(log)
    for axis, (title, unit, columns) in zip(axes, panels):
        for i, (column, name) in enumerate(columns.items()):
            values = [unit * float(row[column]) for row in log]
            axis.plot(steps, values, color=COLOURS[i % 8], linestyle=LINES[i // 2 % 4],
                      label=name)
        for start in starts.values():
            axis.axvline(start, color="0.7", linewidth=0.8)
        axis.set_ylabel(title)
        axis.legend(fontsize="small", loc="center left", bbox_to_anchor=(1, 0.5))
    for stage, start in starts.items():
        place = {"xycoords": ("data", "axes fraction")}
        axes[0].annotate(stage, (start, 1.02), **place)
    axes[-1].set_xlabel("step, of all stages")
    return drawing


def steps_of_all(log):
    """-> (each row's step, counted through all stages; {stage: the steps before it}).

    log: rows of log.csv, whose own steps are counted from each stage's start.
    """
    steps, starts = [], {}
    for i, row in enumerate(log):
        if row["stage"] not in starts:
            starts[row["stage"]] = steps[-1] if i > 0 else 0
        steps.append(starts[row["stage"]] + int(row["step"]))
    return steps, starts


def plot_raters(raters):
    """Each rater's mean and deviation, both panels; raters: rows of raters.csv."""
    drawing, (axis,) = figure(1, width=9)
    splits = np.array([row["split"] for row in raters])
    mean = np.array([row["mean"] for row in raters], float)
    deviation = np.sqrt(np.array([row["variance"] for row in raters], float))
    for split, colour, marker in zip(("train", "test"), COLOURS, MARKERS):
        places = np.flatnonzero(splits == split)
        if len(places) == 0:
            continue
        axis.errorbar(places, mean[places], deviation[places], color=colour, marker=marker,
                      linestyle="none", capsize=3,
                      label=f"{split} clips: mean and standard deviation of a rater's ratings")
        axis.hlines(mean[places].mean(), places[0] - 0.5, places[-1] + 0.5, color=colour,
                    linestyle=":", linewidth=1)
    axis.set(xlabel="rater; dotted: mean of the panel's raters", ylabel="rating", xticks=[])
    if len(raters) <= 40:
        axis.set_xticks(range(len(raters)), [short(row["rater"]) for row in raters])
    axis.legend(fontsize="small", loc="lower center", bbox_to_anchor=(0.5, 1))
    return drawing


def plot_comparison(path):
    """NAME.png beside the NAME.json of a comparison. Raises InputError."""
    path = Path(path)
    try:
        rows = json.loads(data.read_bytes(path))
        compared = [row for row in rows if "difference" in row]
        differences = np.array([[evaluate.eight(row["difference"][systems])[:, :3]
                                 for systems in ("these", "others")] for row in compared])
        names = [f"{row['variant']} [{row['first']}]".replace("$", r"\$") for row in compared]
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path}: is damaged or no comparison ({data.first_line(error)}); "
                         "python -m studies.compare writes one") from None
    if not compared:
        raise InputError(f"{path}: no two variants share clips, so there is nothing to draw")
    save(draw_differences(names, differences), path.with_suffix(".png"))


def draw_differences(names, differences):
    """Each variant's differences in the eight numbers: (variants, 2, 8, 3), for these systems and
    others, of mean, low, high."""
    drawing, axes = figure(4, 2, width=3.4, height=1.4 + 0.35 * len(names))
    titles = itertools.product(("utterance", "system"), moemos.METRICS)
    for i, (axis, (level, metric)) in enumerate(zip(axes, titles)):
        for systems, style in ((1, {"elinewidth": 0.8}), (0, {"elinewidth": 2.5})):
            mean, low, high = differences[:, systems, i].T
            axis.errorbar(mean, range(len(names)), xerr=np.stack([mean - low, high - mean]),
                          color=COLOURS[0], marker="o", linestyle="none", capsize=3, **style)
        axis.axvline(0, color="0.6", linewidth=0.8)
        axis.set(title=f"{level} {metric}", ylim=(len(names) - 0.5, -0.5), yticks=[])
        if metric == "MSE":
            axis.set_yticks(range(len(names)), names)
    drawing.suptitle("difference from the variant whose number is in brackets, with 95 % "
                     "intervals; thin: for other systems")
    return drawing


def plot_curves(path):
    """NAME.png beside the NAME.json of studies.straight_line.report. Raises InputError."""
    path = Path(path)
    try:
        result = json.loads(data.read_bytes(path))
        columns = [str(column) for column in result["columns"]]
        curves = {metric: {name: np.array(values, float).reshape(len(columns), 3)
                           for name, values in table["means"].items()}
                  for metric, table in result["tables"].items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{path}: is damaged or holds no curves ({data.first_line(error)}); "
                         "studies.curves, unheard and straight_line write them") from None
    save(draw_curves(columns, curves), path.with_suffix(".png"))


def draw_curves(columns, curves):
    """{metric: {predictor: (K, 3) mean, low, high}} at K columns."""
    wide = min(len(curves), 2)
    drawing, axes = figure(wide, -(-len(curves) // wide), width=5)
    places = np.arange(len(columns))
    for axis, (metric, lines) in zip(axes, curves.items()):
        for i, (name, values) in enumerate(lines.items()):
            mean, low, high = values.T
            axis.errorbar(places + 0.05 * i, mean, yerr=np.stack([mean - low, high - mean]),
                          color=COLOURS[i], marker=MARKERS[i], linestyle=LINES[i], capsize=3,
                          label=name)
        axis.set(ylabel=metric)
        axis.set_xticks(places, columns)
        axis.legend(fontsize="small")
    drawing.suptitle("bars: 95 % over corpora, where there are several")
    return drawing


def main():
    parser = argparse.ArgumentParser(
        allow_abbrev=False, description="Draws a run, a comparison or learning curves.")
    parser.add_argument("run", nargs="?", default="", help="a run that has been evaluated")
    parser.add_argument("--on", metavar="NAME", default="", help="its results in RUN/on_NAME")
    parser.add_argument("--comparison", metavar="JSON", default="", help="of studies.compare")
    parser.add_argument("--curves", metavar="JSON", default="",
                        help="of studies.curves, unheard or straight_line")
    options = parser.parse_args()
    with data.one_sentence("studies.figures"):
        given = [word for word in (options.run, options.comparison, options.curves) if word]
        if len(given) != 1 or options.on and not options.run:
            raise InputError("give a RUN, with --on or without, or --comparison or --curves alone")
        if Figure is None:
            raise InputError("figures need matplotlib, which is no requirement of this project: "
                             "pip install matplotlib")
        if options.run:
            plot_run(options.run, options.on)
        elif options.comparison:
            plot_comparison(options.comparison)
        else:
            plot_curves(options.curves)


if __name__ == "__main__":
    main()
