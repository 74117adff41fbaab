"""What run.py, the tests and the demo share: an environment, a ComfyUI, a server. Nothing here ships with the pack."""
