"""Rows of numbers added to a row, and what decides which: the innermost loops of every other kernel, as vector code.

An event with value x adds x times a weight row to a row of the output. LLVM's vectoriser takes the columns as the inner
loop, so it reads and writes the output once an event; written out here, the output stays in registers while all events
of a row pass, and only weights are read. The functions named in ``__all__`` are that code, all there is in LLVM IR.
Right above the IR of each stands its twin in plain loops, which says what it does: tests hold the code against it, and
it takes the code's place where Numba checks bounds or does not compile.

Arrays are given whole, C-contiguous, with places in them counted flat: a slice would cost more than the loop it is for.
"""

import math
from collections.abc import Callable
from functools import partial

import numpy as np
from llvmlite import ir
from numba import config, types
from numba.core import cgutils
from numba.extending import intrinsic

from ide_ref._kernels._jit import njit
from ide_ref._kernels.memory import LINE

__all__ = [
    "TILE",
    "add_rows",
    "add_rows_through",
    "add_runs",
    "copy_across",
    "copy_panel",
    "fire",
    "nonzero",
    "tile_product",
]

WIDEST = 384  # bytes of the output held in registers: twelve of AVX2's sixteen
TILE = 6  # rows of a tile

_I64 = ir.IntType(64)
_CONTRACT = ("contract",)  # a fused multiply-add where the processor has one, as in the other kernels


def _int(value):
    return ir.Constant(_I64, value)


def _data(context, builder, signature, args, i):
    return context.make_array(signature.args[i])(context, builder, args[i]).data


def _int_arg(context, builder, signature, args, i):
    return context.cast(builder, args[i], signature.args[i], types.int64)


def _broadcast(builder, x, vector):
    if not isinstance(vector, ir.VectorType):
        return x
    lane = ir.VectorType(ir.IntType(32), vector.count)
    one = builder.insert_element(ir.Constant(vector, ir.Undefined), x, ir.Constant(ir.IntType(32), 0))
    return builder.shuffle_vector(one, ir.Constant(vector, ir.Undefined), ir.Constant(lane, [0] * vector.count))


def _opaque(builder, i):
    """The same integer, of which the optimiser knows nothing."""
    return builder.asm(ir.FunctionType(i.type, [i.type]), "", "=r,0", [i], side_effect=False)


def _at(builder, base, place, vector):
    """Pointer to a vector that begins at an element."""
    return builder.bitcast(builder.gep(base, [place]), vector.as_pointer())


def _ask_for(builder, place):
    """Bring the line of a place, to be read, to the second-level cache, without waiting."""
    number, byte = ir.IntType(32), ir.IntType(8).as_pointer()
    given = ir.FunctionType(ir.VoidType(), [byte, number, number, number])
    ask = builder.module.declare_intrinsic("llvm.prefetch", [byte], fnty=given)
    builder.call(ask, [builder.bitcast(place, byte), number(0), number(2), number(1)])


def _join(phis, before, begin, after, step):
    """Each phi is the value of ``before`` when it comes from block ``begin``, that of ``after`` from ``step``."""
    for phi, first, last in zip(phis, before, after, strict=True):
        phi.add_incoming(first, begin)
        phi.add_incoming(last, step)


def _store_either(builder, places, before, begin, after, step, align):
    """Store what comes from one block or from the other."""
    results = [builder.phi(value.type) for value in before]
    _join(results, before, begin, after, step)
    for result, place in zip(results, places, strict=True):
        builder.store(result, place, align=align)


def _choose(plain: Callable, vector: Callable) -> Callable:
    """The vector code, or its twin where Numba checks bounds or does not compile."""
    checked = getattr(config, "BOUNDSCHECK", None) or getattr(config, "DISABLE_JIT", 0)
    return njit(plain) if checked else vector


# --- rows added to a row ----------------------------------------------------------------------------------------------


def _add_rows(out, at, width, rows, first, stride, index, values, lo, hi):
    """out[at + j] += Σ over e from lo to hi of values[e] rows[first + stride index[e] + j], j < width.

    For each j one chain of fused multiply-adds in ascending e. Indices are unsigned.
    """
    out, rows = out.reshape(-1), rows.reshape(-1)
    index, values = index.reshape(-1), values.reshape(-1)
    for e in range(lo, hi):
        for j in range(width):
            out[at + j] += values[e] * rows[first + stride * index[e] + j]


