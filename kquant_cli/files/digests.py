"""SHA-256 of files, whole or as a part of something larger, without holding them in memory."""

from __future__ import annotations

from hashlib import file_digest, sha256
from pathlib import Path
from typing import Any

from kquant_cli.files.plain_file import open_plain


def file_sha256(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal. OSError passes through."""
    digest = sha256()
    add_file(digest, path)
    return digest.hexdigest()


def add_file(digest: Any, path: Path) -> None:
    """Take the bytes of a file into `digest` (of hashlib), a piece at a time. OSError passes through."""
    with open_plain(path) as file:
        file_digest(file, lambda: digest)
