#!/usr/bin/env python3
"""Training steps and sampling of DALLE-pytorch on the CPU, for peer-dalle-pytorch.sh.

One run prints one line of "name value" pairs: median and least seconds of a step (or of a batch of pictures),
the peak of resident memory in MiB, parameters without those of the VAE.

The class DALLE needs neither the VQGAN code (taming-transformers) nor youtokentome, and the package imports the
first when it is loaded: an empty module of that name, made here, stands in for it.  The frozen DiscreteVAE has the
asked grid and codes but a single layer, so that decoding its pictures costs next to nothing.
"""
import argparse
import os
import resource
import statistics
import sys
import time
import types


def stub(name, **attributes):
    module = types.ModuleType(name)
    module.__dict__.update(attributes)
    sys.modules[name] = module


def options():
    p = argparse.ArgumentParser()
    p.add_argument("what", choices=["train", "sample"])
    for name, default in [("layers", 8), ("width", 512), ("heads", 8), ("text-length", 256), ("grid", 32),
                          ("text-vocab", 16384), ("image-vocab", 8192), ("batch", 4), ("updates", 3), ("threads", 0)]:
        p.add_argument("--" + name, type=int, default=default)
    p.add_argument("--precision", choices=["f32", "bf16"], default="f32")
    p.add_argument("--masked", action="store_true",
                   help="its optimize_for_inference: rows and columns as masked dense attention, which it can cache")
    return p.parse_args()


def attention_kinds(layers):
    """Row, column, row, row and again; the last convolutional, as in the paper."""
    return tuple("conv_like" if i == layers - 1 else "axial_col" if i % 4 == 1 else "axial_row" for i in range(layers))


def build(o):
    import torch
    stub("taming")
    stub("taming.models")
    stub("taming.models.vqgan", VQModel=None, GumbelVQ=None)
    from dalle_pytorch import DALLE, DiscreteVAE
    torch.manual_seed(1)
    vae = DiscreteVAE(image_size=2 * o.grid, num_layers=1, num_tokens=o.image_vocab, codebook_dim=64, hidden_dim=16)
    return DALLE(dim=o.width, vae=vae, num_text_tokens=o.text_vocab, text_seq_len=o.text_length, depth=o.layers,
                 heads=o.heads, dim_head=o.width // o.heads, reversible=False, attn_types=attention_kinds(o.layers),
                 optimize_for_inference=o.masked)


def clock(o):
    """As bench-dalle: of one thread its CPU time, so that other programs disturb less."""
    return time.process_time() if o.threads == 1 else time.perf_counter()


def train_steps(o, model):
    import torch
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-4, betas=(0.9, 0.96),
                                  weight_decay=0.045, fused=True)
    text = torch.randint(1, o.text_vocab, (o.batch, o.text_length))
    image = torch.randint(0, o.image_vocab, (o.batch, o.grid * o.grid))
    seconds = []
    for _ in range(o.updates + 1):
        start = clock(o)
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=o.precision == "bf16"):
            loss = model(text, image, return_loss=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 4.0)
        optimizer.step()
        seconds.append(clock(o) - start)
    return seconds[1:]


def sample_batches(o, model):
    import torch
    text = torch.randint(1, o.text_vocab, (o.batch, o.text_length))
    model.forward(text[:1])  # torch's first call is slow
    seconds = []
    for _ in range(o.updates):
        start = clock(o)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=o.precision == "bf16"):
            model.generate_images(text, use_cache=True)
        seconds.append(clock(o) - start)
    return seconds


def main():
    o = options()
    import torch
    if o.threads:
        torch.set_num_threads(o.threads)
    model = build(o)
    seconds = (train_steps if o.what == "train" else sample_batches)(o, model)
    parameters = sum(p.numel() for p in model.parameters() if p.requires_grad)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"median {statistics.median(seconds):.4f} least {min(seconds):.4f} mib {peak:.0f} parameters {parameters}")


main()
