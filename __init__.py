"""ComfyUI's door to the Embedding Sanitizer. Nothing is imported until ComfyUI asks for the nodes."""

WEB_DIRECTORY = "./web"


async def comfy_entrypoint():
    """Give ComfyUI the extension. ComfyUI logs a failure here as one line, so the traceback is logged first."""
    try:
        from .nodes import SanitizerExtension

        return SanitizerExtension()
    except Exception:
        import logging

        logging.exception("Embedding Sanitizer: the nodes could not be loaded.")
        raise