def _add_rows_through(out, at, width, rows, first, stride, index, values, lo, hi, table, table_at):
    """The same with the rows table[table_at + index[e]] in place of index[e]."""
    out, rows, table = out.reshape(-1), rows.reshape(-1), table.reshape(-1)
    index, values = index.reshape(-1), values.reshape(-1)
    for e in range(lo, hi):
        for j in range(width):
            out[at + j] += values[e] * rows[first + stride * table[table_at + index[e]] + j]


def _emit_add_rows(context, builder, signature, args, through):
    out, rows, index, values = (_data(context, builder, signature, args, i) for i in (0, 3, 6, 7))
    at, width, first, stride, lo, hi = (_int_arg(context, builder, signature, args, i) for i in (1, 2, 4, 5, 8, 9))
    table = None
    if through:
        table = builder.gep(
            _data(context, builder, signature, args, 10), [_int_arg(context, builder, signature, args, 11)]
        )
    dtype = signature.args[0].dtype
    size_of = dtype.bitwidth // 8
    _emit_sum(
        builder, context.get_data_type(dtype), size_of, builder.gep(out, [at]), builder.gep(rows, [first]), width,
        stride, index, values, lo, hi, _shapes(size_of, WIDEST // LINE), table,
    )  # fmt: skip
    return context.get_dummy_value()


def _emit_sum(builder, real, size_of, out, rows, width, stride, index, values, lo, hi, shapes, table=None):
    """out[j] += Σ over e from lo to hi of values[e] rows[stride index[e] + j], j < width, block by block of columns."""
    column = cgutils.alloca_once(builder, _I64)
    builder.store(_int(0), column)
    leave = builder.append_basic_block()
    for n_vectors, lanes in shapes:
        vector = ir.VectorType(real, lanes) if lanes > 1 else real
        width_here = n_vectors * lanes
        head, begin, event, end, done = (builder.append_basic_block() for _ in range(5))
        builder.branch(head)
        builder.position_at_end(head)
        j = builder.load(column)
        builder.cbranch(builder.icmp_signed("<=", builder.add(j, _int(width_here)), width), begin, done)

        builder.position_at_end(begin)
        there = builder.gep(rows, [j])
        places = [_at(builder, out, builder.add(j, _int(v * lanes)), vector) for v in range(n_vectors)]
        before = [builder.load(place, align=size_of) for place in places]
        builder.cbranch(builder.icmp_signed("<", lo, hi), event, end)

        builder.position_at_end(event)
        e = builder.phi(_I64)
        totals = [builder.phi(vector) for _ in places]
        i = builder.zext(builder.load(builder.gep(index, [e])), _I64)
        if table is not None:
            i = builder.zext(builder.load(builder.gep(table, [i])), _I64)
        row = builder.gep(there, [builder.mul(i, stride)])
        x = _broadcast(builder, builder.load(builder.gep(values, [e])), vector)
        after = []
        for v, total in enumerate(totals):
            w = builder.load(_at(builder, row, _int(v * lanes), vector), align=size_of)
            after.append(builder.fadd(total, builder.fmul(x, w, flags=_CONTRACT), flags=_CONTRACT))
        # Steps that cannot be counted are not unrolled. Runs are short, and an unrolled loop ends with a second one for
        # the rest, which costs a branch that is not foreseen.
        following = _opaque(builder, builder.add(e, _int(1)))
        _join([e, *totals], [lo, *before], begin, [following, *after], event)
        builder.cbranch(builder.icmp_signed("<", following, hi), event, end)

        builder.position_at_end(end)
        _store_either(builder, places, before, begin, after, event, size_of)
        following = builder.add(j, _int(width_here))
        builder.store(following, column)
        builder.cbranch(builder.icmp_signed("<", following, width), head, leave)
        builder.position_at_end(done)
    builder.branch(leave)
    builder.position_at_end(leave)


def _shapes(size_of, widest):
    """Blocks of columns, (vectors, lanes): of the widest, of four, two and one vector of a line; of parts of a line."""
    line = LINE // size_of
    shapes = [(n, line) for n in (WIDEST // LINE, 4, 2, 1) if n <= widest]
    while shapes[-1][1] > 1:
        shapes.append((1, shapes[-1][1] // 2))
    return shapes


@intrinsic
def _vector_add_rows(context, out, at, width, rows, first, stride, index, values, lo, hi):
    signature = types.void(out, at, width, rows, first, stride, index, values, lo, hi)
    return signature, lambda *given: _emit_add_rows(*given, through=False)


@intrinsic
def _vector_add_rows_through(context, out, at, width, rows, first, stride, index, values, lo, hi, table, table_at):
    signature = types.void(out, at, width, rows, first, stride, index, values, lo, hi, table, table_at)
    return signature, lambda *given: _emit_add_rows(*given, through=True)


add_rows = _choose(_add_rows, _vector_add_rows)
add_rows_through = _choose(_add_rows_through, _vector_add_rows_through)


# --- runs -------------------------------------------------------------------------------------------------------------


def _add_runs(out, out_at, width, rows, begin, a_tap, index, values, runs, k_first, k_last, ahead, n_ahead):
    """Many sums like those of ``add_rows`` with rows of ``width`` end to end; runs[k] is (lo, hi, added, at) of one.

    out[out_at + at + j] += Σ over e from lo to hi of values[e] rows[begin + added a_tap + width index[e] + j] for
    j < width and k from k_first to k_last; meanwhile up to n_ahead ≥ 1 lines of rows[ahead:] are asked for, and nothing
    follows from that.
    """
    out, rows = out.reshape(-1), rows.reshape(-1)
    index, values = index.reshape(-1), values.reshape(-1)
    for k in range(k_first, k_last):
        lo, hi, added, at = runs[k]
        for e in range(lo, hi):
            for j in range(width):
                out[out_at + at + j] += values[e] * rows[begin + added * a_tap + width * index[e] + j]


def _emit_add_runs(context, builder, signature, args):
    out, rows, index, values, runs = (_data(context, builder, signature, args, i) for i in (0, 3, 6, 7, 8))
    out_at, width, begin, a_tap, k_first, k_last, ahead, n_ahead = (
        _int_arg(context, builder, signature, args, i) for i in (1, 2, 4, 5, 9, 10, 11, 12)
    )
    dtype = signature.args[0].dtype
    size_of = dtype.bitwidth // 8
    out, rows = builder.gep(out, [out_at]), builder.gep(rows, [begin])
    ahead = builder.sub(ahead, begin)
    last_line = builder.sub(n_ahead, _int(1))

    def every_run(width):
        with cgutils.for_range_slice(builder, k_first, k_last, _int(1), intp=_I64) as (k, n_done):
            # While runs pass, a line each, what comes next is brought from farther caches.
            line = builder.select(builder.icmp_signed("<", n_done, last_line), n_done, last_line)
            _ask_for(builder, builder.gep(rows, [builder.add(ahead, builder.mul(line, _int(LINE // size_of)))]))
            run = builder.gep(runs, [builder.mul(k, _int(4))])
            lo, hi, added, at = (builder.sext(builder.load(builder.gep(run, [_int(i)])), _I64) for i in range(4))
            _emit_sum(
                builder, context.get_data_type(dtype), size_of, builder.gep(out, [at]),
                builder.gep(rows, [builder.mul(added, a_tap)]), width, width, index, values, lo, hi,
                _shapes(size_of, 4),
            )  # fmt: skip

    # A width the compiler knows saves a twentieth, so the usual one gets code of its own.
    usual = _int(4 * LINE // size_of)
    with builder.if_else(builder.icmp_signed("==", width, usual)) as (then, otherwise):
        with then:
            every_run(usual)
        with otherwise:
            every_run(width)
    return context.get_dummy_value()


@intrinsic
def _vector_add_runs(
    context, out, out_at, width, rows, begin, a_tap, index, values, runs, k_first, k_last, ahead, n_ahead
):  # fmt: skip
    given = (out, out_at, width, rows, begin, a_tap, index, values, runs, k_first, k_last, ahead, n_ahead)
    return types.void(*given), _emit_add_runs


add_runs = _choose(_add_runs, _vector_add_runs)


# --- dense products ---------------------------------------------------------------------------------------------------


def _copy_panel(panel, w, at, stride, depth):
    """panel[k, :] = w[at + k stride :], k < depth, rows of one cache line."""
    w = w.reshape(-1)
    for k in range(depth):
        for j in range(panel.shape[1]):
            panel[k, j] = w[at + k * stride + j]


def _emit_copy_panel(context, builder, signature, args):
    panel, w = (_data(context, builder, signature, args, i) for i in (0, 1))
    at, stride, depth = (_int_arg(context, builder, signature, args, i) for i in (2, 3, 4))
    size_of = signature.args[0].dtype.bitwidth // 8
    vector = ir.VectorType(context.get_data_type(signature.args[0].dtype), LINE // size_of)
    with cgutils.for_range(builder, depth, intp=_I64) as loop:
        there = _at(builder, w, builder.add(at, builder.mul(stride, loop.index)), vector)
        here = _at(builder, panel, builder.mul(loop.index, _int(vector.count)), vector)
        builder.store(builder.load(there, align=size_of), here, align=size_of)
    return context.get_dummy_value()


@intrinsic
def _vector_copy_panel(context, panel, w, at, stride, depth):
    return types.void(panel, w, at, stride, depth), _emit_copy_panel


copy_panel = _choose(_copy_panel, _vector_copy_panel)


def _copy_across(out, out_at, out_row, w, at, row, depth):
    """out[out_at + k out_row + c] = w[at + c row + k], k < depth, for as many c as a cache line has numbers."""
    out, w = out.reshape(-1), w.reshape(-1)
    for k in range(depth):
        for c in range(LINE // w.itemsize):
            out[out_at + k * out_row + c] = w[at + c * row + k]


def _emit_copy_across(context, builder, signature, args):
    out, w = (_data(context, builder, signature, args, i) for i in (0, 3))
    out_at, out_row, at, row, depth = (_int_arg(context, builder, signature, args, i) for i in (1, 2, 4, 5, 6))
    size_of = signature.args[0].dtype.bitwidth // 8
    real = context.get_data_type(signature.args[0].dtype)
    side = LINE // size_of // 2  # of a square of numbers that is turned in registers
    vector, lane = ir.VectorType(real, side), ir.VectorType(ir.IntType(32), side)

    def halves(x, y):
        """x0 y0 x1 y1 ... in two vectors."""
        for start in (0, side // 2):
            order = [place for i in range(start, start + side // 2) for place in (i, side + i)]
            yield builder.shuffle_vector(x, y, ir.Constant(lane, order))

    whole = builder.mul(builder.sdiv(depth, _int(side)), _int(side))
    for half in (0, side):
        begin = builder.add(at, builder.mul(row, _int(half)))
        with cgutils.for_range_slice(builder, _int(0), whole, _int(side), intp=_I64) as (k, _):
            square = []
            for c in range(side):
                there = builder.add(builder.add(begin, k), builder.mul(row, _int(c)))
                square.append(builder.load(_at(builder, w, there, vector), align=size_of))
            # Each round lays rows half a square apart into each other; after log₂ of the side, rows are columns.
            for _ in range(side.bit_length() - 1):
                square = [part for c in range(side // 2) for part in halves(square[c], square[c + side // 2])]
            for i, column in enumerate(square):
                here = builder.add(builder.add(out_at, _int(half)), builder.mul(out_row, builder.add(k, _int(i))))
                builder.store(column, _at(builder, out, here, vector), align=size_of)
        with cgutils.for_range_slice(builder, whole, depth, _int(1), intp=_I64) as (k, _):
            for c in range(side):
                there = builder.add(builder.add(begin, k), builder.mul(row, _int(c)))
                here = builder.add(builder.add(out_at, _int(half + c)), builder.mul(out_row, k))
                builder.store(builder.load(builder.gep(w, [there])), builder.gep(out, [here]))
    return context.get_dummy_value()


@intrinsic
def _vector_copy_across(context, out, out_at, out_row, w, at, row, depth):
    return types.void(out, out_at, out_row, w, at, row, depth), _emit_copy_across


copy_across = _choose(_copy_across, _vector_copy_across)


def _tile_product(out, at, stride, x, x_at, x_row, x_step, panel, depth):
    """out[at + r stride + j] += Σ over k < depth of x[x_at + r x_row + k x_step] panel[k, j], r < TILE, a panel wide.

    For each element one chain of fused multiply-adds in ascending k.
    """
    out, x = out.reshape(-1), x.reshape(-1)
    for r in range(TILE):
        for k in range(depth):
            for j in range(panel.shape[1]):
                out[at + r * stride + j] += x[x_at + r * x_row + k * x_step] * panel[k, j]


def _emit_tile_product(context, builder, signature, args):
    out, x, panel = (_data(context, builder, signature, args, i) for i in (0, 3, 7))
    at, stride, x_at, x_row, x_step, depth = (
        _int_arg(context, builder, signature, args, i) for i in (1, 2, 4, 5, 6, 8)
    )
    size_of = signature.args[0].dtype.bitwidth // 8
    vector = ir.VectorType(context.get_data_type(signature.args[0].dtype), LINE // size_of)
    starts = [builder.gep(x, [builder.add(x_at, builder.mul(x_row, _int(r)))]) for r in range(TILE)]
    places = [_at(builder, out, builder.add(at, builder.mul(stride, _int(r))), vector) for r in range(TILE)]
    before = [builder.load(place, align=size_of) for place in places]
    begin = builder.block
    step, end = builder.append_basic_block(), builder.append_basic_block()
    builder.cbranch(builder.icmp_signed("<", _int(0), depth), step, end)

    builder.position_at_end(step)
    k, there = builder.phi(_I64), builder.phi(_I64)
    totals = [builder.phi(vector) for _ in places]
    w = builder.load(_at(builder, panel, builder.mul(k, _int(vector.count)), vector), align=size_of)
    after = []
    for start, total in zip(starts, totals, strict=True):
        factor = _broadcast(builder, builder.load(builder.gep(start, [there])), vector)
        after.append(builder.fadd(total, builder.fmul(factor, w, flags=_CONTRACT), flags=_CONTRACT))
    following = [builder.add(k, _int(1)), builder.add(there, x_step)]
    _join([k, there, *totals], [_int(0), _int(0), *before], begin, [*following, *after], step)
    builder.cbranch(builder.icmp_signed("<", following[0], depth), step, end)

    builder.position_at_end(end)
    _store_either(builder, places, before, begin, after, step, size_of)
    return context.get_dummy_value()


@intrinsic
def _vector_tile_product(context, out, at, stride, x, x_at, x_row, x_step, panel, depth):
    return types.void(out, at, stride, x, x_at, x_row, x_step, panel, depth), _emit_tile_product


tile_product = _choose(_tile_product, _vector_tile_product)


# --- lists of what is not 0, and of what fired ------------------------------------------------------------------------


def _nonzero(values, at, n, found, found_at):
    """Lists the i < n with values[at + i] ≠ 0 from found[found_at] on, ascending; returns their number. A NaN is found.

    The list has n places; what lies behind the last one found may be overwritten.
    """
    values, found = values.reshape(-1), found.reshape(-1)
    count = 0
    for i in range(n):
        if values[at + i] != 0:
            found[found_at + count] = i
            count += 1
    return count


def _emit_nonzero(context, builder, signature, args):
    values, found = (_data(context, builder, signature, args, i) for i in (0, 3))
    at, n, found_at = (_int_arg(context, builder, signature, args, i) for i in (1, 2, 4))
    values = builder.gep(values, [at])
    real = context.get_data_type(signature.args[0].dtype)
    size_of = signature.args[0].dtype.bitwidth // 8
    lanes = LINE // size_of
    vector = ir.VectorType(real, lanes)
    place = cgutils.alloca_once_value(builder, found_at)
    kind = context.get_data_type(signature.args[3].dtype)

    def note(i):
        to = builder.load(place)
        builder.store(builder.trunc(i, kind), builder.gep(found, [to]))
        builder.store(builder.add(to, _int(1)), place)

    whole = builder.sdiv(n, _int(lanes))
    with cgutils.for_range(builder, whole, intp=_I64) as loop:
        first = builder.mul(loop.index, _int(lanes))
        chunk = builder.load(_at(builder, values, first, vector), align=size_of)
        hits = builder.fcmp_unordered("!=", chunk, _broadcast(builder, ir.Constant(real, 0.0), vector))
        mask = builder.bitcast(hits, ir.IntType(lanes))
        _list_ones(builder, mask, first, found, place)
    with cgutils.for_range_slice(builder, builder.mul(whole, _int(lanes)), n, _int(1), intp=_I64) as (i, _):
        hit = builder.fcmp_unordered("!=", builder.load(builder.gep(values, [i])), ir.Constant(real, 0.0))
        with builder.if_then(hit):
            note(i)
    return builder.sub(builder.load(place), found_at)


@intrinsic
def _vector_nonzero(context, values, at, n, found, found_at):
    return types.int64(values, at, n, found, found_at), _emit_nonzero


nonzero = _choose(_nonzero, _vector_nonzero)


def _fire(u, a, at, n, v_th, weight, predicted, events, values, place, go_on, leak, constant):
    """s = H(v − V_th), v = u[at:]; in its place what is left, v − V_th s; weight s added to the rates' sums a[at:].

    Where the steps go on, λ (v − V_th s) + constant, the next potential before any event arrives. Lists where s is not
    what was predicted, ascending, with value s − predicted: lists, ``predicted`` and ``constant`` from ``place`` on.
    The lists have n places; what lies behind the last event may be overwritten. Returns the number of these events,
    that of the spikes, and the smallest |v − V_th|.
    """
    u, a, predicted, constant = u.reshape(-1), a.reshape(-1), predicted.reshape(-1), constant.reshape(-1)
    events, values = events.reshape(-1), values.reshape(-1)
    n_events, n_spikes, near = 0, 0, u.dtype.type(np.inf)
    for i in range(n):
        v = u[at + i]
        if abs(v - v_th) < near:
            near = abs(v - v_th)
        s = 1 if v >= v_th else 0
        if s:
            v -= v_th
            a[at + i] += weight
            n_spikes += 1
        if s != predicted[place + i]:
            events[place + n_events] = i
            values[place + n_events] = 1 if s else -1
            n_events += 1
        u[at + i] = leak * v + constant[place + i] if go_on else v
    return n_events, n_spikes, near


def _emit_fire(context, builder, signature, args):
    u, a, predicted, events, values, constant = (
        _data(context, builder, signature, args, i) for i in (0, 1, 6, 7, 8, 12)
    )
    at, n, first_place, go_on = (_int_arg(context, builder, signature, args, i) for i in (2, 3, 9, 10))
    u, a, predicted, constant = (
        builder.gep(array, [i]) for array, i in ((u, at), (a, at), (predicted, first_place), (constant, first_place))
    )
    dtype = signature.args[0].dtype
    real, size_of = context.get_data_type(dtype), dtype.bitwidth // 8
    v_th, weight, leak = (context.cast(builder, args[i], signature.args[i], dtype) for i in (4, 5, 11))
    kind, number = context.get_data_type(signature.args[7].dtype), ir.IntType(8 * size_of)
    lanes = LINE // size_of
    line = ir.VectorType(real, lanes)
    one = builder.bitcast(ir.Constant(real, 1.0), number)
    place = cgutils.alloca_once_value(builder, first_place)
    n_spikes = cgutils.alloca_once_value(builder, _int(0))
    nearest = cgutils.alloca_once_value(builder, _broadcast(builder, ir.Constant(real, math.inf), line))
    nearest_of_rest = cgutils.alloca_once_value(builder, ir.Constant(real, math.inf))

    def note(i, fired):
        to = builder.load(place)
        builder.store(builder.trunc(i, kind), builder.gep(events, [to]))
        # 1 or -1, made of its bits: a choice would be a branch that is not foreseen.
        sign = builder.shl(builder.zext(builder.not_(fired), number), number(8 * size_of - 1))
        value = builder.bitcast(builder.gep(values, [to]), number.as_pointer())
        builder.store(builder.or_(one, sign), value)
        builder.store(builder.add(to, _int(1)), place)

    def tell(fired, to, number_of_byte, places):
        """The values of what a byte's list has: 1, or −1 where its neuron did not fire."""
        several = ir.VectorType(number, 8)
        silent = builder.zext(builder.not_(builder.lshr(fired, fired.type(8 * number_of_byte))), number)
        bits = builder.lshr(_broadcast(builder, silent, several), builder.zext(places, several))
        signs = builder.shl(bits, ir.Constant(several, [8 * size_of - 1] * 8))
        ones = builder.or_(signs, _broadcast(builder, one, several))
        there = builder.bitcast(values, number.as_pointer())
        builder.store(ones, _at(builder, there, to, several), align=size_of)

    def smaller(x, y):
        return builder.select(builder.fcmp_ordered("<", x, y), x, y)

    def neurons(first, lanes, nearest, leaks):
        """The neurons from ``first`` on: those that fired, and those that did not do as predicted."""
        vector = ir.VectorType(real, lanes) if lanes > 1 else real
        byte = ir.VectorType(ir.IntType(8), lanes) if lanes > 1 else ir.IntType(8)
        here, there = _at(builder, u, first, vector), _at(builder, a, first, vector)
        v, rate = builder.load(here, align=size_of), builder.load(there, align=size_of)
        bound, more, none = (_broadcast(builder, x, vector) for x in (v_th, weight, ir.Constant(real, 0.0)))
        fired = builder.fcmp_ordered(">=", v, bound)
        distance = builder.select(fired, builder.fsub(v, bound), builder.fsub(bound, v))
        builder.store(smaller(distance, builder.load(nearest)), nearest)
        # What is 0 is taken off too: a masked store takes twenty times as long as another on some processors.
        v = builder.fsub(v, builder.select(fired, bound, none))
        if leaks:
            steady = builder.load(_at(builder, constant, first, vector), align=size_of)
            v = builder.fmul(v, _broadcast(builder, leak, vector), flags=_CONTRACT)
            v = builder.fadd(v, steady, flags=_CONTRACT)
        builder.store(v, here, align=size_of)
        builder.store(builder.fadd(rate, builder.select(fired, more, none)), there, align=size_of)
        was = builder.icmp_unsigned(
            "!=", builder.load(_at(builder, predicted, first, byte), align=1), ir.Constant(byte, None)
        )
        return fired, builder.xor(fired, was)

    def count(spikes):
        builder.store(builder.add(builder.load(n_spikes), spikes), n_spikes)

    def all_neurons(leaks):
        bits = ir.IntType(lanes)
        whole = builder.sdiv(n, _int(lanes))
        with cgutils.for_range(builder, whole, intp=_I64) as loop:
            first = builder.mul(loop.index, _int(lanes))
            fired, differs = (builder.bitcast(mask, bits) for mask in neurons(first, lanes, nearest, leaks))
            count(builder.zext(builder.ctpop(fired), _I64))

            _list_ones(builder, differs, first, events, place, partial(tell, fired))
        with cgutils.for_range_slice(builder, builder.mul(whole, _int(lanes)), n, _int(1), intp=_I64) as (i, _):
            fired, differs = neurons(i, 1, nearest_of_rest, leaks)
            count(builder.zext(fired, _I64))
            with builder.if_then(differs):
                note(i, fired)

    with builder.if_else(builder.icmp_signed("!=", go_on, _int(0))) as (then, otherwise):
        with then:
            all_neurons(leaks=True)
        with otherwise:
            all_neurons(leaks=False)
    near = builder.load(nearest_of_rest)
    for i in range(lanes):
        near = smaller(builder.extract_element(builder.load(nearest), ir.IntType(32)(i)), near)
    results = [builder.sub(builder.load(place), first_place), builder.load(n_spikes), near]
    return context.make_tuple(builder, signature.return_type, results)


@intrinsic
def _vector_fire(context, u, a, at, n, v_th, weight, predicted, events, values, place, go_on, leak, constant):
    found = types.Tuple((types.int64, types.int64, u.dtype))
    signature = found(u, a, at, n, v_th, weight, predicted, events, values, place, go_on, leak, constant)
    return signature, _emit_fire


fire = _choose(_fire, _vector_fire)


_PLACES = [[i for i in range(8) if byte >> i & 1] for byte in range(256)]
"""Of every byte the places of its ones."""


def _list_ones(builder, mask, first, found, place, also=None):
    """Appends first + i for every bit i of a mask that is 1, ascending, to found[place:], and moves the place on.

    All eight places of a byte are written, and those that count are kept: no branch to foresee. So found must have room
    for all bits. ``also``, called with where a byte's list goes, its number and its places, writes more beside it.
    """
    byte, kind = ir.IntType(8), found.type.pointee
    table = cgutils.global_constant(
        builder, "places_of_ones", ir.Constant(ir.ArrayType(ir.VectorType(byte, 8), 256), [
            ir.Constant(ir.VectorType(byte, 8), (places + [0] * 8)[:8]) for places in _PLACES
        ]),
    )  # fmt: skip
    indices = ir.VectorType(kind, 8)
    for number in range(mask.type.width // 8):
        bits = builder.trunc(builder.lshr(mask, mask.type(8 * number)), byte)
        there = builder.gep(table, [_int(0), builder.zext(bits, _I64)])
        places = builder.load(there, align=8)
        start = builder.trunc(builder.add(first, _int(8 * number)), kind)
        to = builder.load(place)
        listed = builder.add(builder.zext(places, indices), _broadcast(builder, start, indices))
        builder.store(listed, _at(builder, found, to, indices), align=kind.width // 8)
        if also is not None:
            also(to, number, places)
        builder.store(builder.add(to, builder.zext(builder.ctpop(bits), _I64)), place)
