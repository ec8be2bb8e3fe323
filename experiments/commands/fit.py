"""``mnemograph fit``: train one model of your own with Lightning."""

from __future__ import annotations

import argparse
import sys

SUMMARY = "train one model with Lightning, every constructor argument at your hand"
EXAMPLES = """\
  mnemograph fit --model.network.d_model=128 --data.n_tokens=2000000
  mnemograph fit --corpus=TextCorpus --corpus.path=my.txt \\
    --model.network.memory='{0: {class_path: mann.NGramMemory}}'"""


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare nothing: the constructors' own arguments are the options."""


def run(arguments: argparse.Namespace) -> int:
    """Carry the command out."""
    from lightning.pytorch.cli import LightningArgumentParser, LightningCLI

    from experiments.data import CodeCorpus, TextCorpus
    from experiments.data.module import WindowData
    from experiments.errors import RunError
    from mann import LanguageModule

    class Fit(LightningCLI):
        def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
            parser.add_subclass_arguments((CodeCorpus, TextCorpus), "corpus")
            parser.set_defaults(
                {
                    "corpus": {"class_path": "experiments.data.CodeCorpus"},
                    "model.network": {
                        "class_path": "mann.Transformer",
                        "init_args": {"d_model": 64, "n_layers": 3},
                    },
                    "data.n_tokens": 1_000_000,
                    "trainer.max_epochs": 1,
                    "trainer.accelerator": "cpu",
                    "trainer.logger": False,
                }
            )
            # What the text decides is not typed twice.
            parser.link_arguments(
                "corpus", "data.corpus", compute_fn=lambda corpus: corpus.load(), apply_on="instantiate"
            )
            parser.link_arguments(
                "data", "model.total_steps", compute_fn=lambda data: data.steps, apply_on="instantiate"
            )
            parser.link_arguments(
                "data",
                "model.network.init_args.vocab_size",
                compute_fn=lambda data: data.corpus.vocab_size,
                apply_on="instantiate",
            )

    line, sys.argv = (
        sys.argv,
        sys.argv[:1],
    )  # Lightning warns when it is given arguments and finds others there
    try:
        cli = Fit(
            LanguageModule,
            WindowData,
            run=False,
            args=arguments.line[1:],
            save_config_callback=None,
            auto_configure_optimizers=False,
            parser_kwargs={
                "prog": "mnemograph fit",
                "description": f"{SUMMARY[0].upper()}{SUMMARY[1:]}.",
                "epilog": f"examples:\n{EXAMPLES}",
                "formatter_class": argparse.RawDescriptionHelpFormatter,
                "exit_on_error": False,
            },
        )
    except argparse.ArgumentError as error:
        raise RunError(f"{str(error).splitlines()[0]} (see mnemograph fit --help)") from error
    finally:
        sys.argv = line
    cli.trainer.fit(cli.model, cli.datamodule)
    return 0
