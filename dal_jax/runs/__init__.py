"""Long runs of independent tasks: resumable, and spread over processes and hosts.

A task is a whole number 0, ..., N - 1, and its record is a dictionary that JSON can hold. The room
does not depend on what a task does.
"""

from dal_jax.runs._directory import RunDirectory as RunDirectory
from dal_jax.runs._directory import fingerprint as fingerprint
from dal_jax.runs._directory import open_run as open_run
from dal_jax.runs._hosts import Host as Host
from dal_jax.runs._hosts import join_hosts as join_hosts
from dal_jax.runs._hosts import leave_hosts as leave_hosts
from dal_jax.runs._hosts import share as share
from dal_jax.runs._hosts import wait_for_hosts as wait_for_hosts
from dal_jax.runs._records import ShardWriter as ShardWriter
from dal_jax.runs._records import decode as decode
from dal_jax.runs._records import encode as encode
