"""The Neuron backend: graphs traced and compiled by the SDK's neuronx_distributed, run on device.

Never run on Neuron hardware. Nothing here imports the SDK before a function needs it.
"""
