"""What a run gained and lost: a table to print, a page, a plot and the raw figures."""

from dsee.report.rows import Row, rows
from dsee.report.write import write_report

__all__ = ["Row", "rows", "write_report"]
