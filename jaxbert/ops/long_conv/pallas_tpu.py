"""The bidirectional long convolution for TPUs: a Pallas kernel, forward and backward, for rows of at most 128 tokens.

A channel is a product with a Toeplitz matrix, as in direct.py, whose matrices XLA makes by copies of T² D numbers: half
of a step's cycles at 32 rows of 128 tokens. Here a matrix lives in registers only: a channel's lags are laid over 128
sublanes, and each of these is turned by its own number of lanes. Turning the gradient back would take negative strides,
which Mosaic lacks: it is made of rows in reverse order, which turns them forward, and added up.

Arrays stay (B, T, D), as projections write them. A grid step takes 128 channels of some rows and turns each row's block
in VMEM, so that a channel of all rows is every 128th of its lines.
"""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jax.sharding import PartitionSpec

from jaxbert.ops.kernels import product
from jaxbert.ops.platform import Target, target
from jaxbert.sharding import by_rows

LANES = 128  # channels of a grid step, and tokens of a row
SUBLANES = 8
ROWS = 32  # of a grid step, at most; half as many in float32, or blocks and scratch do not fit the 16 MiB of VMEM
EMULATED = Target("tpu", "TPU v5 lite")
NO_STRIDES = ("TPU v2", "TPU v3", "TPU v4")  # cannot turn each sublane by another number of lanes


def lacks(x_BTD: jax.Array, devices: Target) -> str | None:
    """What the kernel would need to serve the call; None: it serves it."""
    if devices.platform != "tpu" or devices.kind.startswith(NO_STRIDES):
        return f"it runs on TPUs from v5e on, not on {devices.kind}"
    if x_BTD.shape[1] > LANES:
        return f"x_BTD has rows of {x_BTD.shape[1]} tokens; it takes at most {LANES}"
    if x_BTD.dtype == jnp.float64:
        return "x_BTD is float64; it computes in float32 at most"
    return None


def long_conv(
    x_BTD: jax.Array, forward_TD: jax.Array, backward_TD: jax.Array, bias_D: jax.Array, *, interpret: Any = False
) -> jax.Array:
    """As reference.py; `interpret=True` runs on a CPU.

    Products take operands in bfloat16 where `x_BTD` has it, otherwise in float32. Raises ValueError for what the kernel
    lacks: see `lacks`.
    """
    if missing := lacks(x_BTD, EMULATED if interpret else target()):
        raise ValueError(f"long_conv: the TPU kernel cannot serve this call: {missing}")
    T = x_BTD.shape[1]

    def of_own_rows(x_BTD: jax.Array, forward_TD: jax.Array, backward_TD: jax.Array, bias_D: jax.Array) -> jax.Array:
        behind_TD = forward_TD.astype(jnp.float32).at[0].add(bias_D.astype(jnp.float32))
        # Lags −1, −2, … stand at the end of the lanes, from right to left: a row of lags turns on a circle of 128.
        ahead_TD = backward_TD[::-1].astype(jnp.float32)
        behind_DU = jnp.pad(behind_TD, ((0, LANES - T), (0, 0))).T
        ahead_DU = jnp.pad(ahead_TD, ((LANES - T, 0), (0, 0))).T
        rows = x_BTD.shape[0]
        # Rows up to a multiple of 8: of three, each would be a grid step that makes every matrix anew.
        x = jnp.pad(x_BTD, ((0, -rows % SUBLANES), (0, LANES - T), (0, 0)))
        operand = jnp.bfloat16 if x.dtype == jnp.bfloat16 else jnp.float32
        return _convolution(interpret, x.astype(operand), behind_DU, ahead_DU)[:rows, :T].astype(x_BTD.dtype)

    return by_rows(of_own_rows, (x_BTD,), forward_TD, backward_TD, bias_D)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _convolution(interpret: Any, x_BTD: jax.Array, behind_DU: jax.Array, ahead_DU: jax.Array) -> jax.Array:
    return _call(interpret, _forward_kernel, "long_conv_forward", (x_BTD,), (behind_DU, ahead_DU), 0)[0]


