"""From files of text to rows of tokens. Nothing here imports jax, so worker processes start fast."""
