"""A software bill of materials in CycloneDX's JSON: what the archives of a release are made of.

Its one job: `sbom.py FILE...` prints it for these archives. It names cmwq, the one library of others that its wheels
carry (uPlot, in the dashboard's page), and each archive with its SHA-256. What an extra installs is not in the
archives, and so not in the bill.

Guarantees: the same archives and SOURCE_DATE_EPOCH give the same bytes. The version of what is carried is read from the
file that is carried, and its text is hashed, so the bill can't say something else than what is there.
"""

from __future__ import annotations

import datetime
import hashlib
import json
import os
import re
import sys
import tomllib
import uuid
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
VENDOR = ROOT / "src/cmwq/observing/dashboard/static/vendor"
Bill = dict[str, Any]


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def hashes(path: Path) -> list[dict[str, str]]:
    return [{"alg": "SHA-256", "content": digest(path)}]


def uplot() -> Bill:
    """Raises ValueError if the file does not say which version it is."""
    script = VENDOR / "uPlot.iife.min.js"
    version = re.match(r"/\*! \S+ \(v([\d.]+)\) \*/", script.read_text())
    if version is None:
        raise ValueError(f"{script}: it does not begin with its version")
    return {
        "type": "library",
        "bom-ref": f"pkg:npm/uplot@{version[1]}",
        "name": "uplot",
        "version": version[1],
        "purl": f"pkg:npm/uplot@{version[1]}",
        "licenses": [{"license": {"id": "MIT"}}],
        "components": [
            {"type": "file", "bom-ref": path.name, "name": path.name, "hashes": hashes(path)}
            for path in sorted(VENDOR.iterdir())
        ],
    }


def bill(archives: list[Path], epoch: int) -> Bill:
    """Of these archives, as of that moment (seconds since 1970)."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    whole = {
        "type": "library",
        "bom-ref": f"pkg:pypi/{project['name']}@{project['version']}",
        "name": project["name"],
        "version": project["version"],
        "description": project["description"],
        "purl": f"pkg:pypi/{project['name']}@{project['version']}",
        "licenses": [{"license": {"id": project["license"]}}],
    }
    files = [
        {"type": "file", "bom-ref": path.name, "name": path.name, "hashes": hashes(path)}
        for path in sorted(archives, key=lambda path: path.name)
    ]
    carried = uplot()
    content = json.dumps([whole, carried, files])
    return {
        "$schema": "http://cyclonedx.org/schema/bom-1.6.schema.json",
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "serialNumber": f"urn:uuid:{uuid.uuid5(uuid.NAMESPACE_URL, content)}",
        "version": 1,
        "metadata": {
            "timestamp": datetime.datetime.fromtimestamp(epoch, datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
            "component": whole,
        },
        "components": [carried, *files],
        "dependencies": [
            {"ref": whole["bom-ref"], "dependsOn": [carried["bom-ref"]]},
            {"ref": carried["bom-ref"], "dependsOn": []},
        ],
    }


def main(argv: list[str]) -> int:
    if not argv:
        print("usage: sbom.py FILE...", file=sys.stderr)
        return 2
    epoch = int(os.environ.get("SOURCE_DATE_EPOCH") or 0)
    print(json.dumps(bill([Path(name) for name in argv], epoch), indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
