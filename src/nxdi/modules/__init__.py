"""Building blocks of models: attention, caches, normalisation, rotary embeddings, MLPs, sampling."""
