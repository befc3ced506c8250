"""A test that holds a model to limits and to its last released ledger. Run it with pytest, or as it is."""

from torch import nn

from torchledger import analyze, assert_within


def network(width: int = 32) -> nn.Module:
    """Return the model under test."""
    return nn.Sequential(nn.Conv2d(3, width, 3), nn.ReLU(), nn.Flatten(), nn.Linear(900 * width, 10))


BASELINE = analyze(network(), (3, 32, 32))  # in a project: Ledger.load("baseline.json"), kept beside the tests


def test_size() -> None:
    assert_within(network(), (3, 32, 32), params="300K", macs="2M", peak="2MB", unknown=0)


def test_no_growth() -> None:
    assert_within(network(), (3, 32, 32), baseline=BASELINE, tolerance="1%")


if __name__ == "__main__":
    test_size()
    test_no_growth()
    try:
        assert_within(network(width=40), (3, 32, 32), baseline=BASELINE, tolerance="1%")
    except AssertionError as error:
        print(str(error).splitlines()[0])  # tables of the layers follow
