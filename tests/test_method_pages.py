"""docs/methods: a page for every method, which explains its hyper-parameters and metrics; commands, code and links that work."""

import ast
import dataclasses
import re
import shlex
import subprocess
import warnings
from pathlib import Path

import gymnasium as gym
import pytest

import tdraft.envs  # noqa: F401  registers our ids
from tdraft import agents
from tdraft.agents import prediction
from tdraft.agents.linear import LinearAgent
from tdraft.agents.runs import COLUMNS, STEP, read_progress, run_folder
from tdraft.agents.tabular import OneStepAgent
from tdraft.scripts import train
from tdraft.scripts.plot import LABELS
from tdraft.scripts.reproduce.command import EXPERIMENTS

FOLDER = Path(__file__).parent.parent / "docs" / "methods"
INDEX = (FOLDER / "README.md").read_text()
PAGES = {path.stem: path.read_text() for path in sorted(FOLDER.glob("*.md")) if path.name != "README.md"}
CONTROL = {f"tdraft.agents.{name}": getattr(agents, name) for name in agents.AGENTS.values()}
PREDICTION = {f"tdraft.agents.prediction.{n}": getattr(prediction, n) for n in prediction.__all__ if n != "Prediction"}
CLASSES = CONTROL | PREDICTION
STEPS = 300


def head(page: str) -> str:
    """The paragraph below the title, which names the classes."""
    return page.split("\n\n")[1]


def own_pages(name: str) -> list[str]:
    return [page for page in PAGES.values() if f"`{name}`" in head(page)]


def rows(text: str) -> dict[str, object]:
    """Hyper-parameters and defaults of the tables in a text; a row without an explanation is none."""

    def value(cell: str) -> object:
        try:
            return ast.literal_eval(cell)
        except (ValueError, SyntaxError):
            return cell

    return {name: value(cell) for name, cell in re.findall(r"^\| `(\w+)` \| (\S+) \| [^|\s]", text, re.M)}


def shared(kind: type) -> dict[str, object]:
    """Hyper-parameters that the index explains for this class."""
    sections = dict(re.findall(r"^### (.*?)\n(.*?)(?=^#|\Z)", INDEX, re.M | re.S))
    if kind in PREDICTION.values():
        return rows(sections["Predictors"])
    found = rows(sections["Every control agent"])
    if issubclass(kind, OneStepAgent):
        found |= rows(sections["One-step tabular agents"])
    return found | (rows(sections["Linear agents"]) if issubclass(kind, LinearAgent) else {})


def commands(page: str) -> list[list[str]]:
    """The `tdraft` commands of a page's indented blocks, as the shell expands them."""
    blocks = re.findall(r"(?:^    .*\n)+", page, re.M)
    script = "tdraft() { printf '%q ' \"$@\"; echo; }\n" + "\n".join(b for b in blocks if re.search(r"^ +tdraft ", b, re.M))
    done = subprocess.run(["bash", "-e", "-c", script], capture_output=True, text=True, check=True)
    return [shlex.split(line) for line in done.stdout.splitlines()]


def python_blocks() -> list:
    pages = {"README": INDEX, **PAGES}
    found = [(name, block) for name, page in pages.items() for block in re.findall(r"```python\n(.*?)```", page, re.S)]
    return [pytest.param(block, id=f"{name}{i}") for i, (name, block) in enumerate(found)]


@pytest.mark.parametrize("name", CLASSES)
def test_every_method_has_a_page_and_is_in_the_index(name):
    assert own_pages(name)
    assert f"`{name.split('.')[-1]}`" in INDEX


def test_every_page_is_in_the_index_and_names_a_class():
    for name, page in PAGES.items():
        assert f"({name}.md)" in INDEX, name
        named = re.findall(r"`(tdraft\.agents\.[\w.]+)`", head(page))
        assert named and set(named) <= CLASSES.keys(), name


def test_every_agent_is_named_as_the_command_line_does():
    for name, kind in agents.AGENTS.items():
        assert f"`{name}`" in INDEX, name
        assert any(name in head(page) for page in own_pages(f"tdraft.agents.{kind}")), name


@pytest.mark.parametrize("name", CLASSES)
def test_every_hyper_parameter_is_explained_with_its_default(name):
    kind = CLASSES[name]
    fields = {f.name: f.default for f in dataclasses.fields(kind.Settings)}
    common = shared(kind)
    page = next((p for p in own_pages(name) if rows(p).keys() & fields.keys()), own_pages(name)[0])
    explained = {n: rows(page).get(n, common.get(n, "nowhere")) for n in fields}
    assert explained == fields


