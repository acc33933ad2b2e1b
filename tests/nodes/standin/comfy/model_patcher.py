class ModelPatcher:
    def __init__(self, model, load_device, offload_device):
        self.model = model
        self.load_device = load_device
        self.offload_device = offload_device
        self.patches = {}
        self.backup = {}
        self.forced_hooks = None

    def clone(self):
        other = ModelPatcher(self.model, self.load_device, self.offload_device)
        other.patches = {name: list(patches) for name, patches in self.patches.items()}
        other.backup = self.backup
        return other

    def add_patches(self, patches, strength_patch=1.0, strength_model=1.0):
        for name, value in patches.items():
            self.patches.setdefault(name, []).append((strength_patch, value, strength_model, None, None))
        return list(patches)
