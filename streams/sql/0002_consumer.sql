-- What a consumer group has seen, where it stands, and the bolt that holds everything still after a restore.
-- Every table stays readable by a process of the release before: a column that is added is empty or has a default.

set local search_path = gateway;

-- The position of a group, under the same row as its fence. All three are empty until the group commits here for the
-- first time: then Kafka's own offset counts. `last_sha256` (streams/consumer/records.py) is that of the record at
-- `last_offset`: in a topic that was made anew another record lies there.
alter table partition_fence
    add column if not exists next_offset bigint,
    add column if not exists last_offset bigint,
    add column if not exists last_sha256 bytea;

-- The inbox of case events: the last version of a case that a group has done or parked, one row a case. It is not
-- purged by age: without its row an old event that comes again would look new. No reference to `cases`: after a restore
-- to an earlier time a group may have seen a case that the database does not know.
create table if not exists case_seen (
    consumer_group text not null,
    case_id     uuid not null,
    version     bigint not null,
    seen_at     timestamptz not null default now(),
    primary key (consumer_group, case_id)
);

-- One row while nothing may be written, because Kafka or a recipient knows more than this database.
create table if not exists shut (
    one         boolean primary key default true check (one),
    reason      text not null,
    detail      jsonb not null,
    at          timestamptz not null default now()
);

-- A trigger and not a question in the programs: every process obeys at once, also one that forgot to ask. A recovery
-- sets silogate.recovering for its own transaction. Volatile: each statement sees the row as it is committed now.
create or replace function refuse_while_shut() returns trigger language plpgsql as $$
begin
    if current_setting('silogate.recovering', true) is distinct from 'on'
       and exists (select from gateway.shut) then
        raise exception 'the gateway is shut until it is recovered' using errcode = 'SG001';
    end if;
    return null;
end $$;
create or replace trigger cases_refused_while_shut before insert or update on cases
    for each statement execute function refuse_while_shut();
create or replace trigger effect_attempt_refused_while_shut before insert on effect_attempt
    for each statement execute function refuse_while_shut();
