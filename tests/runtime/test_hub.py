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
    """Replaces the download: what it is called with, and what it does instead."""

    class Download:
        result: object = None

        def __call__(self, name, **options):
            self.options = options | {"name": name}
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
    assert not hasattr(download, "options")


def test_empty_name():
    with pytest.raises(ModelLoadError, match="must not be empty"):
        hub.resolve_model("")


def test_file_instead_of_a_folder(tmp_path):
    (tmp_path / "model.gguf").write_text("")
    with pytest.raises(ModelLoadError, match=r"'model\.gguf' is a file"):
        hub.resolve_model(str(tmp_path / "model.gguf"))


def test_hub_id_is_downloaded(tmp_path, monkeypatch, download):
    monkeypatch.chdir(tmp_path)
    download.result = str(tmp_path)
    assert hub.resolve_model("org/name", revision="main", token="secret", offline=False) == tmp_path
    options = download.options
    assert (options["name"], options["revision"], options["token"]) == ("org/name", "main", "secret")
    assert options["local_files_only"] is False
    wanted = list(
        huggingface_hub.utils.filter_repo_objects(
            [
                "config.json",
                "model-00001-of-00002.safetensors",
                "model.safetensors.index.json",
                "tokenizer.model",
                "chat_template.jinja",
                "consolidated.safetensors",
                "original/consolidated.00.pth",
                "pytorch_model.bin",
                "README.md",
            ],
            allow_patterns=options["allow_patterns"],
            ignore_patterns=options["ignore_patterns"],
        )
    )
    assert len(wanted) == 5
    assert not any(name.startswith(("consolidated", "original", "pytorch", "README")) for name in wanted)


def test_offline_follows_the_environment(tmp_path, monkeypatch, download):
    download.result = str(tmp_path)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    hub.resolve_model("org/name")
    assert download.options["local_files_only"] is True
    hub.resolve_model("org/name", offline=False)
    assert download.options["local_files_only"] is False


def test_offline_and_not_cached(tmp_path, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(ModelLoadError, match=r"'org/name' is not in the cache, .* offline mode is on"):
        hub.resolve_model("org/name", offline=True)


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
