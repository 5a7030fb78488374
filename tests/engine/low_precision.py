"""Mixed precision as a GPU does it, on a CPU: an operator without a kernel for low precision casts before and after.

Inside paddle.amp.auto_cast matrix products and convolutions take low numbers and norms take float32; elsewhere the
widest of what an operator is given counts. Outside, an operator with weights refuses a mixture, as on a GPU.
"""

from __future__ import annotations

import importlib
import sys
from contextlib import contextmanager
from types import SimpleNamespace

import paddle
from paddle import _C_ops

amp = importlib.import_module("paddle.amp.auto_cast")  # `paddle.amp.auto_cast` is a function
LOW = (paddle.float16, paddle.bfloat16)
PRODUCTS = ("matmul", "conv2d", "linear", "addmm", "bmm", "conv2d_transpose", "mv")
NORMS = ("layer_norm", "group_norm", "softmax", "mean", "mean_all", "sum", "square", "log_softmax")
GENERATED = "paddle.base.libpaddle.pir.ops"
MASTER, FINDS_MASTER = 8, 18  # of the arguments of adamw_
ARITHMETIC = [f"__{prefix}{name}__" for name in ("add", "sub", "mul", "truediv") for prefix in ("", "r")] + ["__neg__"]
KEPT = ("cast", "assign", "full", "zeros", "ones", "gaussian", "uniform", "empty", "adamw_")


def emulate(monkeypatch) -> list:
    """Switch it on until the test ends; gives (level, dtype) of every auto_cast that was entered."""
    active, entered, casting = [], [], _C_ops.cast

    @contextmanager
    def auto_cast(level: str = "O1", dtype: str = "float16"):
        entered.append((level, dtype))
        active.append(getattr(paddle, dtype))
        try:
            yield
        finally:
            active.pop()

    def to(value, dtype):
        if isinstance(value, paddle.Tensor) and value.is_floating_point() and value.dtype != dtype:
            return casting(value, dtype)
        return [to(each, dtype) for each in value] if isinstance(value, (list, tuple)) and value and isinstance(
            value[0], paddle.Tensor) else value

    def wrapped(name, operator):
        def computed(arguments, options, dtype):
            return operator(*[to(value, dtype) for value in arguments],
                            **{key: to(value, dtype) for key, value in options.items()})

        def call(*arguments, **options):
            given = [*arguments, *options.values()]
            kinds = {each.dtype for value in given for each in (value if isinstance(value, (list, tuple)) else [value])
                     if isinstance(each, paddle.Tensor) and each.is_floating_point()}
            if not active and not kinds & set(LOW):
                return operator(*arguments, **options)
            if active and name in PRODUCTS:
                arguments = [to(value, active[-1]) for value in arguments]  # rounded
                options = {key: to(value, active[-1]) for key, value in options.items()}
                kinds = {active[-1]}
            elif active and name in NORMS or (len(kinds) > 1 and name not in PRODUCTS + NORMS):
                kinds = {paddle.float32}
            if len(kinds) > 1:
                raise TypeError(f"{name} of {sorted(map(str, kinds))}: no such kernel on a GPU")
            result = computed(arguments, options, paddle.float32)
            return to(result, kinds.pop()) if kinds & set(LOW) else result

        return call

    def adamw(*arguments, **options):
        """The master weights are what is updated, and the parameter follows."""
        arguments, parameter = list(arguments), arguments[0]
        if parameter.dtype in LOW:
            assert arguments[MASTER] is not None and arguments[1].dtype == paddle.float32, "float32 masters, gradients"
            arguments[0], arguments[MASTER], arguments[FINDS_MASTER] = arguments[MASTER], None, False
        original(*arguments, **options)
        if parameter.dtype in LOW:
            parameter.set_value(casting(arguments[0], parameter.dtype))
        return (None,) * 7

    original = _C_ops.adamw_
    monkeypatch.setattr(paddle.amp, "auto_cast", auto_cast)
    monkeypatch.setattr(_C_ops, "adamw_", adamw)
    ours = {name: wrapped(name, getattr(_C_ops, name)) for name in dir(_C_ops)
            if callable(getattr(_C_ops, name)) and not name.startswith("_") and name not in KEPT
            and not name.endswith("_")}  # fmt: skip
    for name, call in ours.items():
        monkeypatch.setattr(_C_ops, name, call)
    for key, module in list(sys.modules.items()):  # where the generated functions are bound once more
        if key.startswith(("paddle.tensor", "paddle.nn")):
            for name, value in list(vars(module).items()):
                if name in ours and getattr(value, "__module__", None) == GENERATED:
                    monkeypatch.setattr(module, name, ours[name])
    for name in ARITHMETIC:
        monkeypatch.setattr(paddle.Tensor, name, wrapped(name, getattr(paddle.Tensor, name)))
    gpu = SimpleNamespace(is_gpu_place=lambda: True, is_xpu_place=lambda: False, is_custom_place=lambda: False)
    monkeypatch.setattr(amp, "_dygraph_tracer", lambda: SimpleNamespace(_expected_place=gpu))
    for name in ("_is_gpu_float16_supported", "_is_gpu_bfloat16_supported"):
        monkeypatch.setattr(amp, name, lambda: True)
    return entered
