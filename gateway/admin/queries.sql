-- What the operator's pages read. Nothing here opens a sealed column or changes a row.

-- name: cases_by_status
select status, count(*) as cases from cases group by status order by status

-- name: outbox
select count(*) as waiting, min(created_at) as oldest from outbox where published_at is null

-- name: parked_by_group
select consumer_group, count(*) as cases, min(parked_at) as oldest from parked_key group by consumer_group order by 1

-- name: effects_by_state
select state, count(*) as effects from effect group by state order by state

-- name: recipients
select recipient, count(*) as cases, count(*) filter (where state = 'parked') as parked, max(pushed_at) as newest
from xref group by recipient order by recipient

-- name: silo_schemas
-- Only the silos that this role may read; another process may load others.
select nspname as schema from pg_namespace
where nspname ~ '^silo_[a-z0-9_]+$'
  and case when has_schema_privilege(nspname, 'usage')
           then coalesce(has_table_privilege(to_regclass(format('%I.load', nspname)), 'select'), false)
           else false end
order by 1

-- name: use_schema
select set_config('search_path', $1, true)

-- name: silo
select p.seq, p.applied_at, l.id as load_id, l.source_time, l.completed, l.added, l.changed, l.removed, l.rejected,
       (select count(*) from load where completed is null) as unfinished
from progress p
left join lateral (select * from load where completed is not null order by id desc limit 1) l on true

-- name: rejects
select file, sheet, row_number, column_name, value_shown, reason, table_name, cardinality(tags) = 0 as whole_table
from reject where load_id = (select id from load where completed is not null order by id desc limit 1)
order by file, row_number, column_name limit $1

-- name: cases
select id, reference, type, version, status, document ->> 'category' as category, document #>> '{asset,name}' as asset,
       created_at, updated_at
from cases
where ($1::text is null or status = $1) and ($2::timestamptz is null or (created_at, id) < ($2, $3::uuid))
order by created_at desc, id desc limit $4

-- name: parked
select k.consumer_group, k.case_id, c.reference, k.stage, k.field, k.reason, k.attempts, k.parked_at, k.resume_requested,
       (select count(*) from parked_event e where e.consumer_group = k.consumer_group and e.case_id = k.case_id) as waiting
from parked_key k left join cases c on c.id = k.case_id
order by k.parked_at desc limit $1

-- name: parked_case
select k.consumer_group, k.case_id, c.reference, k.topic, k.partition, k.stage, k.field, k.reason, k.attempts,
       k.parked_at, k.resume_requested, k.resume_until, k.requested_by
from parked_key k left join cases c on c.id = k.case_id
where k.consumer_group = $1 and k.case_id = $2

-- name: parked_events
select position, version, event_type, topic, partition, record_offset, octet_length(value) as bytes, parked_at
from parked_event where consumer_group = $1 and case_id = $2 order by position limit $3

-- name: dropped_events
select position, version, event_type, topic, partition, record_offset, dropped_at, actor, reason
from dropped_event where consumer_group = $1 and case_id = $2 order by position desc limit $3

-- name: strays
select consumer_group, topic, partition, record_offset, stage, field, reason, seen_at
from stray_record order by seen_at desc limit $1

-- name: strays_count
select count(*) from stray_record

-- name: effects
select e.effect_id, e.sink, e.purpose, e.occurrence, e.state, e.attempt, e.reason, e.due_at, e.created_at, e.updated_at,
       c.reference
from effect e join cases c on c.id = e.case_id
where ($1::text is null or e.state = $1) and ($2::timestamptz is null or (e.created_at, e.effect_id) < ($2, $3::uuid))
order by e.created_at desc, e.effect_id desc limit $4

-- name: audit
select a.chain, a.n, a.at, a.actor, k.name as key_name, a.action, a.subject, a.outcome, a.correlation_id,
       a.detail::text as detail
from audit a left join api_key k on a.actor = 'key:' || k.id
where ($1::text is null or a.action = $1) and ($2::timestamptz is null or (a.at, a.chain, a.n) < ($2, $3::uuid, $5::bigint))
order by a.at desc, a.chain desc, a.n desc limit $4

-- name: find_cases
select id from cases where reference = upper($1) or id = $2::uuid
union select case_id from case_event where correlation_id = $1
union select case_id from effect where effect_id = $2::uuid
limit 20

-- name: flow_case
select id, reference, type, version, status, document ->> 'category' as category, document #>> '{asset,name}' as asset
from cases where id = any ($1::uuid[]) order by created_at

-- name: flow_events
select e.case_id, e.version, e.type, e.at, e.origin, e.actor, k.name as key_name, e.correlation_id, e.hops, e.changed,
       e.document ->> 'status' as status
from case_event e left join api_key k on e.actor = 'key:' || k.id
where e.case_id = any ($1::uuid[])

-- name: flow_attachments
select case_id, sha256, media_type, bytes, created_at from attachment where case_id = any ($1::uuid[])

-- name: flow_outbox
select key::uuid as case_id, version, topic, created_at, published_at from outbox where key = any ($1::text[])

-- name: flow_deliveries
select recipient, case_id, remote_id, version, state, mapping, pushed_at from xref where case_id = any ($1::uuid[])

-- name: flow_parked
select k.consumer_group, k.case_id, k.stage, k.field, k.reason, k.attempts, k.parked_at, k.resume_requested,
       (select count(*) from parked_event e where e.consumer_group = k.consumer_group and e.case_id = k.case_id) as waiting
from parked_key k where k.case_id = any ($1::uuid[])

-- name: flow_effects
select effect_id, case_id, sink, purpose, occurrence, state, attempt, due_at, provider_ref, reason, correlation_id,
       created_at, updated_at
from effect where case_id = any ($1::uuid[])

-- name: flow_attempts
select a.effect_id, a.attempt, a.owner, a.phase, a.started_at, a.ended_at, a.outcome, a.detail
from effect_attempt a join effect e using (effect_id) where e.case_id = any ($1::uuid[])

-- name: flow_audit
select a.at, a.actor, k.name as key_name, a.action, a.subject, a.outcome, a.correlation_id, a.detail::text as detail
from audit a left join api_key k on a.actor = 'key:' || k.id
where a.correlation_id = any ($1::text[]) or a.subject = any ($2::text[])
order by a.at limit 500
