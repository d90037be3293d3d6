"""The kinds of hostility of scripts/torture.py, one file each."""

from torture_kinds import faults, kills, limits, pairs, source

ALL = (
    kills.KILLS,
    kills.RANDOM_KILLS,
    faults.KIND,
    limits.MEMORY,
    limits.DISK,
    pairs.KIND,
    source.KIND,
)
KINDS = {kind.name: kind for kind in ALL}
