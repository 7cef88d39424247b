"""docs/environments.md and docs/planning.md: their code runs, every env is named; and importing the envs stays light."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

import tdraft.envs

PAGE, PLANNING = ((Path(__file__).parent.parent / "docs" / f"{name}.md").read_text() for name in ("environments", "planning"))


@pytest.mark.parametrize("index", range(3))
def test_the_docs_code_runs(index, tmp_path):
    """Each Python block, as a user would run it."""
    blocks = re.findall(r"```python\n(.*?)```", PAGE + PLANNING, re.S)
    assert len(blocks) == 3
    done = subprocess.run([sys.executable, "-c", blocks[index]], cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr


def test_every_env_is_in_the_docs():
    for name, (entry, *_) in tdraft.envs._ENVS.items():
        assert f"`{name}`" in PAGE or entry.startswith("decoding."), name


def test_importing_the_envs_imports_no_torch_and_no_numba():
    code = "import sys, tdraft.envs; print([m for m in ('torch', 'numba', 'matplotlib') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"
