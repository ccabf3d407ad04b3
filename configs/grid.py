"""The paper's experiments: every variant of Figure 2, five seeds, of each of its two networks.

    python -m hiercls_jax grid --config=configs/grid.py
        ResNet-164 and DenseNet-BC-100 on CIFAR-100, 50 runs
    python -m hiercls_jax grid --config=configs/grid.py:cpu,epochs=12
        a small ResNet, 25 runs, some three and a half hours on two CPU cores
    python -m hiercls_jax grid --config=configs/grid.py:quick
        the embedded data, half an hour

The arguments are those of the variants' own configs, which stand beside this file.
"""

from hiercls_jax.experiment import grid

get_config = grid.compose
