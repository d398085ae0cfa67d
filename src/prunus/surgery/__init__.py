"""Plan, model -> smaller model: one writer, one verifier, and the store that keeps both."""

from __future__ import annotations

from .cut import apply, plans_of

__all__ = ["apply", "plans_of"]
