"""What the ``mnemograph`` command can do: one command, one file.

Each has SUMMARY, EXAMPLES, ``configure(parser)`` and ``run(arguments)``, and imports what is heavy in ``run``.
"""
