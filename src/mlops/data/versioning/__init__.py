"""Which version of the data is here: `data.dvc`, the manifest of its files, and the way to and from a bucket by DVC."""
