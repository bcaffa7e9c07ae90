"""How good samples are: drawn, looked at by an extractor, compared with real images, under a protocol.

samples.py      what is drawn to be judged, all classes alike
recogniser.py   a classifier of the real images: recognition by class, and the features of small images
extractors.py   who looks at images: the recogniser, Inception, CLIP, any timm model
spelling.py     how people say who is to look
distances.py    Fréchet and kernel distance, Inception Score, precision and recall, of features
neighbours.py   whether samples are copies of training images
fidelity.py     whether a sample shows the condition that it was told
judging.py      all of it together, with the protocol that it was done by
continual.py    the matrix R[stage, task]: average, forgetting, transfer
"""
