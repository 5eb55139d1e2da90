"""HLO of every graph of a model, lowered by torch_xla on a machine without a device."""
