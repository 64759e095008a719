"""Models that write text for ever, and chat templates of every temper."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1] / "decoding"))
