"""The Markdown page of what `prove.py` found."""

import re
from typing import Any


def slug(device: str) -> str:
    """A device's name as part of a file's name."""
    return re.sub(r"[^a-z0-9]+", "-", device.lower()).strip("-")


def page(found: dict[str, Any], command: str) -> str:
    about = found["about"]
    packages = ", ".join(f"{name} {version}" for name, version in about["packages"].items())
    lines = [f"# What {about['device']} does", "", f"`{command}`, {about['date']}, commit {about['commit']}.", ""]
    rest = {key: value for key, value in about.items() if key not in ("device", "date", "commit", "packages", "kind")}
    lines += [f"{', '.join(f'{key} {value}' for key, value in rest.items())}; {packages}.", ""]
    rows = [
        [name, one["verdict"], f"{one['seconds']:.0f}", one["line"] or "–"] for name, one in found["blocks"].items()
    ]
    lines += table(["block", "", "s", "what it found"], rows)
    for name, one in found["blocks"].items():
        if one.get("checks") or one.get("tables") or one.get("facts"):
            lines += ["", f"## {name}", "", *section(one)]
    return "\n".join(lines) + "\n"


def section(one: dict[str, Any]) -> list[str]:
    """A block's facts, tables and checks."""
    lines = [f"- {name}: {shown(value)}" for name, value in one.get("facts", {}).items()]
    for name, rows in one.get("tables", {}).items():
        keys = list(dict.fromkeys(key for row in rows for key in row))
        lines += ["", f"{name}:", ""]
        lines += table(keys, [[shown(row.get(key, "–")) for key in keys] for row in rows])
    if one.get("checks"):
        rows = [[check["name"], "pass" if check["ok"] else "FAIL", check["detail"] or "–"] for check in one["checks"]]
        lines += ["", *table(["check", "", "detail"], rows)]
    return lines[1:] if lines and not lines[0] else lines


def shown(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {shown(one)}" for key, one in value.items()) or "–"
    if isinstance(value, list):
        return ", ".join(map(shown, value)) or "–"
    return str(value)


def table(head: list[str], rows: list[list[str]]) -> list[str]:
    cells = [[" ".join(cell.replace("|", "\\|").split()) for cell in row] for row in rows]
    return [f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *cells)]
