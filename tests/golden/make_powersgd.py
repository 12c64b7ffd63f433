#!/usr/bin/env python3
"""Golden values of PowerSGD, by numpy in f32: python3 make_powersgd.py > powersgd.safetensors

Written from the recipe's description alone (E.2): three ranks as a list, matrices transposed where they are taller than
wide, numpy's QR (LAPACK's Householder reflections) for the columns of P.  Matrix 0 is (13, 33), 1 is (40, 12), 6 to 8 are the
parts of one row of (27, 11), each (9, 11) by itself; gradients of matrix 0 are so small that eps counts.  The file holds
"MATRIX.q", the fixed Q as the program keeps them, and for each update,
rank and matrix "UPDATE.RANK.MATRIX.g", the gradient, ".e", the error buffer after it, and, under rank 0, ".d", what comes in
the gradients' place.
"""
import json
import struct
import sys

import numpy as np

RANKS, UPDATES, R, EPS = 3, 2, 3, np.float32(1e-6)
rng = np.random.RandomState(11)
tensors = {}


def normal(*shape):
    return rng.randn(*shape).astype(np.float32)


def update(errors, gradients, q):
    """All ranks' errors (a, b), a <= b, and gradients; the new errors and D."""
    errors = [e + g for e, g in zip(errors, gradients)]
    p = sum(e @ q for e in errors) + EPS * np.eye(len(errors[0]), R, dtype=np.float32)
    p, _ = np.linalg.qr(p)
    d = p @ sum(e.T @ p for e in errors).T
    return [e - d / np.float32(RANKS) for e in errors], d


for k, rows, cols in [(0, 13, 33), (1, 40, 12), (6, 9, 11), (7, 9, 11), (8, 9, 11)]:
    turn = (lambda x: x.T) if rows > cols else (lambda x: x)
    q = normal(max(rows, cols), R)
    tensors[f'{k}.q'] = q if rows > cols else q.T
    errors = [turn(np.zeros((rows, cols), np.float32))] * RANKS
    for u in range(UPDATES):
        shared = normal(rows, cols)
        gradients = [np.float32(2e-6 if k == 0 else 0.1) * (shared + normal(rows, cols)) for _ in range(RANKS)]
        errors, d = update(errors, [turn(g) for g in gradients], q)
        tensors[f'{u}.0.{k}.d'] = turn(d)
        for r in range(RANKS):
            tensors[f'{u}.{r}.{k}.g'] = gradients[r]
            tensors[f'{u}.{r}.{k}.e'] = turn(errors[r])

header, data = {}, b''
for name in sorted(tensors):
    x = np.ascontiguousarray(tensors[name])
    assert x.dtype == np.float32
    header[name] = {'dtype': 'F32', 'shape': list(x.shape), 'data_offsets': [len(data), len(data) + x.nbytes]}
    data += x.tobytes()
text = json.dumps(header).encode()
text += b' ' * (-len(text) % 8)
sys.stdout.buffer.write(struct.pack('<Q', len(text)) + text + data)
