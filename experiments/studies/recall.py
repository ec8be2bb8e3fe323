"""How much compute does it take to recall which value came with a key? Answers are "bytes": bits per answer.

Multi-query associative recall of 4 to 32 pairs, without filling text that could be learned by heart.
"""

from experiments.data import RecallCorpus
from experiments.study import Study

MIXED = ("window", "kNN attention", "latent", "native sparse", "delta rule")
READ = ("neural memory", "slots", "compressive", "cache", "TRIME")

study = Study(
    data=RecallCorpus(vocab_size=512, pairs=(4, 8, 16, 32), examples=60_000),
    arms=(*MIXED, *READ),  # <- the intervention
    widths=(32, 48, 64, 96),
    budgets=(3e11, 1e12),
    reach=(1e11, 3e12),
    best_width={1e11: 32, 3e11: 32, 1e12: 48, 3e12: 64},
    seeds=range(3),
)
