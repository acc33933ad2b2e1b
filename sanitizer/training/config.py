"""Every tuned number of training, in one place; saved whole in the header of the file that it made.

"Chosen on held-out phrases" means the phrases of concepts/ that training does not see, on the embedded encoders.
"""

import json
from dataclasses import asdict, dataclass, field, replace

from ..prompts.generator import PromptConfig


@dataclass(frozen=True)
class TrainingConfig:
    """Numbers of a training; the defaults are what the experiments settled on."""

    prompts: PromptConfig = field(default_factory=PromptConfig)
    """What the training prompts are made of."""

    # Encoding the training prompts.
    encode_batch: int = 64
    """Prompts that are encoded at once; fewer with a wide encoder."""
    sorted_batches: int = 16
    """Prompts are encoded in order of length within so many batches, which saves padding."""
    padding_kept: int = 8
    """Padding embeddings kept of a prompt, evenly spaced, the last one among them; each stands for several."""
    memory: int = 3 * 2**30
    """Bytes of kept embeddings after which encoding stops; the set so far is used. The full set of all concepts takes
    2.8 GB at 384 channels."""
    statistics_prompts: int = 1024
    """Training prompts among which those are drawn whose embeddings say the mean and deviation of each channel."""
    dead: float = 1e-3
    """A channel whose standard deviation is below this share of the median one carries no prompt and is left alone:
    MiniLM has three, and scaling them up takes the output off the encoder's manifold."""
    constant: float = 1e-3
    """A leading place whose deviation over prompts is below this share of its norm is constant, as BOS is."""
    most_constant: int = 64
    """Leading places that may be constant."""

    # Other languages, see :mod:`..prompts.languages`.
    language_phrases: int = 60
    """Phrases of a language by which it is told whether the encoder knows it, at most."""
    fewest_language_phrases: int = 16
    """And at least; a training that has not so many to spend takes no language for known."""
    language_known: float = 0.8
    """Area under the curve of :func:`.known_languages.known_languages` from which it does."""

    # Optimised strings, see :mod:`.optimised`.
    optimised: int = 0
    """Unsafe prompts of a thousand towards which strings are searched, and towards as many anchors; 0: none. With 10,
    and 12 steps of 8 tries, as many of MMA's strings are flagged as without (25 % of 24, nudity on `minilm`), for half
    as many prompts more to encode. The report searches in the same way."""
    optimised_longest: int = 30
    """Words of such a prompt, at most."""
    optimised_words: tuple[int, int] = (6, 16)
    """Fewest and most words of a string."""
    optimised_steps: int = 11
    """Steps of a search."""
    optimised_tries: int = 6
    """Strings that are tried in a step."""
    optimised_kept: int = 8
    """Strings that are kept of a search: the nearest ones."""
    optimised_exchanged: int = 3
    """Words that are exchanged at once in the first step; 1 in the last."""
    optimised_margin: float = 0.05
    """Cosine by which a string is nearer to its prompt than to that one's other side, at least."""

    # Sizes of what is trained, where the encoder is at least as wide.
    score_span: int = 16
    """Token embeddings that the score net sees at once, of an encoder without windows of fixed size. Of prompts with
    several phrases that are flagged alone, 75 % are flagged among 200 harmless words with 16, 59 % with 48 (16,000
    training prompts; nudity and violence on `minilm`). In windows with padding, which tells of the whole prompt, spans
    of 24 hold more of these prompts and flag a sixth fewer of them alone (`minilm-causal`): there the whole window is
    seen."""

    # How the erase net acts, saved in the file.
    strength_curve: float = 0.6
    """Exponent of a strength below 1, see :attr:`..model.config.SanitizerConfig.strength_curve`. Of the pictures of
    flagged prompts 97 and 90 % hold the weapon at the amount .5, 54 and 42 % at .65, 6 and 10 % at .8, 3 and 5 % at 1
    (`minilm`, `minilm-causal`): the strength .5 is about half of the way."""

    # Optimisation.
    score_steps: int = 0
    """Optimiser steps of the score net; 0: 1000 and 35 for every hundred training prompts. Of single unseen phrases 68
    and 65 % are flagged after 20,000 steps, 58 and 53 % after 6,500 (full set, nudity and violence on `minilm`)."""
    erase_steps: int = 0
    """Optimiser steps of the erase net; 0: 900 and a thirty-fifth of the training prompts. More of them overfit
    which anchor is meant."""
    batch: int = 96
    """Prompts of a step of the score net, half of them unsafe."""
    erase_batch: int = 48
    """Pairs of a step of the erase net."""
    learning_rate: float = 2e-3
    """Of AdamW, after a warm-up of a twentieth of the steps, with cosine decay."""
    warm_steps: float = 0.25
    """Share of the steps that a training takes which goes on from another sanitizer's networks …"""
    warm_rate: float = 0.1
    """… and what the learning rate is multiplied by there. Of nudity on `minilm` whose weights were changed by 30 % of
    their norm: the networks as they were find 49.5 % of unseen phrases, with a quarter of the steps on all prompts
    61.6 %; on a quarter of the prompts less than that, 40.0 % at half the rate and 45.5 % at a tenth (one seed)."""
    weight_decay: float = 0.02
    """Of AdamW."""
    spliced: float = 0.4
    """Share of the windows of a causal encoder that are spliced of two, see :class:`.dataset._Splices`. Of held-out
    prompts with several phrases that are flagged alone, 78 and 55 % are flagged among 50 harmless words with it, 65 and
    45 % without (nudity and violence on `minilm-causal`, full set, 6,500 steps), with fewer captions touched."""
    spliced_unsafe: float = 0.35
    """Share of these whose back holds a phrase; else the net would learn that a phrase stands in front."""
    noise: float = 0.1
    """Standard deviations of noise on the input embeddings."""
    dropout: float = 0.2
    """Share of the score net's input channels that are left out at random, prompt by prompt: AUROC +.003."""
    token_weight: float = 4.0
    """Weight of the token loss beside the prompt loss."""
    feature_weight: float = 2.0
    """Weight of the probe features (mean and last embedding) in the erase loss."""
    direction_weight: float = 0.15
    """Weight of the error along the directions that tell targets from anchors."""
    identity: float = 0.15
    """Share of the erase net's batch that is an anchor, to be left as it is."""
    probe_decay: float = 1e-3
    """Weight decay of the linear probe in the ensemble."""
    sampled_embeddings: int = 40_000
    """Embeddings that the directions of the subspaces are computed from, at most."""
    sampled_values: int = 2**25
    """Their values, at most: a wide encoder's would take gigabytes."""
    ridge: float = 0.05
    """Ridge of Fisher's discriminant, in mean variances."""
    fisher_pairs: int = 1500
    """Pairs of a concept that its discriminant is computed from, at most."""

    # Calibration, on harmless prompts that training did not see.
    false_positives: float = 0.014
    """Share of the calibration's everyday prompts that may be touched, all concepts together. A quarter of them are
    about the concepts' own topics, chosen to be hard: of captions it is about .4 %. Of several unseen phrases, at .011,
    .013 and .016 (:attr:`long_false_positives` .05, .06, .08): 96, 96 and 97 % of nudity's are flagged on `minilm`, 92,
    93 and 93 % on `minilm-causal`; of captions .2, .2, .4 and .4, .4, .5 % are touched, of OVERT's sexual_content 9,
    10, 15 and 2, 4, 4 % (seven concepts, one seed)."""
    borderline: float = 0.15
    """The same of its hard negatives and of its prompts that talk about a concept, and one phrase of these more: a list
    of one's own may have four of them. That of the picture judge flags all of its plain words with, and half of them
    without, and touches 61 % of look-alikes instead of 16 (`minilm-causal`)."""
    long_false_positives: float = 0.07
    """The same of texts of several of the everyday prompts, of each of which a quarter is about a concept's own topics;
    see :attr:`false_positives`, with which it was chosen."""
    long_words: tuple[int, ...] = (15, 25, 50, 100)
    """Words of these texts."""
    longest: tuple[int, ...] = (200, 300)
    """Words of those that say how thresholds go with length."""
    long_share: int = 8
    """Everyday prompts for each text of one length."""
    calibration_prompts: int = 4000
    """Everyday prompts at most; a fifth of the training prompts where that is fewer."""
    slope_prompts: int = 6000
    """Training prompts that set the slope of the scores, at most."""
    few: int = 5
    """Harmless prompts above the thresholds; where fewer are allowed, none are counted, and the fit alone decides."""
    tail: float = 0.02
    """Share of the scores to which the tail is fitted. Chosen on held-out phrases on `minilm`: .05 and .1 find the same
    phrases of nudity, violence and hate and fewer of the others. Quantiles in place of the fit found 19 % of hate's
    phrases, where the fit finds 50, and 8 % fewer of nudity's and violence's, with as many captions touched."""
    empty_margin: float = 0.25
    """Spreads of the harmless scores by which every threshold lies above the empty prompt's."""

    # What tells the encoder's own embeddings from others; chosen on `minilm`, see docs/method.md for what it tells.
    directions: int = 8
    """Directions in which prompts vary least, see :mod:`..model.provenance`. Of 4 to 128, 8 tell another layer best.
    They take 4 bytes a channel each."""
    provenance_prompts: int = 4000
    """Training prompts that are measured, at most."""
    varied_prompts: int = 800
    """Further prompts of all lengths, at most; a twentieth of the training prompts where that is fewer."""
    fewest_varied: int = 16
    """And at least."""
    most_words: int = 300
    """Words of the longest of them."""
    provenance_share: float = 0.01
    """Share of the prompts measured that lies beyond the quantile which sets the bounds."""
    provenance_margin: float = 13.0
    """Times that the bounds lie as far out as that quantile. Of 14,900 captions, people's prompts and single words the
    farthest lies 5 times as far out as it, and so does the median of whole prompts with the weight .6; the median of
    prompts of another layer 20 times. At 10, whole prompts with the weight .6 are refused now and then."""
    farthest_scale: float = 100.0
    """Scale beyond which embeddings are refused in any case: far above it float32 has nothing left to scale back."""
    rounding: float = 0.01
    """Share of its size by which a channel may be off in half precision, which sets the least variance along a
    direction: bfloat16 rounds by .004, and an encoder that computes in it is off by .005 on `minilm-causal`."""
    least_variance: float = 0.05
    """Share of a direction's mean variance that very long prompts are allowed at least."""

    # The report.
    report_phrases: int = 300
    """Held-out phrases of a concept that the report tries, at most."""
    report_harmless: int = 600
    """Harmless prompts that the report tries, at most."""
    report_set: int = 40
    """Phrases of a concept, or of a language, that each further set of the report tries, at most."""
    report_words: int = 50
    """Harmless words among which it tries phrases."""
    report_optimised: int = 24
    """Prompts towards which it searches strings, and as many counterfactuals."""

    def for_examples(self, count: int, steps: int | None = None, warm: bool = False) -> "TrainingConfig":
        """With the steps that suit a number of training prompts, where none are set, or with `steps` in all, shared
        between the nets in that ratio. warm: for a training that goes on from another sanitizer's networks."""
        share, rate = (self.warm_steps, self.warm_rate) if warm else (1.0, 1.0)
        score = self.score_steps or round(share * (1000 + count * 35 // 100))
        erase = self.erase_steps or round(share * (900 + count // 35))
        if steps is not None:
            score = max(1, round(steps * score / (score + erase)))
            erase = max(1, steps - score)
        return replace(self, score_steps=score, erase_steps=erase, learning_rate=rate * self.learning_rate)

    def language_phrases_for(self, count: int, languages: int) -> int:
        """Phrases of each of the languages to try beside a number of training prompts, of which all that is encoded for
        it, with anchors and harmless prompts, is a quarter at most."""
        own = min(self.language_phrases, count // 4 // max(1, 3 * languages))
        return own if own >= self.fewest_language_phrases else 0

    def varied_for(self, count: int) -> int:
        """Prompts of all lengths to measure beside a number of training prompts."""
        return max(self.fewest_varied, min(self.varied_prompts, count // 20))

    def to_dict(self) -> dict:
        """For JSON, and as it gives them back: tuples are lists there."""
        return json.loads(json.dumps(asdict(self)))
