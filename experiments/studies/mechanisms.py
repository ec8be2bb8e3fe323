"""Which memory mechanism buys the most at equal training FLOPs? All that the library has, one or two at a time.

Before dense of these sizes has learned to copy, and after.
"""

from experiments.arms import ARMS
from experiments.data import CodeCorpus
from experiments.study import Study
from experiments.tuning import tuned

TABLES = ("ngram", "ngram values", "large ngram", "engram", "bigram")
CHOSEN = ("product keys", "PEER", "UltraMem", "STEM", "mixture")
MIXED = ("window", "kNN attention", "latent", "native sparse", "delta rule")
READ = ("neural memory", "slots", "compressive", "retro", "knn", "graph")
READOUTS = ("cache", "TRIME", "suffix counts", "ngram + cache", "ngram + TRIME", "ngram + product keys")

study = Study(
    data=CodeCorpus(),
    arms=tuple(ARMS[name] for name in (*TABLES, *CHOSEN, *MIXED, *READ, *READOUTS)),  # <- the intervention
    controls=("unigram table", "random neighbours", "shuffled edges"),
    widths=(32, 48, 64, 96, 128),
    budgets=(1e12, 1e13),
    reach=(3e11, 3e12, 3e13),
    best_width={3e11: 48, 1e12: 64, 3e12: 64, 1e13: 64, 3e13: 96},
    tuned=tuned(),
    seeds=range(3),
)
