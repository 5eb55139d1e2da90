"""Building blocks of models: attention, caches, norms, rotary embeddings, MLPs, sampling."""
