"""Speculative decoding: which proposed tokens the target keeps."""
