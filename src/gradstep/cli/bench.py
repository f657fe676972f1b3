"""``gradstep bench``: time a step, ours, torch.optim's and other libraries', side by side."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from gradstep.cli import arguments

if TYPE_CHECKING:
    from gradstep.lab.bench_case import Case
    from gradstep.lab.bench_models import Size

_DESCRIPTION = """\
Time one step of each rule: gradstep, and every mode of torch.optim, interleaved in one run.

Three sizes of network: lenet (10 tensors, 61,706 weights), transformer (148 tensors, 5.4 M), and
large (76 tensors, 58 M; needs about 4 GB, and 1 GB more for each mode of a peer). Columns: our
median time, our pass over memory alone ("kernel"), the time of torch's best mode and which that is,
their ratio, the ratio that we aim at, for the large net the bytes a second as a share of what an
in-place multiplication reached in the same run, and the temporary memory of a step as torch's
allocator counts it, ours and of torch's best mode, taken in a step that is not timed.

A peer is another library that is installed: optax (under jit, with donated buffers),
pytorch_optimizer, timm, optimi. It is timed in the same rounds, for the rules that it shares; its
columns are the time of its best mode, and how many times longer that is than ours. Before, ten
steps on the same gradients show whether its rule is ours; what differs is named and not timed.
"""

_EXAMPLES = """\
examples:
  gradstep bench                                    a rule of each kind, on two sizes
  gradstep bench --rules all --sizes all            rules and flags of all kinds: some minutes
  gradstep bench --rules nadam,radam,rprop          these
  gradstep bench --rules elements --sizes large     each rule of one pass, beside the bandwidth
  gradstep bench --rules others --peers pytorch_optimizer   all that have no row of their own
  gradstep bench --rules all --peers optax,timm     beside libraries that you have installed
  gradstep bench --rules chains --sizes large       what stages cost beside AdamW alone
  gradstep bench --rules formats --sizes large      states in 16 bits beside AdamW alone
  gradstep bench --formats                          states in 8 bits, bfloat16 weights and more
  gradstep bench --diagnose                         what gradstep.diagnose costs a training
  gradstep bench --many 2000                        so many small weights, and missing gradients
  gradstep bench --device cuda                      on a GPU: 148 and 1,000 tensors, 10^9 weights
"""


def add_parser(subparsers: Any) -> None:
    """Add the command's arguments."""
    parser = subparsers.add_parser(
        "bench",
        help="time a step, ours and torch.optim's, side by side",
        description=_DESCRIPTION,
        epilog=_EXAMPLES,
        formatter_class=arguments.Help,
    )
    parser.add_argument(
        "--rules",
        help="names, with commas; or all; or usual, the default: a rule of each kind, which is "
        "sgd, momentum, adam, adamw, adagrad, rmsprop, rmsprop-centered-momentum and lion; or "
        "torch (torch.optim's classes and flags), beyond (rules that torch has not), chains "
        "(beside the rule that they are built on), formats (states in 16 bits beside the rule "
        "without), which all has, others (every other rule, as its class is), or elements (of "
        "all and others those that make their step in one pass)",
    )
    parser.add_argument(
        "--sizes",
        help="lenet, transformer, large, or all, with commas (default: lenet,transformer; with "
        "--device transformer,thousand)",
    )
    parser.add_argument(
        "--peers",
        help="other libraries to time beside, with commas: optax, pytorch_optimizer, timm, optimi, "
        "or all of them (default: none)",
    )
    parser.add_argument(
        "--rounds", type=arguments.count, help="timed rounds (default: by size, 300 to 12)"
    )
    parser.add_argument("--dtype", default="float32", help="float32 (default), float64 or bfloat16")
    parser.add_argument("--engine", default="auto", help="gradstep's engine (default: auto)")
    parser.add_argument(
        "--threads", type=arguments.count, help="torch's threads (default: as torch has it)"
    )
    parser.add_argument(
        "--seed", type=arguments.seed, default=0, help="of the order within a round"
    )
    parser.add_argument("--load", action="store_true", help="also time AdamW while a core is busy")
    parser.add_argument(
        "--diagnose",
        action="store_true",
        help="instead: a training step of LeNet alone, watched for a forgotten zero_grad(), and "
        "with all diagnoses, in CPU time of one thread",
    )
    parser.add_argument(
        "--many",
        type=arguments.count,
        metavar="N",
        help="instead: N weights of four elements, in one group and in N (2,000 at most, since "
        "torch's time grows with their square), from construction to loading, and steps in which "
        "other weights have gradients each time, in CPU time of one thread beside torch.optim's "
        "default mode",
    )
    parser.add_argument(
        "--formats",
        action="store_true",
        help="instead: AdamW with states and weights in fewer bits, on 58 million weights, beside "
        "itself in float32; --peers may be bitsandbytes, torchao and deepspeed then",
    )
    parser.add_argument(
        "--device",
        metavar="cuda",
        help="instead: on that GPU, beside torch's fused, foreach and compiled modes and the time "
        "in which its memory copies as many bytes; --sizes are transformer, thousand and billion "
        "(28 GB for each mode of AdamW) then",
    )
    parser.add_argument("--out", type=arguments.path, help="folder for bench.json and bench.png")
    parser.set_defaults(run=run)


