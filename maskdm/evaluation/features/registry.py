"""Extractors by name. A new one is a file beside this one and an entry in ``EXTRACTORS``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from maskdm.evaluation.features.dinov2 import DINOV2
from maskdm.evaluation.features.efficientnet import EFFICIENTNET_LITE0
from maskdm.evaluation.features.extraction import FeatureNetwork
from maskdm.evaluation.features.inception import INCEPTION
from maskdm.runtime.files import file_hash
from maskdm.runtime.params import Section

if TYPE_CHECKING:
    import torch

EXTRACTORS = {extractor.name: extractor for extractor in (EFFICIENTNET_LITE0, INCEPTION, *DINOV2)}


class FeatureParams(Section):
    """The section ``fid.features``: the features in which distances are measured."""

    extractor: Literal["efficientnet-lite0", "inception", "dinov2-vits14", "dinov2-vitl14"] = Field(
        description="efficientnet-lite0 (embedded), or, downloaded once, inception (FID; 95 MB), "
        "dinov2-vits14 (88 MB) or dinov2-vitl14 (1.2 GB)"
    )


def load_network(name: str, device: torch.device) -> FeatureNetwork:
    """Return the extractor called ``name``, ready to use on ``device``.

    Raises:
        UserError: if its weights cannot be downloaded or do not fit.
    """
    extractor = EXTRACTORS[name]
    file = extractor.weights()
    network = extractor.build(file, device)
    return FeatureNetwork(extractor, network, device, file_hash(file))
