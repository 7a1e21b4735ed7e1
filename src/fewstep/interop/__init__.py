"""Read and write other projects' formats; one file a format."""
