"""A trace to look into with the mouse and the keys, in JupyterLab."""
