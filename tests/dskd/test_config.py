"""Configuration: dotted keys, coercion, and errors that say what to write."""

import pytest

from dskd.config import ConfigError, from_mapping, replace, to_mapping
from dskd.methods import METHODS, get_method
from dskd.switches import Method


def test_replace_sets_nested_fields_and_coerces_what_yaml_leaves() -> None:
    changed = replace(
        get_method("dskd"), {"train.lr": "1e-3", "train.epochs": 7.0, "students": ["decoder"], "map.sigma": 2}
    )
    assert (changed.train.lr, changed.train.epochs, changed.students, changed.map.sigma) == (1e-3, 7, ("decoder",), 2.0)
    assert isinstance(changed.map.sigma, float)  # 2 and 2.0 are one run, so they must be one id
    assert get_method("dskd").train.epochs == 200


@pytest.mark.parametrize("name", METHODS)
def test_plain_data_and_back(name: str) -> None:
    assert from_mapping(Method, to_mapping(METHODS[name])) == METHODS[name]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"train.epoch": 1}, "unknown key 'train.epoch'; did you mean 'train.epochs'"),
        ({"trian.epochs": 1}, "did you mean 'train.epochs'"),
        ({"train.epochs.x": 1}, "unknown key"),
        ({"train.epochs": "many"}, "train.epochs: 'many' is not possible; write a whole number"),
        ({"train.epochs": True}, "write a whole number"),
        ({"train.epochs": 0}, "train.epochs: 0 is not possible; write 1 or more"),
        ({"train.lr": "fast"}, "write a number"),
        ({"train.lr": float("nan")}, "write a number"),
        ({"train.optimizer": "adm"}, "did you mean 'adam'"),
        ({"train.betas": [0.5]}, "a list of 2 values is needed, 1 given"),
        ({"students": "encoder"}, "write a list"),
        ({"students": []}, r"write \[encoder\], \[decoder\] or \[encoder, decoder\]"),
        ({"layers": [4]}, r"write some of \[1, 2, 3\]"),
        ({"students": ["encoder"], "embedding.source": "teacher"}, "there is no decoder student; add `decoder`"),
        ({"map.sigma": -1}, "map.sigma: -1.0 is not possible"),
    ],
)
def test_what_cannot_be_meant_is_refused_with_what_would_be_right(values: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        replace(get_method("dskd"), values)


def test_unknown_method_names_the_near_match() -> None:
    with pytest.raises(ConfigError, match="did you mean 'stfpm'"):
        get_method("stpm")
