"""How the tiny models of the small world are trained."""
