"""``mnemograph fit``: train one model of your own with Lightning."""

from __future__ import annotations

import argparse
import sys

SUMMARY = "train one model with Lightning, every constructor argument at your hand"
EXAMPLES = """\
  mnemograph fit --model.network.d_model=128 --data.n_tokens=2000000
  mnemograph fit --data.source=TextCorpus --data.source.path=my.txt \\
    --model.network.memory='{0: {class_path: mann.NGramMemory}}'"""


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare nothing: the constructors' own arguments are the options."""


def run(arguments: argparse.Namespace) -> int:
    """Carry the command out."""
    from experiments.errors import RunError
    from experiments.fitting import FitCommand
    from experiments.ledger import LedgerCallback

    # Lightning warns when it is given arguments and finds others there.
    line, sys.argv = sys.argv, sys.argv[:1]
    try:
        command = FitCommand(
            arguments.line[1:],
            prog="mnemograph fit",
            description=f"{SUMMARY[0].upper()}{SUMMARY[1:]}.",
            epilog=f"examples:\n{EXAMPLES}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
            exit_on_error=False,
        )
    except argparse.ArgumentError as error:
        raise RunError(f"{' '.join(str(error).split())} (see mnemograph fit --help)") from error
    finally:
        sys.argv = line
    ledger = LedgerCallback()
    command.trainer.callbacks.append(ledger)  # pyright: ignore[reportAttributeAccessIssue]
    command.trainer.fit(command.model, command.datamodule)
    loss = command.trainer.callback_metrics.get("train/nats_per_token")
    print(ledger.total())
    if loss is not None:
        print(f"\nThe training loss ended at {loss:.4f} nats per token.")
    return 0
