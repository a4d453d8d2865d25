#!/usr/bin/env python3
"""The error of clattn's paths and of PyTorch against float64, on the same inputs.

  pip install numpy torch
  bench/accuracy.py build/clattn                      1x4x1024, head_dim 64, causal; prints a table in Markdown
  bench/accuracy.py build/clattn --pass backward      the same for dQ, dK and dV
  bench/accuracy.py build/clattn --pass backward --data tests/data/minilm/l0_    with Q, K, V of l0_q.npy, l0_k.npy, l0_v.npy

Inputs: N(0,1); forward: the same with Q times 30 (scores of some hundreds); N(0,1) with one key and one query times 100.
A cell is the maximum and the RMS of |O - float64's O|, of the inputs as the storage type has rounded them; backward, of
|dQ - float64's|, and so on, dO N(0,1) too.
"""
import argparse, os, subprocess, tempfile
import numpy as np
import torch

B, H, N, D = 1, 4, 1024, 64
PATHS = {"host": ["--path", "host"], "device, attn_fwd_lanes": ["--kernel", "attn_fwd_lanes"],
         "device, attn_fwd": ["--kernel", "attn_fwd"]}
BACKWARD_PATHS = {"host": ["--path", "host"], "device, attn_bwd_lanes": ["--kernel", "attn_bwd_lanes"],
                  "device, attn_bwd": ["--kernel", "attn_bwd"]}
TYPES = {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}
TORCH = "torch " + torch.__version__.split("+")[0]


def normal(seed, shape=(B, H, N, D)):
    return torch.from_numpy(np.random.default_rng(seed).standard_normal(shape))


def inputs(case):
    q, k, v = (normal(s) for s in (1, 2, 3))
    if case == "q times 30":
        q = q * 30
    if case == "one outlier key and query":
        q[:, :, 700], k[:, :, 300] = q[:, :, 700] * 100, k[:, :, 300] * 100
    return q, k, v


def float64(q, k, v):
    n = q.shape[-2]
    s = (q @ k.transpose(-1, -2)) / q.shape[-1] ** 0.5
    s = s.masked_fill(torch.ones(n, n).triu(1).bool(), -torch.inf)
    return torch.softmax(s, -1) @ v


def sdpa(q, k, v):
    return torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)


def gradients(attention, q, k, v, d_o):
    leaves = [x.detach().clone().requires_grad_() for x in (q, k, v)]
    attention(*leaves).backward(d_o)
    return [x.grad for x in leaves]


def clattn(program, command, flags, dtype, given, wanted):
    """Runs a command on tensors, given by flag, and returns those that come out under the wanted flags."""
    with tempfile.TemporaryDirectory() as d:
        arguments = [program, command, "--causal", "--dtype", dtype] + flags
        for i, (flag, x) in enumerate(given.items()):
            np.save(f"{d}/in{i}.npy", x.to(torch.float16 if dtype == "f16" else torch.float32).numpy())
            arguments += [flag, f"{d}/in{i}.npy"]
        for i, flag in enumerate(wanted):
            arguments += [flag, f"{d}/out{i}.npy"]
        subprocess.run(arguments, check=True, env=dict(os.environ))
        return [torch.from_numpy(np.load(f"{d}/out{i}.npy")) for i in range(len(wanted))]


def cell(x, reference):
    e = (x.double() - reference).abs()
    return f"{e.max():.1e} / {e.square().mean().sqrt():.1e}"


def print_head(columns):
    print("| max / RMS | " + " | ".join(columns) + " |\n|" + "---|" * (len(columns) + 1))


def forward(program):
    cases = ["N(0,1)", "q times 30", "one outlier key and query"]
    print_head(cases)
    for dtype, storage in TYPES.items():
        rows = {}
        for case in cases:
            q, k, v = (x.to(storage) for x in inputs(case))
            reference = float64(q.double(), k.double(), v.double())
            rows.setdefault(TORCH, []).append(cell(sdpa(q, k, v), reference))
            for path, flags in PATHS.items():
                o, = clattn(program, "forward", flags, dtype, {"--q": q, "--k": k, "--v": v}, ["-o"])
                rows.setdefault(path, []).append(cell(o, reference))
        for name, cells in rows.items():
            print(f"| {dtype}, {name} | " + " | ".join(cells) + " |")


def backward(program, data):
    print_head(["dQ", "dK", "dV"])
    files = [torch.from_numpy(np.load(data + x + ".npy")) for x in "qkv"] if data else [normal(s) for s in (1, 2, 3)]
    for dtype, storage in TYPES.items():
        q, k, v, d_o = (x.to(storage) for x in files + [normal(4, files[0].shape)])
        reference = gradients(float64, *(x.double() for x in (q, k, v, d_o)))
        rows = {TORCH: gradients(sdpa, q, k, v, d_o)}
        for path, flags in BACKWARD_PATHS.items():
            given = {"--q": q, "--k": k, "--v": v, "--do": d_o}
            rows[path] = clattn(program, "backward", flags, dtype, given, ["--dq", "--dk", "--dv"])
        for name, results in rows.items():
            print(f"| {dtype}, {name} | " + " | ".join(map(cell, results, reference)) + " |")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("program")
    parser.add_argument("--pass", dest="which", choices=["forward", "backward"], default="forward")
    parser.add_argument("--data", metavar="PREFIX", help="backward: Q, K and V from files")
    arguments = parser.parse_args()
    if arguments.which == "backward":
        backward(arguments.program, arguments.data)
    else:
        forward(arguments.program)
