"""Reports: what a bundle says about itself, as numbers and as tables."""

from kquant_cli.report.evaluations import evaluation_table
from kquant_cli.report.summary import summarise
from kquant_cli.report.tables import layer_table, totals_table

__all__ = ["evaluation_table", "layer_table", "summarise", "totals_table"]
