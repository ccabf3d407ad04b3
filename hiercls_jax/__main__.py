"""`python -m hiercls_jax` lists the commands."""

COMMANDS = """\
hiercls_jax: hierarchical image classification with merged networks and test-time adaptation

  python -m hiercls_jax.main --config=configs/merge1.py:quick
      train a merged network on the embedded data, adapt its predictions, report (3 minutes)
  python -m hiercls_jax.main --config=configs/merge1.py
      the paper's experiment: ResNet-164 on CIFAR-100
  python -m hiercls_jax.main --config=configs/merge1.py --mode=summary
      parameters and multiply-adds of each stage and branch
  python -m hiercls_jax.main --help
      all flags"""

if __name__ == "__main__":
    print(COMMANDS)
