"""Parameters: one section of a params file, read into the typed class it is given.

The classes themselves stand beside the code that they configure (``MaskParams`` in
``diffusion/masking.py`` and so on), so that a new key touches only the stages that use it.
Files are read as YAML 1.2, as DVC writes them: there ``1e-05`` is a number, which in YAML 1.1
(PyYAML) is a string.
"""

import difflib
import unicodedata
from collections.abc import Mapping
from copy import deepcopy
from pathlib import Path
from typing import Annotated, Any, ClassVar, TypeVar, get_args

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.composer import Composer
from ruamel.yaml.nodes import MappingNode, Node, SequenceNode

from maskdm.runtime.errors import UserError, reason, shortened
from maskdm.runtime.reading import read_small

Seed = Annotated[int, Field(strict=True, ge=0, lt=2**31, description="a whole number >= 0")]

MOST_BYTES = 2**15  # of a params file: those of the presets have 6 kB
MOST_MEANT = 2 * MOST_BYTES  # characters and values of it, every alias written out
MOST_FAULTS = 30  # in a message
LONGEST_NAME = 1000  # characters of a name of a class, of a phase, of a mask
LONGEST_PATH = 4096  # characters of a folder's name, with those of the folders that it is in
CONTROLS = {"Cc", "Zl", "Zp"}  # categories of Unicode: they move a cursor, colour, break a line

Params = dict[str, Any]  # a whole params file: section → key → value

T = TypeVar("T")


class Section(BaseModel):
    """A section of the params file: immutable, no unknown keys, no silent conversions.

    Every field carries a ``description`` that says what is allowed; it ends up in the message
    that a wrong value gets.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    former_names: ClassVar[Mapping[str, str]] = {}  # keys of former versions → what they are now


class ParamsError(UserError):
    """A parameter is missing, unknown, of the wrong type or outside its range."""


def read_params(path: Path | str) -> Params:
    """Return a params file as plain dicts, lists and scalars.

    Raises:
        ParamsError: if the file is missing, is not YAML, or has no sections.
    """
    try:
        text = read_small(Path(path), MOST_BYTES).decode("utf-8-sig")
    except FileNotFoundError:
        raise ParamsError(
            f"There is no {path}: run from the folder that holds it, or say "
            "make preset NAME=laptop."
        ) from None
    except UnicodeDecodeError as error:
        raise ParamsError(
            f"{path} is not UTF-8 (byte {error.start}): save it in that encoding."
        ) from None
    except ValueError as error:
        raise ParamsError(f"{path} is no params file: {error}.") from None
    yaml = YAML(typ="safe", pure=True)
    yaml.Composer = _Bounded
    try:
        content = yaml.load(text)
    except MemoryError:  # the machine's fault
        raise
    except Exception as error:  # odd files lead ruamel to errors of many kinds
        raise ParamsError(f"{path} is not valid YAML: {_fault(error)}.") from None
    if not isinstance(content, dict):
        raise ParamsError(f"{path} holds no sections: it must map section names to parameters.")
    return content


class _Bounded(Composer):
    """Composes YAML whose aliases (``*name``) do not make much of little, or hold themselves.

    Ten lines of aliases of aliases mean gigabytes, as soon as somebody goes through what they mean.
    """

    def get_single_node(self) -> Any:
        """Return the document's tree.

        Raises:
            ValueError: if it means more than ``MOST_MEANT`` characters.
        """
        root = super().get_single_node()
        if root is not None and _meant(root, {}) > MOST_MEANT:
            raise ValueError(f"its aliases stand for more than {MOST_MEANT} characters")
        return root


def _meant(node: Node, known: dict[int, int]) -> int:
    """Return the characters and values below a node, every alias written out.

    Args:
        node: of a tree in which aliases are one node in several places.
        known: those of nodes that were seen, by identity; 0 of one that is above this one.

    Raises:
        ValueError: if a node is in itself.
    """
    seen = known.get(id(node))
    if seen == 0:
        raise ValueError("an alias stands for what it is in")
    if seen is not None:
        return seen
    known[id(node)] = 0
    if isinstance(node, MappingNode):
        total = 1 + sum(_meant(k, known) + _meant(v, known) for k, v in node.value)
    elif isinstance(node, SequenceNode):
        total = 1 + sum(_meant(value, known) for value in node.value)
    else:
        total = 1 + len(node.value)
    known[id(node)] = total
    return total


def _fault(error: Exception) -> str:
    """Return what is wrong with a file, in one line: the library's own has several, and hints."""
    mark = getattr(error, "problem_mark", None)
    if mark is None:
        return reason(error)
    return f"line {mark.line + 1}, column {mark.column + 1}: {error.problem}"  # type: ignore[attr-defined]


def merge(base: Params, *overlays: Mapping[str, Any]) -> Params:
    """Return a copy of ``base`` with overlays laid over it, the last one on top.

    Sections are merged key by key, however deep; any other value, a list too, replaces the one
    below it.
    """
    merged = deepcopy(base)
    for overlay in overlays:
        for key, value in overlay.items():
            below = merged.get(key)
            if isinstance(below, dict) and isinstance(value, Mapping):
                merged[key] = merge(below, value)
            else:
                merged[key] = deepcopy(value)
    return merged


