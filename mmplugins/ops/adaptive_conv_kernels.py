"""Triton kernels of :mod:`mmplugins.ops.adaptive_conv_triton`.

B batch, C channels, D key channels, h x w cells, S pixels per cell along each
axis, K x K window; ACC is the type of the sums. Tap (i, j) of pixel (y, x)
reads the padded source at (y // S + i, x // S + j). A program works on a tile
of R rows, BW cells wide, of BC channels where there are any.
"""

# Constants of a kernel are upper case; it has no starred tuples.
# ruff: noqa: N803, RUF005

import triton
import triton.language as tl


@triton.jit
def _load(pointer, mask, S: tl.constexpr, ACC: tl.constexpr):
    """The S pixels of each cell, a tile (..., BW) for each of them."""
    if S == 1:
        if mask is None:
            pixels = (tl.load(pointer).to(ACC),)
        else:
            pixels = (tl.load(pointer, mask=mask, other=0).to(ACC),)
    else:
        # One access of two values instead of two with a step of two.
        both = tl.expand_dims(pointer, -1) + tl.arange(0, 2)
        if mask is None:
            pair = tl.load(both)
        else:
            pair = tl.load(both, mask=tl.expand_dims(mask, -1), other=0)
        pixels = tl.split(pair.to(ACC))
    return pixels


@triton.jit
def _pixels(acc, START: tl.constexpr, STEP: tl.constexpr, S: tl.constexpr):
    """The accumulators of one row as a tile of pixels, (..., S * BW)."""
    if S == 1:
        tile = acc[START]
    else:
        tile = tl.interleave(acc[START], acc[START + STEP])
    return tile


@triton.jit
def _zeros(NUM: tl.constexpr, ROWS: tl.constexpr, BW: tl.constexpr, ACC):
    acc = ()
    for _ in tl.static_range(NUM):
        acc = acc + (tl.zeros((ROWS, BW), ACC),)
    return acc


