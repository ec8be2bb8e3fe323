"""One model trained with Lightning from the command line: constructors are the options."""

from __future__ import annotations

from typing import Any

from lightning.pytorch.cli import LightningArgumentParser, LightningCLI

from experiments.data import CodeCorpus, TextCorpus
from experiments.data.module import WindowData
from mann import LanguageModule

DEFAULTS: dict[str, Any] = {
    "model.network": {"class_path": "mann.Transformer", "init_args": {"d_model": 64, "n_layers": 3}},
    "data.source": {"class_path": "experiments.data.CodeCorpus"},
    "data.n_tokens": 1_000_000,
    "trainer.max_epochs": 1,
    "trainer.accelerator": "cpu",
    "trainer.logger": False,
    "trainer.enable_model_summary": False,
    "trainer.limit_val_batches": 0,
}


class CorpusData(WindowData):
    """Windows of a corpus that is loaded when the data module is made.

    Args:
        source: Loads the text.
        **options: As :class:`experiments.data.module.WindowData` takes them.
    """

    def __init__(self, source: CodeCorpus | TextCorpus, **options: Any) -> None:
        super().__init__(source.load(), **options)


class FitCommand(LightningCLI):
    """Lightning's command line for :class:`mann.LanguageModule`; what the data decides is not typed twice.

    Args:
        arguments: The command line after the command.
        parser: Keyword arguments of the parser.
    """

    def __init__(self, arguments: list[str], **parser: Any) -> None:
        super().__init__(
            LanguageModule,
            CorpusData,
            run=False,
            args=arguments,
            save_config_callback=None,
            auto_configure_optimizers=False,
            seed_everything_default=0,
            parser_kwargs=parser,
        )

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Lightning's hook for defaults and links."""
        parser.set_defaults(DEFAULTS)
        parser.link_arguments(
            "data", "model.total_steps", compute_fn=lambda data: data.steps, apply_on="instantiate"
        )
        parser.link_arguments(
            "data",
            "model.network.init_args.vocab_size",
            compute_fn=lambda data: data.corpus.vocab_size,
            apply_on="instantiate",
        )
