"""All that knows ComfyUI's types: CLIP, CONDITIONING, folders, memory, messages."""
