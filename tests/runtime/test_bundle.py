from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from altered_bundle import state_contents

from ayaedge import AyaVision, Bundle, BundleError, read_bundle
from ayaedge.bundle import (
    BUNDLES,
    bundle_directories,
    check_hashes,
    demo_bundle,
    find_bundle,
    known_bundles,
)
from random_checkpoint import Shape, write_random_checkpoint


@pytest.fixture
def copy(exact_bundle: Bundle, tmp_path: Path) -> Path:
    return Path(shutil.copytree(exact_bundle.directory, tmp_path / "copy"))


def edit(directory: Path, change: Callable[[dict[str, Any]], None]) -> None:
    path = directory / "manifest.json"
    data = json.loads(path.read_text("utf-8"))
    change(data)
    path.write_text(json.dumps(data), "utf-8")


def test_a_manifest_survives_writing_and_reading(exact_bundle: Bundle) -> None:
    text = (exact_bundle.directory / "manifest.json").read_text("utf-8")
    assert read_bundle(exact_bundle.directory).manifest.to_json() == text


def test_all_faults_of_a_manifest_are_reported_at_once(copy: Path) -> None:
    def spoil(data: dict[str, Any]) -> None:
        del data["tokens"]["bos"]
        data["tiling"]["tile_size"] = "big"
        data["decoder"] = 5

    edit(copy, spoil)
    with pytest.raises(BundleError) as caught:
        read_bundle(copy)
    for place in (
        "tokens.bos is missing",
        "tiling.tile_size has the wrong type",
        "decoder must be an object",
    ):
        assert place in str(caught.value)


def test_all_missing_and_short_files_are_reported_at_once(copy: Path) -> None:
    (copy / "vision.onnx").unlink()
    with (copy / "decoder.gguf").open("r+b") as stream:
        stream.truncate(1000)
    with pytest.raises(BundleError, match=r"(?s)2 faults.*vision\.onnx is missing.*1000 bytes instead of "):
        read_bundle(copy)


@pytest.mark.parametrize(
    ("version", "advice"), [(2, "update ayaedge"), (0, "export again"), ("x", "export again")]
)
def test_another_format_version_is_refused(copy: Path, version: object, advice: str) -> None:
    edit(copy, lambda data: data.update(format_version=version))
    with pytest.raises(BundleError, match=advice):
        read_bundle(copy)


@pytest.mark.parametrize(
    ("section", "values", "says"),
    [
        ("tiling", {"tile_size": 0}, "tiling.tile_size is 0"),
        ("tiling", {"max_tiles": 100_000}, "tiling.max_tiles is 100000"),
        ("tiling", {"min_tiles": 13}, "tiling.min_tiles is 13"),
        ("tiling", {"resample": -1}, "tiling.resample is -1"),
        ("tiling", {"mean": []}, "tiling.mean is ()"),
        ("tiling", {"std": [1, 0, 1]}, "tiling.std is (1.0, 0.0, 1.0)"),
        ("tokens", {"stop": []}, "tokens.stop must hold ids"),
        ("tokens", {"stop": [10**6]}, "tokens.stop must hold ids"),
        ("tokens", {"special": {}}, "tokens.special must hold ids"),
        ("tokens", {"texts": [{"text": "x", "id": -1}]}, "tokens.texts must hold ids"),
        ("tokens", {"texts": [{"text": "", "id": 1}]}, "added tokens must not be empty"),
        ("tokens", {"texts": [{"text": "x", "id": True}]}, "tokens.texts.id has the wrong type: True"),
        (
            "tokens",
            {"texts": [{"text": "x", "id": 1, "lstrip": 1}]},
            "tokens.texts.lstrip has the wrong type: 1",
        ),
        ("tokens", {"image_patch": -1}, "tokens.image_patch is -1"),
        ("image_prompt", {"placeholder": ""}, "must not be empty"),
        ("image_prompt", {"start": "<a>"}, "image_prompt.start is '<a>'"),
        ("decoder", {"context_length": 0}, "decoder.context_length is 0"),
        ("decoder", {"logit_scale": 0}, "decoder.logit_scale is 0.0"),
        ("decoder", {"logit_scale": -1.5}, "decoder.logit_scale is -1.5"),
        ("decoder", {"logit_scale": float("nan")}, "it holds NaN, which is no number"),
    ],
)
def test_values_that_cannot_be_true_are_named(
    copy: Path, section: str, values: dict[str, object], says: str
) -> None:
    edit(copy, lambda data: data[section].update(values))
    with pytest.raises(BundleError) as caught:
        read_bundle(copy)
    assert says in str(caught.value)


@pytest.mark.parametrize(
    "table", [{"row_bytes": 0}, {"row_bytes": 10}, {"offset": -1}, {"offset": 10**12}, {"type": "Q9"}]
)
def test_an_embedding_table_outside_the_file_is_refused(copy: Path, table: dict[str, object]) -> None:
    edit(copy, lambda data: data["decoder"]["embeddings"].update(table))
    with pytest.raises(BundleError, match="cannot hold the embeddings"):
        AyaVision.load(copy)


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '"x"'])
def test_a_manifest_that_is_no_object_is_refused(copy: Path, text: str) -> None:
    (copy / "manifest.json").write_text(text)
    with pytest.raises(BundleError):
        read_bundle(copy)


