"""Who proposes tokens to a model of its own accord: a draft model in its graphs, or its heads."""

from __future__ import annotations

from nxdi.errors import ConfigError
from nxdi.generation.speculation.fused import InGraph
from nxdi.generation.speculation.medusa import MedusaHeads
from nxdi.generation.speculation.proposals import Proposer
from nxdi.models.causal_lm import NeuronBaseForCausalLM


def proposer_of(model: NeuronBaseForCausalLM, given: Proposer | None) -> Proposer | None:
    """The one that is given, or the model's own; None: nobody.

    Raises: ConfigError if somebody else is given for graphs that propose by themselves.
    """
    if model.neuron_config.is_medusa and given is None:
        return MedusaHeads()
    if not model.neuron_config.proposes_in_graph:
        return given
    if given is not None and not isinstance(given, InGraph):
        raise ConfigError(
            f"{type(given).__name__} proposes tokens, and so do the graphs of this model, with a "
            "draft model in them; leave it out, or compile without enable_fused_speculation"
        )
    return InGraph(model.neuron_config)
