"""Where does the gain of n-gram tables end as tokens grow longer? Once a vocabulary: bytes, 1k, 4k, 16k tokens.

`mnemograph compare vocabulary --vocab-size 257 --out runs/vocabulary/257`, and so for 1024, 4096 and 16384.
"""

from experiments.data import CodeCorpus
from experiments.study import Study
from experiments.tuning import tuned

study = Study(
    data=CodeCorpus(),  # <- the intervention: --vocab-size
    arms=("ngram", "ngram + cache"),
    controls=("unigram table",),
    widths=(32, 48, 64, 96, 128),
    budgets=(1e12,),
    reach=(3e11, 3e12),
    best_width={3e11: 48, 1e12: 64, 3e12: 64},
    tuned=tuned(),
    seeds=range(3),
)
