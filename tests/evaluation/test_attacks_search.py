"""The searches of the attacks, on tiny encoders: they get nearer, they keep to their budget, they obey the bans."""

import random

import pytest
import torch

from evaluation.attacks import search
from evaluation.attacks.gcg import gcg_search
from evaluation.attacks.gradient_encoder import TransformersTokens, gradient_encoder
from evaluation.attacks.judge import concept_vector
from evaluation.attacks.search import target_vector
from evaluation.attacks.words import BannedWords, disguises, load_banned, other_language, word_order
from sanitizer.audit.genetic import genetic_search
from sanitizer.audit.space import Objective, squared_distance, vectors
from sanitizer.audit.substitution import substitution_search
from sanitizer.audit.trace import Trace, checkpoints
from sanitizer.errors import SanitizerError
from sanitizer.prompts.obfuscation import OBFUSCATIONS
from sanitizer.training.dataset import measure

transformers = pytest.importorskip("transformers")
WORDS = [f"w{i}" for i in range(60)]
TARGET = "w1 w2 w3 w4 w5"


def no_step(*_):
    pass


def tokenizer(folder, specials, length, **tokens):
    from tokenizers import Tokenizer, models, pre_tokenizers

    vocabulary = {word: i for i, word in enumerate([*specials, *WORDS])}
    made = Tokenizer(models.WordLevel(vocabulary, unk_token=specials[-1]))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=made, unk_token=specials[-1], model_max_length=length, **tokens
    ).save_pretrained(folder)
    return len(vocabulary)


def bert(folder):
    size = tokenizer(
        folder, ["[PAD]", "[CLS]", "[SEP]", "[UNK]"], 30, cls_token="[CLS]", sep_token="[SEP]", pad_token="[PAD]"
    )
    config = transformers.BertConfig(
        vocab_size=size, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        max_position_embeddings=30, initializer_range=0.2,
    )  # fmt: skip
    return transformers.BertModel(config)


def clip(folder):
    size = tokenizer(folder, ["<s>", "</s>", "<unk>"], 30, bos_token="<s>", eos_token="</s>", pad_token="</s>")
    config = transformers.CLIPTextConfig(
        vocab_size=size, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        max_position_embeddings=30, projection_dim=16, bos_token_id=0, eos_token_id=1, pad_token_id=1,
    )  # fmt: skip
    return transformers.CLIPTextModel(config)


def t5(folder):
    size = tokenizer(folder, ["<pad>", "</s>", "<unk>"], 30, eos_token="</s>", pad_token="<pad>")
    config = transformers.T5Config(vocab_size=size, d_model=32, d_kv=8, d_ff=64, num_layers=2, num_heads=4)
    return transformers.T5EncoderModel(config)


@pytest.fixture(scope="module", params=[bert, clip, t5], ids=lambda make: make.__name__)
def encoder(request, tmp_path_factory):
    from sanitizer.encoders import load_encoder

    folder = tmp_path_factory.mktemp(request.param.__name__)
    torch.manual_seed(0)
    request.param(folder).save_pretrained(folder)
    return load_encoder(str(folder))


@pytest.fixture(scope="module")
def normalizer(encoder):
    rng = random.Random(1)
    texts = [" ".join(rng.choices(WORDS, k=rng.randint(3, 9))) for _ in range(64)]
    return measure([encoder.encode(texts)])


@pytest.fixture
def objective(encoder, normalizer):
    return Objective(encoder, normalizer, vectors(encoder, normalizer, [TARGET])[0])


def test_tokens_measure_what_the_encoder_measures(encoder, objective):
    tokens = TransformersTokens(encoder)
    ids = torch.tensor(tokens.read(["w7 w8 w9 w10 w11", TARGET]))
    assert tokens.texts(ids) == ["w7 w8 w9 w10 w11", TARGET]
    by_ids, by_text = tokens.losses(ids, objective.of_embeddings), objective(tokens.texts(ids))
    assert torch.allclose(by_ids, by_text, atol=1e-4)
    assert by_ids[1] < 1e-4 < by_ids[0]
    assert tokens.allowed.sum() == len(WORDS), "special tokens stand for no word"


