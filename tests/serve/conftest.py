"""Servers for tests, where the extra is installed that they need."""

import sys
from collections.abc import Iterator
from contextlib import ExitStack
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

sys.path += [str(Path(__file__).parents[1] / name) for name in ("decoding", "chat")]

if not all(find_spec(package) for package in ("openai", "starlette", "uvicorn", "prometheus_client")):
    collect_ignore_glob = ["test_*.py"]

if TYPE_CHECKING:
    from serving import Running, Serve


@pytest.fixture
def serve(always_draft: None) -> Iterator["Serve"]:
    """Starts a server, by the name of a model in tests/decoding/architectures.py and the kind of a tokenizer there."""
    from architectures import build, build_tokenizer
    from serving import running

    with ExitStack() as servers:

        def start(model: str = "llama-text", tokenizer: str = "text", **options: Any) -> "Running":
            return servers.enter_context(running(build(model), build_tokenizer(tokenizer), **options))

        yield start


@pytest.fixture
def always_draft(monkeypatch: pytest.MonkeyPatch) -> None:
    """A busy machine may measure that drafts do not pay."""
    from hdraft.drafting.hierarchy.drafter import HierarchyDrafter

    monkeypatch.setattr(HierarchyDrafter, "uses_costs", False)


@pytest.fixture(scope="module")
def tiny() -> Iterator["Running"]:
    """One server for many tests."""
    from architectures import build, build_tokenizer
    from serving import running

    from hdraft.drafting.hierarchy.drafter import HierarchyDrafter

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(HierarchyDrafter, "uses_costs", False)
        with running(build("llama-text"), build_tokenizer()) as started:
            yield started
