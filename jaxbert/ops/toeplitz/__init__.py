"""The product of a Toeplitz matrix with values over tokens, within segments."""