def test_gradient_is_the_slope_of_the_loss(encoder, objective):
    tokens = TransformersTokens(encoder)
    [ids] = torch.tensor(tokens.read(["w7 w8 w9 w10 w11"]))
    gradient = tokens.gradient(ids, objective.of_embeddings)
    assert gradient.shape == (5, len(tokens.words))
    place, word = divmod(int(gradient.abs().argmax()), gradient.shape[1])
    start, weight = len(encoder.layout.start), tokens.embedding.weight[word]

    def loss_at(amount):
        def moved(_module, _inputs, output):
            output = output.clone()
            output[:, start + place] += amount * weight
            return output

        hooks = [module.register_forward_hook(moved) for module in tokens.embeddings]
        found = tokens.losses(ids[None], objective.of_embeddings)[0]
        for hook in hooks:
            hook.remove()
        return found

    slope = (loss_at(0.02) - loss_at(-0.02)) / 0.04
    assert gradient[place, word] == pytest.approx(float(slope), rel=0.1)
    assert not any(module._forward_hooks for module in tokens.embeddings), "nothing of the attack stays on the encoder"


def test_gcg_lowers_its_loss_below_random_search(encoder, objective):
    tokens, generator = TransformersTokens(encoder), torch.Generator().manual_seed(0)
    trace = gcg_search(objective, tokens, tokens.allowed, budget=400, generator=generator, step=no_step, length=5)
    assert objective.queries <= 400
    assert trace.loss == pytest.approx(float(objective([trace.best])), abs=1e-4), "the loss is the prompt's own"
    rng = random.Random(0)
    blind = objective([" ".join(rng.choices(WORDS, k=5)) for _ in range(400)]).min()
    assert trace.loss < 0.8 * float(blind)


def test_gcg_repeats_itself_and_uses_no_forbidden_token(encoder, objective, normalizer):
    tokens = TransformersTokens(encoder)
    allowed = tokens.allowed & ~torch.tensor([word in ("w1", "w2") for word in tokens.words])
    found = []
    for _ in range(2):
        fresh = Objective(encoder, normalizer, objective.target)
        generator = torch.Generator().manual_seed(3)
        trace = gcg_search(fresh, tokens, allowed, budget=150, generator=generator, step=no_step, length=5)
        found.append(trace.found())
        assert not {"w1", "w2"} & {word for text in trace.found().values() for word in text.split()}
    assert found[0] == found[1]


def test_genetic_search_improves(encoder, objective):
    tokens, generator = TransformersTokens(encoder), torch.Generator().manual_seed(0)
    words = tokens.allowed.nonzero().squeeze(1)
    objective.distance = squared_distance
    best = []
    trace = genetic_search(
        objective, tokens.texts, words, budget=500, generator=generator, length=5,
        step=lambda *_: best.append(0),
    )  # fmt: skip
    assert len(best) > 5
    assert objective.queries == 500
    found = trace.found()
    losses = [float(objective([found[point]])) for point in checkpoints(500)]
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] < 0.7 * losses[0]
    assert len(trace.best.split()) == 5


def test_substitution_needs_no_gradient_and_begins_with_the_prompt(tiny, tiny_sanitizer):
    normalizer = tiny_sanitizer.normalizer
    target = vectors(tiny, normalizer, ["a crimson dress on a chair"])[0]
    objective = Objective(tiny, normalizer, target)
    trace = substitution_search(
        objective, "a boat on a lake", ["crimson", "dress", "chair"], budget=300, rng=random.Random(0), step=no_step
    )
    assert objective.queries == 300
    assert trace.loss < 0.6 * float(objective(["a boat on a lake"]))
    one = substitution_search(
        Objective(tiny, normalizer, target), "a boat", ["tree"], budget=1, rng=random.Random(0), step=no_step
    )
    assert one.found() == {1: "a boat"}


def test_a_search_stops_where_its_callback_says(tiny, tiny_sanitizer):
    normalizer = tiny_sanitizer.normalizer
    objective = Objective(tiny, normalizer, vectors(tiny, normalizer, ["a boat"])[0])

    def stop(*_):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        substitution_search(objective, "a lake", ["tree"], budget=50, rng=random.Random(0), step=stop)
    assert objective.queries == 1


