"""The engine of the studies: trains a variant of the method in a cell, with a seed, and predicts.

A cell is a corpus, a backbone, and a way to split the clips into those that are learned from and
those that are predicted. Predictions are kept under runs/lab/, so that after an interruption the
same command goes on where it was; if the code or the data that they depend on change, they are made
again. The real listening tests are read by corpora.published from listening_tests/, a folder with
the clones of their four repositories; the environment variable LISTENING_TESTS may name another
folder. The letters of dimensions are those of moemos.py.
"""

import ast
import contextlib
import functools
import hashlib
import inspect
import io
import multiprocessing
import os
import re
import sys
import textwrap
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass, field, is_dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

import data
import evaluate
import moemos
import train
from corpora import published, simulated
from data import InputError

FOLDS = 6  # each of whole groups
ROOT = "runs/lab"
TESTS = {  # name: the clone's folder in that of the listening tests
    "Estonian": "3synt_listening_test_results",
    "codecs": "bernoulli-var-speech-codec",
    "P.835": "P.808",
    "YourTTS": "YourTTS",
}
NO_RECORDINGS = ", no recordings"  # after the name of a test: without its RECORDINGS
RECORDINGS = {  # systems that are not made by a machine; that of P.835 seems to be undegraded
    "Estonian": (),
    "codecs": ("Reference",),
    "P.835": ("c0",),
    "YourTTS": ("GT/MLS-PT", "GT/Speaker_Adaptation"),
}


# -- Corpora ---------------------------------------------------------------------------------------

class Corpus(NamedTuple):
    clips: list
    features: torch.Tensor  # (clips, L, 2D)
    backbone: moemos.Backbone

    @property
    def mos(self):
        return np.array([clip.mos for clip in self.clips])

    @property
    def rated(self):
        return ~np.isnan(self.mos)


@functools.lru_cache(maxsize=3)
def load(name, backbone):
    """A corpus and its features. name: one of TESTS, perhaps with NO_RECORDINGS, or "simulated 30"
    for the one with the seed 30, or "training clips of simulated 100", or the absolute path of any
    ratings.csv, the scale of which was checked before. backbone: a name, as in train.py. Raises
    InputError."""
    torch.set_num_threads(1)
    network = data.open_backbone(backbone, "cpu")
    test = name.removesuffix(NO_RECORDINGS)
    if test in TESTS:
        folder = Path(os.environ.get("LISTENING_TESTS", "listening_tests"), TESTS[test])
        if not folder.is_dir():
            raise InputError(f"{folder}: is not there; studies/README.md says where it comes from")
        with contextlib.redirect_stdout(None), contextlib.redirect_stderr(io.StringIO()):
            _, _, clips = published.read(folder)
        if test != name:
            clips = [clip for clip in clips if clip.system not in RECORDINGS[test]]
    elif os.path.isabs(name):
        with contextlib.redirect_stderr(io.StringIO()):  # hides which columns are ignored
            clips = data.read_ratings(name, (-1e6, 1e6))
    else:
        clips = data.read_ratings(simulation(name))
        if name.startswith("training"):
            clips = [clip for clip in clips if clip.split == "train"]
    return Corpus(clips, data.extract_features(clips, network), network)


def simulation(name):
    """The folder of a simulated corpus, which is made if it is missing."""
    seed = int(name.rpartition(" ")[2])
    folder = Path("runs/corpora", str(seed))
    if not folder.exists():
        simulated.simulate(folder, seed)
    return folder


# -- Splits: which clips are learned from, and which are predicted ---------------------------------

def base_model(clip):
    """A clip's synthesis model without the super-resolution (SR) that corpora.simulated may add."""
    return clip.model.removesuffix("SR")


def family(clip):
    """The name that a clip's system shares with its siblings, which are the other systems of the
    same synthesiser, codec or experiment in a real test."""
    return re.split("[ _/]", clip.system)[0]


LEFT_OUT = ("system", "model", "family")


def kind(clip, how):
    """The name of a clip's system, synthesis model or family, whichever is left out."""
    names = {"system": clip.system, "model": base_model(clip), "family": family(clip)}
    return names[how]


