"""Rows of numbers added to a row, and what decides which: the innermost loops of every other kernel, as vector code.

An event with value x adds x times a weight row to a row of the output. LLVM's vectoriser takes the columns as the inner
loop, so it reads and writes the output once an event; written out here, the output stays in registers while all events
of a row pass, and only weights are read. The functions named in ``__all__`` are that code; each has a twin in plain
loops below, which tests hold it against, and which takes its place where Numba checks bounds or does not compile.

Arrays are given whole, C-contiguous, with places in them counted flat: a slice would cost more than the loop it is for.
"""

from collections.abc import Callable

from llvmlite import ir
from numba import config, njit, types
from numba.core import cgutils
from numba.extending import intrinsic

__all__ = ["TILE", "add_rows", "add_rows_through", "at_least", "copy_panel", "nonzero", "tile_product"]

WIDEST = 384  # bytes of the output held in registers: twelve of AVX2's sixteen
LINE = 64  # bytes of a tile's row, and of the vectors that are searched
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


def _at(builder, base, place, vector):
    """Pointer to a vector that begins at an element."""
    return builder.bitcast(builder.gep(base, [place]), vector.as_pointer())


def _emit_add_rows(context, builder, signature, args, through):
    out, rows, index, values = (_data(context, builder, signature, args, i) for i in (0, 3, 6, 7))
    at, width, first, stride, lo, hi = (_int_arg(context, builder, signature, args, i) for i in (1, 2, 4, 5, 8, 9))
    out, rows = builder.gep(out, [at]), builder.gep(rows, [first])
    if through:
        table = builder.gep(
            _data(context, builder, signature, args, 10), [_int_arg(context, builder, signature, args, 11)]
        )
    real = context.get_data_type(signature.args[0].dtype)
    size_of = signature.args[0].dtype.bitwidth // 8
    column = cgutils.alloca_once_value(builder, _int(0))
    leave = builder.append_basic_block()
    line = LINE // size_of
    # The widest blocks as long as they fit; then of four, two and one vector of a line; then parts of a line.
    shapes = [(WIDEST // LINE, line), (4, line), (2, line), (1, line)]
    while shapes[-1][1] > 1:
        shapes.append((1, shapes[-1][1] // 2))
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
        if through:
            i = builder.zext(builder.load(builder.gep(table, [i])), _I64)
        row = builder.gep(there, [builder.mul(i, stride)])
        x = _broadcast(builder, builder.load(builder.gep(values, [e])), vector)
        after = []
        for v, total in enumerate(totals):
            w = builder.load(_at(builder, row, _int(v * lanes), vector), align=size_of)
            after.append(builder.fadd(total, builder.fmul(x, w, flags=_CONTRACT), flags=_CONTRACT))
        following = builder.add(e, _int(1))
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
    return context.get_dummy_value()


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


def _copy_panel(panel, w, at, stride, depth):
    """panel[k, :] = w[at + k stride :], k < depth, rows of one cache line."""
    w = w.reshape(-1)
    for k in range(depth):
        for j in range(panel.shape[1]):
            panel[k, j] = w[at + k * stride + j]


def _emit_tile_product(context, builder, signature, args):
    out, x, panel = (_data(context, builder, signature, args, i) for i in (0, 3, 6))
    at, stride, x_at, x_stride, depth = (_int_arg(context, builder, signature, args, i) for i in (1, 2, 4, 5, 7))
    size_of = signature.args[0].dtype.bitwidth // 8
    vector = ir.VectorType(context.get_data_type(signature.args[0].dtype), LINE // size_of)
    starts = [builder.gep(x, [builder.add(x_at, builder.mul(x_stride, _int(r)))]) for r in range(TILE)]
    places = [_at(builder, out, builder.add(at, builder.mul(stride, _int(r))), vector) for r in range(TILE)]
    before = [builder.load(place, align=size_of) for place in places]
    begin = builder.block
    step, end = builder.append_basic_block(), builder.append_basic_block()
    builder.cbranch(builder.icmp_signed("<", _int(0), depth), step, end)

    builder.position_at_end(step)
    k = builder.phi(_I64)
    totals = [builder.phi(vector) for _ in places]
    w = builder.load(_at(builder, panel, builder.mul(k, _int(vector.count)), vector), align=size_of)
    after = []
    for start, total in zip(starts, totals, strict=True):
        product = builder.fmul(_broadcast(builder, builder.load(builder.gep(start, [k])), vector), w, flags=_CONTRACT)
        after.append(builder.fadd(total, product, flags=_CONTRACT))
    following = builder.add(k, _int(1))
    _join([k, *totals], [_int(0), *before], begin, [following, *after], step)
    builder.cbranch(builder.icmp_signed("<", following, depth), step, end)

    builder.position_at_end(end)
    _store_either(builder, places, before, begin, after, step, size_of)
    return context.get_dummy_value()


def _tile_product(out, at, stride, x, x_at, x_stride, panel, depth):
    """out[at + r stride + j] += Σ over k < depth of x[x_at + r x_stride + k] panel[k, j], r < TILE, a panel wide.

    For each element one chain of fused multiply-adds in ascending k.
    """
    out, x = out.reshape(-1), x.reshape(-1)
    for r in range(TILE):
        for k in range(depth):
            for j in range(panel.shape[1]):
                out[at + r * stride + j] += x[x_at + r * x_stride + k] * panel[k, j]


def _emit_search(context, builder, signature, args, predicate):
    values, found = _data(context, builder, signature, args, 0), _data(context, builder, signature, args, 4)
    at, n, found_at = (_int_arg(context, builder, signature, args, i) for i in (1, 2, 5))
    values = builder.gep(values, [at])
    real = context.get_data_type(signature.args[0].dtype)
    size_of = signature.args[0].dtype.bitwidth // 8
    lanes = LINE // size_of
    vector = ir.VectorType(real, lanes)
    bits = ir.IntType(lanes)
    bound = context.cast(builder, args[3], signature.args[3], signature.args[0].dtype)
    place = cgutils.alloca_once_value(builder, found_at)
    kind = context.get_data_type(signature.args[4].dtype)

    def note(i):
        to = builder.load(place)
        builder.store(builder.trunc(i, kind), builder.gep(found, [to]))
        builder.store(builder.add(to, _int(1)), place)

    whole = builder.sdiv(n, _int(lanes))
    with cgutils.for_range(builder, whole, intp=_I64) as loop:
        first = builder.mul(loop.index, _int(lanes))
        chunk = builder.load(_at(builder, values, first, vector), align=size_of)
        hits = builder.bitcast(predicate(builder, chunk, _broadcast(builder, bound, vector)), bits)
        mask = cgutils.alloca_once_value(builder, hits)
        builder.store(hits, mask)
        head, body, done = (builder.append_basic_block() for _ in range(3))
        builder.branch(head)
        builder.position_at_end(head)
        left = builder.load(mask)
        builder.cbranch(builder.icmp_unsigned("!=", left, ir.Constant(bits, 0)), body, done)
        builder.position_at_end(body)
        lowest = builder.cttz(left, ir.Constant(ir.IntType(1), 1))
        note(builder.add(first, builder.zext(lowest, _I64)))
        builder.store(builder.and_(left, builder.sub(left, ir.Constant(bits, 1))), mask)
        builder.branch(head)
        builder.position_at_end(done)
    with cgutils.for_range_slice(builder, builder.mul(whole, _int(lanes)), n, _int(1), intp=_I64) as (i, _):
        x = builder.load(builder.gep(values, [i]))
        with builder.if_then(predicate(builder, x, bound)):
            note(i)
    return builder.sub(builder.load(place), found_at)


def _at_least(values, at, n, bound, found, found_at):
    """Writes the i < n with values[at + i] ≥ bound to found[found_at:], ascending; returns their number."""
    values, found = values.reshape(-1), found.reshape(-1)
    count = 0
    for i in range(n):
        if values[at + i] >= bound:
            found[found_at + count] = i
            count += 1
    return count


def _nonzero(values, at, n, zero, found, found_at):
    """The same for values[at + i] ≠ zero; a NaN is found."""
    values, found = values.reshape(-1), found.reshape(-1)
    count = 0
    for i in range(n):
        if values[at + i] != zero:
            found[found_at + count] = i
            count += 1
    return count


def _oge(builder, x, bound):
    return builder.fcmp_ordered(">=", x, bound)


def _une(builder, x, bound):
    return builder.fcmp_unordered("!=", x, bound)


@intrinsic
def _vector_add_rows(context, out, at, width, rows, first, stride, index, values, lo, hi):
    signature = types.void(out, at, width, rows, first, stride, index, values, lo, hi)
    return signature, lambda *given: _emit_add_rows(*given, through=False)


@intrinsic
def _vector_add_rows_through(context, out, at, width, rows, first, stride, index, values, lo, hi, table, table_at):
    signature = types.void(out, at, width, rows, first, stride, index, values, lo, hi, table, table_at)
    return signature, lambda *given: _emit_add_rows(*given, through=True)


@intrinsic
def _vector_copy_panel(context, panel, w, at, stride, depth):
    return types.void(panel, w, at, stride, depth), _emit_copy_panel


@intrinsic
def _vector_tile_product(context, out, at, stride, x, x_at, x_stride, panel, depth):
    return types.void(out, at, stride, x, x_at, x_stride, panel, depth), _emit_tile_product


@intrinsic
def _vector_at_least(context, values, at, n, bound, found, found_at):
    signature = types.int64(values, at, n, bound, found, found_at)
    return signature, lambda *given: _emit_search(*given, predicate=_oge)


@intrinsic
def _vector_nonzero(context, values, at, n, zero, found, found_at):
    signature = types.int64(values, at, n, zero, found, found_at)
    return signature, lambda *given: _emit_search(*given, predicate=_une)


def _choose(plain: Callable, vector: Callable) -> Callable:
    """The vector code, or its twin where Numba checks bounds or does not compile."""
    checked = getattr(config, "BOUNDSCHECK", None) or getattr(config, "DISABLE_JIT", 0)
    return njit(cache=True, nogil=True)(plain) if checked else vector


add_rows = _choose(_add_rows, _vector_add_rows)
add_rows_through = _choose(_add_rows_through, _vector_add_rows_through)
copy_panel = _choose(_copy_panel, _vector_copy_panel)
tile_product = _choose(_tile_product, _vector_tile_product)
at_least = _choose(_at_least, _vector_at_least)
nonzero = _choose(_nonzero, _vector_nonzero)
