from types import SimpleNamespace

nodes = SimpleNamespace(NODE_CLASS_MAPPINGS={})


class PromptServer:
    instance = None
