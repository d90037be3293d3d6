"""The device that an option names."""

import torch

from kquant_cli.errors import KQuantError


def pick_device(name: str) -> torch.device:
    """`auto` (a GPU if there is one), `cpu` or `cuda[:N]`; KQuantError for anything else, or for a missing GPU."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    kind, _, number = name.partition(":")
    if kind not in ("cpu", "cuda") or not (number.isdigit() or name == kind):
        raise KQuantError(f"--device is {name!r}, expected auto, cpu or cuda")
    if kind == "cuda" and int(number or 0) >= torch.cuda.device_count():
        raise KQuantError(
            f"--device {name}: this machine has {torch.cuda.device_count()} CUDA devices that torch can use; give "
            f"--device cpu"
        )
    return torch.device(name)
