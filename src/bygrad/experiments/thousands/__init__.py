"""The comparison for families of problems that are solved thousands of times."""

from .families import CASES, Case, Goal
from .study import EFFORTS, THOUSANDS, Effort, compare

__all__ = ["CASES", "EFFORTS", "THOUSANDS", "Case", "Effort", "Goal", "compare"]
