"""Bidirectional attention within segments."""
