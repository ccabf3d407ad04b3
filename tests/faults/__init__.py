"""What a run goes through on machines that vanish, and what readers are fed: counted.

python -m tests.faults --out=results/faults.md
"""

import os
import sys
from pathlib import Path

# NumPy would start threads when it is imported, and a process with threads cannot be forked.
os.environ["OPENBLAS_NUM_THREADS"] = "1"

sys.path.insert(1, str(Path(__file__).parents[1]))  # modules of other tests

MEMORY = 3 * 2**28  # bytes by which a process that reads may grow
