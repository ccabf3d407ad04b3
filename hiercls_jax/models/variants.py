"""The five architectures of the paper's Figure 2, by the names of configs, folders and results."""

# How many of the stages the levels share; None for one network per level, trained apart.
VARIANTS: dict[str, int | None] = {
    "separate": None,  # Figure 2c
    "merge0": 0,  # Figure 2d
    "merge1": 1,  # Figure 2e
    "merge2": 2,  # Figure 2f
    "merge3": 3,  # Figure 2g
}
