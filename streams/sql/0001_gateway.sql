-- The gateway schema: cases, what happened to them, and what they caused.
-- Every statement of a migration runs in one transaction (streams/sql/migrate.py).

create schema if not exists gateway;
set local search_path = gateway;

-- One row a case: the newest state. `document` is the public part, `sealed` the personal part under the case's own key.
create table cases (
    id          uuid primary key,
    reference   text not null unique,
    type        text not null,
    version     bigint not null check (version >= 1),
    status      text not null,
    document    jsonb not null,
    sealed      bytea not null,
    submitted_by text not null,
    created_at  timestamptz not null default now(),
    updated_at  timestamptz not null default now()
);
create index cases_document on cases using gin (document jsonb_path_ops);
create index cases_by_type on cases (type, created_at);

-- Kept apart from the data it opens: erasing a person is deleting `wrapped`.
create table case_key (
    case_id     uuid primary key,
    wrapped     bytea,
    erased_at   timestamptz,
    check ((wrapped is null) = (erased_at is not null))
);

-- The history: one row a version, without gaps.
create table case_event (
    case_id     uuid not null references cases,
    version     bigint not null,
    event_id    uuid not null unique,
    type        text not null,
    at          timestamptz not null,
    origin      text not null,
    actor       text not null,
    correlation_id text not null,
    hops        smallint not null default 0,
    changed     text[] not null,
    document    jsonb not null,
    sealed      bytea not null,
    primary key (case_id, version)
);
create index case_event_by_correlation on case_event (correlation_id);
create index case_event_by_time on case_event (at desc);

create table attachment (
    id          uuid primary key,
    case_id     uuid not null references cases,
    sha256      text not null check (sha256 ~ '^[0-9a-f]{64}$'),
    media_type  text not null,
    bytes       bigint not null,
    created_at  timestamptz not null default now()
);
create index attachment_by_case on attachment (case_id, created_at);

-- Events on their way to Kafka. A relay owns whole buckets; ids commit out of order, so it selects what is unpublished.
-- Within a case ids follow versions: the case's row is locked while both are drawn.
create table outbox (
    id          bigint generated always as identity primary key,
    bucket      smallint not null,
    topic       text not null,
    key         text not null,
    version     bigint not null,
    headers     jsonb not null,
    value       bytea not null,
    created_at  timestamptz not null default now(),
    published_at timestamptz
);
create index outbox_unpublished on outbox (id) include (bucket, key) where published_at is null;
create index outbox_published on outbox (published_at) where published_at is not null;

create table idempotency (
    api_key     text not null,
    key         text not null,
    request_sha256 bytea not null,
    case_id     uuid not null,
    created_at  timestamptz not null default now(),
    primary key (api_key, key)
);

-- What a remote system told us, so that nothing it repeats is taken twice.
create table inbox (
    source      text not null,
    message_id  text not null,
    outcome     text not null,
    seen_at     timestamptz not null default now(),
    primary key (source, message_id)
);

create table poll_position (
    recipient   text primary key,
    changed_at  timestamptz not null,
    remote_id   text not null
);

-- The state of one case at one recipient: what we pushed, where it is there. `remote_status` is the status it last had
-- there, in the recipient's own words: what the poller compares with, so that a row which only changed because we wrote
-- to it does not carry an old status over a newer one of ours.
create table xref (
    recipient   text not null,
    case_id     uuid not null,
    remote_id   text,
    version     bigint not null,
    state       text not null check (state in ('applied', 'parked')),
    mapping     text not null,
    remote_status text,
    pushed_at   timestamptz not null,
    primary key (recipient, case_id)
);
create index xref_by_case on xref (case_id);

-- A case whose head event failed at a consumer group: it and all its later events wait here, in order. Whoever adds an
-- event or takes the last one away locks the case's row here first, so no event slips past.
create table parked_key (
    consumer_group text not null,
    case_id     uuid not null,
    topic       text not null,
    partition   integer not null,
    stage       text not null,
    field       text,
    reason      text not null,
    attempts    integer not null,
    parked_at   timestamptz not null default now(),
    resume_requested timestamptz,
    primary key (consumer_group, case_id)
);
create index parked_key_to_resume on parked_key (consumer_group, topic) where resume_requested is not null;

