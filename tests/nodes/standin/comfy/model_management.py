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


def load_models_gpu(models, memory_required=0, force_full_load=False):
    for model in models:
        model.load()


def free_memory(memory_required, device):
    return []


def soft_empty_cache():
    pass
