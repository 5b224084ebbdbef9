# SPDX-License-Identifier: Apache-2.0
"""exp(x), sigmoid(x) and tanh(x) in vector registers, for SiLU, gates and softmax.

LLVM lowers a vector `exp` to one call of libm's `expf` a lane, which takes more time than the
convolution in front of it. The replacements start with the textbook reduction

    2^t = 2^k * 2^f,    t = x / ln 2,    k = round(t),    f = t - k,    |f| <= 1/2

k is rounded by adding 1.5 * 2^23, after which the low bits of the sum are k, and multiplying by 2^k
is adding k to the exponent. f comes of one fused multiply-add, so its error is that of 1 / ln 2 in
fp32: 1.3e-8 * |t|, or 3e-7 at x = -20 and 1.3e-6 at the ends of the range, where exp(x) is 1e-37.
A second constant would cost a multiply-add and improve nothing that a network can see.

    exp(x) = 2^k * P(f)                      P of degree 5, relative error 7.5e-8

Arguments are clamped to [-87, 88], where 2^k stays a normal number: exp is 1.6e-38 or more, never
0, never infinite.

    2^f ~= (A + B) / (A - B),    A = f^2 + a,    B = b * f          relative error 4.3e-7
    sigmoid(x) = (A - B) / ((A - B) + 2^k * (A + B))                k and f those of -x

A sigmoid divides anyway, and with both parts of the fraction in that one division the exponential
costs three operations instead of the polynomial's eight. The fraction is Pade's [2/2] with a and b
moved to where the greatest error on |f| <= 1/2 is least (Pade: 7.0e-6).

    tanh(x) = ((2^k - 1) * A + (2^k + 1) * B) / ((2^k + 1) * A + (2^k - 1) * B)

with k and f those of 2x. Where k is 0 that is B / A: small numbers keep their digits, which they
lose in 2 * sigmoid(2x) - 1. There the whole error is the fraction's, so that it is one degree
higher, Pade's [3/2] of y = f * ln 2 / 2, unchanged: A = 6 y^2 + 15, B = y * (y^2 + 15), relative
error 1e-8. Arguments are clamped to [-10, 10], outside of which tanh is 1 in fp32.

On Arm the division is g * (1 + e + e^2), e = 1 - d * g, of a guess g: FRECPE's (8 bits); for
vectors that are no registers the guess is the linear one that integer subtraction makes of a
float's bits (12 % off), and the step is made twice. A vector division occupies a Cortex-A72's
divider for 34 cycles; the other 20 operations, 18. Other targets divide: kernels are then 3 to 7 %
faster on a Zen 3 core than with RCPPS, and up to 6 % on a Zen 4 core than with VRCP14PS.
"""

from functools import cache
from typing import Any

_LOG2_E = 1.44269504088896341
_ROUND = 12582912.0  # 1.5 * 2^23
_LOWEST, _HIGHEST = -87.0, 88.0
# Of a sigmoid's argument: 2^k * (A + B), with A + B up to 30, must have a normal reciprocal.
_LOWEST_SIGMOID = -83.0
# Minimax of the relative error, lowest degree first.
_POLYNOMIAL = (
    1.00000007,
    6.9314697e-1,
    2.4022120e-1,
    5.550713e-2,
    9.67554e-3,
    1.32765e-3,
)
_FRACTION_A, _FRACTION_B = 25.03910668, 8.67783884
_HALF_LN_2 = 0.34657359027997264
_HIGHEST_TANH = 10.0
_EXPONENT_BITS = 23

# Bits of the guess for 1 / d: the float whose bits are this less the bits of d.
_RECIPROCAL_BITS = 0x7EF311C7


# FRECPE guesses the reciprocals in a register.
_FRECPE, _FRECPE_LANES = "llvm.aarch64.neon.frecpe.v4f32", 4


