"""A score for every mention of an answer that vLLM gave, or anybody else: what the lens and the self-check say.

The self-check asks about every thing in a request of its own, one token long; all of them share their prompt's keys.
The lens needs the hidden states of the picture's tokens, which are kept while the first of these requests is read
(`lens_rows`), and read out when the worker is asked for them (`worker`). A server offers both at an address of its own
(`front.mentions_endpoint`), `ground` does the same with vLLM's `LLM`.
"""
