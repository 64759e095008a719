"""Triton's kernels on the CPU, in its interpreter, whoever has imported them and under whatever settings."""

from types import ModuleType
from typing import Any

import pytest
import triton
import triton.experimental.gluon  # a first launch imports it, and it must find functions as they are
from triton import language
from triton.runtime import interpreter


def interpret(monkeypatch: pytest.MonkeyPatch, *modules: ModuleType) -> None:
    """Until the test's end, have the kernels of these modules interpreted."""
    for module in (*modules, language, language.standard):
        for name, function in list(vars(module).items()):
            if isinstance(function, triton.JITFunction):
                monkeypatch.setattr(module, name, interpreter.InterpretedFunction(function.fn))

    multiply, patch = interpreter.InterpreterBuilder.create_dot, interpreter._patch_lang_tensor

    def create_dot(self: Any, a: Any, b: Any, *arguments: Any) -> Any:
        return multiply(self, _widened(a), _widened(b), *arguments)

    def patch_tensor(tensor: Any, scope: Any) -> None:
        patch(tensor, scope)
        # bounds of loops are arrays of one number, which NumPy 2.4 takes for no integer
        scope.set_attr(tensor, "__index__", lambda self: self.handle.data.item())

    def call(self: Any, *arguments: Any, **named: Any) -> Any:
        scope = interpreter._patch_lang(self.fn)
        try:
            return self.rewrite()(*arguments, **named)
        finally:
            scope.restore()  # which Triton forgets: nothing could be compiled in this process any more

    monkeypatch.setattr(interpreter.InterpretedFunction, "__call__", call)
    monkeypatch.setattr(interpreter.InterpreterBuilder, "create_dot", create_dot)
    monkeypatch.setattr(interpreter, "_patch_lang_tensor", patch_tensor)


def _widened(handle: Any) -> Any:
    """NumPy has no bfloat16: the interpreter would multiply the numbers' bits."""
    if handle.dtype.scalar != language.bfloat16:
        return handle
    wide = interpreter._convert_float(handle.data, language.bfloat16, language.float32, None)
    return interpreter.TensorHandle(wide.view("float32"), language.float32)
