#!/usr/bin/env python3
"""Small files in the form of the published dVAE weights, and what the published package computes with them.

The package is DALL-E of PyPI (module dall_e): its own Encoder and Decoder, 4 groups of one block, 4 channels, 32 codes,
random weights and biases, saved whole by torch.save in both of its containers.  Writes into openai-dvae/ beside this
script:

    encoder.pkl, decoder-old.pkl     whole module objects, in the zip and in the old container
    decoder.pkl, encoder-old.pkl     the same halves the other way round; decoder.pkl is in channels_last order, so that
                                     the elements of its weights do not lie one after the other
    encoder-state.pkl                the encoder's state dictionary
    expected.safetensors             "rgb" (2, 32, 32, 3), "logits" (2, 4, 4, 32), "codes" (2, 4, 4), "out" (2, 32, 32, 6)
                                     and "picture" (2, 32, 32, 3) in [0, 1]: the codes decoded again
    codes-256.txt                    the 32 x 32 codes of the picture of 256 pixels that tests/cli/import.sh draws
    views.pt, views-old.pt           tensors of all types, as slices, transposed, shared, empty, nested; and
    views.safetensors                the same, element after element

Run again only when the definition changes (torch 1.13 of Debian's python3-torch, attrs, numpy, requests):
    pip download --no-deps DALL-E && unzip DALL_E-*.whl && PYTHONPATH=. python3 make_openai_dvae.py
"""
import json
import os
import struct

import attr
import numpy as np
import torch
import torch.nn.functional as F

attr.validators.set_disabled(True)  # they ask for at least 64 channels and 512 codes: too large to keep here
from dall_e import map_pixels, unmap_pixels
from dall_e.decoder import Decoder
from dall_e.encoder import Encoder

FOLDER = os.path.join(os.path.dirname(os.path.abspath(__file__)), "openai-dvae")


def no_sources(obj):
    raise OSError("old containers would hold the source text of each class")


torch.serialization.get_source_lines_and_file = no_sources


def path(name):
    return os.path.join(FOLDER, name)


def save(obj, name, old=False, protocol=2):
    torch.save(obj, path(name), pickle_protocol=protocol, _use_new_zipfile_serialization=not old)


TYPES = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16", torch.float64: "F64", torch.int64: "I64",
         torch.int32: "I32", torch.int16: "I16", torch.int8: "I8", torch.uint8: "U8", torch.bool: "BOOL"}


def write_safetensors(name, tensors):
    table, data = {}, b""
    for key, t in tensors.items():
        flat = t.detach().contiguous()
        raw = (flat.view(torch.int16) if t.dtype == torch.bfloat16 else flat).numpy().tobytes()
        table[key] = {"dtype": TYPES[t.dtype], "shape": list(t.shape), "data_offsets": [len(data), len(data) + len(raw)]}
        data += raw
    head = json.dumps(table).encode()
    head += b" " * (-len(head) % 8)
    with open(path(name), "wb") as f:
        f.write(struct.pack("<Q", len(head)) + head + data)


def halves():
    torch.manual_seed(1)
    encoder = Encoder(n_hid=4, n_blk_per_group=1, vocab_size=32)
    decoder = Decoder(n_init=6, n_hid=4, n_blk_per_group=1, vocab_size=32)
    with torch.no_grad():
        for half in encoder, decoder:
            half.requires_grad_(False)
            for name, p in half.named_parameters():
                if name.endswith(".b"):
                    p.normal_(std=0.2)
        # Each code as often likely as the others, or all would get the same one.
        encoder.blocks.output.conv.b -= encode(encoder, drawn_picture()).mean((0, 2, 3))
    return encoder, decoder


def drawn_picture():
    y, x, c = np.mgrid[0:256, 0:256, 0:3]
    v = 1 + (x * (c + 3) + y * (7 - 2 * c) + x * y // 64) % 120
    return torch.tensor(v[None].astype(np.float32))


def encode(encoder, rgb):
    return encoder(map_pixels(rgb.permute(0, 3, 1, 2) / 255))


def make_model():
    encoder, decoder = halves()
    save(encoder, "encoder.pkl")
    save(encoder, "encoder-old.pkl", old=True)
    save(encoder.state_dict(), "encoder-state.pkl", protocol=4)
    save(decoder, "decoder-old.pkl", old=True)
    save(decoder.to(memory_format=torch.channels_last), "decoder.pkl")
    rng = np.random.default_rng(7)
    tiles = rng.integers(0, 236, (2, 4, 4, 3)).repeat(8, 1).repeat(8, 2)  # a colour for each token, with noise
    rgb = torch.tensor((tiles + rng.integers(0, 20, (2, 32, 32, 3))).astype(np.float32))
    logits = encode(encoder, rgb)
    codes = logits.argmax(1)
    out = decoder(F.one_hot(codes, 32).permute(0, 3, 1, 2).float())
    picture = unmap_pixels(torch.sigmoid(out[:, :3]))
    write_safetensors("expected.safetensors", {
        "rgb": rgb, "logits": logits.permute(0, 2, 3, 1), "codes": codes.float(), "out": out.permute(0, 2, 3, 1),
        "picture": picture.permute(0, 2, 3, 1)})
    drawn = encode(encoder, drawn_picture())
    top = drawn.topk(2, 1).values
    print("distinct codes", len(drawn.argmax(1).unique()), len(codes.unique()), "least margin",
          float((top[:, 0] - top[:, 1]).min()))
    with open(path("codes-256.txt"), "w") as f:
        f.write(" ".join(str(int(v)) for v in drawn.argmax(1).flatten()) + "\n")


def make_views():
    torch.manual_seed(6)
    base = torch.randn(6, 5)
    numbers = torch.randint(-100, 100, (3, 4))
    tensors = {"plain": base, "transposed": base.t(), "slice": base[1:4, 1:5:2], "column": base[:, 2], "row": base[3],
               "scalar": torch.tensor(2.5), "empty": torch.empty(0, 4), "permuted": torch.randn(2, 3, 4).permute(2, 0, 1),
               "parameter": torch.nn.Parameter(torch.randn(3)), "bool": numbers > 0}
    for dtype in torch.float16, torch.bfloat16, torch.float64, torch.int64, torch.int32, torch.int16, torch.int8:
        tensors[TYPES[dtype].lower()] = numbers.to(dtype).t()
    tensors["u8"] = (numbers + 100).to(torch.uint8)
    inner = {"weight": torch.randn(2, 2), "steps": 7, "rate": 1e-3, "names": ["a", "b"], "more": {"bias": torch.randn(2)}}
    saved = dict(tensors, model=inner, epoch=3, note="a note", none=None)
    expected = dict(tensors)
    expected["model.weight"] = inner["weight"]
    expected["model.more.bias"] = inner["more"]["bias"]
    save(saved, "views.pt", protocol=4)
    save(saved, "views-old.pt", old=True)
    write_safetensors("views.safetensors", expected)


if __name__ == "__main__":
    os.makedirs(FOLDER, exist_ok=True)
    make_model()
    make_views()
