"""The kinds of hostility of scripts/torture.py, one file each."""

from torture_kinds import bundles, checkpoints, faults, kills, limits, names, pairs, settings, source

ALL = (
    kills.KILLS,
    kills.RANDOM_KILLS,
    faults.KIND,
    limits.MEMORY,
    limits.DISK,
    pairs.KIND,
    source.KIND,
    bundles.KIND,
    checkpoints.KIND,
    settings.KIND,
    names.KIND,
)
KINDS = {kind.name: kind for kind in ALL}