def split(corpus, how, seed=0):
    """Yields (learned, predicted), each (clips,) bool. how: "test" is the split of the table,
    "groups" is FOLDS folds of whole groups, and with "system", "model" or "family" each of these is
    left out in turn. With "system and groups", each pair of a system and a fold is left out: the
    clips that are in both are predicted, and those that are in neither are learned from. With
    "groups, 5 a system", five rated clips of each system are learned from, which the seed draws.
    Clips without MOS are learned from, except those of a system or a synthesis model that is left
    out."""
    how, _, few = how.partition(", ")
    rated = corpus.rated
    if how == "test":
        parts = np.array([clip.split for clip in corpus.clips])
        yield parts == "train", (parts == "test") & rated
        return
    folds = np.full(len(rated), -1)
    folds[rated] = data.folds_of([clip for clip in corpus.clips if clip.ratings], FOLDS)
    names = [folds if one == "groups" else np.array([kind(clip, one) for clip in corpus.clips])
             for one in how.split(" and ")]                                 # (clips,) each
    for left_out in sorted(set(zip(*(each[rated] for each in names)))):
        shared = np.array([each == name for each, name in zip(names, left_out)])
        learned = ~shared.any(0)
        if few:
            learned &= ~rated | some_of_each_system(corpus, learned, int(few.split()[0]), seed)
        yield learned, shared.all(0) & rated


def some_of_each_system(corpus, rows, number, seed):
    """(clips,) bool: a random choice, the same for the same seed, of some of each system's clips
    which are rated and among rows."""
    systems = np.array([clip.system for clip in corpus.clips])
    chosen = np.zeros(len(rows), bool)
    rng = np.random.default_rng([number, seed])
    for name in np.unique(systems):
        own = np.flatnonzero(rows & corpus.rated & (systems == name))
        chosen[rng.permutation(own)[:number]] = True
    return chosen


# -- Variants: what predicts -----------------------------------------------------------------------

def means(ratings):
    """(clips, R) -> (clips,), NaN for a clip that nobody has rated; (clips,) stays as it is."""
    ratings = ratings.reshape(len(ratings), -1)
    number = (~np.isnan(ratings)).sum(1)
    return np.where(number, np.nansum(ratings, 1), np.nan) / np.maximum(number, 1)


def folds_for(corpus, rows, how):
    """The folds of some clips by which ridge regression finds its penalty: of whole groups, or of
    what is left out, such as systems."""
    clips = [clip for clip, row in zip(corpus.clips, rows) if row]
    if how in LEFT_OUT:
        clips = [replace(clip, group=kind(clip, how)) for clip in clips]
    return data.folds_of(clips, train.FOLDS)


def training_clips(variant, corpus, learned, seed):
    """The train.Tensors that are learned from; the MOS may be single ratings, (clips, R)."""
    target = variant.target(corpus, seed)
    rated = ~np.isnan(means(target))
    rows = learned & (rated | variant.unrated)
    labels = [variant.label(clip) for clip, row in zip(corpus.clips, rows) if row]
    classes = sorted(set(labels))
    model = torch.tensor([classes.index(label) for label in labels])
    rows = torch.from_numpy(rows)
    return train.Tensors(corpus.features[rows], torch.from_numpy(target)[rows], model)


def start(variant, corpus, learned, seed, how):
    """The weights that training starts from; for single ratings, those for their means."""
    clips = training_clips(variant, corpus, learned, seed)
    mos = torch.from_numpy(means(clips.mos.numpy()))
    rated = ~np.isnan(means(variant.target(corpus, seed)))
    fold = folds_for(corpus, learned & rated, how)
    return moemos.start(clips.features, mos, clips.label, int(clips.label.max()) + 1, fold)


def by_head(variant, corpus, learned, predicted, seed, how):
    """The method: MOS (n,) and gates (n, E) of the predicted clips."""
    config = replace(train.Config(), seed=seed, **variant.settings)
    weights = start(variant, corpus, learned, seed, how)
    clips = training_clips(variant, corpus, learned, seed)
    clips = clips._replace(mos=clips.mos.float())
    torch.manual_seed(seed)
    network = variant.build(config, weights, clips)
    with contextlib.redirect_stdout(None):
        train.run_stages(network, variant.stages, config, clips)
    output = evaluate.predict(network.eval(), corpus.features[torch.from_numpy(predicted)])
    return output.mos.numpy(), output.gates.numpy()


