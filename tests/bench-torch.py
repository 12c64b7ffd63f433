"""bench-torch.py - PyTorch's rates for what bench-cuda.sh measures: products, attention, an update of a transformer of 1.2b's
size, one step of decoding, the encoder of the paper's dVAE.  Each row is tried by itself."""

import sys
import time

try:
    import torch
    import torch.nn.functional as F
    from torch import nn
except ImportError:
    sys.exit("  not measured: python3 has no torch")
if not torch.cuda.is_available():
    sys.exit("  not measured: torch sees no GPU")

device, dtype = "cuda", torch.bfloat16


def seconds(run, calls=20, rounds=3):
    best = 1e30
    run()
    for _ in range(rounds):
        torch.cuda.synchronize()
        start = time.perf_counter()
        for _ in range(calls):
            run()
        torch.cuda.synchronize()
        best = min(best, (time.perf_counter() - start) / calls)
    return best


def rand(*shape, grad=False):
    return torch.randn(*shape, device=device, dtype=dtype, requires_grad=grad)


def product():
    x, w = rand(8192, 8192), rand(8192, 8192)
    t = seconds(lambda: x @ w.t())
    print(f"  product of 8192 x 8192 x 8192 {2e-12 * 8192**3 / t:10.1f} TFLOP/s")
    x, w, b = rand(10240, 2048), rand(8192, 2048), rand(8192)
    t = seconds(lambda: F.linear(x, w, b))
    print(f"  10240 x 2048 -> 8192, bias    {2e-12 * 10240 * 2048 * 8192 / t:10.1f} TFLOP/s")


def attention(name, mask=None):
    q, k, v = (rand(8, 32, 1280, 64, grad=True) for _ in range(3))
    g = rand(8, 32, 1280, 64)
    kind = {"is_causal": True} if mask is None else {"attn_mask": mask}

    def forward():
        return F.scaled_dot_product_attention(q, k, v, **kind)

    pairs = 1280 * 1281 / 2 if mask is None else int(mask.sum())
    flops = 4e-12 * 8 * 32 * 64 * pairs
    f, b = seconds(forward), seconds(lambda: forward().backward(g))
    print(f"  attention, {name:<17} forward {1e3 * f:7.3f} ms {flops / f:6.1f} TFLOP/s, "
          f"with backward {1e3 * b:7.3f} ms {3.5 * flops / b:6.1f} TFLOP/s")


def row_mask():
    i = torch.arange(1280, device=device)
    q, k = i[:, None], i[None, :]
    return (k <= q) & ((k < 256) | (q - k <= 32))


class Block(nn.Module):
    def __init__(self, width, heads):
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x):
        B, S, C = x.shape
        q, k, v = self.qkv(self.norm1(x)).view(B, S, 3, self.heads, C // self.heads).permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(y.transpose(1, 2).reshape(B, S, C))
        u = self.up(self.norm2(x))
        return x + self.down(u * torch.sigmoid(1.702 * u))


def training(batch=8, layers=24, width=2048, heads=32, vocabulary=8192):
    model = nn.Sequential(nn.Embedding(vocabulary, width), *(Block(width, heads) for _ in range(layers)),
                          nn.LayerNorm(width), nn.Linear(width, vocabulary)).to(device)
    adam = torch.optim.AdamW(model.parameters(), fused=True)
    ids = torch.randint(vocabulary, (batch, 1280), device=device)

    def update():
        with torch.autocast(device, dtype):
            logits = model(ids)
        F.cross_entropy(logits.view(-1, vocabulary).float(), ids.view(-1)).backward()
        adam.step()
        adam.zero_grad(set_to_none=True)

    t = seconds(update, calls=2)
    rows = batch * 1280
    flops = 6e-12 * rows * (12 * layers * width**2 + width * vocabulary) + 12e-12 * layers * width * batch * 1280 * 1281 / 2
    print(f"  update, {layers} layers of {width}, dense {rows / t:10.0f} tokens/s {flops / t:6.1f} TFLOP/s, autocast, fused AdamW")


def decoding(layers=24, width=2048, heads=32, kept=289):
    """A step of batch 1 in a CUDA graph; keys and values of `kept` states."""
    weights = [(rand(3 * width, width), rand(width, width), rand(4 * width, width), rand(width, 4 * width)) for _ in range(layers)]
    cache = rand(2, 1, heads, kept, width // heads)
    x, gain = rand(1, width), rand(width)

    def step():
        h = x
        for qkv, out, up, down in weights:
            q, k, v = F.linear(F.layer_norm(h, (width,), gain, gain), qkv).view(1, 3, heads, 1, width // heads).unbind(1)
            y = F.scaled_dot_product_attention(q, cache[0], cache[1]) + 0 * (k + v)
            h = h + F.linear(y.reshape(1, width), out)
            u = F.linear(F.layer_norm(h, (width,), gain, gain), up)
            h = h + F.linear(u * torch.sigmoid(1.702 * u), down)
        return h

    with torch.no_grad():
        side = torch.cuda.Stream()
        with torch.cuda.stream(side):
            step()
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            step()
        t = seconds(graph.replay)
    print(f"  decoding, batch 1             {1e3 * t:10.3f} ms/step, weights at {24e-9 * layers * width**2 / t:.0f} GB/s")


class Residual(nn.Module):
    def __init__(self, wide, out):
        super().__init__()
        hidden, widths = out // 4, []
        for a, b, k in ((wide, hidden, 3), (hidden, hidden, 3), (hidden, hidden, 3), (hidden, out, 1)):
            widths += [nn.ReLU(), nn.Conv2d(a, b, k, padding=k // 2)]
        self.path, self.skip = nn.Sequential(*widths), nn.Conv2d(wide, out, 1) if wide != out else nn.Identity()

    def forward(self, x):
        return self.skip(x) + self.path(x) / 64


def encoder(batch=64, base=256):
    parts, wide = [nn.Conv2d(3, base, 7, padding=3)], base
    for group in range(4):
        for _ in range(2):
            parts.append(Residual(wide, base << group))
            wide = base << group
        parts.append(nn.MaxPool2d(2) if group < 3 else nn.Identity())
    model = nn.Sequential(*parts, nn.ReLU(), nn.Conv2d(wide, 8192, 1)).to(device, dtype).to(memory_format=torch.channels_last)
    x = rand(batch, 3, 256, 256).to(memory_format=torch.channels_last)
    with torch.no_grad():
        t = seconds(lambda: model(x).argmax(1), calls=3)
    print(f"  dVAE encoder, 256 x 256       {batch / t:10.0f} pictures/s")


for name, run in (("product", product), ("attention", lambda: attention("dense")),
                  ("attention", lambda: attention("row, as a mask", row_mask())), ("training", training),
                  ("decoding", decoding), ("encoder", encoder)):
    try:
        run()
    except Exception as e:  # the next row may still work
        print(f"  {name}: not measured: {str(e).splitlines()[0] if str(e) else type(e).__name__}")
    torch.cuda.empty_cache()
