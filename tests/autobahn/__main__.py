"""python -m tests.autobahn: all cases against both front ends, a summary, exit status 1 on any surprise."""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

from ..servers import FRONT_ENDS
from . import installation
from .run import ALL, QUICK, read_expected, run, select, write_expected


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.autobahn", description=__doc__)
    chosen = parser.add_mutually_exclusive_group()
    chosen.add_argument("--cases", nargs="+", default=ALL, metavar="PATTERN", help="only these, such as 6.* 9.1.6")
    chosen.add_argument(
        "--quick", action="store_const", const=QUICK, dest="cases", help=f"only {' '.join(QUICK)}, as pytest does"
    )
    parser.add_argument("--front-end", choices=(*FRONT_ENDS, "both"), default="both")
    parser.add_argument("--update", action="store_true", help="expect from now on what the first front end does")
    parser.add_argument("--report", type=Path, metavar="DIR", help="keep the client's HTML report and the logs here")
    arguments = parser.parse_args()
    try:
        client = installation.fuzzing_client()
        cases = select(client, arguments.cases)
    except (installation.NoPython27, ValueError) as error:
        parser.error(str(error))

    front_ends = list(FRONT_ENDS) if arguments.front_end == "both" else [arguments.front_end]
    with tempfile.TemporaryDirectory() as scratch:
        reports = run(client, front_ends, cases, (arguments.report or Path(scratch)).absolute())
        if arguments.update:
            write_expected(read_expected() | reports[0].outcomes)
        expected = read_expected()
        differences = [line for report in reports for line in report.differences(cases, expected)]
    for report in reports:
        print(report.summary())
    for difference in differences:
        print(difference)
    if arguments.report:
        print(*(f"report: {report.directory / 'index.html'}" for report in reports), sep="\n")
    return 1 if differences else 0


if __name__ == "__main__":
    sys.exit(main())
