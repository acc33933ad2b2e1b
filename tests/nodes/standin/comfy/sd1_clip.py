import torch


class ClipTokenWeightEncoder:
    """Chunks of one prompt as a batch, joined on rows; the pooled vector is the first chunk's."""

    def encode_token_weights(self, token_weight_pairs):
        out, pooled = self.encode([[entry[0] for entry in chunk] for chunk in token_weight_pairs])[:2]
        rows = torch.cat([out[index : index + 1] for index in range(len(out))], dim=-2)
        return rows, None if pooled is None else pooled[0:1]
