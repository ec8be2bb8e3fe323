"""Is there a memory that beats dense and counts together, with counts and without?

Counts know what followed the last few tokens in all that was read, but not what this text has said. A cache does.
"""

from experiments.arms import SAME_TOKENS
from experiments.data import CodeCorpus
from experiments.study import Study
from experiments.tuning import tuned

found = tuned()
# As in the study of scaling: what helped dense most at 3e13, a batch of 32, is given to the arms too.
found["ngram", SAME_TOKENS, 96, 3e13] = found["ngram", SAME_TOKENS, 64, 1e13] | {"batch": 32, "trials": 0}

study = Study(
    data=CodeCorpus(),
    arms=("ngram + cache", "cache", "ngram"),  # <- the intervention; the count control comes with every run
    widths=(64, 96, 128, 160),
    budgets=(1e13, 3e13),
    best_width={1e13: 64, 3e13: 96},
    tuned=found,
    seeds=range(3),
)
