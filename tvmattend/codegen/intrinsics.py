# SPDX-License-Identifier: Apache-2.0
"""exp(x) in vector registers, for SiLU, sigmoid and softmax.

LLVM lowers a vector `exp` to one call of libm's `expf` a lane, which takes more time than the
convolution in front of it. The replacement is the textbook reduction

    exp(x) = 2^k * exp(r),    k = round(x / ln 2),    r = x - k * ln 2,    |r| <= ln 2 / 2

with ln 2 in two parts (Cody and Waite) and the degree-5 minimax polynomial of Cephes' `expf`
(S. Moshier, netlib.org/cephes; relative error below 2e-7 in single precision). k is rounded by
adding 1.5 * 2^23, after which the low bits of the sum are k. Arguments are clamped to
[-87, 88], where 2^k stays a normal number: exp is 1.6e-38 or more, never 0, never infinite.
"""

from functools import cache
from typing import Any

_LOG2_E = 1.44269504088896341
_LN2_HIGH, _LN2_LOW = 0.693359375, -2.12194440e-4
_ROUND = 12582912.0  # 1.5 * 2^23
_LOWEST, _HIGHEST = -87.0, 88.0
_POLYNOMIAL = (
    1.9875691500e-4,
    1.3981999507e-3,
    8.3334519073e-3,
    4.1665795894e-2,
    1.6666665459e-1,
    5.0000001201e-1,
)
_EXPONENT_BITS, _ONE_AS_BITS = 23, 0x3F800000


@cache
def use_vector_exp() -> None:
    """Replace the lowering of `tirx.exp` for LLVM targets in this process.

    A builder's worker process needs its own call.
    """
    from tvm.tirx import register_intrin_lowering

    register_intrin_lowering("tirx.exp", target="llvm", f=_lower_exp, level=99)


def _lower_exp(call: Any) -> Any:
    """One `exp` of fp32, scalar or vector; other types keep libm's."""
    from tvm import tirx
    from tvm.tirx import op

    x = call.args[0]
    dtype = str(x.dtype) if hasattr(x, "dtype") else str(x.ty)
    if not dtype.startswith("float32"):
        return tirx.call_intrin(dtype, "tirx.call_llvm_pure_intrin", "llvm.exp", x)
    lanes = int(dtype.partition("x")[2] or 1)
    integer = dtype.replace("float32", "int32")

    def constant(value: float, kind: str = "float32") -> Any:
        scalar = tirx.const(value, kind)
        return scalar if lanes == 1 else tirx.Broadcast(scalar, lanes)

    bound: list[tuple[Any, Any]] = []

    def let(name: str, value: Any) -> Any:
        var = tirx.Var(f"exp_{name}", dtype)
        bound.append((var, value))
        return var

    clamped = let("x", tirx.Max(tirx.Min(x, constant(_HIGHEST)), constant(_LOWEST)))
    shifted = let("k_bits", clamped * constant(_LOG2_E) + constant(_ROUND))
    k = let("k", shifted - constant(_ROUND))
    r = let("r", clamped - k * constant(_LN2_HIGH) - k * constant(_LN2_LOW))
    series = constant(_POLYNOMIAL[0])
    for coefficient in _POLYNOMIAL[1:]:
        series = series * r + constant(coefficient)
    mantissa = let("mantissa", (series * r) * r + r + constant(1.0))
    bits = op.shift_left(
        tirx.reinterpret(integer, shifted), constant(_EXPONENT_BITS, "int32")
    ) + constant(_ONE_AS_BITS, "int32")
    result = mantissa * tirx.reinterpret(dtype, bits)
    for var, value in reversed(bound):
        result = tirx.Let(var, value, result)
    return result
