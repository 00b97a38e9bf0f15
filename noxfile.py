"""What a developer runs: `nox -l` lists it, `nox -s tests` runs the tests on each Python found."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import nox

nox.needs_version = ">=2025.2.9"
nox.options.default_venv_backend = "uv|virtualenv"
nox.options.error_on_missing_interpreters = False
nox.options.sessions = ["tests", "lint", "types", "imports"]

SUPPORTED = ["3.11", "3.12", "3.13", "3.14"]
PYPROJECT = nox.project.load_toml("pyproject.toml")
WITH_EXTRAS = f".[{','.join(PYPROJECT['project']['optional-dependencies'])}]"


def group(name: str) -> list[str]:
    """Return the requirements of a dependency group; the package itself is installed from here."""
    requirements = nox.project.dependency_groups(PYPROJECT, name)
    return [requirement for requirement in requirements if not requirement.startswith("asyncsess")]


def pythons() -> list[str]:
    """Return the supported Pythons that are installed, those of pyenv included."""
    root = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv"))
    found = []
    for version in SUPPORTED:
        binaries = sorted(root.glob(f"versions/{version}.*/bin"), key=lambda path: len(path.parent.name))
        if binaries:  # before pyenv's shims, which refuse versions that are not activated
            os.environ["PATH"] = f"{binaries[-1]}{os.pathsep}{os.environ['PATH']}"
        if shutil.which(f"python{version}"):
            found.append(version)
    return found


@nox.session(python=pythons() or None)
def tests(session: nox.Session) -> None:
    """Run the tests, which wait as often as they work, by two processes for each processor.

    Arguments after -- go to pytest.
    """
    session.install("-e", WITH_EXTRAS, *group("test"))
    session.run("pytest", "-n", str(2 * (os.cpu_count() or 1)), "--dist", "worksteal", *session.posargs)


@nox.session
def lint(session: nox.Session) -> None:
    """Check style and formatting."""
    session.install(*group("lint"))
    session.run("ruff", "check", ".")
    session.run("ruff", "format", "--check", ".")


@nox.session
def types(session: nox.Session) -> None:
    """Check types, with two checkers."""
    session.install("-e", WITH_EXTRAS, *group("types"))
    session.run("mypy")
    session.run("pyright")


@nox.session
def imports(session: nox.Session) -> None:
    """Check that imports run one way."""
    session.install("-e", ".", *group("imports"))
    session.run("lint-imports")


@nox.session
def bench(session: nox.Session) -> None:
    """Compare speed with others in one run; prints ratios, writes benchmarks/results.json and .svg."""
    session.install("-e", ".[crypto,mariadb,memcached,postgresql,redis]", *group("bench"))
    session.run("python", "-m", "benchmarks", *session.posargs)


@nox.session
def demo(session: nox.Session) -> None:
    """Show what happens to concurrent requests of one session, with and without asyncsess."""
    session.install("-e", ".[demo]")
    session.run("python", "-m", "asyncsess.demo", *session.posargs)


@nox.session
def build(session: nox.Session) -> None:
    """Build the distributions, and check that what was built can be imported."""
    session.install("build")
    dist = Path(session.create_tmp(), "dist")
    session.run("python", "-m", "build", "--outdir", str(dist))
    session.install(*map(str, dist.glob("*.whl")))
    session.run("python", "-I", "-c", "import asyncsess; print(asyncsess.FileStore.__doc__)")
