"""Any model with Llama's layout, asked for by `architecture="generic"`."""
