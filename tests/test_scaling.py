"""The scaling page counts what the compiled step does."""

import jax
import numpy as np
from small import schedule, split, task

from benchmarks.scaling import exchanged, exchanged_by
from hiercls_jax.runtime import parallel
from hiercls_jax.training.feed import fed, make_feed
from hiercls_jax.training.state import create
from hiercls_jax.training.step import make_train_step


def test_a_step_exchanges_the_bytes_that_are_counted():
    """A compiled step moves the bytes that follow from the network's parameters and channels."""
    a_task, data = task(), split(8)
    state = jax.device_get(create(a_task.network, a_task.optimizer, jax.random.key(1), (8, 8, 3)))
    batch = next(make_feed(data, resident=False)([np.arange(schedule().batch)]))
    step = parallel.pmap(fed(make_train_step(a_task)))
    lowered = step.lower(parallel.replicate(state), batch)
    _, size = exchanged_by(lowered.compile().as_text())
    assert size == sum(exchanged(a_task.network, (8, 8, 3)).values())


def test_exchanges_are_read_from_a_program():
    """All-reduces of one and of several arrays, asynchronous and in loops, and all-gathers count.

    Other operations do not.
    """
    program = """HloModule jit_step, entry_computation_layout={(f32[3,4]{1,0})->f32[100]{0}}

%sum (x: f32[], y: f32[]) -> f32[] {
  ROOT %s = f32[] add(%x, %y)
}

%inner.1 (state: (s32[], f32[2])) -> (s32[], f32[2]) {
  %g = f32[2]{0} all-reduce(%v), replica_groups={{0,1}}, to_apply=%sum
}

%body.1 (state: (s32[], f32[2])) -> (s32[], f32[2]) {
  %j = f32[2,3,5]{2,1,0} all-gather(%w), channel_id=4, replica_groups={{0,1,2}}, dimensions={1}
  %f = (f32[2]{0}, f32[2]{0}) all-reduce(%u, %v), replica_groups={{0,1}}, to_apply=%sum
  %h = (s32[], f32[2]{0}) while(%t), condition=%c, body=%inner.1, backend_config={"known_trip_count":{"n":"3"}}
}

ENTRY %main.2 (x: f32[3,4]) -> f32[100] {
  %a = f32[3,4]{1,0} all-reduce(%x), replica_groups={{0,1}}, to_apply=%sum
  %b = (f32[5]{0}, s32[]) all-reduce(%y, %z), channel_id=2
  %c = bf16[7]{0} all-reduce-start(%w)
  %d = bf16[7]{0} all-reduce-done(%c)
  %i = (s32[], f32[2]{0}) while(%t), condition=%c, body=%body.1, backend_config={"known_trip_count":{"n":"10"}}
  ROOT %e = f32[100]{0} add(%x, %all-reduce.1)
}
"""  # noqa: E501
    assert exchanged_by(program) == (3 + 10 * (2 + 3), 48 + 24 + 14 + 10 * (16 + 40 + 3 * 8))
