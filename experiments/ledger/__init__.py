"""FLOPs and bytes of everything that runs: by phase, module and operator, as exact integers.

It knows operators, never models, and imports nothing else of this project.
"""

from experiments.ledger.bill import Bill
from experiments.ledger.budget import BudgetTooSmall, FlopBudget
from experiments.ledger.callback import LedgerCallback
from experiments.ledger.elementwise import elementwise
from experiments.ledger.ledger import Ledger
from experiments.ledger.machine import Machine
from experiments.ledger.predict import NotPredictable, predict
from experiments.ledger.price import Call, Cost, Price, Rule, Traffic
from experiments.ledger.solve import Match, match_size, steps_for
from experiments.ledger.unpriced import UnpricedOperator

__all__ = [
    "Bill",
    "BudgetTooSmall",
    "Call",
    "Cost",
    "FlopBudget",
    "Ledger",
    "LedgerCallback",
    "Machine",
    "Match",
    "NotPredictable",
    "Price",
    "Rule",
    "Traffic",
    "UnpricedOperator",
    "elementwise",
    "match_size",
    "predict",
    "steps_for",
]
