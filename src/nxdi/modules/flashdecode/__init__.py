"""Names of NxDI's flash decoding that models import."""
