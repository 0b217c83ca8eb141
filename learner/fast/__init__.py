"""The K-update block compiled or as a CUDA graph."""
