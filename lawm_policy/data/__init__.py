"""Episodes on disk, the decoded cache, and the batches that training draws from them."""
