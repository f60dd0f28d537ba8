"""A bundle holds the modules that it names, and opens with exactly their weights."""

import pytest
import torch
from torch import nn

from cluster.errors import PlethoraError
from pretrain.held import fill, grouped, held
from pretrain.trained import encoder_of
from tests.finetune.tiny import Tiny


def modules() -> dict[str, nn.Module]:
    pair = nn.ModuleDict({"ppg": nn.Linear(2, 3), "ecg": nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1))})
    return {"pair": pair, "teacher": nn.Linear(1, 1)}


def weights(of: dict[str, nn.Module]) -> dict[str, torch.Tensor]:
    return {
        f"{name}.{key}": x.clone() for name, module in of.items() for key, x in module.state_dict().items()
    }


def test_a_bundle_that_names_no_modules_holds_all() -> None:
    assert list(held(modules(), None, "x")) == ["pair", "teacher"]


def test_what_a_bundle_does_not_name_is_gone() -> None:
    found = held(modules(), ["pair.ppg"], "x")
    assert list(found) == ["pair"] and list(weights(found)) == ["pair.ppg.weight", "pair.ppg.bias"]
    assert set(weights(held(modules(), ["pair", "teacher"], "x"))) == set(weights(modules()))


def test_a_module_that_the_recipe_has_not_is_refused() -> None:
    for names, said in ((["pair.abp", "student"], "modules names pair.abp, student"), ([], "names nothing")):
        with pytest.raises(PlethoraError, match=said) as told:
            held(modules(), names, "config.json")
        assert "its recipe has pair, teacher, pair.ppg, pair.ecg" in str(told.value)


def test_weights_go_to_their_modules() -> None:
    found, given = modules(), weights(modules())
    fill(found, given, "x")
    assert all(torch.equal(x, given[name]) for name, x in weights(found).items())


def test_all_that_does_not_fit_is_named_and_nothing_is_loaded() -> None:
    found = modules()
    before = weights(found)
    given = {
        name: x for name, x in before.items() if not name.startswith("pair.ecg.") and "ppg.bias" not in name
    }
    given |= {
        "pair.ppg.weight": torch.zeros(3, 9),
        "head.weight": torch.zeros(1),
        "head.bias": torch.zeros(1),
    }
    with pytest.raises(PlethoraError) as told:
        fill(found, given | {"teacher.extra": torch.zeros(1)}, "b: does not fit")
    assert str(told.value) == (
        "b: does not fit: missing: pair.ppg.bias, pair.ecg.* (4); "
        "of another shape: pair.ppg.weight (3, 9) instead of (3, 2); unexpected: head.* (2), teacher.extra"
    )
    assert all(torch.equal(x, before[name]) for name, x in weights(found).items())


def test_a_group_stands_only_for_names_that_are_all_in_it() -> None:
    among = ["a.b.x", "a.b.y", "a.c.x", "d"]
    assert grouped(["a.b.x", "a.b.y"], among) == ["a.b.* (2)"]
    assert grouped(["a.b.x", "a.c.x"], among) == ["a.b.x", "a.c.x"]
    assert grouped(among, among) == ["a.* (3)", "d"]


def test_modules_that_do_not_give_the_modes_are_one_line() -> None:
    recipe = Tiny(Tiny.Config(), 0)
    with pytest.raises(PlethoraError, match="its encoder needs 'net', and modules names only other"):
        encoder_of(recipe, {"other": nn.Linear(1, 1)}, {"modes": {"ppg": {}}}, "config.json")
    with pytest.raises(PlethoraError, match=r"the modules that it holds \(net\) do not give mode ecg"):
        encoder_of(recipe, recipe.modules(), {"modes": {"ppg": {}, "ecg": {}}}, "config.json")
