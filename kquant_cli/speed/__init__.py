"""How fast a model runs and what it needs: tokens a second, memory, load time, and the floor that the memory sets."""

from kquant_cli.speed.bench import Row, bench
from kquant_cli.speed.measure import Measurement, Workload

__all__ = ["Measurement", "Row", "Workload", "bench"]
