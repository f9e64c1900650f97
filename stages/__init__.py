"""The stages of the pipeline: one file, one command each."""

from maskdm.runtime.environment import bound_spinning
from maskdm.runtime.renamed import refuse_renamed

refuse_renamed({"stages.states": "stages.checkpoints", "stages.plots_page": "tools.plots_page"})
bound_spinning()  # before a stage imports torch
