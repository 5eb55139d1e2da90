"""What computes operations on a Neuron device: the kernels of `nxdi.kernels.nki`."""
