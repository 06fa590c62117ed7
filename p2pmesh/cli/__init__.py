"""The ``p2pmesh`` command.

``main`` reads the command line and ends every run with the right status and at
most one line on stderr; each other module is one group of commands or one thing
they share (``output``, ``local``).  One-shot commands stay light: they load
argparse, http.client and json, and nothing of the mesh.
"""
