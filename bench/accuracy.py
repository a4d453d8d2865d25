#!/usr/bin/env python3
"""The error of clattn's paths and of PyTorch against float64, on the same inputs.

  pip install numpy torch
  bench/accuracy.py build/clattn              1x4x1024, head_dim 64, causal; prints a table in Markdown

Inputs: N(0,1); the same with Q times 30 (scores of some hundreds); N(0,1) with one key and one query times 100.
A cell is the maximum and the RMS of |O - float64's O|, of the inputs as the storage type has rounded them.
"""
import os, subprocess, sys, tempfile
import numpy as np
import torch

B, H, N, D = 1, 4, 1024, 64
PATHS = {"host": ["--path", "host"], "device, attn_fwd_lanes": ["--kernel", "attn_fwd_lanes"],
         "device, attn_fwd": ["--kernel", "attn_fwd"]}
TYPES = {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}


def inputs(case):
    q, k, v = (torch.from_numpy(np.random.default_rng(s).standard_normal((B, H, N, D))) for s in (1, 2, 3))
    if case == "q times 30":
        q = q * 30
    if case == "one outlier key and query":
        q[:, :, 700], k[:, :, 300] = q[:, :, 700] * 100, k[:, :, 300] * 100
    return q, k, v


def float64(q, k, v):
    s = (q @ k.transpose(-1, -2)) / D ** 0.5
    s = s.masked_fill(torch.ones(N, N).triu(1).bool(), -torch.inf)
    return torch.softmax(s, -1) @ v


def clattn(program, flags, dtype, q, k, v):
    with tempfile.TemporaryDirectory() as d:
        for name, x in (("q", q), ("k", k), ("v", v)):
            np.save(f"{d}/{name}.npy", x.to(torch.float16 if dtype == "f16" else torch.float32).numpy())
        subprocess.run([program, "forward", "--q", f"{d}/q.npy", "--k", f"{d}/k.npy", "--v", f"{d}/v.npy", "-o", f"{d}/o.npy",
                        "--causal", "--dtype", dtype] + flags, check=True, env=dict(os.environ))
        return torch.from_numpy(np.load(f"{d}/o.npy"))


def cell(o, reference):
    e = (o.double() - reference).abs()
    return f"{e.max():.1e} / {e.square().mean().sqrt():.1e}"


def main():
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    cases = ["N(0,1)", "q times 30", "one outlier key and query"]
    print("| max / RMS | " + " | ".join(cases) + " |\n|" + "---|" * (len(cases) + 1))
    for dtype, storage in TYPES.items():
        rows = {}
        for case in cases:
            q, k, v = (x.to(storage) for x in inputs(case))
            reference = float64(q.double(), k.double(), v.double())
            torch_o = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
            rows.setdefault("torch " + torch.__version__.split("+")[0], []).append(cell(torch_o, reference))
            for path, flags in PATHS.items():
                rows.setdefault(path, []).append(cell(clattn(sys.argv[1], flags, dtype, q, k, v), reference))
        for name, cells in rows.items():
            print(f"| {dtype}, {name} | " + " | ".join(cells) + " |")


main()
