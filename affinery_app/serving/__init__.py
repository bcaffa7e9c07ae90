"""A model over HTTP: a bundle's tasks, drawn for whoever asks."""
