"""Run every benchmark after the other and write what they measured into the files beside this one."""

from __future__ import annotations

import argparse
import ast
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
# What each takes besides --quick's one run, to be over soon.
BENCHMARKS: dict[str, tuple[str, ...]] = {
    "echo": ("--seconds", "0.2"),
    "deflate": (),
    "libraries": (),
    "memory": ("--connections", "500"),
    "connections": (),
    "growth": ("--connections", "500"),
    "broadcast": ("--windows", "1", "--seconds", "0.2", "--scenarios", "1000", "1000-compressed"),
    "bus": ("--windows", "1", "--seconds", "0.3", "--shapes", "20x10"),
    "sizing": ("--windows", "1", "--seconds", "0.2", "--tenth"),
}


def main() -> int:
    described = "\n".join(f"  {name:<12} {purpose(name)}" for name in BENCHMARKS)
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description=f"{__doc__}\n\n{described}\n\npython -m benchmarks.NAME --help tells what each can do by itself.",
        epilog="The soak is apart, because it takes 20 minutes: python -m benchmarks.soak",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--quick", action="store_true", help="one short run of each, which writes nothing: do they work?"
    )
    options = parser.parse_args()
    failed = []
    for name, quick in BENCHMARKS.items():
        arguments = ["--runs", "1", *quick] if options.quick else ["--write"]
        print(f"benchmarks.{name} {' '.join(arguments)}", file=sys.stderr, flush=True)
        if subprocess.run([sys.executable, "-m", f"benchmarks.{name}", *arguments], cwd=HERE.parent).returncode:
            failed.append(name)
    if failed:
        print(f"failed: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


def purpose(name: str) -> str:
    """Return the first line of a benchmark's docstring; its imports need not be there for --help."""
    return (ast.get_docstring(ast.parse((HERE / f"{name}.py").read_text(encoding="utf-8"))) or "").partition("\n")[0]


if __name__ == "__main__":
    sys.exit(main())
