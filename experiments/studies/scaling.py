"""Does what a memory is worth survive more compute? The default comparison over a hundredfold range of budgets.

Takes hours on a laptop, not minutes; it can be stopped and continued at any time.
"""

from experiments.data import CodeCorpus
from experiments.studies.memory_per_flop import SIZED
from experiments.study import Study

study = Study(
    data=CodeCorpus(),
    arms=("ngram", "graph", "suffix graph"),  # <- the intervention
    whole_corpus=("graph", "suffix graph"),
    controls=("unigram table", "random neighbours", "shuffled edges"),
    widths=(48, 64, 96, 128, 192),
    budgets=(3e11, 1e12, 3e12, 1e13, 3e13),
    reach=(1e11, 1e14),
    best_width={1e11: 48, 3e11: 48, 1e12: 64, 3e12: 64, 1e13: 96, 3e13: 128, 1e14: 192},
    sized=SIZED,
    seeds=range(3),
    control_seeds=3,
)
