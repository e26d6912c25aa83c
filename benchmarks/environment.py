"""What the benchmarks need and make themselves: an environment with the peers, from PyPI and npm, and C programs."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent


@dataclass(frozen=True)
class Environment:
    python: Path
    versions: dict[str, str]  # of what requirements.txt and package.json name
    missing: dict[str, str]  # requirement to the reason that pip or npm gave


def prepare(upgrade: bool) -> Environment:
    """Return the peers' environment, kept in the user's cache directory; install what is not in it yet.

    Each requirement is installed by itself: one that cannot be is reported and takes no other with it.
    """
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    directory = cache / "geventws-benchmarks" / str(sys.implementation.cache_tag)
    python = directory / "bin" / "python"
    if not python.exists():
        print(f"making {directory}", file=sys.stderr)
        subprocess.run([sys.executable, "-m", "venv", directory], check=True)
    names = {line: line.partition("[")[0] for line in (HERE / "requirements.txt").read_text().split()}
    installed, missing = versions(python), {}
    for requirement, name in names.items():
        if name in installed and not upgrade:
            continue
        print(f"installing {requirement}", file=sys.stderr)
        pip = [str(python), "-m", "pip", "--disable-pip-version-check", "install", "--quiet", "--upgrade", requirement]
        done = subprocess.run(pip, capture_output=True, text=True)
        if done.returncode:
            missing[requirement] = (done.stderr.strip().splitlines() or [f"pip ended with {done.returncode}"])[-1]
    installed = versions(python)
    present = {name: installed[name] for name in names.values() if name in installed}
    try:
        present |= node_packages(directory, upgrade)
    except (OSError, subprocess.CalledProcessError) as error:
        missing["package.json"] = str(error)
    return Environment(python, present, missing)


def versions(python: Path) -> dict[str, str]:
    pip = [str(python), "-m", "pip", "--disable-pip-version-check", "list", "--format=json"]
    listed = json.loads(subprocess.run(pip, check=True, capture_output=True, text=True).stdout)
    return {package["name"].lower(): package["version"] for package in listed}


def node_packages(directory: Path, upgrade: bool) -> dict[str, str]:
    """Install what package.json names; return the versions of Node and of these packages.

    Raises OSError without Node or npm, CalledProcessError when npm fails.
    """
    node = subprocess.run(["node", "--version"], check=True, capture_output=True, text=True).stdout.strip()
    wanted = json.loads((HERE / "package.json").read_text())["dependencies"]
    packages = {name: directory / "node_modules" / name / "package.json" for name in wanted}
    if upgrade or not all(package.exists() for package in packages.values()):
        print(f"installing {', '.join(wanted)}", file=sys.stderr)
        shutil.copy(HERE / "package.json", directory)
        npm = ["npm", "install", "--silent", "--no-package-lock", "--prefix", str(directory)]
        subprocess.run(npm, check=True, stdout=sys.stderr)
    found = {name: json.loads(package.read_text())["version"] for name, package in packages.items()}
    return {"node": node.removeprefix("v"), **found}


def compile_programs(build: Path) -> None:
    for name in ("load", "echo"):
        subprocess.run(["cc", "-O2", "-o", build / name, HERE / f"{name}.c"], check=True)
