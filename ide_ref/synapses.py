"""Linear maps between populations: apply, adjoint, Hebbian product.

Every synapse is the same object: a table that says which position each output position sees through
each tap, and one matrix a tap. ``Dense`` has one position and one tap; a convolution has k² taps; a
transposed convolution is a convolution's table with the roles exchanged. So the three products below are
written once.

Layouts. Weights are stored as the field stores them (``weight_shape``). States are flat arrays (B, n) in
*cell* order, channels last: position-major, so that the weights of one tap meet contiguous channels.
``to_cells`` and ``from_cells`` convert between (B, channels, rows, columns) and cells.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from ide_ref._kernels import dense as _dense
from ide_ref._kernels import taps as _taps

Shape = tuple[int, ...]


def to_cells(x: NDArray, shape: Shape) -> NDArray:
    """(B, *shape) to cell order (B, n): channels last, contiguous."""
    if len(shape) == 3:
        x = x.transpose(0, 2, 3, 1)
    return np.ascontiguousarray(x).reshape(x.shape[0], -1)


def from_cells(cells: NDArray, shape: Shape) -> NDArray:
    """Cell order (B, n) to (B, *shape); a view, so images come channels-last in memory."""
    if len(shape) == 3:
        channels, rows, columns = shape
        return cells.reshape(-1, rows, columns, channels).transpose(0, 3, 1, 2)
    return cells.reshape(-1, *shape)


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

    @property
    @abstractmethod
    def weight_shape(self) -> Shape:
        """Shape of the weight array as it is stored."""

    @property
    @abstractmethod
    def out_axis(self) -> int:
        """Axis of the weight array that counts the receiving channels."""

    @abstractmethod
    def to_taps(self, weight: NDArray) -> NDArray:
        """Weight array to taps (K, C_in, C_out), contiguous."""

    @abstractmethod
    def from_taps(self, taps: NDArray) -> NDArray:
        """Transpose of ``to_taps``: taps (K, C_in, C_out) to the weight layout."""

    @property
    @abstractmethod
    def _tables(self) -> tuple[NDArray[np.int32], NDArray[np.int32]]: ...

    @property
    def sources(self) -> NDArray[np.int32]:
        """(Q, K) the input position that output position q sees through tap k; -1 for none."""
        return self._tables[0]

    @property
    def targets(self) -> NDArray[np.int32]:
        """(P, K) the output position that input position p reaches through tap k; -1 for none."""
        return self._tables[1]

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
        return int((self.sources >= 0).sum()) * c_in * c_out

    def out_channels(self, values: NDArray) -> NDArray:
        """Values a receiving channel, (C,), spread over the receiving cells, (n_out,)."""
        return np.tile(values, self.n_out // values.shape[0])

    def channel_sum(self, cells: NDArray) -> NDArray:
        """(B, n_out) cells summed over batch and positions: (channels,)."""
        return cells.reshape(-1, self.out_shape[0]).sum(axis=0)

    def kernel_matrix(self, weight: NDArray) -> NDArray:
        """The weight array as the matrix (first axis, rest) whose norm the authors restrict."""
        return weight.reshape(weight.shape[0], -1)

    def _gather(self, cells: NDArray, table: NDArray, n_channels: int) -> NDArray:
        if table.shape == (1, 1):
            return cells.reshape(cells.shape[0], -1)
        cells = np.ascontiguousarray(cells).reshape(cells.shape[0], -1, n_channels)
        columns = np.empty((cells.shape[0], *table.shape, n_channels), cells.dtype)
        _taps.gather(cells, table, columns)
        return columns.reshape(-1, table.shape[1] * n_channels)

    def _scatter(self, columns: NDArray, table: NDArray, n_positions: int, n_channels: int) -> NDArray:
        columns = columns.reshape(-1, *table.shape, n_channels)
        cells = np.empty((columns.shape[0], n_positions, n_channels), columns.dtype)
        _taps.scatter(columns, table, cells)
        return cells.reshape(columns.shape[0], -1)

    def _product(self, cells: NDArray, into: NDArray, out_of: NDArray, matrices: NDArray) -> NDArray:
        """Σ_k over taps of (cells moved along tap k) @ matrices[k].

        ``into[q, k]`` and ``out_of[p, k]`` are the tables from the receiving and the sending side; the
        product gathers on the side with fewer cells to move.
        """
        n_taps, n_from, n_to = matrices.shape
        if into.size <= out_of.size:
            columns = self._gather(cells, into, n_from)
            return matmul(columns, matrices.reshape(n_taps * n_from, n_to)).reshape(cells.shape[0], -1)
        side_by_side = np.ascontiguousarray(matrices.transpose(1, 0, 2)).reshape(n_from, n_taps * n_to)
        columns = matmul(np.ascontiguousarray(cells).reshape(-1, n_from), side_by_side)
        return self._scatter(columns, out_of, into.shape[0], n_to)

    def apply(self, taps: NDArray, cells: NDArray) -> NDArray:
        """W s.

        Parameters
        ----------
        taps : (K, C_in, C_out) array
        cells : (B, n_in) array

        Returns
        -------
        (B, n_out) array.
        """
        return self._product(cells, self.sources, self.targets, taps)

    def adjoint(self, taps: NDArray, cells: NDArray) -> NDArray:
        """Wᵀ v: (B, n_out) to (B, n_in), ⟨W s, v⟩ = ⟨s, Wᵀ v⟩."""
        return self._product(cells, self.targets, self.sources, taps.transpose(0, 2, 1))

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
        c_in, c_out = self.channels
        if self.sources.size <= self.targets.size:
            columns = self._gather(pre, self.sources, c_in)
            return matmul(columns.T, post.reshape(-1, c_out)).reshape(-1, c_in, c_out)
        columns = self._gather(post, self.targets, c_out)
        taps = matmul(np.ascontiguousarray(pre).reshape(-1, c_in).T, columns)
        return np.ascontiguousarray(taps.reshape(c_in, -1, c_out).transpose(1, 0, 2))


def matmul(x: NDArray, w: NDArray) -> NDArray:
    """x @ w in an order of summation that does not depend on the number of rows."""
    out = np.empty((x.shape[0], w.shape[1]), np.result_type(x, w))
    kernel = _dense.matmul if x.shape[0] > _dense.ROWS else _dense.matmul_few
    kernel(np.ascontiguousarray(x, out.dtype), np.ascontiguousarray(w, out.dtype), out)
    return out


_ONE = np.zeros((1, 1), np.int32)
_ONE.flags.writeable = False


@dataclass(frozen=True)
class Dense(Synapse):
    """All to all: W (n_out, n_in), row index the receiving neuron."""

    @property
    def weight_shape(self) -> Shape:
        return self.n_out, self.n_in

    @property
    def out_axis(self) -> int:
        return 0

    @property
    def channels(self) -> tuple[int, int]:
        return self.n_in, self.n_out

    @property
    def _tables(self) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
        return _ONE, _ONE

    @cached_property
    def _cell_order(self) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
        return tuple(
            to_cells(np.arange(math.prod(shape)).reshape(1, *shape), shape)[0]
            for shape in (self.in_shape, self.out_shape)
        )  # type: ignore[return-value]

    def to_taps(self, weight: NDArray) -> NDArray:
        if len(self.in_shape) == len(self.out_shape) == 1:
            return np.ascontiguousarray(weight.T)[None]
        order_in, order_out = self._cell_order
        return np.ascontiguousarray(weight[np.ix_(order_out, order_in)].T)[None]

    def from_taps(self, taps: NDArray) -> NDArray:
        if len(self.in_shape) == len(self.out_shape) == 1:
            return np.ascontiguousarray(taps[0].T)
        order_in, order_out = self._cell_order
        weight = np.empty(self.weight_shape, taps.dtype)
        weight[np.ix_(order_out, order_in)] = taps[0].T
        return weight
