"""A page in headless Chromium, without a network."""

import re
import shutil
import subprocess
from xml.etree import ElementTree

import pytest

BROWSER = next(filter(shutil.which, ("chromium", "chromium-browser", "google-chrome")), None)
needs_browser = pytest.mark.skipif(BROWSER is None, reason="no chromium")


def visit(page, profile, *flags, part=""):
    """Return the page as it stands once its scripts have run, and what the console said.

    Args:
        page: its file.
        profile: an empty folder for the browser.
        flags: more of Chromium's.
        part: what comes after # in its address.
    """
    offline = ["--host-resolver-rules=MAP * ~NOTFOUND", "--disable-background-networking"]
    quiet = ["--no-first-run", "--disable-component-update", "--disable-sync", "--disable-gpu"]
    told = ["--enable-logging=stderr", "--virtual-time-budget=9000", "--dump-dom"]
    result = subprocess.run(
        [
            *(BROWSER, "--headless", "--no-sandbox", *offline, *quiet, *told, *flags),
            *(f"--user-data-dir={profile}", page.as_uri() + (part and f"#{part}")),
        ],
        stdin=subprocess.DEVNULL,
        timeout=300,
        capture_output=True,
        text=True,
        check=True,
    )
    return result.stdout, re.findall(r".*CONSOLE.*", result.stderr)


def drawings(dom):
    """Return the charts that Vega has drawn."""
    return re.findall(r'<svg[^>]*class="marks".*?</svg>|<canvas', dom, re.DOTALL)


def written(chart):
    """Yield the texts of a chart that are seen: role, axis (``X``, ``Y`` or none), x, letters."""

    def walk(node, x, axis, role):
        moved = re.match(r"translate\(([-\d.]+)", node.get("transform", ""))
        x += float(moved.group(1)) if moved else 0.0
        if node.get("aria-roledescription") == "axis":
            axis = node.get("aria-label")[0]
        role = next((name[5:] for name in node.get("class", "").split() if "role-" in name), role)
        if node.text and node.get("opacity") != "0":
            yield role, axis, x, node.text
        for child in node:
            yield from walk(child, x, axis, role)

    yield from walk(ElementTree.fromstring(chart), 0.0, "", "")
