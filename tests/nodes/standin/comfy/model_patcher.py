import uuid


class ModelPatcher:
    def __init__(self, model, load_device, offload_device):
        self.model = model
        self.load_device = load_device
        self.offload_device = offload_device
        self.patches = {}
        self.patches_uuid = uuid.uuid4()
        self.backup = {}
        self.forced_hooks = self.current_hooks = None

    def clone(self):
        other = self.__class__(self.model, self.load_device, self.offload_device)
        other.patches = {name: list(patches) for name, patches in self.patches.items()}
        other.patches_uuid = self.patches_uuid
        other.backup = self.backup
        return other

    def add_patches(self, patches, strength_patch=1.0, strength_model=1.0):
        for name, value in patches.items():
            self.patches.setdefault(name, []).append((strength_patch, value, strength_model, None, None))
        self.patches_uuid = uuid.uuid4()
        return list(patches)

    def get_key_patches(self, filter_prefix=None):
        return {name: [(weight,)] for name, weight in self.model.state_dict().items()}

    def get_combined_hook_patches(self, hooks):
        return {}

    def load(self):
        """Only patches of the kind "diff", added to the weights."""
        self.model.to(self.load_device)
        if getattr(self.model, "current_weight_patches_uuid", None) == self.patches_uuid:
            return
        weights = self.model.state_dict()
        for name in list(self.backup):
            weights[name].copy_(self.backup.pop(name).weight)
        for name, patches in self.patches.items():
            self.backup[name] = Backup(weights[name].clone())
            for strength, value, strength_model, _, _ in patches:
                weights[name].mul_(strength_model).add_(value[-1][0], alpha=strength)
        self.model.current_weight_patches_uuid = self.patches_uuid


class Backup:
    def __init__(self, weight):
        self.weight = weight