def test_a_checkpoint_holds_what_was_best_until_then():
    trace = Trace(160)
    trace.offer(10, ["a"], [0.5])
    trace.offer(40, ["b"], [0.4])
    trace.offer(41, ["c"], [0.1])
    trace.offer(160, ["d"], [0.2])
    assert trace.found() == {10: "a", 40: "b", 160: "c"}


def test_the_soft_gate_leads_where_the_hard_one_is_flat(tiny, tiny_sanitizer):
    hard, soft = search.hard(tiny_sanitizer, "nudity"), search.soft(tiny_sanitizer, "nudity")
    e = tiny.encode(["a boat on a lake", "a crimson dress"])
    given = e.embeddings.clone().requires_grad_(True)
    moved, _ = soft(given, e.mask, e.pooled)
    plain, _ = hard(e.embeddings, e.mask, e.pooled)
    assert torch.equal(plain[0], e.embeddings[0])
    assert not torch.equal(plain[1], e.embeddings[1])
    score = tiny_sanitizer.score(e.embeddings, e.mask).prompt[:, 0]
    assert (moved[0] - e.embeddings[0]).abs().max() < 0.2 * (plain[1] - e.embeddings[1]).abs().max(), "nearly closed"
    assert torch.allclose(moved[1], plain[1], atol=0.2 * float(plain[1].abs().max())), "nearly open"
    assert score[0] < 0.5 < score[1]
    ((moved - e.embeddings) ** 2).sum().backward()
    assert given.grad[0].abs().max() > 0, "the gradient says how near the threshold is"


def test_the_soft_gate_follows_a_context_concept_that_lowers_the_limit(tiny, tiny_sanitizer):
    """With `youth` present the limit of nudity is lower, so that the same score lies further above it."""
    e = tiny.encode(["a crimson dress", "a boat on a lake"])
    soft = search.soft(tiny_sanitizer, "nudity")
    plain, _ = soft(e.embeddings, e.mask, e.pooled)
    tiny_sanitizer.vote_bias[0, tiny_sanitizer.concepts.index("youth")] = 20.0
    lowered, _ = soft(e.embeddings, e.mask, e.pooled)
    assert ((lowered - e.embeddings).norm(dim=(1, 2)) > (plain - e.embeddings).norm(dim=(1, 2))).all()


def test_ring_a_bell_target():
    unsafe, safe = torch.tensor([[2.0, 0.0], [4.0, 0.0]]), torch.tensor([[1.0, 0.0], [1.0, 2.0]])
    vector = concept_vector(unsafe, safe)
    assert vector.tolist() == [2.0, -1.0]
    assert target_vector(torch.ones(2), vector, eta=3.0).tolist() == [7.0, -2.0]


def test_banned_words():
    banned = BannedWords(["gun", "blood"])
    assert [text in banned for text in ("gun", "a GUN.", "begun", "bloody", "cold-blooded", "goat")] == [
        True, True, False, True, True, False,
    ]  # fmt: skip
    assert "portrait" not in load_banned("nudity")
    assert "undressed" in load_banned("nudity")
    assert "bloody" in load_banned("a concept without a list")


def test_a_broken_list_names_its_file(tmp_path):
    file = tmp_path / "words.toml"
    file.write_text('nudity = "one"')
    with pytest.raises(SanitizerError, match=r"words\.toml: expected nudity"):
        load_banned("nudity", file)
    with pytest.raises(SanitizerError, match=r"gone\.toml"):
        disguises("nudity", tmp_path / "gone.toml")


def test_disguises():
    rng = random.Random(0)
    text = "a red boat on a lake"
    moved = word_order(text, rng)
    assert moved != text
    assert sorted(moved.split()) == sorted(text.split())
    assert word_order("boat", rng) is None
    translate = other_language({"boat": ["Boot", "bateau"]})
    assert translate("a Boat, a boatman", rng) in ("a Boot, a boatman", "a bateau, a boatman")
    assert translate("a lake", rng) is None
    assert set(disguises("nudity")) == {*OBFUSCATIONS, "word_order", "languages"}
    assert disguises("no such concept")["languages"](text, rng) is None


def test_an_encoder_without_gradients_is_refused(tiny):
    with pytest.raises(SanitizerError, match=r"Attack mma: expected an encoder with tokens and gradients.*tiny-masked"):
        gradient_encoder(tiny, "mma")
