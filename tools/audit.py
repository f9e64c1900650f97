"""Look the packages of requirements.lock up among known vulnerabilities: ``make audit``.

pip-audit (pypi.org/project/pip-audit) asks the package index. Where there is no network, or the
index keeps no such records, nothing is known, and that is said: it is no error.
"""

import json
import subprocess
from typing import Any

from maskdm.runtime import command
from maskdm.runtime.errors import UserError

AUDIT = (
    *("pip-audit", "--requirement", "requirements.lock", "--require-hashes", "--disable-pip"),
    *("--format", "json", "--progress-spinner", "off"),
)


def main() -> None:
    """Say how many packages were looked up; those with known vulnerabilities are an error."""
    ended = subprocess.run(AUDIT, capture_output=True, text=True, check=False)
    if not ended.stdout.startswith("{"):
        said = (ended.stderr.strip() or "it said nothing").splitlines()[-1]
        print(f"No package could be looked up among known vulnerabilities: {said}")
        return
    packages = json.loads(ended.stdout)["dependencies"]
    known = [package for package in packages if "vulns" in package]
    print(f"{len(known)} of {len(packages)} packages looked up among known vulnerabilities.")
    if vulnerable := [package for package in known if package["vulns"]]:
        raise UserError("\n".join(["These packages are vulnerable:", *map(described, vulnerable)]))


def described(package: dict[str, Any]) -> str:
    """Return a package, what is known of it, and the versions that mend it."""
    kinds = [
        f"{kind['id']} (mended in {', '.join(kind['fix_versions']) or 'no version yet'})"
        for kind in package["vulns"]
    ]
    return f"  {package['name']} {package['version']}: {', '.join(kinds)}"


if __name__ == "__main__":
    command.run(main)
