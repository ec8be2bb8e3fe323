"""Does a looked-up memory, or a graph over what was looked up, buy more bits per byte than width, per FLOP?"""

from experiments.data import CodeCorpus
from experiments.study import Study

# Wide models take their steps on more text.
SIZED = {128: {"batch": 8}, 192: {"batch": 8}}

study = Study(
    data=CodeCorpus(),
    arms=(
        "ngram",
        "knn",
        "graph",
    ),  # <- the intervention; a store holds only the tokens its arm was trained on
    whole_corpus=(
        "knn",
        "graph",
    ),  # the same with all training text to look up: data access, not architecture
    controls=("unigram table", "random neighbours", "shuffled edges"),
    widths=(48, 64, 96, 128),
    budgets=(1e12, 3e12),
    reach=(3e11, 1e13),
    best_width={3e11: 48, 1e12: 64, 3e12: 64, 1e13: 96},
    sized=SIZED,
    seeds=range(3),
)
