"""The largest that is believed of a file. Nothing is imported here."""

SIDE_LIMIT = 8192  # pixels
CONDITION_CHANNELS_LIMIT = 16
