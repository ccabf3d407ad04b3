"""The five architectures of the paper's Figure 2."""

# How many stages the levels share; None for networks that are trained apart (Figure 2c-2g).
VARIANTS = {"separate": None, "merge0": 0, "merge1": 1, "merge2": 2, "merge3": 3}
