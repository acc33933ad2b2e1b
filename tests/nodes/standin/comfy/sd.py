from . import model_management
from .model_patcher import ModelPatcher


class CLIP:
    def __init__(self, target=None, embedding_directory=None, no_init=False):
        if no_init:
            return
        self.cond_stage_model = target.clip(**target.params)
        self.tokenizer = target.tokenizer(embedding_directory=embedding_directory)
        self.patcher = ModelPatcher(self.cond_stage_model, load_device="cpu", offload_device="cpu")
        self.layer_idx = None

    def clone(self):
        other = CLIP(no_init=True)
        other.patcher = self.patcher.clone()
        other.cond_stage_model = self.cond_stage_model
        other.tokenizer = self.tokenizer
        other.layer_idx = self.layer_idx
        return other

    def add_patches(self, patches, strength_patch=1.0, strength_model=1.0):
        return self.patcher.add_patches(patches, strength_patch, strength_model)

    def get_key_patches(self):
        return self.patcher.get_key_patches()

    def clip_layer(self, layer_idx):
        self.layer_idx = layer_idx

    def tokenize(self, text, return_word_ids=False, **kwargs):
        return self.tokenizer.tokenize_with_weights(text, return_word_ids, **kwargs)

    def encode_from_tokens(self, tokens, return_pooled=False, return_dict=False):
        self.cond_stage_model.reset_clip_options()
        if self.layer_idx is not None:
            self.cond_stage_model.set_clip_options({"layer": self.layer_idx})
        model_management.load_models_gpu([self.patcher])
        o = self.cond_stage_model.encode_token_weights(tokens)
        cond, pooled = o[:2]
        if return_dict:
            return {"cond": cond, "pooled_output": pooled, **(o[2] if len(o) > 2 else {})}
        return (cond, pooled) if return_pooled else cond

    def encode_from_tokens_scheduled(self, tokens, add_dict=None):
        out = self.encode_from_tokens(tokens, return_pooled=True, return_dict=True)
        return [[out.pop("cond"), {**out, **(add_dict or {})}]]
