"""One file per paper; found by scanning this folder."""
