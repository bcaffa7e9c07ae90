"""The pages of `affinery serve`: rendered here, light on scripts, at work without a network.

One noun a file; `visit.py` is what a page is given and answers with, `routes.py` the list of them. Pages read
and change the registry by the same functions as the API and the command line do; what stands in
`templates/` escapes every text, and what stands in `static/` is all that a page loads.
"""
