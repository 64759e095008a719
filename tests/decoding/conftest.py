import sys
from pathlib import Path

import pytest
import torch
import transformers

sys.path.insert(0, str(Path(__file__).parent))
torch.set_num_threads(1)
transformers.logging.set_verbosity_error()


@pytest.fixture(autouse=True)
def no_drafter_fails(request, caplog):
    """A drafter that fails, or an assertion in it, shows in no text: where no test is about that, it is a fault."""
    yield
    if not request.node.get_closest_marker("broken"):
        assert not [each for each in caplog.get_records("call") if "drafts no more" in each.getMessage()]
