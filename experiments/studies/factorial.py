"""Do the gains of n-gram tables, product keys and retrieval add up? Every set of the three."""

from experiments.data import CodeCorpus
from experiments.study import Study
from experiments.tuning import tuned

ALONE = ("ngram", "product keys", "knn")
TOGETHER = ("ngram + product keys", "ngram + knn", "product keys + knn", "ngram + product keys + knn")

study = Study(
    data=CodeCorpus(),
    arms=(*ALONE, *TOGETHER),  # <- the intervention
    widths=(32, 48, 64, 96, 128),
    budgets=(1e12, 3e12),
    reach=(3e11, 1e13),
    best_width={3e11: 48, 1e12: 64, 3e12: 64, 1e13: 64},
    tuned=tuned(),
    seeds=range(3),
)