def _fail(message: str) -> int:
    print(f"gradstep bench: {message}", file=sys.stderr)
    return 2


def _chosen(
    text: str,
    known: list[str],
    groups: Mapping[str, Sequence[str]] | None = None,
    impossible: Mapping[str, str] | None = None,
) -> list[str] | str:
    """The names that an argument asks for, or what is wrong with it."""
    from gradstep.sight.catalogue import nearest, spelled

    names = [name.strip() for name in text.split(",") if name.strip()]
    groups = groups or {}
    if names == ["all"]:
        return list(groups.get("all", known))
    names = [one for name in names for one in groups.get(name, (spelled(name, known) or name,))]
    for name in names:
        if impossible and name in impossible:
            return f"{name} is not timed: {impossible[name]}"
        if name not in known:
            near = nearest(name, (*groups, *known))
            return f"{name!r} is not known: {near or 'choose from ' + ', '.join((*groups, *known))}"
    return list(dict.fromkeys(names)) or "no name given"


def run(args: argparse.Namespace) -> int:
    """Run the command; returns the exit code."""
    import torch

    from gradstep.backends.dispatch import engines
    from gradstep.lab import bench, bench_device, bench_report
    from gradstep.lab.bench_cases import (
        GROUPS,
        NOT_TIMED,
        USUAL,
        by_elements,
        calls_functions,
        others,
    )
    from gradstep.lab.bench_formats import FORMAT_PEERS
    from gradstep.lab.bench_models import sizes
    from gradstep.lab.bench_peers import PEERS, Rivals
    from gradstep.lab.errors import BadInput

    cases = {**bench.CASES, **others()}
    named = [name.strip() for name in (args.rules or "usual").split(",")]
    try:
        own = [name for name in named if ":" in name]
        cases |= {name: bench.own_case(name) for name in own}
    except BadInput as error:
        return _fail(f"argument --rules: {error}")
    usual = USUAL if args.device is None else bench_device.USUAL
    groups = {"usual": usual, "all": tuple(bench.CASES), "others": tuple(others()), **GROUPS}
    if "elements" in named:
        groups["elements"] = by_elements()
    rules = _chosen("usual" if args.rules is None else args.rules, list(cases), groups, NOT_TIMED)
    if isinstance(rules, str):
        return _fail(f"argument --rules: {rules}")
    known_sizes = sizes() if args.device is None else bench_device.sizes()
    few = "lenet,transformer" if args.device is None else "transformer,thousand"
    chosen_sizes = _chosen(few if args.sizes is None else args.sizes, list(known_sizes))
    if isinstance(chosen_sizes, str):
        return _fail(f"argument --sizes: {chosen_sizes}")
    known_peers = list(FORMAT_PEERS) if args.formats else list(PEERS)
    peers = _chosen(args.peers, known_peers) if args.peers is not None else []
    if isinstance(peers, str):
        return _fail(f"argument --peers: {peers}")
    if args.dtype not in ("float32", "float64", "bfloat16"):
        return _fail("argument --dtype: choose float32, float64 or bfloat16")
    if args.engine not in engines():
        return _fail(f"argument --engine: choose from {', '.join(engines())}")
    if args.device is not None:
        return _device(
            args, [cases[rule] for rule in rules], [known_sizes[s] for s in chosen_sizes]
        )
    if args.diagnose:
        return _diagnose(args.rounds or 8, args.seed)
    if args.many:
        return _many(args.many, args.rounds or 5, args.seed)
    if args.threads:
        torch.set_num_threads(args.threads)
    if args.formats:
        return _formats(args.rounds or 12, args.seed, peers)
    try:
        rivals = Rivals(peers)
    except BadInput as error:
        return _fail(f"argument --peers: {error}")
    if args.out is not None:
        try:
            args.out.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            return _fail(f"argument --out: {error}")

    dtype = getattr(torch, args.dtype)
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, {args.dtype}", flush=True)
    if peers:
        print(f"peers: {'; '.join(rivals.versions())}", flush=True)
    rows: list[bench.Row] = []
    for size_name in chosen_sizes:
        size = known_sizes[size_name]
        for rule in rules:
            asked_for = size_name != "large" or rule in named or rule in bench.CASES
            if not asked_for and calls_functions(cases[rule]):
                print(f"not timed: {rule} on the large net, as long as it is not named itself")
                continue
            rounds = args.rounds or size.rounds
            row = bench.measure(cases[rule], size, rounds, dtype, args.engine, args.seed, rivals)
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
    for peer in peers:
        if peer not in bench_report.peers_in(rows):
            print(f"{peer} has none of these rules")
    host = bench.host_work()
    print(
        f"around the kernel: {host[0] * 1e6:.1f} µs a step and {host[1] * 1e6:.2f} µs a tensor "
        "(AdamW, from steps over 1 and 101 tensors of 8 weights)"
    )
    if args.out is not None:
        for path in bench_report.write(args.out, rows, host):
            print(f"wrote {path}")
    return 0


