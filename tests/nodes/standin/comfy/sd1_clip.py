import torch


class ClipTokenWeightEncoder:
    """Chunks of one prompt as a batch, joined on rows; the pooled vector is the first chunk's. Weighted tokens lie
    between those of the empty prompt and their own."""

    def encode_token_weights(self, token_weight_pairs):
        chunks = [[entry[0] for entry in chunk] for chunk in token_weight_pairs]
        weights = torch.tensor([[float(entry[1]) for entry in chunk] for chunk in token_weight_pairs])
        weighted = bool((weights != 1).any())
        if weighted:
            start, end, pad = (self.special_tokens[name] for name in ("start", "end", "pad"))
            chunks = [*chunks, [start, end] + [pad] * (len(chunks[0]) - 2)]
        out, pooled = self.encode(chunks)[:2]
        if weighted:
            out, empty = out[:-1], out[-1:]
            out = torch.where(weights[..., None] == 1, out, (out - empty) * weights[..., None] + empty)
        rows = torch.cat([out[index : index + 1] for index in range(len(out))], dim=-2)
        return rows, None if pooled is None else pooled[0:1]
