"""``mnemograph bill``: what one training step of an arm costs."""

from __future__ import annotations

import argparse

SUMMARY = "print what one training step of an arm costs, by phase, module and operator"
EXAMPLES = """\
  mnemograph bill --arm ngram --width 64
  mnemograph bill --arm graph --width 96 --layers 4 --batch 8 --json"""


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("--arm", default="dense", help="which arm (default: dense)")
    parser.add_argument(
        "--width", type=int, default=64, metavar="N", help="width of the residual stream (default: 64)"
    )
    parser.add_argument("--layers", type=int, metavar="N", help="number of blocks")
    parser.add_argument("--heads", type=int, metavar="N", help="attention heads")
    parser.add_argument("--batch", type=int, metavar="N", help="windows in a batch")
    parser.add_argument("--time", type=int, metavar="N", help="tokens in a window")
    parser.add_argument(
        "--vocab-size", type=int, default=2048, metavar="N", help="number of tokens (default: 2048)"
    )
    parser.add_argument("--json", action="store_true", help="print JSON instead of tables")


def run(arguments: argparse.Namespace) -> int:
    """Carry the command out."""
    import json

    from experiments.arms import arm_named
    from experiments.errors import RunError
    from experiments.run import DEFAULTS
    from experiments.step import step_bill

    given = {name: getattr(arguments, name) for name in ("layers", "heads", "batch", "time")}
    sizes = {name: value for name, value in given.items() if value is not None}
    named = {**sizes, "width": arguments.width, "vocab-size": arguments.vocab_size}
    wrong = [name for name, value in named.items() if value < 1 + (name == "vocab-size")]
    if wrong:
        raise RunError(
            f"--{wrong[0]} {named[wrong[0]]} is too small: mnemograph bill --{wrong[0]} 64, for example"
        )
    arm = arm_named(arguments.arm)
    ledger = step_bill(arm, arguments.vocab_size, arguments.width, sizes)
    if arguments.json:
        print(json.dumps(ledger.to_dict(), indent=1))
        return 0
    chosen = {**DEFAULTS, **arm.settings, **sizes}
    tokens = chosen["batch"] * chosen["time"]
    steps = 1e12 / ledger.flops
    print(
        f"One training step of {arm.name} at width {arguments.width} on {tokens:,} tokens, without the search for "
        f"neighbours.\nA budget of 1e12 FLOPs pays for {steps:,.0f} such steps, {steps * tokens:,.0f} tokens.\n"
    )
    print(ledger)
    return 0
