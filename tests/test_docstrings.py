"""The worked examples in docstrings come out as they say."""

import doctest
import importlib
import pkgutil

import pytest

import hdraft

MODULES = sorted(module.name for module in pkgutil.walk_packages(hdraft.__path__, "hdraft."))


@pytest.mark.parametrize("name", [name for name in MODULES if not name.endswith("__main__")])
def test_examples_come_out_as_they_say(name: str) -> None:
    try:
        module = importlib.import_module(name)
    except ImportError as error:  # of an extra
        pytest.skip(str(error))
    assert doctest.testmod(module).failed == 0
