"""Files: written whole or not at all, read within bounds; the one room that touches a disk."""
