"""EAGLE: draft heads that read the activations of their target."""