-- `version` is empty for an event that could not be read; `position` is the order in which a case's events are handled.
-- `record_sha256`, here and below: in a topic that was made anew, another record may lie at the same offset.
create table parked_event (
    position    bigint generated always as identity primary key,
    consumer_group text not null,
    case_id     uuid not null,
    version     bigint,
    topic       text not null,
    partition   integer not null,
    record_offset bigint not null,
    record_sha256 bytea not null,
    headers     jsonb not null,
    value       bytea not null,
    parked_at   timestamptz not null default now(),
    unique (consumer_group, topic, partition, record_offset, record_sha256),
    foreign key (consumer_group, case_id) references parked_key on delete cascade
);
create index parked_event_in_order on parked_event (consumer_group, case_id, position);

-- A record without a case's id for a key belongs to no case and holds nothing up: kept as it came, with the reason.
create table stray_record (
    consumer_group text not null,
    topic       text not null,
    partition   integer not null,
    record_offset bigint not null,
    record_sha256 bytea not null,
    key         bytea,
    headers     jsonb not null,
    value       bytea,
    stage       text not null,
    field       text,
    reason      text not null,
    seen_at     timestamptz not null default now(),
    primary key (consumer_group, topic, partition, record_offset, record_sha256)
);

create table partition_fence (
    consumer_group text not null,
    topic       text not null,
    partition   integer not null,
    epoch       bigint not null,
    primary key (consumer_group, topic, partition)
);

-- One intended act on the outside world. `payload` and `request` are sealed with the case's key.
create table effect (
    effect_id   uuid primary key,
    sink        text not null,
    case_id     uuid not null references cases,
    case_version bigint not null,
    purpose     text not null,
    occurrence  text not null,
    state       text not null check (state in ('planned', 'intent', 'unknown', 'done', 'failed')),
    payload     bytea not null,
    request     bytea,
    request_sha256 bytea,
    attempt     integer not null default 0,
    owner       uuid,
    lease_until timestamptz,
    due_at      timestamptz not null default now(),
    provider_ref text,
    reason      text,
    correlation_id text not null,
    created_at  timestamptz not null default now(),
    updated_at  timestamptz not null default now()
);
create index effect_due on effect (due_at) where state in ('planned', 'intent');
create index effect_by_case on effect (case_id);
create index effect_unknown on effect (updated_at) where state = 'unknown';

-- `committing` is written just before the act that cannot be taken back; what died after it is unknown.
create table effect_attempt (
    effect_id   uuid not null references effect,
    attempt     integer not null,
    owner       uuid not null,
    phase       text not null check (phase in ('sending', 'committing')),
    started_at  timestamptz not null default now(),
    ended_at    timestamptz,
    outcome     text,
    detail      text,
    primary key (effect_id, attempt)
);

-- Append-only, one hash chain per writing process.
create table audit (
    chain       uuid not null,
    n           bigint not null,
    at          timestamptz not null,
    actor       text not null,
    action      text not null,
    subject     text not null,
    outcome     text not null,
    correlation_id text not null,
    detail      jsonb not null,
    previous    bytea not null,
    hash        bytea not null,
    primary key (chain, n)
);
create index audit_by_correlation on audit (correlation_id);
create index audit_by_subject on audit (subject);
create index audit_by_time on audit (at desc);
create function audit_is_append_only() returns trigger language plpgsql as $$
begin
    raise exception 'gateway.audit is append-only' using errcode = 'insufficient_privilege';
end $$;
create trigger audit_append_only before update or delete or truncate on audit
    for each statement execute function audit_is_append_only();

create table api_key (
    id          text primary key,
    name        text not null,
    secret_sha256 bytea not null,
    scopes      text[] not null,
    created_at  timestamptz not null default now(),
    revoked_at  timestamptz
);
