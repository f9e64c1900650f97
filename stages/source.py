"""source: what the files of data.source are now, so that prepare follows when they change."""

from pathlib import Path

from maskdm.backbones.autoencoder import autoencoder_hash, latent_shape
from maskdm.data.inventory import inventory
from maskdm.data.registry import DataParams
from maskdm.runtime.command import run
from maskdm.runtime.errors import UNDO, UserError
from maskdm.runtime.files import write_json
from maskdm.runtime.params import read_section

PARAMS = Path("params.yaml")
SOURCE = Path("data/source.json")


def main() -> None:
    """Read params data and look at the files they name; write data/source.json.

    It always runs. While the files, those of an autoencoder too, stay what they are, it writes the
    same, and nothing after it runs again.
    """
    try:
        params = read_section(PARAMS, "data", DataParams)
        found = inventory(params)
        if params.autoencoder is not None:
            latent_shape(params.autoencoder, params.resolution, params.channels)
            found |= {"autoencoder": autoencoder_hash(params.autoencoder)}
    except UserError as error:
        raise UserError(f"{error}\n{UNDO}") from None
    write_json(SOURCE, found)


if __name__ == "__main__":
    run(main)
