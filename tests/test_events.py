"""What TensorBoard gets of a record: every number, and check sums that its readers accept."""

import math
import struct

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.compat.tensorflow_stub.pywrap_tensorflow import masked_crc32c

from deeplin.loop import History, Record
from deeplin.runner.events import EventFile
from deeplin.runner.folder import RunFolder
from deeplin.runner.tensorboard import TensorBoardLog


def test_check_sums_are_those_of_tensorboard(tmp_path):
    """Its reader in Python looks at none; the one of its server refuses what is wrong."""
    file = EventFile(tmp_path / "events")
    for step in range(20):
        file.add(Summary(value=[Summary.Value(tag="x" * step, simple_value=step)]), step)
    file.close()
    data, count = (tmp_path / "events").read_bytes(), 0
    while data:
        (length,), sums = struct.unpack("<Q", data[:8]), []
        sums.append(struct.unpack("<I", data[8:12])[0] == masked_crc32c(data[:8]))
        event, tail = data[12 : 12 + length], data[12 + length : 16 + length]
        sums.append(struct.unpack("<I", tail)[0] == masked_crc32c(event))
        assert all(sums), count
        data, count = data[16 + length :], count + 1
    assert count == 21  # the file's version first


@pytest.mark.parametrize("repeats", [1, 3])
def test_scalars_are_the_median_and_range_of_a_record(tmp_path, repeats):
    each = torch.tensor([3e-4, 7.0, 2e-9], dtype=torch.float64)[-repeats:]
    each = each[0] if repeats == 1 else each
    observed = {
        "loss": each,
        "distance_to_limit": each,
        "largest_drift": -each,  # in size
        "gradient_norm": 0 * each,
        "singular_values": torch.stack([2 * each, each], -1),
    }
    log = TensorBoardLog(RunFolder(tmp_path), History(), repeats=repeats, singular_values=2)
    log.on_record(Record(step=5, t=0.25, dt=0.05, observed=observed))
    log.close()
    events = EventAccumulator(str(tmp_path)).Reload()
    middle, low, high = (2e-9, 2e-9, 2e-9) if repeats == 1 else (3e-4, 2e-9, 7.0)
    expected = {
        "by_{}/loss": middle,
        "by_{}/log10_distance_to_limit": math.log10(middle),
        "more_by_{}/log10_largest_drift": math.log10(middle),
        "by_{}/log10_gradient_norm": -300.0,
        "more_by_{}/dt": 0.05,
        "singular_values_by_{}/01": 2 * middle,
        "singular_values_by_{}/02": middle,
    }
    if repeats > 1:
        expected |= {
            "range_by_{}/log10_distance_to_limit/min": math.log10(low),
            "range_by_{}/log10_distance_to_limit/max": math.log10(high),
            "range_singular_values_by_{}/01/max": 2 * high,
        }
    for axis, position in (("step", 5), ("flow_time", 250)):
        for tag, value in expected.items():
            (event,) = events.Scalars(tag.format(axis))
            assert (event.step, event.value) == (position, pytest.approx(value, rel=1e-6)), tag
