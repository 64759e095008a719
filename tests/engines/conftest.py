import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture(scope="session", autouse=True)
def kernels() -> None:
    """Adapters draft and learn nothing until the kernels are compiled, and wait for none."""
    from hdraft.drafting.hierarchy.drafter import HierarchyDrafter

    HierarchyDrafter(30_000).warm_up()
