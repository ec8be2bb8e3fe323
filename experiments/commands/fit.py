"""``mnemograph fit``: train one model of your own with Lightning."""

from __future__ import annotations

import argparse
import shlex
import sys
from typing import Any

from experiments.commands.choice import program

SUMMARY = "train one model with Lightning, every constructor argument at your hand"
EXAMPLES = """\
  mnemograph fit --model.network.d_model=128 --data.n_tokens=2000000
  mnemograph fit --data.source=TextCorpus --data.source.path=my.txt \\
    --model.network.memory='{0: {class_path: mann.NGramMemory}}'
  mnemograph fit --print_config > base.yaml            every option with its value, to edit
  mnemograph fit --config base.yaml --data.seed=1      the file, and what is to be different
  mnemograph fit --config runs/fit/000/config.yaml     the same run again: the same numbers
  mnemograph fit --trainer.logger=WandbLogger          logged to W&B (WANDB_MODE=offline: here)
  mnemograph fit --trainer.callbacks+=FlopBudget --trainer.callbacks.max_flops=1e12
                                                       ends before more FLOPs than that are spent"""


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare nothing: the constructors' own arguments are the options."""


def run(arguments: argparse.Namespace) -> int:
    """Carry the command out."""
    from experiments.errors import RunError
    from experiments.fitting import CONFIG, FitCommand
    from experiments.ledger import LedgerCallback
    from experiments.mistyped import reason

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
    except RunError:
        raise
    except ValueError as error:  # what a constructor says of its arguments
        raise RunError(reason(str(error))) from error
    finally:
        sys.argv = line
    callbacks: list[Any] = vars(command.trainer)["callbacks"]
    # A budget is a ledger too.
    ledger = next((callback for callback in callbacks if isinstance(callback, LedgerCallback)), None)
    if ledger is None:
        callbacks.append(ledger := LedgerCallback())
    command.trainer.fit(command.model, command.datamodule)
    metrics = command.trainer.callback_metrics
    loss = metrics.get("train/nats_per_token")
    print(ledger.total())
    if loss is not None:
        print(f"\nThe training loss ended at {loss:.4f} nats per token.")
    if "valid/bits_per_byte" in metrics:
        print(
            f"Validation: {metrics['valid/nats_per_token']:.4f} nats per token, "
            f"{metrics['valid/bits_per_byte']:.4f} bits per byte."
        )
    # Whoever asks for no seed asks for other numbers each time.
    seeded = command.config.get("seed_everything") is not False
    what = "run" if seeded else "settings"
    print(f"The same {what} again: {program()} fit --config {shlex.quote(str(command.folder / CONFIG))}")
    return 0
