"""The registry: what exists and whence it came. No torch, no Ray, no network of its own."""
