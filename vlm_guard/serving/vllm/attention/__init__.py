"""Attention with guarded rows over a paged cache: the plan of a step, and the rows computed anew layer by layer.

`step_plan` says which rows are guarded, `paged_attention` edits them. How blocks are read is the `backends`' affair;
here stands what they have in common.
"""
