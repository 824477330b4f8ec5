"""What stands around the code agrees with it: versions, templates, citation, contributing."""

from __future__ import annotations

import ast
import os
import re
import shlex
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

import iivcl

ROOT = Path(__file__).parents[1]
PYPROJECT = (ROOT / "pyproject.toml").read_text()
BUG, FEATURE = ((ROOT / ".github" / "ISSUE_TEMPLATE" / f"{n}.yml") for n in ("bug", "feature"))


def load(path: Path) -> Any:
    return yaml.safe_load(path.read_text())


def lower_bounds() -> dict[str, str]:
    block = re.search(r"^dependencies = \[\n(.*?)^\]", PYPROJECT, re.MULTILINE | re.DOTALL)
    assert block is not None
    return dict(re.findall(r'"([\w-]+)>=([\d.]+)"', block.group(1)))


def check_job() -> dict[str, Any]:
    return load(ROOT / ".github" / "workflows" / "check.yml")["jobs"]["check"]


def dev_extra() -> str:
    found = re.search(r"^dev = \[\n(.*?)^\]", PYPROJECT, re.MULTILINE | re.DOTALL)
    assert found is not None
    return found[1]


def test_constraints_are_the_lower_bounds() -> None:
    lines = (ROOT / ".ci" / "oldest.txt").read_text().splitlines()
    constraints = dict(line.split("==") for line in lines if not line.startswith("#"))
    bounds = lower_bounds()
    assert len(bounds) == 6
    del bounds["typing-extensions"]  # see the file
    of_tools = constraints.keys() - bounds.keys()  # whose newest want a newer torch
    assert of_tools <= {name.strip('", ') for name in dev_extra().splitlines()}
    own = {name: bound for name, bound in constraints.items() if name not in of_tools}
    assert own == {name: f"{bound}.*" for name, bound in bounds.items()}


def test_workflow_runs_the_check_on_the_oldest_and_the_newest() -> None:
    job = check_job()
    assert [step["run"] for step in job["steps"] if "run" in step] == [".ci/run"]
    assert "matrix.constraint" in job["env"]["PIP_CONSTRAINT"]
    assert "matrix.python" in job["container"]["image"]
    runs = {run["versions"]: run for run in job["strategy"]["matrix"]["include"]}
    oldest = re.search(r'^requires-python = ">=([\d.]+)"$', PYPROJECT, re.MULTILINE)
    assert oldest is not None
    assert runs["oldest"]["python"] == oldest.group(1)
    assert (ROOT / runs["oldest"]["constraint"]).is_file()
    assert runs["newest"]["constraint"] == ""  # pip takes what there is
    assert all(isinstance(run["python"], str) for run in runs.values())  # 3.10 is no number
    older, newer = (tuple(map(int, runs[n]["python"].split("."))) for n in ("oldest", "newest"))
    assert older < newer


def test_workflow_builds_the_documentation() -> None:
    job = load(ROOT / ".github" / "workflows" / "check.yml")["jobs"]["docs"]
    commands = [step["run"] for step in job["steps"] if "run" in step]
    assert any(command.startswith("mkdocs build --strict") for command in commands)


def test_check_is_a_script_that_can_be_run() -> None:
    script = ROOT / ".ci" / "run"
    assert os.access(script, os.X_OK)
    subprocess.run(["bash", "-n", str(script)], check=True)
    readme = (ROOT / "README.md").read_text()
    assert re.search(r"<!-- command: test -->\n```sh\n.*pytest.*\n```", readme)  # what it runs


@pytest.mark.parametrize("path", [BUG, FEATURE], ids=lambda path: path.stem)
def test_issue_template_is_a_form(path: Path) -> None:
    """The keys and types are those of GitHub's syntax for issue forms."""
    form = load(path)
    assert {"name", "description", "body"} <= form.keys()
    assert form.keys() <= {"name", "description", "body", "labels", "title", "assignees"}
    identifiers = [element["id"] for element in form["body"]]
    assert len(set(identifiers)) == len(identifiers)
    for element in form["body"]:
        assert element["type"] in ("textarea", "input", "dropdown", "checkboxes")
        assert element["attributes"]["label"]
        assert element.keys() <= {"type", "id", "attributes", "validations"}
    assert any(element.get("validations", {}).get("required") for element in form["body"])


def test_command_of_the_bug_report_prints_the_versions(capsys: pytest.CaptureFixture[str]) -> None:
    fields = {element["id"]: element["attributes"] for element in load(BUG)["body"]}
    block = re.search(r"```sh\n(.*?)\n```", fields["versions"]["description"], re.DOTALL)
    assert block is not None
    python, option, code = shlex.split(block.group(1))
    assert (python, option) == ("python", "-c")
    exec(code, {})
    printed = capsys.readouterr().out
    assert f"iivcl {iivcl.__version__} | torch " in printed
    assert " | CUDA " in printed


def test_citation() -> None:
    """The keys are those that the format requires; the paper is that of the README."""
    citation = load(ROOT / "CITATION.cff")
    assert {"cff-version", "message", "title", "authors", "version"} <= citation.keys()
    assert citation["cff-version"] == "1.2.0"
    assert citation["version"] == iivcl.__version__
    assert f'license = "{citation["license"]}"' in PYPROJECT
    assert citation["authors"] == [{"name": "The iivcl authors"}]
    assert 'authors = [{ name = "The iivcl authors" }]' in PYPROJECT
    (paper,) = citation["references"]
    readme = " ".join((ROOT / "README.md").read_text().split())
    authors = " and ".join(f"{a['family-names']}, {a['given-names']}" for a in paper["authors"])
    assert f"author = {{{authors}}}" in readme
    assert f"title = {{{paper['title']}}}" in readme
    assert f"year = {{{paper['year']}}}" in readme
    assert paper["identifiers"][0]["value"] in readme


@pytest.mark.parametrize("name", ["CONTRIBUTING.md", ".github/PULL_REQUEST_TEMPLATE.md"])
def test_paths_and_lists_that_are_named_exist(name: str) -> None:
    text = (ROOT / name).read_text()
    paths = re.findall(r"(?:iivcl|tests|benchmarks|docs|examples|\.ci)/[\w./-]*\w", text)
    assert len(paths) > 1
    assert [path for path in paths if not (ROOT / path).exists()] == []
    # such as: `REGISTRY` in `tests/test_augment_laws.py`
    for variable, path in re.findall(r"`([A-Z_]{3,})`\s(?:in|of)\s`([\w/]+\.py)`", text):
        tree = ast.parse((ROOT / path).read_text())
        assigned = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
        assert variable in assigned, (variable, path)


def test_steps_of_a_release_name_files_with_the_version() -> None:
    release = (ROOT / "CONTRIBUTING.md").read_text().partition("## Release\n")[2]
    assert f"git tag -a v{iivcl.__version__}" in release
    for path in re.findall(r"`([\w/]+\.(?:py|cff|md))`", release.partition("2.")[0]):
        assert iivcl.__version__ in (ROOT / path).read_text(), path
