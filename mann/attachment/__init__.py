"""Memories for causal language models of Hugging Face that are there already, by hooks: their code stays as it is."""

from mann.attachment.attached import Attached, attach

__all__ = ["Attached", "attach"]
