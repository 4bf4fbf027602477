"""Compiles the C library into the wheel, where a compiler is found. pyproject.toml says everything else."""

import pathlib
import runpy
import subprocess

from setuptools import Distribution, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_py import build_py

NATIVE = pathlib.Path(__file__).parent / "smalle" / "native"


class BuildWithLibrary(build_py):
    """Also compiles the library; an editable install compiles it into the user's cache when it is first needed."""

    def run(self):
        super().run()
        if self.editable_mode:
            return
        folder = pathlib.Path(self.build_lib, "smalle", "native")
        folder.mkdir(parents=True, exist_ok=True)
        for old in folder.glob("smalle-*.so"):  # of another version, from a build folder that is used again
            old.unlink()
        try:
            runpy.run_path(str(NATIVE / "build.py"))["build"](folder)
        except (OSError, subprocess.CalledProcessError) as error:
            print(f"The wheel is built without the C library, which will be compiled when it is first used: {error}")


class PlatformWheel(bdist_wheel):
    """A wheel for one platform and any Python 3: it may hold a library, which is not a Python extension."""

    def get_tag(self):
        *_, platform = super().get_tag()
        return "py3", "none", platform


class PlatformDistribution(Distribution):
    """Installs into the folder for a platform's files, as packages with extensions do."""

    def has_ext_modules(self):
        return True


setup(cmdclass={"build_py": BuildWithLibrary, "bdist_wheel": PlatformWheel}, distclass=PlatformDistribution)
