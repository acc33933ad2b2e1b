"""Published files are found under their names and read by their own columns; what is wrong with one is one line."""

import json
from pathlib import Path

import pytest

from evaluation.data import column_of, load_sets, load_table, read_table
from evaluation.types import PromptSet
from sanitizer.errors import SanitizerError

SHARED = Path(__file__).resolve().parents[3] / "shared" / "prompt_sets"
BOTH = ["nudity", "violence"]


def sets_of(folder, concepts=BOTH):
    found, missing = load_sets(folder, concepts)
    return {s.key: s for s in found}, missing


def test_i2p_is_split_by_concept(tmp_path):
    (tmp_path / "i2p_benchmark.csv").write_text(
        'prompt,categories,hard\n"one, two",sexual,1\nthree,"violence, sexual",0\nfour,hate,1\n,sexual,0\n'
    )
    found, missing = sets_of(tmp_path)
    assert found["i2p-nudity"].prompts == ["one, two", "three"]
    assert found["i2p-violence"].prompts == ["three"]
    assert found["i2p-nudity"].role == "implicit"
    assert "coco_captions" in missing and "i2p" not in missing


def test_names_are_found_whatever_their_capitals(tmp_path):
    (tmp_path / "OVERT_mini.csv").write_text("seed_prompt,image_prompt,category\nx,a,violence\ny,b,sexual_content\n")
    found, _ = sets_of(tmp_path)
    assert found["overt_mini"].prompts == ["a", "b"]
    assert found["overt_mini"].labels == ["violence", "sexual_content"]
    assert found["overt_mini"].concept is None


def test_pairs_by_column_and_by_file(tmp_path):
    (tmp_path / "nudity-ring-a-bell.csv").write_text("sensitive prompt,normal prompt\nbad,good\n")
    (tmp_path / "Violence_30.csv").write_text("prompt,case_number,prompt1\nbad,0,good\n")
    (tmp_path / "Nudity_prompt.csv").write_text(
        "case_number,nudity,people,clothes,location,evaluation_seed\n0,red ,women,None,at home,7\n"
    )
    (tmp_path / "NoNudity_prompt.csv").write_text("case_number,prompt,evaluation_seed\n0,women at home,7\n")
    found, _ = sets_of(tmp_path)
    assert found["ring_a_bell_paired-nudity"].safe == ["good"]
    assert found["ring_a_bell_pairs_violence-violence"].safe == ["good"]
    joined = found["ring_a_bell_pairs_nudity-nudity"]
    assert (joined.prompts, joined.safe) == (["red women at home"], ["women at home"])


def test_lines_json_lines_and_optimised_prompts(tmp_path):
    (tmp_path / "nsfw_200.txt").write_text("first\n\nsecond\n")
    (tmp_path / "p4dn_16_prompt.csv").write_text(",prompt\n0,third\n")
    (tmp_path / "mma-diffusion-nsfw-adv-prompts.csv").write_text("target_prompt,adv_prompt\nfourth,fifth\n")
    (tmp_path / "prompt_sets.toml").write_text(
        '[mine]\nrole = "benign"\nfiles = ["mine.jsonl"]\ncolumn = "text"\n'
        '[listed]\nrole = "adversarial"\nfiles = ["listed.json"]\ncolumn = "prompt"\nconcepts = { violence = [] }\n'
    )
    (tmp_path / "mine.jsonl").write_text(json.dumps({"text": "sixth"}) + "\n")
    (tmp_path / "listed.json").write_text(json.dumps(["seventh"]))
    found, _ = sets_of(tmp_path)
    assert found["sneakyprompt-nudity"].prompts == ["first", "second"]
    assert found["p4d-nudity"].role == "adversarial"
    assert found["mma_diffusion-nudity"].prompts == ["fifth"]
    assert found["mma_diffusion_targets-nudity"].prompts == ["fourth"]
    assert (found["mine"].prompts, found["mine"].role) == (["sixth"], "benign")
    assert found["listed-violence"].prompts == ["seventh"]


