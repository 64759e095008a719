"""What Triton compiles a kernel to for a GPU that need not be there."""

from collections.abc import Collection, Mapping
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource


def compiled(
    kernel: Any,
    types: Mapping[str, str],
    constants: Mapping[str, Any],
    aligned: Collection[str] = (),
    capability: int = 90,
    **options: Any,
) -> Any:
    """A kernel for an NVIDIA GPU; arguments without a type are int32, `aligned` ones are multiples of 16."""
    names = kernel.arg_names
    source = ASTSource(
        kernel,
        {name: "constexpr" if name in constants else types.get(name, "i32") for name in names},
        {(at,): constants[name] for at, name in enumerate(names) if name in constants},
        {(at,): [["tt.divisibility", 16]] for at, name in enumerate(names) if name in aligned},
    )
    return triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)
