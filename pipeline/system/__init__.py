"""What knows nothing of networks: files and paths, streams, errors, documents, tensors in files, and this process."""
