"""Fair comparison: equally tuned baselines, statistics, figures and the report."""

from .compare import CONVENTION, Protocol, best_baseline, compare, compare_bfgs, tune_baselines
from .page import Picture, Sheet, write_page
from .report import level_cells, results_table, strict_json, write_report
from .runs import area, final, run_curves
from .second_order import bfgs_curves, lbfgs_curves
from .statistics import Interval, bootstrap_curves, bootstrap_mean
from .tuning import Tuning, tune, with_learning_rate

__all__ = [
    "CONVENTION",
    "Interval",
    "Picture",
    "Protocol",
    "Sheet",
    "Tuning",
    "area",
    "best_baseline",
    "bfgs_curves",
    "bootstrap_curves",
    "bootstrap_mean",
    "compare",
    "compare_bfgs",
    "final",
    "lbfgs_curves",
    "level_cells",
    "results_table",
    "run_curves",
    "strict_json",
    "tune",
    "tune_baselines",
    "with_learning_rate",
    "write_page",
    "write_report",
]
