"""Triton kernels of batch normalisation (+ addition) (+ ReLU) on channels-last activations.

An activation is a row-major matrix (M, C), M = N * H * W, in fp16, bf16 or fp32. Parameters,
statistics and all arithmetic are fp32. A sum over rows has two stages, kernels of which the first
writes one partial result per chunk of rows and the second merges them in a fixed order: there are
no atomics, so equal inputs give equal bits.

    forward    statistics -> finish_statistics -> normalize
    backward   gradient_sums -> finish_gradient_sums -> input_gradients

With an activation z that is added before the ReLU, `bits` (M, ceil(C / 8)) uint8 keeps where the
ReLU passed, one bit per element, channel c in bit c % 8. Without z it is found again from x, which
the backward pass reads anyway. z may have a normalisation of its own (a projection shortcut),
which then takes part in the same passes: wherever z has `z_stats`, y is
relu(norm(x) + norm_z(z)).

`stats` is (2, C): the mean and 1 / sqrt(var + eps). An argument that may be None switches off what
it is for. Names in capitals are counts: M rows, C channels, CHUNKS of at most CHUNK_ROWS rows; a
tile has BLOCK_M rows and BLOCK_C channels. The kernels that read activations run on a grid
(C / BLOCK_C, CHUNKS), a program going through its chunk tile by tile, the finishing ones on
(C / BLOCK_C,); quotients are rounded up.
"""

from __future__ import annotations

import os

import triton
import triton.language as tl

INTERPRETED = tl.constexpr(os.environ.get("TRITON_INTERPRET") == "1")


@triton.jit
def through(v, dtype: tl.constexpr):
    """fp32 `v` as it comes back from memory of `dtype`: rounded to nearest even, in fp32."""
    if INTERPRETED and dtype == tl.bfloat16:
        # Triton's interpreter (3.7) cuts off the lower half.
        bits = v.to(tl.uint32, bitcast=True)
        nearest = (bits + 0x7FFF + ((bits >> 16) & 1)) & 0xFFFF0000
        return tl.where(v == v, nearest, bits | 0x400000).to(tl.float32, bitcast=True)
    return v.to(dtype).to(tl.float32)


@triton.jit
def row(vector_ptr, cols, C):
    """(1, BLOCK_C) of a vector (C,)."""
    return tl.load(vector_ptr + cols, mask=cols < C, other=0.0)[None, :]


@triton.jit
def coefficients(stats_ptr, weight_ptr, bias_ptr, cols, C):
    """The mean, scale and shift of `affine`, (1, BLOCK_C) each."""
    scale = row(stats_ptr + C, cols, C) * row(weight_ptr, cols, C)
    return row(stats_ptr, cols, C), scale, row(bias_ptr, cols, C)


@triton.jit
def affine(x, mean, scale, shift):
    """(x - mean) * scale + shift, the same bits wherever it is computed.

    The explicit fma keeps the compiler from contracting it in one kernel and not in another: the
    backward pass finds the ReLU's mask again from it.
    """
    return tl.fma(x - mean, tl.broadcast_to(scale, x.shape), tl.broadcast_to(shift, x.shape))


@triton.jit
def byte_offsets(rows, block, C, BLOCK_C: tl.constexpr):
    """Where the bits of a tile stand, (rows, BLOCK_C / 8), and which of them exist."""
    wide = tl.cdiv(C, 8)
    cols = block * (BLOCK_C // 8) + tl.arange(0, BLOCK_C // 8)
    return rows[:, None] * wide + cols[None, :], (cols < wide)[None, :]


@triton.jit
def statistics(x_ptr, partial_ptr, M, C, CHUNK_ROWS, BLOCK_M: tl.constexpr, BLOCK_C: tl.constexpr):
    """partial (2, CHUNKS, C): the mean of each chunk, and its squared deviations summed up.

    Sums are of x - k with k the chunk's first row: at |mean| / std = 300 plain sums of squares
    put an error of 3e-2 into the variance, these 5e-7.
    """
    cols = tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C)
    chunk = tl.program_id(1)
    first = chunk * CHUNK_ROWS
    count = tl.minimum(CHUNK_ROWS, M - first)
    x_ptr += first.to(tl.int64) * C
    rows = tl.arange(0, BLOCK_M)
    offsets = rows[:, None] * C + cols[None, :]
    real = (cols < C)[None, :]
    shift = tl.load(x_ptr + cols, mask=cols < C, other=0.0).to(tl.float32)
    total = tl.zeros((BLOCK_M, BLOCK_C), tl.float32)
    squares = tl.zeros((BLOCK_M, BLOCK_C), tl.float32)
    # Loads ahead: without, 16 KB of the 23 that hide the latency of memory are on their way.
    for start in tl.range(0, count, BLOCK_M, num_stages=4):
        inside = (rows < count - start)[:, None] & real
        x = tl.load(x_ptr + offsets, mask=inside, other=0.0).to(tl.float32)
        x = tl.where(inside, x - shift[None, :], 0.0)
        total += x
        squares += x * x
        x_ptr += BLOCK_M * C
    mean = tl.sum(total, 0) / count
    squares = tl.sum(squares, 0) - mean * mean * count
    partial_ptr += chunk * C + cols
    tl.store(partial_ptr, mean + shift, mask=cols < C)
    # Rounding may leave a little less than nothing; a NaN stays one.
    squares = tl.where(squares < 0, 0.0, squares)
    tl.store(partial_ptr + tl.num_programs(1) * C, squares, mask=cols < C)


