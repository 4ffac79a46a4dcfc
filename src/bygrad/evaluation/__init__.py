"""Fair comparison: equally tuned baselines, statistics, figures and the report."""

from .aggregate import bootstrap_iqm, bootstrap_share, interquartile_mean
from .compare import (
    CONVENTION,
    Protocol,
    best_baseline,
    compare,
    compare_bfgs,
    ratio_to_best,
    refuse_one_name,
    tune_baselines,
    tuned_levels,
)
from .grid import GridRuns, run_grid, run_in_time
from .levels import level_row
from .page import Picture, Sheet, write_page
from .report import LEVEL_HEADINGS, level_cells, loss_of, number, results_table, strict_json, time_line, write_report
from .runs import area, curves_side_by_side, final, run_curves
from .second_order import LBFGS, GaussNewton, SecondOrder, bfgs_curves, lbfgs_curves, no_objective
from .statistics import Interval, bootstrap_curves, bootstrap_mean, bootstrap_ratio
from .tuning import Tuning, tune, with_learning_rate

__all__ = [
    "CONVENTION",
    "LBFGS",
    "LEVEL_HEADINGS",
    "GaussNewton",
    "GridRuns",
    "Interval",
    "Picture",
    "Protocol",
    "SecondOrder",
    "Sheet",
    "Tuning",
    "area",
    "best_baseline",
    "bfgs_curves",
    "bootstrap_curves",
    "bootstrap_iqm",
    "bootstrap_mean",
    "bootstrap_ratio",
    "bootstrap_share",
    "compare",
    "compare_bfgs",
    "curves_side_by_side",
    "final",
    "interquartile_mean",
    "lbfgs_curves",
    "level_cells",
    "level_row",
    "loss_of",
    "no_objective",
    "number",
    "ratio_to_best",
    "refuse_one_name",
    "results_table",
    "run_curves",
    "run_grid",
    "run_in_time",
    "strict_json",
    "time_line",
    "tune",
    "tune_baselines",
    "tuned_levels",
    "with_learning_rate",
    "write_page",
    "write_report",
]
