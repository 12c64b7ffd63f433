#!/usr/bin/env python3
"""Golden data for tests/test-clip.c: a tiny CLIP written from the paper's description in PyTorch, with random weights,
one batch, its vectors, its loss and every gradient.  Beside each gradient ("auto.NAME") stands the relative error of
PyTorch's own bf16 autocast, the yardstick for our bf16: the loss is a difference of near vectors, which magnifies
roundings.  Needs torch; writes clip.safetensors beside itself.

    python3 tests/golden/make_clip.py
"""
import json
import math
import os
import struct

import torch
import torch.nn.functional as F

SIZE, PATCH, WIDTH, LAYERS, HEADS, CONTEXT, VOCAB, EMBED, BATCH = 8, 4, 16, 2, 2, 7, 14, 12, 5
torch.manual_seed(1)
P = {}


def weight(name, *shape, std=0.2, mean=0.0):
    # bf16 values, so that both sides start from the same numbers in every format
    P[name] = (torch.randn(*shape) * std + mean).bfloat16().float().requires_grad_(True)
    return P[name]


def declare():
    weight("visual.conv1.weight", WIDTH, 3, PATCH, PATCH)
    weight("visual.class_embedding", 1, WIDTH)
    weight("visual.positional_embedding", (SIZE // PATCH) ** 2 + 1, WIDTH)
    weight("token_embedding.weight", VOCAB, WIDTH)
    weight("positional_embedding", CONTEXT, WIDTH)
    for norm in "visual.ln_pre", "visual.ln_post", "ln_final":
        weight(norm + ".weight", WIDTH, mean=1.0)
        weight(norm + ".bias", WIDTH)
    for tower in "visual.blocks", "text.blocks":
        for i in range(LAYERS):
            b = f"{tower}.{i}."
            for norm in "norm1", "norm2":
                weight(b + norm + ".weight", WIDTH, mean=1.0)
                weight(b + norm + ".bias", WIDTH)
            for name, out, inn in (("attn.qkv", 3 * WIDTH, WIDTH), ("attn.out", WIDTH, WIDTH), ("mlp.up", 4 * WIDTH, WIDTH),
                                   ("mlp.down", WIDTH, 4 * WIDTH)):
                weight(b + name + ".weight", out, inn)
                weight(b + name + ".bias", out)
    weight("visual.proj.weight", EMBED, WIDTH)
    weight("text_projection.weight", EMBED, WIDTH)
    P["logit_scale"] = torch.tensor([math.log(1 / 0.07)], requires_grad=True)


def norm(x, name):
    return F.layer_norm(x, (WIDTH,), P[name + ".weight"], P[name + ".bias"], 1e-5)


def blocks(h, tower, causal):
    B, S, C = h.shape
    for i in range(LAYERS):
        b = f"{tower}.{i}."
        x = F.linear(norm(h, b + "norm1"), P[b + "attn.qkv.weight"], P[b + "attn.qkv.bias"])
        q, k, v = (t.view(B, S, HEADS, C // HEADS).transpose(1, 2) for t in x.split(C, dim=2))
        score = q @ k.transpose(2, 3) / math.sqrt(C // HEADS)
        if causal:
            score = score.masked_fill(torch.ones(S, S).triu(1).bool(), -math.inf)
        y = (score.softmax(-1) @ v).transpose(1, 2).reshape(B, S, C)
        h = h + F.linear(y, P[b + "attn.out.weight"], P[b + "attn.out.bias"])
        u = F.linear(norm(h, b + "norm2"), P[b + "mlp.up.weight"], P[b + "mlp.up.bias"])
        h = h + F.linear(u * torch.sigmoid(1.702 * u), P[b + "mlp.down.weight"], P[b + "mlp.down.bias"])
    return h


def image_vectors(rgb):
    mean = torch.tensor([0.48145466, 0.4578275, 0.40821073])
    dev = torch.tensor([0.26862954, 0.26130258, 0.27577711])
    x = ((rgb.float() / 255 - mean) / dev).permute(0, 3, 1, 2)
    x = F.conv2d(x, P["visual.conv1.weight"], stride=PATCH).flatten(2).transpose(1, 2)
    x = torch.cat([P["visual.class_embedding"].expand(BATCH, 1, WIDTH), x], 1) + P["visual.positional_embedding"]
    h = blocks(norm(x, "visual.ln_pre"), "visual.blocks", False)
    return F.normalize(F.linear(norm(h[:, 0], "visual.ln_post"), P["visual.proj.weight"]), dim=1)


def text_vectors(captions):
    ids, ends = torch.zeros(BATCH, CONTEXT, dtype=torch.long), []
    for i, c in enumerate(captions):
        row = [VOCAB - 2] + c[:CONTEXT - 2] + [VOCAB - 1]
        ids[i, :len(row)] = torch.tensor(row)
        ends.append(len(row) - 1)
    h = blocks(P["token_embedding.weight"][ids] + P["positional_embedding"], "text.blocks", True)
    return F.normalize(F.linear(norm(h, "ln_final")[torch.arange(BATCH), ends], P["text_projection.weight"]), dim=1)


def contrastive(image, text, groups):
    logits = P["logit_scale"].exp() * image @ text.t()
    same = torch.tensor([[groups[i] == groups[j] and i != j for j in range(BATCH)] for i in range(BATCH)])
    logits = logits.masked_fill(same, -math.inf)
    target = torch.arange(BATCH)
    return (F.cross_entropy(logits, target) + F.cross_entropy(logits.t(), target)) / 2


def save(path, tensors):
    names = {torch.float32: "F32", torch.uint8: "U8"}
    header, data = {}, b""
    for name in sorted(tensors, key=lambda n: (tensors[n].dtype != torch.float32, n)):
        raw = tensors[name].detach().contiguous().numpy().tobytes()
        header[name] = {"dtype": names[tensors[name].dtype], "shape": list(tensors[name].shape),
                        "data_offsets": [len(data), len(data) + len(raw)]}
        data += raw
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as f:
        f.write(struct.pack("<Q", len(text)) + text + data)


declare()
rgb = torch.randint(0, 256, (BATCH, SIZE, SIZE, 3), dtype=torch.uint8)
captions = [[1, 2, 3], [4], [1, 2, 3], [5, 6, 7, 8, 9, 10, 11, 0], []]  # 0 and 2 are equal; 3 is cut
image, text = image_vectors(rgb), text_vectors(captions)
loss = contrastive(image, text, [0, 1, 0, 3, 4])
loss.backward()
out = dict(P)
exact = {n: t.grad.clone() for n, t in P.items()}
out.update({"grad." + n: g for n, g in exact.items()})
for t in P.values():
    t.grad = None
with torch.autocast("cpu", dtype=torch.bfloat16):
    rough_image, rough_text = image_vectors(rgb).float(), text_vectors(captions).float()
contrastive(rough_image, rough_text, [0, 1, 0, 3, 4]).backward()
out.update({"auto." + n: ((t.grad - exact[n]).norm() / exact[n].norm()).reshape(1) for n, t in P.items()})
out.update({"out.image": image, "out.text": text, "out.loss": loss.reshape(1), "in.rgb": rgb.float()})
save(os.path.join(os.path.dirname(os.path.abspath(__file__)), "clip.safetensors"), out)
print("loss %.6f" % loss.item())
