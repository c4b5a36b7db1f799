"""Linear maps between populations: apply, adjoint, Hebbian product.

Every synapse is the same object: for each tap, the positions it joins, and one matrix per tap.
``Dense`` has one position and one tap; a convolution has k² taps; a transposed convolution joins the same positions
with the roles exchanged. So the three products are written once for all convolutions, and once, as a
plain matrix product, for ``Dense``.

Layouts. Weights are stored as the field stores them (``weight_shape``). States are flat arrays (B, n) in
*cell* order, channels last: position-major, so that the weights of one tap meet contiguous channels.
``to_channels_last`` and ``from_channels_last`` convert between (B, channels, rows, columns) and these.

Source: W and Wᵀ of (FP), (BETA) and (HEBB), one linear map at a time.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import astuple, dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ide_ref import _checks
from ide_ref._kernels import dense as _dense
from ide_ref._kernels import memory
from ide_ref._kernels import products as _products
from ide_ref._kernels.layout import Runs, in_blocks
from ide_ref._kernels.propagate import block_of
from ide_ref._kernels.vector import TILE

Shape = tuple[int, ...]


def to_channels_last(x: NDArray, shape: Shape) -> NDArray:
    """(B, *shape) to channels-last order (B, n): channels last, contiguous."""
    if len(shape) == 3:
        x = x.transpose(0, 2, 3, 1)
    return np.ascontiguousarray(x).reshape(x.shape[0], math.prod(shape))


def from_channels_last(x: NDArray, shape: Shape) -> NDArray:
    """Cell order (..., n) to (..., *shape); a view, so images come channels-last in memory."""
    if len(shape) == 3:
        channels, rows, columns = shape
        return np.moveaxis(x.reshape(*x.shape[:-1], rows, columns, channels), -1, -3)
    return x.reshape(*x.shape[:-1], *shape)


@dataclass(frozen=True)
class Synapse(ABC):
    """A linear map W from shape ``in_shape`` to ``out_shape``.

    Parameters
    ----------
    in_shape, out_shape : tuple of int
        (n,) or (channels, rows, columns) of the sending and the receiving population.
    """

    in_shape: Shape
    out_shape: Shape

    depthwise = False
    # Axis of the weight array that counts the receiving channels.
    out_axis = 0

    @property
    @abstractmethod
    def weight_shape(self) -> Shape:
        """Shape of the weight array as it is stored."""

    @abstractmethod
    def to_taps(self, weight: NDArray) -> NDArray:
        """Weight array to taps (K, C_in, C_out); may be a view."""

    @abstractmethod
    def from_taps(self, taps: NDArray) -> NDArray:
        """Transpose of ``to_taps``: taps (K, C_in, C_out) to the weight layout."""

    @property
    @abstractmethod
    def targets(self) -> NDArray[np.int32]:
        """(P, K) the output position that input position p reaches through tap k; -1 for none."""

    @property
    @abstractmethod
    def runs(self) -> Runs:
        """What every output position sees, as the kernels read it."""

    @property
    def channels(self) -> tuple[int, int]:
        """(C_in, C_out) as the taps count them."""
        return self.in_shape[0], self.out_shape[0]

    @property
    def n_in(self) -> int:
        """Number of sending neurons."""
        return math.prod(self.in_shape)

    @property
    def n_out(self) -> int:
        """Number of receiving neurons."""
        return math.prod(self.out_shape)

    @property
    def n_multiplications(self) -> int:
        """Multiply-adds of one dense product with W, the MACs of the cost model."""
        c_in, c_out = self.channels
        return int((self.targets >= 0).sum()) * (c_out if self.depthwise else c_in * c_out)

    def out_channels(self, values: NDArray) -> NDArray:
        """Values per receiving channel, (C,), spread over the receiving neurons, (n_out,)."""
        return np.tile(values, self.n_out // values.shape[0])

    def kernel_matrix(self, weight: NDArray) -> NDArray:
        """The weight array as the matrix (first axis, rest) whose norm the authors restrict."""
        return weight.reshape(weight.shape[0], -1)

    def lay_out(self, taps: NDArray, *, reverse: bool) -> NDArray:
        """Taps in the shape in which the kernel of ``apply``, or in reverse of ``adjoint``, reads them many times."""
        return taps

    @abstractmethod
    def apply(self, taps: NDArray, x: NDArray) -> NDArray:
        """W s.

        Parameters
        ----------
        taps : (K, C_in, C_out) array, or what :meth:`lay_out` made of it
        x : (B, n_in) array

        Returns
        -------
        (B, n_out) array. A sample's row does not depend on the others, to the bit.
        """

    @abstractmethod
    def adjoint(self, taps: NDArray, x: NDArray, out: NDArray | None = None) -> NDArray:
        """Wᵀ v: (B, n_out) to (B, n_in), ⟨W s, v⟩ = ⟨s, Wᵀ v⟩.

        Added to ``out``, of the same dtype, and that returned, where it is given: a new array or columns of one. Taps
        may have been laid out in reverse.
        """

    @abstractmethod
    def hebbian(self, post: NDArray, pre: NDArray) -> NDArray:
        """Σ_b post preᵀ along the taps, (HEBB): the gradient of ⟨post, W pre⟩ in the taps.

        Parameters
        ----------
        post : (B, n_out) array
        pre : (B, n_in) array

        Returns
        -------
        (K, C_in, C_out) array.
        """


def _output(out: NDArray | None, shape: Shape, dtype: np.dtype) -> tuple[NDArray, NDArray, int]:
    """``out``, new where there is none, and its memory as the kernels write it; ValueError where it does not fit."""
    out = memory.empty(shape, dtype) if out is None else out
    if out.shape != shape or out.dtype != dtype:
        raise ValueError(f"out is {out.dtype} of shape {out.shape}; expected {dtype} of {shape}")
    return out, *memory.rows(out, written=True)


LITTLE = 2**22  # multiply-adds in float64 below which the code by tiles takes longer to compile than it saves


def matmul(x: NDArray, w: NDArray, out: NDArray | None = None) -> NDArray:
    """x @ w in an order of summation that does not depend on the number of rows; added to ``out`` where it is given.

    Shapes (B, n) and (n, m) to (B, m); ValueError for others, or an ``out`` of another dtype.
    """
    if x.ndim != 2 or w.ndim != 2 or x.shape[1] != w.shape[0]:
        raise ValueError(f"x has shape {x.shape} and w {w.shape}; expected (B, n) and (n, m)")
    dtype, add = np.result_type(x, w), out is not None
    out, written, out_row = _output(out, (x.shape[0], w.shape[1]), dtype)
    x = x.astype(dtype, copy=False)
    if x.shape[0] < TILE or (dtype == np.float64 and x.size * w.shape[1] <= LITTLE):
        _dense.matmul_few(np.ascontiguousarray(x), np.ascontiguousarray(w, dtype), add, written, out_row)
        return out
    # Transposed views are read as they lie, without a copy.
    if x.flags.f_contiguous and not x.flags.c_contiguous:
        (read, step), row = memory.rows(x.T), 1
    else:
        (read, row), step = memory.rows(x), 1
    transposed = w.flags.f_contiguous and not w.flags.c_contiguous
    matrix = np.ascontiguousarray(w.T if transposed else w, dtype)
    _dense.matmul(read, row, step, len(x), matrix, transposed, add, written, out_row)
    return out


def both_ways(matrix: NDArray) -> tuple[Callable[[NDArray], NDArray], Callable[[NDArray], NDArray]]:
    """v ↦ W v and u ↦ Wᵀ u for many vectors and one matrix (m, n), C-contiguous, which is read as it lies."""

    def apply(v: NDArray) -> NDArray:
        out = np.empty(matrix.shape[0], matrix.dtype)
        _dense.dots(matrix, v, out)
        return out

    def adjoint(u: NDArray) -> NDArray:
        out = np.empty(matrix.shape[1], matrix.dtype)
        _dense.matmul_few(u[None], matrix, False, out, out.size)
        return out

    return apply, adjoint


def accumulate(found: NDArray, out: NDArray | None) -> NDArray:
    """What was found, or ``out``, of the same shape, with it added."""
    if out is None:
        return found
    out += found
    return out


_ONE = np.zeros((1, 1), np.int32)  # the table of one position and one tap
_ONE.flags.writeable = False
_ONE_RUN = Runs.of(_ONE, 1)


@dataclass(frozen=True)
class Dense(Synapse):
    """All to all: W (n_out, n_in), row index the receiving neuron."""

    targets = _ONE
    runs = _ONE_RUN

    def __post_init__(self) -> None:
        _checks.shape("in_shape", self.in_shape)
        _checks.shape("out_shape", self.out_shape)

    @property
    def weight_shape(self) -> Shape:
        return self.n_out, self.n_in

    @property
    def channels(self) -> tuple[int, int]:
        return self.n_in, self.n_out

    @cached_property
    def _cells(self) -> tuple[Any, ...]:
        """Index of the weight by which its rows and columns are in cell order; that of flat ones makes no copy."""
        if len(self.in_shape) == len(self.out_shape) == 1:
            return (...,)
        orders = (np.arange(math.prod(shape)).reshape(1, *shape) for shape in (self.out_shape, self.in_shape))
        return np.ix_(*(to_channels_last(order, order.shape[1:])[0] for order in orders))

    def to_taps(self, weight: NDArray) -> NDArray:
        return weight[self._cells].T[None]

    def from_taps(self, taps: NDArray) -> NDArray:
        if len(self._cells) == 1:
            return np.ascontiguousarray(taps[0].T)
        weight = np.empty(self.weight_shape, taps.dtype)
        weight[self._cells] = taps[0].T
        return weight

    def apply(self, taps: NDArray, x: NDArray) -> NDArray:
        return matmul(x, taps[0])

    def adjoint(self, taps: NDArray, x: NDArray, out: NDArray | None = None) -> NDArray:
        return matmul(x, taps[0].T, out)

    def hebbian(self, post: NDArray, pre: NDArray) -> NDArray:
        # A view of the weight's own layout, so that from_taps has nothing to copy.
        return matmul(post.T, pre).T[None]


def _windows(picture: Shape, windows: Shape, kernel: int, stride: int, padding: int) -> NDArray[np.int32]:
    """(windows, k²) picture position that each window of a sliding kernel sees through each tap.

    Window (i, j) sees position (i stride + r - padding, j stride + c - padding) through tap (r, c); -1 where
    that is outside.
    """
    rows, columns = picture[1:]
    i, j = np.divmod(np.arange(windows[1] * windows[2]), windows[2])
    r, c = np.divmod(np.arange(kernel * kernel), kernel)
    y = i[:, None] * stride + r - padding
    x = j[:, None] * stride + c - padding
    inside = (y >= 0) & (y < rows) & (x >= 0) & (x < columns)
    return np.where(inside, y * columns + x, -1).astype(np.int32)


def _invert(table: NDArray[np.int32], n: int) -> NDArray[np.int32]:
    """(n, K) the row of ``table`` that holds each position under each tap; -1 for none."""
    inverse = np.full((n, table.shape[1]), -1, np.int32)
    row, tap = np.nonzero(table >= 0)
    inverse[table[row, tap], tap] = row
    return inverse


@dataclass(frozen=True)
class _Windowed(Synapse):
    """A synapse whose kernel windows slide over one of its two pictures, one window per position of the other."""

    kernel: int
    stride: int
    padding: int

    # Which picture that is cannot be told from the shapes: they may be the same, whatever the stride.
    windows_over_input = True

    def __post_init__(self) -> None:
        """Raise unless both shapes are pictures and the kernel maps one to the other."""
        window = astuple(self)[2:]
        self._check_windows(self.in_shape, *window)
        self._check_picture("out_shape", self.out_shape)
        fits = tuple(self._size(n, *window) for n in self.in_shape[1:])
        if self.out_shape[1:] != fits:
            name = type(self).__name__
            raise ValueError(f"{name} maps {self.in_shape[1:]} to {fits}, but out_shape is {self.out_shape}")

    @classmethod
    def _check_windows(cls, in_shape: Shape, kernel: int, stride: int, padding: int, output_padding: int = 0) -> None:
        """Raise unless windows can slide over a picture of that shape."""
        cls._check_picture("in_shape", in_shape)
        if not all(map(_checks.is_whole, (kernel, stride, padding), (1, 1, 0))):
            raise ValueError(
                f"{cls.__name__} has kernel {kernel!r}, stride {stride!r}, padding {padding!r}; "
                "expected whole numbers: kernel and stride of at least 1, padding of at least 0"
            )
        if not (_checks.is_whole(output_padding, 0) and output_padding < stride):
            raise ValueError(f"output_padding is {output_padding!r}; expected 0 to stride - 1 = {stride - 1}")

    @classmethod
    def _check_picture(cls, name: str, shape: Shape) -> None:
        if len(_checks.shape(f"{name} of {cls.__name__}", shape)) != 3:
            raise ValueError(f"{cls.__name__} has {name} {shape}; expected (channels, rows, columns)")

    @staticmethod
    def _size(n: int, kernel: int, stride: int, padding: int) -> int:
        """Positions of the output along an axis with n."""
        return (n + 2 * padding - kernel) // stride + 1

    @classmethod
    def _fitting(
        cls, in_shape: Shape, channels: int, kernel: int, stride: int, padding: int | None, *output_padding: int
    ) -> tuple[Any, ...]:
        """Arguments of the synapse with all the windows that fit; padding (k − 1)/2 unless given."""
        if padding is None and _checks.is_whole(kernel):
            padding = (kernel - 1) // 2
        window: Any = kernel, stride, padding, *output_padding
        cls._check_windows(in_shape, *window)
        return in_shape, (channels, *(cls._size(n, *window) for n in in_shape[1:])), *window

    @cached_property
    def targets(self) -> NDArray[np.int32]:
        table = _windows(self.in_shape, self.out_shape, self.kernel, self.stride, self.padding)
        return _invert(table, math.prod(self.in_shape[1:]))

    @cached_property
    def sources(self) -> NDArray[np.int32]:
        """(Q, K) the input position that reaches output position q through tap k; -1 for none."""
        return _invert(self.targets, math.prod(self.out_shape[1:]))

    @cached_property
    def runs(self) -> Runs:
        return Runs.of(self.sources, self.kernel)

    @cached_property
    def runs_back(self) -> Runs:
        """What every input position receives in reverse, from output positions."""
        return Runs.of(self.targets, self.kernel)


@dataclass(frozen=True)
class _Convolution(_Windowed):
    """A windowed synapse with one matrix per tap."""

    @property
    def weight_shape(self) -> Shape:
        channels = self.channels if self.out_axis else self.channels[::-1]
        return *channels, self.kernel, self.kernel

    def to_taps(self, weight: NDArray) -> NDArray:
        by_tap = weight.transpose(2, 3, 1 - self.out_axis, self.out_axis)
        return memory.aligned(by_tap).reshape(self.kernel**2, *self.channels)

    def from_taps(self, taps: NDArray) -> NDArray:
        by_tap = taps.reshape(self.kernel, self.kernel, *self.channels)
        return np.ascontiguousarray(by_tap.transpose(3 - self.out_axis, 2 + self.out_axis, 0, 1))

    def lay_out(self, taps: NDArray, *, reverse: bool) -> NDArray:
        return in_blocks(taps.transpose(0, 2, 1) if reverse else taps, taps.dtype)

    def _apply(self, taps: NDArray, x: NDArray, out: NDArray | None = None, *, reverse: bool = False) -> NDArray:
        """W s, or in reverse Wᵀ v; added to ``out`` where that is given, see :meth:`Synapse.adjoint`."""
        c_in, c_out = self.channels[::-1] if reverse else self.channels
        runs, n_out = (self.runs_back, self.n_in) if reverse else (self.runs, self.n_out)
        n_batch, n_positions = len(x), x.shape[1] // c_in
        dtype, add = np.result_type(x, taps), out is not None
        out, written, out_row = _output(out, (n_batch, n_out), dtype)
        read, row = memory.rows(x.astype(dtype, copy=False))
        weights = taps.astype(dtype, copy=False)
        if weights.ndim == 3:
            weights = self.lay_out(weights, reverse=reverse)
        if n_batch == 1:
            _products.apply_one(
                read, n_positions, c_in, weights, runs.fine, runs.coarse, _products.SHARES, written, c_out, add
            )
        else:
            _products.apply(
                read, row, n_batch, n_positions, c_in, weights, runs.fine, runs.coarse,
                block_of(n_batch, runs.fine.shape[1]), written, out_row, c_out, add,
            )  # fmt: skip
        return out

    def apply(self, taps: NDArray, x: NDArray) -> NDArray:
        return self._apply(taps, x)

    def adjoint(self, taps: NDArray, x: NDArray, out: NDArray | None = None) -> NDArray:
        return self._apply(taps, x, out, reverse=True)

    def hebbian(self, post: NDArray, pre: NDArray) -> NDArray:
        c_in, c_out = self.channels
        dtype = np.result_type(pre, post)
        # The sparser side is taken event by event; a few samples tell which that is.
        few = slice(8)
        by_senders = np.count_nonzero(pre[few]) * self.n_out <= np.count_nonzero(post[few]) * self.n_in
        sides, joins, c, depth, n = (
            ((pre, post), self._joins, c_in, c_out, self.n_out) if by_senders
            else ((post, pre), self._joins_back, c_out, c_in, self.n_in)
        )  # fmt: skip
        (x, row), (others, others_row) = (memory.rows(side.astype(dtype, copy=False)) for side in sides)
        rows = memory.empty(_products.shape_of_rows(len(pre), n // depth, depth), dtype)
        out = memory.empty((self.targets.shape[1], c, depth), dtype)
        _products.hebbian(x, row, others, others_row, len(pre), *joins, rows, out)
        return out if by_senders else out.transpose(0, 2, 1)

    def _join(
        self, table: NDArray[np.int32], n_others: int, shape: Shape, under_windows: bool
    ) -> tuple[NDArray, NDArray, NDArray]:
        """What ``products.hebbian`` asks for: partners of the positions of ``shape``, their parts, those of the taps.

        With a stride, a tap meets only those positions of the picture under the windows that are congruent to it.
        """
        partners = np.ascontiguousarray(np.where(table < 0, n_others, table).T, np.uint32)
        y, x = np.divmod(np.arange(table.shape[0]), shape[2])
        r, c = np.divmod(np.arange(table.shape[1]), self.kernel) - np.int64(self.padding)
        s = self.stride if under_windows else 1
        return partners, y % s * s + x % s, r % s * s + c % s

    @cached_property
    def _joins(self) -> tuple[NDArray, NDArray, NDArray]:
        return self._join(self.targets, math.prod(self.out_shape[1:]), self.in_shape, self.windows_over_input)

    @cached_property
    def _joins_back(self) -> tuple[NDArray, NDArray, NDArray]:
        return self._join(self.sources, math.prod(self.in_shape[1:]), self.out_shape, not self.windows_over_input)


@dataclass(frozen=True)
class Conv2d(_Convolution):
    """Convolution (cross-correlation, as the field has it); weight (out, in, k, k). See :meth:`over`."""

    @classmethod
    def over(
        cls, in_shape: Shape, channels: int, *, kernel: int, stride: int = 1, padding: int | None = None
    ) -> Conv2d:
        """The convolution of a picture; padding (k − 1)/2 unless given."""
        return cls(*cls._fitting(in_shape, channels, kernel, stride, padding))


@dataclass(frozen=True)
class ConvTranspose2d(_Convolution):
    """Transposed convolution; weight (in, out, k, k). See :meth:`over`."""

    output_padding: int = 0

    windows_over_input = False
    out_axis = 1

    @staticmethod
    def _size(n: int, kernel: int, stride: int, padding: int, output_padding: int) -> int:  # type: ignore[override]
        return (n - 1) * stride - 2 * padding + kernel + output_padding

    @classmethod
    def over(
        cls,
        in_shape: Shape,
        channels: int,
        *,
        kernel: int,
        stride: int = 2,
        padding: int | None = None,
        output_padding: int = 1,
    ) -> ConvTranspose2d:
        """The transposed convolution of a picture; padding (k − 1)/2 unless given."""
        return cls(*cls._fitting(in_shape, channels, kernel, stride, padding, output_padding))

    @cached_property
    def targets(self) -> NDArray[np.int32]:
        return _windows(self.out_shape, self.in_shape, self.kernel, self.stride, self.padding)


@dataclass(frozen=True)
class AvgPool2d(_Windowed):
    """Mean over windows, channel by channel; no weight. Zero padding counts in the mean. See :meth:`over`."""

    depthwise = True
    weight_shape = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.in_shape[0] != self.out_shape[0]:
            raise ValueError(f"AvgPool2d from {self.in_shape} to {self.out_shape}: the channels must be the same")

    @classmethod
    def over(cls, in_shape: Shape, *, kernel: int, stride: int | None = None, padding: int = 0) -> AvgPool2d:
        """The pooling of a picture; stride k unless given."""
        stride = kernel if stride is None else stride
        cls._check_windows(in_shape, kernel, stride, padding)
        return cls(*cls._fitting(in_shape, in_shape[0], kernel, stride, padding))

    def to_taps(self, weight: NDArray) -> NDArray:
        """(k², 1, C) factors, all 1/k²; the argument tells the dtype alone."""
        n_taps = self.kernel**2
        return np.full((n_taps, 1, self.in_shape[0]), 1.0 / n_taps, weight.dtype)

    def from_taps(self, taps: NDArray) -> NDArray:
        return np.empty((), taps.dtype)

    def _pool(self, taps: NDArray, x: NDArray, runs: Runs, n_out: int) -> NDArray:
        n_channels = self.in_shape[0]
        x = np.ascontiguousarray(x).reshape(len(x), x.shape[1] // n_channels, n_channels)
        out = np.empty((x.shape[0], n_out // n_channels, n_channels), np.result_type(x, taps))
        factors = np.ascontiguousarray(taps).reshape(self.kernel**2, n_channels)
        _products.depthwise(x.astype(out.dtype, copy=False), factors, runs.fine, out)
        return out.reshape(x.shape[0], n_out)

    def apply(self, taps: NDArray, x: NDArray) -> NDArray:
        return self._pool(taps, x, self.runs, self.n_out)

    def adjoint(self, taps: NDArray, x: NDArray, out: NDArray | None = None) -> NDArray:
        return accumulate(self._pool(taps, x, self.runs_back, self.n_in), out)

    def hebbian(self, post: NDArray, pre: NDArray) -> NDArray:
        n_channels = self.in_shape[0]
        senders = pre.reshape(len(pre), len(self.targets), n_channels)
        receivers = post.reshape(len(post), len(self.sources), n_channels)
        taps = []
        for partner in self.sources.T:
            seen = partner >= 0
            taps.append(np.einsum("bpc,bpc->c", senders[:, partner[seen]], receivers[:, seen]))
        return np.stack(taps)[:, None, :]
