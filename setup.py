"""Puts `kquant_autoload.pth` beside the package, in wheels and in editable installs; all else is in pyproject.toml.

Every interpreter that has kquant installed runs its one line at its start (kquant_autoload.py says what for). A fault
there never keeps an interpreter from starting.
"""

from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

NAME = "kquant_autoload.pth"
LINE = (
    "import os; os.environ.get('KQUANT_AUTOLOAD') == '0' or "
    "exec('try:\\n import kquant_autoload\\nexcept Exception:\\n pass')\n"
)


class BuildWithAutoload(build_py):
    """`build_py`, and the file at the root of what is installed."""

    def run(self) -> None:
        """Write it where the package is built, or where an editable install is made."""
        super().run()
        folder = self.get_finalized_command("install").install_lib if self.editable_mode else self.build_lib
        Path(folder, NAME).write_text(LINE, encoding="utf-8")

    def get_outputs(self, include_bytecode: bool = True) -> list[str]:
        """What is installed."""
        return [*super().get_outputs(include_bytecode), str(Path(self.build_lib, NAME))]


setup(cmdclass={"build_py": BuildWithAutoload})
