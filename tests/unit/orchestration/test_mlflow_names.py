"""Names of figures and tasks as MLflow takes them."""

from __future__ import annotations

from mlflow.utils.validation import _validate_metric_name

from orchestration.evaluations import mlflow_name

FIGURE = "KD[recogniser].mean"
TASKS = ("digits", "猫", "犬", "हिन्दी", "हिन्दु", "a'b", "a,b", "a_b", "a[", "a]", "a", "🐱", "🐶")


def test_every_task_has_a_metric_of_its_own_that_mlflow_takes() -> None:
    names = [mlflow_name(FIGURE, task) for task in TASKS]
    assert len(set(names)) == len(TASKS)
    for name in names:
        _validate_metric_name(name)


def test_letters_of_any_script_stay_what_they_are() -> None:
    assert mlflow_name(FIGURE) == "KD/recogniser.mean"
    assert mlflow_name(FIGURE, "猫") == "KD/recogniser.mean/猫"
