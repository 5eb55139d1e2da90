"""Planning without tracing: which graphs exist, which one a step needs, how it is padded."""
