"""Files that are not trusted, or must not be lost: written whole or not at all, read within bounds, hashed."""
