#!/usr/bin/env python3
"""Writes tests/golden/safetensors.h: a small model file as the safetensors library (pip install safetensors
torch) writes it, for test-weights.c.  Usage: make_safetensors.py > safetensors.h"""
import torch
from safetensors.torch import save

values = torch.tensor([[0.0, -1.5, 3.25], [1e-3, 65504.0, -0.125]], dtype=torch.float64)
tensors = {
    "embed.weight": values.float(),
    "half": values.half(),
    "brain": values.bfloat16(),
    "double": values.double(),
    "ids": torch.tensor([-1, 7, 1 << 40]),
    "scalar": torch.tensor(2.5),
    "empty": torch.zeros(0, 4),
}
data = save(tensors, metadata={"format": "pt", "note": "caf\u00e9 \"quoted\""})
print("/* Made by make_safetensors.py with the safetensors library.  Do not edit. */")
print("static const unsigned char golden_safetensors[%d] = {" % len(data))
for i in range(0, len(data), 16):
    print("\t" + ", ".join("0x%02x" % b for b in data[i:i + 16]) + ",")
print("};")
