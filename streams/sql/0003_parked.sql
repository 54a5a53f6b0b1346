-- What people do with parked cases: ask for one event to be tried, find cases by their cause, drop events.

set local search_path = gateway;

-- `resume_until` is the position of the last event to try; empty: all of them. `requested_by` is who asked.
alter table parked_key
    add column if not exists resume_until bigint,
    add column if not exists requested_by text;
create index if not exists parked_key_by_cause on parked_key (consumer_group, stage, field);

-- Empty for an event that could not be read, and for one that was parked before these columns were there.
alter table parked_event
    add column if not exists event_id uuid,
    add column if not exists event_type text;

-- Events that a person gave up, as they were parked. `position` is the one the event had: drawn there, not here. No
-- reference to `parked_key`, which goes with its last event.
create table if not exists dropped_event (
    like parked_event,
    dropped_at  timestamptz not null default now(),
    actor       text not null,
    reason      text not null,
    primary key (position)
);
create index if not exists dropped_event_by_case on dropped_event (consumer_group, case_id, position);