@triton.jit
def finish_statistics(
    partial_ptr, stats_ptr, running_mean_ptr, running_var_ptr, momentum, eps, M, C, CHUNKS,
    CHUNK_ROWS, BLOCK_M: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Merges the chunks of `statistics` (Chan et al. 1979) into stats and the running statistics.

    As in torch, the running variance is unbiased (over M - 1) and the other is not (over M).
    """
    cols = tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C)
    real = cols < C
    shift = tl.load(partial_ptr + cols, mask=real, other=0.0)
    total = tl.zeros((BLOCK_M, BLOCK_C), tl.float32)
    for start in range(0, CHUNKS, BLOCK_M):
        chunks = start + tl.arange(0, BLOCK_M)
        inside = (chunks < CHUNKS)[:, None] & real[None, :]
        count = tl.minimum(CHUNK_ROWS, M - chunks * CHUNK_ROWS).to(tl.float32)[:, None]
        mean = tl.load(partial_ptr + chunks[:, None] * C + cols[None, :], mask=inside, other=0.0)
        total += tl.where(inside, (mean - shift[None, :]) * count, 0.0)
    middle = shift + tl.sum(total, 0) / M
    squares = tl.zeros((BLOCK_M, BLOCK_C), tl.float32)
    for start in range(0, CHUNKS, BLOCK_M):
        chunks = start + tl.arange(0, BLOCK_M)
        inside = (chunks < CHUNKS)[:, None] & real[None, :]
        count = tl.minimum(CHUNK_ROWS, M - chunks * CHUNK_ROWS).to(tl.float32)[:, None]
        offsets = chunks[:, None] * C + cols[None, :]
        mean = tl.load(partial_ptr + offsets, mask=inside, other=0.0)
        own = tl.load(partial_ptr + CHUNKS * C + offsets, mask=inside, other=0.0)
        away = mean - middle[None, :]
        squares += tl.where(inside, own + away * away * count, 0.0)
    m2 = tl.sum(squares, 0)
    tl.store(stats_ptr + cols, middle, mask=real)
    tl.store(stats_ptr + C + cols, tl.div_rn(1.0, tl.sqrt_rn(m2 / M + eps)), mask=real)
    old_mean = tl.load(running_mean_ptr + cols, mask=real, other=0.0)
    old_var = tl.load(running_var_ptr + cols, mask=real, other=0.0)
    keep = 1.0 - momentum
    tl.store(running_mean_ptr + cols, keep * old_mean + momentum * middle, mask=real)
    tl.store(running_var_ptr + cols, keep * old_var + momentum * (m2 / (M - 1)), mask=real)


@triton.jit
def normalize(
    x_ptr, stats_ptr, weight_ptr, bias_ptr, z_ptr, z_stats_ptr, z_weight_ptr, z_bias_ptr, y_ptr,
    bits_ptr, M, C, CHUNK_ROWS, RELU: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """y (M, C) = relu(norm(x) + z), and the bits of its mask if there is a place for them."""
    block = tl.program_id(0)
    cols = block * BLOCK_C + tl.arange(0, BLOCK_C)
    first = tl.program_id(1) * CHUNK_ROWS
    count = tl.minimum(CHUNK_ROWS, M - first)
    rows = tl.arange(0, BLOCK_M)
    offsets = rows[:, None] * C + cols[None, :]
    mean, scale, shift = coefficients(stats_ptr, weight_ptr, bias_ptr, cols, C)
    if z_stats_ptr is not None:
        z_mean, z_scale, z_shift = coefficients(z_stats_ptr, z_weight_ptr, z_bias_ptr, cols, C)
    for start in range(0, count, BLOCK_M):
        present = (rows < count - start)[:, None]
        inside = present & (cols < C)[None, :]
        here = (first + start).to(tl.int64)
        x = tl.load(x_ptr + here * C + offsets, mask=inside, other=0.0).to(tl.float32)
        v = affine(x, mean, scale, shift)
        if z_ptr is not None:
            z = tl.load(z_ptr + here * C + offsets, mask=inside, other=0.0).to(tl.float32)
            if z_stats_ptr is not None:
                z = affine(z, z_mean, z_scale, z_shift)
            v += z
        v = through(v, y_ptr.dtype.element_ty)
        if bits_ptr is not None:
            # A NaN passes, as in torch: what stops is what is not above 0.
            passed = tl.where(v <= 0, 0, 1).reshape(BLOCK_M, BLOCK_C // 8, 8)
            byte = tl.sum(passed << tl.arange(0, 8)[None, None, :], 2).to(tl.uint8)
            place, exists = byte_offsets(rows, block, C, BLOCK_C)
            tl.store(bits_ptr + here * tl.cdiv(C, 8) + place, byte, mask=present & exists)
        if RELU:
            v = tl.where(v < 0, 0.0, v)  # tl.maximum(nan, 0) is 0
        tl.store(y_ptr + here * C + offsets, v.to(y_ptr.dtype.element_ty), mask=inside)


@triton.jit
def gradient_sums(
    dy_ptr, dy2_ptr, x_ptr, stats_ptr, weight_ptr, bias_ptr, z_ptr, z_stats_ptr, bits_ptr, g_ptr,
    partial_ptr, M, C, CHUNK_ROWS, RELU: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """partial (2 or 3, CHUNKS, C): sums of g, of g * (x - mean) and, if z is normalised, of
    g * (z - its mean), where g = dy + dy2 where the ReLU passed, and 0 elsewhere.

    g (M, C), the gradient of what is added to norm(x), is written if there is a place for it.
    """
    block, chunk = tl.program_id(0), tl.program_id(1)
    cols = block * BLOCK_C + tl.arange(0, BLOCK_C)
    first = chunk * CHUNK_ROWS
    count = tl.minimum(CHUNK_ROWS, M - first)
    rows = tl.arange(0, BLOCK_M)
    offsets = rows[:, None] * C + cols[None, :]
    mean, scale, shift = coefficients(stats_ptr, weight_ptr, bias_ptr, cols, C)
    total = tl.zeros((BLOCK_M, BLOCK_C), tl.float32)
    product = tl.zeros((BLOCK_M, BLOCK_C), tl.float32)
    if z_stats_ptr is not None:
        z_mean = row(z_stats_ptr, cols, C)
        z_product = tl.zeros((BLOCK_M, BLOCK_C), tl.float32)
    for start in range(0, count, BLOCK_M):
        present = (rows < count - start)[:, None]
        inside = present & (cols < C)[None, :]
        here = (first + start).to(tl.int64)
        g = tl.load(dy_ptr + here * C + offsets, mask=inside, other=0.0).to(tl.float32)
        if dy2_ptr is not None:
            g += tl.load(dy2_ptr + here * C + offsets, mask=inside, other=0.0).to(tl.float32)
        x = tl.load(x_ptr + here * C + offsets, mask=inside, other=0.0).to(tl.float32)
        if RELU:
            if bits_ptr is not None:
                place, exists = byte_offsets(rows, block, C, BLOCK_C)
                place += here * tl.cdiv(C, 8)
                byte = tl.load(bits_ptr + place, mask=present & exists, other=0)
                bit = (byte.to(tl.int32)[:, :, None] >> tl.arange(0, 8)[None, None, :]) & 1
                g = tl.where(bit.reshape(BLOCK_M, BLOCK_C) == 0, 0.0, g)
            else:
                v = through(affine(x, mean, scale, shift), x_ptr.dtype.element_ty)
                g = tl.where(v <= 0, 0.0, g)
        if g_ptr is not None:
            rounded = through(g, g_ptr.dtype.element_ty).to(g_ptr.dtype.element_ty)
            tl.store(g_ptr + here * C + offsets, rounded, mask=inside)
        total += g
        product += tl.where(inside, g * (x - mean), 0.0)
        if z_stats_ptr is not None:
            z = tl.load(z_ptr + here * C + offsets, mask=inside, other=0.0).to(tl.float32)
            z_product += tl.where(inside, g * (z - z_mean), 0.0)
    real = cols < C
    partial_ptr += chunk * C + cols
    size = tl.num_programs(1) * C
    tl.store(partial_ptr, tl.sum(total, 0), mask=real)
    tl.store(partial_ptr + size, tl.sum(product, 0), mask=real)
    if z_stats_ptr is not None:
        tl.store(partial_ptr + 2 * size, tl.sum(z_product, 0), mask=real)


@triton.jit
def finish_gradient_sums(
    partial_ptr, stats_ptr, z_stats_ptr, dweight_ptr, dbias_ptr, z_dweight_ptr, z_dbias_ptr, C,
    CHUNKS, BLOCK_M: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """The gradients (C,) of weight and bias, and of those of z if it is normalised."""
    cols = tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C)
    real = cols < C
    size = CHUNKS * C
    total = tl.zeros((BLOCK_M, BLOCK_C), tl.float32)
    product = tl.zeros((BLOCK_M, BLOCK_C), tl.float32)
    z_product = tl.zeros((BLOCK_M, BLOCK_C), tl.float32)
    for start in range(0, CHUNKS, BLOCK_M):
        chunks = start + tl.arange(0, BLOCK_M)
        inside = (chunks < CHUNKS)[:, None] & real[None, :]
        offsets = chunks[:, None] * C + cols[None, :]
        total += tl.load(partial_ptr + offsets, mask=inside, other=0.0)
        product += tl.load(partial_ptr + size + offsets, mask=inside, other=0.0)
        if z_stats_ptr is not None:
            z_product += tl.load(partial_ptr + 2 * size + offsets, mask=inside, other=0.0)
    dbias = tl.sum(total, 0)
    invstd = tl.load(stats_ptr + C + cols, mask=real, other=0.0)
    tl.store(dbias_ptr + cols, dbias, mask=real)
    tl.store(dweight_ptr + cols, tl.sum(product, 0) * invstd, mask=real)
    if z_stats_ptr is not None:
        z_invstd = tl.load(z_stats_ptr + C + cols, mask=real, other=0.0)
        tl.store(z_dbias_ptr + cols, dbias, mask=real)
        tl.store(z_dweight_ptr + cols, tl.sum(z_product, 0) * z_invstd, mask=real)


@triton.jit
def slopes(stats_ptr, weight_ptr, dweight_ptr, dbias_ptr, M, cols, C, TRAIN: tl.constexpr):
    """(1, BLOCK_C) each: the gradient of x is a * g + b * (x - mean) + c.

    In training the statistics depend on x, which gives b and c; else they are 0.
    """
    invstd = row(stats_ptr + C, cols, C)
    a = invstd * row(weight_ptr, cols, C)
    if TRAIN:
        b = -a * invstd * row(dweight_ptr, cols, C) / M
        return a, b, -a * row(dbias_ptr, cols, C) / M
    return a, tl.zeros_like(a), tl.zeros_like(a)


@triton.jit
def input_gradients(
    g_ptr, x_ptr, stats_ptr, weight_ptr, bias_ptr, dweight_ptr, dbias_ptr, z_ptr, z_stats_ptr,
    z_weight_ptr, z_dweight_ptr, dx_ptr, dz_ptr, M, C, CHUNK_ROWS, FIND_MASK: tl.constexpr,
    TRAIN: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """dx (M, C) and, if z is normalised, dz (M, C), which may lie where g lies.

    g is what `gradient_sums` wrote; or dy, whose mask is then to be found again (FIND_MASK).
    """
    cols = tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C)
    first = tl.program_id(1) * CHUNK_ROWS
    count = tl.minimum(CHUNK_ROWS, M - first)
    rows = tl.arange(0, BLOCK_M)
    offsets = rows[:, None] * C + cols[None, :]
    dtype: tl.constexpr = dx_ptr.dtype.element_ty
    mean, scale, shift = coefficients(stats_ptr, weight_ptr, bias_ptr, cols, C)
    a, b, c = slopes(stats_ptr, weight_ptr, dweight_ptr, dbias_ptr, M, cols, C, TRAIN)
    if z_stats_ptr is not None:
        z_mean = row(z_stats_ptr, cols, C)
        # The bias of both norms has the same gradient, the sum of g.
        z_a, z_b, z_c = slopes(
            z_stats_ptr, z_weight_ptr, z_dweight_ptr, dbias_ptr, M, cols, C, TRAIN
        )
    for start in range(0, count, BLOCK_M):
        inside = (rows < count - start)[:, None] & (cols < C)[None, :]
        here = (first + start).to(tl.int64) * C
        g = tl.load(g_ptr + here + offsets, mask=inside, other=0.0).to(tl.float32)
        x = tl.load(x_ptr + here + offsets, mask=inside, other=0.0).to(tl.float32)
        if FIND_MASK:
            g = tl.where(through(affine(x, mean, scale, shift), dtype) <= 0, 0.0, g)
        dx = a * g
        if TRAIN:
            dx += b * (x - mean) + c
        tl.store(dx_ptr + here + offsets, through(dx, dtype).to(dtype), mask=inside)
        if z_stats_ptr is not None:
            dz = z_a * g
            if TRAIN:
                z = tl.load(z_ptr + here + offsets, mask=inside, other=0.0).to(tl.float32)
                dz += z_b * (z - z_mean) + z_c
            tl.store(dz_ptr + here + offsets, through(dz, dtype).to(dtype), mask=inside)
