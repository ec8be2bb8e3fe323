"""``mnemograph bill``: what one step of a model costs."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

SUMMARY = "print what one step of an arm, or of any torch model, costs: by phase, module and operator"
EXAMPLES = """\
  mnemograph bill ngram --width 64
  mnemograph bill graph --width 96 --layers 4 --batch 8 --json
  mnemograph bill knn --read
  mnemograph bill torch.nn.TransformerEncoderLayer --init d_model=64 nhead=4 --input 4x128x64
  mnemograph bill torch_geometric.nn.SAGEConv --init in_channels=64 out_channels=64 \\
    --input 1000x64 'int64 2x8000 <1000' --read
  mnemograph bill transformers.GPT2LMHeadModel --init n_layer=4 --batch 1 --time 512
  mnemograph bill path/to/model_with_config_json --read
  mnemograph bill last.ckpt --class my.Module --input 'tokens=int64 8x256 <2048' 'targets=int64 8x256 <2048'
  mnemograph bill last.ckpt --class my.Module --input 32x64 32x1    a batch (x, y): one --input, a shape for each"""


# Operators that move less than this share of all bytes share a row, unless --all is given.
FEW_BYTES = 0.005
# Told beside the numbers, in the table and in JSON.
CONVENTIONS = {
    "flops": "every arithmetic operation; a multiply-add is two",
    "matmul_flops": "those of matrix products, convolutions and attention products",
    "bytes": "read and written if nothing were fused or cached",
    "attention": "Causal attention counts the pairs that live, half of them; on meta a mask hides none",
}


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument(
        "target",
        nargs="?",
        metavar="TARGET",
        help="an arm, a class such as torch.nn.LSTM, a Lightning .ckpt, or a Hugging Face folder",
    )
    parser.add_argument("--arm", help="the same, for arms (default: dense)")
    sizes = parser.add_argument_group("sizes of an arm")
    sizes.add_argument("--width", type=int, metavar="N", help="width of the residual stream (default: 64)")
    sizes.add_argument("--layers", type=int, metavar="N", help="number of blocks")
    sizes.add_argument("--heads", type=int, metavar="N", help="attention heads")
    sizes.add_argument("--vocab-size", type=int, metavar="N", help="number of tokens (default: 2048)")
    parser.add_argument(
        "--batch", type=int, metavar="N", help="windows in a batch, of an arm or a language model"
    )
    parser.add_argument("--time", type=int, metavar="N", help="tokens in a window")
    models = parser.add_argument_group("any other model")
    models.add_argument(
        "--init", nargs="+", default=[], metavar="NAME=VALUE", help="arguments of its constructor"
    )
    models.add_argument(
        "--input",
        nargs="+",
        default=[],
        metavar="SPEC",
        help="4x128x64, 'int64 8x128 <2048', or x=4x128x64; several are a tuple, with names a dictionary",
    )
    models.add_argument("--class", dest="class_path", metavar="CLASS", help="the class of a checkpoint")
    models.add_argument(
        "--device",
        choices=("meta", "cpu", "cuda"),
        default="meta",
        help="meta: predict, at no memory (default); cpu: take the step",
    )
    step = parser.add_mutually_exclusive_group()
    step.add_argument("--train", action="store_true", help="bill a training step, with fused AdamW (default)")
    step.add_argument("--read", action="store_true", help="bill the forward alone")
    parser.add_argument("--all", action="store_true", help="a row for every operator, however small")
    parser.add_argument("--json", action="store_true", help="print JSON instead of tables: everything")


def run(arguments: argparse.Namespace) -> int:
    """Carry the command out."""
    from experiments.arms import ARMS
    from experiments.errors import RunError

    if arguments.line == ["bill"]:
        raise RunError(
            f"bill what? An arm ({', '.join(ARMS)}), a class such as torch.nn.LSTM, a .ckpt or a Hugging Face folder: "
            "mnemograph bill ngram --width 64"
        )
    if arguments.target is not None and arguments.arm is not None:
        raise RunError(f"{arguments.target} or --arm {arguments.arm}: give one of them")
    name = arguments.target or arguments.arm or "dense"
    given = {
        name: getattr(arguments, name) for name in ("width", "layers", "heads", "batch", "time", "vocab_size")
    }
    given = {name: value for name, value in given.items() if value is not None}
    for option, value in given.items():
        if value < 1 + (option == "vocab_size"):
            option = option.replace("_", "-")
            raise RunError(f"--{option} {value} is too small: mnemograph bill --{option} 64, for example")
    named = "." in name or "/" in name or (name not in ARMS and Path(name).exists())
    elsewhere = arguments.target is not None and named
    return _bill_model(name, arguments, given) if elsewhere else _bill_arm(name, arguments, given)


def _bill_arm(name: str, arguments: argparse.Namespace, given: dict[str, int]) -> int:
    from experiments.arms import arm_named
    from experiments.errors import RunError
    from experiments.ledger import steps_for
    from experiments.run import DEFAULTS
    from experiments.step import step_bill

    arm = arm_named(name)
    for option in ("init", "input", "class_path"):
        if getattr(arguments, option):
            option = option.removesuffix("_path")
            raise RunError(
                f"--{option} is for models that are no arms; {name} takes --width, --layers and --heads"
            )
    if arguments.device != "meta":
        raise RunError(f"--device is for models that are no arms; {name} is predicted: leave it out")
    width, vocab = given.pop("width", 64), given.pop("vocab_size", 2048)
    bill = step_bill(arm, vocab, width, given, train=not arguments.read)
    chosen = {**DEFAULTS, **arm.settings, **given}
    tokens = chosen["batch"] * chosen["time"]
    what = "Reading with" if arguments.read else "One training step of"
    heading = f"{what} {arm.name} at width {width} on {tokens:,} tokens, without the search for neighbours."
    if not arguments.read:
        steps = steps_for(bill.flops, 1e12)
        paid = f"{steps:,} such step{'s' * (steps != 1)}, {steps * tokens:,} tokens"
        paid = paid if steps else f"no step: one takes {bill.flops:,}"
        heading += f"\nA budget of 1e12 FLOPs pays for {paid}."
    about = {
        "model": arm.name,
        "input": f"{chosen['batch']}x{chosen['time']} tokens",
        "search": "not included",
    }
    _tell(bill, heading, bill.by_phase["forward"], tokens, arguments, about)
    return 0


def _bill_model(name: str, arguments: argparse.Namespace, given: dict[str, int]) -> int:
    import torch

    from experiments.commands.target import CLASS, Target, find_target, read_input
    from experiments.errors import RunError
    from experiments.ledger import Machine

    for option in ("width", "layers", "heads", "vocab_size"):
        if option in given:
            option = option.replace("_", "-")
            raise RunError(
                f"--{option} is for arms; {name} takes what its constructor takes, as --init name=value"
            )
    if arguments.device == "cuda" and not torch.cuda.is_available():
        raise RunError("--device cuda: torch sees no CUDA device here; leave it out, or type --device cpu")
    target: Target = find_target(name, arguments.init, arguments.class_path)
    specs = list(arguments.input)
    if not specs and target.vocab_size is not None:
        tokens = f"int64 {given.get('batch', 8)}x{given.get('time', 256)} <{target.vocab_size}"
        specs = [f"input_ids={tokens}"] + ([] if arguments.read else [f"labels={tokens}"])
    if not specs:
        raise RunError(f"what is {target.name} given? Add its shape: {CLASS[len('mnemograph bill ') :]}")
    batch = read_input(specs, arguments.device)
    machine = None if arguments.device == "meta" else Machine()
    bill = _predicted(target, batch, arguments.device, train=not arguments.read, machine=machine)
    # A training step of its own may call anything but the model's forward.
    apart = not arguments.read and not target.trains_itself
    forward = (
        _predicted(target, batch, arguments.device, train=False).flops if apart else bill.by_phase["forward"]
    )
    what = "Reading" if arguments.read else "One training step of"
    heading = f"{what} {target.name} on {', '.join(specs)}."
    about = {"model": target.name, "input": ", ".join(specs)}
    _tell(bill, heading, forward, _tokens(batch), arguments, about, machine)
    return 0


def _predicted(target: Any, batch: Any, device: str, *, train: bool, machine: Any = None) -> Any:
    from experiments.errors import RunError
    from experiments.ledger import NotPredictable, UnpricedOperator, predict

    def build() -> Any:
        model = target.build()
        lacking = _lacking(model, train=train)
        if lacking:
            raise RunError(f"{target.name} {lacking}")
        return model

    optimizer = None if target.trains_itself else _fused_adamw
    try:
        return predict(build, batch, train=train, optimizer=optimizer, device=device, machine=machine)
    except NotPredictable as error:
        told = str(error).split(": take the step")[0]
        raise RunError(f"{told}: add --device cpu, which takes the step") from error
    except (RunError, UnpricedOperator):
        raise
    except (AssertionError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
        told = (str(error) or repr(error)).splitlines()[0].replace("use train=False", "add --read")
        if "unpack" in told:
            told += "; a batch (x, y) is written --input 32x64 32x1, a shape for each part"
        raise RunError(f"{target.name} fails on this --input: {told}") from error


def _fused_adamw(parameters: Any) -> Any:
    """The one that arms are billed with, where torch has it: complex numbers it leaves to the other."""
    from torch.optim import AdamW

    parameters = list(parameters)
    return AdamW(parameters, fused=all(one.is_floating_point() for one in parameters))


def _lacking(model: Any, *, train: bool) -> str | None:
    """What a model would need for such a step, and what to type instead."""
    from lightning import LightningModule
    from torch import nn

    made, itself = type(model), isinstance(model, LightningModule)
    if train and itself:
        unwritten = made.training_step is LightningModule.training_step
        told = "has no training_step: give the class one, or add --read, which bills its forward alone"
        return told if unwritten else None
    if made.forward is LightningModule.forward:
        return "has no forward, which --read bills: leave --read out, which bills its training_step"
    # What torch puts in the place of a forward that nobody wrote.
    if made.forward is nn.Module.forward:
        return "has no forward, so nothing can be billed, with --read or without: give the class one"
    if train and next(model.parameters(), None) is None:
        return "has no parameters to train: add --read, which bills its forward alone"
    return None


def _tokens(batch: Any) -> int | None:
    """Positions of the first integers given as ``[batch, time]``."""
    parts = list(batch.values()) if isinstance(batch, dict) else batch
    parts = parts if isinstance(parts, (list, tuple)) else [parts]
    found = [x for x in parts if not x.is_floating_point() and x.ndim == 2]
    return found[0].numel() if found and found[0] is parts[0] else None


def _tell(
    bill: Any,
    heading: str,
    forward: int,
    tokens: int | None,
    arguments: argparse.Namespace,
    about: dict[str, str],
    machine: Any = None,
) -> None:
    import json

    if arguments.json:
        about |= {"step": "read" if arguments.read else "train", "device": arguments.device, **CONVENTIONS}
        measured = {} if machine is None else {"machine": machine.to_dict()}
        print(json.dumps({"about": about, **measured, **bill.to_dict()}, indent=1))
        return
    table = bill.table(0.0 if arguments.all else FEW_BYTES)
    print(f"{heading}\n\n{table}\n")
    if "... and " in table:
        print("Operators of little work are in one row; --all shows each.")
    # Arms spell attention out; so may other models, but nobody knows of which products.
    attention = "search" in about or any("attention" in name for name in bill.by_operator)
    products = "matrix products and attention" if attention else "matrix products"
    print(f"Every arithmetic operation counts; {bill.matmul_flops:,} of them are in {products}.")
    if bill.flops != forward:
        print(f"Forward, backward and optimizer together; the forward alone is {forward:,} FLOPs.")
    if tokens is not None:
        print(f"A token costs {bill.flops / tokens:,.0f} FLOPs, forward {forward / tokens:,.0f}.")
    if machine is not None:
        told = "" if machine.joules is None else f", {machine.joules:.3g} joules of the whole machine"
        print(f"Unwatched, the step takes {machine.seconds:.3g} seconds here{told}.")
    if attention:
        print(f"{CONVENTIONS['attention']}.")
    if bill.upper_bound:
        print(
            "This bill is an upper bound; with --device cpu the mask has values, and pairs it hides are left out."
        )