def _forward(interpret: Any, *arrays: jax.Array) -> tuple[jax.Array, tuple[jax.Array, ...]]:
    return _convolution(interpret, *arrays), arrays


def _backward(interpret: Any, saved: tuple[jax.Array, ...], gradient_BTD: jax.Array) -> tuple[jax.Array, ...]:
    x_BTD, *lags = saved
    return tuple(_call(interpret, _backward_kernel, "long_conv_backward", (x_BTD, gradient_BTD), lags, 2))


_convolution.defvjp(_forward, _backward)


def _call(interpret: Any, kernel: Any, name: str, rows: Any, lags: Any, lag_outs: int) -> Any:
    """`kernel` on blocks of arrays (B, T, D), of each one product, and (D, U), on each device for itself.

    Results: one (B, T, D), and `lag_outs` of (D, U).
    """
    (B, T, D), dtype = rows[0].shape, rows[0].dtype
    block = math.gcd(B, 2 * ROWS // dtype.itemsize)
    row_spec = pl.BlockSpec((block, LANES, LANES), lambda g, b: (b, 0, g))
    lag_spec = pl.BlockSpec((LANES, LANES), lambda g, b: (g, 0))
    row_out, lag_out = jax.ShapeDtypeStruct((B, T, D), dtype), jax.ShapeDtypeStruct((D, LANES), jnp.float32)
    call = pl.pallas_call(
        functools.partial(kernel, interpret),
        grid=(pl.cdiv(D, LANES), B // block),
        in_specs=[row_spec] * len(rows) + [lag_spec] * len(lags),
        out_specs=[row_spec] + [lag_spec] * lag_outs,
        out_shape=[row_out] + [lag_out] * lag_outs,
        scratch_shapes=[pltpu.VMEM((block * LANES, LANES), jnp.float32)] * (len(rows) + 1),
        compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel", "arbitrary")),
        cost_estimate=pl.CostEstimate(
            flops=2 * len(rows) * B * T * T * D,
            transcendentals=0,
            bytes_accessed=(len(rows) + 1) * B * T * D * dtype.itemsize,
        ),
        interpret=interpret,
        name=name,
    )
    axes = set(jax.sharding.get_abstract_mesh().auto_axes)
    if not axes:
        return call(*rows, *lags)
    # Rows are a device's own already (by_rows); Mosaic wants the other axes manual, too.
    specs = PartitionSpec()
    return jax.shard_map(call, in_specs=specs, out_specs=specs, axis_names=axes, check_vma=False)(*rows, *lags)


def _turn(blocks_BTD: Any, lines: Any, *, reverse: bool = False) -> None:
    """From (B, T, D) to (B · D, T), float32, for strided loads are of 32 bits; `reverse`: the last token first."""
    s_ST, t_ST = (jax.lax.broadcasted_iota(jnp.int32, (LANES, LANES), axis) for axis in (0, 1))
    exchange_ST = (s_ST + t_ST == LANES - 1).astype(jnp.float32).astype(blocks_BTD.dtype)

    @pl.loop(0, blocks_BTD.shape[0])
    def _(b: Any) -> None:
        x_TD = blocks_BTD[b]
        x_DT = product(x_TD, exchange_ST, (0, 0)) if reverse else x_TD.astype(jnp.float32).T
        lines[pl.ds(pl.multiple_of(b * LANES, LANES), LANES)] = x_DT


def _turn_back(lines: Any, blocks_BTD: Any) -> None:
    @pl.loop(0, blocks_BTD.shape[0])
    def _(b: Any) -> None:
        blocks_BTD[b] = lines[pl.ds(pl.multiple_of(b * LANES, LANES), LANES)].T.astype(blocks_BTD.dtype)


def _is_behind(*, reverse: bool = False) -> jax.Array:
    """(S, U): whether lane u of token s's lags is t − s = u ≥ 0, and not t − s = u − 128."""
    s_SU, u_SU = (jax.lax.broadcasted_iota(jnp.int32, (LANES, LANES), axis) for axis in (0, 1))
    return u_SU <= s_SU if reverse else u_SU < LANES - s_SU


def _by_channel(interpret: Any, function: Any) -> None:
    """`function(first, how many)` over all channels, some at once."""
    count = 1 if interpret else SUBLANES

    @pl.loop(0, LANES // count)
    def _(n: Any) -> None:
        function(pl.multiple_of(n * count, count), count)


def _channel(lines: Any, d: Any, dtype: Any) -> jax.Array:
    """A channel of all rows, (B, T)."""
    return lines[pl.ds(d, lines.shape[0] // LANES, stride=LANES)].astype(dtype)


def _matrix(is_behind: jax.Array, behind_1U: jax.Array, ahead_1U: jax.Array, dtype: Any) -> jax.Array:
    """(S, T): what a token t takes of a token s."""
    return pltpu.roll(jnp.where(is_behind, behind_1U, ahead_1U), 0, 1, stride=1, stride_axis=0).astype(dtype)


def _forward_kernel(
    interpret: Any, x_BTD: Any, behind_DU: Any, ahead_DU: Any, y_BTD: Any, x_lines: Any, y_lines: Any
) -> None:
    is_behind = _is_behind()
    _turn(x_BTD, x_lines)

    def some(first: Any, count: int) -> None:
        behind, ahead = behind_DU[pl.ds(first, count)], ahead_DU[pl.ds(first, count)]
        for n in range(count):
            kernel_ST = _matrix(is_behind, behind[n : n + 1], ahead[n : n + 1], x_BTD.dtype)
            y_BT = product(_channel(x_lines, first + n, x_BTD.dtype), kernel_ST, (1, 0))
            y_lines[pl.ds(first + n, y_BT.shape[0], stride=LANES)] = y_BT

    _by_channel(interpret, some)
    _turn_back(y_lines, y_BTD)


def _backward_kernel(
    interpret: Any,
    x_BTD: Any,
    gradient_BTD: Any,
    behind_DU: Any,
    ahead_DU: Any,
    dx_BTD: Any,
    dbehind_DU: Any,
    dahead_DU: Any,
    x_lines: Any,
    gradient_lines: Any,
    dx_lines: Any,
) -> None:
    is_behind, in_reverse, dtype = _is_behind(), _is_behind(reverse=True), x_BTD.dtype
    _turn(x_BTD, x_lines, reverse=True)
    _turn(gradient_BTD, gradient_lines)

    @pl.when(pl.program_id(1) == 0)
    def _() -> None:
        dbehind_DU[...], dahead_DU[...] = jnp.zeros_like(dbehind_DU), jnp.zeros_like(dahead_DU)

    def some(first: Any, count: int) -> None:
        behind, ahead = behind_DU[pl.ds(first, count)], ahead_DU[pl.ds(first, count)]
        sums: tuple[list[jax.Array], list[jax.Array]] = ([], [])
        for n in range(count):
            x_BS, gradient_BT = (_channel(lines, first + n, dtype) for lines in (x_lines, gradient_lines))
            kernel_ST = _matrix(is_behind, behind[n : n + 1], ahead[n : n + 1], dtype)
            dx_BS = product(gradient_BT, kernel_ST, (1, 1))
            dx_lines[pl.ds(first + n, dx_BS.shape[0], stride=LANES)] = dx_BS
            # Line s is of token 127 − s: turned by 1 + s lanes, each lag is a column.
            lags_SU = pltpu.roll(product(x_BS, gradient_BT, (0, 0)), 1, 1, stride=1, stride_axis=0)
            sums[0].append(jnp.sum(jnp.where(in_reverse, lags_SU, 0.0), axis=0, keepdims=True))
            sums[1].append(jnp.sum(jnp.where(in_reverse, 0.0, lags_SU), axis=0, keepdims=True))
        dbehind_DU[pl.ds(first, count)] += jnp.concatenate(sums[0])
        dahead_DU[pl.ds(first, count)] += jnp.concatenate(sums[1])

    _by_channel(interpret, some)
    _turn_back(dx_lines, dx_BTD)
