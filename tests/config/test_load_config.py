import sys

import pytest

import implicitcore as ic


def refusal(path) -> str:
    with pytest.raises(ic.ConfigError) as caught:
        ic.load_config(path)
    [problem] = caught.value.problems
    assert problem.startswith(str(path))
    return problem


def test_yaml_and_json_give_the_same_solver(tmp_path):
    (tmp_path / "solver.yaml").write_text("name: anderson\ntol: 1e-5\ndepth: 3\n")
    (tmp_path / "solver.json").write_text('{"name": "anderson", "tol": 1e-5, "depth": 3}')
    loaded = [ic.load_config(tmp_path / f"solver.{suffix}") for suffix in ("yaml", "json")]
    assert loaded[0]["tol"] == "1e-5"  # what PyYAML makes of it
    assert [ic.create("root_solver", data) for data in loaded] == [
        ic.Anderson(tol=1e-5, depth=3)
    ] * 2


def test_a_yaml_tag_is_refused(tmp_path):
    file = tmp_path / "evil.yaml"
    file.write_text(f"name: !!python/object/apply:pathlib.Path.touch [{tmp_path / 'ran'}]\n")
    assert "could not determine a constructor for the tag" in refusal(file)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("a.toml", "", "expected a file named *.yaml, *.yml or *.json"),
        ("a.yml", "- 1\n", "expected a mapping, received [1]"),
        ("a.yaml", "", "expected a mapping, received None"),
        ("a.json", "{", "JSONDecodeError"),
        ("a.yaml", "a: [", "while parsing"),
        ("a.yaml", "tol: 1\ntol: 2\n", "'tol' stands there twice"),
        ("a.json", '{"tol": 1, "tol": 2}', "'tol' stands there twice"),
    ],
)
def test_a_file_that_is_no_configuration_is_refused(tmp_path, name: str, text: str, expected: str):
    (tmp_path / name).write_text(text)
    assert expected in refusal(tmp_path / name)


def test_a_file_that_cannot_be_read_is_refused(tmp_path):
    assert "FileNotFoundError" in refusal(tmp_path / "none.yaml")
    (tmp_path / "latin.json").write_bytes(b'{"a": "\xe9"}')
    assert "UnicodeDecodeError" in refusal(tmp_path / "latin.json")


def test_without_pyyaml_the_error_says_what_to_install(tmp_path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "a.yaml").write_text("name: picard\n")
    monkeypatch.setitem(sys.modules, "yaml", None)
    assert "pip install 'implicitcore[yaml]'" in refusal(tmp_path / "a.yaml")
