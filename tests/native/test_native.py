"""The tests in ``native/tests``: compiled with AddressSanitizer and UndefinedBehaviorSanitizer, and run.

One build directory, kept from run to run, so that only what has changed is compiled again. Without a C++ compiler or
CMake there is nothing to run, except in CI, where that is a failure.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
BUILD = ROOT / "build" / "native-tests"
TESTS = sorted(path.stem for path in (ROOT / "native" / "tests").glob("test_*.cpp"))

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]  # compiling everything takes minutes of a core


def _tool(*names: str) -> str | None:
    """The first of these programs that there is, on the path or beside this interpreter."""
    path = os.pathsep.join([os.environ.get("PATH", ""), str(Path(sys.executable).parent)])
    return next((found for name in names if (found := shutil.which(name, path=path))), None)


def _run(*command: str | Path) -> None:
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace")
    if done.returncode != 0:
        pytest.fail(f"{' '.join(map(str, command))} gave {done.returncode}:\n{done.stdout[-8000:]}", pytrace=False)


@pytest.fixture(scope="module")
def programs() -> Path:
    """The directory of the test programs, up to date."""
    cmake, ninja = _tool("cmake"), _tool("ninja")
    if cmake is None or not (os.environ.get("CXX") or _tool("c++", "g++", "clang++")):
        if os.environ.get("CI"):
            pytest.fail("the native tests need CMake and a C++ compiler, and CI must run them", pytrace=False)
        pytest.skip("the native tests need CMake and a C++ compiler")
    BUILD.mkdir(parents=True, exist_ok=True)
    generator = ["-G", "Ninja", f"-DCMAKE_MAKE_PROGRAM={ninja}"] if ninja else []
    with (BUILD / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # another run may be building
        if not (BUILD / "cmake_install.cmake").exists():  # written once configuring has succeeded
            options = ("OCTAVO_BUILD_MODULE=OFF", "OCTAVO_BUILD_TESTS=ON", "OCTAVO_SANITIZE=ON")
            _run(cmake, "-S", ROOT, "-B", BUILD, *generator, *(f"-D{option}" for option in options))
        _run(cmake, "--build", BUILD, "--parallel", str(len(os.sched_getaffinity(0))))
    return BUILD


@pytest.mark.parametrize("name", TESTS)
def test_under_sanitisers(programs: Path, name: str) -> None:
    _run(programs / name)
