"""Operations, one folder each: `reference.py` is the specification in plain jnp."""
