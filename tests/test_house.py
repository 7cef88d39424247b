"""The house itself: imports run downwards, the wheel holds every module, README's code runs."""

import ast
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
# scripts -> agents -> {envs, value} -> models -> kernels
ALLOWED = {
    "kernels": set(),
    "models": {"kernels"},
    "value": {"models", "kernels"},
    "envs": {"models", "kernels"},
    "agents": {"envs", "value", "models", "kernels"},
    "scripts": {"agents", "envs", "value", "models", "kernels"},
}


def imported_rooms(path: Path) -> set[str]:
    """Rooms that a file imports, from absolute `tdraft.` imports and from relative ones that leave its room."""
    rooms = set()
    package = path.relative_to(ROOT).parent.parts
    for node in ast.walk(ast.parse(path.read_text())):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level:
            base = package[: len(package) - node.level + 1]
            names = [".".join(("tdraft", *base, node.module or ""))]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module] + ([f"tdraft.{alias.name}" for alias in node.names] if node.module == "tdraft" else [])
        for name in names:
            if name.startswith("tdraft."):
                rooms.add(name.split(".")[1])
    return rooms


@pytest.mark.parametrize("room", ALLOWED)
def test_imports_run_downwards(room):
    files = list((ROOT / room).rglob("*.py"))
    assert files
    for path in files:
        upwards = imported_rooms(path) - ALLOWED[room] - {room}
        assert not upwards, f"{path.relative_to(ROOT)} imports {upwards}"


def test_the_walk_sees_an_upward_import(tmp_path):
    bad = ROOT / "kernels" / "rng.py"
    assert imported_rooms(bad) == set()
    assert "agents" in imported_rooms(ROOT / "scripts" / "train.py")


def modules() -> list[str]:
    return [
        ".".join(("tdraft", *path.relative_to(ROOT).with_suffix("").parts)).removesuffix(".__init__")
        for room in ALLOWED
        for path in sorted((ROOT / room).rglob("*.py"))
    ]


def test_every_package_is_listed():
    listed = set(tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"])
    present = {m for m in modules() if (ROOT / Path(*m.split(".")[1:]) / "__init__.py").exists()}
    assert present == listed


@pytest.mark.slow
def test_the_wheel_installs_and_imports_everywhere(tmp_path):
    """Built, listed, installed into a fresh venv (which borrows the dependencies of this one) and imported module by module."""
    run = lambda *command, **options: subprocess.run(command, check=True, capture_output=True, text=True, **options)  # noqa: E731
    run(sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", str(tmp_path), str(ROOT))
    wheel = next(tmp_path.glob("tdraft-*.whl"))
    listing = run(sys.executable, "-m", "zipfile", "-l", str(wheel)).stdout
    for module in modules():
        stem = "/".join(module.split("."))
        assert f"{stem}.py" in listing or f"{stem}/__init__.py" in listing, module
    assert "tests/" not in listing and "tdraft/models/pretrained/README.md" in listing
    run(sys.executable, "-m", "venv", "--without-pip", str(tmp_path / "venv"))
    python = tmp_path / "venv" / "bin" / "python"
    site = run(str(python), "-c", "import site; print(site.getsitepackages()[0])").stdout.strip()
    run(sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", site, str(wheel))
    ours = run(sys.executable, "-c", "import numpy; print(numpy.__path__[0])").stdout.strip()
    code = (
        "import sys, importlib\n"
        f"sys.path.append({str(Path(ours).parent)!r})\n"
        f"modules = [importlib.import_module(m) for m in {modules()!r}]\n"
        f"assert all(m.__file__.startswith({site!r}) for m in modules), [m.__file__ for m in modules]\n"
        "importlib.import_module('tdraft.models.pretrained').load_pretrained('drafter')\n"
        "print(len(modules))"
    )
    assert int(run(str(python), "-c", code, cwd=tmp_path).stdout) == len(modules())


def readme_blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", (ROOT / "README.md").read_text(), re.S)


def test_readme_has_two_python_blocks():
    assert len(readme_blocks("python")) >= 2


@pytest.mark.parametrize("index", range(2))
def test_readme_python_runs(index, tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", readme_blocks("python")[index]], cwd=tmp_path, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr


def test_envs_register_and_need_no_import():
    code = "import gymnasium as gym; e = gym.make('tdraft.envs:tdraft/Draft-v0'); e.reset(seed=0); print(e.step(1)[1])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
