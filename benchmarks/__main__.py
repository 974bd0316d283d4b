"""``python -m benchmarks NAME``: progress on stderr, one JSON object as the last line."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from benchmarks.harness import MODULES, run


def main() -> int:
    """Run the named benchmark, or list them all."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks")
    parser.add_argument("name", nargs="?", choices=sorted(MODULES))
    parser.add_argument("--quick", action="store_true", help="smallest sizes; never quoted")
    parser.add_argument(
        "--results",
        type=Path,
        metavar="FILE",
        help="keep finished runs there, and go on from it (codec-accuracy, poison, refine, "
        "simulate-niid, simulate-real, tune)",
    )
    parser.add_argument(
        "--only",
        type=lambda text: text.split(","),
        metavar="A,B",
        help="these of its runs (simulate-niid: fedavg-iid,scaffold-dirichlet)",
    )
    parser.add_argument(
        "--rounds", type=int, metavar="N", help="rounds of each run; fewer are never quoted"
    )
    arguments = parser.parse_args()
    if arguments.name is None:
        print("\n".join(sorted(MODULES)))
        return 0
    for variable in ("FLWR_TELEMETRY_ENABLED", "RAY_USAGE_STATS_ENABLED"):
        os.environ[variable] = "0"
    os.environ["FLWR_DISABLE_UPDATE_CHECK"] = "1"
    return run(
        arguments.name,
        quick=arguments.quick,
        results=arguments.results,
        only=arguments.only,
        rounds=arguments.rounds,
    )


if __name__ == "__main__":
    sys.exit(main())
