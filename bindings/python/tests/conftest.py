"""What tests share: the demo model, and marks of what they need."""

from __future__ import annotations

import importlib.util
import os
import pathlib
import subprocess

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[3]
DEMO = ROOT / "assets" / "demo"
NEEDS = {"torch": ["torch"], "transformers": ["torch", "transformers"], "lm_eval": ["lm_eval"], "ray": ["ray", "httpx"]}


def pytest_configure(config: pytest.Config) -> None:
    for mark, modules in NEEDS.items():
        config.addinivalue_line("markers", f"{mark}: needs {' and '.join(modules)}")
    required = [name for name in os.environ.get("SPARROW_REQUIRE_PYTHON", "").split(",") if name]
    missing = [name for name in required if importlib.util.find_spec(name) is None]
    if missing:
        raise pytest.UsageError(f"SPARROW_REQUIRE_PYTHON names {', '.join(missing)}, which cannot be imported")


def pytest_ignore_collect(collection_path: pathlib.Path) -> bool | None:
    """Files of tests import what they test: those that cannot are left out, and named at the end."""
    for mark, modules in NEEDS.items():
        prefixes = {"torch": ("test_ops", "test_nn"), "transformers": ("test_hf",), "lm_eval": ("test_lm_eval",), "ray": ("test_ray",)}
        if collection_path.name.startswith(prefixes[mark]):
            absent = [name for name in modules if importlib.util.find_spec(name) is None]
            if absent:
                SKIPPED.add((collection_path.name, absent[0]))
                return True
    return None


SKIPPED: set[tuple[str, str]] = set()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    for name, module in sorted(SKIPPED):
        terminalreporter.write_line(f"skipped: {name} needs {module}")


@pytest.fixture(scope="session")
def demo() -> pathlib.Path:
    """The demo model's directory."""
    return DEMO


@pytest.fixture(scope="session")
def binary() -> pathlib.Path:
    """The command `sparrow`, which gives the texts and figures that the package must give too."""
    if named := os.environ.get("SPARROW_BINARY"):
        return pathlib.Path(named)
    subprocess.run(["cargo", "build", "--quiet"], cwd=ROOT, check=True)
    target = pathlib.Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target"))
    return target / "debug" / "sparrow"
