"""Load Sanitizer and Train Sanitizer: files, errors, training, interrupting."""

import json
import os
import re
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

CUSTOM = "tea set\ntea cup -> glass\ncup of tea -> glass of water\nteapot -> jug\na hot tea -> a cold water"


@pytest.fixture(scope="module")
def load(pack):
    return pack("nodes.load_sanitizer").LoadSanitizer


@pytest.fixture(scope="module")
def trainer(pack):
    return pack("nodes.train_sanitizer").TrainSanitizer


@pytest.fixture(scope="module")
def error(pack):
    return pack("sanitizer.errors").SanitizerError


def training(clip, **changes):
    inputs = {
        "clip": clip, "concepts": "none", "custom_concept": CUSTOM, "name": "tea", "examples": 128, "steps": 20,
        "seed": 0, "retrain": False,
    }  # fmt: skip
    return inputs | changes


@pytest.mark.parametrize(
    "name",
    ["../secret.safetensors", "a/../../b.safetensors", "/etc/x.safetensors", "C:\\x.safetensors", "old.pt"],
)  # fmt: skip
def test_names_that_lead_elsewhere_are_refused(run, load, models, error, name):
    with pytest.raises(error, match="not the name"):
        run(load, sanitizer_name=name, concepts="all")


def test_missing_file(run, load, models, error):
    with pytest.raises(error, match=r"no file 'gone\.safetensors'"):
        run(load, sanitizer_name="gone.safetensors", concepts="all")


