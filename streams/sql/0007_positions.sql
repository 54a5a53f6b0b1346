-- When a group last had to start a partition anew, and why: a topic that was made anew, records gone with their age.

set local search_path = gateway;

alter table partition_fence
    add column if not exists restarted text,
    add column if not exists restarted_at timestamptz;

-- `last_sha256` is that of the event's id, or the digest of a record that cannot be read (streams/consumer/position.py).
comment on column partition_fence.last_sha256 is 'what tells the record at last_offset from another';
