"""What the pages share: addresses that stand in mkdocs.yml, the version, and typeset formulas."""

import re
from pathlib import Path
from typing import Any

from latex2mathml.converter import convert

FORMULA = re.compile(r"^```math\n(.*?)^```$", re.MULTILINE | re.DOTALL)
VERSION = re.compile(r'^__version__ = "(.*)"$', re.MULTILINE)


def on_config(config: Any) -> None:
    """Show the version beside the link to the repository, and let the pages name both."""
    (version,) = VERSION.findall(
        (Path(config.config_file_path).parent / "iivcl/__init__.py").read_text()
    )
    config.repo_name = f"iivcl {version}"
    config.extra |= {"version": version, "repository": config.repo_url}


def on_page_markdown(markdown: str, config: Any, **_: Any) -> str:
    """Put in the values of `extra`, and formulas as MathML, which needs no script in a browser."""
    for name, value in config.extra.items():
        markdown = markdown.replace("{{ " + name + " }}", str(value))
    return FORMULA.sub(typeset, markdown)


def typeset(formula: re.Match[str]) -> str:
    lines = [convert(line, display="block") for line in formula[1].splitlines() if line.strip()]
    return "\n".join(f'<div class="formula">{line}</div>' for line in lines)