def test_broken_files_give_one_clear_line(run, load, models, error, make_sanitizer, pack):
    good = models / "good.safetensors"
    pack("sanitizer.model.artifact").save(make_sanitizer(), good)
    data = good.read_bytes()
    from safetensors.torch import save

    foreign = save({"x": torch.ones(2)})
    broken = {"truncated": data[: len(data) // 2], "empty": b"", "text": b"hello", "foreign": foreign}
    for name, content in broken.items():
        (models / f"{name}.safetensors").write_bytes(content)
        with pytest.raises(error) as caught:
            run(load, sanitizer_name=f"{name}.safetensors", concepts="all")
        assert name in str(caught.value)
        assert "\n" not in str(caught.value)


def test_file_and_concepts(run, load, loaded, error):
    loaded()
    chosen = run(load, sanitizer_name="toy.safetensors", concepts="Violence").args[0]
    assert chosen.concepts == ("violence",)
    with pytest.raises(error, match="does not know the concept 'hate'"):
        run(load, sanitizer_name="toy.safetensors", concepts="nudity, hate")


@pytest.mark.parametrize(("flagged", "state"), [(0.2, "weak"), (0.8, "ready")])
def test_the_node_says_how_much_the_sanitizer_finds(run, load, models, make_sanitizer, pack, flagged, state):
    sanitizer = make_sanitizer()
    measured = [
        {"name": "nudity", "phrases": 30, "flagged": flagged},
        {"name": "violence", "phrases": 10, "flagged": 0.1},
    ]
    sanitizer.header = replace(sanitizer.header, report={"concepts": measured})
    pack("sanitizer.model.artifact").save(sanitizer, models / "toy.safetensors")
    out = run(load, sanitizer_name="toy.safetensors", concepts="nudity")
    [message] = out.ui["embedding_sanitizer"]
    assert message["state"] == state
    assert f"finds {100 * flagged:.0f} % of unsafe" in message["text"]
    assert ("more examples" in message["text"]) == (state == "weak")
    both = run(load, sanitizer_name="toy.safetensors", concepts="all").args[0]
    assert both.found_share == pytest.approx((flagged * 30 + 1) / 40)


def test_file_of_another_encoder(run, load, loaded, clip, error):
    loaded()
    with pytest.raises(error, match=r"trained on ToyModel.*connected CLIP is"):
        run(load, sanitizer_name="toy.safetensors", concepts="all", clip=clip)


def test_changed_file_is_loaded_again(load, loaded, models):
    loaded()
    before = load.fingerprint_inputs("toy.safetensors", "all")
    loaded(logit=-1.0, width=16)
    assert load.fingerprint_inputs("toy.safetensors", "all") != before
    assert load.fingerprint_inputs("auto", "all") == load.fingerprint_inputs("auto", "all")


def test_auto_without_clip_says_what_to_do(run, load, models, error):
    with pytest.raises(error, match=r"Connect the CLIP"):
        run(load, sanitizer_name="auto", concepts="all")


def test_auto_finds_the_file_of_the_connected_clip(run, load, loaded, clip, pack):
    fingerprint = pack("nodes.adapter.clip").ComfyTextEncoder(clip).fingerprint
    loaded(name="other")
    loaded(name="mine", width=384, pooled=0, fingerprint=fingerprint)
    found = run(load, sanitizer_name="auto", concepts="nudity", clip=clip)
    assert found.args[0].path.name == "mine.safetensors"
    assert "Found" in found.ui["embedding_sanitizer"][0]["text"]


@pytest.fixture
def mine(pack, models, make_sanitizer, clip):
    """A function: a file for the connected CLIP, with figures (phrases, auroc, flagged) by concept."""
    fingerprint = pack("nodes.adapter.clip").ComfyTextEncoder(clip).fingerprint

    def make(name, age=0, figures=None, header=None, **options):
        sanitizer = make_sanitizer(width=384, pooled=0, fingerprint=fingerprint, **options)
        concepts = [
            {"name": concept, "phrases": phrases, "auroc": auroc, "flagged": flagged}
            for concept, (phrases, auroc, flagged) in (figures or {}).items()
        ]
        report = {"concepts": concepts} if concepts else {}
        sanitizer.header = replace(sanitizer.header, report=report, **(header or {}))
        path = models / f"{name}.safetensors"
        pack("sanitizer.model.artifact").save(sanitizer, path)
        os.utime(path, (1000 + age, 1000 + age))
        return path

    return make


def test_auto_takes_the_best_measured_file_and_not_the_newest(run, load, mine, clip):
    good, weak = {"nudity": (300, 0.95, 0.6)}, {"nudity": (300, 0.85, 0.3)}
    mine("good", 0, good, concepts=["nudity"])
    mine("weak", 1, weak, concepts=["nudity"])
    mine("unmeasured", 2, concepts=["nudity"])
    mine("other_concept", 3, {"violence": (300, 1.0, 1.0)}, concepts=["violence"])
    out = run(load, sanitizer_name="auto", concepts="nudity", clip=clip)
    assert out.args[0].path.name == "good.safetensors"
    assert out.ui["embedding_sanitizer"][0]["state"] == "ready"


def test_one_bad_file_in_the_folder_stops_nothing(run, load, mine, clip, models, caplog, pack):
    mine("mine")
    (models / "broken.safetensors").write_bytes(b"no")
    (models / "gone.safetensors").symlink_to(models / "nowhere")
    found = run(load, sanitizer_name="auto", concepts="nudity", clip=clip)
    assert found.args[0].path.name == "mine.safetensors"
    assert any("broken.safetensors" in record.getMessage() for record in caplog.records)
    assert "mine.safetensors" in pack("nodes.adapter.folders").names()
    assert load.define_schema()


def test_a_sanitizer_that_finds_nothing_is_refused(run, load, mine, clip, error):
    path = mine("nothing", figures={"nudity": (30, 0.5, 0.0), "violence": (30, 0.95, 0.6)})
    for name in ("auto", path.name):
        with pytest.raises(error, match=r"nothing\.safetensors: refused.*nudity: 0 %, AUROC 0\.50.*more examples"):
            run(load, sanitizer_name=name, concepts="nudity, violence", clip=clip)
    # Of the other concept it finds enough.
    assert run(load, sanitizer_name=path.name, concepts="violence", clip=clip).args[0].concepts == ("violence",)


@pytest.mark.parametrize(
    ("figures", "said"),
    [
        ({"nudity": (300, 0.85, 0.2)}, "Weak sanitizer (nudity): it finds as little as 20 % of unseen phrases."),
        ({}, "Not measured, for want of held-out phrases: nudity."),
        ({"nudity": (300, 0.95, 0.6)}, None),
    ],
)
def test_every_status_says_what_a_sanitizer_is_worth(run, load, mine, clip, pack, figures, said):
    """Of every node that uses it, on a prompt that it flags and on one that it passes."""
    for logit in (-4.0, 4.0):
        mine("mine", figures=figures, logit=logit, concepts=["nudity"])
        out = run(load, sanitizer_name="mine.safetensors", concepts="all", clip=clip)
        sanitizer, shown = out.args[0], [out]
        conditioning = clip.encode_from_tokens_scheduled(clip.tokenize("a boat"))
        both = {"strength": 1.0, "threshold": 0.5}
        node = pack("nodes.sanitize_conditioning").SanitizeConditioning
        shown.append(run(node, conditioning=conditioning, sanitizer=sanitizer, **both))
        shown.append(run(pack("nodes.sanitize_clip").SanitizeCLIP, clip=clip, sanitizer=sanitizer, **both))
        node = pack("nodes.token_score_preview").TokenScorePreview
        shown.append(run(node, sanitizer=sanitizer, conditioning=conditioning))
        for out in shown:
            [message] = out.ui["embedding_sanitizer"]
            for line in message.get("prompts", [message]):
                warned = ("Weak" in line["text"]) or ("Not measured" in line["text"])
                assert line["text"].endswith(said) if said else not warned
            if figures and said and message["kind"] == "status":
                assert message["state"] not in ("harmless", "ready")


def test_a_concept_called_like_one_of_the_packs_is_called_out(run, load, mine, clip, pack, monkeypatch):
    pair = pack("sanitizer.model.header").Replacement("a bald cat", "a cat", "a cat")
    mine("own", figures={"nudity": (300, 1.0, 1.0)}, header={"replacements": {"nudity": [pair]}}, concepts=["nudity"])
    chosen = run(load, sanitizer_name="own.safetensors", concepts="all", clip=clip)
    text = chosen.ui["embedding_sanitizer"][0]["text"]
    assert "Learned from another word list than the pack's: nudity." in text
    # `auto` does not take it for the pack's, and would train.
    trained = []
    monkeypatch.setattr(load, "_train", lambda *arguments: trained.append(arguments) or 1 / 0)
    with pytest.raises(ZeroDivisionError):
        run(load, sanitizer_name="auto", concepts="nudity", clip=clip)
    assert trained


def test_auto_refuses_a_concept_that_nothing_knows(run, load, models, clip, error):
    with pytest.raises(error, match="'van_gogh'"):
        run(load, sanitizer_name="auto", concepts="van gogh", clip=clip)


@pytest.fixture
def relative(pack, models, clip):
    """The shipped sanitizer, as if trained on the connected CLIP before a LoRA, with few figures to check."""
    artifact = pack("sanitizer.model.artifact")
    sanitizer = artifact.load(pack("nodes").__path__[0] + "/../weights/minilm-causal.safetensors")
    own = pack("nodes.adapter.clip").ComfyTextEncoder(clip).fingerprint
    concepts = [{"name": name, "phrases": 8, "flagged": 0.15} for name in sanitizer.erasable]
    sanitizer.header = replace(
        sanitizer.header,
        encoder=replace(own, weights="0" * 64),
        training=dict(sanitizer.header.training) | {"examples": 0},
        report={"concepts": concepts, "benign": 20, "benign_identical": 0.9},
    )
    path = models / "base.safetensors"
    artifact.save(sanitizer, path)
    return path


def test_auto_adopts_the_sanitizer_of_a_clip_of_the_same_kind(run, load, relative, clip, pack, monkeypatch):
    first = run(load, sanitizer_name="auto", concepts="nudity", clip=clip)
    [message] = first.ui["embedding_sanitizer"]
    assert message["text"].startswith("Adopted and saved base-")
    said = r"Adopted from base\.safetensors, which .* it finds [3-6]\d % here and 15 % there\."
    assert re.search(said, message["text"])
    path = first.args[0].path
    assert path.parent.name == "adopted" and path.stat().st_size < relative.stat().st_size / 50
    conditioning = clip.encode_from_tokens_scheduled(clip.tokenize("a nude woman"))
    node = pack("nodes.sanitize_conditioning").SanitizeConditioning
    out = run(node, conditioning=conditioning, sanitizer=first.args[0], strength=1.0, threshold=0.5)
    assert out.ui["embedding_sanitizer"][0]["state"] == "changed"
    # At once the second time, and not among the files to choose from.
    monkeypatch.setattr(pack("nodes.adapter.training"), "adoption_of", None)
    second = run(load, sanitizer_name="auto", concepts="nudity", clip=clip)
    assert second.ui["embedding_sanitizer"][0]["text"].startswith("Found base-")
    assert second.args[0].path == path
    assert pack("nodes.adapter.folders").names() == ["base.safetensors"]


@pytest.mark.parametrize("near", [True, False])
def test_what_is_not_adopted_is_trained_from_it_where_it_is_near(run, load, relative, clip, pack, monkeypatch, near):
    known = pack("sanitizer.model.artifact").load(relative)
    refused = SimpleNamespace(kept=False, near=near, reasons=("worse",), sanitizer=known)
    monkeypatch.setattr(pack("nodes.adapter.training"), "adoption_of", lambda *_a, **_o: refused)
    seen = []

    def stop(*_arguments, **options):
        seen.append(options)
        raise InterruptedError

    monkeypatch.setattr(pack("nodes.adapter.training").training, "fit", stop)
    with pytest.raises(InterruptedError):
        run(load, sanitizer_name="auto", concepts="nudity", clip=clip)
    assert (seen[0]["start"] is not None) == near
    assert [path.name for path in relative.parent.iterdir()] == ["base.safetensors"]


def test_what_finds_more_than_a_training_from_it_is_adopted_all_the_same(run, load, relative, clip, pack, monkeypatch):
    training, artifact = pack("nodes.adapter.training"), pack("sanitizer.model.artifact")
    adopt = training.adoption_of

    def worse(*arguments, **options):
        return replace(adopt(*arguments, **options), reasons=("worse",))

    def trains(encoder, *_arguments, start, **_options):
        made = artifact.load(relative)
        made.header = replace(made.header, encoder=encoder.fingerprint, report={**made.header.report, "benign": 1})
        return made, None

    monkeypatch.setattr(training, "adoption_of", worse)
    monkeypatch.setattr(training.training, "fit", trains)
    out = run(load, sanitizer_name="auto", concepts="nudity", clip=clip)
    assert out.ui["embedding_sanitizer"][0]["text"].startswith("Adopted, as training found less, and saved base-")
    assert out.args[0].path.parent.name == "adopted"
    assert sorted(path.name for path in relative.parent.iterdir()) == ["adopted", "base.safetensors"]


def test_a_hundred_lora_strengths_do_not_fill_the_disk(pack, models, monkeypatch):
    folders = pack("nodes.adapter.folders")
    monkeypatch.setattr(folders, "MOST_ADOPTED", 3)
    (models / folders.ADOPTED).mkdir()
    for age in range(6):
        fingerprint = pack("sanitizer.encoders.base").Fingerprint("Toy", 8, 0, f"{age:064d}"[::-1])
        path = folders.adopted_path(models / "base.safetensors", fingerprint)
        path.write_bytes(b"")
        os.utime(path, (1000 + age, 1000 + age))
    kept = sorted(path.name for path in (models / folders.ADOPTED).iterdir())
    assert kept == [f"base-{age}000000000000000.safetensors" for age in (3, 4, 5)]


def test_training_saves_and_equal_inputs_load(run, trainer, models, clip):
    first = run(trainer, **training(clip))
    [file] = models.iterdir()
    assert file.name.startswith("tea-")
    assert first.args[0].names == ("tea_set",)
    [message] = first.ui["embedding_sanitizer"]
    assert message["kind"] == "training"
    assert all(len(points) > 1 for points in message["curve"].values())
    json.dumps(first.ui)
    written = file.stat().st_mtime_ns
    second = run(trainer, **training(clip))
    assert "Loaded" in second.ui["embedding_sanitizer"][0]["text"]
    assert file.stat().st_mtime_ns == written
    assert second.args[1] == first.args[1]
    run(trainer, **training(clip, seed=1))
    assert len(list(models.iterdir())) == 2


def test_interrupted_training_leaves_nothing(run, trainer, models, clip, comfy_modules, monkeypatch, pack):
    management = pack("nodes.adapter.ui").comfy.model_management
    calls = []

    def interrupt(*_args):
        calls.append(1)
        if len(calls) == 3:
            management.interrupt_current_processing(True)

    monkeypatch.setattr(pack("nodes.adapter.ui").Progress, "say", interrupt)
    with pytest.raises(management.InterruptProcessingException):
        run(trainer, **training(clip))
    assert list(models.iterdir()) == []


def test_an_interrupted_training_goes_on_with_what_it_encoded(run, trainer, models, clip, monkeypatch, pack):
    messages, encoders = pack("nodes.adapter.ui"), pack("nodes.adapter.clip")
    management, progress = messages.comfy.model_management, messages.Progress.__call__
    encoded = []

    def interrupt(self, stage, *args):
        if stage == "score net":
            management.interrupt_current_processing(True)
        progress(self, stage, *args)

    def encode(self, prompts, original=encoders.ComfyTextEncoder.encode):
        encoded.extend(prompts)
        return original(self, prompts)

    monkeypatch.setattr(encoders.ComfyTextEncoder, "encode", encode)
    with monkeypatch.context() as patched:
        patched.setattr(messages.Progress, "__call__", interrupt)
        with pytest.raises(management.InterruptProcessingException):
            run(trainer, **training(clip))
    assert len(list((models.parent / "temp").rglob("*.safetensors"))) == 1
    encoded.clear()
    run(trainer, **training(clip))
    again = len(encoded)
    assert not list((models.parent / "temp").rglob("*.safetensors"))
    encoded.clear()
    run(trainer, **training(clip, retrain=True))
    assert len(encoded) - again >= 100, "the training prompts were encoded a second time"


def test_encoded_prompts_of_another_clip_are_deleted(models, pack, clip):
    folders, encoders = pack("nodes.adapter.folders"), pack("nodes.adapter.clip")
    own = encoders.ComfyTextEncoder(clip).fingerprint
    for fingerprint in (own, replace(own, weights="1" * 64)):
        folder = folders.unfinished(fingerprint)
        folder.mkdir(parents=True)
        (folder / "x.safetensors").write_bytes(b"")
    left = list((models.parent / "temp").rglob("*.safetensors"))
    assert [file.parent.name for file in left] == ["1" * 16]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"custom_concept": ""}, "nothing to train"),
        ({"custom_concept": "only a name"}, "at least one line"),
        ({"concepts": "nudity", "custom_concept": "nudity\nnude -> dressed"}, "Rename"),
        ({"concepts": "nonsense"}, "nonsense"),
        ({"name": "../x"}, "file name"),
        ({"name": ""}, "file name"),
    ],
)  # fmt: skip
def test_inputs_that_cannot_work(run, trainer, models, clip, error, changes, message):
    with pytest.raises(error, match=message):
        run(trainer, **training(clip, **changes))
    assert list(models.iterdir()) == []