def by_ridge(variant, corpus, learned, predicted, seed, how):
    """Ridge regression, which finds its penalty by the same folds as the method."""
    mos = variant.target(corpus, seed)
    rows = learned & ~np.isnan(mos)
    x = corpus.features.flatten(1).double().numpy()
    penalty = moemos.best_penalty(x[rows], mos[rows], folds_for(corpus, rows, how))
    return moemos.ridge(x[rows], mos[rows], x[predicted], [penalty])[0], None


def by_mean(variant, corpus, learned, predicted, seed, how):
    """The mean MOS of the system's clips, or of all clips if the system is not known."""
    target = variant.target(corpus, seed)
    rows = learned & ~np.isnan(target)
    systems = np.array([clip.system for clip in corpus.clips])
    means = {name: target[rows & (systems == name)].mean() for name in np.unique(systems[rows])}
    overall = target[rows].mean()
    return np.array([means.get(name, overall) for name in systems[predicted]]), None


def by_labels(variant, corpus, learned, predicted, seed, how):
    """The mean of two predictions: that of ridge regression, and that of a linear classifier. The
    classifier is the classification head as training starts: by a softmax it gives each class a
    probability. Its prediction is the average of the MOS of the classes, weighted by these
    probabilities."""
    weights = start(variant, corpus, learned, seed, how)
    network = train.build_model(train.Config(), weights).eval()
    logits = evaluate.predict(network, corpus.features[torch.from_numpy(predicted)]).logits
    class_mos = 2 * weights["mos_head.weight"][0, 1:]  # in deviations
    expected = weights["mean"] + weights["deviation"] * (logits.softmax(1) @ class_mos)
    line, _ = by_ridge(variant, corpus, learned, predicted, seed, how)
    return (line + expected.numpy()) / 2, None


def synthesis_model(clip):
    return clip.model


def mean_rating(corpus, seed):
    """The MOS that are learned, (clips,), NaN for a clip that has none."""
    return corpus.mos


def build(config, weights, clips):
    """The network of a variant. config: a train.Config. weights: as moemos.start() gives them.
    clips: train.Tensors."""
    return train.build_model(config, weights)


@dataclass(frozen=True)
class Variant:
    """What predicts. With nothing but a name it is the method, as train.py has it."""
    name: str
    settings: dict = field(default_factory=dict)  # of train.Config
    stages: tuple = train.STAGES
    build: Callable = build
    label: Callable = synthesis_model             # of the second task
    target: Callable = mean_rating
    unrated: bool = True                          # whether clips without MOS are learned from
    features: Callable = None                     # Corpus -> a Corpus with other features
    predict: Callable = by_head
    drawn: bool = True                            # whether the seed makes a difference


METHOD = Variant("the method")
RIDGE = Variant("ridge", predict=by_ridge, drawn=False)
MEAN = Variant("system's mean", predict=by_mean, drawn=False)
LABELS = Variant("ridge and system classifier", predict=by_labels, drawn=False)


# -- Running ---------------------------------------------------------------------------------------

class Cell(NamedTuple):
    corpus: str
    backbone: str
    how: str  # the clips are split, see split()


class Job(NamedTuple):
    variant: Variant
    cell: Cell
    seed: int

    def path(self):
        """Where the predictions are kept. The path of a table becomes its hash, so that no two
        tables share a folder, and none lies outside ROOT."""
        corpus, backbone, how = self.cell
        if os.path.isabs(corpus):
            corpus = hashlib.sha256(os.fsencode(corpus)).hexdigest()[:32]
        name = f"{self.variant.name}, {self.seed}.npz".replace("/", "-")
        return Path(ROOT, corpus, backbone, how, name)


