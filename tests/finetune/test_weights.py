"""What a backbone starts from: the hub (its own client, on a server of ours), files, random numbers."""

import hashlib
import threading
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from cluster.errors import PlethoraError
from finetune.networks import weights
from finetune.networks.backbone import Backbone, BackboneConfig, create
from pretrain.recipe import build

TINY = "vit_tiny_patch16_224"
SMALL = {"depth": 1, "embed_dim": 48, "num_heads": 2}


def config(given: str, name: str = TINY) -> BackboneConfig:
    return BackboneConfig(name=name, weights=given, options=SMALL)


def released(name: str = TINY) -> dict[str, torch.Tensor]:
    """As a release has them: with a classifier that no token passes through."""
    with torch.random.fork_rng():
        torch.manual_seed(7)
        state = create(name, SMALL).state_dict()
        return state | {"head.weight": torch.randn(1000, 48), "head.bias": torch.randn(1000)}


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "released.safetensors"
    save_file(released(), path)
    return path


def test_random_weights_come_only_when_asked_for_by_name_and_are_the_seeds():
    assert BackboneConfig().weights == "hub"
    one, same, other = (_backbone(seed) for seed in (0, 0, 1))
    assert one.base == same.base and one.base.hash != other.base.hash
    assert one.base.source == "random: seed 0" and one.base.name == TINY
    assert "has seen no image" in one.base.line() and one.base.hash[:16] in one.base.line()


def _backbone(seed: int) -> Backbone:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return Backbone(config("random"), seed)


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_a_file_fills_every_weight_and_is_recorded_by_its_hash(suffix, tmp_path, file):
    path = tmp_path / f"w{suffix}"
    if suffix == ".pth":
        torch.save({"state_dict": {f"module.{k}": v for k, v in released().items()}}, path)
    else:
        path.write_bytes(file.read_bytes())
    found = Backbone(config(str(path)), 0)
    for name, tensor in found.vit.state_dict().items():
        assert torch.equal(tensor, released()[name])
    assert found.base.source == f"file: {path}"
    assert found.base.hash == hashlib.sha256(path.read_bytes()).hexdigest()
    assert "no image" not in found.base.line()


def test_counting_the_parameters_of_a_run_fills_nothing_and_warns_of_nothing(file, recwarn):
    """The driver builds the networks on torch's meta device, where each weight that is read would warn."""
    table = {"weights": str(file), "name": TINY, "options": SMALL}
    for mode in ("probe", "lora", "full"):
        recipe = build("finetune.supervised:Vision", {"tasks": ["sbp"], "mode": mode, "backbone": table}, 0)
        with torch.device("meta"):
            net = recipe.modules()["net"]
        assert all(p.is_meta for p in net.parameters())
    assert not [str(warning.message) for warning in recwarn if warning.category is UserWarning]


def test_a_file_of_another_model_is_refused_by_what_differs(tmp_path, file):
    path = tmp_path / "w.safetensors"
    save_file({k: v for k, v in released().items() if "norm1" not in k}, path)
    with pytest.raises(PlethoraError, match=r"lacks blocks\.0\.norm1\.bias.*backbone\.name"):
        Backbone(config(str(path)), 0)
    save_file(released() | {"blocks.1.norm1.bias": torch.zeros(48)}, path)
    with pytest.raises(PlethoraError, match=r"has besides blocks\.1\.norm1\.bias"):
        Backbone(config(str(path)), 0)
    save_file(released() | {"norm.bias": torch.zeros(64)}, path)
    with pytest.raises(PlethoraError, match=r"another shape norm\.bias"):
        Backbone(config(str(path)), 0)
    with pytest.raises(PlethoraError, match="lacks"):  # another normalisation goes with other weights
        Backbone(config(str(file), "vit_small_patch16_dinov3"), 0)