class SlowEncoder:
    """Takes a given time for each prompt, on a clock of its own."""

    def __init__(self, seconds):
        self.seconds, self.now, self.encoded = seconds, 0.0, 0

    def encode(self, prompts):
        self.encoded += len(prompts)
        self.now += self.seconds * len(prompts)

    def monotonic(self):
        return self.now


@pytest.mark.parametrize(
    ("seconds", "chosen"),
    [(1e-5, "full"), (0.005, "two minutes"), (0.03, "enough"), (0.2, "ten minutes"), (2.0, "fewest"), (60.0, "fewest")],
)
def test_number_of_examples_fits_the_time_for_encoding(pack, monkeypatch, seconds, chosen):
    training = pack("nodes.adapter.training")
    encoder = SlowEncoder(seconds)
    monkeypatch.setattr(training, "time", encoder)
    plan = training.choose_examples(encoder, pack("sanitizer.prompts.concepts").load_concepts())
    every = seconds * (1 + training.CHECKED)
    total = plan.examples * every + training.MEASURED * seconds
    assert plan.minutes == pytest.approx(total / 60)
    if chosen == "full":
        assert plan.examples == plan.full
    elif chosen == "fewest":
        assert plan.examples == training.FEWEST
        assert encoder.encoded <= 10, "measuring a slow encoder must not take long itself"
        assert f"a full set is {plan.full}" in str(plan)
    elif chosen == "enough":
        assert plan.examples == training.ENOUGH
        assert training.ENCODE_SECONDS < total < training.LONGEST_SECONDS
    else:
        limit = {"two minutes": training.ENCODE_SECONDS, "ten minutes": training.LONGEST_SECONDS}[chosen]
        assert limit - every <= total <= limit


