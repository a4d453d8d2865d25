#!/usr/bin/env python3
"""clattn beside PyTorch, onnxruntime and OpenVINO, on this machine's processor, in one run.

  pip install numpy torch onnx onnxruntime openvino ml_dtypes         as many of them as there shall be
  bench/compare_peers.py build/clattn                                 every case and type; about half an hour
  bench/compare_peers.py build/clattn --cases 2048x64,2048x64-causal --dtypes f32 --paths host --rounds 5
  bench/compare_peers.py --list

All take turns, each call in a process of its own, --rounds times over. A row is the median of the rounds' medians: time, share
of the processor's f32 multiply-add peak (decode: of the bandwidth of reading memory, K and V walked in copies that no cache
holds), and clattn's speed over that of the fastest peer. Peak and bandwidth are what `clattn bench` measures beside its own
times, the best of the run. At the end stands the table in Markdown, with the machine and the versions.
"""
import argparse, importlib.metadata, importlib.util, itertools, json, os, platform, statistics, subprocess, sys, time

# name: batch, heads, kv heads, queries, keys, head_dim, causal, what is done
CASES = {}
for n, d in ((512, 64), (2048, 64), (2048, 128), (4096, 64), (1000, 80)):
    CASES[f"{n}x{d}"] = (1, 8, 8, n, n, d, False, "forward")
    CASES[f"{n}x{d}-causal"] = (1, 8, 8, n, n, d, True, "forward")
CASES |= {
    "gqa-1024x128-causal": (1, 32, 8, 1024, 1024, 128, True, "forward"),
    "37x1023": (1, 8, 8, 37, 1023, 64, False, "forward"),
    "small-16": (1, 1, 1, 16, 16, 32, False, "forward"),
    "small-64": (1, 4, 4, 64, 64, 64, False, "forward"),
    "small-128": (1, 8, 8, 128, 128, 64, False, "forward"),
    "small-128-causal": (1, 8, 8, 128, 128, 64, True, "forward"),
    "decode-4096": (1, 32, 8, 1, 4096, 128, False, "decode"),
    "decode-32768": (1, 32, 8, 1, 32768, 128, False, "decode"),
    "backward-1024x64": (1, 8, 8, 1024, 1024, 64, False, "backward"),
    "backward-1024x64-causal": (1, 8, 8, 1024, 1024, 64, True, "backward"),
}
SIZES = {"f32": 4, "f16": 2, "bf16": 2}
BEYOND_CACHES = 130e6  # bytes of K and V that decoding walks
MOST_COPIES = 12
LEAST_RUNS = 7


class NotOffered(Exception):
    """The peer has no such operator, type or pass."""


def problem_text(case, dtype):
    b, hq, hkv, q, kv, d, causal, _ = case
    return f"{dtype} b{b} hq{hq} hkv{hkv} q{q} kv{kv} d{d}" + (" causal" if causal else "")


def kv_bytes(case, dtype):
    b, _, hkv, _, kv, d, _, _ = case
    return 2 * b * hkv * kv * d * SIZES[dtype]


def work(case, dtype):
    """Operations as `clattn bench` counts them; for decode the bytes of K and V."""
    b, hq, _, q, kv, d, causal, kind = case
    pairs = sum(min(i + 1, kv) for i in range(q)) if causal else q * kv
    return kv_bytes(case, dtype) if kind == "decode" else 4 * b * hq * pairs * d * (2.5 if kind == "backward" else 1)


def arrays(case, seed):
    """Q [b, hq, q, d]; K, V [b, hkv, kv, d]; f32, N(0,1)."""
    import numpy as np
    b, hq, hkv, q, kv, d, _, _ = case
    normal = np.random.default_rng(seed).standard_normal
    return [normal(shape, dtype=np.float32) for shape in ((b, hq, q, d), (b, hkv, kv, d), (b, hkv, kv, d))]


# ---- peers: prepare(case, dtype, threads) gives one call on inputs of a seed; what does not change is prepared once


