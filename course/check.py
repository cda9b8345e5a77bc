"""Checks what a student has written: each function is called on the cases of mistakes.md. What it
gives is compared with the right answer and, where it differs, with what each known mistake gives.
"""

import copy
import functools
import inspect
import traceback
import types
import warnings
from unittest import mock

import numpy as np
import torch
from torch import nn

import data
from course.mistakes import ANSWERS, CASES, DETACHED, MISTAKES, STAGES, weights_after
from data import InputError


class WrongKind(Exception):
    """A function returns something else than the template says."""


def load(path):
    """A student's file -> module. Raises InputError for one that cannot be run."""
    source, module = data.read_bytes(path), types.ModuleType("mine")
    module.__file__ = path
    try:
        exec(compile(source, path, "exec"), vars(module))  # noqa: S102 - the student's own
    except SyntaxError as error:
        line = f", line {error.lineno}" if error.lineno else ""
        raise InputError(f"{path}{line}: Python cannot read it ({error.msg})") from None
    except (Exception, SystemExit) as error:  # noqa: BLE001 - it may raise anything
        raise InputError(f"{path} cannot be loaded: {told(error, path)}") from None
    return module


def told(error, path):
    """An exception in one line, with the line of the student's file where it came up."""
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__)
             if frame.filename == path]
    place = f"line {lines[-1]}: " if lines else ""
    return data.printable(f"{place}{type(error).__name__}: {data.first_line(error)}")


def check(module, name, path):
    """A function of the student's module -> ("right", "not yet" or "wrong", a sentence on it)."""
    function = getattr(module, name, None)
    if function is None:
        return "not yet", "The file has no function of this name."
    others = {other: answer for other, answer in ANSWERS.items() if other != name}
    with mock.patch.multiple(module, create=True, **others):  # so that a fault is told once
        given = outcomes(name, function)
    if any(isinstance(value, NotImplementedError) for value in given):
        return "not yet", ""
    expected = outcomes(name, ANSWERS[name])
    differs = [i for i in range(len(given)) if not same(given[i], expected[i])]
    if not differs:
        return "right", ""
    sentence = known_mistake(name, given, expected, differs)
    if sentence is None:
        first = differs[0]
        return "wrong", unknown_mistake(name, given[first], expected[first], first, path)
    return "wrong", f"It looks like this mistake: {sentence}"


def outcomes(name, function):
    """What a function gives: for each case of its name the result and the gradient, or twice the
    exception."""
    found = []
    for args in CASES[name].values():
        torch.manual_seed(0)
        args = copy.deepcopy(args)  # it may change them
        try:
            with warnings.catch_warnings(), np.errstate(all="ignore"), torch.enable_grad():
                warnings.simplefilter("ignore")
                result = weights_after(function) if name == "run_stage" else function(*args)
                found += [as_array(result, name), gradient(result, args)]
        except Exception as error:  # noqa: BLE001 - a student's code raises anything
            found += [error, error]
    return found


def as_array(result, name):
    """What a function returns, as an array. Raises WrongKind."""
    if name in ("learning_rate", "alpha", "lcc", "srcc"):
        expected, kinds = "a number", (int, float, np.generic, np.ndarray, torch.Tensor)
    elif name in ("system_means", "ridge"):
        expected, kinds = "a numpy array", (np.generic, np.ndarray)
    else:
        expected, kinds = "a tensor", torch.Tensor
    if result is None:
        raise WrongKind(f"{expected} is expected, and nothing is returned; a return is missing.")
    if not isinstance(result, kinds):
        kind = type(result).__name__
        raise WrongKind(f"{expected} is expected, and what is returned is of the type {kind}.")
    if isinstance(result, torch.Tensor):
        result = result.detach()
    return np.asarray(result, np.float64)


def gradient(result, args):
    """The gradient of a weighted sum of the result, all in a row; 0 for what none flows to."""
    leaves = []
    for arg in args:
        leaves += arg.parameters() if isinstance(arg, nn.Module) else [arg]
    leaves = [leaf for leaf in leaves if isinstance(leaf, torch.Tensor) and leaf.requires_grad]
    if leaves and isinstance(result, torch.Tensor) and result.requires_grad:
        weights = torch.linspace(1, 2, result.numel()).view_as(result)
        (result * weights).sum().backward()
    gradients = [torch.zeros_like(leaf) if leaf.grad is None else leaf.grad for leaf in leaves]
    return np.concatenate([np.zeros(0)] + [part.flatten().numpy() for part in gradients])


def same(one, other):
    """Whether two outcomes are the same but for rounding."""
    if isinstance(one, Exception) or isinstance(other, Exception):
        return isinstance(one, ZeroDivisionError) and isinstance(other, ZeroDivisionError)
    return one.shape == other.shape and np.allclose(one, other, 1e-4, 1e-5, equal_nan=True)


@functools.cache
def outcomes_of_mistakes(name):
    """[(outcomes of a mistake, the sentence on it), ...]"""
    def detached(*args):
        return torch.as_tensor(ANSWERS[name](*args)).detach()

    return [(outcomes(name, wrong), sentence)
            for wrong, sentence in [*MISTAKES[name], (detached, DETACHED)]]


def known_mistake(name, given, expected, differs):
    """The sentence on the mistake that gives the same up to the first difference, and of several
    the one that gives the same most often; None without one. Exceptions are passed over: what stops
    with 3 experts may give values with 4. differs: the places where given is wrong."""
    best, sentence = 0, None
    values = [i for i in differs if not isinstance(given[i], Exception)]
    first = min(values, default=differs[0])
    before = [i for i in range(first) if i not in differs]
    for found, text in outcomes_of_mistakes(name):
        fits = same(found[first], given[first]) and not same(found[first], expected[first])
        fits = fits and all(same(found[i], given[i]) for i in before)
        agree = fits * sum(map(same, found, given))
        if agree > best:
            best, sentence = agree, text
    return sentence


def unknown_mistake(name, given, expected, first, path):
    """A sentence on the first value that differs. first: its place in outcomes()."""
    case = f"With {list(CASES[name])[first // 2]}"
    if isinstance(given, WrongKind):
        return f"{case} {given}"
    if isinstance(given, Exception):
        return f"{case} it stops with an error: {told(given, path)}"
    what = "gradient" if first % 2 else "result"
    if given.shape != expected.shape:
        return f"{case} the {what} should have the shape {expected.shape}, and has {given.shape}."
    differs = ~np.isclose(given, expected, 1e-4, 1e-5, equal_nan=True)
    place = tuple(np.argwhere(differs)[0].tolist())
    what += at(place)
    if name == "run_stage":
        case, what = f"After {list(STAGES)[place[0]]}", f"weights{at(place[1:])}"
    elif first % 2 and name != "predict":
        what = f"gradient with respect to {leaves(name, first // 2)[place[0]]}"
    values = f"{case} the {what} should be {expected[place]:.6g}, and is {given[place]:.6g}."
    return f"{values} Is something detached?" if first % 2 and not given[place] else values


def at(place):
    return f"[{', '.join(map(str, place))}]" if place else ""


def leaves(name, case):
    """The names of all the numbers in which gradient() gives the gradient, as scores[0, 1]."""
    args = list(CASES[name].values())[case]
    parameters = inspect.signature(ANSWERS[name]).parameters
    return [parameter + at(place) for parameter, arg in zip(parameters, args)
            if isinstance(arg, torch.Tensor) and arg.requires_grad
            for place in np.ndindex(*arg.shape)]
