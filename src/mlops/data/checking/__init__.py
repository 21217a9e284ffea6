"""What a person should know of images before training on them: counts, sizes, copies, likenesses, leaks."""
