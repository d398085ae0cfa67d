"""The methods of the literature by name: each composes the parts of the package and says where it comes from.

A method that is one scoring rule is a card that names its criterion; a whole procedure (a training method, a lottery
ticket) is a short module with a `run(task, **options) -> Outcome`. `prunus methods` prints the table.
"""

from .card import Card
from .table import FACETS, card_of, methods, select
from .task import Outcome, Task, run

__all__ = ["Card", "FACETS", "Outcome", "Task", "card_of", "methods", "run", "select"]
