"""Recording and checking behaviour contracts with a model in memory.

The losses and the verdict: whether a greedy answer is the recorded one is decided exactly, by one pass of the model
over prompt and recorded answer in which every recorded token must be the likeliest one. No text is generated for it.
"""