@cache
def use_vector_math() -> None:
    """Replace the lowering of `tirx.exp`, `sigmoid` and `tanh` for LLVM targets in this process.

    A builder's worker process needs its own call.
    """
    from tvm.tirx import register_intrin_lowering

    register_intrin_lowering("tirx.exp", target="llvm", f=_lower_exp, level=99)
    register_intrin_lowering("tirx.sigmoid", target="llvm", f=_lower_sigmoid, level=99)
    register_intrin_lowering("tirx.tanh", target="llvm", f=_lower_tanh, level=99)


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

        var = tirx.Var(name, str(value.dtype) if hasattr(value, "dtype") else str(value.ty))
        self.bound.append((var, value))
        return var

    def close(self, result: Any) -> Any:
        """Wrap the bindings around the result."""
        from tvm import tirx

        for var, value in reversed(self.bound):
            result = tirx.Let(var, value, result)
        return result

    def reduce(self, x: Any, lowest: float, highest: float, scale: float) -> tuple[Any, Any]:
        """Bits of k, ready to be added to an exponent, and f, of t = x * scale."""
        from tvm import tirx
        from tvm.tirx import op

        low, high = self.constant(lowest), self.constant(highest)
        clamped = self.let("exp_x", tirx.Max(tirx.Min(x, high), low))
        rounding, scaled = self.constant(_ROUND), clamped * self.constant(scale)
        shifted = self.let("exp_k_bits", scaled + rounding)
        # In this order both are one multiply-add; of `scaled - (shifted - rounding)` LLVM makes two
        # operations and another product.
        f = self.let("exp_f", scaled + (rounding - shifted))
        bits = tirx.reinterpret(self.integer, shifted)
        return op.shift_left(bits, self.constant(_EXPONENT_BITS, "int32")), f

    def times_power(self, value: Any, bits: Any) -> Any:
        """value * 2^k."""
        from tvm import tirx

        return tirx.reinterpret(self.dtype, tirx.reinterpret(self.integer, value) + bits)

    def exp(self, x: Any) -> Any:
        """exp(x); see the head of this file."""
        bits, f = self.reduce(x, _LOWEST, _HIGHEST, _LOG2_E)
        # Estrin's scheme: pairs, then powers of f^2. An FMLA overwrites its addend, so each step of
        # Horner's with its constant addend would cost a register copy on Arm.
        square = self.let("exp_f2", f * f)
        pairs = [
            f * self.constant(odd) + self.constant(even)
            for even, odd in zip(_POLYNOMIAL[::2], _POLYNOMIAL[1::2], strict=True)
        ]
        return self.times_power((pairs[2] * square + pairs[1]) * square + pairs[0], bits)

    def sigmoid(self, x: Any) -> Any:
        """sigmoid(x); see the head of this file."""
        bits, f = self.reduce(x, _LOWEST_SIGMOID, _HIGHEST, -_LOG2_E)
        b = self.constant(_FRACTION_B)
        a = self.let("fraction_a", f * f + self.constant(_FRACTION_A))
        below = self.let("below", a - f * b)
        power = self.times_power(a + f * b, bits)
        return self.quotient(below, self.let("divisor", below + power))

    def tanh(self, x: Any) -> Any:
        """tanh(x); see the head of this file."""
        bits, f = self.reduce(x, -_HIGHEST_TANH, _HIGHEST_TANH, 2 * _LOG2_E)
        y = self.let("tanh_y", f * self.constant(_HALF_LN_2))
        square = self.let("tanh_y2", y * y)
        a = self.let("fraction_a", square * self.constant(6.0) + self.constant(15.0))
        b = self.let("fraction_b", (square + self.constant(15.0)) * y)
        power = self.let("power", self.times_power(self.constant(1.0), bits))
        less = self.let("less", power - self.constant(1.0))
        more = self.let("more", power + self.constant(1.0))
        return self.quotient(
            self.let("above", less * a + more * b), self.let("divisor", more * a + less * b)
        )

    def quotient(self, value: Any, d: Any) -> Any:
        """value / d for a d that is normal, as its reciprocal is."""
        from tvm import tirx

        if not _guesses():
            return value / d
        one = self.constant(1.0)
        registers, rest = divmod(self.lanes, _FRECPE_LANES)
        # Halving the vector must end at registers.
        if rest == 0 and registers.bit_count() == 1:
            guess = self.let("guess", self.guess(d, self.lanes))
        else:
            raw = self.constant(_RECIPROCAL_BITS, "int32") - tirx.reinterpret(self.integer, d)
            rough = self.let("guess", tirx.reinterpret(self.dtype, raw))
            error = self.let("error", one - d * rough)
            guess = self.let("guess", rough + rough * (error + error * error))
        error = self.let("error", one - d * guess)
        error = self.let("error", error + error * error)
        first = self.let("quotient", value * guess)
        return first + first * error

    def guess(self, d: Any, lanes: int) -> Any:
        """1 / d to 8 bits, for each register of a vector of `lanes`."""
        from tvm import tirx

        if lanes == _FRECPE_LANES:
            return tirx.call_llvm_pure_intrin(f"float32x{lanes}", _FRECPE, d)
        half = f"float32x{lanes // 2}"
        low, high = (
            self.guess(
                self.let("half", tirx.call_intrin(half, f"tirx.vector{part}", d)), lanes // 2
            )
            for part in ("low", "high")
        )
        return tirx.call_intrin(f"float32x{lanes}", "tirx.vectorcombine", low, high)


def _guesses() -> bool:
    """Whether a guess is quicker than a division on the target in whose scope we compile."""
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
    return vector.close(vector.sigmoid(x))


def _lower_tanh(call: Any) -> Any:
    """One `tanh` of fp32, scalar or vector; other types take twice a sigmoid, less 1."""
    from tvm import tirx

    (x,) = call.args
    vector = _Vector(x)
    if vector.is_single:
        return vector.close(vector.tanh(x))
    kind = vector.dtype.partition("x")[0]
    two, one = vector.constant(2.0, kind), vector.constant(1.0, kind)
    return two / (one + tirx.exp(vector.constant(-2.0, kind) * x)) - one
