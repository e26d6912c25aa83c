"""Runs a module as if another were not installed: python -m benchmarks.servers.without zlib_ng gunicorn ..."""

import runpy
import sys

_, hidden, *sys.argv = sys.argv
sys.modules[hidden] = None  # type: ignore[assignment]
runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