@pytest.mark.parametrize("name", PAGES)
def test_no_page_explains_a_hyper_parameter_that_there_is_not(name):
    named = re.findall(r"`(tdraft\.agents\.[\w.]+)`", head(PAGES[name]))
    fields = {f.name for n in named for f in dataclasses.fields(CLASSES[n].Settings)}
    assert rows(PAGES[name]).keys() <= fields


def test_every_metric_is_explained():
    for tag in COLUMNS:
        assert re.search(rf"^\| `{tag}` \| \w", INDEX, re.M), tag
    for name, page in PAGES.items():
        assert "`train/td_error` is" in " ".join(page.split()) and "README.md#logged-metrics" in page, name


@pytest.mark.parametrize("name", PAGES)
def test_a_page_has_a_figure_and_what_makes_it(name):
    page = PAGES[name]
    figures = re.findall(r"!\[[^\]]+\]\((.+?)\)", page)
    assert figures
    made = {argument for command in commands(page) for argument in command} | set(re.findall(r"\w+\.md#figure", page))
    for figure in figures:
        assert (FOLDER / figure).read_bytes()[:4] == b"\x89PNG", figure
        in_script = f'savefig("{figure}"' in page
        assert figure in made or figure.removesuffix(".png") in made or in_script or "The script is in" in page, figure


def test_figures_are_small_and_used():
    figures = {path.name: path.stat().st_size for path in FOLDER.glob("*.png")}
    assert sum(figures.values()) < 2e6
    assert max(figures.values()) < 80e3
    for figure in figures:
        assert any(f"({figure})" in page for page in PAGES.values()), figure


@pytest.mark.parametrize("name", PAGES)
def test_commands_name_what_there_is(name):
    for kind, *arguments in commands(PAGES[name]):
        if kind == "reproduce":
            assert set(arguments) <= EXPERIMENTS.keys()
        elif kind == "plot":
            metric = arguments[arguments.index("-m") + 1] if "-m" in arguments else "rollout/ep_rew_mean"
            assert metric in LABELS and metric in COLUMNS
        else:
            assert kind == "train"
            settings = getattr(agents, agents.AGENTS[arguments[0]]).Settings
            known = {f.name for c in (settings, train.TrainOptions) for f in dataclasses.fields(c)}
            flags = [a[2:].replace("-", "_") for a in arguments[1:] if a.startswith("--")]
            assert set(flags) <= known
            assert arguments[arguments.index("--env") + 1] in gym.registry


def test_links_resolve():
    def anchors(page: str) -> set[str]:
        titles = re.findall(r"^#+ (.*)", page, re.M)
        return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}

    for name, page in {"README": INDEX, **PAGES}.items():
        for link in re.findall(r"\]\(([^)]+)\)", page):
            target, _, anchor = link.partition("#")
            path = (FOLDER / target).resolve() if target else FOLDER / f"{name}.md"
            assert path.is_file(), (name, link)
            assert not anchor or anchor in anchors(path.read_text()), (name, link)


@pytest.mark.slow
@pytest.mark.parametrize("block", python_blocks())
def test_code_runs(block, tmp_path, monkeypatch, capsys):
    """And trains an agent, prints something or leaves a figure."""
    monkeypatch.chdir(tmp_path)
    names: dict = {"__name__": "page"}
    exec(compile(block, "page", "exec"), names)
    trained = [value for value in names.values() if isinstance(value, agents.Agent) and value.num_timesteps]
    assert trained or capsys.readouterr().out.strip() or list(tmp_path.glob("*.png"))


@pytest.mark.slow
@pytest.mark.parametrize("name", [n for n, page in PAGES.items() if any(c[0] == "train" for c in commands(page))])
def test_training_commands_run(name, tmp_path):
    """With few steps and one seed."""
    for kind, *arguments in commands(PAGES[name]):
        if kind == "train":
            given = dict(zip(arguments, [*arguments[1:], ""]))
            short = {given["--seeds"]: "0", given.get("--timesteps"): str(STEPS), given.get("--horizon"): str(STEPS)}
            folder = tmp_path / given.get("--runs", "runs")
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                assert train.main([short.get(a, a) for a in arguments] + ["--runs", str(folder), "--overwrite"]) == 0
            [progress] = run_folder(folder, given["--env"], arguments[0], 0).glob("progress.csv")
            assert read_progress(progress)[-1][STEP] == STEPS
