"""Run one measurement, given as JSON, and print its outcome as JSON."""

import json
import sys

from dal_jax.bench._run import do

if __name__ == "__main__":
    print(json.dumps(do(json.loads(sys.argv[1]))))
