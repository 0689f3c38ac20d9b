"""From a model's name to its folder, with the hub's client replaced where it would need a network."""

from types import MappingProxyType

import huggingface_hub
import pytest
from huggingface_hub import errors

from sirocco.runtime import hub
from sirocco.runtime.errors import ModelLoadError


class Response:
    """What the hub's exceptions keep of an answer."""

    status_code = 503
    headers = MappingProxyType({})
    request = None
    url = ""


@pytest.fixture
def download(monkeypatch):
    """Replaces the download: what it was called with, and what it does instead."""

    class Download:
        result: object = None

        def __init__(self):
            self.calls = []

        def __call__(self, name, **options):
            self.calls.append(options | {"name": name})
            if isinstance(self.result, Exception):
                raise self.result
            return self.result

    replaced = Download()
    monkeypatch.setattr(huggingface_hub, "snapshot_download", replaced)
    return replaced


def test_existing_folder(tmp_path, monkeypatch):
    (tmp_path / "org" / "name").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert hub.resolve_model(str(tmp_path / "org")) == tmp_path / "org"
    assert hub.resolve_model("org/name") == tmp_path / "org" / "name"
    assert hub.resolve_model("./org") == tmp_path / "org"


def test_demo_is_a_folder_of_the_package(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(hub, "DEMO_FOLDER", tmp_path / "packaged")
    with pytest.raises(ModelLoadError, match="not part of this installation"):
        hub.resolve_model("demo")
    (tmp_path / "packaged").mkdir()
    (tmp_path / "packaged" / "config.json").write_text("{}")
    (tmp_path / "demo").mkdir()  # a folder of that name is ./demo
    assert hub.resolve_model("demo") == tmp_path / "packaged"


@pytest.mark.parametrize("name", ["./nowhere", "/nowhere/at/all", "~/nowhere-at-all", "a/b/c", "models/"])
def test_path_that_does_not_exist(name, download):
    with pytest.raises(ModelLoadError, match="no such folder"):
        hub.resolve_model(name)
    assert not download.calls


@pytest.mark.parametrize("name", ["a" * 5000, "./" + "a" * 300, "org/" + "a" * 5000, "./loop/x"])
def test_name_that_the_system_refuses_to_look_up(name, tmp_path, monkeypatch, download):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(ModelLoadError, match=r"cannot be looked up: (File name too long|Too many levels)") as caught:
        hub.resolve_model(name)
    assert len(str(caught.value)) < 200 and not download.calls
    assert name.endswith(hub.model_id(name))  # before anything is looked up


def test_demo_is_found_wherever_one_is(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "demo").symlink_to("demo")
    (tmp_path / "config.json").touch()
    monkeypatch.setattr(hub, "DEMO_FOLDER", tmp_path)
    assert hub.resolve_model("demo") == tmp_path


@pytest.mark.parametrize("name", ["~no-such-user/x", "./a\0b"])
def test_name_that_leads_nowhere(name):
    with pytest.raises(ModelLoadError, match="no such folder"):
        hub.resolve_model(name)
    assert name.endswith(hub.model_id(name))


def test_empty_name():
    with pytest.raises(ModelLoadError, match="must not be empty"):
        hub.resolve_model("")


def test_file_instead_of_a_folder(tmp_path):
    (tmp_path / "model.gguf").write_text("")
    with pytest.raises(ModelLoadError, match=r"'model\.gguf' is a file"):
        hub.resolve_model(str(tmp_path / "model.gguf"))


def asked_for(call, names):
    """Which of these files a download takes."""
    patterns = {"allow_patterns": call["allow_patterns"], "ignore_patterns": call["ignore_patterns"]}
    return set(huggingface_hub.utils.filter_repo_objects(names, **patterns))


def test_hub_id_is_downloaded(tmp_path, monkeypatch, download):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model.safetensors").touch()
    download.result = str(tmp_path)
    found = hub.resolve_model("org/name", revision="main", token_source="literal:secret", offline=False)
    assert found == tmp_path
    (call,) = download.calls
    assert (call["name"], call["revision"], call["token"]) == ("org/name", "main", "secret")
    assert call["local_files_only"] is False
    wanted = {
        "config.json",
        "model-00001-of-00002.safetensors",
        "model.safetensors.index.json",
        "tokenizer.model",
        "chat_template.jinja",
        "1_Pooling/config.json",
        "2_Dense/model.safetensors",
        "3_Dense/pytorch_model.bin",
    }
    others = {
        "consolidated.safetensors",
        "original/consolidated.00.pth",
        "checkpoint-1/model.safetensors",
        "pytorch_model.bin",
        "README.md",
    }
    assert asked_for(call, wanted | others) == wanted


def test_pickled_weights_are_downloaded_where_there_are_no_others(tmp_path, download):
    snapshot = tmp_path / "0123abcd"
    snapshot.mkdir()
    download.result = str(snapshot)
    assert hub.resolve_model("org/name", revision="main", offline=False) == snapshot
    first, second = download.calls
    assert (first["revision"], second["revision"]) == ("main", "0123abcd")  # of the same commit
    wanted = {"pytorch_model.bin", "pytorch_model-00001-of-00002.bin", "model.pt", "2_Dense/pytorch_model.bin"}
    others = {"training_args.bin", "optimizer.pt", "onnx/model.bin", "consolidated.00.pth", "tf_model.h5"}
    assert asked_for(second, wanted | others) == wanted


def test_offline_follows_the_environment(tmp_path, monkeypatch, download):
    download.result = str(tmp_path)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    hub.resolve_model("org/name")
    hub.resolve_model("org/name", offline=False)
    assert [call["local_files_only"] for call in download.calls] == [True, True, False, False]


def test_offline_and_not_cached(tmp_path, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(ModelLoadError, match=r"'org/name' is not in the cache, .* offline mode is on"):
        hub.resolve_model("org/name", offline=True)


def test_revisions_belong_to_hub_ids(tmp_path, download):
    for name in (str(tmp_path), "demo"):
        with pytest.raises(ModelLoadError, match="has no revisions"):
            hub.resolve_model(name, revision="main")
    for revision in ("", "../x", "a/../../b", "/etc", "a b"):
        with pytest.raises(ModelLoadError, match="is not the name of a revision"):
            hub.resolve_model("org/name", revision=revision)
    assert not download.calls


@pytest.mark.parametrize(
    ("source", "token"),
    [
        ("literal:hf_abc", "hf_abc"),
        ("env:MY_TOKEN", "hf_env"),
        ("path:{folder}/token", "hf_file"),
        ("cache", None),
        ("none", False),
    ],
)
def test_token_sources(source, token, tmp_path, monkeypatch, download):
    monkeypatch.setenv("MY_TOKEN", "hf_env")
    (tmp_path / "token").write_text("hf_file\n")
    download.result = str(tmp_path)
    hub.resolve_model("org/name", token_source=source.format(folder=tmp_path), offline=False)
    assert {call["token"] for call in download.calls} == {token}
    hub.resolve_model("org/name", token_source=source.format(folder=tmp_path), offline=True)
    assert download.calls[-1]["token"] is False  # nobody to show it to


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("hf_verysecret", "must be one of literal:TOKEN, env:NAME"),
        ("", "must be one of"),
        ("literal:", "must be one of"),
        ("cache:hf_verysecret", "must be one of"),
        ("token:hf_verysecret", "must be one of"),
        ("literal:hf_verysecret and more", r"\(literal\) holds no token"),
        ("literal:hf_very\nsecret", r"\(literal\) holds no token"),
        ("env:NO_SUCH_VARIABLE", r"\(env\) holds no token"),
        ("env:BLANK", r"\(env\) holds no token"),
        ("path:/nonexistent/token", "cannot be read: No such file"),
        ("path:{folder}", "cannot be read: Is a directory"),
        ("path:{folder}/empty", r"\(path\) holds no token"),
        ("path:{folder}/binary", "cannot be read: it is not text"),
    ],
)
def test_wrong_token_source_is_not_repeated(source, message, tmp_path, monkeypatch, download):
    monkeypatch.setenv("BLANK", " ")
    (tmp_path / "empty").touch()
    (tmp_path / "binary").write_bytes(b"\xff\xfe")
    with pytest.raises(ModelLoadError, match=message) as caught:
        hub.resolve_model("org/name", token_source=source.format(folder=tmp_path), offline=False)
    assert "secret" not in str(caught.value) and str(tmp_path) not in str(caught.value)
    assert not download.calls


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (errors.RepositoryNotFoundError("x", response=Response()), "neither a folder nor a hub repository"),
        (errors.GatedRepoError("x", response=Response()), "restricted"),
        (errors.RevisionNotFoundError("x", response=Response()), "no revision 'v2'"),
        (errors.LocalEntryNotFoundError("x"), "the hub cannot be reached"),
        (errors.HFValidationError("x"), "valid hub id"),
        (errors.HfHubHTTPError("x", response=Response()), "the hub answered 503"),
        (OSError(28, "No space left on device"), "No space left on device"),
        (errors.HTTPError("x"), "broke off: HTTPError"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else "",
)
def test_what_stands_in_the_way_is_said(error, message, download):
    download.result = error
    with pytest.raises(ModelLoadError, match=message):
        hub.resolve_model("org/name", revision="v2", offline=False)


def test_model_id(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "local" / "model").mkdir(parents=True)
    assert hub.model_id("demo") == "demo"
    assert hub.model_id("org/name") == "org/name"
    assert hub.model_id("local/model") == "model"
    assert hub.model_id(str(tmp_path / "local") + "/") == "local"
    assert hub.model_id(".") == tmp_path.name