def run(jobs):
    """Does those jobs that have not been done, in as many processes as the computer has cores, and
    returns what do() gives for each. Raises InputError."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    for name, backbone in dict.fromkeys(job.cell[:2] for job in jobs):
        load(name, backbone)  # so that processes do not extract the same features side by side
    spawn = multiprocessing.get_context("spawn")
    found = []
    try:
        with ProcessPoolExecutor(min(cores, len(jobs)), spawn) as pool:
            for result in pool.map(do, jobs):
                found.append(result)
                if sys.stderr.isatty():
                    end = "\n" * (len(found) == len(jobs))
                    print(f"\r{len(found)}/{len(jobs)} ", end=end, file=sys.stderr)
    except BrokenProcessPool:
        raise InputError("a process was killed, perhaps for lack of memory; start again, what is "
                         "finished stays") from None
    return found


def do(job):
    """Predicts the clips of a job, unless that was done before. Returns {"mos": (clips,)}, NaN for
    a clip that is not predicted; for the method also "gates": (clips, E)."""
    corpus = features_for(job, load(job.cell.corpus, job.cell.backbone))
    key = digest(job, corpus)
    whole = b""
    with contextlib.suppress(OSError):
        whole = data.without_digest(job.path().read_bytes())
    kept = dict(np.load(io.BytesIO(whole))) if whole else {"key": ""}
    if kept.pop("key") == key:
        return kept
    found = predict(job, corpus)
    content = io.BytesIO()
    np.savez(content, key=key, **found)
    data.write_files({job.path(): data.with_digest(content.getvalue())})
    return found


def features_for(job, corpus):
    """The corpus with the features that the variant of a job learns from."""
    return job.variant.features(corpus) if job.variant.features else corpus


def predict(job, corpus):
    """Does the work of do(). corpus: as features_for() gives it."""
    found = {"mos": np.full(len(corpus.clips), np.nan)}
    for learned, predicted in split(corpus, job.cell.how, job.seed):
        mos, gates = job.variant.predict(job.variant, corpus, learned, predicted, job.seed,
                                         job.cell.how)
        found["mos"][predicted] = mos
        if gates is not None:
            found.setdefault("gates", np.full((len(learned), gates.shape[1]), np.nan))
            found["gates"][predicted] = gates
    return found


# -- What predictions depend on --------------------------------------------------------------------

OURS = ("moemos", "data", "train", "evaluate", "studies")  # modules whose code and values count
PLAIN = (bool, int, float, str, tuple, list, dict, np.ndarray)


def digest(job, corpus):
    """The hash of all that a job's predictions depend on. It includes the features, and so need not
    include what the features depend on."""
    variant = job.variant
    settings = asdict(replace(train.Config(), **variant.settings))
    clips = [(clip.wav, clip.split, clip.system, clip.model, clip.group,
              clip.ratings) for clip in corpus.clips]
    code = depends_on(predict, variant.predict, variant.label, variant.target, variant.build)
    said = [job.cell, job.seed, settings, variant.stages, variant.unrated, clips,
            corpus.mos.tolist(), corpus.rated.tolist(), code]
    found = hashlib.sha256(repr(said).encode())
    found.update(corpus.features.numpy().tobytes())
    return found.hexdigest()


def depends_on(*parts):
    """[(name, code or value)] of some functions and classes and of all in OURS that they name,
    directly or through each other. Dataclasses are left out, as digest() has the values in them."""
    found, waiting = {}, list(parts)
    while waiting:
        part = inspect.unwrap(waiting.pop())
        name = f"{part.__module__}.{part.__qualname__}"
        if name in found:
            continue
        found[name] = code_of(part)
        for name, thing in named_by(part):
            if isinstance(thing, PLAIN):
                found[name] = thing.tolist() if isinstance(thing, np.ndarray) else thing
            elif inspect.isroutine(thing) or inspect.isclass(thing) and not is_dataclass(thing):
                waiting.append(thing)
    return sorted(found.items())


def named_by(part):
    """Yields (name, thing) for each thing in OURS that the code of a function or class names, be it
    of the same module, such as FOLDS, or of another, such as train.FOLDS."""
    own = vars(sys.modules[part.__module__])
    for node in ast.walk(tree_of(part)):
        if isinstance(node, ast.Name):
            module, name = own, node.id
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            owner = own.get(node.value.id)
            module = vars(owner) if inspect.ismodule(owner) else {}
            name = node.attr
        else:
            continue
        thing = module.get(name)
        home = getattr(thing, "__module__", None) or module.get("__name__", "")
        if home.partition(".")[0] in OURS:
            yield f"{module['__name__']}.{name}", thing


def code_of(part):
    """The source of a function or class without comments, docstrings and layout."""
    return ast.dump(tree_of(part))


@functools.cache
def tree_of(part):
    tree = ast.parse(textwrap.dedent(inspect.getsource(part)))
    for node in ast.walk(tree):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            node.value.value = ""
    return tree
