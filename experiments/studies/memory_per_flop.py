"""Does a looked-up memory, or a graph over what was looked up, buy more bits per byte than width, per FLOP?"""

from experiments.data import CodeCorpus
from experiments.study import Study
from experiments.tuning import tuned

study = Study(
    data=CodeCorpus(),
    # The intervention. A store holds only the tokens that its arm is trained on ...
    arms=("ngram", "knn", "graph"),
    # ... or all of the training text: that is data access, not architecture, and reported apart.
    whole_corpus=("knn", "graph"),
    controls=("unigram table", "random neighbours", "shuffled edges"),
    widths=(32, 48, 64, 96, 128),
    budgets=(1e12, 3e12),
    reach=(3e11, 1e13),
    best_width={3e11: 48, 1e12: 64, 3e12: 64, 1e13: 64},
    tuned=tuned(),
    seeds=range(3),
)
