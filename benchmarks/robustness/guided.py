"""One target under atheris, in a process of its own: ``python -m benchmarks.robustness.guided``.

``TARGET FOLDER`` and then libFuzzer's own arguments (llvm.org/docs/LibFuzzer.html). Files that
reach code which none has reached before are kept and changed further. The modules that read are
instrumented while they are imported; so nothing of them may be imported above.
"""

import sys
from pathlib import Path

# Python's own readers that are there before, imported anew.
OWN = ("json", "json.decoder", "json.scanner", "pickle", "zipfile")
# Not ruamel.yaml: it compares every character with many, and a file took seconds, not a tenth.
INSTRUMENTED = [*OWN, "PIL", "maskdm", "safetensors", "stages"]


def main(name: str, folder: Path, *arguments: str) -> None:
    """Feed a target until libFuzzer's arguments say stop; the first defect ends the process."""
    import atheris

    for module in OWN:
        sys.modules.pop(module, None)
    with atheris.instrument_imports(include=INSTRUMENTED):
        from benchmarks.robustness.targets import TARGETS

        taken = TARGETS[name].fed(folder)
        taken(b"")  # imports what is imported at need

    def test_one_input(content: bytes) -> None:
        taken(content)

    atheris.Setup([name, *arguments], test_one_input)
    atheris.Fuzz()


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), *sys.argv[3:])
