"""Run a command with the newest, or the oldest, packages that pyproject.toml allows: `environments.py newest pytest …`.

What they are is asked of the package index each time. An environment is made once for each answer and kept in
`.environments`, in a folder named by it. torch is the one of constraints.txt in both, as another is several gigabytes.
"""

import hashlib
import json
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]
KEPT = ROOT / ".environments"
NAMED = ("transformers", "tokenizers", "huggingface-hub", "numpy", "numba", "safetensors", "typer", "rich", "torch")
TESTS = "test"  # the extra with what the tests need


def requirements(which: str) -> list[str]:
    """hdraft's own requirements, as they are or at their lower bounds, and those of its tests."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    torch = re.search(r"^torch==.*$", (ROOT / "constraints.txt").read_text(encoding="utf-8"), re.MULTILINE)
    own = [each for each in project["dependencies"] if not each.startswith("torch>")]
    if which == "oldest":
        own = [each.replace(">=", "==") for each in own]
    return [torch[0] if torch else "torch", *own, *project["optional-dependencies"][TESTS]]


def resolve(wanted: list[str]) -> dict[str, str]:
    """The version of every package that pip would install."""
    command = [sys.executable, "-m", "pip", "install", "--dry-run", "--ignore-installed", "--quiet", "--report", "-"]
    answer = subprocess.run([*command, *wanted], capture_output=True, text=True)
    if answer.returncode:
        sys.exit(f"{' '.join(wanted)} cannot be had together:\n{answer.stderr}")
    packages = [package["metadata"] for package in json.loads(answer.stdout)["install"]]
    return {package["name"].lower().replace("_", "-"): package["version"] for package in packages}


def environment(versions: dict[str, str]) -> Path:
    """The folder of an environment with these packages and hdraft itself, made if it is not there."""
    pins = sorted(f"{name}=={version}" for name, version in versions.items())
    python = f"{sys.version_info[0]}.{sys.version_info[1]}"
    key = hashlib.sha256("\n".join([python, *pins]).encode()).hexdigest()[:8]
    folder = KEPT / f"python-{python}-transformers-{versions['transformers']}-numpy-{versions['numpy']}-{key}"
    whole = folder / "whole"  # written last
    pip = [str(folder / "bin" / "pip"), "install", "--quiet", "--disable-pip-version-check", "--no-deps"]
    if not whole.exists():
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(folder)], check=True)
        subprocess.run([*pip, *pins], check=True)
        subprocess.run([*pip, "-e", str(ROOT)], check=True)
        whole.touch()
    return folder


def main() -> None:
    """Run the command, with the environment's programs first and compiled kernels of its own."""
    if len(sys.argv) < 3 or sys.argv[1] not in ("newest", "oldest"):
        sys.exit("usage: environments.py newest|oldest COMMAND …")
    which, command = sys.argv[1], sys.argv[2:]
    versions = resolve(requirements(which))
    print(f"{which}:", ", ".join(f"{name} {versions[name]}" for name in NAMED), flush=True)
    folder = environment(versions)
    paths = {"PATH": f"{folder / 'bin'}{os.pathsep}{os.environ['PATH']}", "NUMBA_CACHE_DIR": str(folder / "numba")}
    sys.exit(subprocess.run(command, env=os.environ | paths, cwd=ROOT).returncode)


if __name__ == "__main__":
    main()
