#!/usr/bin/env python3
"""Golden values of the discrete VAE, by an implementation that shares nothing with the C one: PyTorch's convolutions,
autograd, and the recipe's definitions.  Writes dvae-stem1.safetensors and dvae-stem2.safetensors beside this script:
the weights ("w." + name), the pictures ("rgb"), loss, distortion and kl ("loss"), the relaxed code ("z"), the decoder's
output ("out") and every gradient ("g." + name).  Beside each gradient ("auto." + name) stands the relative error of
PyTorch's own bf16 autocast, the yardstick for our bf16: an activation near 0 that falls on the other side of a ReLU moves
the gradient of a small layer by more than all roundings.  dvae-smooth1 and -smooth2 are points where none can: there bf16
is held to its bound tensor by tensor.  Run again only when the definition changes:
    python3 make_dvae.py          (torch 2.8 and numpy)
"""
import json
import math
import os
import struct

import numpy as np
import torch
import torch.nn.functional as F

torch.set_default_dtype(torch.float64)


def philox_unit(seed, index, step, purpose):
    """One uniform number: Philox4x32-10 of counter (index lo, index hi, step, purpose)."""
    mask = 0xFFFFFFFF
    c = [index & mask, index >> 32 & mask, step, purpose]
    k0, k1 = seed & mask, seed >> 32 & mask
    for _ in range(10):
        p0, p1 = 0xD2511F53 * c[0], 0xCD9E8D57 * c[2]
        c = [(p1 >> 32) ^ c[1] ^ k0, p1 & mask, (p0 >> 32) ^ c[3] ^ k1, p0 & mask]
        k0, k1 = (k0 + 0x9E3779B9) & mask, (k1 + 0xBB67AE85) & mask
    return ((c[0] >> 9) + 0.5) / 8388608.0


def relative_to_rms(gap, z):
    """The smallest of gap, in units of z's root mean square."""
    return (gap.abs().min() / z.square().mean().sqrt()).item()


