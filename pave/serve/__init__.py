"""`pave serve`: the page, the endpoints, and what both share with `pave demo`."""
