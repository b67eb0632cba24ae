"""One file for each family of models; none imports torch."""