def _device(args: argparse.Namespace, cases: Sequence[Case], sizes: Sequence[Size]) -> int:
    """Steps on a GPU."""
    import torch

    from gradstep.lab.bench_device import copy_bandwidth, measure
    from gradstep.lab.device import described, gpu
    from gradstep.lab.errors import DeviceError

    try:
        device = gpu(args.device)
    except DeviceError as error:
        return _fail(f"argument --device: {error}")
    torch.cuda.set_device(device)
    print(f"{described(device)}, {args.dtype}", flush=True)
    bandwidth = copy_bandwidth(device)
    print(f"copies within its memory: {bandwidth / 1e9:,.0f} GB/s, read and written", flush=True)
    for size in sizes:
        for case in cases:
            row = measure(
                case,
                size,
                args.rounds or size.rounds,
                getattr(torch, args.dtype),
                device,
                args.engine,
                bandwidth,
                args.seed,
            )
            print("\n".join(row.lines()), flush=True)
    return 0


def _diagnose(rounds: int, seed: int) -> int:
    """What it costs a training to be watched."""
    import torch

    import gradstep
    from gradstep.lab.bench_diagnose import lines, measure_cost

    torch.set_num_threads(1)
    print(f"torch {torch.__version__}, 1 thread, float32, CPU time", flush=True)
    for make, batch in (
        (torch.optim.Adam, 4),
        (torch.optim.Adam, 32),
        (torch.optim.Adam, 128),
        (gradstep.Adam, 32),
    ):
        print("\n".join(lines(measure_cost(make, batch, rounds, seed))), flush=True)
    return 0


def _formats(rounds: int, seed: int, peers: list[str]) -> int:
    """What fewer bits cost and save."""
    import torch

    from gradstep.lab.bench_formats import lines, measure_formats
    from gradstep.lab.bench_models import sizes
    from gradstep.lab.errors import BadInput

    size = sizes()["large"]
    print(
        f"torch {torch.__version__}, {torch.get_num_threads()} threads, AdamW, "
        f"{size.elements():,} weights, {rounds} rounds",
        flush=True,
    )
    try:
        rows = measure_formats(size, rounds, seed, peers)
    except BadInput as error:
        return _fail(f"argument --peers: {error}")
    print("\n".join(lines(rows)))
    return 0


def _many(count: int, rounds: int, seed: int) -> int:
    """What many small weights cost."""
    import torch

    from gradstep.lab.bench_many import RULES, lines

    torch.set_num_threads(1)
    print(f"torch {torch.__version__}, 1 thread, float32, CPU time", flush=True)
    for line in lines(list(RULES), count, rounds, seed):
        print(line, flush=True)
    return 0