def read_section(
    source: Path | str | Mapping[str, Any], name: str, kind: type[T], where: str | None = None
) -> T:
    """Return one section of a params file, validated.

    Args:
        source: the params file, or what it holds.
        name: the section, dotted if it is nested (``"fid.features"``).
        kind: the class (or annotated type) that the section must fit.
        where: what the file is called in messages; by default its path, if that is given.

    Raises:
        ParamsError: naming the key, the value and what is allowed.
    """
    value: Any = source if isinstance(source, Mapping) else read_params(source)
    where = where or ("params" if isinstance(source, Mapping) else str(source))
    for part in name.split("."):
        if not isinstance(value, Mapping) or part not in value:
            raise ParamsError(f"{where} has no section '{name}'.")
        value = value[part]
    return validate(value, name, kind, where=where)


def validate(value: Any, name: str, kind: type[T], where: str = "params") -> T:
    """Return ``value`` as a ``kind``, or say in one sentence per fault what is wrong with it.

    Raises:
        ParamsError: naming the key, the value and what is allowed.
    """
    try:
        return TypeAdapter(kind).validate_python(value)
    except ValidationError as error:
        faults = _without_renamed(error, kind)
        sentences = [_sentence(fault, name, kind) for fault in faults[:MOST_FAULTS]]
        if faults[MOST_FAULTS:]:
            sentences.append(f"And {len(faults) - MOST_FAULTS} more are wrong.")
        raise ParamsError(f"{where}: " + " ".join(dict.fromkeys(sentences))) from None


def fault_of_name(name: str, longest: int = LONGEST_NAME) -> str | None:
    """Return what is wrong with a name that a stranger may have given, None if nothing is.

    A name is stored in JSON, compared, and shown on terminals, which would obey what is in it.

    Args:
        name: of a class, of a phase of training, or the like.
        longest: characters that it may have.

    Returns:
        What to say after the name, such as "it has control characters".
    """
    if len(name) > longest:
        return f"it has {len(name)} characters, more than {longest}"
    try:
        name.encode()
    except UnicodeEncodeError:
        return "it is no text that UTF-8 can hold"
    if any(unicodedata.category(character) in CONTROLS for character in name):
        return "it has control characters"
    return None


def _without_renamed(error: ValidationError, kind: Any) -> list[Any]:
    """Return pydantic's faults; a key that is there under its former name is not missing too."""
    faults = list(error.errors())
    renamed = {
        (*fault["loc"][:-1], _renamed(fault, kind))
        for fault in faults
        if fault["type"] == "extra_forbidden"
    }
    return [f for f in faults if f["type"] != "missing" or f["loc"] not in renamed]


def _renamed(fault: Any, kind: Any) -> str | None:
    """Return what an unknown key is called now, None if it never was a key."""
    *parents, key = (part for part in fault["loc"] if isinstance(part, str))
    former: Mapping[str, str] = getattr(_lookup(kind, parents), "former_names", {})
    return former.get(key)


def _sentence(fault: Any, name: str, kind: Any) -> str:
    """Put one pydantic fault into words."""
    key = ".".join([name, *(shortened(str(part)) for part in fault["loc"])])
    path = [part for part in fault["loc"] if isinstance(part, str)]  # without indices in lists
    section, allowed = _lookup(kind, path[:-1]), ""
    fields = getattr(section, "model_fields", {})
    if fault["type"] == "extra_forbidden":
        owner = key.rpartition(".")[0]
        if now := _renamed(fault, kind):
            return f"{key} is called {owner}.{now} now: rename it."
        close = difflib.get_close_matches(path[-1], fields, n=1)
        hint = f" Did you mean '{close[0]}'?" if close else ""
        return f"{key} is not a parameter; '{owner}' takes {', '.join(fields)}.{hint}"
    described = _describe(kind, path)
    if described:
        allowed = f" Allowed: {described}."
    if fault["type"] == "missing":
        return f"{key} is missing.{allowed}"
    reason = fault["msg"].removeprefix("Value error, ")
    reason = reason[:1].lower() + reason[1:]
    return f"{key} is {_shown(fault['input'])}: {reason}.{allowed}"


def _shown(value: Any) -> str:
    """Return a wrong value as a message shows it, which a stranger's file may make of any size."""
    try:
        return shortened(repr(value))
    except ValueError:  # Python writes no whole number of more than 4300 digits
        return "a number of thousands of digits"


def _lookup(kind: Any, path: list[str]) -> Any:
    """Return the section class found by following field names from ``kind``."""
    for part in path:
        fields = getattr(kind, "model_fields", {})
        if part not in fields:
            break
        kind = _section_of(fields[part].annotation)
    return kind


def _section_of(annotation: Any) -> Any:
    """Return the Section inside an annotation such as ``A | None`` or ``list[A] | None``."""
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return annotation
    inside = (_section_of(inner) for inner in get_args(annotation))
    return next((kind for kind in inside if kind is not None), None)


def _describe(kind: Any, path: list[str]) -> str:
    """Return the description of the field at ``path``, or of ``kind`` itself for a scalar."""
    if not path:
        metadata = getattr(kind, "__metadata__", ())
        return next((m.description for m in metadata if getattr(m, "description", None)), "")
    for end in range(len(path), 0, -1):
        field = getattr(_lookup(kind, path[: end - 1]), "model_fields", {}).get(path[end - 1])
        if field is not None and field.description:
            return str(field.description)
    return ""
