"""A stand-in for the few ComfyUI names that the nodes use, so that their tests run without ComfyUI.

With COMFYUI_PATH set the same tests run against the real modules, which keeps this one honest.
"""
