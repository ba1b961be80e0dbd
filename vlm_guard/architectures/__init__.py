"""The model families, one entry each; see `vlm_guard.architecture_entry` and docs/new-family.md."""
