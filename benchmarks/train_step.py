"""One training step: ours, plain dense autograd, and sentence-transformers' SparseAutoEncoder, beside one GEMM.

    python benchmarks/train_step.py [--threads 1] [--clock wall|cpu] [--repeats 7] [--device cpu|cuda]

Prints a Markdown table. A step is forward, loss, backward and update over rows that are random unit vectors:

- ours: `FittingSAE` with the FVU, clipping, fused Adam and unit decoder rows, as `sae-steer train` does.
- dense: relu, topk, scatter and two `Linear`s under autograd with plain Adam, the way of cxcscmu/embedding-scope.
- SparseAutoEncoder: with `CSRLoss` at its defaults, clipping and fused AdamW, the defaults of its trainer. The loss
  needs pairs: half of the rows are anchors, half are positives. It also decodes 4 K and 512 dead latents, which the
  others do not: it is a different objective, at the same number of rows.

The floor is one `x @ W.T` of the same shape. Times are medians of repeats that take turns in one process, after two
steps of each. Memory is that of a process with this step alone (its peak after two steps, less what it had before it
made the model). All processes ask glibc to keep large buffers. On a core that others use too, limit the run to it
(e.g. `taskset -c 1 env OMP_NUM_THREADS=1`) and use `--clock cpu`, which does not count their share of it.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from torch import Tensor


class Size(NamedTuple):
    d: int
    n: int
    k: int
    rows: int


# At 64k latents the dense steps hold several (rows, n) tensors: fewer rows keep them within a laptop's memory.
SIZES = (Size(384, 8192, 32, 1000), Size(768, 16384, 64, 1000), Size(768, 65536, 64, 512))


def ours(x: Tensor, size: Size) -> Callable[[], None]:
    import torch

    from sae_steer_retriever.train.losses import fraction_unexplained
    from sae_steer_retriever.train.trainable_sae import FittingSAE

    mean = x.mean(dim=0)
    variance = float((x - mean).square().sum(dim=1).mean())
    directions = torch.nn.functional.normalize(torch.randn(size.n, size.d), dim=1)
    model = FittingSAE(mean.cpu(), variance**0.5, directions, directions).to(x.device)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3, fused=True)

    def step() -> None:
        loss = fraction_unexplained(x, model.decode(*model.encode(x, size.k)), variance)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        model.before_step()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        model.after_step()

    return step


def dense(x: Tensor, size: Size) -> Callable[[], None]:
    import torch

    encoder = torch.nn.Linear(size.d, size.n, device=x.device)
    decoder = torch.nn.Linear(size.n, size.d, device=x.device)
    optimizer = torch.optim.Adam([*encoder.parameters(), *decoder.parameters()], lr=1e-3)

    def step() -> None:
        top = encoder(x - decoder.bias).relu().topk(size.k, dim=1)
        z = torch.zeros(len(x), size.n, device=x.device).scatter(1, top.indices, top.values)
        loss = torch.nn.functional.mse_loss(decoder(z), x)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()

    return step


def sparse_auto_encoder(x: Tensor, size: Size) -> Callable[[], None]:
    import torch
    from sentence_transformers.sparse_encoder.losses import CSRLoss
    from sentence_transformers.sparse_encoder.modules import SparseAutoEncoder

    model = SparseAutoEncoder(input_dim=size.d, hidden_dim=size.n, k=size.k).to(x.device).train()
    # Asked for its output only: the embeddings are there, so no text encoder stands before the autoencoder.
    csr: Any = CSRLoss(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True)

    def step() -> None:
        parts = csr([{"sentence_embedding": part} for part in x.chunk(2)])
        loss = torch.stack(list(parts.values())).sum()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()

    return step


def floor(x: Tensor, size: Size) -> Callable[[], None]:
    import torch

    W = torch.randn(size.n, size.d, device=x.device)

    def product() -> None:
        x @ W.T

    return product


WAYS: dict[str, Callable[[Tensor, Size], Callable[[], None]]] = {
    "one GEMM": floor,
    "ours": ours,
    "dense autograd": dense,
    "SparseAutoEncoder": sparse_auto_encoder,
}


def prepared(arguments: argparse.Namespace, size: Size) -> Tensor:
    """The rows, in a process that is ready to measure."""
    import sentence_transformers.sparse_encoder  # noqa: F401 - so that no way pays for its import
    import torch

    from sae_steer_retriever.sae.malloc import keep_large_buffers

    keep_large_buffers()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    return torch.nn.functional.normalize(torch.randn(size.rows, size.d), dim=1).to(arguments.device)


def finish(device: str) -> None:
    """Wait for what was asked of the device."""
    if device == "cuda":
        import torch

        torch.cuda.synchronize()


def measure_seconds(arguments: argparse.Namespace, size: Size) -> dict[str, float]:
    x = prepared(arguments, size)
    clock = time.process_time if arguments.clock == "cpu" else time.perf_counter
    steps = {name: way(x, size) for name, way in WAYS.items() if name in arguments.ways}
    times: dict[str, list[float]] = {name: [] for name in steps}
    for repeat in range(-2, arguments.repeats):
        for name, step in steps.items():
            finish(arguments.device)
            began = clock()
            step()
            finish(arguments.device)
            if repeat >= 0:
                times[name].append(clock() - began)
    return {name: statistics.median(taken) for name, taken in times.items()}


def measure_megabytes(arguments: argparse.Namespace, size: Size, name: str) -> float:
    x = prepared(arguments, size)
    before = peak_bytes(arguments.device)
    step = WAYS[name](x, size)
    for _ in range(2):
        step()
    finish(arguments.device)
    return (peak_bytes(arguments.device) - before) / 1e6


def peak_bytes(device: str) -> int:
    """So far: of this process, or of what it allocated on the device."""
    if device == "cuda":
        import torch

        return int(torch.cuda.max_memory_allocated())
    import resource  # not on Windows

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return int(peak) if sys.platform == "darwin" else 1024 * int(peak)


def in_a_process(arguments: list[str], **task: object) -> Any:
    # A new process starts from its parent's peak: this one never loads torch.
    command = [sys.executable, __file__, *arguments, "--task", json.dumps(task)]
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)


def print_rows(size: Size, seconds: dict[str, float], megabytes: dict[str, float]) -> None:
    d, n, k, rows = size
    gemm = seconds["one GEMM"]
    for name, taken in seconds.items():
        peak = f"{megabytes[name]:,.0f}" if name in megabytes else ""
        against = f"{seconds['dense autograd'] / taken:.2f}" if "dense autograd" in seconds else ""
        print(
            f"| {d} | {n:,} | {k} | {rows:,} | {name} | {1000 * taken:.1f} | {rows / taken:,.0f} "
            f"| {taken / gemm:.2f} | {against} | {peak} |",
            flush=True,
        )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--clock", choices=("wall", "cpu"), default="wall")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--ways", nargs="+", choices=list(WAYS), default=list(WAYS))
    parser.add_argument("--size", nargs=4, type=int, action="append", metavar=("D", "N", "K", "ROWS"))
    parser.add_argument("--task", type=json.loads, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.clock == "cpu" and (arguments.threads != 1 or arguments.device != "cpu"):
        parser.error("--clock cpu adds up the threads of the CPU: it takes --threads 1 and --device cpu.")
    if arguments.task is not None:
        size, name = Size(*arguments.task["size"]), arguments.task["name"]
        found = measure_seconds(arguments, size) if name is None else measure_megabytes(arguments, size, name)
        print(json.dumps(found))
        return 0
    arguments.ways = [name for name in WAYS if name in arguments.ways or name == "one GEMM"]
    passed = ["--threads", str(arguments.threads), "--clock", arguments.clock, "--repeats", str(arguments.repeats)]
    passed += ["--device", arguments.device, "--ways", *arguments.ways]
    print(f"{arguments.device}, {arguments.threads} thread(s), {arguments.clock} clock, {arguments.repeats} repeats\n")
    print("| d | n | K | rows | step | ms | rows/s | / GEMM | times faster than dense | peak MB |")
    print("|---|---|---|---|---|---|---|---|---|---|", flush=True)
    for size in [Size(*given) for given in arguments.size or SIZES]:
        names = [name for name in arguments.ways if name != "one GEMM"]
        megabytes = {name: in_a_process(passed, size=size, name=name) for name in names}
        print_rows(size, in_a_process(passed, size=size, name=None), megabytes)
    return 0


if __name__ == "__main__":
    sys.exit(main())
