"""The machine behind a figure is named, and nothing about it is made up."""

import hdraft
from hdraft.evaluation.machine import accelerator, machine


def test_the_processor_and_versions_are_named() -> None:
    where = machine()
    assert where["processor"] and where["hdraft"] == hdraft.__version__ and where["torch"]


def test_no_accelerator_is_none() -> None:
    assert accelerator("cpu") is None
