"""What vLLM's model runners tell of the rows of a step. vLLM has two of them, which keep their requests differently.

`first_runner` and `second_runner` fill the same table of guarded rows (`rows`), and have the logits of pairs contrasted
in the same way (`contrasts`). `layer_inputs` shows methods what enters the layers of a model that either of them loads.
What else differs between the two belongs here.
"""
