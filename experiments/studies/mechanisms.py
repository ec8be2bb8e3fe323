"""Which memory mechanism buys the most at equal training FLOPs? All that the library has, one or two at a time."""

from experiments.arms import ARMS
from experiments.data import CodeCorpus
from experiments.study import Study
from experiments.tuning import tuned

LOOKED_UP = ("ngram", "engram", "bigram", "product keys", "PEER", "UltraMem", "STEM", "mixture")
MIXED = ("window", "kNN attention", "latent", "native sparse", "delta rule")
READ = ("neural memory", "slots", "compressive", "retro", "knn", "graph")
READOUTS = ("cache", "TRIME", "suffix counts", "ngram + cache", "ngram + TRIME", "ngram + product keys")

study = Study(
    data=CodeCorpus(),
    arms=tuple(ARMS[name] for name in (*LOOKED_UP, *MIXED, *READ, *READOUTS)),  # <- the intervention
    controls=("unigram table", "random neighbours", "shuffled edges"),
    widths=(32, 48, 64, 96, 128),
    budgets=(1e12,),
    reach=(3e11, 3e12, 1e13),
    best_width={3e11: 48, 1e12: 64, 3e12: 64, 1e13: 64},
    tuned=tuned(),
    seeds=range(3),
)
