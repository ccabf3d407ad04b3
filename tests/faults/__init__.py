"""What a run goes through on machines that vanish, and what readers are fed: counted.

python -m tests.faults --out=results/faults.md
"""

import sys
from pathlib import Path

sys.path.insert(1, str(Path(__file__).parents[1]))  # `small` and `small_run`, as in other tests

MEMORY = 3 * 2**28  # bytes by which a process that reads may grow
