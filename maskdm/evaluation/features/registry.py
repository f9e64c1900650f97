"""Extractors by name. A new one is a file beside this one and an entry in ``EXTRACTORS``."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from maskdm.evaluation.features.efficientnet import EFFICIENTNET_LITE0
from maskdm.evaluation.features.extraction import FeatureNetwork
from maskdm.evaluation.features.inception import INCEPTION
from maskdm.runtime.params import Section

if TYPE_CHECKING:
    import torch

EXTRACTORS = {extractor.name: extractor for extractor in (EFFICIENTNET_LITE0, INCEPTION)}


class FeatureParams(Section):
    """The section ``fid.features``: the features in which distances are measured."""

    extractor: Literal["efficientnet-lite0", "inception"] = Field(
        description="efficientnet-lite0 (embedded) or inception (FID; downloads 95 MB once)"
    )


def load_network(name: str, device: torch.device) -> FeatureNetwork:
    """Return the extractor called ``name``, ready to use on ``device``.

    Raises:
        UserError: if its weights cannot be downloaded or do not fit.
    """
    extractor = EXTRACTORS[name]
    file = extractor.weights()
    network = extractor.build(file, device)
    return FeatureNetwork(extractor, network, device, hashlib.sha256(file.read_bytes()).hexdigest())
