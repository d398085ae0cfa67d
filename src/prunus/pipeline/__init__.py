"""The whole way from a recipe to a smaller model: nine steps, resumable, each with its section of the report.

recipe ─▶ 1 train or load ─▶ 2 initialise ─▶ 3 criterion ─▶ 4 structure ─▶ 5 execute ─▶ 6 fine-tune
       ─▶ 7 validate (test data, once) ─▶ 8 constrained device ─▶ 9 document
"""

from __future__ import annotations

from pathlib import Path

from .loading import load_recipe
from .recipe import Recipe
from .runner import Run, run

DEMO = Path(__file__).with_name("demo.yaml")
"""The recipe of `prunus demo`."""

__all__ = ["DEMO", "Recipe", "Run", "load_recipe", "run"]
