#!/usr/bin/env python3
"""Golden values of a tiny transformer, by PyTorch's autograd: python3 make_dalle.py > dalle.safetensors

Written from the paper's description alone (sequence layout, masks, pre-norm blocks, loss), in dense float64 with
explicit mask matrices, so that it shares no method with the C code: attention is a masked softmax over all pairs, and
gradients come from automatic differentiation.  The file holds the weights under the model's own names, every
gradient under "grad.", the batch under "in." and results under "out.", all as F32.
"""
import json
import struct
import sys

import numpy as np
import torch

NT, VT, W, HGT, VI, L, C, HEADS = 6, 11, 4, 3, 13, 3, 12, 3
S = NT + W * HGT
torch.set_default_dtype(torch.float64)
rng = np.random.RandomState(7)


def tensor(shape, std, mean=0.0):
    # bf16 values, so that both sides start from the same numbers in every format
    return torch.tensor(rng.randn(*shape) * std + mean).bfloat16().double().requires_grad_()


weights = {
    'text.embed.weight': tensor((VT + 1, C), 0.5), 'text.position.weight': tensor((NT, C), 0.3),
    'text.pad.weight': tensor((NT, C), 0.5), 'image.embed.weight': tensor((VI + 1, C), 0.5),
    'image.row.weight': tensor((HGT, C), 0.3), 'image.column.weight': tensor((W, C), 0.3),
    'norm.weight': tensor((C,), 0.2, 1), 'norm.bias': tensor((C,), 0.2),
    'text.head.weight': tensor((VT, C), 0.4), 'text.head.bias': tensor((VT,), 0.2),
    'image.head.weight': tensor((VI, C), 0.4), 'image.head.bias': tensor((VI,), 0.2),
}
for i in range(L):
    p = f'blocks.{i}.'
    for norm in 'norm1', 'norm2':
        weights[p + norm + '.weight'] = tensor((C,), 0.2, 1)
        weights[p + norm + '.bias'] = tensor((C,), 0.2)
    for name, out, inp in (('attn.qkv', 3 * C, C), ('attn.out', C, C), ('mlp.up', 4 * C, C), ('mlp.down', C, 4 * C)):
        weights[p + name + '.weight'] = tensor((out, inp), 0.35)
        weights[p + name + '.bias'] = tensor((out,), 0.1)

captions = [[3, 10, 0], [], [7, 7, 1, 2, 9]]  # empty, and of the greatest length
pictures = rng.randint(0, VI, (3, W * HGT))


def kind(layer):
    i = layer + 1  # the paper counts from 1
    if i == L:
        return 'conv'
    return 'column' if (i - 2) % 4 == 0 and i >= 2 else 'row'


def mask(name):
    m = torch.zeros(S, S, dtype=torch.bool)
    for q in range(S):
        for k in range(q + 1):
            if k < NT:
                m[q, k] = True
                continue
            dy, dx = (q - NT) // W - (k - NT) // W, (q - NT) % W - (k - NT) % W
            o = dy * W + dx
            if name == 'row':
                m[q, k] = o in range(W + 1)
            elif name == 'column':
                m[q, k] = dx == 0
            else:  # figure 11 (d): for W = 4, k = 3 these offsets
                m[q, k] = o in (0, 1, 3, 4, 5, 7)
    return m


def norm(x, p):
    mean = x.mean(-1, keepdim=True)
    var = ((x - mean) ** 2).mean(-1, keepdim=True)
    return (x - mean) / torch.sqrt(var + 1e-5) * weights[p + '.weight'] + weights[p + '.bias']


def linear(x, p):
    return x @ weights[p + '.weight'].T + weights[p + '.bias']


def embed(text, picture):
    rows = []
    for j in range(NT):
        if j > len(text):
            rows.append(weights['text.pad.weight'][j])
        else:
            token = VT if j == 0 else text[j - 1]
            rows.append(weights['text.embed.weight'][token] + weights['text.position.weight'][j])
    for p in range(W * HGT):
        token = VI if p == 0 else picture[p - 1]
        rows.append(weights['image.embed.weight'][token] + weights['image.row.weight'][p // W] +
                    weights['image.column.weight'][p % W])
    return torch.stack(rows)


def forward(text, picture):
    h = embed(text, picture)
    for i in range(L):
        p, m = f'blocks.{i}.', mask(kind(i))
        q, k, v = (t.reshape(S, HEADS, C // HEADS).transpose(0, 1) for t in linear(norm(h, p + 'norm1'), p + 'attn.qkv').split(C, -1))
        score = q @ k.transpose(1, 2) / (C // HEADS) ** 0.5
        a = torch.softmax(score.masked_fill(~m, -float('inf')), -1) @ v
        h = h + linear(a.transpose(0, 1).reshape(S, C), p + 'attn.out')
        u = linear(norm(h, p + 'norm2'), p + 'mlp.up')
        h = h + linear(u * torch.sigmoid(1.702 * u), p + 'mlp.down')
    return norm(h, 'norm')


text_nll, image_nll = [], []
for text, picture in zip(captions, pictures):
    h = forward(text, picture)
    logp = torch.log_softmax(linear(h[:NT], 'text.head'), -1)
    text_nll.append(-sum((logp[j, t] for j, t in enumerate(text)), torch.zeros(())))
    logp = torch.log_softmax(linear(h[NT:], 'image.head'), -1)
    image_nll.append(-sum(logp[j, t] for j, t in enumerate(picture)))
count = sum(len(t) for t in captions)
loss = sum(text_nll) / count / 8 + sum(image_nll) / (3 * W * HGT) * 7 / 8
loss.backward()

arrays = {name: t.detach().numpy() for name, t in weights.items()}
arrays.update({'grad.' + name: t.grad.numpy() for name, t in weights.items()})
arrays.update({f'in.text{i}': np.array(t) for i, t in enumerate(captions) if t})
arrays['in.image'] = pictures
arrays['out.text'] = np.array([t.item() for t in text_nll])
arrays['out.image'] = np.array([t.item() for t in image_nll])
arrays['out.loss'] = np.array([loss.item()])
header, data = {}, b''
for name, a in arrays.items():
    raw = a.astype('<f4').tobytes()
    header[name] = {'dtype': 'F32', 'shape': list(a.shape), 'data_offsets': [len(data), len(data) + len(raw)]}
    data += raw
text = json.dumps(header, separators=(',', ':')).encode()
text += b' ' * (-len(text) % 8)
sys.stdout.buffer.write(struct.pack('<Q', len(text)) + text + data)
