import pickle

import pytest

from qfleet.common import errors

CLASSES = [
    value
    for value in vars(errors).values()
    if isinstance(value, type) and issubclass(value, errors.QfleetError)
]


@pytest.mark.parametrize("error", CLASSES)
def test_error_survives_pickle_with_its_message(error):
    copy = pickle.loads(pickle.dumps(error("what happened")))

    assert type(copy) is error
    assert str(copy) == "what happened"
    assert copy.args == ("what happened",)


@pytest.mark.parametrize(
    ("error", "exit_code"),
    [
        (errors.QfleetError, 1),
        (errors.ConfigError, 2),
        (errors.ResourcesError, 2),
        (errors.CheckpointError, 3),
        (errors.NonFiniteError, 4),
        (errors.RoleLostError, 5),
        (errors.CallLostError, 5),
        (errors.WaitTimeoutError, 5),
        (errors.ClusterLostError, 5),
        (errors.EnvironmentFailedError, 5),
        (errors.MemoryLimitError, 5),
        (errors.WireFormatError, 1),
        (errors.InvariantError, 1),
        (errors.ReplayNotReadyError, 1),
    ],
)
def test_error_ends_the_command_with_its_exit_code(error, exit_code):
    assert error.exit_code == exit_code


def test_every_error_class_has_an_expected_exit_code():
    assert len(CLASSES) == 14


def test_caller_mistakes_are_value_errors_too():
    assert issubclass(errors.ConfigError, ValueError)
    assert issubclass(errors.WireFormatError, ValueError)
    assert issubclass(errors.InvariantError, AssertionError)
