"""How the tests run, whatever versions, plugins, users and orders there are."""

import os
import random

import pytest

# Torch asks for the user's name, and not every user has one.
os.environ.setdefault("USERNAME", str(os.getuid()))


def pytest_collection_modifyitems(items):
    """Makes every warning within a test an error; outside of tests pytest and its plugins may warn.

    If the environment has ORDER, a number, the tests run in the random order of that number."""
    for item in items:
        item.add_marker(pytest.mark.filterwarnings("error"))
    if "ORDER" in os.environ:
        random.Random(int(os.environ["ORDER"])).shuffle(items)
