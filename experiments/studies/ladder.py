"""Does the graph help, or only what was retrieved? One more kind of edge at each rung, and the controls beside."""

from experiments.data import CodeCorpus
from experiments.study import Study
from experiments.tuning import tuned

RETRIEVED = ("pointing", "knn", "set of answers")
GRAPHS = ("mean of windows", "graph", "GNN-LM", "GNN-LM, 3 rounds", "GNN-LM over edges")

study = Study(
    data=CodeCorpus(),
    arms=(*RETRIEVED, *GRAPHS),  # <- the intervention
    controls=("random neighbours", "shuffled edges"),
    widths=(48, 64, 96, 128),
    budgets=(1e12, 3e12),
    reach=(3e11, 1e13),
    best_width={3e11: 48, 1e12: 64, 3e12: 64, 1e13: 64},
    tuned=tuned(),
    seeds=range(3),
)
