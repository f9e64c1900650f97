"""The page that shows DVC's plots, with its JavaScript inside: no internet needed.

``make setup`` writes it and configures DVC to use it (``plots.html_template``). DVC's own
page loads Vega from a content delivery network and shows no charts offline. The bundle is an
ES module and so runs after DVC's inline scripts; until then a stand-in ``vegaEmbed`` queues their
calls.
"""

from pathlib import Path

import typer

from maskdm.runtime.files import write_text

PAGE = """<!DOCTYPE html>
<html>
<head>
{refresh_tag}
<meta charset="utf-8">
<title>maskdm: plots</title>
<style>
body { font-family: sans-serif; margin: 2rem; display: flex; flex-wrap: wrap; gap: 1rem; }
[id^=reports_][id$=_png] { width: 100%; white-space: normal !important; }
[id^=reports_][id$=_png] > div:not(:only-of-type) { max-width: 47%; }
#reports_samples_png { order: -1; }
img { max-width: 100%; }
</style>
<script>
const waiting = [];
window.vegaEmbed = (...call) => waiting.push(call);
</script>
</head>
<body>
{plot_divs}
<script type="module">
BUNDLE
</script>
</body>
</html>
"""
# Where lines need not be told apart by dashes, DVC leaves {} in the template, of which Vega warns.
DRAW = """
for (const [place, spec] of waiting) {
  for (const [channel, how] of Object.entries(spec.encoding ?? {}))
    if (!Object.keys(how).length) delete spec.encoding[channel];
  vegaEmbed(place, spec, {config: {numberFormat: '~g'}});  // 7e+13
}
"""


def main(path: Path) -> None:
    """Write the template of the page to PATH."""
    import vl_convert

    bundle = vl_convert.javascript_bundle(DRAW).replace("</script", "<\\/script")
    write_text(path, PAGE.replace("BUNDLE", bundle))


if __name__ == "__main__":
    typer.run(main)
