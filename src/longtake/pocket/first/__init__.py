"""The first edition of the pocket world: what the shipped pocket model was trained on."""
