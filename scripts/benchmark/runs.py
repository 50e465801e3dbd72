"""Run one measurement of the benchmark in a process of its own.

    python -m scripts.benchmark.runs NAME OPTIONS

calls the function NAME of `RUNS` with OPTIONS, a JSON object, and prints its result as JSON in the last line.
"""

from __future__ import annotations

import json
import sys

from scripts.benchmark.inference import masks, plain, segment
from scripts.benchmark.training import train

RUNS = {function.__name__: function for function in (segment, plain, masks, train)}

if __name__ == "__main__":
    result = RUNS[sys.argv[1]](**json.loads(sys.argv[2]))
    print("\n" + json.dumps(result))
