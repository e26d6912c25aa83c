"""The extension modules, which setup.cfg cannot name; all else stands there. Without a compiler they are left out."""

from typing import Any

from setuptools import Extension, setup


def extension(name: str, **more: Any) -> Extension:
    source = f"geventws/{name}.c"
    flags = ["-O3"]
    return Extension(f"geventws.{name}", [source], extra_compile_args=flags, py_limited_api=True, optional=True, **more)


setup(ext_modules=[extension("_mask"), extension("_inflate", libraries=["z"])])
