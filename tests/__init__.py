"""Affinery's tests: a package, since torch-fidelity installs one of that name, which would be found first."""
