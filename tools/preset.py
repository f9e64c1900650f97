"""The presets: ``make preset NAME=tiny`` writes params.yaml from one of them.

The file is whole, with the comments of the defaults, or the preset's own where it has some.
"""

from io import StringIO
from pathlib import Path
from typing import Annotated, Any

import typer
from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap, CommentedSeq

from benchmarks.presets import DEFAULTS, path_of
from maskdm.runtime.command import run
from maskdm.runtime.files import write_text
from maskdm.runtime.params import merge

PARAMS = Path("params.yaml")
COMMENT = 2  # the index of the comment that ends a key's line, among ruamel's comments of the key


def main(name: Annotated[str, typer.Argument(help="a file of presets/, without .yaml")]) -> None:
    """Write params.yaml, whole and commented, from a preset."""
    write_text(PARAMS, whole_text(name))
    print(f"params.yaml is the preset {name} now")


def whole_text(name: str) -> str:
    """Return a preset as the text of a whole params file, with comments.

    Raises:
        UserError: if there is no such preset.
    """
    defaults = path_of(DEFAULTS).read_text(encoding="utf-8")
    overlay = path_of(name).read_text(encoding="utf-8")
    if name == DEFAULTS:
        return defaults
    yaml = YAML()
    yaml.width = 10**6  # breaks no line
    yaml.indent(mapping=2, sequence=4, offset=2)
    yaml.representer.add_representer(type(None), _null)
    changes = yaml.load(overlay)
    merged: Any = merge(yaml.load(defaults), changes)
    _take_comments(merged, changes)
    text = StringIO()
    yaml.dump(merged, text)
    # The first line says which preset it is: the header of the overlay takes its place.
    header, _, _ = overlay.partition("\n\n")
    _, _, rest = text.getvalue().partition("\n")
    return f"{header}\n{rest}"


def _null(representer: Any, _: None) -> Any:
    """Write None as ``null``, where ruamel writes nothing."""
    return representer.represent_scalar("tag:yaml.org,2002:null", "null")


def _take_comments(merged: CommentedMap, overlay: CommentedMap) -> None:
    """Replace the comments of keys by those that an overlay has for them.

    Blank lines, which ruamel keeps at the end of comments, stay where the defaults have them.
    """
    for key, value in overlay.items():
        if isinstance(value, CommentedMap):
            _take_comments(merged[key], value)
            continue
        own, below = (layer.ca.items.get(key) for layer in (overlay, merged))
        if own and below and own[COMMENT].value.startswith("#"):
            comment = below[COMMENT].value
            below[COMMENT].value = own[COMMENT].value.rstrip() + comment[len(comment.rstrip()) :]
        if isinstance(value, CommentedSeq):
            for token in filter(None, (item[0] for item in merged[key].ca.items.values())):
                token.value = token.value.rstrip() + "\n"


if __name__ == "__main__":
    run(main)