def torch_peer(case, dtype, threads):
    import torch
    torch.set_num_threads(threads)
    as_type = {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}[dtype]
    causal, kind = case[6:]

    def make(seed):
        q, k, v = (torch.from_numpy(x).to(as_type) for x in arrays(case, seed))
        if kind == "backward":
            d_o, aten = torch.randn_like(q), torch.ops.aten
            o, lse = aten._scaled_dot_product_flash_attention_for_cpu(q, k, v, 0.0, causal)
            return lambda: aten._scaled_dot_product_flash_attention_for_cpu_backward(d_o, q, k, v, o, lse, 0.0, causal)
        attention, grouped = torch.nn.functional.scaled_dot_product_attention, case[1] != case[2]

        @torch.inference_mode()
        def call():
            attention(q, k, v, is_causal=causal, enable_gqa=grouped)
        return call
    return make


def onnxruntime_peer(case, dtype, threads):
    """ONNX's Attention operator."""
    import numpy as np
    import onnxruntime as ort
    from onnx import TensorProto, helper
    causal, kind = case[6:]
    if kind == "backward" or dtype == "bf16":
        raise NotOffered("no backward" if kind == "backward" else "no bf16 on the processor")
    as_type, code = {"f32": (np.float32, TensorProto.FLOAT), "f16": (np.float16, TensorProto.FLOAT16)}[dtype]
    shapes = [x.shape for x in arrays(case, 0)]
    info = helper.make_tensor_value_info
    graph = helper.make_graph([helper.make_node("Attention", ["q", "k", "v"], ["o"], is_causal=int(causal))], "attention",
                              [info(name, code, shape) for name, shape in zip("qkv", shapes)], [info("o", code, shapes[0])])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)], ir_version=10)
    options = ort.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads, options.log_severity_level = threads, 1, 4
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])

    def make(seed):
        bound = session.io_binding()
        values = {n: ort.OrtValue.ortvalue_from_numpy(x.astype(as_type)) for n, x in zip("qkv", arrays(case, seed))}
        for name, value in values.items():
            bound.bind_ortvalue_input(name, value)
        o = ort.OrtValue.ortvalue_from_numpy(np.zeros(shapes[0], as_type))
        bound.bind_ortvalue_output("o", o)
        return lambda keep=(values, o): session.run_with_iobinding(bound)
    return make