def test_a_file_that_asks_for_code_is_not_opened(tmp_path):
    path = tmp_path / "w.pth"
    torch.save(print, path)
    with pytest.raises(PlethoraError, match=r"w\.pth"):
        Backbone(config(str(path)), 0)
    with pytest.raises(PlethoraError, match="no such file"):
        Backbone(config(str(tmp_path / "nowhere.pth")), 0)


class _Hub(BaseHTTPRequestHandler):
    answer: tuple[int, dict[str, str], bytes]

    def _head(self) -> None:
        code, headers, body = self.answer
        self.send_response(code)
        for key, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(key, value)
        self.end_headers()

    do_HEAD = _head

    def do_GET(self) -> None:
        self._head()
        self.wfile.write(self.answer[2])

    def log_message(self, *given: object) -> None:
        pass


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[type[_Hub]]:
    """The hub's client sent to a server of ours, with an empty cache."""
    from huggingface_hub import constants

    server = ThreadingHTTPServer(("127.0.0.1", 0), _Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    endpoint = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setattr(
        constants, "HUGGINGFACE_CO_URL_TEMPLATE", endpoint + "/{repo_id}/{revision}/{filename}"
    )
    monkeypatch.setattr(constants, "ENDPOINT", endpoint)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    yield _Hub
    server.shutdown()
    server.server_close()


def test_the_hubs_weights_are_recorded_with_their_commit_and_then_come_from_the_cache(hub, file):
    data, commit = file.read_bytes(), "c0ffee" + "0" * 34
    hub.answer = 200, {"X-Repo-Commit": commit, "ETag": f'"{hashlib.sha256(data).hexdigest()}"'}, data
    found = Backbone(config("hub"), 0)
    hub.answer = 500, {}, b""
    again = _of_cache(commit)
    for one in (found.base, again):
        assert one.source == f"hub: timm/vit_tiny_patch16_224.augreg_in21k_ft_in1k@{commit}"
        assert one.hash == hashlib.sha256(data).hexdigest()
    assert torch.equal(found.vit.norm.weight, released()["norm.weight"])


def _of_cache(commit: str) -> weights.Base:
    from huggingface_hub import constants

    # the client names the branch only when it resolves one; a user's cache has it
    folder = Path(constants.HF_HUB_CACHE) / "models--timm--vit_tiny_patch16_224.augreg_in21k_ft_in1k" / "refs"
    folder.mkdir(exist_ok=True)
    (folder / "main").write_text(commit)
    return Backbone(config("hub"), 0).base


def test_gated_weights_are_told_in_one_line_with_the_way_out(hub):
    hub.answer = 403, {"X-Error-Code": "GatedRepo"}, b""
    with pytest.raises(
        PlethoraError, match=r"gated: accept their licence.*HF_TOKEN.*path.*\"random\""
    ) as told:
        Backbone(config("hub"), 0)
    assert "\n" not in str(told.value)


def test_a_hub_out_of_reach_is_told_in_one_line_with_the_way_out(monkeypatch, hub):
    from huggingface_hub import constants

    monkeypatch.setattr(
        constants, "HUGGINGFACE_CO_URL_TEMPLATE", "http://127.0.0.1:9/{repo_id}/{revision}/{filename}"
    )
    with pytest.raises(PlethoraError, match=r"cannot be had from the hub.*backbone\.weights the path"):
        Backbone(config("hub"), 0)


def test_a_model_without_weights_on_the_hub_says_so():
    with pytest.raises(PlethoraError, match="timm knows no weights"):
        weights.fetched("mine", {"hf_hub_id": None})


def test_an_adapter_goes_on_its_own_weights_and_normalisation_only():
    base = weights.Base("siglip2", "file: w", "ab" * 32, (0.5,) * 3, (0.5,) * 3)
    weights.check_base(replace(base, source="file: elsewhere"), base)
    with pytest.raises(PlethoraError, match="give the same weights"):
        weights.check_base(replace(base, hash="cd" * 32), base)
    imagenet = replace(base, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
    with pytest.raises(PlethoraError, match=r"mean \(0\.5"):
        weights.check_base(imagenet, base)
