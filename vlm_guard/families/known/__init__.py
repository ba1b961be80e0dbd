"""The model families, one entry each; see `vlm_guard.families.family` and docs/new-family.md."""