class Model:
    def __init__(self, size, stem, hidden, initial, groups, blocks, codes, kernel, gain, seed):
        self.__dict__.update(locals())
        self.rng = np.random.default_rng(seed)
        self.p, self.dtype = {}, torch.float64
        self.settling, self.margin = False, math.inf  # see away_from_kinks()

    def settle(self, bias, z, kinks=0.0, gain=1.0):
        """While settling: z of (n, channels, H, W), with gain * bias in it, after the bias was moved so that the channel's
        kinks lie in the widest gap of the middle half of its values."""
        if not self.settling:
            return z
        b = self.p[bias].detach().clone()
        for c in range(z.shape[1]):
            v = (z - kinks)[:, c].flatten().sort().values
            v = v[len(v) // 4:len(v) - len(v) // 4]
            k = (v[1:] - v[:-1]).argmax()
            b[c] -= (v[k] + v[k + 1]) / 2 / gain
        b = b.bfloat16().double()
        z = z + gain * (b[:z.shape[1]] - self.p[bias][:z.shape[1]]).reshape(1, -1, 1, 1)
        self.p[bias] = b.requires_grad_()
        self.margin = min(self.margin, relative_to_rms(z - kinks, z))
        return z

    def pool(self, h):
        if self.settling:
            four = F.pixel_unshuffle(h, 2).reshape(len(h), h.shape[1], 4, -1).sort(2).values
            self.margin = min(self.margin, relative_to_rms(four[:, :, 3] - four[:, :, 2], h))
        return F.max_pool2d(h, 2)

    def away_from_kinks(self, rgb, *pass_):
        """Choose the biases so that no ReLU, maximum or absolute value of this pass is near the point where its gradient
        jumps; margin says how near the nearest is."""
        self.settling = True
        with torch.no_grad():
            forward(self, rgb, *pass_)
        self.settling = False

    def conv(self, name, x, out, k):
        n_in = x.shape[1]
        if name + ".w" not in self.p:
            w = self.rng.normal(0, 1 / math.sqrt(n_in * k * k), (out, n_in, k, k))
            b = self.rng.normal(0, 0.2, out)
            for suffix, v in ((".w", w), (".b", b)):
                # bf16 values, so that both sides start from the same numbers in every format
                self.p[name + suffix] = torch.tensor(v).bfloat16().double().requires_grad_()
        return F.conv2d(x, self.p[name + ".w"], self.p[name + ".b"], padding=k // 2)

    def block(self, name, x, out, kernels):
        y = x
        for i, k in enumerate(kernels):
            y = self.conv(f"{name}.res_path.conv_{i + 1}", F.relu(y), out // 4 if i < 3 else out, k)
            if i < 3:
                y = self.settle(f"{name}.res_path.conv_{i + 1}.b", y)
        same = x if x.shape[1] == out else self.conv(f"{name}.id_path", x, out, 1)
        return self.settle(f"{name}.res_path.conv_4.b", same + self.gain * y, gain=self.gain)

    def encode(self, x):
        h = self.conv("encoder.blocks.input", F.pixel_unshuffle(x, self.stem), self.hidden, self.kernel)
        h = self.settle("encoder.blocks.input.b", h)
        for g in range(self.groups):
            for b in range(self.blocks):
                h = self.block(f"encoder.blocks.group_{g + 1}.block_{b + 1}", h, self.hidden * 2**g, (3, 3, 3, 1))
            if g + 1 < self.groups:
                h = self.pool(h)
        return self.conv("encoder.blocks.output.conv", F.relu(h), self.codes, 1)

    def decode(self, z):
        h = self.settle("decoder.blocks.input.b", self.conv("decoder.blocks.input", z, self.initial, 1))
        for g in range(self.groups):
            for b in range(self.blocks):
                width = self.hidden * 2 ** (self.groups - 1 - g)
                h = self.block(f"decoder.blocks.group_{g + 1}.block_{b + 1}", h, width, (1, 3, 3, 3))
            if g + 1 < self.groups:
                h = F.interpolate(h, scale_factor=2, mode="nearest")
        return F.pixel_shuffle(self.conv("decoder.blocks.output.conv", F.relu(h), 6 * self.stem**2, 1), self.stem)


def write(path, tensors):
    table, data = {}, b""
    for name, v in tensors.items():
        raw = np.ascontiguousarray(v, dtype="<f4").tobytes()
        table[name] = {"dtype": "F32", "shape": list(v.shape), "data_offsets": [len(data), len(data) + len(raw)]}
        data += raw
    head = json.dumps(table).encode()
    head += b" " * (-len(head) % 8)
    with open(path, "wb") as f:
        f.write(struct.pack("<Q", len(head)) + head + data)


def forward(m, rgb, tau, beta, step):
    """The loss and what it consists of, in the type of m's parameters but for the f32 ends that autocast leaves."""
    S, K, n = m.size, m.codes, len(rgb)
    x = torch.tensor(rgb.transpose(0, 3, 1, 2) * (0.8 / 255) + 0.1, dtype=m.dtype)
    logits = m.encode(x).to(m.dtype)
    rows = logits.permute(0, 2, 3, 1).reshape(-1, K)
    u = np.array([philox_unit(m.seed, i, step, 2) for i in range(rows.numel())]).reshape(rows.shape)
    z = F.softmax((rows - torch.log(-torch.log(torch.tensor(u, dtype=m.dtype)))) / tau, dim=1)
    G = logits.shape[2]
    out = m.decode(z.reshape(n, G, G, K).permute(0, 3, 1, 2)).to(m.dtype)
    mu, ln_b = m.settle("decoder.blocks.output.conv.b", out[:, :3], kinks=torch.logit(x)), out[:, 3:]
    ln_f = -math.log(2) - ln_b - torch.log(x) - torch.log(1 - x) - (torch.logit(x) - mu).abs() / torch.exp(ln_b)
    q = F.softmax(rows, dim=1)
    kl = (q * (torch.log(q) + math.log(K))).sum(1).mean()
    distortion = -ln_f.mean()
    return distortion + beta * G * G / (3 * S * S) * kl, distortion, kl, z, out


def autocast_gradients(m, rgb, *pass_):
    """Gradients of the same parameters by PyTorch's bf16 autocast."""
    exact, m.dtype = m.p, torch.float32
    m.p = {name: v.detach().float().requires_grad_() for name, v in exact.items()}
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = forward(m, rgb, *pass_)[0]
    loss.backward()
    rough, m.p, m.dtype = m.p, exact, torch.float64
    return {name: v.grad.double() for name, v in rough.items()}


def make(path, n, tau, beta, seed, step, margin=0, **config):
    m = Model(seed=seed, **config)
    rgb = m.rng.integers(0, 256, (n, m.size, m.size, 3))
    if margin:
        m.away_from_kinks(rgb, tau, beta, step)
        assert m.margin > margin, f"{path}: {m.margin} from a kink, take another seed"
    loss, distortion, kl, z, out = forward(m, rgb, tau, beta, step)
    loss.backward()
    tensors = {"rgb": rgb, "loss": np.array([loss.item(), distortion.item(), kl.item()]), "z": z.detach().numpy(),
               "out": out.detach().permute(0, 2, 3, 1).numpy()}
    rough = autocast_gradients(m, rgb, tau, beta, step)
    for name, v in m.p.items():
        tensors["w." + name] = v.detach().numpy()
        tensors["g." + name] = v.grad.numpy()
        tensors["auto." + name] = np.array([(rough[name] - v.grad).norm() / (v.grad.norm() or 1)])
    write(path, tensors)


if __name__ == "__main__":
    here = os.path.dirname(os.path.abspath(__file__))
    make(os.path.join(here, "dvae-stem1.safetensors"), n=2, tau=0.7, beta=6.6, seed=11, step=4, size=8, stem=1, hidden=8,
         initial=6, groups=2, blocks=2, codes=11, kernel=7, gain=1 / 16)
    make(os.path.join(here, "dvae-stem2.safetensors"), n=3, tau=0.5, beta=3.3, seed=12, step=5, size=16, stem=2, hidden=8,
         initial=5, groups=3, blocks=1, codes=13, kernel=3, gain=0.4)
    # Seeds with a wide margin: bf16 rounds by 2^-9.
    make(os.path.join(here, "dvae-smooth1.safetensors"), n=2, tau=0.7, beta=6.6, seed=47, step=4, margin=0.012, size=8, stem=1,
         hidden=8, initial=6, groups=2, blocks=2, codes=11, kernel=7, gain=0.25)
    make(os.path.join(here, "dvae-smooth2.safetensors"), n=2, tau=0.7, beta=6.6, seed=91, step=4, margin=0.025, size=8, stem=2,
         hidden=8, initial=5, groups=2, blocks=1, codes=13, kernel=3, gain=0.4)
