"""The extension modules, which setup.cfg cannot name; all else stands there. Without a compiler they are left out."""

import sys
from typing import Any

from setuptools import Extension, setup


def extension(name: str, **more: Any) -> Extension:
    source = f"geventws/{name}.c"
    flags = ["-O3"]
    more["depends"] = ["geventws/_frame.h"]
    return Extension(f"geventws.{name}", [source], extra_compile_args=flags, py_limited_api=True, optional=True, **more)


modules = [extension("_mask"), extension("_inflate", libraries=["z"])]
if sys.platform == "linux" and sys.implementation.name == "cpython":  # which greenlet's C API and epoll are for
    modules.append(extension("_fast"))
setup(ext_modules=modules)
