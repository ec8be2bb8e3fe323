"""The only place that knows everything: data, ledger, studies, reports, the command."""
