"""python -m tests.fuzz: fuzz a target for a while, write its corpus anew, or run single inputs."""

from __future__ import annotations

import argparse
import hashlib
import importlib
import sys
from collections.abc import Iterable
from pathlib import Path

from . import CORPUS, TARGETS

LONGEST_INPUT = 4096  # bytes
SLOWEST_INPUT = 20  # seconds, on a machine with much else to do


def _prepare(arguments: argparse.Namespace, seeds: Iterable[bytes]) -> list[str]:
    """Write the seeds to where finds are kept; return libFuzzer's arguments."""
    corpus, finds = CORPUS / arguments.target, arguments.directory / arguments.target
    finds.mkdir(parents=True, exist_ok=True)
    for seed in seeds:
        (finds / hashlib.sha1(seed).hexdigest()).write_bytes(seed)
    flags = [f"-max_len={LONGEST_INPUT}", f"-timeout={SLOWEST_INPUT}", f"-artifact_prefix={finds}."]
    if arguments.minimise:
        for path in corpus.iterdir():
            path.replace(finds / path.name)
        return [*flags, "-set_cover_merge=1", "-use_counters=0", "-use_cmp=0", str(corpus), str(finds)]
    return [*flags, "-print_final_stats=1", f"-max_total_time={arguments.seconds}", str(finds), str(corpus)]


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m tests.fuzz",
        description=(__doc__ or "").partition(": ")[2],
        epilog="What it does not know goes to libFuzzer, such as -seed=1 or -help=1.",
    )
    parser.add_argument("target", choices=TARGETS)
    parser.add_argument("inputs", nargs="*", type=Path, metavar="INPUT", help="files to run instead of fuzzing")
    parser.add_argument("--seconds", type=int, default=60, help="how long to fuzz (default: 60)")
    parser.add_argument(
        "--directory", type=Path, default=Path(".fuzz"), help="where finds are kept, to go on from (default: .fuzz)"
    )
    parser.add_argument(
        "--minimise", action="store_true", help="write the corpus anew: the fewest inputs that cover what all do"
    )
    arguments, flags = parser.parse_known_args()
    module = f"tests.fuzz.{arguments.target}"
    if arguments.inputs and not flags:
        target = importlib.import_module(module)
        for path in arguments.inputs:
            target.run(path.read_bytes())
        return

    try:
        import atheris
    except ImportError:
        sys.exit("fuzzing needs atheris, which is there for Linux on x86-64: pip install atheris")
    with atheris.instrument_imports(include=["geventws"]):
        target = importlib.import_module(module)
    if not any(flag.startswith("-merge_inner") for flag in flags):  # by which libFuzzer runs this program for itself
        flags = [*_prepare(arguments, target.seeds()), *flags]
    atheris.Setup([f"{sys.executable} -m tests.fuzz {arguments.target}", *flags], target.run)
    atheris.Fuzz()


main()
