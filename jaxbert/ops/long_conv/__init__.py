"""A bidirectional convolution of each channel with a filter as long as the row."""
