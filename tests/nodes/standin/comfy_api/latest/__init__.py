"""The part of the V3 node API that the pack uses."""

from enum import Enum, StrEnum


class ComfyExtension:
    async def on_load(self):
        pass


class _Socket:
    def __init__(self, id, **options):
        self.id = id
        self.options = options
        self.tooltip = options.get("tooltip")
        self.display_name = options.get("display_name")


class _Type:
    def __init__(self, io_type):
        self.io_type = io_type
        self.Input = type("Input", (_Socket,), {"io_type": io_type})
        self.Output = type("Output", (_Socket,), {"io_type": io_type})


class _Schema:
    def __init__(self, node_id, display_name, category, inputs, outputs, description="", hidden=(), **options):
        ids = [socket.id for socket in [*inputs, *outputs]]
        if len(set(ids)) != len(ids):
            raise ValueError(f"ids are not unique: {ids}")
        self.node_id, self.display_name, self.category = node_id, display_name, category
        self.inputs, self.outputs, self.description = inputs, outputs, description
        self.hidden, self.options = hidden, options


class _NodeOutput:
    def __init__(self, *args, ui=None):
        self.args = args
        self.ui = ui

    @property
    def result(self):
        return self.args


class _Hidden(Enum):
    unique_id = "UNIQUE_ID"


class _Holder:
    unique_id = None


class _ComfyNode:
    hidden = _Holder()

    @classmethod
    def GET_SCHEMA(cls):
        return cls.define_schema()


class _NumberDisplay(StrEnum):
    slider = "slider"


class io:
    ComfyNode = _ComfyNode
    Schema = _Schema
    NodeOutput = _NodeOutput
    Hidden = _Hidden
    NumberDisplay = _NumberDisplay
    Custom = staticmethod(_Type)
    Conditioning = _Type("CONDITIONING")
    Clip = _Type("CLIP")
    Model = _Type("MODEL")
    Image = _Type("IMAGE")
    String = _Type("STRING")
    Float = _Type("FLOAT")
    Int = _Type("INT")
    Boolean = _Type("BOOLEAN")
    Combo = _Type("COMBO")
    AnyType = _Type("*")
