"""``gradstep bench``: time a step, ours and torch.optim's, side by side."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

_DESCRIPTION = """\
Time one step of each rule: gradstep, and every mode of torch.optim, interleaved in one run.

Three sizes of network: lenet (10 tensors, 61,706 weights), transformer (148 tensors, 5.4 M), and
large (76 tensors, 58 M; needs about 4 GB). Columns: our median time, our pass over memory alone
("kernel"), the time of torch's best mode and which that is, their ratio, and for the large net the
bytes a second as a share of what an in-place multiplication reached in the same run.
"""


def add_parser(subparsers: Any) -> None:
    """Add the command's arguments."""
    parser = subparsers.add_parser(
        "bench",
        help="time a step, ours and torch.optim's, side by side",
        description=_DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--rules", default="all", help="names, with commas (default: all)")
    parser.add_argument(
        "--sizes",
        default="lenet,transformer",
        help="lenet, transformer, large, or all, with commas",
    )
    parser.add_argument("--rounds", type=int, help="timed rounds (default: by size, 300 to 12)")
    parser.add_argument("--dtype", default="float32", help="float32 (default), float64 or bfloat16")
    parser.add_argument("--engine", default="auto", help="gradstep's engine (default: auto)")
    parser.add_argument("--threads", type=int, help="torch's threads (default: as torch has it)")
    parser.add_argument("--seed", type=int, default=0, help="of the order within a round")
    parser.add_argument("--load", action="store_true", help="also time AdamW while a core is busy")
    parser.add_argument("--out", type=Path, help="folder for bench.json and bench.png")
    parser.set_defaults(run=run)


def _fail(message: str) -> int:
    print(f"gradstep bench: {message}", file=sys.stderr)
    return 2


def _chosen(text: str, known: list[str]) -> list[str] | str:
    names = known if text == "all" else [n.strip() for n in text.split(",") if n.strip()]
    for name in names:
        if name not in known:
            return f"{name!r} is not known; choose from {', '.join(known)}"
    return names or "no name given"


def run(args: argparse.Namespace) -> int:
    """Run the command; returns the exit code."""
    import torch

    from gradstep.engine.plan import ENGINES
    from gradstep.lab import bench, bench_report
    from gradstep.lab.bench_models import sizes

    rules = _chosen(args.rules, list(bench.CASES))
    if isinstance(rules, str):
        return _fail(f"argument --rules: {rules}")
    known_sizes = sizes()
    chosen_sizes = _chosen(args.sizes, list(known_sizes))
    if isinstance(chosen_sizes, str):
        return _fail(f"argument --sizes: {chosen_sizes}")
    if args.dtype not in ("float32", "float64", "bfloat16"):
        return _fail("argument --dtype: choose float32, float64 or bfloat16")
    if args.engine not in ENGINES:
        return _fail(f"argument --engine: choose from {', '.join(ENGINES)}")
    for option in ("rounds", "threads"):
        value = getattr(args, option)
        if value is not None and value < 1:
            return _fail(f"argument --{option}: must be at least 1, got {value}")
    if args.threads:
        torch.set_num_threads(args.threads)
    if args.out is not None:
        try:
            args.out.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            return _fail(f"argument --out: {error}")

    dtype = getattr(torch, args.dtype)
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, {args.dtype}", flush=True)
    rows: list[bench.Row] = []
    for size_name in chosen_sizes:
        size = known_sizes[size_name]
        for rule in rules:
            rounds = args.rounds or size.rounds
            row = bench.measure(bench.CASES[rule], size, rounds, dtype, args.engine, args.seed)
            rows.append(row)
            if sys.stderr.isatty():
                print(f"  {rule}, {size_name}", file=sys.stderr)
    if args.load:
        with bench.busy_core():
            size = known_sizes["lenet"]
            row = bench.measure(
                bench.CASES["adamw"], size, args.rounds or 300, dtype, args.engine, args.seed
            )
            row.loaded = True
            rows.append(row)
    print(bench_report.table(rows))
    host = bench.host_work()
    print(
        f"around the kernel: {host[0] * 1e6:.1f} µs a step and {host[1] * 1e6:.2f} µs a tensor "
        "(AdamW, from steps over 1 and 101 tensors of 8 weights)"
    )
    if args.out is not None:
        for path in bench_report.write(args.out, rows, host):
            print(f"wrote {path}")
    return 0
