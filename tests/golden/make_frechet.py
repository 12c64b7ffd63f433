"""Writes frechet.h: Frechet distances and precision/recall of small sets by numpy and scipy (pip install numpy scipy),
for tests/test-frechet.c, which makes the same vectors.

    python3 tests/golden/make_frechet.py"""
import os

import numpy
import scipy.linalg

# name, width, records of each side, offset of all values, rank of the second side (0: full)
CASES = [("plain", 7, 60, 45, 0.0, 0), ("offset", 12, 200, 150, 1000.0, 0), ("singular", 9, 40, 40, 3.0, 4),
         ("few", 20, 12, 15, 0.0, 0), ("equal", 6, 50, 50, 0.0, -1), ("wide", 150, 400, 300, 1.0, 0), ("one", 1, 9, 8, 0.0, 0)]
K = 3
state = 5


def draw(n):
    """n numbers in [-1, 1), the same as the test's."""
    global state
    out = numpy.empty(n)
    for i in range(n):
        state = (state * 1664525 + 1013904223) & 0xFFFFFFFF
        out[i] = (state >> 8) / (1 << 23) - 1
    return out


def side(n, width, offset, spread, rank):
    """Correlated values: each is mixed with the one before; of rank r, columns repeat from r on."""
    x = draw(n * width).reshape(n, width)
    for j in range(1, width):
        x[:, j] = x[:, j - rank] if rank > 0 and j >= rank else 0.6 * x[:, j] + 0.4 * x[:, j - 1]
    return (offset + spread * x).astype(numpy.float32)


def distance(a, b):
    """The definition with a symmetric root; where nothing is singular, the library's root of the product agrees."""
    a, b = a.astype(numpy.float64), b.astype(numpy.float64)
    A, B = numpy.atleast_2d(numpy.cov(a, rowvar=False)), numpy.atleast_2d(numpy.cov(b, rowvar=False))
    values, vectors = scipy.linalg.eigh(A)
    half = vectors * numpy.sqrt(values.clip(0)) @ vectors.T
    root = numpy.sqrt(scipy.linalg.eigvalsh(half @ B @ half).clip(0)).sum()
    full = scipy.linalg.sqrtm(A @ B)
    if numpy.linalg.matrix_rank(A @ B) == len(A):
        assert abs(numpy.trace(full).real - root) < 1e-6 * (1 + root)
    d = a.mean(0) - b.mean(0)
    return d @ d + numpy.trace(A) + numpy.trace(B) - 2 * root


def covered(x, y):
    between = ((x[:, None].astype(float) - x[None].astype(float)) ** 2).sum(2)
    radius = numpy.sort(between, 1)[:, K]
    return (((x[:, None].astype(float) - y[None].astype(float)) ** 2).sum(2) <= radius[:, None]).any(0).mean()


here = os.path.dirname(os.path.abspath(__file__))
with open(os.path.join(here, "frechet.h"), "w") as f:
    f.write("/* Made by make_frechet.py with numpy and scipy.  Do not edit. */\n"
            "static const struct {\n\tconst char *name;\n\tint width, n, m;\n\tdouble offset;\n\tint rank;\n"
            "\tdouble distance, precision, recall;\n} cases[] = {\n")
    for name, width, n, m, offset, rank in CASES:
        a = side(n, width, offset, 1.0, 0)
        b = a if rank < 0 else side(m, width, offset + 0.1, 0.8, rank)
        f.write(f'\t{{"{name}", {width}, {n}, {m}, {offset}, {rank}, {distance(a, b):.12g}, {covered(a, b):.9g}, '
                f'{covered(b, a):.9g}}},\n')
    f.write("};\n")
