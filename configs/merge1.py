"""Stage 1 shared, a branch per level behind it (Figure 2e).

    python -m hiercls_jax.main --config=configs/merge1.py
        ResNet-164 on CIFAR-100, 3.35 M parameters
    python -m hiercls_jax.main --config=configs/merge1.py:cpu
        a small ResNet on CIFAR-100, half an hour on two CPU cores
    python -m hiercls_jax.main --config=configs/merge1.py:fast,width=0.5
        the fast family at half its width on CIFAR-100, an hour on two CPU cores or less
    python -m hiercls_jax.main --config=configs/merge1.py:quick
        the embedded data, minutes on a CPU, no download

`hiercls-jax train merge1` is the same config without this file, in any folder.

Expected error: 24.3 % fine for one ResNet-164 (He et al. 2016, all of train); the paper gives its
own as figures only. Expected time: the run says after its first steps what it will take; the full
recipe is for an accelerator.
"""

from hiercls_jax import experiment

get_config = experiment.variant("merge1")
