import weakref

import torch


class InterruptProcessingException(BaseException):
    pass


_interrupt = False


def interrupt_current_processing(value=True):
    global _interrupt
    _interrupt = value


def throw_exception_if_processing_interrupted():
    global _interrupt
    if _interrupt:
        _interrupt = False
        raise InterruptProcessingException


def get_torch_device():
    return torch.device("cpu")


def unet_offload_device():
    return torch.device("cpu")


def intermediate_device():
    return torch.device("cpu")


class LoadedModel:
    def __init__(self, patcher):
        self.patcher = weakref.ref(patcher)

    @property
    def model(self):
        return self.patcher()


current_loaded_models: list[LoadedModel] = []


def load_models_gpu(models, memory_required=0, force_full_load=False):
    for patcher in models:
        patcher.load()
        others = [m for m in current_loaded_models if m.model is not None and m.model.model is not patcher.model]
        current_loaded_models[:] = [LoadedModel(patcher), *others]


def free_memory(memory_required, device):
    return []


def soft_empty_cache():
    pass