def openvino_peer(case, dtype, threads):
    import numpy as np
    import openvino as ov
    from openvino import opset13 as ops
    b, hq, hkv, q, kv, d, causal, kind = case
    if kind != "forward" or dtype == "f16":
        raise NotOffered("no f16 on the processor" if kind == "forward" else f"no {kind} without a model around it")
    code = {"f32": ov.Type.f32, "bf16": ov.Type.bf16}[dtype]
    if dtype == "bf16":
        import ml_dtypes
    as_type = np.float32 if dtype == "f32" else ml_dtypes.bfloat16
    inputs = [ops.parameter(list(x.shape), code, name=name) for name, x in zip("qkv", arrays(case, 0))]

    def for_each_query_head(x):
        if hq == hkv:
            return x
        number = lambda values: ops.constant(values, dtype=np.int64)
        spread = ops.broadcast(ops.unsqueeze(x, number([2])), number([b, hkv, hq // hkv, kv, d]))
        return ops.reshape(spread, number([b, hq, kv, d]), False)
    node = ops.scaled_dot_product_attention(inputs[0], *map(for_each_query_head, inputs[1:]), causal=causal)
    settings = {"INFERENCE_PRECISION_HINT": dtype, "INFERENCE_NUM_THREADS": threads, "PERFORMANCE_HINT": "LATENCY",
                "NUM_STREAMS": 1}
    compiled = ov.Core().compile_model(ov.Model([node], inputs, "attention"), "CPU", settings)

    def make(seed):
        request, keep = compiled.create_infer_request(), []
        for i, x in enumerate(arrays(case, seed)):
            x = np.ascontiguousarray(x.astype(as_type))
            keep.append(x)
            request.set_input_tensor(
                i, ov.Tensor(x, shared_memory=True) if dtype == "f32" else ov.Tensor(x.view(np.uint16), x.shape, code))

        def call(keep=keep):
            request.start_async()
            request.wait()
        return call
    return make


PEERS = {"torch": torch_peer, "onnxruntime": onnxruntime_peer, "openvino": openvino_peer}


def time_peer(peer, case, dtype, threads, budget):
    """In a process of its own: one JSON object on stdout."""
    copies = min(MOST_COPIES, int(BEYOND_CACHES / kv_bytes(case, dtype)) + 1) if case[7] == "decode" else 1
    try:
        make = PEERS[peer](case, dtype, threads)
        calls = [make(seed) for seed in range(copies)]
        for call in calls:
            call()
    except Exception as e:  # whatever a peer says when it cannot
        lines = str(e).strip().splitlines()
        return print(json.dumps({"why": lines[-1][:160] if lines else type(e).__name__}), flush=True)
    turn, clock, times = itertools.cycle(calls), time.perf_counter, []

    def run(n):
        start = clock()
        for _ in range(n):
            next(turn)()
        return (clock() - start) / n
    one = run(1)
    inner = int(2e-3 / max(one, 1e-7)) if one < 1e-3 else 1
    start = clock()
    while clock() - start < budget / 4:
        run(1)
    start = clock()
    while len(times) < LEAST_RUNS or clock() - start < budget:
        times.append(run(inner))
    print(json.dumps({"median_s": statistics.median(times)}), flush=True)


# ---- one turn of each


def last_line(text):
    lines = text.strip().splitlines()
    return lines[-1] if lines else "it said nothing"


def run_peer(peer, name, dtype, a):
    done = subprocess.run([sys.executable, __file__, "--worker", peer, "--cases", name, "--dtypes", dtype, "--threads",
                           str(a.threads), "--budget", str(a.budget)], capture_output=True, text=True,
                          env=os.environ | {"OMP_NUM_THREADS": str(a.threads), "MKL_NUM_THREADS": str(a.threads)})
    objects = [line for line in done.stdout.splitlines() if line.startswith("{")]
    return json.loads(objects[-1]) if objects else {"why": last_line(done.stderr)[:160]}


def run_clattn(path, case, dtype, a):
    command = [a.clattn, "bench", problem_text(case, dtype), "--json", "--path", path, "--threads", str(a.threads), "--budget",
               str(a.budget)]
    command += ["--copies"]  # the peers' tensors are in host memory too
    command += {"decode": ["--cold"], "backward": ["--pass", "backward"]}.get(case[7], [])
    done = subprocess.run(command, capture_output=True, text=True)
    return {"why": last_line(done.stderr)[:160]} if done.returncode else json.loads(last_line(done.stdout))


def compare(name, dtype, peers, a, peaks, progress):
    """{contestant: seconds}, {contestant: why not}; raises the peaks that a turn of clattn has measured"""
    case, times, why = CASES[name], {}, {}
    turns = [(p, lambda p=p: run_peer(p, name, dtype, a)) for p in peers]
    turns += [(f"clattn {p}", lambda p=p: run_clattn(p, case, dtype, a)) for p in a.paths]
    for _ in range(a.rounds):
        for who, turn in turns:
            progress(f"{name} {dtype}: {who}")
            result = {"why": why[who]} if who in why else turn()
            if "why" in result:
                why[who] = result["why"]
                continue
            times.setdefault(who, []).append(result["median_s"])
            for peak in peaks:
                peaks[peak] = max(peaks[peak], result.get(peak, 0))
    return {who: statistics.median(t) for who, t in times.items()}, why


# ---- what comes out


def machine_text(threads):
    name = platform.processor() or platform.machine()
    try:
        with open("/proc/cpuinfo") as f:
            name = next((x.split(":", 1)[1].strip() for x in f if x.startswith("model name")), name)
    except OSError:
        pass
    return f"{name}, {threads} thread{'s' if threads > 1 else ''}, {platform.system()} {platform.release()}"


def version_text(peers, program):
    clattn = subprocess.run([program, "--version"], capture_output=True, text=True).stdout.strip()
    return ", ".join([clattn] + [f"{p} {importlib.metadata.version(p).split('+')[0]}" for p in peers])


def time_text(s):
    return f"{s * 1e6:.3g} us" if s < 1e-3 else f"{s * 1e3:.3g} ms" if s < 1 else f"{s:.2f} s"


def row_of(name, dtype, peers, a, times, peaks):
    best = min((times[p] for p in peers if p in times), default=None)
    amount, kind = work(CASES[name], dtype), CASES[name][7]
    machine = 1e9 * peaks["peak_gbs" if kind == "decode" else "peak_gflops"]

    def cell(who):
        if who not in times:
            return "-"
        share = f", {100 * amount / times[who] / machine:.0f} %" if machine else ""
        ratio = f", {best / times[who]:.2f} x" if best and who.startswith("clattn") else ""
        return time_text(times[who]) + share + ratio
    problem = f"`{problem_text(CASES[name], dtype)}`" + ("" if kind == "forward" else f", {kind}")
    return [problem] + [cell(who) for who in columns(peers, a)]


def columns(peers, a):
    return [f"clattn {p}" for p in a.paths] + peers


def installed(wanted):
    there = []
    for peer in wanted:
        needs = {"torch": ["numpy", "torch"], "onnxruntime": ["numpy", "onnx", "onnxruntime"],
                 "openvino": ["numpy", "openvino"]}[peer]
        missing = [m for m in needs if importlib.util.find_spec(m) is None]
        if missing:
            print(f"{peer} is left out: {' and '.join(missing)} {'is' if len(missing) == 1 else 'are'} not installed.")
        else:
            there.append(peer)
    return there


def main():
    def words(known):
        def parse(text):
            chosen = [w for w in text.split(",") if w]
            for w in chosen:
                if w not in known:
                    raise argparse.ArgumentTypeError(f"'{w}' is none of {', '.join(known)}")
            return chosen
        return parse
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("clattn", nargs="?", help="the program")
    parser.add_argument("--cases", type=words(CASES), default=list(CASES), help="names, as --list prints them")
    parser.add_argument("--dtypes", type=words(SIZES), default=list(SIZES))
    parser.add_argument("--paths", type=words(["host", "device"]), default=["host", "device"])
    parser.add_argument("--peers", type=words(PEERS), default=list(PEERS))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="of all; the device path takes its driver's own")
    parser.add_argument("--budget", type=float, default=0.7, help="seconds of each turn")
    parser.add_argument("--list", action="store_true", help="the cases")
    parser.add_argument("--worker", choices=PEERS, help=argparse.SUPPRESS)
    a = parser.parse_args()
    if a.list:
        for name, case in CASES.items():
            print(f"{name:24} {problem_text(case, 'f32')}{'' if case[7] == 'forward' else ', ' + case[7]}")
        return
    if a.worker:
        time_peer(a.worker, CASES[a.cases[0]], a.dtypes[0], a.threads, a.budget)
        sys.stdout.flush()
        os._exit(0)  # some peers' threads do not end well
    if not a.clattn:
        parser.error("the program is missing: give its path, such as build/clattn")
    if a.rounds < 1 or a.threads < 1 or a.budget <= 0:
        parser.error("--rounds and --threads must be at least 1, --budget above 0")
    peers = installed(a.peers)
    turns, done = len(a.cases) * len(a.dtypes) * a.rounds * (len(peers) + len(a.paths)), 0
    results, peaks = [], {"peak_gflops": 0, "peak_gbs": 0}

    def progress(what):
        nonlocal done
        if sys.stderr.isatty():
            print(f"\r{done}/{turns} {what}\033[K", end="", file=sys.stderr, flush=True)
        done += 1
    for name, dtype in itertools.product(a.cases, a.dtypes):
        times, why = compare(name, dtype, peers, a, peaks, progress)
        if sys.stderr.isatty():
            print("\r\033[K", end="", file=sys.stderr, flush=True)
        results.append((name, dtype, times))
        print(f"{name} {dtype}")
        for who, text in zip(columns(peers, a), row_of(name, dtype, peers, a, times, peaks)[1:]):
            print(f"    {who:14} {text if who in times else 'not run: ' + why.get(who, '')}", flush=True)
    print(f"\n{machine_text(a.threads)}; {version_text(peers, a.clattn)}; medians of {a.rounds} rounds.\n")
    print("Time, share of the peak (decode: of the memory's bandwidth), and speed over the fastest peer's.\n")
    print("| problem | " + " | ".join(columns(peers, a)) + " |\n|---|" + "---|" * len(columns(peers, a)))
    for name, dtype, times in results:
        print("| " + " | ".join(row_of(name, dtype, peers, a, times, peaks)) + " |")


if __name__ == "__main__":
    main()
