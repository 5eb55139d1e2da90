"""`nxdi port`: a source file written for NxD Inference, made to import from nxdi."""
