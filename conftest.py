"""Makes the tests run alike with all versions, plugins and users, and in any order."""

import os
import random

import pytest

# Torch asks for the user's name, and not every user has one.
os.environ.setdefault("USERNAME", str(os.getuid()))


def pytest_collection_modifyitems(items):
    """Makes every warning within a test an error; outside of tests pytest and its plugins may warn.

    If the environment variable TEST_ORDER holds a number, the tests run in a random order, which is
    always the same for this number."""
    for item in items:
        item.add_marker(pytest.mark.filterwarnings("error"))
    if "TEST_ORDER" in os.environ:
        random.Random(os.environ["TEST_ORDER"]).shuffle(items)
