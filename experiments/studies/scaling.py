"""Does what a memory is worth survive more compute? Dense, n-gram, graph and counts over thirtyfold budgets.

Takes hours on a laptop, not minutes; it can be stopped and continued at any time.
"""

from experiments.arms import SAME_TOKENS
from experiments.data import CodeCorpus
from experiments.study import Study
from experiments.tuning import tuned

found = tuned()
# Only dense was tuned at 3e13. What helped it most there was a batch of 32 instead of 16: arms on the same tokens take
# it over, the rest being what was found for them at 1e13 (where the one on the whole corpus has that batch already).
for arm in ("ngram", "graph"):
    found[arm, SAME_TOKENS, 96, 3e13] = found[arm, SAME_TOKENS, 64, 1e13] | {"batch": 32, "trials": 0}

study = Study(
    data=CodeCorpus(),
    arms=("ngram", "graph"),  # <- the intervention; the count control comes with every dense run
    whole_corpus=("graph",),
    widths=(32, 48, 64, 96, 128, 192, 256),
    budgets=(1e12, 3e12, 1e13, 3e13),
    reach=(3e11, 1e14),
    best_width={3e11: 48, 1e12: 64, 3e12: 64, 1e13: 64, 3e13: 96, 1e14: 128},
    tuned=found,
    seeds=range(3),
)
