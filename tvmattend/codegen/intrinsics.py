# SPDX-License-Identifier: Apache-2.0
"""exp(x) and sigmoid(x) in vector registers, for SiLU, gates and softmax.

LLVM lowers a vector `exp` to one call of libm's `expf` a lane, which takes more time than the
convolution in front of it. The replacement is the textbook reduction

    exp(x) = 2^k * exp(r),    k = round(x / ln 2),    r = x - k * ln 2,    |r| <= ln 2 / 2

with ln 2 in two parts (Cody and Waite) and the degree-5 minimax polynomial of Cephes' `expf`
(S. Moshier, netlib.org/cephes; relative error below 2e-7 in single precision). k is rounded by
adding 1.5 * 2^23, after which the low bits of the sum are k. Arguments are clamped to
[-87, 88], where 2^k stays a normal number: exp is 1.6e-38 or more, never 0, never infinite.

    sigmoid(x) = 1 / (1 + exp(-x))

divides by Newton's iteration r <- r * (2 - d * r) from the linear guess that integer subtraction
makes of a float's bits (12 % off): 12 % -> 1.5 % -> 2e-4 -> 5e-8 in three steps. A vector division
occupies a Cortex-A72's divider for over twenty cycles, the operations of the iteration take one
issue slot each. On Arm the guess is FRECPE's, good to 8 bits, and two steps do.
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


# Bits of the guess for 1 / d: the float whose bits are this less the bits of d.
_RECIPROCAL_BITS = 0x7EF311C7
_NEWTON_STEPS = 3


@cache
def use_vector_math() -> None:
    """Replace the lowering of `tirx.exp` and `tirx.sigmoid` for LLVM targets in this process.

    A builder's worker process needs its own call.
    """
    from tvm.tirx import register_intrin_lowering

    register_intrin_lowering("tirx.exp", target="llvm", f=_lower_exp, level=99)
    register_intrin_lowering("tirx.sigmoid", target="llvm", f=_lower_sigmoid, level=99)


class _Vector:
    """Constants and let-bindings for one fp32 scalar or vector type."""

    def __init__(self, like: Any) -> None:
        self.dtype = str(like.dtype) if hasattr(like, "dtype") else str(like.ty)
        self.lanes = int(self.dtype.partition("x")[2] or 1)
        self.integer = self.dtype.replace("float32", "int32")
        self.bound: list[tuple[Any, Any]] = []

    @property
    def is_single(self) -> bool:
        """Whether the elements are fp32."""
        return self.dtype.partition("x")[0] == "float32"

    def constant(self, value: float, kind: str = "float32") -> Any:
        from tvm import tirx

        scalar = tirx.const(value, kind)
        return scalar if self.lanes == 1 else tirx.Broadcast(scalar, self.lanes)

    def let(self, name: str, value: Any) -> Any:
        """Name a value that is used more than once."""
        from tvm import tirx

        var = tirx.Var(name, self.dtype)
        self.bound.append((var, value))
        return var

    def close(self, result: Any) -> Any:
        """Wrap the bindings around the result."""
        from tvm import tirx

        for var, value in reversed(self.bound):
            result = tirx.Let(var, value, result)
        return result

    def exp(self, x: Any, highest: float = _HIGHEST) -> Any:
        """exp(x) for x up to `highest`, above which it stays; see the head of this file."""
        from tvm import tirx
        from tvm.tirx import op

        low, high = self.constant(_LOWEST), self.constant(highest)
        clamped = self.let("exp_x", tirx.Max(tirx.Min(x, high), low))
        rounding = self.constant(_ROUND)
        shifted = self.let("exp_k_bits", clamped * self.constant(_LOG2_E) + rounding)
        k = self.let("exp_k", shifted - rounding)
        reduced = clamped - k * self.constant(_LN2_HIGH) - k * self.constant(_LN2_LOW)
        r = self.let("exp_r", reduced)
        # Estrin's scheme: pairs, then powers of r^2. An FMLA overwrites its addend, so each step of
        # Horner's with its constant addend would cost a register copy on Arm.
        square = self.let("exp_r2", r * r)
        pairs = [
            self.constant(odd) * r + self.constant(even)
            for odd, even in zip(_POLYNOMIAL[::2], _POLYNOMIAL[1::2], strict=True)
        ]
        series = (pairs[0] * square + pairs[1]) * square + pairs[2]
        mantissa = series * square + (r + self.constant(1.0))
        bits = op.shift_left(
            tirx.reinterpret(self.integer, shifted), self.constant(_EXPONENT_BITS, "int32")
        ) + self.constant(_ONE_AS_BITS, "int32")
        return self.let("exp", mantissa * tirx.reinterpret(self.dtype, bits))

    def reciprocal(self, d: Any) -> Any:
        """1 / d for d in [1, 8e37], where the guess is normal; see the head of this file."""
        from tvm import tirx

        divisor = self.let("divisor", d)
        if self.lanes % 4 == 0 and _is_aarch64():
            return self._neon_reciprocal(divisor, self.lanes)
        bits = self.constant(_RECIPROCAL_BITS, "int32") - tirx.reinterpret(self.integer, divisor)
        guess = self.let("guess", tirx.reinterpret(self.dtype, bits))
        for _ in range(_NEWTON_STEPS):
            guess = self.let("guess", guess * (self.constant(2.0) - divisor * guess))
        return guess

    def _neon_reciprocal(self, d: Any, lanes: int) -> Any:
        """FRECPE (8 bits) and two Newton steps with FRECPS, which computes 2 - a * b."""
        from tvm import tirx

        dtype = f"float32x{lanes}"
        if lanes > 4:
            half = f"float32x{lanes // 2}"
            low, high = (
                self._neon_reciprocal(tirx.call_intrin(half, f"tirx.vector{part}", d), lanes // 2)
                for part in ("low", "high")
            )
            return tirx.call_intrin(dtype, "tirx.vectorcombine", low, high)
        var = tirx.Var("divisor4", dtype)
        self.bound.append((var, d))
        guess = tirx.Var("guess4", dtype)
        self.bound.append((guess, _neon("frecpe", dtype, var)))
        for _ in range(2):
            better = tirx.Var("guess4", dtype)
            self.bound.append((better, guess * _neon("frecps", dtype, var, guess)))
            guess = better
        return guess


def _neon(name: str, dtype: str, *arguments: Any) -> Any:
    from tvm import tirx

    return tirx.call_llvm_pure_intrin(dtype, f"llvm.aarch64.neon.{name}.v4f32", *arguments)


def _is_aarch64() -> bool:
    """Whether code is being generated for an Arm core: the target in whose scope we compile."""
    from tvm.target import Target

    target = Target.current(allow_none=True)
    return target is not None and str(target.attrs.get("mtriple", "")).startswith("aarch64")


def _lower_exp(call: Any) -> Any:
    """One `exp` of fp32, scalar or vector; other types keep libm's."""
    from tvm import tirx

    (x,) = call.args
    vector = _Vector(x)
    if not vector.is_single:
        return tirx.call_intrin(vector.dtype, "tirx.call_llvm_pure_intrin", "llvm.exp", x)
    return vector.close(vector.exp(x))


def _lower_sigmoid(call: Any) -> Any:
    """One `sigmoid` of fp32, scalar or vector; other types divide."""
    from tvm import tirx

    (x,) = call.args
    vector = _Vector(x)
    one = vector.constant(1.0, vector.dtype.partition("x")[0])
    if not vector.is_single:
        return one / (one + tirx.exp(vector.constant(0.0, vector.dtype.partition("x")[0]) - x))
    exp = vector.exp(vector.constant(0.0) - x, highest=-_LOWEST)
    return vector.close(vector.reciprocal(exp + one))