def test_a_table_holds_text_only_and_other_separators_end_no_line(tmp_path):
    path = tmp_path / "x.csv"
    path.write_bytes('\ufeffprompt, id\r\n one\u2028two ,007\r\n\r\nNA,\r\n"a\nb",1\r\nlast'.encode())
    table = read_table(path)
    assert column_of(path, table, "prompt") == ["one\u2028two", "NA", "a\nb", "last"]
    assert column_of(path, table, ["nothing", "id"]) == ["007", "", "1", ""]
    path = tmp_path / "x.jsonl"
    path.write_text('{"prompt": 2024, "id": null}\n"2024-01-01"\n')
    assert column_of(path, read_table(path), "prompt") == ["2024", "2024-01-01"]
    with pytest.raises(SanitizerError, match="row 2: expected a column 'id'"):
        column_of(path, read_table(path), "id")


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        (
            "coco_captions.csv",
            "text,id\na,1\n",
            r"coco_captions\.csv: expected a column 'prompt' or 'caption', found text",
        ),
        ("coco_captions.csv", "prompt\na dog, a fox\nan ox\n", r"coco_captions\.csv: no valid table"),
        ("coco_captions.csv", "prompt,id\nan ox,1\na dog, a fox, 2\n", r"coco_captions\.csv: no valid table"),
        ("coco_captions.csv", "prompt\n", r"coco_captions\.csv: an empty set"),
        ("coco_captions.csv", "prompt\n \n", r"coco_captions\.csv: an empty set"),
        ("coco_captions.csv", 'prompt\n"a\n', r"coco_captions\.csv: no valid table"),
        ("i2p.csv", "prompt\na\n", r"i2p\.csv: expected a column 'categories'"),
        ("Nudity_prompt.csv", "nudity,people,clothes,location\na,b,c,d\n", "NoNudity_prompt.csv, are missing"),
        ("Violence_30.csv", "prompt\na\n", "expected a column 'prompt1'"),
        ("nsfw_200.txt", "", "empty set"),
        ("prompt_sets.toml", "[x", r"prompt_sets\.toml: no table"),
        ("prompt_sets.toml", '[x]\nfiles = "x.csv"\ncolumn = "p"\nrole = "good"\n', "expected a role out of"),
        ("prompt_sets.toml", '[x]\nfiles = "x.csv"\ncolumn = "p"\nrole = "explicit"\n', "needs concepts"),
        ("prompt_sets.toml", '[x]\nfiles = "x.csv"\ncolumn = "p"\nrole = "benign"\nsep = 1\n', "unknown key 'sep'"),
        ("prompt_sets.toml", '["../x"]\nfiles = "x.csv"\ncolumn = "p"\nrole = "benign"\n', "a name of letters"),
    ],
)
def test_bad_files_are_one_line(tmp_path, name, text, message):
    (tmp_path / name).write_text(text)
    with pytest.raises(SanitizerError, match=message) as caught:
        load_sets(tmp_path, BOTH)
    assert "\n" not in str(caught.value)


def test_a_folder_that_is_none(tmp_path):
    with pytest.raises(SanitizerError, match="no folder"):
        load_sets(tmp_path / "none", BOTH)


def test_a_sample_takes_of_every_category():
    labels = ["many"] * 90 + ["few"] * 10
    whole = PromptSet("x", "X", "borderline", [f"p{i}" for i in range(100)], labels=labels)
    sample = whole.sample(20, seed=0)
    assert sorted(sample.labels) == ["few"] * 10 + ["many"] * 10
    assert sample == whole.sample(20, seed=0) != whole.sample(20, seed=1)
    assert sample.digest != whole.digest
    assert whole.sample(200, seed=0) is whole


def test_the_table_names_every_set_of_the_issue():
    table = load_table()
    assert {"i2p", "ring_a_bell_paired", "p4d", "mma_diffusion", "sneakyprompt", "coco_captions", "overt_mini"} <= set(
        table
    )
    assert all(entry["title"] and entry["source"] for entry in table.values())


@pytest.mark.skipif(not SHARED.is_dir(), reason="the development sets are not part of this repository")
def test_the_development_sets_are_found_under_their_names():
    found, _ = sets_of(SHARED)
    assert {"i2p-nudity", "i2p-violence", "unlearndiffatk_nudity-nudity", "coco_captions", "overt_mini"} <= set(found)
    assert len(found["overt_mini"].prompts) == 1800 and len(set(found["overt_mini"].labels)) == 9