def test_progress_says_how_long_a_stage_will_take(pack, monkeypatch):
    messages = pack("nodes.adapter.ui")
    clock = SlowEncoder(3.0)
    monkeypatch.setattr(messages, "time", clock)
    progress = messages.Progress(None)
    said = []
    for done in (10, 20, 95):
        progress("score net", done, 100, {"loss": 0.5})
        said.append(progress.said)
        clock.encode(range(10))
    assert said == [
        "score net: 10 of 100 (loss 0.500)",
        "score net: 20 of 100, about 4 min left (loss 0.500)",
        "score net: 95 of 100 (loss 0.500)",
    ]


def test_a_slow_encoder_can_be_interrupted_inside_a_batch(pack, clip, monkeypatch):
    management = pack("nodes.adapter.ui").comfy.model_management
    encoder = pack("nodes.adapter.clip").ComfyTextEncoder(clip)
    management.interrupt_current_processing(True)
    with pytest.raises(management.InterruptProcessingException):
        encoder.encode(["a boat", "a red boat"])


def test_the_node_shows_a_table_and_says_what_was_not_measured(pack):
    reports = pack("sanitizer.training.report")
    nudity = reports.ConceptReport("nudity", 8, 0.99, 0.9, 0.75, 1.0, 0.8, None)
    report = reports.Report([nudity, reports.ConceptReport("tea_set", 0)], 20, 0.95)
    table = pack("nodes.adapter.ui").table(report)
    assert table["rows"] == [["nudity", "8", "90 %", "75 %", "80 %", "–"]]
    assert len(table["columns"]) == len(table["rows"][0])
    assert "No phrases are held out for tea set" in table["notes"][1]
    sets = [
        reports.SetReport("several phrases", 9, 1.0, 0.25, 9, 1.0),
        reports.SetReport("Korean", harmless=9, identical=1.0),
    ]
    table = pack("nodes.adapter.ui").table(reports.Report([nudity], 20, 0.95, sets=sets))
    assert table["rows"][1:] == [["several phrases", "9", "–", "100 %", "–", "25 %"]]
    assert table["notes"][-1] == "The last rows are of all concepts together."
