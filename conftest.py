"""How the tests run, whatever versions, plugins, users and orders there are."""

import os
import random

import pytest

# Torch asks for the user's name, and not every user has one.
os.environ.setdefault("USERNAME", str(os.getuid()))


def pytest_collection_modifyitems(items):
    """Makes every warning within a test an error; outside of tests pytest and its plugins may warn.

    If the environment has TEST_ORDER, they run in a random order: that of the number it holds."""
    for item in items:
        item.add_marker(pytest.mark.filterwarnings("error"))
    if "TEST_ORDER" in os.environ:
        random.Random(os.environ["TEST_ORDER"]).shuffle(items)
