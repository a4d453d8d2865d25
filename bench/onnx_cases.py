#!/usr/bin/env python3
"""Every case that ONNX has for its Attention operator (opset 23 to 25), as one clattn call each, against ONNX's own answers.

  pip install numpy onnx
  bench/onnx_cases.py build/clattn [forward's flags, such as --path host]

How an attribute or input of the operator becomes one of clattn's:
  3-D Q, K, V (batch, seq, heads * dim)  strides of the BSHD layout
  past_key, past_value                   rows before K and V in the cache, and query_offset = their number
  nonpad_kv_seqlen                       kv_length per batch entry; with is_causal or a window query_offset = that - n_q
  is_causal                              window_right = min(window_right, 0)
  left_window_size, right_window_size    mask.window_left, mask.window_right
  attn_mask, boolean / of numbers        mask.boolean / bias; shorter than the keys: kv_length
  scale, softcap                         scale, softcap
  qk_matmul_output                       clattn_scores: SCALED, CAPPED, MASKED, PROBS
"""
import subprocess, sys, tempfile, warnings
import numpy as np
import onnx
from onnx import numpy_helper
from onnx.backend.test.loader import load_model_tests


def heads(x, n):
    """[batch, seq, n * dim] -> [batch, n, seq, dim]"""
    return x if x.ndim == 4 else x.reshape(x.shape[0], x.shape[1], n, -1).transpose(0, 2, 1, 3)


def run(program, flags, node, inputs, folder):
    a = {x.name: onnx.helper.get_attribute_value(x) for x in node.attribute}
    t = {name: inputs[i] for name, i in zip(("q", "k", "v", "mask", "past_k", "past_v", "lengths"), node.input) if i}
    flat = t["q"].ndim == 3
    q, k, v = heads(t["q"], a.get("q_num_heads")), heads(t["k"], a.get("kv_num_heads")), heads(t["v"], a.get("kv_num_heads"))
    offset = 0
    if "past_k" in t:
        offset = t["past_k"].shape[2]
        k, v = np.concatenate((t["past_k"], k), 2), np.concatenate((t["past_v"], v), 2)
    files = {"--q": q, "--k": k, "--v": v}
    batch, n_kv = q.shape[0], k.shape[2]
    lengths = t["lengths"].astype(np.int64) if "lengths" in t else None
    left, right = a.get("left_window_size", -1), a.get("right_window_size", -1)
    if a.get("is_causal"):
        right = 0 if right < 0 else min(right, 0)
    words = ["--window", f"{left},{right}"]
    if lengths is not None:
        files["--kv-len"], files["--q-offset"] = lengths, lengths - q.shape[2]
    else:
        words += ["--q-offset", str(offset)]
    if "mask" in t:
        m = t["mask"]
        if m.shape[-1] < n_kv:
            short = np.full(batch, m.shape[-1], np.int64)
            files["--kv-len"] = short if lengths is None else np.minimum(lengths, short)
            m = np.concatenate((m, np.zeros(m.shape[:-1] + (n_kv - m.shape[-1],), m.dtype)), -1)
        files["--mask" if m.dtype == bool else "--bias"] = m.reshape((1,) * (4 - m.ndim) + m.shape)
    if "scale" in a:
        words += ["--scale", str(a["scale"])]
    if a.get("softcap"):
        words += ["--softcap", str(a["softcap"])]
    if q.dtype not in (np.float16, np.float32, np.float64):  # bfloat16, which .npy does not have
        words += ["--dtype", "bf16"]
        files = {flag: x if x.dtype.kind in "bi" else x.astype(np.float32) for flag, x in files.items()}
    for flag, x in files.items():
        path = f"{folder}/{flag[2:]}.npy"
        np.save(path, np.ascontiguousarray(x))
        words += [flag, path]
    done = subprocess.run([program, "forward", "-o", f"{folder}/o.npy"] + words + flags, capture_output=True, text=True)
    if done.returncode:
        return done.stderr.strip()
    o = np.load(f"{folder}/o.npy")
    return o.transpose(0, 2, 1, 3).reshape(o.shape[0], o.shape[2], -1) if flat else o


def main():
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    warnings.simplefilter("ignore")  # other operators' cases divide by zero
    good = bad = 0
    for case in load_model_tests(kind="node"):
        if not case.name.startswith("test_attention_") or case.name.endswith("_expanded"):
            continue
        model = case.model or onnx.load(f"{case.model_dir}/model.onnx")
        node = model.graph.node[0]
        for data in case.data_sets or []:
            names = [i.name for i in model.graph.input]
            arrays = [x if isinstance(x, np.ndarray) else numpy_helper.to_array(x) for x in data[0]]
            want = np.asarray(data[1][0], np.float64)
            with tempfile.TemporaryDirectory() as folder:
                o = run(sys.argv[1], sys.argv[2:], node, dict(zip(names, arrays)), folder)
            if isinstance(o, str):
                error, ok = o, False
            else:
                error = np.abs(o.astype(np.float64) - want).max()
                ok = error <= {"float32": 1e-5, "float16": 1e-3, "bfloat16": 8e-3}[arrays[0].dtype.name]
            good, bad = good + ok, bad + (not ok)
            if not ok:
                print(f"{case.name}: {error}")
    print(f"{good} cases right, {bad} wrong")
    sys.exit(bad > 0)


main()
