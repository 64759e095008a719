"""Pack what `benchmarks/gpu/replay.py` replays, to carry it to a machine with a GPU.

    python tools/pack_replay.py FOLDER OUTPUT

FOLDER holds a trace and generations (`.jsonl`, `.jsonl.gz`) and corpora (`.npy`, token ids). Arrays go to OUTPUT as
`.npy.xz`, of 16 bits an id where the vocabulary allows; lines of JSON as `.jsonl.gz`.
"""

import argparse
import gzip
import io
import lzma
from pathlib import Path

import numpy as np


def pack(folder: Path, output: Path) -> int:
    """Pack everything; returns the bytes written."""
    output.mkdir(parents=True, exist_ok=True)
    total = 0
    for path in sorted(folder.iterdir()):
        name, data = path.name, b""
        if name.endswith(".npy"):
            ids = np.load(path, allow_pickle=False)
            buffer = io.BytesIO()
            np.save(buffer, ids.astype(np.uint16 if ids.max(initial=0) < 2**16 else np.int32))
            name, data = f"{name}.xz", lzma.compress(buffer.getvalue())
        elif name.endswith(".jsonl"):
            name, data = f"{name}.gz", gzip.compress(path.read_bytes(), mtime=0)
        elif name.endswith(".jsonl.gz"):
            data = path.read_bytes()
        if data:
            total += (output / name).write_bytes(data)
    return total


def main() -> None:
    """Pack, and say how much it came to."""
    parser = argparse.ArgumentParser(description="Pack a trace, generations and corpora.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("output", type=Path)
    arguments = parser.parse_args()
    if not arguments.folder.is_dir():
        raise SystemExit(f"there is no folder {arguments.folder}")
    print(f"{arguments.output}: {pack(arguments.folder, arguments.output) / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
