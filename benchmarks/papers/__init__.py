"""The papers' tables, on datasets and backbones that are small enough for this machine."""
