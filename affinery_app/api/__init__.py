"""The registry over HTTP: `/v1/…`, one noun a file. docs/guides/http-api.md tells it to people.

`application.py` puts the parts together, `guard.py` stands before them all (who may come in, how much they
may send), `problems.py` says what went wrong. FastAPI is imported here only, and this by `affinery serve`.
"""
