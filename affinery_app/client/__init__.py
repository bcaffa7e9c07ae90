"""`affinery.Client`: the service's verbs from Python, alike for a workspace here and a service elsewhere.

`local.py` and `remote.py` carry requests to the one application; `client.py` and `nouns.py` are the verbs.
"""

from affinery_app.client.client import Client

__all__ = ["Client"]
