"""The one extension module, which setup.cfg cannot name; all else stands there. Without a compiler it is left out."""

from setuptools import Extension, setup

mask = Extension("geventws._mask", ["geventws/_mask.c"], extra_compile_args=["-O3"], py_limited_api=True, optional=True)
setup(ext_modules=[mask])