def test_a_manifest_cannot_name_files_elsewhere(copy: Path) -> None:
    edit(copy, lambda data: data["files"].update({"../evil": {"size": 1, "sha256": "0"}}))
    with pytest.raises(BundleError, match="not a file of the bundle"):
        read_bundle(copy)


def test_no_bundle_and_a_checkpoint_are_told_apart(tmp_path: Path, tiny: Path) -> None:
    with pytest.raises(BundleError, match="no bundle at"):
        read_bundle(tmp_path / "nothing")
    with pytest.raises(BundleError, match="not a bundle"):
        read_bundle(tmp_path)
    with pytest.raises(BundleError, match="looks like a checkpoint: ayaedge export"):
        read_bundle(tiny)


def test_a_flipped_byte_is_found_by_the_hashes(copy: Path) -> None:
    assert check_hashes(read_bundle(copy)) == []
    with (copy / "decoder.gguf").open("r+b") as stream:
        stream.seek(-100, 2)
        byte = stream.read(1)
        stream.seek(-100, 2)
        stream.write(bytes([byte[0] ^ 1]))
    (fault,) = check_hashes(read_bundle(copy))
    assert "decoder.gguf is damaged" in fault


@pytest.fixture(scope="module")
def stranger(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """A bundle of another size, whose halves fit no other bundle."""
    from ayaedge_export.exporter import export_checkpoint

    directory = tmp_path_factory.mktemp("stranger")
    checkpoint = write_random_checkpoint(directory / "c", tiny, Shape())
    return export_checkpoint(checkpoint, directory / "b", quant="f16", vision="fp32")


@pytest.mark.parametrize("half", ["vision.onnx", "decoder.gguf"])
def test_halves_that_do_not_belong_together_are_refused(copy: Path, stranger: Bundle, half: str) -> None:
    shutil.copy(stranger.directory / half, copy / half)
    state_contents(copy)
    with pytest.raises(BundleError, match="does not belong to this bundle"):
        AyaVision.load(copy)


def test_a_decoder_of_the_same_size_with_other_tokens_is_refused(copy: Path) -> None:
    def swap(data: dict[str, Any]) -> None:
        special = data["tokens"]["special"]
        special["<PAD>"], special["<UNK>"] = special["<UNK>"], special["<PAD>"]

    edit(copy, swap)
    with pytest.raises(BundleError, match=r"its token 1 is '<UNK>', the manifest says '<PAD>'"):
        AyaVision.load(copy)


@pytest.mark.parametrize("half", ["vision.onnx", "decoder.gguf"])
def test_a_damaged_half_gives_the_librarys_reason(copy: Path, half: str) -> None:
    size = (copy / half).stat().st_size
    (copy / half).write_bytes(b"\0" * size)
    state_contents(copy)
    with pytest.raises(BundleError, match=f"cannot load .*{half}: .{{10,}}"):
        AyaVision.load(copy)


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The user's directory for data, with one bundle in it."""
    monkeypatch.setattr("platformdirs.user_data_dir", lambda name, appauthor: str(tmp_path / "data" / name))
    shutil.copytree(demo_bundle(), tmp_path / "data" / "ayaedge" / BUNDLES / "small")
    monkeypatch.chdir(tmp_path)
    return tmp_path / "data" / "ayaedge" / BUNDLES


def test_a_bundle_in_the_directory_for_data_is_found_by_its_name(data: Path) -> None:
    assert read_bundle("small").directory == data / "small"
    with AyaVision.load("small") as model:
        assert model.bundle.name == "small"


def test_the_names_that_are_found_can_be_listed(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    computers = data.parents[1] / "computer"
    monkeypatch.setattr("platformdirs.site_data_dir", lambda name, appauthor: str(computers / name))
    assert known_bundles() == {"small": data / "small"}
    for name in "large", "small":
        shutil.copytree(data / "small", computers / "ayaedge" / BUNDLES / name)
    (data / "no bundle").mkdir()
    (data / "notes.txt").write_text("")
    assert known_bundles() == {"small": data / "small", "large": computers / "ayaedge" / BUNDLES / "large"}
    assert all(read_bundle(name).directory == directory for name, directory in known_bundles().items())


def test_a_directory_here_goes_before_one_of_that_name_elsewhere(data: Path, tmp_path: Path) -> None:
    shutil.copytree(data / "small", tmp_path / "small")
    assert read_bundle("small").directory == Path("small")


def test_a_bundle_next_to_a_frozen_program_goes_before_the_users(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "program" / "reader"
    shutil.copytree(data / "small", program.parent / BUNDLES / "small")
    monkeypatch.setattr(sys, "executable", str(program))
    assert read_bundle("small").directory == data / "small", "this program is not frozen"
    monkeypatch.setattr(sys, "frozen", True, raising=False)
    assert read_bundle("small").directory == program.parent / BUNDLES / "small"


@pytest.mark.parametrize("name", ["data/small", "..", "."])
def test_only_a_mere_name_is_looked_for(data: Path, name: str) -> None:
    assert find_bundle(Path(name)) == Path(name)


def test_a_name_that_is_nowhere_names_the_places(data: Path) -> None:
    with pytest.raises(BundleError, match="no bundle at nothing, nor one of that name in") as caught:
        read_bundle("nothing")
    assert str(data) in str(caught.value)


def test_a_user_without_a_home_has_no_directory_for_data(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("platformdirs.user_data_dir", lambda name, appauthor: "~/.local/share/ayaedge")
    assert not any(str(place).startswith("~") for place in bundle_directories())