@triton.jit
def _gather_row(
    source,
    taps,
    acc,
    u,
    top,
    h,
    w,
    ONLY: tl.constexpr,
    K: tl.constexpr,
    S: tl.constexpr,
    R: tl.constexpr,
    ACC: tl.constexpr,
):
    """Give cells of row u to the R rows, to all of them or as row ONLY."""
    row = tl.minimum(top + u, h + (K - 2)).to(tl.int64)
    source += row * (w + (K - 1))
    pixels = (S * S) * h.to(tl.int64) * w
    for j in tl.static_range(K):
        value = tl.load(source + j).to(ACC)
        new = ()
        for r in tl.static_range(R):
            if ONLY < 0 or (ONLY - r // S >= 0 and ONLY - r // S < K):
                y = tl.minimum(S * top + r, S * h - 1).to(tl.int64)
                at = ((u - r // S) * K + j) * pixels + y * (S * w)
                tap = _load(taps + at, None, S, ACC)
                for p in tl.static_range(S):
                    part = value * tap[p][None, :]
                    new = new + (acc[r * S + p] + part,)
            else:
                for p in tl.static_range(S):
                    new = new + (acc[r * S + p],)
        acc = new
    return acc


@triton.jit(do_not_specialize=['C', 'h', 'w', 'blocks', 'columns', 'rows'])
def gather_kernel(
    x,
    kernel,
    out,
    C,
    h,
    w,
    blocks,
    columns,
    rows,
    K: tl.constexpr,
    S: tl.constexpr,
    R: tl.constexpr,
    BC: tl.constexpr,
    BW: tl.constexpr,
    ACC: tl.constexpr,
):
    """BC channels of R rows of pixels, BW cells wide.

    A cell of the source is read once for all pixels of the R rows that need
    it, and a tap once for all BC channels. Out of range, indices are clamped:
    what they read is never stored, and masks cost more.
    """
    program = tl.program_id(0)
    first = (program % blocks) * BC
    program = program // blocks
    left = (program % columns) * BW
    program = program // columns
    top = (program % rows) * (R // S)
    batch = (program // rows).to(tl.int64)

    pitch = w + (K - 1)
    plane = (h + (K - 1)).to(tl.int64) * pitch
    pixels = (S * S) * h.to(tl.int64) * w
    channel = tl.minimum(first + tl.arange(0, BC), C - 1)
    column = tl.minimum(left + tl.arange(0, BW), w - 1)
    source = x + (batch * C + channel)[:, None] * plane + column[None, :]
    taps = kernel + batch * (K * K) * pixels + S * column

    acc = _zeros(R * S, BC, BW, ACC)
    # The first rows and the last are of use to some of the R rows only.
    HEAD: tl.constexpr = R // S - 1
    for u in tl.static_range(HEAD):
        acc = _gather_row(source, taps, acc, u, top, h, w, u, K, S, R, ACC)
    for u in range(HEAD, K):
        acc = _gather_row(source, taps, acc, u, top, h, w, -1, K, S, R, ACC)
    for u in tl.static_range(K, K + HEAD):
        acc = _gather_row(source, taps, acc, u, top, h, w, u, K, S, R, ACC)

    channel = first + tl.arange(0, BC)
    column = S * left + tl.arange(0, S * BW)
    mask = (channel < C)[:, None] & (column < S * w)[None, :]
    to = out + (batch * C + channel)[:, None] * pixels + column[None, :]
    for r in tl.static_range(R):
        y = S * top + r
        tl.store(
            to + y.to(tl.int64) * (S * w),
            _pixels(acc, r * S, 1, S).to(out.dtype.element_ty),
            mask=mask & (y < S * h),
        )


@triton.jit
def _products(
    g,
    x,
    start,
    stop,
    top,
    left,
    h,
    w,
    K: tl.constexpr,
    S: tl.constexpr,
    R: tl.constexpr,
    BJ: tl.constexpr,
    BW: tl.constexpr,
    ACC: tl.constexpr,
):
    """Sums of g times x over channels, R * S * K tiles (BJ, BW).

    Tile ``(r S + p) K + i`` holds row i of the window of pixel p in row r.
    The columns j of the window lie side by side in a tile, so that a program
    sees whole windows, and reads a cell once for all of the R rows.
    """
    pitch = w + (K - 1)
    plane = (h + (K - 1)).to(tl.int64) * pitch
    pixels = (S * S) * h.to(tl.int64) * w
    column = tl.minimum(left + tl.arange(0, BW), w - 1)
    offset = tl.minimum(tl.arange(0, BJ), K - 1)
    centres = g + start * pixels + S * column
    window = x + start * plane + (offset[:, None] + column[None, :])

    acc = _zeros(R * S * K, BJ, BW, ACC)
    for _ in range(start, stop):
        centre = ()
        for r in tl.static_range(R):
            y = tl.minimum(S * top + r, S * h - 1).to(tl.int64)
            centre = centre + _load(centres + y * (S * w), None, S, ACC)
        for u in tl.static_range(R // S + K - 1):
            row = tl.minimum(top + u, h + (K - 2)).to(tl.int64)
            value = tl.load(window + row * pitch).to(ACC)
            new = ()
            for n in tl.static_range(R * S * K):
                if n % K + n // (S * S * K) == u:
                    part = centre[n // K][None, :] * value
                    new = new + (acc[n] + part,)
                else:
                    new = new + (acc[n],)
            acc = new
        centres += pixels
        window += plane
    return acc


@triton.jit(do_not_specialize=['B', 'C', 'h', 'w', 'share', 'columns', 'rows'])
def correlate_kernel(
    g,
    x,
    out,
    B,
    C,
    h,
    w,
    share,
    columns,
    rows,
    K: tl.constexpr,
    S: tl.constexpr,
    R: tl.constexpr,
    BJ: tl.constexpr,
    BW: tl.constexpr,
    ACC: tl.constexpr,
):
    """All taps of R rows of pixels, BW cells wide, over a share of channels.

    Part n of the result sums the channels from ``n * share`` on.
    """
    program = tl.program_id(0)
    left = (program % columns) * BW
    program = program // columns
    top = (program % rows) * (R // S)
    program = program // rows
    batch = (program % B).to(tl.int64)
    part = program // B

    start = batch * C + part * share
    stop = batch * C + tl.minimum((part + 1) * share, C)
    acc = _products(g, x, start, stop, top, left, h, w, K, S, R, BJ, BW, ACC)

    pixels = (S * S) * h.to(tl.int64) * w
    j = tl.arange(0, BJ)
    column = S * left + tl.arange(0, S * BW)
    mask = (j < K)[:, None] & (column < S * w)[None, :]
    to = out + (part * B + batch) * (K * K) * pixels
    to += j[:, None] * pixels + column[None, :]
    for r in tl.static_range(R):
        y = S * top + r
        for i in tl.static_range(K):
            tl.store(
                to + (i * K) * pixels + y.to(tl.int64) * (S * w),
                _pixels(acc, r * S * K + i, K, S).to(out.dtype.element_ty),
                mask=mask & (y < S * h),
            )


@triton.jit
def _scatter_row(
    given,
    taps,
    acc,
    column,
    u,
    top,
    h,
    w,
    ONLY: tl.constexpr,
    K: tl.constexpr,
    S: tl.constexpr,
    R: tl.constexpr,
    BC: tl.constexpr,
    BW: tl.constexpr,
    ACC: tl.constexpr,
):
    """Collect the u-th row of the map, for all of the R rows or as ONLY."""
    pixels = (S * S) * h.to(tl.int64) * w
    y = top + (u - (K - 1))
    inside = (y >= 0) & (y < h)
    for q in range(S):
        row = (S * y + q).to(tl.int64) * (S * w)
        for j in tl.static_range(K):
            mask = inside & (column >= j) & (column < w + j)
            many = tl.broadcast_to(mask[None, :], (BC, BW))
            value = _load(given + row - S * j, many, S, ACC)
            new = ()
            for r in tl.static_range(R):
                # Tap i = r + K - 1 - u.
                if ONLY < 0 or (ONLY - r >= 0 and ONLY - r < K):
                    at = row + ((r + K - 1 - u) * K + j) * pixels - S * j
                    tap = _load(taps + at, mask, S, ACC)
                    total = acc[r]
                    for p in tl.static_range(S):
                        total += value[p] * tap[p][None, :]
                    new = new + (total,)
                else:
                    new = new + (acc[r],)
            acc = new
    return acc


@triton.jit(do_not_specialize=['C', 'h', 'w', 'blocks', 'columns', 'rows'])
def scatter_kernel(
    g,
    kernel,
    out,
    C,
    h,
    w,
    blocks,
    columns,
    rows,
    K: tl.constexpr,
    S: tl.constexpr,
    R: tl.constexpr,
    BC: tl.constexpr,
    BW: tl.constexpr,
    ACC: tl.constexpr,
):
    """BC channels of R rows of cells of the padded source, BW wide.

    Each cell collects what the pixels that read it give: cell (Y, X) through
    tap (i, j) those of the cell (Y - i, X - j) of the map.
    """
    program = tl.program_id(0)
    first = (program % blocks) * BC
    program = program // blocks
    left = (program % columns) * BW
    program = program // columns
    top = (program % rows) * R
    batch = (program // rows).to(tl.int64)

    pitch = w + (K - 1)
    plane = (h + (K - 1)).to(tl.int64) * pitch
    pixels = (S * S) * h.to(tl.int64) * w
    channel = tl.minimum(first + tl.arange(0, BC), C - 1)
    column = left + tl.arange(0, BW)
    given = g + (batch * C + channel)[:, None] * pixels + S * column[None, :]
    taps = kernel + batch * (K * K) * pixels + S * column

    acc = _zeros(R, BC, BW, ACC)
    # The first rows and the last are of use to some of the R rows only.
    for u in tl.static_range(R - 1):
        acc = _scatter_row(
            given, taps, acc, column, u, top, h, w, u, K, S, R, BC, BW, ACC
        )
    for u in range(R - 1, K):
        acc = _scatter_row(
            given, taps, acc, column, u, top, h, w, -1, K, S, R, BC, BW, ACC
        )
    for u in tl.static_range(K, K + R - 1):
        acc = _scatter_row(
            given, taps, acc, column, u, top, h, w, u, K, S, R, BC, BW, ACC
        )

    channel = first + tl.arange(0, BC)
    mask = (channel < C)[:, None] & (column < pitch)[None, :]
    to = out + (batch * C + channel)[:, None] * plane + column[None, :]
    for r in tl.static_range(R):
        y = top + r
        tl.store(
            to + y.to(tl.int64) * pitch,
            acc[r].to(out.dtype.element_ty),
            mask=mask & (y < h + (K - 1)),
        )


@triton.jit(do_not_specialize=['D', 'h', 'w', 'columns', 'rows'])
def range_kernel(
    query,
    keys,
    temperature,
    gaussian,
    out,
    D,
    h,
    w,
    columns,
    rows,
    EPS: tl.constexpr,
    K: tl.constexpr,
    R: tl.constexpr,
    BJ: tl.constexpr,
    BW: tl.constexpr,
    ACC: tl.constexpr,
):
    """Dot products, softmax, Gaussian and its sum for R x BW pixels."""
    program = tl.program_id(0)
    left = (program % columns) * BW
    program = program // columns
    top = (program % rows) * R
    batch = (program // rows).to(tl.int64)

    start = batch * D
    acc = _products(
        query, keys, start, start + D, top, left, h, w, K, 1, R, BJ, BW, ACC
    )

    heat = tl.load(temperature).to(ACC)
    least = tl.full((1, 1), EPS, ACC)
    pixels = h.to(tl.int64) * w
    j = tl.arange(0, BJ)
    column = left + tl.arange(0, BW)
    real = (j < K)[:, None]
    mask = real & (column < w)[None, :]
    to = out + batch * (K * K) * pixels
    to += j[:, None] * pixels + column[None, :]
    for r in tl.static_range(R):
        peak = tl.full((BJ, BW), float('-inf'), ACC)
        for i in tl.static_range(K):
            logit = tl.where(real, heat * acc[r * K + i], peak)
            peak = tl.maximum(peak, logit)
        peak = tl.max(peak, axis=0)[None, :]
        weights = ()
        total = tl.zeros((BJ, BW), ACC)
        weighted = tl.zeros((BJ, BW), ACC)
        for i in tl.static_range(K):
            height = tl.load(gaussian + (i * K + j), mask=j < K, other=0)
            weight = tl.where(real, tl.exp(heat * acc[r * K + i] - peak), 0)
            total += weight
            weight *= height.to(ACC)[:, None]
            weighted += weight
            weights = weights + (weight,)
        total = tl.sum(total, axis=0)[None, :]
        share = tl.sum(weighted, axis=0)[None, :] / total
        norm = total * tl.maximum(share, least)
        y = top + r
        for i in tl.static_range(K):
            tl.store(
                to + (i * K) * pixels + y.to(tl.int64) * w,
                (weights[i] / norm).to(out.dtype.element_ty),
                mask=mask & (y < h),
            )


# Whether Triton was told to run them in its interpreter, on a CPU.
INTERPRETED = not isinstance(gather_kernel, triton.JITFunction)
